"""What crosses between the trainer's process and the rollout process: settings, counters, finished groups.

Everything here pickles and imports neither torch nor TRL.

Invariant: **either process may be killed at any instant and the other one never waits for it.** So there are
no locks between them: counters are bare shared numbers with one writer each, and messages go through one pipe
whose writing end only the rollout process has, so that its death is an end-of-file.
(`multiprocessing.Event.set` waits for ever when a process died while it waited for the event; `Queue.get`
does so when one died while it wrote.)
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
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


@dataclass(frozen=True)
class ChildError:
    """The error that ended the rollout process; its last message."""

    kind: str
    """Type of the exception."""
    text: str
    """Its message."""
    trace: str
    """Its traceback."""


class Counters:
    """Shared numbers, read by both processes and written by one each."""

    def __init__(self, context: SpawnContext) -> None:
        self.version: Any = context.RawValue("q", 0)
        """Policy version that the server has. Trainer's."""
        self.accepted: Any = context.RawValue("q", 0)
        """Rows handed to the trainer. Trainer's."""
        self.taken: Any = context.RawValue("q", 0)
        """Rows handed to the trainer or dropped as stale. Trainer's."""
        self.waiting: Any = context.RawValue("b", 0)
        """1 while the trainer is blocked on an empty buffer. Trainer's."""
        self.stop: Any = context.RawValue("b", 0)
        """1 ends the rollout process. Trainer's."""
        self.heartbeat: Any = context.RawValue("d", 0.0)
        """Wall-clock seconds of the loop's last turn. Rollout process's."""
        self.ready: Any = context.RawValue("b", 0)
        """1 once episodes can run. Rollout process's."""


class ChildLink:
    """The rollout process's end: counters, and a pipe that never blocks the event loop."""

    def __init__(self, counters: Counters, connection: Connection) -> None:
        self.counters = counters
        self._connection = connection
        self._outbox: queue.SimpleQueue[Any] | None = None
        self._sender: threading.Thread | None = None

    def put(self, message: GroupResult | ChildError) -> None:
        """Sends a message, from a thread of its own. `Pace` bounds how many there are."""
        if self._outbox is None:
            self._outbox = queue.SimpleQueue()
            self._sender = threading.Thread(
                target=self._send, args=(self._outbox,), name="sender", daemon=True
            )
            self._sender.start()
        self._outbox.put(message)

    def _send(self, outbox: queue.SimpleQueue[Any]) -> None:
        while (message := outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:  # the trainer's process is gone
                return

    def close(self, seconds: float) -> None:
        """Gives what was put `seconds` to be taken."""
        if self._outbox is not None and self._sender is not None:
            self._outbox.put(None)
            self._sender.join(seconds)


class ParentLink:
    """The trainer's end."""

    def __init__(self, context: SpawnContext) -> None:
        self.counters = Counters(context)
        self._reader, self._writer = context.Pipe(duplex=False)
        self._inbox: deque[GroupResult] = deque()
        self.error: ChildError | None = None
        """What ended the rollout process, once that has been received."""

    def child(self) -> ChildLink:
        """The other end, to be handed to the process."""
        return ChildLink(self.counters, self._writer)

    def started(self) -> None:
        """The process has its end; drop this process's copy, so that the other's death closes the pipe."""
        self._writer.close()

    def receive(self, timeout: float) -> GroupResult | None:
        """The next message, or None when none comes within `timeout` seconds or none can come any more."""
        if not self._inbox:
            self._pull(timeout)
        return self._inbox.popleft() if self._inbox else None

    def drain(self) -> None:
        """Takes in all that has been sent; the rollout process's last words are in `error` then."""
        while self._pull(0.0):
            pass

    def _pull(self, timeout: float) -> bool:
        try:
            if not self._reader.poll(timeout):
                return False
            message = self._reader.recv()
        except (EOFError, OSError):
            return False
        if isinstance(message, ChildError):
            self.error = message
        else:
            self._inbox.append(message)
        return True
