"""TRL's rollout worker for verifiers episodes: the trainer's side.

`AsyncGRPOTrainer` asks its worker for a queue of rows, and tells it the policy's version. This worker keeps a
spawned process (`training.rollout_child`) that makes the episodes; what the trainer sees of it is here.

Invariants:

- `rollout_buffer.get` gives rows that are fresh enough for the version at hand, as TRL would check next;
  stale ones are dropped and counted here, so that the rollout process knows what is missing.
- It raises within a second when the rollout process has died, with that process's error, and when a health
  check (the vLLM server's, say) fails: nothing waits for what will not come.
- A group's measurements reach `metrics_queue` when its rows do, so a step's log line is about that step's
  rows.
- `state()` names the tasks that are done as of the trainer's last finished step; rows that its loader has
  only fetched ahead are not done.
"""

from __future__ import annotations

import atexit
import multiprocessing
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from training.config import TrainConfig
from training.progress import Position
from training.rollout_child import child_main, kill_tree
from training.rollout_link import GroupResult, LoopSettings, MetricValue, ParentLink
from training.samples import TrainRow

if TYPE_CHECKING:
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

POLL_SECONDS = 0.2
"""How often a blocked `get` looks whether the rollout process lives."""


class RolloutProcessDied(RuntimeError):
    """The rollout process ended although nobody asked it to; carries its error."""


class NothingLeftToLearn(RolloutProcessDied):
    """The rollout process ended because too many groups in a row carried no signal."""


class StopRequested(Exception):
    """The run was asked to stop while the trainer waited for rows."""


