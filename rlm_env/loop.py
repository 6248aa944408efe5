"""The loop of one RLM, root or child: reply -> code -> REPL -> observation, until the answer is ready.

The conversation is append-only and echoes the assistant's messages exactly, so that the root is one branch
of the trace; only ``fold`` starts a new branch, and says so by replacing the task's message. The loop knows
nothing of verifiers: it is given model calls, a REPL, a ledger and a recorder.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rlm_env.calls import CallError, Completion, ModelFailure, parse_arguments
from rlm_env.children import rlm_batch
from rlm_env.config import Messages, RLMHarnessConfig
from rlm_env.fences import python_blocks
from rlm_env.limits import Ledger, StopReason
from rlm_env.metrics import BlockRecord, NodeRecord, TurnRecord
from rlm_env.prompts import (
    CUT_REPLY,
    NO_CODE_FENCE,
    NO_CODE_TOOL,
    block_text,
    budget_notes,
    context_note,
    root_system,
    skipped_note,
)
from rlm_env.repl import ReplClient, ReplFailure, ReplResult
from rlm_env.subcalls import Shared, check_prompts, llm_batch
from rlm_env.toolbox import ToolFailure


def python_tool(config: RLMHarnessConfig) -> dict[str, Any]:
    """The ``python`` tool as a chat-completions ``tools`` entry; tells the limits of a call."""
    description = (
        "Run Python code in the persistent REPL; returns what it prints and the value of a last expression, "
        f"at most {config.repl.output_chars:,} characters. One call may take {config.repl.call_seconds:g} s."
    )
    return {
        "type": "function",
        "function": {
            "name": "python",
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "The code to run."}},
                "required": ["code"],
            },
        },
    }


@dataclass
class RLMNode:
    """One RLM: its conversation, its REPL and its budgets."""

    shared: Shared
    ledger: Ledger
    start_repl: Callable[[RLMNode], Awaitable[ReplClient]]
    head: Messages
    """The user side of the opening: the task's messages, without the system prompt."""
    packages: list[str]
    context: Any = None
    context_files: dict[str, bytes] = field(default_factory=dict)
    path: str = ""
    """Scope of the request ids: ``""`` for the root, ``"rlm.0."`` for its first child."""
    depth: int = 0
    parent_call: str | None = None
    task_system: str | None = None
    deadline: float | None = None
    """``time.monotonic()`` at which the episode ends."""

    repl: ReplClient | None = None
    record: NodeRecord = field(init=False)
    turns: list[Messages] = field(default_factory=list)
    """The messages of each turn: the reply and what followed it."""
    children: int = 0
    _system: str = ""
    _notes: list[str] = field(default_factory=list)
    _fold: tuple[int, str] | None = None
    _turn_calls: list[str] = field(default_factory=list)
    child_slots: asyncio.Semaphore = field(init=False)
    """Bounds the children that run at the same time."""

    def __post_init__(self) -> None:
        self.record = NodeRecord(self.path, self.depth, self.parent_call)
        self.shared.recorder.nodes.append(self.record)
        self.child_slots = asyncio.Semaphore(self.config.limits.max_parallel_children)

    @property
    def config(self) -> RLMHarnessConfig:
        return self.shared.config

    @property
    def max_turns(self) -> int:
        limits = self.config.limits
        return limits.max_turns if self.depth == 0 else limits.child_max_turns

    @property
    def seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def answer(self) -> str:
        return self.repl.answer.content if self.repl is not None else ""

    @property
    def answer_ready(self) -> bool:
        return self.repl is not None and self.repl.answer.ready

    @property
    def messages(self) -> Messages:
        """The conversation as the model sees it now."""
        head = self.head
        if self._notes:
            note = "\n\n".join(self._notes)
            *before, task = head
            head = [*before, {**task, "content": f"{task['content']}\n\n{note}"}]
        return [{"role": "system", "content": self._system}, *head, *(m for turn in self.turns for m in turn)]

    # --- life ---

    async def open(self) -> None:
        """Start the REPL and fix the opening messages."""
        self.repl = await self.start_repl(self)
        toolbox = self.shared.toolbox
        in_repl = toolbox.repl_tools(self.config.tools_for).values()
        described = [(tool.repl_signature, tool.description) for tool in in_repl]
        for spec in toolbox.worker_functions:
            signature, _, text = spec.description.partition("\n")
            described.append((signature, text))
        self._system = root_system(
            self.config,
            depth=self.depth,
            sub_tools=(
                [tool.signature for tool in toolbox.tools.values()]
                if self.config.tools_for in ("sub", "both")
                else []
            ),
            repl_functions=described,
            packages=self.packages,
            task_system=self.task_system,
            max_turns=self.max_turns,
        )
        note = context_note(describe(self.context), sorted(self.context_files))
        if note and self.head:
            *before, task = self.head
            content = task["content"]
            if isinstance(content, str):
                content = f"{content}\n\n{note}"
            else:
                content = [*content, {"type": "text", "text": note}]
            self.head = [*before, {**task, "content": content}]

    async def close(self) -> None:
        if self.repl is not None:
            await self.repl.close()

    async def resume(self, messages: Messages) -> None:
        """The user speaks again: the REPL and its variables live on, the answer is open again."""
        assert self.repl is not None
        await self.repl.run('answer["ready"] = False')
        if self.turns:
            last = self.turns[-1]
            if self.config.code_channel == "fence" and last[-1]["role"] == "user":
                # A limit ended the last segment after an observation: keep one user message at the end.
                text = messages[0]["content"]
                self.turns[-1] = [*last[:-1], {"role": "user", "content": f"{last[-1]['content']}\n\n{text}"}]
                messages = messages[1:]
            self.turns[-1] = [*self.turns[-1], *messages]
        else:
            self.head = [*self.head, *messages]

    async def run(self) -> StopReason:
        """Turns until the answer is ready or a limit is hit. Raises ModelFailure."""
        first = len(self.record.turns)
        reason: StopReason = StopReason.ERROR
        try:
            while True:
                used = len(self.record.turns) - first
                stop = self._limit(used)
                if stop is not None:
                    reason = stop
                    return reason
                try:
                    reason_or_none = await self._turn(used)
                except CallError as error:
                    reason_or_none = self._stopped_by(error)
                except ReplFailure:
                    reason_or_none = StopReason.REPL_FAILURE
                if reason_or_none is not None:
                    reason = reason_or_none
                    return reason
        finally:
            self.record.stop_reason = str(reason)

    def _limit(self, turns_used: int) -> StopReason | None:
        if turns_used >= self.max_turns:
            return StopReason.MAX_TURNS
        if self.ledger.root_tokens.left <= 0 or (self.depth and self.ledger.sub_tokens_left <= 0):
            return StopReason.MAX_ROOT_TOKENS
        return None

    @staticmethod
    def _stopped_by(error: CallError) -> StopReason:
        if error.kind == "overlong":
            return StopReason.CONTEXT_OVERFLOW
        if error.kind == "stopped":
            return StopReason.FRAMEWORK_STOP
        raise ModelFailure(error) from error

    # --- one turn ---

    async def _turn(self, used: int) -> StopReason | None:
        index = len(self.record.turns)
        request_id = f"{self.path}root.{index}"
        tool_channel = self.config.code_channel == "tool"
        completion = await self.shared.calls.complete(
            self.messages, request_id=request_id, tools=[python_tool(self.config)] if tool_channel else None
        )
        self.ledger.charge_own(completion.completion_tokens)
        record = TurnRecord.of(index, request_id, completion)
        self.record.turns.append(record)
        self._turn_calls = record.calls

        def notes() -> list[str]:  # asked for after the code ran, when its sub-calls are spent
            return budget_notes(
                self.config,
                self.ledger,
                turns_left=self.max_turns - used - 1,
                max_turns=self.max_turns,
                seconds_left=self.seconds_left,
            )

        try:
            if tool_channel:
                tail = await self._tool_turn(completion, record, notes)
            else:
                tail = await self._fence_turn(completion, record, notes)
        finally:
            record.answer = {"content": self.answer, "ready": self.answer_ready}
        self.turns.append([completion.message, *tail])
        if self.answer_ready:
            if not tool_channel:
                self.turns[-1] = [completion.message]  # nobody will read the observation
            return StopReason.ANSWER_READY
        record.observation = "\n".join(str(message["content"]) for message in tail)
        self._apply_fold()
        return None

    async def _fence_turn(
        self, completion: Completion, record: TurnRecord, notes: Callable[[], list[str]]
    ) -> Messages:
        blocks = python_blocks(completion.text)
        cut = completion.finish_reason == "length" and bool(blocks) and not blocks[-1].closed
        codes = [block.code for block in (blocks[:-1] if cut else blocks)]
        lines: list[str] = []
        for number, code in enumerate(codes):
            result = await self._run_code(code, record)
            lines.append(block_text(self.config, result, number, len(codes)))
            if self.answer_ready:
                break
            if result.error is not None and number + 1 < len(codes):
                lines.append(skipped_note(number, len(codes)))
                break
        if cut:
            lines.append(CUT_REPLY)
        elif not codes:
            self.shared.recorder.replies_without_code += 1
            lines.append(NO_CODE_FENCE)
        lines += notes()
        return [{"role": "user", "content": "\n".join(lines)}]

    async def _tool_turn(
        self, completion: Completion, record: TurnRecord, notes: Callable[[], list[str]]
    ) -> Messages:
        if not completion.tool_calls:
            self.shared.recorder.replies_without_code += 1
            return [{"role": "user", "content": "\n".join([NO_CODE_TOOL, *notes()])}]
        tail: Messages = []
        for call in completion.tool_calls:
            name, arguments = parse_arguments(call)
            code = (arguments or {}).get("code")
            if self.answer_ready:
                text = "[not run: the answer was set ready before]"
            elif name != "python":
                text = f"[there is no tool {name!r}; only `python`]"
            elif not isinstance(code, str):
                text = '[not run: the arguments must be a JSON object {"code": "..."}]'
            else:
                text = block_text(self.config, await self._run_code(code, record), 0, 1)
            tail.append({"role": "tool", "tool_call_id": call.get("id") or "", "content": text})
        if extra := notes():
            tail[-1]["content"] += "\n" + "\n".join(extra)
        return tail

    async def _run_code(self, code: str, record: TurnRecord) -> ReplResult:
        assert self.repl is not None
        result = await self.repl.run(code)
        record.blocks.append(BlockRecord.of(code, result))
        return result

    # --- requests from the REPL ---

    async def handle(self, name: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of REPL code. The payload is untrusted; whatever it holds, this node alone
        pays for it."""
        if name == "tool":
            return await self._handle_tool(payload)
        if name not in ("llm_batch", "rlm_batch"):
            return {"error": {"type": "ToolError", "message": f"there is no host function {name!r}"}}
        allowed = self.config.max_depth if name == "llm_batch" else self.config.max_depth - 1
        try:
            prompts = check_prompts(payload)
            contexts = payload.get("contexts")
            if contexts is None:
                contexts = [None] * len(prompts)
            if not isinstance(contexts, list) or len(contexts) != len(prompts):
                raise ValueError("contexts must be a list as long as prompts")
        except ValueError as error:
            return {"results": [], "limit": {"type": "ValueError", "message": str(error)}}
        if self.depth >= allowed:
            message = f"{name} is not available at depth {self.depth}: max_depth is {self.config.max_depth}"
            return {"results": [], "limit": {"type": "SubCallLimitError", "message": message}}
        turn = len(self.record.turns) - 1
        if name == "llm_batch":
            return await llm_batch(
                self.shared, self.ledger, prompts, scope=self.path, turn=turn, turn_calls=self._turn_calls
            )
        return await rlm_batch(self, prompts, contexts, turn=turn, turn_calls=self._turn_calls)

    async def _handle_tool(self, payload: dict[str, Any]) -> dict[str, Any]:
        name, args, kwargs = payload.get("name"), payload.get("args") or [], payload.get("kwargs") or {}
        if name == "fold" and isinstance(args, list) and isinstance(kwargs, dict):
            return self._handle_fold(dict(zip(("n", "note"), args, strict=False)) | kwargs)
        toolbox = self.shared.toolbox
        tool = toolbox.repl_tools(self.config.tools_for).get(name) if isinstance(name, str) else None
        if tool is None or not isinstance(args, list) or not isinstance(kwargs, dict):
            return {"error": {"type": "ToolError", "message": f"there is no function {name!r} in this REPL"}}
        try:
            value = await toolbox.call(tool.name, toolbox.bind(tool, args, kwargs))
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ToolFailure(f"{name}: its result is not JSON ({error})") from error
            return {"value": value}
        except ToolFailure as error:
            return {"error": {"type": "ToolError", "message": str(error)}}

    def child(self, prompt: str, context: Any, siblings: int) -> RLMNode:
        """One of ``siblings`` child RLMs that are started together; they share what this one has left."""
        call_id = f"{self.path}rlm.{self.children}"
        self.children += 1
        return RLMNode(
            shared=self.shared,
            ledger=self.ledger.child(siblings),
            start_repl=self.start_repl,
            head=[{"role": "user", "content": prompt}],
            packages=self.packages,
            context=context,
            path=f"{call_id}.",
            depth=self.depth + 1,
            parent_call=call_id,
            deadline=self.deadline,
        )

    # --- folding ---

    def _handle_fold(self, payload: dict[str, Any]) -> dict[str, Any]:
        count, note = payload.get("n"), payload.get("note")
        if not self.config.folding:
            message = "fold is not available in this episode"
        elif not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= len(self.turns):
            message = f"n must be between 1 and {len(self.turns)}, the turns before this one"
        elif not isinstance(note, str):
            message = "note must be a string"
        else:
            self._fold = (count, note)
            return {"value": None}
        return {"error": {"type": "ToolError", "message": message}}

    def _apply_fold(self) -> None:
        """Drop folded turns. The opening message changes, so what follows is a new branch of the trace whose
        kept replies are prompt there: each sampled token stays in exactly one branch."""
        if self._fold is None:
            return
        (count, note), self._fold = self._fold, None
        del self.turns[:count]
        self._notes.append(f"[your note on {count} folded turn{'s' if count != 1 else ''}: {note}]")


def describe(value: Any) -> str | None:
    """Type and size of the REPL's input data, without any of its content."""
    if value is None:
        return None
    if isinstance(value, str):
        return f"a str of {len(value):,} characters"
    if isinstance(value, list):
        return f"a list of {len(value):,} items"
    if isinstance(value, dict):
        return f"a dict of {len(value):,} keys"
    return f"a {type(value).__name__}"
