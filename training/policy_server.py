"""The served policy as rollouts and evaluation see it: address, name, renderer, health.

One place where the configuration's server, its key and its renderer come together, so that training and
evaluation cannot differ in them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.config import TrainConfig
from training.rollout_loop import POLICY_KEY_VARIABLE
from training.server import VLLMServer


@dataclass(frozen=True)
class ServedPolicy:
    """A policy server that answers."""

    server: VLLMServer
    base_url: str
    """OpenAI address, ending in /v1."""
    model_name: str
    """The name it serves the policy under."""
    renderer: dict[str, Any]
    """`RendererConfig` as a dict."""


def policy_renderer(config: TrainConfig) -> dict[str, Any]:
    """The renderer of `[model]`, or the one that is proven to keep conversations whole.

    Raises:
        SplitConversationError: no such renderer is known, and `model.allow_split_conversations` is false.
    """
    from training.renderer import renderer_config_for

    if config.model.renderer is not None:
        return config.model.renderer.model_dump(mode="json")
    chosen = renderer_config_for(
        config.model.path, allow_split_conversations=config.model.allow_split_conversations
    )
    return chosen.model_dump(mode="json")


@contextlib.contextmanager
def serve_policy(config: TrainConfig) -> Iterator[ServedPolicy]:
    """Starts or attaches the server of `[vllm]` with the policy of `[model]`; takes down what it started.

    Raises:
        VLLMServerError: the server did not come up, or is not fit for training.
        SplitConversationError: see `policy_renderer`; raised before anything is started.
    """
    renderer = policy_renderer(config)
    if config.vllm.api_key:
        os.environ[POLICY_KEY_VARIABLE] = config.vllm.api_key
    server = VLLMServer(
        config.vllm,
        model=config.model.path,
        served_model=config.model.served_name,
        output_dir=config.run.directory / "logs",
    )
    with server:
        yield ServedPolicy(server, server.base_url, config.model.served_name, renderer)
