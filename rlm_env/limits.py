"""Budgets of an episode, kept on the host where REPL code cannot reach them.

The idea: one ``Ledger`` per RLM node. What a child spends is charged to the child and to every
ancestor, and a child starts with at most its share of what its parent has left. So a tree of RLMs,
however deep, cannot spend more than its root was given, and one greedy child cannot starve the rest of
its batch.

Token caps are soft by one model call: a call is admitted while anything is left and is charged what it
really used, since a server's sampling limits are the run's to set, not the scaffold's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import Field
from pydantic_config import BaseConfig


class StopReason(StrEnum):
    """Every way in which an RLM (root or child) can end."""

    ANSWER_READY = "answer_ready"
    """The model set ``answer["ready"]`` to true (or, in the ``llm`` scaffold, gave its final reply)."""
    MAX_TURNS = "max_turns"
    """``limits.max_turns`` model turns were used."""
    MAX_ROOT_TOKENS = "max_root_tokens"
    """``limits.max_root_tokens`` completion tokens were sampled by the root."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The conversation no longer fits the model's window."""
    EPISODE_TIMEOUT = "episode_timeout"
    """``limits.episode_seconds`` passed, or the run's own rollout timeout did."""
    REPL_FAILURE = "repl_failure"
    """The REPL process died more often than ``repl.max_restarts`` allows."""
    FRAMEWORK_STOP = "framework_stop"
    """The framework refused a turn: a limit of the agent's config or a ``@stop`` of the task."""
    ERROR = "error"
    """An infrastructure failure; the episode is an error and has no score."""


LIMIT_REASONS = frozenset(StopReason) - {StopReason.ANSWER_READY, StopReason.ERROR}
"""The reasons that count as ``limit_hit`` in the metrics."""


class LimitsConfig(BaseConfig):
    """What one episode may spend. ``None`` lifts a limit."""

    max_turns: int = Field(30, ge=1)
    """Root turns (replies of the root) before the episode is ended. Deep research wants 50."""
    child_max_turns: int = Field(15, ge=1)
    """Turns of each child RLM started with ``rlm_query`` / ``rlm_batch``."""
    max_sub_calls: int | None = Field(1000, ge=0)
    """Sub-LLM and child-RLM calls in the whole episode, children's calls included."""
    max_parallel_sub_calls: int = Field(32, ge=1)
    """Sub-LLM requests of one episode in flight at the same time."""
    max_parallel_children: int = Field(4, ge=1)
    """Child RLMs of one node that run at the same time (each holds a REPL process)."""
    max_root_tokens: int | None = Field(1_000_000, ge=1)
    """Completion tokens the root may sample over the episode. The default stops a runaway, not a thinker."""
    max_sub_tokens: int | None = Field(10_000_000, ge=1)
    """Completion tokens all sub-LLMs and children together may sample over the episode."""
    episode_seconds: float | None = Field(3600.0, gt=0)
    """Wall clock of the episode in seconds, model calls included."""
    near: float = Field(0.2, ge=0, le=1)
    """A limit is mentioned in the observation once this fraction of it, or less, is left."""


@dataclass
class Allowance:
    """One countable budget: ``used`` of ``total`` (``None`` = no limit)."""

    total: float | None
    used: float = 0.0

    @property
    def left(self) -> float:
        return math.inf if self.total is None else max(0.0, self.total - self.used)

    def near(self, fraction: float) -> bool:
        return self.total is not None and self.left <= fraction * self.total


@dataclass
class Ledger:
    """The budgets of one RLM node, chained to its parent's.

    ``sub_calls`` counts calls, ``root_tokens`` and ``sub_tokens`` completion tokens. For a child,
    ``root_tokens`` is unlimited: all that it samples is charged to the ancestors' ``sub_tokens``.
    """

    sub_calls: Allowance
    root_tokens: Allowance
    sub_tokens: Allowance
    parent: Ledger | None = field(default=None, repr=False)

    @classmethod
    def root(cls, limits: LimitsConfig) -> Ledger:
        return cls(
            Allowance(limits.max_sub_calls),
            Allowance(limits.max_root_tokens),
            Allowance(limits.max_sub_tokens),
        )

    def child(self, siblings: int) -> Ledger:
        """The ledger of one of ``siblings`` children started together: an equal share of what is left."""

        def share(left: float) -> float | None:
            return None if math.isinf(left) else left // max(1, siblings)

        return Ledger(
            Allowance(share(self.sub_calls_left)),
            Allowance(None),
            Allowance(share(self.sub_tokens_left)),
            parent=self,
        )

    @property
    def sub_calls_left(self) -> float:
        own = self.sub_calls.left
        return own if self.parent is None else min(own, self.parent.sub_calls_left)

    @property
    def sub_tokens_left(self) -> float:
        own = self.sub_tokens.left
        return own if self.parent is None else min(own, self.parent.sub_tokens_left)

    def take_sub_calls(self, wanted: int) -> int:
        """Charge up to ``wanted`` sub-calls; returns how many were granted. Charged before the calls are
        made, so that concurrent batches cannot overdraw."""
        granted = int(min(wanted, self.sub_calls_left))
        node: Ledger | None = self
        while node is not None:
            node.sub_calls.used += granted
            node = node.parent
        return granted

    def charge_own(self, tokens: int) -> None:
        """Completion tokens that this node itself sampled."""
        self.root_tokens.used += tokens
        if self.parent is not None:
            # A child spends its own share of sub tokens as well as its ancestors'.
            self.charge_sub(tokens)

    def charge_sub(self, tokens: int) -> None:
        """Completion tokens of a sub-LLM of this node."""
        node: Ledger | None = self
        while node is not None:
            node.sub_tokens.used += tokens
            node = node.parent
