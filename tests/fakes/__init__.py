"""Scripted stand-ins for what the package talks to."""

from tests.fakes.model_server import FakeModelServer
from tests.fakes.wire import MODEL, ChatRequest, ControlRequest, Policy, Reply, ToolCall, fake_logprob

__all__ = [
    "MODEL",
    "ChatRequest",
    "ControlRequest",
    "FakeModelServer",
    "Policy",
    "Reply",
    "ToolCall",
    "fake_logprob",
]
