"""Rows -> `summary.json`: per cell outcomes, rewards and costs; per pair of modes the difference on the same
tasks.

Two means of the reward are given wherever they differ: over the completed episodes, and with each context
overflow as 0. Every other failure is in neither and is counted beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eval.config import MODES, ReportConfig
from eval.rows import Outcome, Row
from eval.stats import mean_ci, paired_difference, spread
from eval.text import printable

COSTS = (
    "root_tokens",
    "root_prompt_tokens",
    "root_completion_tokens",
    "root_peak_context_tokens",
    "sub_tokens",
    "sub_prompt_tokens",
    "sub_completion_tokens",
    "total_tokens",
    "judge_tokens",
    "wall_seconds",
    "model_seconds",
    "repl_seconds",
    "repl_wait_seconds",
    "root_turns",
    "sub_calls",
    "sub_batches",
    "sub_batch_size_mean",
    "sub_batch_size_max",
    "sub_turns",
    "sub_tool_calls",
    "sub_errors",
    "repl_calls",
    "repl_timeouts",
    "repl_restarts",
    "repl_truncated_outputs",
    "repl_errors",
)
"""Measures of an episode that get mean, median, p90 and maximum."""

PAIRS = (("llm", "rlm"), ("llm", "rlm_tips"), ("rlm", "rlm_tips"))
"""(a, b): the difference shown is b - a."""

Summary = dict[str, Any]


def by_task(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[str, list[float]]:
    """task id -> values of its episodes, those without a value left out."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        number = value(row)
        if number is not None:
            grouped.setdefault(row["task_id"], []).append(float(number))
    return grouped


def reward_completed(row: Row) -> float | None:
    """The reward of a completed episode; None for every other."""
    return row["reward"] if row["outcome"] == Outcome.COMPLETED else None


def reward_overflow_as_zero(row: Row) -> float | None:
    """As above, with a context overflow as 0: an empty answer to a question that was asked."""
    return 0.0 if row["outcome"] == Outcome.CONTEXT_OVERFLOW else reward_completed(row)


def cells_of(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """(suite, setting, mode, model) -> its rows, in order of first appearance with modes in theirs."""
    grouped: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["suite"], row["setting"], row["mode"], row["model"]), []).append(row)
    suites = list(dict.fromkeys(key[0] for key in grouped))
    settings = list(dict.fromkeys(key[1] for key in grouped))
    models = list(dict.fromkeys(key[3] for key in grouped))
    order = sorted(
        grouped,
        key=lambda key: (
            models.index(key[3]),
            suites.index(key[0]),
            settings.index(key[1]),
            MODES.index(key[2]),  # type: ignore[arg-type]
        ),
    )
    return {key: grouped[key] for key in order}


def summarise(rows: Sequence[Row], *, name: str, seed: int, report: ReportConfig) -> Summary:
    """The whole `summary.json` of an evaluation."""
    cells = cells_of(rows)
    options: dict[str, Any] = {
        "resamples": report.bootstrap,
        "confidence": report.confidence,
        "seed": seed,
    }
    return {
        "name": name,
        "seed": seed,
        "confidence": report.confidence,
        "bootstrap": report.bootstrap,
        "episodes": len(rows),
        "cells": [_cell_summary(key, own, options) for key, own in cells.items()],
        "paired": list(_pairs(cells, options)),
        "paired_models": list(_model_pairs(cells, options)),
        "failures": _failures(cells),
    }


