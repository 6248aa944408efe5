"""Traces made by hand, to score tasks without a model or a harness."""

import verifiers.v1 as vf
from verifiers.v1.graph import MessageNode


def trace_of(task: vf.Task, *, root_reply: str | None = None, messages: list[str] | None = None) -> vf.Trace:
    """A finished trace of `task`: the model said `messages`, and the harness set `root_reply`."""
    trace: vf.Trace = vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        root_reply=root_reply,
    )
    for text in messages or []:
        trace.nodes.append(MessageNode(message=vf.AssistantMessage(content=text), sampled=True))
    return trace


async def score(task: vf.Task, **reply) -> vf.Trace:
    """The trace after the task's own scoring."""
    trace = trace_of(task, **reply)
    await task.score(trace)
    return trace
