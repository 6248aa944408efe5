"""Each of the four suites feeds the trainer: its own tasks, tools and rewards, to rows, to a GRPO step.

The policy is scripted and right in half of its episodes, so a group has signal exactly when the suite's
reward tells right from wrong.
"""

from __future__ import annotations

import itertools
import json
from datetime import datetime

import pytest
import torch
from oolong.scoring import synth_golds
from safetensors.torch import load_file
from verifiers.v1.utils.loaders import load_environment

from tests.fakes import FakeModelServer
from tests.fakes.policies import SUB, fence, finish, is_sub
from tests.training.scripted_run import scripted_run
from training.config import TrainConfig
from training.train import train


def spoken(gold):
    """One of Oolong's references as a reply says it."""
    return f"{gold:%Y-%m-%d}" if isinstance(gold, datetime) else gold


SUITES = {
    "verbatim-copy": (
        {"split": "mini", "placement": "repl", "target_length": 60},
        lambda data: "context",
        f"note = llm_query({SUB!r} + context[:9])",
    ),
    "oolong": (
        {"split": "mini", "subset": "synth", "max_context_len": 512},
        lambda data: repr(f"Answer: {spoken(synth_golds(data.answer)[0])}"),
        f"notes = llm_batch([{SUB!r} + context.splitlines()[0]])",
    ),
    "deepdive": (
        {"split": "mini"},
        lambda data: repr(f"\\boxed{{{data.answer}}}"),
        "page = search_web(queries=['ship'], num_results=1)\n"
        f"assert 'http' in page\nllm_query({SUB!r} + page)",
    ),
    "math-python": (
        {"split": "mini"},
        lambda data: repr(f"\\boxed{{{data.answer}}}"),
        f"import sympy\nllm_query({SUB!r} + str(sympy.Integer(6) / 4))",
    ),
}
"""Taskset's settings, the right answer as an expression, and what the root does first."""


@pytest.mark.parametrize("suite", SUITES)
def test_a_step_on_the_rewards_of_a_suite(suite, tiny_tokenizer, tiny_checkpoint, monkeypatch, tmp_path):
    settings, right, first = SUITES[suite]
    config = TrainConfig.model_validate(
        {
            "model": {"path": str(tiny_checkpoint)},
            "env": {
                "taskset": {"id": suite, "num_tasks": 3, **settings},
                "agent": {
                    "harness": {"id": "rlm-env", "tools_for": "repl", "limits": {"episode_seconds": 300}},
                    "runtime": {"type": "subprocess"},
                },
            },
            "grpo": {"group_size": 4},
            "optim": {"lr": 1e-3},
            "batch": {"steps": 1, "rows_per_device": 8},  # a group: four root and four sub-LLM rows
            "precision": {"device": "cpu"},
            "parity": {"enabled": False},
            "traces": {"every_groups": 1},
            "run": {"name": "run", "output_dir": str(tmp_path)},
        }
    )
    tasks = list(load_environment(config.env).taskset.select(config.select))
    answers = {task.data.prompt: right(task.data) for task in tasks}
    episodes = {prompt: itertools.count() for prompt in answers}
    wrong = "'\\\\boxed{wrong} Answer: wrong'"

    def policy(request):
        if is_sub(request):
            return "a note"
        if request.turn == 0:
            return fence(first)
        asked = next(prompt for prompt in answers if prompt in request.first_user)
        return fence(finish(answers[asked] if next(episodes[asked]) % 2 else wrong))

    fake = FakeModelServer(policy, tokenizer=tiny_tokenizer)
    with scripted_run(fake, monkeypatch, tiny_checkpoint):
        summary = train(config)
    assert (summary["ended"], summary["steps"]) == ("finished", 1)

    (log,) = map(json.loads, (config.run.directory / "metrics.jsonl").read_text().splitlines())
    assert 0 < log["reward"] < 1
    assert log["rollout/episodes_left_out_total"] == 0
    assert log["rows/root_tokens_total"] > log["rows/sub_tokens_total"] > 0
    start = load_file(tiny_checkpoint / "model.safetensors")
    final = load_file(config.run.directory / "final" / "model.safetensors")
    assert any(not torch.equal(final[name], start[name]) for name in start)

    # The suite's own reward, not ours: right answers earned it whole, wrong ones nothing.
    earned = {}
    for file in (config.run.directory / "rollouts").glob("part_*/traces.jsonl"):
        for line in file.read_text().splitlines():
            for data in json.loads(line)["traces"]:
                assert not data["errors"]
                reward = sum(one["score"] * one["weight"] for one in data["rewards"].values())
                earned.setdefault("wrong" in data["root_reply"], set()).add(reward)
    assert earned == {True: {0.0}, False: {1.0}}
