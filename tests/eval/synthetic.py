"""Rows as an evaluation of all four suites would write them, drawn by a seeded generator."""

from __future__ import annotations

import random
from typing import Any

from eval.rows import Row

SHAPES: dict[str, dict[str, Any]] = {
    # suite: family, mean reward, root tokens and seconds by mode
    "deepdive": {
        "family": "deepdive",
        "p": (0.58, 0.54, 0.62),
        "root": (110_000, 19_000, 21_000),
        "s": (148, 547, 500),
    },
    "oolong_real": {
        "family": "oolong",
        "p": (0.05, 0.34, 0.30),
        "root": (90_000, 9_000, 11_000),
        "s": (30, 120, 150),
    },
    "oolong_synth": {
        "family": "oolong",
        "p": (0.58, 0.52, 0.44),
        "root": (60_000, 12_000, 14_000),
        "s": (25, 90, 140),
    },
    "verbatim": {
        "family": "verbatim_copy",
        "p": (0.83, 0.91, 0.88),
        "root": (600, 2_500, 4_000),
        "s": (6, 20, 31),
    },
    "math": {
        "family": "math_python",
        "p": (0.44, 0.35, 0.36),
        "root": (9_000, 14_000, 15_000),
        "s": (80, 130, 145),
    },
}
MODES = ("llm", "rlm", "rlm_tips")


def row(**values: Any) -> Row:
    """A completed row with everything that the report reads; `values` replace what a test is about."""
    base: Row = {
        "episode_id": f"e{random.getrandbits(64):x}",
        "suite": "verbatim",
        "family": "verbatim_copy",
        "setting": "default",
        "mode": "rlm",
        "model": "m",
        "model_name": "m",
        "task_id": "t0",
        "task_hash": "h",
        "rollout": 0,
        "outcome": "completed",
        "stop_condition": "answer_ready",
        "error_type": None,
        "error_status": None,
        "error_message": None,
        "reward": 1.0,
        "root_tokens": 100.0,
        "total_tokens": 100.0,
        "wall_seconds": 1.0,
    }
    return {**base, **values}


def rows(tasks: int = 50, seed: int = 0) -> list[Row]:
    """All suites, modes, and the variations that the single-suite plots are about."""
    generator = random.Random(seed)
    found: list[Row] = []
    for suite, shape in SHAPES.items():
        settings: list[tuple[str, dict[str, Any]]] = [("default", {})]
        if suite == "verbatim":
            settings += [
                (f"target_length={n}", {"setting/taskset.target_length": n}) for n in (250, 500, 1000, 2000)
            ]
            settings += [
                (f"mean_fragment_length={n}", {"setting/taskset.mean_fragment_length": n})
                for n in (10, 20, 50)
            ]
        if suite == "math":
            settings = [
                (f"call_seconds={n}", {"setting/harness.repl.call_seconds": n}) for n in (120, 300, 600)
            ]
        for setting, extra in settings:
            for m, mode in enumerate(MODES):
                for task in range(tasks):
                    found.append(_row(generator, suite, shape, setting, extra, m, mode, task))
    return found


def _row(
    generator: random.Random,
    suite: str,
    shape: dict[str, Any],
    setting: str,
    extra: dict[str, Any],
    m: int,
    mode: str,
    task: int,
) -> Row:
    root = shape["root"][m] * generator.lognormvariate(0, 0.5)
    sub = 0.0 if mode == "llm" or shape["family"] in ("verbatim_copy", "math_python") else 4 * root
    labels: Row = {}
    outcome, reward = "completed", float(generator.random() < shape["p"][m])
    if shape["family"] == "oolong":
        length = 1024 * 2 ** (task % 11)
        labels = {"task/subset": suite.split("_")[1], "task/context_len": length}
        if mode == "llm" and length > 131_072:
            outcome = "context_overflow"
    elif suite == "verbatim":
        labels = {"task/kind": ("words", "json", "csv", "codes", "mixed")[task % 5], "task/length": 500}
    if outcome == "completed" and generator.random() < 0.03:
        outcome = generator.choice(["refused", "rate_limited", "judge_error", "infrastructure_error"])
    done = outcome == "completed"
    return row(
        suite=suite,
        family=shape["family"],
        setting=setting,
        mode=mode,
        task_id=f"{suite}-{task}",
        outcome=outcome,
        reward=reward if done else None,
        stop_condition="answer_ready" if done else "error",
        **({"reward/correct": reward} if done else {}),
        root_prompt_tokens=root * 0.9,
        root_completion_tokens=root * 0.1,
        root_tokens=root,
        root_peak_context_tokens=root / 3,
        root_turns=float(generator.randint(1, 9)),
        sub_calls=float(0 if not sub else generator.randint(0, 40)),
        sub_tokens=sub,
        sub_prompt_tokens=sub * 0.93,
        sub_completion_tokens=sub * 0.07,
        total_tokens=root + sub,
        wall_seconds=shape["s"][m] * generator.lognormvariate(0, 0.7),
        answer_ready=float(generator.random() < 0.95),
        **labels,
        **extra,
    )
