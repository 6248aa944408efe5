"""Sub-LLM batches: what ``llm_batch`` in the REPL becomes on the host.

Invariant: a batch of n prompts gets exactly n result entries in their order, each either a text or a typed
error; nothing that failed ever looks like a reply. A call is charged before it is made.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from rlm_env.calls import CallError, ModelCalls, parse_arguments
from rlm_env.config import Messages, RLMHarnessConfig
from rlm_env.limits import Ledger
from rlm_env.metrics import BatchRecord, CallRecord, Recorder
from rlm_env.prompts import sub_system
from rlm_env.toolbox import Toolbox, ToolFailure

LIMIT_TYPE = "SubCallLimitError"
FAILED_TYPE = "SubCallFailedError"
MAX_BATCH = 100_000
"""Prompts in one batch; above it the request itself is refused. Keeps a forged or runaway request from
building a million tasks before the sub-call limit is looked at."""


@dataclass
class Shared:
    """What all RLM nodes of one episode share."""

    config: RLMHarnessConfig
    calls: ModelCalls
    toolbox: Toolbox
    recorder: Recorder
    sub_ids: dict[str, int]
    """Next number of a sub-call, by scope."""

    def next_sub(self, scope: str) -> str:
        number = self.sub_ids.get(scope, 0)
        self.sub_ids[scope] = number + 1
        return f"{scope}sub.{number}"


class SubCallRefused(Exception):
    """A sub-call that ended without a reply: ``type`` and message for the REPL."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


def error_entry(type_: str, message: str) -> dict[str, Any]:
    return {"error": {"type": type_, "message": message}}


def grant(ledger: Ledger, wanted: int) -> tuple[int, dict[str, str] | None]:
    """How many of ``wanted`` calls may be made, and the limit to report when it is fewer."""
    if wanted and ledger.sub_tokens_left <= 0:
        return 0, {
            "type": LIMIT_TYPE,
            "message": f"the sub-LLM token limit ({int(ledger.sub_tokens.total or 0)}) is used up; "
            "no further sub-call can be made",
        }
    granted = ledger.take_sub_calls(wanted)
    if granted == wanted:
        return granted, None
    total = "" if ledger.sub_calls.total is None else f" of {int(ledger.sub_calls.total)}"
    return granted, {
        "type": LIMIT_TYPE,
        "message": f"the limit{total} sub-calls is reached: {granted} of these {wanted} were made, none left",
    }


def check_prompts(payload: dict[str, Any]) -> list[str]:
    """The prompts of a request from the REPL, which is not to be trusted. Raises ValueError."""
    prompts = payload.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("prompts must be a list of strings")
    if len(prompts) > MAX_BATCH:
        raise ValueError(f"a batch takes at most {MAX_BATCH:,} prompts, {len(prompts):,} were given")
    return prompts


async def llm_batch(
    shared: Shared, ledger: Ledger, prompts: list[str], *, scope: str, turn: int, turn_calls: list[str]
) -> dict[str, Any]:
    """Run ``prompts`` as sub-LLM calls in parallel; the reply payload for the REPL."""
    granted, limit = grant(ledger, len(prompts))
    batch = shared.recorder.batch("llm_batch", len(prompts), turn, scope)

    async def one(prompt: str, record: CallRecord) -> dict[str, Any]:
        begun = time.monotonic()
        try:
            return {"text": await sub_llm(shared, ledger, prompt, record)}
        except SubCallRefused as error:
            record.error = f"{error.type}: {error}"
            return error_entry(error.type, str(error))
        except asyncio.CancelledError:
            record.error = "cancelled: the code that asked for it was stopped"
            raise
        finally:
            record.seconds = time.monotonic() - begun

    calls = []
    for prompt in prompts[:granted]:
        record = CallRecord(shared.next_sub(scope), "llm", batch.batch, turn)
        shared.recorder.calls.append(record)
        turn_calls.append(record.id)
        calls.append(one(prompt, record))
    return await in_parallel(batch, calls, limit)


async def in_parallel(
    batch: BatchRecord, calls: Iterable[Coroutine[Any, Any, dict[str, Any]]], limit: dict[str, str] | None
) -> dict[str, Any]:
    """Run the granted ``calls`` of ``batch``; the reply payload: their entries, then ``limit`` as the entry
    of each call that was not granted."""
    started = time.monotonic()
    try:
        # A TaskGroup cancels what is in flight when the REPL call is stopped, so that no request outlives it.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    finally:
        batch.seconds = time.monotonic() - started
    results = [task.result() for task in tasks]
    if limit is not None:
        results += [error_entry(limit["type"], limit["message"])] * (batch.size - len(results))
    return {"results": results, "limit": limit}


async def sub_llm(shared: Shared, ledger: Ledger, prompt: str, record: CallRecord) -> str:
    """One sub-LLM call with its tool loop. Raises SubCallRefused."""
    config, toolbox = shared.config, shared.toolbox
    tools = (
        [tool.wire for tool in toolbox.tools.values()] if config.tools_for in ("sub", "both") else []
    ) or None
    messages: Messages = [
        {"role": "system", "content": sub_system(config, bool(tools))},
        {"role": "user", "content": prompt},
    ]
    for turn in range(config.sub_tool_turns + 1):
        last = turn == config.sub_tool_turns
        if ledger.sub_tokens_left <= 0:
            raise SubCallRefused(LIMIT_TYPE, "the sub-LLM token limit was used up while this call waited")
        request_id = f"{record.id}.{turn}"
        try:
            async with shared.calls.parallel:
                completion = await shared.calls.complete(
                    messages,
                    request_id=request_id,
                    tools=tools,
                    tool_choice="none" if tools and last else None,
                )
        except CallError as error:
            kinds = {"overlong": "PromptTooLongError", "stopped": "EpisodeStoppedError"}
            raise SubCallRefused(kinds.get(error.kind, FAILED_TYPE), str(error)) from error
        record.add(completion, request_id)
        ledger.charge_sub(completion.completion_tokens)
        if not tools or not completion.tool_calls:
            return completion.text
        if last:
            if completion.text:
                return completion.text
            raise SubCallRefused(
                FAILED_TYPE,
                f"no answer after {config.sub_tool_turns} tool turns, only further tool calls",
            )
        messages = [*messages, completion.message]
        outputs = await asyncio.gather(*(_run_tool(shared, call, record) for call in completion.tool_calls))
        for index, (call, output) in enumerate(zip(completion.tool_calls, outputs, strict=True)):
            if turn == config.sub_tool_turns - 1 and index == len(outputs) - 1:
                output += "\n\n[tool turns used up: answer now from what you have]"
            messages.append({"role": "tool", "tool_call_id": call.get("id") or "", "content": output})
    raise AssertionError("unreachable: the last turn returns or raises")


async def _run_tool(shared: Shared, call: dict[str, Any], record: CallRecord) -> str:
    name, arguments = parse_arguments(call)
    record.tool_calls += 1
    if arguments is None:
        return f"error: the arguments of {name} are not a JSON object"
    try:
        return tool_text(await shared.toolbox.call(name, arguments))
    except ToolFailure as error:
        return f"error: {error}"


def tool_text(value: Any) -> str:
    """A tool's result as the text of a tool message."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in value
    ):
        return "\n".join(part["text"] for part in value)
    return json.dumps(value, ensure_ascii=False, default=str)
