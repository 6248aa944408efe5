"""Plays `training.behaviours` over the model server's HTTP interface, so that scripts go through the real
harness.

Scripted episodes differ from a policy's in one thing only: who answers the request. Loop, REPL, sub-calls,
client and renderer are those of training, so the recorded token ids are those that training will see.

The invariant: **the server has no state.** The model's name says which plan is played (`scripted-17`), the
conversation in the request says how far it is. Requests may come in any order and as often as they like; the
same episode always gets the same replies.

`/v1/chat/completions` answers in text (before there is a tokenizer), `/inference/v1/generate` in token ids
with log-probability 0, which nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from training.behaviours import Plan
from training.tiny_policy import TURN_END, TURN_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_PREFIX = "scripted-"

_TURN = re.compile(re.escape(TURN_START) + r"(system|user|assistant)\n(.*?)" + re.escape(TURN_END), re.DOTALL)

ChatMessages = list[dict[str, str]]


class ScriptedServer:
    """Serves `plans` on a free port of 127.0.0.1; use as an async context manager.

    Args:
        plans: plan `i` is the model `scripted-<i>`.
        sub_system_prompt: the harness's `sub_system_prompt`, by which a sub-LLM's request is told from the
            root's.
        tokenizer: needed for `/inference/v1/generate`; its chat template is ChatML as in
            `training.tiny_policy`.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        sub_system_prompt: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._plans = plans
        self._sub_system_prompt = sub_system_prompt
        self._tokenizer = tokenizer
        self._runner: web.AppRunner | None = None
        self.base_url = ""
        """Ends in /v1; set while the server runs."""

    async def __aenter__(self) -> ScriptedServer:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def reply(self, model: str, messages: ChatMessages) -> str:
        """The scripted reply to a conversation.

        Raises:
            ValueError: the model is none of the plans, or the conversation is not one of its.
        """
        number = model.removeprefix(MODEL_PREFIX)
        if not number.isdecimal() or int(number) >= len(self._plans):
            raise ValueError(f"no plan for model {model!r}: there are {len(self._plans)}")
        plan = self._plans[int(number)]
        if messages[0]["role"] == "system" and messages[0]["content"] == self._sub_system_prompt:
            return plan.sub_reply(messages[-1]["content"])
        users = [message["content"] for message in messages if message["role"] == "user"]
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        if len(users) != len(said) + 1:
            raise ValueError("not a root conversation: every reply needs exactly one observation")
        for turn, reply in enumerate(said):
            if reply != plan.reply(users[1 : turn + 1]):
                raise ValueError(f"turn {turn} of {model!r} is not what its script said")
        return plan.reply(users[1:])

    def messages_of(self, token_ids: Sequence[int]) -> ChatMessages:
        """The finished turns of a prompt in token ids."""
        assert self._tokenizer is not None
        prompt = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))
        return [{"role": role, "content": text} for role, text in _TURN.findall(prompt)]

    async def _models(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        messages = [{"role": m["role"], "content": m.get("content") or ""} for m in body["messages"]]
        message = {"role": "assistant", "content": self.reply(body["model"], messages)}
        return web.json_response(
            {
                "id": "scripted",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            }
        )

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        if self._tokenizer is None:
            raise web.HTTPNotImplemented(text="this scripted server has no tokenizer")
        body = await http.json()
        reply = self.reply(body["model"], self.messages_of(body["token_ids"]))
        ids = [*self._tokenizer.encode(reply, add_special_tokens=False), self._tokenizer.eos_token_id]
        finish = "stop"
        limit = body["sampling_params"].get("max_tokens")
        if limit is not None and len(ids) > limit:
            ids, finish = ids[:limit], "length"
        content: list[dict[str, Any]] = [
            {"token": f"token_id:{token}", "logprob": 0.0, "bytes": None, "top_logprobs": []} for token in ids
        ]
        choice = {
            "index": 0,
            "token_ids": ids,
            "finish_reason": finish,
            "logprobs": {"content": content},
        }
        return web.json_response({"request_id": "scripted", "choices": [choice]})