def _cell_summary(key: tuple[str, str, str, str], rows: Sequence[Row], options: dict[str, Any]) -> Summary:
    outcomes = Counter(row["outcome"] for row in rows)
    completed = [row for row in rows if row["outcome"] == Outcome.COMPLETED]
    parts = sorted({name for row in completed for name in row if name.startswith("reward/")})

    def estimate(of: Sequence[Row], value: Callable[[Row], float | None]) -> Any:
        result = mean_ci(by_task(of, value), **options)
        return None if result is None else result.to_dict()

    def costs(measure: str) -> Any:
        result = spread([row[measure] for row in completed if row.get(measure) is not None])
        return None if result is None else result.to_dict()

    return {
        "suite": key[0],
        "family": rows[0]["family"],
        "setting": key[1],
        "mode": key[2],
        "model": key[3],
        "episodes": len(rows),
        "tasks": len({row["task_id"] for row in rows}),
        "outcomes": {str(outcome): outcomes.get(outcome, 0) for outcome in Outcome},
        "reward": estimate(rows, reward_completed),
        "reward_overflow_as_zero": estimate(rows, reward_overflow_as_zero),
        "reward_parts": {
            name.removeprefix("reward/"): estimate(completed, lambda row, name=name: row.get(name))  # type: ignore[misc]
            for name in parts
        },
        "answer_ready": _mean(
            [row["answer_ready"] for row in completed if row.get("answer_ready") is not None]
        ),
        "stop_conditions": dict(Counter(row["stop_condition"] or "none" for row in rows).most_common()),
        "tools": _tools(completed),
        "costs": {measure: result for measure in COSTS if (result := costs(measure)) is not None},
    }


def _tools(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean calls and seconds per completed episode, by tool."""
    names = sorted({key.split("/", 1)[1] for row in rows for key in row if key.startswith("tool_calls/")})
    return {
        name: {
            "calls": sum(row.get(f"tool_calls/{name}") or 0.0 for row in rows) / len(rows),
            "seconds": sum(row.get(f"tool_seconds/{name}") or 0.0 for row in rows) / len(rows),
        }
        for name in names
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pairs(cells: dict[tuple[str, str, str, str], list[Row]], options: dict[str, Any]) -> Iterable[Summary]:
    for suite, setting, model in dict.fromkeys((key[0], key[1], key[3]) for key in cells):
        for a, b in PAIRS:
            left, right = cells.get((suite, setting, a, model)), cells.get((suite, setting, b, model))
            if left is None or right is None:
                continue
            entry: Summary = {"suite": suite, "setting": setting, "model": model, "a": a, "b": b}
            yield entry | _differences(left, right, options)


def _model_pairs(
    cells: dict[tuple[str, str, str, str], list[Row]], options: dict[str, Any]
) -> Iterable[Summary]:
    """Each model against the config's first one, in the same suite, setting and mode: what a checkpoint has
    gained over the one that it started from."""
    models = list(dict.fromkeys(key[3] for key in cells))
    for suite, setting, mode in dict.fromkeys(key[:3] for key in cells):
        for model in models[1:]:
            left = cells.get((suite, setting, mode, models[0]))
            right = cells.get((suite, setting, mode, model))
            if left is None or right is None:
                continue
            entry: Summary = {"suite": suite, "setting": setting, "mode": mode, "a": models[0], "b": model}
            yield entry | _differences(left, right, options)


def _differences(left: Sequence[Row], right: Sequence[Row], options: dict[str, Any]) -> Summary:
    found: Summary = {}
    for name, value in (("reward", reward_completed), ("reward_overflow_as_zero", reward_overflow_as_zero)):
        result = paired_difference(by_task(left, value), by_task(right, value), **options)
        found[name] = None if result is None else result.to_dict()
    return found


def _failures(cells: dict[tuple[str, str, str, str], list[Row]]) -> list[Summary]:
    """What went wrong, one entry per cell, outcome and message; messages that differ in numbers only are one.
    The message and the episode are those of the first."""
    found: dict[tuple[Any, ...], Summary] = {}
    for key, rows in cells.items():
        # In the order of tasks: that of the rows is the order in which episodes happened to end.
        for row in sorted(rows, key=lambda row: (row["task_id"], row["rollout"])):
            if row["outcome"] == Outcome.COMPLETED:
                continue
            message = printable(row["error_message"] or "")
            group = (*key, row["outcome"], row["error_type"], re.sub(r"[0-9]+", "#", message))
            entry = found.setdefault(
                group,
                {
                    **dict(zip(("suite", "setting", "mode", "model"), key, strict=True)),
                    "outcome": row["outcome"],
                    "error_type": row["error_type"],
                    "message": message,
                    "episodes": 0,
                    "episode_id": row["episode_id"],
                },
            )
            entry["episodes"] += 1
    return list(found.values())


def find_cell(summary: Summary, **wanted: str) -> Summary | None:
    """The first cell whose fields equal `wanted`."""
    return next(
        (cell for cell in summary["cells"] if all(cell[name] == value for name, value in wanted.items())),
        None,
    )
