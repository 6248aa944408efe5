"""The rollout process's loop: groups of episodes against the policy server, turned into training rows.

It runs in a process of its own (`training.rollout_worker` starts and stops it), because episodes are
thousands of small awaits and training is long computations: in one process either would hold up the other.

Invariants:

- A row carries the policy version at its episode's start, and a group is started only when the trainer can
  still use it (`training.progress.Pace`); a group that no longer can be used is cancelled and started anew.
- Every group ends in exactly one `GroupResult`, with rows or with the reason why it has none, so the
  trainer's process knows which tasks are done.
- A server that pauses for new weights only makes requests wait.

Not covered: a single episode and its failures (`training.rollout_episode`), weighting (`training.samples`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import renderers.client
import verifiers.v1 as vf
from pydantic import TypeAdapter
from renderers import RendererConfig
from verifiers.v1.episode import GroupInfo, PolicySpan, TrainRunInfo, TrainWorkInfo
from verifiers.v1.utils.aio import run_shielded
from verifiers.v1.utils.loaders import load_environment

from training.advantages import group_advantages
from training.config import TrainConfig
from training.progress import Pace, Position, TaskOrder
from training.rollout_episode import EpisodeFailed, Outcome, episode_reward, run_slot
from training.rollout_link import ChildLink, GroupResult, LoopSettings
from training.rollout_metrics import group_metrics
from training.samples import RowCounts, TrainRow, episode_rows, mean_trained_tokens, trained_branches
from training.trace_store import TraceStore

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Times that a group is started anew after it outlived the policy it was started for; then it runs to its
end."""

POLICY_KEY_VARIABLE = "RLM_POLICY_API_KEY"
"""Environment variable with the policy server's bearer token, when it wants one."""

TICK_SECONDS = 0.05
"""How often the loop looks at the trainer's position when no group finishes."""


class RolloutsFailing(RuntimeError):
    """Too many episodes in a row failed; carries the last error."""


class NoSignalError(RuntimeError):
    """Too many groups in a row had nothing to learn from."""


def renew_renderer_lock() -> None:
    """To be called in every new event loop that will use `train_client`.

    `renderers` 0.1.12 keeps one `asyncio.Lock` for the process. It binds to the first event loop in which two
    requests meet at it; in a second loop with another server those requests then fail with "is bound to a
    different event loop".
    """
    renderers.client._max_prompt_len_lock = asyncio.Lock()


def train_client(base_url: str, renderer: dict | None, renderer_model: str) -> vf.TrainClientConfig:
    """The client that sends token ids to vLLM and brings back ids and log-probabilities."""
    return vf.TrainClientConfig(
        base_url=base_url,
        api_key_var=POLICY_KEY_VARIABLE,
        renderer=None if renderer is None else TypeAdapter(RendererConfig).validate_python(renderer),
        renderer_model_name=renderer_model,
    )


@dataclass
class GroupRun:
    """A group in flight."""

    group: int
    task: vf.Task
    unfinished: int
    """Episodes that have not ended."""
    started: float = field(default_factory=time.monotonic)
    versions: list[int] = field(default_factory=list)
    """Policy version at the start of each attempt."""
    outlived: bool = False
    """It is being cancelled, to be started anew."""


