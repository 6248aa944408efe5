"""What crosses the fake server's wire: the request a policy reads, the reply or fault it gives."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.fakes import chatml

MODEL = "fake-model"


@dataclass(frozen=True)
class ChatRequest:
    """One model call as the server saw it."""

    index: int
    """Position in `server.requests`, from 0."""
    endpoint: Literal["chat", "generate"]
    model: str
    messages: list[dict[str, Any]]
    """OpenAI-shaped messages; for `generate`, parsed back from the decoded prompt."""
    tools: list[dict[str, Any]]
    sampling: dict[str, Any]
    """Everything else in the body (chat) or its `sampling_params` (generate)."""
    headers: Mapping[str, str]
    """Header names in lower case."""
    body: dict[str, Any]
    prompt_ids: list[int] | None = None
    """The prompt's token ids; None for `chat`."""
    arrived: float = 0.0
    """time.monotonic() at arrival."""

    @property
    def max_tokens(self) -> int | None:
        return self.sampling.get("max_completion_tokens") or self.sampling.get("max_tokens")

    @property
    def system(self) -> str:
        """The first system message's text, '' without one."""
        return next((chatml.text_of(m["content"]) for m in self.messages if m["role"] == "system"), "")

    @property
    def first_user(self) -> str:
        return next((chatml.text_of(m["content"]) for m in self.messages if m["role"] == "user"), "")

    @property
    def last(self) -> str:
        """The last message's text, whoever said it: what the model answers."""
        return chatml.text_of(self.messages[-1].get("content")) if self.messages else ""

    @property
    def turn(self) -> int:
        """How many replies this conversation holds already: 0 on its first call."""
        return sum(message["role"] == "assistant" for message in self.messages)


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    """The arguments object, or its text as sent (to send malformed JSON)."""

    @property
    def arguments_text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(dict(self.arguments))


@dataclass(frozen=True)
class Reply:
    """What the policy answers. Build a fault with one of the class methods below."""

    content: str = ""
    tool_calls: Sequence[ToolCall] = ()
    reasoning: str | None = None
    finish_reason: str | None = None
    """None: `length` when cut at max_tokens, `tool_calls` with calls (chat), else `stop`."""
    delay: float = 0.0
    """Seconds to wait before answering (also before a fault)."""
    token_ids: Sequence[int] | None = None
    """Exact completion ids for `generate`; None encodes the text and adds the stop token."""
    logprobs: Sequence[float] | None = None
    """Exact log-probabilities for `generate`; None uses `fake_logprob`."""
    usage: Mapping[str, int] | None = None
    """Replaces the counted usage (chat)."""
    status: int = 200
    error: Mapping[str, Any] | None = None
    """The error object of a non-200 answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    mangle: Literal["cut", "malformed", "hang"] | None = None

    @classmethod
    def failure(cls, status: int, message: str, kind: str, **more: Any) -> Reply:
        """An OpenAI-shaped error; `kind` is its `type`. Keywords: param, code, headers, delay."""
        param, code = more.pop("param", None), more.pop("code", status)
        error = {"message": message, "type": kind, "param": param, "code": code}
        return cls(status=status, error=error, **more)

    @classmethod
    def rate_limited(cls, retry_after: float = 0.0, **more: Any) -> Reply:
        """429 as OpenAI sends it, with a Retry-After header in seconds."""
        return cls.failure(
            429,
            "Rate limit reached for requests",
            "rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": f"{retry_after:g}"},
            **more,
        )

    @classmethod
    def server_error(cls, message: str = "Internal server error", **more: Any) -> Reply:
        """500 as vLLM sends it."""
        return cls.failure(500, message, "InternalServerError", **more)

    @classmethod
    def context_exceeded(
        cls, max_model_len: int = 4096, prompt_tokens: int = 5000, max_tokens: int = 1
    ) -> Reply:
        """400 in the words of vLLM 0.31 (vllm/renderers/params.py, `_token_len_check`)."""
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{max_tokens} output tokens and your prompt contains {prompt_tokens} input tokens, "
            f"for a total of {prompt_tokens + max_tokens} tokens. Please reduce the length of the "
            f"input prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={prompt_tokens})"
        )
        return cls.failure(400, message, "BadRequestError", param="input_tokens")

    @classmethod
    def openai_context_exceeded(cls, max_model_len: int = 4096, prompt_tokens: int = 5000) -> Reply:
        """400 in the words of OpenAI's own API, whose code is `context_length_exceeded`."""
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, your messages "
            f"resulted in {prompt_tokens} tokens. Please reduce the length of the messages."
        )
        return cls.failure(
            400, message, "invalid_request_error", param="messages", code="context_length_exceeded"
        )

    @classmethod
    def cut(cls, **more: Any) -> Reply:
        """Half the body of a good answer, then the connection is reset."""
        return cls(content=more.pop("content", "this answer never arrives whole"), mangle="cut", **more)

    @classmethod
    def malformed(cls, **more: Any) -> Reply:
        """200 and a complete HTTP body that is not JSON."""
        return cls(mangle="malformed", **more)

    @classmethod
    def hang(cls) -> Reply:
        """No answer until the client goes away or the server closes."""
        return cls(mangle="hang")


Policy = Callable[[ChatRequest], "Reply | str | Awaitable[Reply | str]"]


@dataclass(frozen=True)
class ControlRequest:
    """A call of a vLLM administration endpoint."""

    path: str
    query: dict[str, str]
    body: Any
    arrived: float


def fake_logprob(position: int, token_id: int) -> float:
    """The log-probability (nats) that the server reports for the completion's token at `position`."""
    return -0.01 - ((position * 31 + token_id) % 97) / 97


def completion_text(reply: Reply) -> str:
    """The reply as the tokens of a Qwen-style model spell it."""
    text = f"<think>\n{reply.reasoning}\n</think>\n\n" if reply.reasoning is not None else ""
    text += reply.content
    for number, call in enumerate(reply.tool_calls):
        text += ("\n" if text or number else "") + chatml.tool_call_text(call.name, call.arguments_text)
    return text
