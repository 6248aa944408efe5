"""Where a run stands in its order of tasks, and how far rollouts may run ahead of the trainer.

Two small pieces without processes or clocks, so that they can be tested by hand:

`TaskOrder` maps a group's number to a task: a permutation per pass over the tasks, drawn from the run's seed.
The same seed gives the same order, so a resumed run goes on where the old one stopped.

`Pace` says whether another group may be started. The invariant is that **the trainer can always get the rows
it is waiting for**. Rows that were dropped as stale do not count as taken; a loader that fetches ahead (stock
accelerate takes one micro-batch more before the policy's version moves, ours none) is allowed for, since a
worker that stopped one micro-batch early would wait for a version that waits for the worker; and when the
trainer waits on an empty pipeline a group may always be started, whatever the estimates say.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import verifiers.v1 as vf


class TaskOrder:
    """Group number -> task. Group `g` of `n` tasks is task `permutation(seed, g // n)[g % n]`.

    A taskset without an end is taken in its own (seeded) order.

    Raises:
        ValueError: the taskset has no tasks.
    """

    def __init__(self, tasks: Iterable[vf.Task], *, bounded: bool, seed: int) -> None:
        self._seed = seed
        self._tasks: list[vf.Task] | None = list(tasks) if bounded else None
        self._stream: Iterator[vf.Task] | None = None if bounded else iter(tasks)
        self._drawn: dict[int, vf.Task] = {}
        self._next = 0
        self._epoch: tuple[int, list[int]] = (-1, [])
        if self._tasks is not None and not self._tasks:
            raise ValueError("the taskset has no tasks to train on: check env.taskset.* and select.*")

    @property
    def size(self) -> int | None:
        """Tasks in one pass; None when there is no end."""
        return None if self._tasks is None else len(self._tasks)

    def task(self, group: int) -> vf.Task:
        """The task of group `group`. An endless taskset's task is kept until `forget`."""
        if self._tasks is not None:
            epoch, position = divmod(group, len(self._tasks))
            if self._epoch[0] != epoch:
                order = list(range(len(self._tasks)))
                random.Random(f"tasks {self._seed} {epoch}").shuffle(order)
                self._epoch = (epoch, order)
            return self._tasks[self._epoch[1][position]]
        assert self._stream is not None
        while self._next <= group:
            try:
                self._drawn[self._next] = next(self._stream)
            except StopIteration:
                raise ValueError(
                    f"the taskset calls itself infinite but ended after {self._next} tasks"
                ) from None
            self._next += 1
        return self._drawn[group]

    def forget(self, group: int) -> None:
        """Group `group` is finished; nobody will ask for its task again."""
        self._drawn.pop(group, None)


@dataclass
class Position:
    """Which groups are done: all below `next_group`, and those in `beyond`."""

    next_group: int = 0
    """Lowest group that is not done."""
    beyond: set[int] = field(default_factory=set)
    """Groups above it that are done."""

    def done(self, group: int) -> None:
        """Marks `group` as done."""
        if group >= self.next_group:
            self.beyond.add(group)
        while self.next_group in self.beyond:
            self.beyond.remove(self.next_group)
            self.next_group += 1

    def is_done(self, group: int) -> bool:
        """Whether `group` is done."""
        return group < self.next_group or group in self.beyond

    def copy(self) -> Position:
        """An independent copy."""
        return Position(self.next_group, set(self.beyond))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"next_group": self.next_group, "beyond": sorted(self.beyond)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Position:
        """Reads the JSON form."""
        return cls(int(data["next_group"]), {int(group) for group in data["beyond"]})


@dataclass
class Pace:
    """How many rows may be on their way. All counts are rows since the worker started."""

    rows_per_step: float
    """Rows of one step: exact with a fixed count, an estimate under a token budget."""
    ahead_rows: int
    """Rows that the trainer's loader fetches ahead of the step that uses them."""
    max_staleness: int
    """Versions that a row may be old."""
    total_steps: int
    """Steps that remain in the run."""
    fixed: bool = True
    """Whether `rows_per_step` is exact."""
    _steps: int = 0
    _taken_before_step: int = 0

    def stepped(self, steps: int, accepted: int) -> None:
        """The trainer has finished `steps` steps and has taken `accepted` rows in all. Under a token budget
        this is where the estimate follows what steps really took."""
        if steps > self._steps:
            if not self.fixed and accepted > self._taken_before_step:
                self.rows_per_step = (accepted - self._taken_before_step) / (steps - self._steps)
            self._steps, self._taken_before_step = steps, accepted

    def room(self, accepted: int, waiting: bool) -> float:
        """Rows that may be buffered or in the making right now.

        Args:
            accepted: rows that the trainer has taken and not dropped.
            waiting: the trainer is blocked on an empty buffer.
        """
        slack = self.rows_per_step * self.max_staleness
        if self.fixed:
            needed = self.rows_per_step * (self._steps + 1) + self.ahead_rows - accepted
            at_all = self.rows_per_step * self.total_steps + self.ahead_rows - accepted
            return min(needed + slack, at_all)
        needed = self.rows_per_step + self.ahead_rows - (accepted - self._taken_before_step)
        return max(needed, self.ahead_rows if waiting else 0) + slack

    def may_start(self, ahead: float, accepted: int, waiting: bool) -> bool:
        """Whether one more group may be started with `ahead` rows buffered or expected from groups in
        flight."""
        if waiting and ahead <= 0:
            return True
        return ahead < self.room(accepted, waiting)