class RowBuffer:
    """The queue that TRL drains: `get`, `put_nowait` and `qsize` of `queue.Queue`.

    Args:
        worker: whose groups it unpacks.
    """

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker
        self._rows: deque[TrainRow] = deque()

    def qsize(self) -> int:
        """Rows at hand, those of unopened groups not counted."""
        return len(self._rows)

    def put_nowait(self, item: Any) -> None:
        """Refused: rows come from the rollout process."""
        raise TypeError("rows are put by the rollout process only")

    def get(self, block: bool = True, timeout: float | None = None) -> RolloutSample:
        """The next fresh row.

        Raises:
            queue.Empty: none came within `timeout`.
            RolloutProcessDied: none will come.
            StopRequested: the run shall stop.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._rows:
                row = self._rows.popleft()
                if self._worker.accept(row):
                    return row.to_sample(enqueued_at=time.time())
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if not block or left <= 0:
                raise queue.Empty
            result = self._worker.next_group(min(left, POLL_SECONDS))
            if result is not None:
                self._rows.extend(result.rows)


class RolloutWorker:
    """See the module docstring. Made on the main process only.

    Args:
        config: the run's configuration.
        base_url: the policy server, ending in /v1.
        model_name: the name it serves the policy under.
        renderer: `RendererConfig` as a dict (`training.renderer.renderer_config_for`); None lets verifiers
            choose.
        processes: training processes, for the size of a step.
        ahead_rows: rows that the trainer's loader fetches ahead; 0 with `PolicyTrainer`, one micro-batch over
            all processes with accelerate's own dispatcher.
        done_steps: steps that an earlier part of the run has made.
        state: `state()` of that part.
        health_checks: called while waiting for rows; raise when the run cannot go on.
        stop_requested: polled while waiting for rows; True raises `StopRequested` out of `get`.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        base_url: str,
        model_name: str,
        renderer: dict[str, Any] | None,
        processes: int = 1,
        ahead_rows: int = 0,
        done_steps: int = 0,
        state: dict[str, Any] | None = None,
        health_checks: Sequence[Callable[[], None]] = (),
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._context = multiprocessing.get_context("spawn")
        self._link = ParentLink(self._context)
        self._counters = self._link.counters
        self._process: Any = None
        self._stop_requested = stop_requested
        self._health_checks = tuple(health_checks)
        state = state or {}
        self._position = Position.from_dict(state.get("position", {"next_group": 0, "beyond": []}))
        self._reference_tokens: float | None = state.get("reference_tokens")
        self._ahead_rows = ahead_rows
        self._fetched_ahead: deque[int] = deque()
        self._rows_left: dict[int, int] = {}
        self.rollout_buffer = RowBuffer(self)
        self.metrics_queue: queue.Queue[dict[str, MetricValue]] = queue.Queue()
        self._state = self._current_state()
        self._settings = LoopSettings(
            config_json=config.model_dump_json(),
            base_url=base_url,
            model_name=model_name,
            renderer=renderer,
            renderer_model=config.model.path,
            run_dir=str(config.run.directory),
            run_id=config.run.name,
            position=self._position.to_dict(),
            reference_tokens=self._reference_tokens,
            rows_per_step=config.batch.rows_per_step(processes),
            ahead_rows=ahead_rows,
            total_steps=config.batch.steps - done_steps,
        )

    # ---- TRL's protocol

    def start(self) -> None:
        """Starts the rollout process and waits until it can run episodes.

        Raises:
            RolloutProcessDied: it ended before that; the message carries its error.
            TimeoutError: it took longer than `rollout.start_seconds`.
        """
        if self._process is not None:
            return
        self._counters.heartbeat.value = time.time()
        self._process = self._new_process()
        # The process ignores SIGTERM, by which multiprocessing would end it on an exit that skips `stop`.
        atexit.register(self.stop)
        self._process.start()
        self._link.started()
        deadline = time.monotonic() + self._config.rollout.start_seconds
        while not self._counters.ready.value:
            time.sleep(0.05)
            self._check_process()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the rollout process was not ready within rollout.start_seconds = "
                    f"{self._config.rollout.start_seconds:g}; see {self._settings.run_dir}/logs/rollouts.log"
                )

    def stop(self) -> None:
        """Ends the rollout process and everything below it; may be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        self._counters.stop.value = 1
        deadline = time.monotonic() + self._config.rollout.stop_seconds
        while process.is_alive() and time.monotonic() < deadline:
            self._link.drain()  # what it still sends has to be taken
            process.join(0.1)
        if process.is_alive():
            kill_tree(process.pid)
        process.join()

    def update_model_version(self, model_version: int) -> None:
        """The server has new weights."""
        self._counters.version.value = model_version
        # Steps end with a sync, and no row is taken between the two: this is the state as of a finished step.
        self._state = self._current_state()

    def check_health(self, stale_after_s: float) -> None:
        """Raises when rows cannot be expected any more."""
        for check in self._health_checks:
            check()
        self._check_process()
        age = time.time() - self._counters.heartbeat.value
        limit = min(stale_after_s, self._config.rollout.stale_seconds)
        if self._process is not None and age > limit:
            raise RolloutProcessDied(
                f"the rollout process has given no sign of life for {age:.0f} s (rollout.stale_seconds = "
                f"{self._config.rollout.stale_seconds:g}); see {self._settings.run_dir}/logs/rollouts.log"
            )

    # ---- for the buffer

    def next_group(self, timeout: float) -> GroupResult | None:
        """The next finished group, or None after `timeout` seconds; hands its measurements on."""
        result = self._link.receive(0.0)
        if result is None:
            if self._stop_requested():
                raise StopRequested
            self.check_health(self._config.rollout.stale_seconds)
            self._counters.waiting.value = 1
            try:
                result = self._link.receive(timeout)
            finally:
                self._counters.waiting.value = 0
            if result is None:
                return None
        self.metrics_queue.put(result.metrics)
        if result.reference_tokens is not None:
            self._reference_tokens = result.reference_tokens
        if result.group is not None:
            if result.rows:
                self._rows_left[result.group] = len(result.rows)
            else:
                self._position.done(result.group)
        return result

    def accept(self, row: TrainRow) -> bool:
        """Counts `row` as taken; False when it is too old to be used."""
        self._counters.taken.value += 1
        self._rows_left[row.group] -= 1
        staleness = self._counters.version.value - row.version
        if staleness > self._config.rollout.max_staleness:
            self.metrics_queue.put({"rollout/rows_stale_total": 1.0})
            self._settle(row.group)
            return False
        self._counters.accepted.value += 1
        self._fetched_ahead.append(row.group)
        if len(self._fetched_ahead) > self._ahead_rows:
            self._settle(self._fetched_ahead.popleft())
        return True

    def _settle(self, group: int) -> None:
        """Marks `group` as done when all of its rows are taken and none is fetched ahead only."""
        if self._rows_left.get(group) == 0 and group not in self._fetched_ahead:
            del self._rows_left[group]
            self._position.done(group)

    # ---- for checkpoints

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as of the last finished step: position in the order of tasks, policy
        version, weighting reference. JSON."""
        return self._state

    def _current_state(self) -> dict[str, Any]:
        return {
            "position": self._position.to_dict(),
            "model_version": int(self._counters.version.value),
            "reference_tokens": self._reference_tokens,
        }

    # ---- the process

    @property
    def pid(self) -> int | None:
        """Process id of the rollout process; None when there is none."""
        return None if self._process is None else self._process.pid

    def _new_process(self) -> Any:
        return self._context.Process(
            target=child_main, args=(self._settings, self._link.child()), name="rollouts", daemon=True
        )

    def _check_process(self) -> None:
        if self._process is None or self._process.is_alive():
            return
        self._link.drain()
        error = self._link.error
        if error is None:
            raise RolloutProcessDied(
                f"the rollout process died with exit code {self._process.exitcode} and left no error "
                f"(killed for memory?); see {self._settings.run_dir}/logs/rollouts.log"
            )
        kind = NothingLeftToLearn if error.kind == "NoSignalError" else RolloutProcessDied
        raise kind(f"the rollout process failed with {error.kind}: {error.text}") from RuntimeError(
            error.trace
        )
