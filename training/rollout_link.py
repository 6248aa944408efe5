"""What crosses between the trainer's process and the rollout process: settings, counters, finished groups.

Everything here pickles and imports neither torch nor TRL. Counters have one writer each, so that they need no
lock beyond their own: the trainer writes `version`, `accepted`, `taken`, `waiting` and `stop`, the rollout
process `heartbeat` and `ready`.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from typing import Any

from training.samples import TrainRow

MetricValue = float | tuple[float, float]
"""TRL's convention: a float is averaged (summed when its name has the word `total`, and so on), a pair
`(sum, count)` becomes sum of sums over sum of counts."""


@dataclass(frozen=True)
class LoopSettings:
    """What the rollout process is told at its start."""

    config_json: str
    """The run's `TrainConfig` as JSON."""
    base_url: str
    """The policy server's OpenAI address, ending in /v1."""
    model_name: str
    """The name it serves the policy under."""
    renderer: dict[str, Any] | None
    """`RendererConfig` as a dict; None lets verifiers choose."""
    renderer_model: str
    """Checkpoint or hub name that the tokenizer is loaded from."""
    run_dir: str
    """The run's directory."""
    run_id: str
    """Identity stamped on saved episodes."""
    position: dict[str, Any]
    """`Position` to start from, as a dict."""
    reference_tokens: float | None
    """`R` of `training.samples` when an earlier part of the run has fixed it."""
    rows_per_step: int
    """Rows that a step consumes over all processes."""
    ahead_rows: int
    """Rows that the trainer's loader fetches ahead of the step that uses them."""
    total_steps: int
    """Steps that remain."""


@dataclass(frozen=True)
class GroupResult:
    """A group that has ended."""

    group: int | None
    """Its number; None for a message that carries metrics only."""
    rows: list[TrainRow]
    """Its rows; empty when the group was dropped."""
    metrics: dict[str, MetricValue]
    """Its measurements; see `training.rollout_metrics`."""
    reference_tokens: float | None
    """`R` as of this group."""


class Link:
    """The shared queues and counters; made by the trainer's process, inherited by the rollout process."""

    def __init__(self, context: SpawnContext) -> None:
        self.results: Any = context.Queue()
        """`GroupResult`s. Unbounded: `Pace` bounds what is produced."""
        self.errors: Any = context.Queue()
        """(type, text, traceback) of the error that ended the rollout process."""
        self.version: Any = context.Value("q", 0)
        """Policy version that the server has."""
        self.accepted: Any = context.Value("q", 0)
        """Rows handed to the trainer."""
        self.taken: Any = context.Value("q", 0)
        """Rows handed to the trainer or dropped as stale."""
        self.waiting: Any = context.Value("b", 0)
        """1 while the trainer is blocked on an empty buffer."""
        self.heartbeat: Any = context.Value("d", 0.0)
        """Wall-clock seconds of the loop's last turn."""
        self.ready: Any = context.Event()
        """Set when episodes can run."""
        self.stop: Any = context.Event()
        """Set to end the rollout process."""
