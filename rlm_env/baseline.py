"""The ``llm`` scaffold: a standard model on the same task, with the task's tools given directly.

A plain chat loop in the host's event loop; unlike verifiers' ``null`` harness it installs nothing at run
time. The final reply (one without tool calls) is the answer. With ``python_tool`` the model also has a
``python`` tool on the same confined worker that the RLM's REPL runs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rlm_env.calls import CallError, ModelFailure, parse_arguments
from rlm_env.config import Messages
from rlm_env.limits import Ledger, StopReason
from rlm_env.loop import python_tool
from rlm_env.metrics import BlockRecord, NodeRecord, TurnRecord
from rlm_env.prompts import block_text
from rlm_env.repl import ReplClient, ReplFailure
from rlm_env.subcalls import Shared, tool_text
from rlm_env.toolbox import ToolFailure


@dataclass
class BaselineChat:
    """One conversation of the baseline."""

    shared: Shared
    ledger: Ledger
    messages: Messages
    start_repl: Callable[[], Awaitable[ReplClient]]
    repl: ReplClient | None = None
    answer: str = ""
    answer_ready: bool = False
    record: NodeRecord = field(init=False)
    _repl_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.record = NodeRecord("", 0, None)
        self.shared.recorder.nodes.append(self.record)

    async def open(self) -> None:
        if self.shared.config.python_tool:
            self.repl = await self.start_repl()

    async def close(self) -> None:
        if self.repl is not None:
            await self.repl.close()

    async def resume(self, messages: Messages) -> None:
        self.answer_ready = False
        self.messages = [*self.messages, *messages]

    async def run(self) -> StopReason:
        """Turns until a reply without tool calls, or a limit. Raises ModelFailure."""
        reason = StopReason.ERROR
        try:
            reason = await self._run()
            return reason
        finally:
            self.record.stop_reason = str(reason)

    async def _run(self) -> StopReason:
        config = self.shared.config
        tools = [tool.wire for tool in self.shared.toolbox.tools.values()]
        if self.repl is not None:
            tools.append(python_tool(config))
        for _ in range(config.limits.max_turns):
            if self.ledger.root_tokens.left <= 0:
                return StopReason.MAX_ROOT_TOKENS
            index = len(self.record.turns)
            request_id = f"root.{index}"
            try:
                completion = await self.shared.calls.complete(
                    self.messages, request_id=request_id, tools=tools or None
                )
            except CallError as error:
                if error.kind == "overlong":
                    return StopReason.CONTEXT_OVERFLOW
                if error.kind == "stopped":
                    return StopReason.FRAMEWORK_STOP
                raise ModelFailure(error) from error
            self.ledger.charge_own(completion.completion_tokens)
            turn = TurnRecord.of(index, request_id, completion)
            self.record.turns.append(turn)
            self.messages = [*self.messages, completion.message]
            # Text beside tool calls is kept as the answer so far, in case a limit ends the episode.
            self.answer = completion.text or self.answer
            turn.answer = {"content": self.answer, "ready": not completion.tool_calls}
            if not completion.tool_calls:
                self.answer_ready = True
                return StopReason.ANSWER_READY
            try:
                outputs = await asyncio.gather(*(self._tool(call, turn) for call in completion.tool_calls))
            except ReplFailure:
                return StopReason.REPL_FAILURE
            turn.observation = "\n".join(outputs)
            self.messages += [
                {"role": "tool", "tool_call_id": call.get("id") or "", "content": output}
                for call, output in zip(completion.tool_calls, outputs, strict=True)
            ]
        return StopReason.MAX_TURNS

    async def _tool(self, call: dict[str, Any], turn: TurnRecord) -> str:
        name, arguments = parse_arguments(call)
        if arguments is None:
            return f"error: the arguments of {name} are not a JSON object"
        if name == "python" and self.repl is not None:
            code = arguments.get("code")
            if not isinstance(code, str):
                return 'error: the arguments must be {"code": "..."}'
            async with self._repl_lock:  # one REPL: parallel calls run one after another
                result = await self.repl.run(code)
            turn.blocks.append(BlockRecord.of(code, result))
            return block_text(self.shared.config, result, 0, 1)
        try:
            return tool_text(await self.shared.toolbox.call(name, arguments))
        except ToolFailure as error:
            return f"error: {error}"
