"""A scripted stand-in for a model: real HTTP, real tool calls and code, no weights.

The idea: `configs/eval/offline.toml` should run all of the evaluation (tools, REPLs, sub-LLMs, a window that
is too small, scoring, plots) on a machine with no network and no GPU, in minutes. So the stand-in answers as
a middling model would, by rules in `scripted_replies.py` that see only what a model sees. Its rewards mean
nothing; that they differ between modes is what makes the plots worth looking at.

Invariants: the same request gets the same reply in any order and at any concurrency, so a resumed run ends
with the table of an unbroken one; a prompt beyond the window is refused in the words of vLLM. Not covered:
streaming, several choices, token ids."""

from __future__ import annotations

import json

from aiohttp import web

from eval.scripted_replies import Message, reply, text_of

CHARS_PER_TOKEN = 4


def count_tokens(messages: list[Message]) -> int:
    """Tokens of a prompt, at four characters each: what a window is compared with."""
    chars = sum(len(text_of(m)) + len(json.dumps(m.get("tool_calls") or [])) - 2 for m in messages)
    return -(-chars // CHARS_PER_TOKEN)


class ScriptedServer:
    """Serves the stand-in on a free port of 127.0.0.1; use as an async context manager.

    Args:
        window: context window in tokens; longer prompts are refused with HTTP 400.
    """

    def __init__(self, *, window: int | None = None) -> None:
        self.window = window
        self.base_url = ""
        """Ends in /v1; set while the server runs."""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> ScriptedServer:
        # A long context comes as one JSON string: the default limit of 1 MiB would refuse it as too large a
        # body.
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        messages: list[Message] = body["messages"]
        prompt_tokens = count_tokens(messages)
        if self.window is not None and prompt_tokens >= self.window:
            text = (
                f"This model's maximum context length is {self.window} tokens. However, your prompt contains "
                f"{prompt_tokens} input tokens. Please reduce the length of the input prompt."
            )
            error = {"message": text, "type": "BadRequestError", "param": "input_tokens", "code": 400}
            return web.json_response({"error": error}, status=400)
        message = reply(messages, [tool["function"]["name"] for tool in body.get("tools") or []])
        completion_tokens = count_tokens([message])
        return web.json_response(
            {
                "id": "scripted",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            }
        )


__all__ = ["ScriptedServer", "count_tokens"]
