"""Model calls of an episode: one shared client, retries with an idempotency key, sub-LLM tool loops.

Every call goes to the interception endpoint with a request id that gives its place in the episode:

* ``root.<turn>``              a turn of the root
* ``sub.<call>.<turn>``        turn of the tool loop of a sub-LLM call
* ``rlm.<child>.`` + either    the same inside a child RLM, repeated with depth

The ids come back on the trace (``call.acp.request_id``), which is how training tells root from sub-LLM.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import aiohttp
from verifiers.v1.semantic import ACP_MODEL_REQUEST_ID_HEADER
from verifiers.v1.trace import Trace

from rlm_env.config import Messages, RetryConfig

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_OVERLONG = re.compile(
    r"context[_ ]length|maximum context|max_model_len|maximum model length|context window|"
    r"prompt is too long|too many tokens|longer than the maximum|exceeds the (?:model'?s )?max",
    re.IGNORECASE,
)
_REQUEST_ID = re.compile(
    r"^(?P<scope>(?:rlm\.\d+\.)*)(?P<kind>root|sub)\.(?P<index>\d+)(?:\.(?P<turn>\d+))?$"
)


@dataclass(frozen=True)
class RequestId:
    """A parsed request id."""

    scope: str
    """``""`` for the episode's root, ``"rlm.<child>."`` repeated for a child."""
    kind: str
    """``root`` (a turn of an RLM) or ``sub`` (a plain sub-LLM call)."""
    index: int
    """Turn of the RLM, or number of the sub-call in its RLM."""
    turn: int = 0
    """Turn of the sub-call's tool loop."""

    @classmethod
    def parse(cls, text: str) -> RequestId:
        """Raises ValueError for an id that this harness did not make."""
        match = _REQUEST_ID.match(text)
        if match is None:
            raise ValueError(f"not a request id of the rlm harness: {text!r}")
        return cls(match["scope"], match["kind"], int(match["index"]), int(match["turn"] or 0))

    @property
    def is_episode_root(self) -> bool:
        return self.kind == "root" and not self.scope


class CallError(Exception):
    """A model call that failed for good.

    ``kind`` is one of ``transport`` (retries spent), ``refused`` (the server said no), ``overlong`` (the
    prompt does not fit the window), ``stopped`` (the framework ended the rollout), ``malformed``.
    """

    def __init__(self, kind: str, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class ModelFailure(Exception):
    """The RLM's own model call failed for good; the episode is an infrastructure error."""

    def __init__(self, error: CallError) -> None:
        super().__init__(str(error))
        self.status = error.status


@dataclass
class Completion:
    """One reply of the model."""

    message: dict[str, Any]
    """The assistant message exactly as the endpoint gave it, to be echoed in the next request."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def text(self) -> str:
        return self.message.get("content") or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        return self.message.get("tool_calls") or []


class SessionLease:
    """The event loop's one HTTP client, open while any episode holds a lease.

    aiohttp, because the hop to the interception server is made once per model call and httpx's pool looks at
    every idle connection on each request (256 calls in one batch: 4.1 s against 8.5 s). Counted, because a
    client that outlives its loop cannot be closed.
    """

    _open: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SessionLease]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self.holders = 0
        # The endpoint is this host's own server: no proxies, no limit but the episodes' own.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0),
            trust_env=False,
        )

    @classmethod
    def take(cls) -> SessionLease:
        """A further hold on the running loop's client; give it back with ``release``."""
        loop = asyncio.get_running_loop()
        lease = cls._open.get(loop)
        if lease is None:
            lease = cls._open[loop] = cls()
        lease.holders += 1
        return lease

    async def release(self) -> None:
        """Give back one hold; the last one closes the client."""
        self.holders -= 1
        if self.holders == 0:
            del self._open[asyncio.get_running_loop()]
            await self.session.close()


@dataclass(frozen=True)
class _Response:
    """What is read of an HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ModelCalls:
    """The episode's access to the model."""

    session: aiohttp.ClientSession
    endpoint: str
    secret: str
    model: str
    retry: RetryConfig
    trace: Trace
    parallel: asyncio.Semaphore
    """Bounds the sub-LLM requests in flight; root turns do not wait for it."""
    retries: int = field(default=0)
    """Attempts beyond the first, over all calls."""

    async def complete(
        self,
        messages: Messages,
        *,
        request_id: str,
        tools: list[dict] | None = None,
        tool_choice: str | None = None,
    ) -> Completion:
        """One chat completion. Raises CallError when it failed for good."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if tools:
            body["tools"] = tools
            if tool_choice is not None:
                body["tool_choice"] = tool_choice
        headers = {
            "Authorization": f"Bearer {self.secret}",
            ACP_MODEL_REQUEST_ID_HEADER: request_id,
            "Idempotency-Key": f"{request_id}:{uuid.uuid4().hex}",
        }
        started = time.monotonic()
        wait = self.retry.initial_seconds
        for attempt in range(1, self.retry.attempts + 1):
            retry_after: float | None = None
            try:
                async with asyncio.timeout(self.retry.request_seconds):
                    response = await self._post(body, headers)
                if response.status == 200:
                    return _completion(response, time.monotonic() - started)
                failure = self._classify(response)
                if failure.kind != "transport":
                    raise failure
                retry_after = _retry_after(response)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                failure = CallError("transport", f"{type(error).__name__}: {error}", 503)
            if attempt == self.retry.attempts:
                break
            self.retries += 1
            # Full jitter keeps a batch that failed together from coming back together.
            pause = min(self.retry.max_seconds, max(retry_after or 0.0, random.uniform(0.5, 1.0) * wait))
            await asyncio.sleep(pause)
            wait *= 2
        raise CallError(
            "transport",
            f"no reply after {self.retry.attempts} attempts; the last one: {failure}",
            failure.status,
        ) from failure

    async def _post(self, body: dict[str, Any], headers: dict[str, str]) -> _Response:
        url = f"{self.endpoint}/chat/completions"
        async with self.session.post(url, json=body, headers=headers) as response:
            return _Response(response.status, response.headers, await response.read())

    def _classify(self, response: _Response) -> CallError:
        text = _error_text(response)
        status = response.status
        if self.trace.stop_condition is not None:
            return CallError(
                "stopped", f"the framework ended the rollout: {self.trace.stop_condition}", status
            )
        if status in (400, 413, 422) and _OVERLONG.search(text):
            return CallError("overlong", text, status)
        if status in _RETRIED:
            return CallError("transport", f"HTTP {status}: {text}", status)
        return CallError("refused", f"HTTP {status}: {text}", status)


def _error_text(response: _Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:2000]
    except (ValueError, KeyError, TypeError):
        return response.body[:2000].decode(errors="replace")


def _retry_after(response: _Response) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None


def _completion(response: _Response, seconds: float) -> Completion:
    try:
        body = response.json()
        choice = body["choices"][0]
        message = {key: value for key, value in choice["message"].items() if value is not None}
        usage = body.get("usage") or {}
        return Completion(
            message={"content": None, **message, "role": "assistant"},
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=seconds,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CallError("malformed", f"the reply is not a chat completion: {error!r}") from error


def parse_arguments(call: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Name and JSON arguments of a tool call; ``None`` when the arguments are not a JSON object."""
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError):
        arguments = None
    return str(function.get("name") or ""), arguments if isinstance(arguments, dict) else None
