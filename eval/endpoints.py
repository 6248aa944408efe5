"""Where a model answers: a URL, a checkpoint on a vLLM server of its own, or the scripted stand-in.

Invariant: what was started here is stopped when the context manager is left, however it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import verifiers.v1 as vf
from pydantic import ValidationError

from eval.config import ModelConfig, explain

if TYPE_CHECKING:
    from training.server import VLLMConfig, VLLMServer


class EndpointError(RuntimeError):
    """A model that cannot be reached or started; the message names the setting and the cure."""


@dataclass(frozen=True)
class Endpoint:
    """A live endpoint, ready for a `vf.ModelContext`."""

    client: vf.EvalClientConfig
    name: str
    """Model name to ask for."""
    watch: Callable[[], None] | None = None
    """Raises when a server that was started here has died; cheap, but blocking."""


def _is_local(url: str) -> bool:
    host = urlparse(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def check(label: str, config: ModelConfig) -> None:
    """What can be known before anything starts. Raises EndpointError."""
    if config.checkpoint is not None and not (config.checkpoint / "config.json").is_file():
        raise EndpointError(
            f"models.{label}.checkpoint: {config.checkpoint} holds no config.json; name the directory of "
            "a saved "
            "model (for the quickstart's policy run scripts/quickstart.sh first)"
        )
    if config.checkpoint is not None:
        _server_settings(label, config)
    if config.base_url is not None:
        if urlparse(config.base_url).scheme not in ("http", "https"):
            raise EndpointError(
                f"models.{label}.base_url: {config.base_url!r} is not an http(s) address, "
                "for example http://127.0.0.1:8000/v1"
            )
        if not _is_local(config.base_url) and not os.environ.get(config.api_key_var):
            raise EndpointError(
                f"models.{label}: the environment variable {config.api_key_var} is empty, and "
                f"{config.base_url} "
                f"needs a key; export {config.api_key_var}, or name another with models.{label}.api_key_var"
            )


@contextlib.asynccontextmanager
async def serve(label: str, config: ModelConfig, logs: Path) -> AsyncIterator[Endpoint]:
    """The model's endpoint, for as long as the context is entered.

    Args:
        label: the model's table name, also its name at the endpoint unless `config.name` says otherwise.
        config: the model.
        logs: directory for the server's log, if one is started.
    """
    check(label, config)
    name = config.name or label
    async with contextlib.AsyncExitStack() as stack:
        if config.base_url is not None:
            client = vf.EvalClientConfig(
                base_url=config.base_url,
                api_key_var=config.api_key_var,
                headers=config.headers,
                headers_from_env=config.headers_from_env,
            )
        elif config.scripted:
            from eval.scripted import ScriptedServer

            server = await stack.enter_async_context(ScriptedServer(window=config.window))
            client = vf.EvalClientConfig(base_url=server.base_url, api_key_var=config.api_key_var)
        else:
            vllm = await stack.enter_async_context(_vllm(label, name, config, logs))
            client = vf.EvalClientConfig(base_url=vllm.base_url, api_key_var=config.api_key_var)
            yield Endpoint(client=client, name=name, watch=vllm.watch)
            return
        yield Endpoint(client=client, name=name)


def _server_settings(label: str, config: ModelConfig) -> VLLMConfig:
    """`config.server`, validated. Imported here, so that an evaluation of endpoints does not need training's
    packages."""
    from training.server import VLLMConfig

    try:
        settings = VLLMConfig.model_validate(config.server)
    except ValidationError as error:
        raise EndpointError(explain(error, VLLMConfig, prefix=f"models.{label}.server")) from error
    if settings.url is not None or settings.api_key is not None:
        raise EndpointError(
            f"models.{label}.server: url and api_key are those of a running server; set base_url and "
            "api_key_var instead of checkpoint"
        )
    return settings


@contextlib.asynccontextmanager
async def _vllm(label: str, name: str, config: ModelConfig, logs: Path) -> AsyncIterator[VLLMServer]:
    """A running vLLM server on `config.checkpoint`."""
    from training.server import VLLMServer, VLLMServerError

    settings = _server_settings(label, config)
    assert config.checkpoint is not None
    if settings.log_file is None:
        settings = settings.model_copy(update={"log_file": logs / f"vllm-{label}.log"})
    server = VLLMServer(settings, model=config.checkpoint, served_model=name, output_dir=logs)
    starting = asyncio.ensure_future(asyncio.to_thread(server.start))
    try:
        # Shielded: a thread cannot be cancelled, and the server that it goes on to start must be stopped.
        await asyncio.shield(starting)
        yield server
    except VLLMServerError as error:
        raise EndpointError(f"models.{label}: {error}") from error
    finally:
        with contextlib.suppress(VLLMServerError):
            if not starting.done():
                await starting
        await asyncio.to_thread(server.stop)
