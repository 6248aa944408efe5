"""Runs one episode of the real harness against the scripted model server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.agent import Agent
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.runtimes import SubprocessConfig

from rlm_env import RLMHarnessConfig
from rlm_env.calls import RequestId
from tests.fakes import FakeModelServer
from tests.fakes.wire import Policy


class DemoData(vf.TaskData):
    context: Any = None
    context_files: dict[str, str] | None = None
    reference: str = ""


class DemoState(vf.State):
    context: Any = None


class DemoTask(vf.Task[DemoData, DemoState]):
    """Scored 1 when the reply is the reference."""

    @vf.reward
    async def exact(self, trace: vf.Trace) -> float:
        return float(trace.root_reply == self.data.reference)


def demo(prompt: str = "Do it.", *, context: Any = None, reference: str = "", **more: Any) -> DemoTask:
    return DemoTask(DemoData(idx=0, prompt=prompt, context=context, reference=reference, **more))


def harness_config(**settings: Any) -> RLMHarnessConfig:
    settings.setdefault("retry", {"initial_seconds": 0.01, "max_seconds": 0.05})
    return RLMHarnessConfig.model_validate({"id": "rlm_env", **settings})


@asynccontextmanager
async def agent_for(server: FakeModelServer, harness: RLMHarnessConfig, **agent: Any):
    config = AgentConfig(
        model="fake-model",
        client=vf.EvalClientConfig(base_url=server.base_url, api_key_var="FAKE_KEY"),
        harness=harness,
        runtime=SubprocessConfig(),
        **agent,
    )
    async with Agent(config) as live:
        yield live


async def episode(
    policy: Policy, task: DemoTask | None = None, *, agent: dict[str, Any] | None = None, **settings: Any
):
    """One episode; returns (trace, server). ``settings`` are the harness's."""
    async with FakeModelServer(policy) as server:
        async with agent_for(server, harness_config(**settings), **(agent or {})) as live:
            trace = await live.run(task or demo())
    return trace, server


def root_branches(trace: vf.Trace) -> list:
    return [
        branch
        for branch in trace.branches
        if branch.calls and all(RequestId.parse(call.acp.request_id).is_episode_root for call in branch.calls)
    ]


def turns(trace: vf.Trace, path: str = "") -> list[dict[str, Any]]:
    return next(node for node in trace.info["rlm"]["episodes"] if node["path"] == path)["turns"]


def observations(trace: vf.Trace) -> list[str]:
    """What the root was told after each of its turns."""
    (branch,) = root_branches(trace)
    return [str(message.content) for message in branch.messages[2:] if message.role in ("user", "tool")]
