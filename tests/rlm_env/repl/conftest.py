"""REPLs over verifiers' real subprocess runtime."""

import pytest
from verifiers.v1.runtimes.subprocess import SubprocessConfig, SubprocessRuntime

from rlm_env.repl import ReplClient, ReplConfig


async def echo(name, payload):
    """A host that knows one tool, and whose sub-LLM shouts."""
    if name == "tool":
        return {"value": {"args": payload["args"], "kwargs": payload["kwargs"]}}
    return {"results": [{"text": prompt.upper()} for prompt in payload["prompts"]], "limit": None}


@pytest.fixture
async def runtime():
    runtime = SubprocessRuntime(SubprocessConfig())
    await runtime.start()
    yield runtime
    await runtime.stop()


@pytest.fixture
async def repl(runtime):
    """Starts REPLs: ``await repl(isolation=..., call_seconds=..., context=..., handler=...)``; any field of
    ReplConfig, any argument of ``ReplClient.start``. Confined as by default unless told otherwise."""
    clients = []

    async def start(handler=echo, runtime=runtime, **fields):
        config = ReplConfig(
            **{name: fields.pop(name) for name in list(fields) if name in ReplConfig.model_fields}
        )
        clients.append(await ReplClient.start(runtime, config, handler=handler, **fields))
        return clients[-1]

    yield start
    for client in clients:
        await client.close()
