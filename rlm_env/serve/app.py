"""``/v1/chat/completions`` with an episode behind each request.

The idea: from outside an RLM is a language model. A request's messages are the task, an extra body field
``context`` (text, list or object) is the REPL's ``context``, and the reply's content is the answer variable.
``usage`` is what the client would pay for: the tokens of the root and of all sub-LLMs; the field ``rlm`` of
the response has the split, the stop reason and the metrics.

Not covered: tools of the client, several choices, images, streaming (answered 400).
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from verifiers.v1.agent import Agent

_MESSAGES: TypeAdapter[list] = TypeAdapter(vf.Messages)
_REFUSED = ("tools", "functions", "stream", "response_format")


class ServedState(vf.State):
    context: Any = None


class ServedTask(vf.Task[vf.TaskData, ServedState]):
    """One request; nothing scores it."""

    context: Any = None

    async def setup(self, trace: vf.Trace, runtime: Any) -> None:
        trace.state.context = self.context


def _error(status: int, message: str, kind: str = "invalid_request_error") -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


def make_app(agent: Agent, model_name: str, *, max_body_mb: int = 256) -> web.Application:
    """The web application; ``agent`` must be entered. ``model_name`` is what clients ask for."""

    async def models(_: web.Request) -> web.Response:
        entry = {"id": model_name, "object": "model", "created": 0, "owned_by": "rlm-env"}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def chat(request: web.Request) -> web.Response:
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
                return _error(400, f"{name!r} is not supported: an RLM answers with text, whole")
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
        trace = await agent.run(task)
        if not trace.ok:
            failure = trace.last_error
            message = f"{failure.type}: {failure.message}" if failure else "the episode failed"
            return _error(502, message, "upstream")
        return web.json_response(completion(trace, model_name))

    app = web.Application(client_max_size=max_body_mb * 2**20)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_post("/v1/chat/completions", chat)
    return app


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
