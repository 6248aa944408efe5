"""Whole episodes: suite, harness, REPL and rewards, with a scripted model behind real HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import verifiers.v1 as vf

from tests.fakes import MODEL, FakeModelServer, Policy
from training.rollout_loop import renew_renderer_lock


async def run(
    taskset: dict[str, Any],
    policy: Policy,
    *,
    harness: dict[str, Any] | None = None,
    tokenizer: Any = None,
    train: tuple[Path, Any] | None = None,
) -> tuple[list[vf.Trace], FakeModelServer]:
    """Every task of a taskset once, one after another.

    Args:
        taskset: the taskset's config, id included.
        harness: settings of the rlm-env harness.
        train: tokenizer directory and renderer config, to go through the token-level endpoint; needs
            `tokenizer`.

    Returns:
        One trace a task, in the taskset's order, and the server with what it saw.
    """
    env = vf.load_environment(
        vf.resolve_env_config(
            {
                "taskset": taskset,
                "agent": {"harness": {"id": "rlm-env", **(harness or {})}, "runtime": {"type": "subprocess"}},
            }
        )
    )
    async with FakeModelServer(policy, tokenizer=tokenizer) as server:
        client: Any = vf.EvalClientConfig(base_url=server.base_url, api_key_var="UNSET_KEY")
        if train is not None:
            renew_renderer_lock()  # every test has an event loop of its own
            client = vf.TrainClientConfig(
                base_url=server.base_url,
                api_key_var="UNSET_KEY",
                renderer_model_name=str(train[0]),
                renderer=train[1],
            )
        context = vf.ModelContext(model=MODEL, client=client, sampling=vf.SamplingConfig())
        traces = []
        async with env.serving():
            for task in env.taskset:
                episode = await env.run_episode(task, context)
                assert episode.ok, [trace.errors for trace in episode.traces]
                traces += episode.traces
    return traces, server
