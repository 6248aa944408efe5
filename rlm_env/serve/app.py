"""``/v1/chat/completions`` with an episode behind each request.

The idea: from outside an RLM is a language model. A request's messages are the task, an extra body field
``context`` (text, list or object) is the REPL's ``context``, and the reply's content is the answer variable.
``usage`` is what the client would pay for: the tokens of the root and of all sub-LLMs; the field ``rlm`` of
the response has the split, the stop reason and the metrics.

With ``stream`` the reply still comes whole, since an RLM mends its answer until it declares it ready; until
then the stream has a comment now and then, which keeps proxies from closing it. A client that hangs up ends
its episode.

Not covered: tools of the client, several choices, images (answered 400).
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from verifiers.v1.agent import Agent

_MESSAGES: TypeAdapter[list] = TypeAdapter(vf.Messages)
_REFUSED = ("tools", "functions", "response_format")

HEARTBEAT_SECONDS = 10.0
"""Between two comments of a stream whose episode is running."""


class ServedState(vf.State):
    context: Any = None


class ServedTask(vf.Task[vf.TaskData, ServedState]):
    """One request; nothing scores it."""

    context: Any = None

    async def setup(self, trace: vf.Trace, runtime: Any) -> None:
        trace.state.context = self.context


def _error(status: int, message: str, kind: str = "invalid_request_error") -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


def make_app(
    agent: Agent, model_name: str, *, max_body_mb: int = 256, max_concurrent: int = 32
) -> web.Application:
    """The web application; ``agent`` must be entered. ``model_name`` is what clients ask for. Run it with
    ``handler_cancellation=True``, so that an episode ends with its client."""
    slots = asyncio.Semaphore(max_concurrent)

    async def models(_: web.Request) -> web.Response:
        entry = {"id": model_name, "object": "model", "created": 0, "owned_by": "rlm-env"}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def play(task: ServedTask) -> vf.Trace:
        async with slots:
            return await agent.run(task)

    async def chat(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            return _error(400, "the body is not JSON")
        if not isinstance(body, dict):
            return _error(400, "the body must be an object")
        if body.get("model") != model_name:
            return _error(404, f"the model is {model_name!r}, not {body.get('model')!r}", "model_not_found")
        for name in _REFUSED:
            if body.get(name):
                return _error(400, f"{name!r} is not supported: an RLM answers with text")
        if body.get("n") not in (None, 1):
            return _error(400, "'n' must be 1")
        try:
            messages = _MESSAGES.validate_python(body.get("messages"))
        except ValidationError as error:
            return _error(400, f"messages: {error.errors()[0]['msg']}")
        if not messages or messages[-1].role != "user":
            return _error(400, "the last message must be the user's")
        task = ServedTask(vf.TaskData(prompt=messages))
        task.context = body.get("context")
        if body.get("stream"):
            options = body.get("stream_options")
            usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return await _stream(request, asyncio.create_task(play(task)), model_name, usage)
        trace = await play(task)
        if not trace.ok:
            return _error(502, _failure(trace), "upstream")
        return web.json_response(completion(trace, model_name))

    app = web.Application(client_max_size=max_body_mb * 2**20)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", chat)
    return app


def _failure(trace: vf.Trace) -> str:
    error = trace.last_error
    return f"{error.type}: {error.message}" if error else "the episode failed"


async def _stream(
    request: web.Request, episode: asyncio.Task[vf.Trace], model_name: str, usage: bool
) -> web.StreamResponse:
    """The reply of ``episode`` as server-sent events; cancels the episode when the client is gone."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        await response.prepare(request)
        while not (await asyncio.wait({episode}, timeout=HEARTBEAT_SECONDS))[0]:
            await response.write(b": the episode is running\n\n")
        trace = episode.result()
        if not trace.ok:
            await _event(response, {"error": {"message": _failure(trace), "type": "upstream", "code": 502}})
            return response
        whole = completion(trace, model_name)
        (choice,) = whole["choices"]
        chunk = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        for delta, finish in ((choice["message"], None), ({}, choice["finish_reason"])):
            await _event(
                response, chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            )
        if usage:
            await _event(response, chunk | {"choices": [], "usage": whole["usage"], "rlm": whole["rlm"]})
        await response.write(b"data: [DONE]\n\n")
        return response
    finally:
        if not episode.done():
            episode.cancel()
            await asyncio.wait({episode})


async def _event(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())


def completion(trace: vf.Trace, model_name: str) -> dict[str, Any]:
    """A finished episode as a chat completion. ``finish_reason`` is ``length`` when a limit ended it."""
    metrics = {name: value for name, value in trace.metrics.items() if value is not None}
    prompt = int(metrics.get("root_prompt_tokens", 0) + metrics.get("sub_prompt_tokens", 0))
    sampled = int(metrics.get("root_completion_tokens", 0) + metrics.get("sub_completion_tokens", 0))
    return {
        "id": f"rlm-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model_name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": trace.root_reply or ""},
                "finish_reason": "length" if metrics.get("limit_hit") else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
        },
        "rlm": {"stop_reason": trace.info["rlm"]["stop_reason"], "metrics": metrics},
    }
