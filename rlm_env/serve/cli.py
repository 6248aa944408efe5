"""``rlm-serve``: serve an RLM over an OpenAI-compatible endpoint.

rlm-serve --model Qwen/Qwen3-4B --client.base-url http://localhost:8000/v1 --harness.max-depth 2
"""

from __future__ import annotations

import asyncio
import sys

import verifiers.v1 as vf
from aiohttp import web
from pydantic import Field
from pydantic_config import BaseConfig, cli
from verifiers.v1.agent import Agent
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.runtimes import RuntimeConfig, SubprocessConfig

from rlm_env.config import RLMHarnessConfig
from rlm_env.serve.app import make_app


class ServeConfig(BaseConfig):
    """Settings of the server; TOML by ``@ file.toml``, dotted overrides on the command line."""

    model: str
    """Model behind the RLM, as its endpoint names it."""
    client: vf.EvalClientConfig = vf.EvalClientConfig()
    """Where that model is."""
    sampling: vf.SamplingConfig = vf.SamplingConfig()
    """Sampling of root and sub-LLMs."""
    harness: RLMHarnessConfig = RLMHarnessConfig()
    """The scaffold."""
    runtime: RuntimeConfig = SubprocessConfig()
    """Where the REPLs run."""
    served_name: str | None = None
    """Name that clients ask for; unset is ``rlm-<model>``."""
    host: str = "127.0.0.1"
    """Address to listen on. Model-written code runs behind this endpoint: think before opening it."""
    port: int = Field(8100, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_concurrent: int = Field(32, ge=1)
    """Episodes in flight, each with a REPL process; further requests wait."""


async def serve(config: ServeConfig) -> None:
    """Serve until cancelled."""
    agent_config = AgentConfig(
        model=config.model,
        client=config.client,
        sampling=config.sampling,
        harness=config.harness,
        runtime=config.runtime,
    )
    name = config.served_name or f"rlm-{config.model}"
    async with Agent(agent_config) as agent:
        runner = web.AppRunner(
            make_app(agent, name, max_concurrent=config.max_concurrent), handler_cancellation=True
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, config.host, config.port)
            await site.start()
            host, port = runner.addresses[0][:2]
            print(f"rlm-serve: {name} at http://{host}:{port}/v1", flush=True)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def main() -> None:
    config = cli(ServeConfig)
    try:
        asyncio.run(serve(config))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