class RolloutLoop:
    """See the module docstring.

    Args:
        settings: what to run.
        link: pipe to and counters shared with the trainer's process.
        stop: set to end the loop.
    """

    def __init__(self, settings: LoopSettings, link: ChildLink, stop: asyncio.Event) -> None:
        self.config = TrainConfig.model_validate_json(settings.config_json)
        self.settings = settings
        self.link = link
        self.stop = stop
        self.env = load_environment(self.config.env)
        taskset = self.env.taskset.select(self.config.select)
        self.order = TaskOrder(taskset, bounded=taskset.bounded, seed=self.config.run.seed)
        self.position = Position.from_dict(settings.position)
        self.reference_tokens = settings.reference_tokens
        self.pace = Pace(
            settings.rows_per_step,
            settings.ahead_rows,
            self.config.rollout.max_staleness,
            settings.total_steps,
            fixed=self.config.batch.token_budget is None,
        )
        self.store = TraceStore(
            Path(settings.run_dir) / "rollouts",
            part_bytes=int(self.config.traces.part_mb * 1e6),
            max_parts=self.config.traces.max_parts,
        )
        self.context = vf.ModelContext(
            model=settings.model_name,
            client=train_client(settings.base_url, settings.renderer, settings.renderer_model),
            sampling=self.config.sampling.to_verifiers(),
        )
        self.counters = link.counters
        self._first_version: int = self.counters.version.value
        self._slots = asyncio.Semaphore(self.config.rollout.max_concurrent)
        self._store_lock = asyncio.Lock()
        self._delivered = 0
        self._rows_per_group = float(self.config.grpo.group_size)
        self._again: deque[int] = deque()
        self._restarts: Counter[int] = Counter()
        self._next_group = self.position.next_group
        self._failed_in_a_row = 0
        self._failing: RolloutsFailing | None = None
        self._barren_in_a_row = 0

    # ---- which groups

    def _take_group(self) -> GroupRun:
        if self._again:
            group = self._again.popleft()
        else:
            while self.position.is_done(self._next_group):
                self._next_group += 1
            group = self._next_group
            self._next_group += 1
        return GroupRun(group, self.order.task(group), self.config.grpo.group_size)

    def _may_start(self, running: list[GroupRun]) -> bool:
        unfinished = sum(run.unfinished for run in running)
        if self.stop.is_set() or unfinished >= self.config.rollout.max_concurrent:
            return False
        accepted, taken = self.counters.accepted.value, self.counters.taken.value
        self.pace.stepped(self.counters.version.value - self._first_version, accepted)
        expected = sum(not run.outlived for run in running) * self._rows_per_group
        ahead = self._delivered - taken + expected
        return self.pace.may_start(ahead, accepted, bool(self.counters.waiting.value))

    def _outlived(self, run: GroupRun) -> bool:
        """All of its episodes started with a policy that is too old by now, and it may be started anew."""
        oldest_usable = self.counters.version.value - self.config.rollout.max_staleness
        return (
            not run.outlived
            and len(run.versions) >= self.config.grpo.group_size
            and max(run.versions) < oldest_usable
            and self._restarts[run.group] < MAX_RESTARTS
        )

    # ---- the loop

    async def run(self) -> None:
        """Produces groups until `stop` is set.

        Raises:
            RolloutsFailing: too many episodes in a row failed.
            NoSignalError: too many groups in a row carried no signal.
        """
        renew_renderer_lock()
        # verifiers renders in the default pool, which has as few threads as there are cores.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8, "rollouts"))
        running: dict[asyncio.Task[GroupResult], GroupRun] = {}
        async with self.env.serving():
            self.counters.ready.value = 1
            try:
                while not self.stop.is_set():
                    self.counters.heartbeat.value = time.time()
                    for task, run in running.items():
                        if self._outlived(run):
                            run.outlived = True
                            task.cancel()
                    while self._may_start(list(running.values())):
                        run = self._take_group()
                        running[asyncio.create_task(self._group(run))] = run
                    if running:
                        done, _ = await asyncio.wait(
                            running, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                        )
                        for task in done:
                            run = running.pop(task)
                            if run.outlived and task.cancelled():
                                self._start_anew(run)
                            else:
                                self._deliver(run, task.result())
                    else:
                        await asyncio.sleep(TICK_SECONDS)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _start_anew(self, run: GroupRun) -> None:
        self._restarts[run.group] += 1
        self._again.append(run.group)
        self.link.put(GroupResult(None, [], {"rollout/groups_restarted_total": 1.0}, None))

    def _deliver(self, run: GroupRun, result: GroupResult) -> None:
        self._rows_per_group = max(0.5, 0.9 * self._rows_per_group + 0.1 * len(result.rows))
        self._delivered += len(result.rows)
        self._restarts.pop(run.group, None)
        self.order.forget(run.group)
        self.link.put(result)
        self._barren_in_a_row = 0 if result.rows else self._barren_in_a_row + 1
        limit = self.config.rollout.max_barren_groups
        if self._barren_in_a_row >= limit:
            raise NoSignalError(
                f"{limit} groups in a row gave nothing to learn from; rewards of the last one, as (sum, "
                f"episodes): {result.metrics.get('reward', 'none')}. The tasks are too easy or too hard for "
                "the policy: change env.taskset.*, raise grpo.group_size, or raise rollout.max_barren_groups."
            )

    # ---- one group

    async def _group(self, run: GroupRun) -> GroupResult:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._slot(run)) for _ in range(self.config.grpo.group_size)]
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from None
        outcomes = [task.result() for task in tasks]
        await self._save(run, outcomes)
        return self._result(run, outcomes)

    async def _slot(self, run: GroupRun) -> Outcome:
        async with self._slots:
            outcome = await run_slot(
                lambda: self.env.run_episode(run.task, self.context),
                version=lambda: self.counters.version.value,
                seconds=self.config.rollout.episode_seconds,
                retries=self.config.rollout.episode_retries,
                on_start=run.versions.append,
                on_failure=self._note_failure,
            )
        run.unfinished -= 1
        if outcome.episode is not None:
            self._failed_in_a_row = 0
        return outcome

    def _note_failure(self, failure: EpisodeFailed) -> None:
        self._failed_in_a_row += 1
        if self._failing is None and self._failed_in_a_row >= self.config.rollout.max_consecutive_failures:
            self._failing = RolloutsFailing(
                f"{self._failed_in_a_row} episodes in a row failed; the last one with {failure}. "
                "See logs/rollouts.log in the run's directory; rollout.max_consecutive_failures is the limit."
            )
        if self._failing is not None:
            # Episodes that fail while the run is being stopped end it with the same words, whichever of them
            # is looked at first.
            raise self._failing from failure

    def _result(self, run: GroupRun, outcomes: list[Outcome]) -> GroupResult:
        grpo = self.config.grpo
        advantages = group_advantages(
            [None if o.episode is None else episode_reward(o.episode) for o in outcomes],
            scale_by_std=grpo.scale_by_std,
            leave_one_out=grpo.leave_one_out,
        )
        counts = RowCounts()
        rows: list[TrainRow] = []
        for outcome in outcomes:
            counts.add(outcome.counts)
        if advantages.drop is None:
            kept = []
            for outcome, advantage in zip(outcomes, advantages.advantages_G, strict=True):
                branches, more = trained_branches(outcome.branches, grpo.credit, self.config.batch.row_limit)
                counts.add(more)
                if advantage is not None and branches:
                    kept.append((outcome, advantage, branches))
            if kept and self.reference_tokens is None:
                self.reference_tokens = mean_trained_tokens([branches for _, _, branches in kept])
            for outcome, advantage, branches in kept:
                assert self.reference_tokens is not None
                rows += episode_rows(
                    branches,
                    advantage,
                    weighting=grpo.weighting,
                    reference_tokens=self.reference_tokens,
                    version=outcome.version,
                    group=run.group,
                )
        metrics = group_metrics(outcomes, advantages, counts, time.monotonic() - run.started, len(rows))
        return GroupResult(run.group, rows, metrics, self.reference_tokens)

    async def _save(self, run: GroupRun, outcomes: list[Outcome]) -> None:
        every = self.config.traces.every_groups
        if not every or run.group % every:
            return
        now = self.counters.version.value
        episodes = []
        for outcome in outcomes:
            if outcome.episode is None:
                continue
            outcome.episode.group = GroupInfo(id=str(run.group))
            outcome.episode.record_run(
                TrainRunInfo(
                    id=self.settings.run_id,
                    name=self.config.run.name,
                    # Version n is live during step n.
                    work=TrainWorkInfo(step=now, policy=PolicySpan(start=outcome.version, end=now)),
                )
            )
            episodes.append(outcome.episode)
        async with self._store_lock:  # whole lines, in one part at a time
            # A thread cannot be cancelled: a group that is cancelled now waits for it. Else the next group
            # would write between its lines, or the process end in the middle of one.
            await run_shielded(asyncio.to_thread(self.store.append, episodes))
