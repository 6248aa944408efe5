"""The rollout worker against a scripted policy server: rows, failures, staleness, stopping, resuming.

Most tests run the rollout loop on a thread (`ThreadWorker`), which is the production loop without the seconds
that a spawned process takes to import; the last ones use the real process.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from tests.fakes import FakeModelServer
from tests.fakes.wire import MODEL, Reply
from tests.processes import left_alive
from training.config import TrainConfig
from training.rollout_link import ChildError
from training.rollout_loop import RolloutLoop, renew_renderer_lock
from training.rollout_worker import RolloutProcessDied, RolloutWorker, StopRequested

RENDERER = {"name": "custom", "import_path": "training.renderer.PlainChatMLRenderer"}
DEADLINE = 120.0

# Episodes that ignore their cancellation are left behind with their event loop (or process). When they are
# collected, verifiers' clean-up has no loop to run in.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'Rollout.abort' was never awaited:RuntimeWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def collect_what_is_left_behind():
    """Here, where its complaints are expected, and not in some later test."""
    yield
    collect_abandoned_episodes()


def collect_abandoned_episodes():
    renew_renderer_lock()  # it holds the event loop in which it was last waited for
    gc.collect()


class ThreadProcess:
    """The rollout loop on a thread, with the face of a process."""

    pid = 2**31 - 1  # nobody's
    exitcode = 1

    def __init__(self, settings, link):
        self._settings, self._link = settings, link
        self._thread = threading.Thread(target=self._main, daemon=True)

    def _main(self):
        try:
            asyncio.new_event_loop().run_until_complete(self._run())  # as the real process does
        except BaseException as error:
            self._link.put(ChildError(type(error).__name__, str(error), ""))
            self._link.close(10.0)

    async def _run(self):
        stop = asyncio.Event()

        async def watch():
            while not self._link.counters.stop.value:  # noqa: ASYNC110 (set from another thread)
                await asyncio.sleep(0.02)
            stop.set()

        watcher = asyncio.create_task(watch())
        try:
            await RolloutLoop(self._settings, self._link, stop).run()
        finally:
            watcher.cancel()

    def start(self):
        self._thread.start()

    def is_alive(self):
        return self._thread.is_alive()

    def join(self, timeout=None):
        self._thread.join(timeout)


class ThreadWorker(RolloutWorker):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._link.started = lambda: None  # the thread shares this process's end of the pipe

    def _new_process(self):
        return ThreadProcess(self._settings, self._link.child())


def half_good():
    """A policy: of the episodes on one task every other is good, so every group has a signal, in whatever
    order requests come. (By the order of all requests, two groups in step would be one good and one bad.)"""
    ended = defaultdict(itertools.count)

    def policy(request):
        if request.turn == 0:  # the root's first reply and those of sub-LLMs, which no reward depends on
            return "so so"
        return "good" if next(ended[request.first_user]) % 2 else "bad"

    return policy


@pytest.fixture
def server(tiny_tokenizer):
    with FakeModelServer(half_good(), tokenizer=tiny_tokenizer).in_thread() as running:
        yield running


@pytest.fixture
def make_config(tmp_path, tiny_checkpoint):
    def make(**sections) -> TrainConfig:
        data = {
            "model": {"path": str(tiny_checkpoint)},
            "env": {
                "taskset": {"id": "toy_rollouts", **sections.pop("taskset", {})},
                "agent": {
                    "harness": {"id": "toy_rollouts", **sections.pop("harness", {})},
                    "runtime": {"type": "subprocess"},
                },
            },
            "grpo": {"group_size": 4},
            "batch": {"steps": 4, "rows_per_device": 8},
            "run": {"name": "run", "output_dir": str(tmp_path), "seed": 5},
        }
        for section, values in sections.items():
            data[section] = {**data.get(section, {}), **values}
        return TrainConfig.model_validate(data)

    return make


def make_worker(config, server, cls=ThreadWorker, **more):
    return cls(config, base_url=server.base_url, model_name=MODEL, renderer=RENDERER, **more)


def take(worker, n):
    """`n` rows, as TRL takes them."""
    samples = []
    deadline = time.monotonic() + DEADLINE
    while len(samples) < n:
        assert time.monotonic() < deadline, f"only {len(samples)} of {n} rows came"
        try:
            samples.append(worker.rollout_buffer.get(timeout=1.0))
        except queue.Empty:
            worker.check_health(60)
    return samples


def measured(worker):
    """Everything in the metrics queue: sums of floats, sums of pairs."""
    totals = defaultdict(float)
    while True:
        try:
            item = worker.metrics_queue.get_nowait()
        except queue.Empty:
            return totals
        for name, value in item.items():
            if isinstance(value, tuple):
                totals[name] += value[0]
                totals[name + "/n"] += value[1]
            else:
                totals[name] += value


def run_steps(worker, steps, rows, ahead=0, first_version=1):
    """Plays the trainer; returns the staleness of every row when it was taken."""
    worker.update_model_version(first_version)
    worker.start()
    staleness, held = [], 0
    for step in range(steps):
        version = first_version + step
        samples = take(worker, rows + ahead - held)
        staleness += [version - sample.model_version for sample in samples]
        held = ahead
        worker.update_model_version(version + 1)
    return staleness


def test_rows_advantages_and_measurements(server, make_config):
    config = make_config(rollout={"max_staleness": 1}, traces={"every_groups": 1})
    worker = make_worker(config, server)
    worker.update_model_version(1)
    worker.start()
    try:
        samples = take(worker, 16)
    finally:
        worker.stop()
    by_group = defaultdict(list)
    for sample in samples:
        by_group[sample.group_id].append(sample)
        assert sample.model_version == 1
        assert sample.completion_mask.sum() > 0
        assert (sample.old_log_probs[sample.completion_mask == 1] < 0).all()
        assert (sample.old_log_probs[sample.completion_mask == 0] == 0).all()
    totals = measured(worker)
    assert totals["rollout/groups_kept_total"] >= 2
    # One root row and one sub-call row per episode, and nothing split.
    assert totals["rows/root_branches_total"] == totals["rollout/episodes_total"]
    assert totals["rows/sub_branches_total"] == totals["rollout/episodes_total"]
    assert totals["reward/n"] == totals["rollout/episodes_total"]
    assert totals["reward"] == totals["reward_part/good"]
    assert totals["episode/sub_calls"] == totals["rollout/episodes_total"]
    whole = [rows for rows in by_group.values() if len(rows) == 8]
    assert whole
    for rows in whole:
        assert sum(row.advantage for row in rows) == pytest.approx(0, abs=1e-6)
        assert len({round(row.advantage, 6) for row in rows}) == 2
    lines = [
        json.loads(line)
        for path in Path(config.run.directory, "rollouts").glob("part_*/traces.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {line["group"]["id"] for line in lines} >= {str(group) for group in by_group}
    assert all(line["run"]["work"]["policy"]["start"] == 1 for line in lines)
    assert all(line["traces"][0]["nodes"][-1]["token_ids"] for line in lines)


def test_failed_and_hung_episodes_are_left_out_and_counted(server, make_config, monkeypatch):
    monkeypatch.setattr("training.rollout_episode.CANCEL_GRACE_SECONDS", 0.2)
    monkeypatch.setattr("training.rollout_episode.RETRY_SECONDS", 0.01)
    config = make_config(
        taskset={"behaviours": ["answer", "fail", "hang", "stubborn"], "num_tasks": 8},
        rollout={
            "episode_seconds": 3.0,  # few at once: those that answer shall make it on a busy machine, too
            "max_concurrent": 16,
            "episode_retries": 1,
            "max_staleness": 4,
            "max_consecutive_failures": 500,
        },
        batch={"steps": 50, "rows_per_device": 64},
    )
    worker = make_worker(config, server)
    worker.update_model_version(1)
    worker.start()
    totals = Counter()

    def seen_everything():
        hung, abandoned = totals["rollout/errors/Hung_total"], totals["rollout/episodes_abandoned_total"]
        return hung > abandoned > 0 and totals["rollout/errors/HarnessError_total"]

    try:
        while not seen_everything():  # groups end in any order
            take(worker, 4)
            totals.update(measured(worker))
        assert totals["rollout/episodes_left_out_total"] > 0
        # Only answered episodes were scored; no failure became a reward of 0.
        assert (
            totals["reward/n"] == totals["rollout/episodes_total"] - totals["rollout/episodes_left_out_total"]
        )
        assert totals["rollout/groups_dropped_too_few_valid_total"] > 0
    finally:
        worker.stop()
        collect_abandoned_episodes()


def test_nothing_but_failures_stops_the_run_with_the_last_error(server, make_config, monkeypatch):
    monkeypatch.setattr("training.rollout_episode.RETRY_SECONDS", 0.01)
    config = make_config(taskset={"behaviours": ["fail"]}, rollout={"max_consecutive_failures": 6})
    worker = make_worker(config, server)
    worker.update_model_version(1)
    worker.start()
    try:
        with pytest.raises(
            RolloutProcessDied, match=r"RolloutsFailing.*6 episodes in a row.*sandbox fell over"
        ):
            take(worker, 1)
    finally:
        worker.stop()


def test_a_server_that_is_gone_stops_the_run(make_config, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr("training.rollout_episode.RETRY_SECONDS", 0.01)
    with FakeModelServer(half_good(), tokenizer=tiny_tokenizer).in_thread() as gone:
        pass
    worker = make_worker(make_config(rollout={"max_consecutive_failures": 8}), gone)
    worker.update_model_version(1)
    worker.start()
    try:
        with pytest.raises(RolloutProcessDied, match="RolloutsFailing"):
            take(worker, 1)
    finally:
        worker.stop()


def test_tasks_without_signal_stop_the_run(tiny_tokenizer, make_config):
    config = make_config(rollout={"max_barren_groups": 3})
    with FakeModelServer(lambda request: "good", tokenizer=tiny_tokenizer).in_thread() as server:
        worker = make_worker(config, server)
        worker.update_model_version(1)
        worker.start()
        try:
            with pytest.raises(RolloutProcessDied, match=r"NoSignalError.*3 groups in a row"):
                take(worker, 1)
        finally:
            worker.stop()


@pytest.mark.parametrize(("max_staleness", "ahead"), [(0, 0), (0, 8), (2, 0)])
def test_the_trainer_gets_its_rows_at_every_staleness(server, make_config, max_staleness, ahead):
    config = make_config(rollout={"max_staleness": max_staleness, "max_concurrent": 8}, batch={"steps": 5})
    worker = make_worker(config, server, ahead_rows=ahead)
    try:
        staleness = run_steps(worker, 5, rows=8, ahead=ahead)
    finally:
        worker.stop()
    assert len(staleness) == 5 * 8 + ahead
    assert max(staleness) <= max_staleness
    # Rows fetched ahead were taken by the version before: only then may a fresh row be old when it is used.
    if max_staleness == 0:
        assert set(staleness) == {0}


def test_a_token_budget_has_no_fixed_step(server, make_config):
    """Steps take other numbers of rows than the configuration says; nothing waits for ever."""
    config = make_config(
        rollout={"max_staleness": 0}, batch={"steps": 4, "rows_per_device": 1, "token_budget": 4096}
    )
    worker = make_worker(config, server)
    try:
        run_steps(worker, 4, rows=20)
    finally:
        worker.stop()


def test_groups_that_outlive_their_policy_are_started_anew(tiny_tokenizer, make_config):
    """Slow replies at version 1; the version moves on at max_staleness = 0, and the same group comes back."""
    moved_on = threading.Event()
    content = half_good()

    def policy(request):
        return Reply(content(request), delay=0.0 if moved_on.is_set() else 600.0)

    config = make_config(rollout={"max_staleness": 0, "max_concurrent": 8}, batch={"steps": 3})
    with FakeModelServer(policy, tokenizer=tiny_tokenizer).in_thread() as server:
        worker = make_worker(config, server)
        worker.update_model_version(1)
        worker.start()
        try:
            deadline = time.monotonic() + DEADLINE
            while server.in_flight < 8:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            moved_on.set()
            worker.update_model_version(2)
            samples = take(worker, 8)
        finally:
            worker.stop()
    assert {sample.model_version for sample in samples} == {2}
    assert measured(worker)["rollout/groups_restarted_total"] >= 1
    assert min(sample.group_id for sample in samples) in (0, 1)


def test_a_paused_server_only_makes_requests_wait(server, make_config):
    config = make_config(rollout={"max_staleness": 1})
    worker = make_worker(config, server)
    worker.update_model_version(1)
    worker.start()
    try:
        take(worker, 4)
        httpx.post(f"{server.url}/pause", params={"mode": "keep"}, timeout=60)
        time.sleep(1.0)
        httpx.post(f"{server.url}/resume", timeout=60)
        worker.update_model_version(2)
        take(worker, 12)
    finally:
        worker.stop()
    assert measured(worker)["rollout/episodes_left_out_total"] == 0


def test_a_resumed_run_goes_on_where_the_old_one_stood(server, make_config):
    config = make_config(taskset={"num_tasks": 50}, rollout={"max_staleness": 0, "max_concurrent": 4})
    worker = make_worker(config, server)
    try:
        run_steps(worker, 2, rows=8)
        state = json.loads(json.dumps(worker.state()))
        unfinished = take(worker, 3)  # of a step that never ends
        assert worker.state() == state
    finally:
        worker.stop()
    position = state["position"]
    assert state["model_version"] == 3
    assert position["next_group"] + len(position["beyond"]) >= 2
    assert state["reference_tokens"] > 0
    again = make_worker(config, server, state=state, done_steps=2)
    again.update_model_version(3)
    again.start()
    try:
        samples = take(again, 16)
    finally:
        again.stop()
    groups = {sample.group_id for sample in samples}
    assert min(groups) >= position["next_group"]
    assert not groups & set(position["beyond"])
    assert {sample.group_id for sample in unfinished} <= {
        sample.group_id for sample in unfinished if sample.group_id >= position["next_group"]
    }
    assert again.state()["reference_tokens"] == state["reference_tokens"]


def test_a_wish_to_stop_ends_the_wait_for_rows(tiny_tokenizer, make_config):
    wish = threading.Event()
    policy = lambda request: Reply("good", delay=30.0)  # noqa: E731
    with FakeModelServer(policy, tokenizer=tiny_tokenizer).in_thread() as server:
        worker = make_worker(make_config(), server, stop_requested=wish.is_set)
        worker.update_model_version(1)
        worker.start()
        try:
            threading.Timer(0.5, wish.set).start()
            with pytest.raises(StopRequested):
                take(worker, 1)
        finally:
            worker.stop()


def test_a_failing_health_check_ends_the_wait_for_rows(tiny_tokenizer, make_config):
    def check():
        raise OSError("the server died; its last words")

    policy = lambda request: Reply("good", delay=30.0)  # noqa: E731
    with FakeModelServer(policy, tokenizer=tiny_tokenizer).in_thread() as server:
        worker = make_worker(make_config(), server, health_checks=[check])
        worker.update_model_version(1)
        worker.start()
        try:
            with pytest.raises(OSError, match="last words"):
                take(worker, 1)
        finally:
            worker.stop()


async def test_a_group_that_is_cancelled_while_it_is_saved_is_saved_whole(make_config):
    """Its thread cannot be stopped: no other group may write, and the process not end, before it is done."""
    writing, release = threading.Event(), threading.Event()

    def append(episodes):
        writing.set()
        release.wait(DEADLINE)

    loop = object.__new__(RolloutLoop)
    loop.config = make_config(traces={"every_groups": 1})
    loop.counters = SimpleNamespace(version=SimpleNamespace(value=1))
    loop.store = SimpleNamespace(append=append)
    loop._store_lock = asyncio.Lock()
    save = asyncio.create_task(loop._save(SimpleNamespace(group=0), []))
    await asyncio.to_thread(writing.wait, DEADLINE)
    for _ in range(2):
        save.cancel()
        await asyncio.wait({save}, timeout=0.1)
        assert not save.done()
        assert loop._store_lock.locked()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await save
    assert not loop._store_lock.locked()


# ---- the real process: seconds of imports, and minutes on a busy machine


@pytest.mark.timeout(600)
def test_the_process_makes_rows_and_stops(server, make_config):
    config = make_config(rollout={"max_staleness": 1})
    worker = make_worker(config, server, RolloutWorker)
    worker.update_model_version(1)
    worker.start()
    pid = worker.pid
    process = psutil.Process(pid)
    try:
        samples = take(worker, 8)
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # a batch system sends them to all, they are not for it
            os.kill(pid, number)
        assert os.getpgid(pid) != os.getpgid(0)
        assert left_alive([process], 1.0)
        samples += take(worker, 8)
    finally:
        worker.stop()
        worker.stop()
    assert len(samples) == 16
    assert not left_alive([process])
    assert (config.run.directory / "logs" / "rollouts.log").is_file()
    assert environment


@pytest.mark.timeout(600)
def test_the_process_reports_why_it_died(server, make_config):
    worker = make_worker(make_config(rollout={"max_consecutive_failures": 1}), server, RolloutWorker)
    worker._settings = type(worker._settings)(**{**vars(worker._settings), "position": {"nonsense": 1}})
    with pytest.raises(RolloutProcessDied, match=r"KeyError.*next_group"):
        worker.start()
    worker.stop()


@pytest.mark.timeout(600)
def test_the_process_does_not_outlive_a_killed_trainer(server, make_config, tmp_path):
    config = make_config()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path[:0] = {sys.path!r}
            from pathlib import Path

            def main():
                from training.config import TrainConfig
                from training.rollout_worker import RolloutWorker

                config = TrainConfig.model_validate_json(Path({str(tmp_path / "config.json")!r}).read_text())
                worker = RolloutWorker(
                    config, base_url={server.base_url!r}, model_name={MODEL!r}, renderer={RENDERER!r}
                )
                worker.update_model_version(1)
                worker.start()
                while worker.next_group(1.0) is None:
                    pass
                print(worker.pid, flush=True)
                time.sleep(600)

            if __name__ == "__main__":
                main()
            """
        )
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        process = psutil.Process(pid)
        trainer.kill()
        trainer.wait()
        assert not left_alive([process], 90.0)
    finally:
        trainer.kill()
        trainer.wait()
