"""What is measured of an episode: records while it runs, flat metrics and ``trace.info["rlm"]`` at its end.

Only what the harness alone can see is recorded here; the messages, tokens and rewards are the trace's.
The names are listed in ``METRIC_NAMES`` (plus one per tool and per stop reason).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rlm_env.calls import Completion
from rlm_env.limits import LIMIT_REASONS, StopReason
from rlm_env.repl import ReplResult

INFO_VERSION = 1

METRIC_NAMES = (
    "root_turns",
    "root_prompt_tokens",
    "root_completion_tokens",
    "root_peak_context_tokens",
    "sub_calls",
    "sub_batches",
    "sub_batch_size_mean",
    "sub_batch_size_max",
    "sub_turns",
    "sub_tool_calls",
    "sub_prompt_tokens",
    "sub_completion_tokens",
    "sub_errors",
    "rlm_calls",
    "call_retries",
    "repl_calls",
    "repl_seconds",
    "repl_wait_seconds",
    "repl_timeouts",
    "repl_restarts",
    "repl_truncated_outputs",
    "repl_errors",
    "replies_without_code",
    "answer_ready",
    "answer_chars",
    "limit_hit",
    "wall_seconds",
)
"""Every metric that each episode has; tokens and calls are counts, ``*_seconds`` are wall clock."""


@dataclass
class BlockRecord:
    """One block of code that ran."""

    code: str
    output: str
    """As shown to the model, cut included."""
    truncated_chars: int = 0
    error: str | None = None
    """Type of the exception that ended it, if one did."""
    seconds: float = 0.0
    """Time in the model's own code."""
    wait_seconds: float = 0.0
    """Time waiting for sub-LLMs and tools."""
    timed_out: bool = False
    restarted: bool = False
    lost: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, code: str, result: ReplResult) -> BlockRecord:
        return cls(
            code=code,
            output=result.output,
            truncated_chars=result.truncated_chars,
            error=result.error,
            seconds=result.seconds,
            wait_seconds=result.wait_seconds,
            timed_out=result.timed_out,
            restarted=result.restarted,
            lost=list(result.lost),
            restored=list(result.restored),
        )


@dataclass
class TurnRecord:
    """One turn of an RLM: its reply's code, what came of it, and the answer afterwards."""

    turn: int
    request_id: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    blocks: list[BlockRecord] = field(default_factory=list)
    observation: str | None = None
    answer: dict[str, Any] = field(default_factory=lambda: {"content": "", "ready": False})
    calls: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, index: int, request_id: str, completion: Completion) -> TurnRecord:
        return cls(
            index,
            request_id,
            completion.seconds,
            completion.prompt_tokens,
            completion.completion_tokens,
            completion.finish_reason,
        )


@dataclass
class NodeRecord:
    """One RLM of the tree; the root is first."""

    path: str
    depth: int
    parent_call: str | None
    stop_reason: str | None = None
    turns: list[TurnRecord] = field(default_factory=list)


@dataclass
class CallRecord:
    """One sub-LLM call or child RLM."""

    id: str
    kind: str
    batch: int
    root_turn: int
    request_ids: list[str] = field(default_factory=list)
    turns: int = 0
    tool_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None

    def add(self, completion: Completion, request_id: str) -> None:
        self.request_ids.append(request_id)
        self.turns += 1
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens


@dataclass
class BatchRecord:
    """One ``llm_batch`` / ``rlm_batch`` (a single query is a batch of one)."""

    batch: int
    name: str
    size: int
    root_turn: int
    path: str
    seconds: float = 0.0


@dataclass
class Recorder:
    """All records of one episode."""

    scaffold: str
    nodes: list[NodeRecord] = field(default_factory=list)
    calls: list[CallRecord] = field(default_factory=list)
    batches: list[BatchRecord] = field(default_factory=list)
    replies_without_code: int = 0
    started: float = field(default_factory=time.monotonic)

    def batch(self, name: str, size: int, root_turn: int, path: str) -> BatchRecord:
        record = BatchRecord(len(self.batches), name, size, root_turn, path)
        self.batches.append(record)
        return record

    def info(self, stop_reason: StopReason | None) -> dict[str, Any]:
        """The record for ``trace.info["rlm"]``, JSON values only."""
        return {
            "version": INFO_VERSION,
            "scaffold": self.scaffold,
            "stop_reason": str(stop_reason) if stop_reason else None,
            "episodes": [asdict(node) for node in self.nodes],
            "calls": [asdict(call) for call in self.calls],
            "batches": [asdict(batch) for batch in self.batches],
        }

    def metrics(
        self,
        *,
        stop_reason: StopReason | None,
        answer: str,
        answer_ready: bool,
        retries: int,
        tool_calls: Counter[str],
        tool_seconds: Mapping[str, float],
        tool_errors: Counter[str],
    ) -> dict[str, float]:
        """The flat metrics of the episode. ``root_*`` is the root's conversation alone; ``sub_*`` is all
        else that was sampled, child RLMs included; ``repl_*`` sums over all REPLs."""
        root = [turn for node in self.nodes if not node.path for turn in node.turns]
        child = [turn for node in self.nodes if node.path for turn in node.turns]
        blocks = [block for node in self.nodes for turn in node.turns for block in turn.blocks]
        plain = [call for call in self.calls if call.kind == "llm"]
        sizes = [batch.size for batch in self.batches]
        values: dict[str, float] = {
            "root_turns": len(root),
            "root_prompt_tokens": sum(turn.prompt_tokens for turn in root),
            "root_completion_tokens": sum(turn.completion_tokens for turn in root),
            "root_peak_context_tokens": max(
                (turn.prompt_tokens + turn.completion_tokens for turn in root), default=0
            ),
            "sub_calls": len(self.calls),
            "sub_batches": len(sizes),
            "sub_batch_size_mean": sum(sizes) / len(sizes) if sizes else 0.0,
            "sub_batch_size_max": max(sizes, default=0),
            "sub_turns": sum(call.turns for call in plain) + len(child),
            "sub_tool_calls": sum(call.tool_calls for call in plain),
            "sub_prompt_tokens": sum(c.prompt_tokens for c in plain) + sum(t.prompt_tokens for t in child),
            "sub_completion_tokens": sum(c.completion_tokens for c in plain)
            + sum(t.completion_tokens for t in child),
            "sub_errors": sum(call.error is not None for call in self.calls),
            "rlm_calls": sum(call.kind == "rlm" for call in self.calls),
            "call_retries": retries,
            "repl_calls": len(blocks),
            "repl_seconds": sum(block.seconds for block in blocks),
            "repl_wait_seconds": sum(block.wait_seconds for block in blocks),
            "repl_timeouts": sum(block.timed_out for block in blocks),
            "repl_restarts": sum(block.restarted for block in blocks),
            "repl_truncated_outputs": sum(block.truncated_chars > 0 for block in blocks),
            "repl_errors": sum(block.error is not None for block in blocks),
            "replies_without_code": self.replies_without_code,
            "answer_ready": float(answer_ready),
            "answer_chars": len(answer),
            "limit_hit": float(stop_reason in LIMIT_REASONS),
            "wall_seconds": time.monotonic() - self.started,
        }
        for reason in StopReason:
            values[f"stop/{reason}"] = float(stop_reason == reason)
        for name, count in tool_calls.items():
            values[f"tool_calls/{name}"] = count
            values[f"tool_seconds/{name}"] = tool_seconds[name]
            values[f"tool_errors/{name}"] = tool_errors[name]
        return {name: float(value) for name, value in values.items()}
