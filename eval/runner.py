"""Runs the cells: episodes in-process through verifiers, rows and traces on disk as they finish.

The idea: one pool of workers walks through the cells in order. A cell is opened (tasks loaded, tool servers
and interception up) when its first episode starts and closed when its last one ends, so a matrix of any size
holds only the tasks of the cells in flight.

Invariants: an episode's trace is on disk before its row, and its row before the next episode of the same
worker starts; a row is written once, whole. So at any kill the folder is a valid one, and `--resume` runs
what has no row, plus what has a row that is no result (see `rows.KEPT`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from tqdm import tqdm
from verifiers.v1.env import Env, RunSlot
from verifiers.v1.episode import Episode
from verifiers.v1.utils.trace_store import append_episode

from eval.config import EvalConfig
from eval.endpoints import Endpoint, check, serve
from eval.folder import Key, RunError, cell_dir, prepare, sole_writer
from eval.matrix import Cell, expand, tasks_of
from eval.rows import EPISODES_FILE, KEPT, Outcome, Row, append_row, key_of, read_rows, row_of
from eval.text import printable

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """One episode to run."""

    cell: OpenCell
    task_id: str
    task: vf.Task
    rollout: int


@dataclass
class OpenCell:
    """A cell with its environment up. The environment lives in a task of its own, because what it enters
    (tool servers' cancel scopes) must be left by the task that entered it."""

    cell: Cell
    env: Env
    left: int
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _done: asyncio.Event = field(default_factory=asyncio.Event)
    _keeper: asyncio.Task[None] | None = None
    _failure: BaseException | None = None

    async def open(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        await self._up.wait()
        if self._failure is not None:
            raise RunError(
                f"{self.cell.id}: the environment did not start: {self._failure}"
            ) from self._failure

    async def _keep(self) -> None:
        try:
            async with self.env.serving():
                self._up.set()
                await self._done.wait()
        except Exception as error:
            if self._up.is_set():
                raise
            self._failure = error
            self._up.set()

    async def release(self) -> None:
        """One episode less; the last one closes the environment."""
        self.left -= 1
        if self.left == 0:
            try:
                await self.close()
            except Exception:
                # All its rows are written: a tool server that does not go quietly must not end the run.
                logger.warning("closing the environment of %s failed", self.cell.id, exc_info=True)

    async def close(self) -> None:
        self._done.set()
        if self._keeper is not None:
            await self._keeper


class Plan:
    """Hands out slots in order, loading each cell's tasks only when its turn has come."""

    def __init__(self, cells: Sequence[Cell], kept: dict[Key, Row], progress: Progress) -> None:
        self._cells = list(cells)
        self._kept = kept
        self._progress = progress
        self._slots: list[Slot] = []
        self._lock = asyncio.Lock()
        self.opened: list[OpenCell] = []

    async def next(self) -> Slot | None:
        async with self._lock:
            while not self._slots and self._cells:
                await self._load(self._cells.pop(0))
            return self._slots.pop(0) if self._slots else None

    async def _load(self, cell: Cell) -> None:
        tasks = await asyncio.to_thread(tasks_of, cell)
        missing = [
            (task_id, task, rollout)
            for rollout in range(cell.rollouts)
            for task_id, task in tasks
            if not self._has(cell, task_id, task, rollout)
        ]
        self._progress.known(cell, total=len(tasks) * cell.rollouts, missing=len(missing))
        if not missing:
            return
        opened = OpenCell(cell, await asyncio.to_thread(vf.load_environment, cell.env), left=len(missing))
        self.opened.append(opened)
        self._slots = [Slot(opened, *item) for item in missing]

    def _has(self, cell: Cell, task_id: str, task: vf.Task, rollout: int) -> bool:
        key = (*cell.key, task_id, rollout)
        row = self._kept.get(key)
        if row is None:
            return False
        if row["task_hash"] != task.hash:
            raise RunError(
                f"--resume: task {task_id} of {cell.id} is not the one that its row was made with (the "
                "suite's data "
                "or code has changed): give another --name, or --clean to start over"
            )
        return True


class Progress:
    """One bar for the run, and a line when a cell is done."""

    def __init__(self, cells: Sequence[Cell], *, show: bool) -> None:
        expected = sum((cell.num_tasks or 0) * cell.rollouts for cell in cells)
        # Piped output gets a line twice a minute instead of a bar redrawn ten times a second.
        self._bar = tqdm(
            total=expected,
            unit="ep",
            disable=not show,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        )
        self._expected = {cell.id: (cell.num_tasks or 0) * cell.rollouts for cell in cells}
        self._rows: dict[str, list[Row]] = {cell.id: [] for cell in cells}
        self._left: dict[str, int] = {}
        self._outcomes: Counter[str] = Counter()

    def known(self, cell: Cell, *, total: int, missing: int) -> None:
        """The cell's tasks are loaded: `total` episodes, of which `missing` are to run."""
        self._left[cell.id] = missing
        self._bar.total += total - self._expected[cell.id]
        self._bar.update(total - missing)

    def finished(self, cell: Cell, row: Row) -> None:
        self._rows[cell.id].append(row)
        self._outcomes[row["outcome"]] += 1
        self._left[cell.id] -= 1
        failed = sum(n for outcome, n in self._outcomes.items() if outcome != Outcome.COMPLETED)
        self._bar.set_postfix_str(f"{cell.suite}/{cell.mode} failed={failed}", refresh=False)
        self._bar.update(1)
        if self._left[cell.id] == 0 and not self._bar.disable:
            rewards = [row["reward"] for row in self._rows[cell.id] if row["reward"] is not None]
            mean = f"{sum(rewards) / len(rewards):.3f}" if rewards else "-"
            counts = Counter(row["outcome"] for row in self._rows[cell.id])
            shown = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
            tqdm.write(f"{cell.id}: reward {mean}; {shown}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


async def run_matrix(config: EvalConfig, *, on_ready: Callable[[Path], None] | None = None) -> list[Row]:
    """Run what the config asks for and return all rows of its cells, kept ones included.

    Args:
        config: the evaluation; `dry_run` and `report_only` are the command line's business.
        on_ready: called with the results folder once it is ready and before anything runs, e.g. to log there.

    Raises RunError, MatrixError or EndpointError before the first episode for what can be known by then.
    """
    cells = expand(config)
    for label, model in config.models.items():
        check(label, model)
    with sole_writer(config.results_dir):
        kept = prepare(config, cells)
        if on_ready is not None:
            on_ready(config.results_dir)
        return await _run_cells(config, cells, kept)


async def _run_cells(config: EvalConfig, cells: Sequence[Cell], kept: dict[Key, Row]) -> list[Row]:
    progress = Progress(cells, show=config.progress)
    writer = Writer(config, progress)
    slots = asyncio.Semaphore(config.max_concurrent)
    try:
        by_url = [label for label, model in config.models.items() if model.checkpoint is None]
        by_server = [label for label in config.models if label not in by_url]
        # Endpoints share the run's concurrency; checkpoints go one after another, each with the machine to
        # itself.
        await _gather([_run_model(config, label, cells, kept, slots, writer) for label in by_url])
        for label in by_server:
            await _run_model(config, label, cells, kept, slots, writer)
    finally:
        progress.close()
    wanted = {cell.key for cell in cells}
    return [row for row in read_rows(config.results_dir / EPISODES_FILE) if key_of(row)[:4] in wanted]


async def _gather(coroutines: Sequence[Any]) -> None:
    """Like asyncio.gather, but a failure cancels the others and waits for them to unwind."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_model(
    config: EvalConfig,
    label: str,
    cells: Sequence[Cell],
    kept: dict[Key, Row],
    slots: asyncio.Semaphore,
    writer: Writer,
) -> None:
    own = [cell for cell in cells if cell.model == label]
    plan = Plan(own, kept, writer.progress)
    first = await plan.next()
    if first is None:
        return  # nothing is missing: no server is started for it
    pending: list[Slot] = [first]
    workers = min(config.models[label].max_concurrent or config.max_concurrent, config.max_concurrent)

    async def work(endpoint: Endpoint) -> None:
        while True:
            # The permit comes first, so that no cell is opened before an episode of it can start.
            async with slots:
                slot = pending.pop() if pending else await plan.next()
                if slot is None:
                    return
                await slot.cell.open()
                await _episode(slot, endpoint, writer)

    try:
        async with serve(label, config.models[label], config.results_dir / "logs") as endpoint:
            async with _watched(endpoint):
                await _gather([work(endpoint) for _ in range(workers)])
    finally:
        await asyncio.gather(*(opened.close() for opened in plan.opened), return_exceptions=True)


@contextlib.asynccontextmanager
async def _watched(endpoint: Endpoint) -> AsyncIterator[None]:
    """Ends the body when a server that was started for it dies: the episodes left would all fail, one slow
    retry after another."""
    watch = endpoint.watch
    if watch is None:
        yield
        return
    body = asyncio.current_task()
    died: list[Exception] = []

    async def look() -> None:
        while True:
            await asyncio.sleep(2.0)
            try:
                await asyncio.to_thread(watch)
            except RuntimeError as error:
                died.append(error)
                assert body is not None
                body.cancel()
                return

    watcher = asyncio.create_task(look())
    try:
        yield
    except asyncio.CancelledError:
        if died and body is not None:
            body.uncancel()
            raise died[0] from None
        raise
    finally:
        watcher.cancel()


async def _episode(slot: Slot, endpoint: Endpoint, writer: Writer) -> None:
    cell = slot.cell.cell
    context = vf.ModelContext(model=endpoint.name, client=endpoint.client, sampling=cell.sampling)
    try:
        episode = await slot.cell.env.run_slot(RunSlot(slot.task), context)
        await writer.write(cell, slot.task_id, slot.rollout, episode)
    finally:
        await slot.cell.release()


class Writer:
    """Appends traces and rows, and stops a run in which nothing works."""

    def __init__(self, config: EvalConfig, progress: Progress) -> None:
        self.results = config.results_dir
        self.progress = progress
        self._limit = config.abort_after_errors
        self._failures: dict[str, int] = {}
        self._lock = asyncio.Lock()

    async def write(self, cell: Cell, task_id: str, rollout: int, episode: Episode) -> None:
        row = row_of(
            episode,
            identity={**cell.identity, "task_id": task_id, "rollout": rollout},
            settings=cell.varied,
        )
        await append_episode(cell_dir(self.results, cell), episode, self._lock)
        append_row(self.results / EPISODES_FILE, row)
        self.progress.finished(cell, row)
        self._watch(cell, row)

    def _watch(self, cell: Cell, row: Row) -> None:
        if self._limit is None:
            return
        seen = self._failures.get(cell.model, 0)
        if row["outcome"] in KEPT:
            self._failures[cell.model] = -1  # something works: count no more
        elif seen >= 0 and row["outcome"] in (Outcome.INFRASTRUCTURE_ERROR, Outcome.REFUSED):
            self._failures[cell.model] = seen + 1
        if self._failures.get(cell.model, 0) >= self._limit:
            raise RunError(
                f"the first {self._limit} episodes of model {cell.model!r} all failed; the last one: "
                f"{row['error_type']}: {printable(row['error_message'] or '')}. Mend it and run again with "
                "--resume "
                "(abort_after_errors sets how many are tried)"
            )
