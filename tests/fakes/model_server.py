"""A scripted model behind real HTTP: what vLLM looks like from outside, with a Python function as the model.

The idea: every test of the scaffold talks to a socket, so that connection reuse, retries, cancellation and
malformed answers are those of production. The model is a *policy*: a function of the request that returns a
`Reply` (or a string). The same policy serves `/v1/chat/completions` and, when the server is given a
tokenizer, `/inference/v1/generate` (ids in, ids and log-probabilities out).

Invariants: every request is in `server.requests` in order of arrival, whether or not it was answered; a
policy that raises makes the test fail when the server is closed, it is never just an error answer; token
counts and log-probabilities are functions of the text (`fake_logprob`), so a test can compute them.

Use:

    async with FakeModelServer(policy) as server:          # in the test's own event loop
        ... server.base_url ...
    with FakeModelServer(policy).in_thread() as server:    # for subprocesses and command lines
        subprocess.run([... server.base_url ...])

Not covered: streaming (answered 400), several choices, images.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from tests.fakes import chatml
from tests.fakes.wire import MODEL, ChatRequest, ControlRequest, Policy, Reply, completion_text, fake_logprob

_CONTROL_PATHS = ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache")
_SECONDS = 60.0
"""How long the thread of a server may take to start and to stop, on a busy machine."""


class Tokenizer(Protocol):
    """What the server needs of a tokenizer; every Hugging Face tokenizer has it."""

    @property
    def eos_token_id(self) -> int | None: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


class FakeModelServer:
    """See the module docstring.

    Args:
        policy: the model.
        tokenizer: turns ids to text and back; without it `/inference/v1/generate` answers 501 and token
            counts are a quarter of the characters, rounded up.
        models: names served; None accepts every name and lists `fake-model`.
        max_model_len: tokens; shown by /v1/models, and prompt + max_tokens beyond it is refused as vLLM does.
        parse_prompt: decoded prompt -> messages, for templates other than ChatML.
        control: called with each administration request; may return a Reply to make it fail.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        tokenizer: Tokenizer | None = None,
        models: Sequence[str] | None = None,
        max_model_len: int | None = None,
        parse_prompt: Callable[[str], list[dict[str, Any]]] = chatml.parse,
        control: Callable[[ControlRequest], Reply | None] | None = None,
    ) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.models = tuple(models) if models is not None else None
        self.max_model_len = max_model_len
        self.parse_prompt = parse_prompt
        self.control = control
        self.requests: list[ChatRequest] = []
        self.control_requests: list[ControlRequest] = []
        self.policy_errors: list[BaseException] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.cancelled = 0
        """Requests whose client went away before the answer."""
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._arrived = asyncio.Event()
        self._running = asyncio.Event()
        self._running.set()

    @property
    def url(self) -> str:
        """The server's root, without /v1."""
        if not self.port:
            raise RuntimeError("the fake model server is not running: use `async with` or `in_thread()`")
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as base_url."""
        return f"{self.url}/v1"

    async def wait_for_requests(self, count: int = 1) -> None:
        """Wait until `count` requests have arrived; from the server's own event loop only."""
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()

    # ---- life

    async def start(self) -> FakeModelServer:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        for path in _CONTROL_PATHS:
            app.router.add_post(path, self._control)
        # handler_cancellation: a client that hangs up frees its slot, as in vLLM.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        """Close every connection; raises the first error that the policy raised."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self.policy_errors:
            raise AssertionError("the fake model's policy raised") from self.policy_errors[0]

    async def __aenter__(self) -> FakeModelServer:
        return await self.start()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self.stop()
        except AssertionError:
            if error is None:  # never hide the test's own failure
                raise

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[FakeModelServer]:
        """The server in an event loop of its own thread, for tests that block or start processes."""
        loop = asyncio.new_event_loop()
        started = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self.start())
            started.set()
            loop.run_forever()

        thread = threading.Thread(target=serve, name="fake-model-server", daemon=True)
        thread.start()
        if not started.wait(_SECONDS):
            raise RuntimeError(f"the fake model server did not start within {_SECONDS:g} s")
        failure: BaseException | None = None
        try:
            yield self
        except BaseException as error:
            failure = error
            raise
        finally:
            stopping = asyncio.run_coroutine_threadsafe(self.stop(), loop)
            try:
                stopping.result(_SECONDS)
            except AssertionError:
                if failure is None:
                    raise
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join(_SECONDS)
                loop.close()

    # ---- endpoints

    async def _health(self, http: web.Request) -> web.StreamResponse:
        return web.Response()

    async def _models(self, http: web.Request) -> web.StreamResponse:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "tests",
                "max_model_len": self.max_model_len,
            }
            for name in self.models or (MODEL,)
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _control(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        call = ControlRequest(http.path, dict(http.query), json.loads(raw) if raw else None, time.monotonic())
        self.control_requests.append(call)
        reply = self.control(call) if self.control is not None else None
        if reply is not None:
            if reply.delay:
                await asyncio.sleep(reply.delay)
            if reply.error is not None:
                return self._error(reply)
        if http.path == "/pause":
            self._running.clear()
        elif http.path == "/resume":
            self._running.set()
        return web.json_response({"results": [None]} if http.path == "/collective_rpc" else {"status": "ok"})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        rest = {k: v for k, v in body.items() if k not in ("model", "messages", "tools")}
        request = self._record(
            http, body, "chat", messages=body["messages"], tools=body.get("tools") or [], sampling=rest
        )
        prompt_tokens = self._count(chatml.render(request.messages))
        return await self._serve(http, request, prompt_tokens, self._chat_body)

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        if self.tokenizer is None:
            message = "no tokenizer: construct FakeModelServer(policy, tokenizer=...) to serve token ids"
            return self._error(Reply.failure(501, message, "NotImplementedError"))
        prompt_ids: list[int] = body["token_ids"]
        text = self.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        request = self._record(
            http,
            body,
            "generate",
            messages=self.parse_prompt(text),
            tools=chatml.parse_tools(text),
            sampling=body["sampling_params"],
            prompt_ids=prompt_ids,
        )
        return await self._serve(http, request, len(prompt_ids), self._generate_body)

    # ---- one call

    def _record(self, http: web.Request, body: dict[str, Any], endpoint: Any, **fields: Any) -> ChatRequest:
        request = ChatRequest(
            index=len(self.requests),
            endpoint=endpoint,
            model=body.get("model") or "",
            headers={name.lower(): value for name, value in http.headers.items()},
            body=body,
            arrived=time.monotonic(),
            **fields,
        )
        self.requests.append(request)
        self._arrived.set()
        return request

    async def _serve(
        self,
        http: web.Request,
        request: ChatRequest,
        prompt_tokens: int,
        encode: Callable[[ChatRequest, Reply, int], dict[str, Any]],
    ) -> web.StreamResponse:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._running.wait()
            reply = self._refusal(request, prompt_tokens) or await self._ask(request)
            if reply.delay:
                await asyncio.sleep(reply.delay)
            if reply.mangle == "hang":
                await asyncio.Event().wait()
            if reply.error is not None:
                return self._error(reply)
            payload = json.dumps(encode(request, reply, prompt_tokens)).encode()
            if reply.mangle == "malformed":
                payload = payload[: len(payload) // 2]
            if reply.mangle == "cut":
                return await self._cut(http, payload)
            return web.Response(body=payload, content_type="application/json", headers=reply.headers)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    def _refusal(self, request: ChatRequest, prompt_tokens: int) -> Reply | None:
        """The requests that a real server refuses before the model sees them."""
        if self.models is not None and request.model not in self.models:
            return Reply.failure(
                404, f"The model `{request.model}` does not exist.", "NotFoundError", param="model"
            )
        if request.sampling.get("stream") or (request.sampling.get("n") or 1) > 1:
            return Reply.failure(
                400, "the fake model server neither streams nor gives n > 1", "BadRequestError"
            )
        wanted = request.max_tokens or 1
        if self.max_model_len is not None and prompt_tokens + wanted > self.max_model_len:
            return Reply.context_exceeded(self.max_model_len, prompt_tokens, wanted)
        return None

    async def _ask(self, request: ChatRequest) -> Reply:
        try:
            answer = self.policy(request)
            if inspect.isawaitable(answer):
                answer = await answer
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.policy_errors.append(error)
            # 422 and not 500: no client tries it again, so the test fails at once.
            return Reply.failure(422, f"the policy raised {type(error).__name__}: {error}", "PolicyError")
        return Reply(answer) if isinstance(answer, str) else answer

    def _count(self, text: str) -> int:
        if self.tokenizer is not None:
            return len(self.tokenizer.encode(text, add_special_tokens=False))
        return math.ceil(len(text) / 4)

    def _chat_body(self, request: ChatRequest, reply: Reply, prompt_tokens: int) -> dict[str, Any]:
        content, finish = reply.content, "tool_calls" if reply.tool_calls else "stop"
        completion_tokens = self._count(completion_text(reply))
        if request.max_tokens is not None and completion_tokens > request.max_tokens:
            completion_tokens, finish = request.max_tokens, "length"
            if self.tokenizer is not None:
                ids = self.tokenizer.encode(content, add_special_tokens=False)[: request.max_tokens]
                content = self.tokenizer.decode(ids, skip_special_tokens=False)
            else:
                content = content[: 4 * request.max_tokens]
        message: dict[str, Any] = {"role": "assistant", "content": content or None}
        if reply.reasoning is not None:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{request.index}_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_text},
                }
                for number, call in enumerate(reply.tool_calls)
            ]
        usage = reply.usage or {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.finish_reason or finish,
            "logprobs": None,
        }
        return {
            "id": f"chatcmpl-{request.index}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [choice],
            "usage": dict(usage),
        }

    def _generate_body(self, request: ChatRequest, reply: Reply, prompt_tokens: int) -> dict[str, Any]:
        ids, finish = self._completion_ids(request, reply), "stop"
        if request.max_tokens is not None and len(ids) > request.max_tokens:
            ids, finish = ids[: request.max_tokens], "length"
        logprobs = reply.logprobs or [fake_logprob(position, token) for position, token in enumerate(ids)]
        content: list[dict[str, Any]] = [
            {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
            for token, logprob in zip(ids, logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "logprobs": {"content": content},
            "finish_reason": reply.finish_reason or finish,
            "token_ids": ids,
            "routed_experts": None,
            "sampling_mask": None,
        }
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(ids),
            "total_tokens": prompt_tokens + len(ids),
        }
        return {"request_id": f"generate-{request.index}", "choices": [choice], "usage": usage}

    def _completion_ids(self, request: ChatRequest, reply: Reply) -> list[int]:
        if reply.token_ids is not None:
            return list(reply.token_ids)
        assert self.tokenizer is not None
        ids = list(self.tokenizer.encode(completion_text(reply), add_special_tokens=False))
        stops = request.sampling.get("stop_token_ids") or [self.tokenizer.eos_token_id]
        end_of_turn = self.tokenizer.encode(chatml.END, add_special_tokens=False)
        stop = end_of_turn[0] if len(end_of_turn) == 1 and end_of_turn[0] in stops else stops[0]
        return [*ids, stop]

    def _error(self, reply: Reply) -> web.Response:
        return web.json_response(
            {"error": dict(reply.error or {})}, status=reply.status, headers=reply.headers
        )

    async def _cut(self, http: web.Request, payload: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(payload)
        await response.prepare(http)
        await response.write(payload[: len(payload) // 2])
        if http.transport is not None:
            http.transport.close()
        return response
