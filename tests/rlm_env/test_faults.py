"""500 episodes, ten at a time, against a server that fails at random while workers are killed at random.

Each episode's plan is drawn from its own seed, so the outcome that it must have is known beforehand. Nothing
may be lost, counted twice or left behind.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.fakes import FakeModelServer, Reply
from tests.fakes.policies import fence, finish, is_sub
from tests.rlm_env.episodes import agent_for, demo, harness_config

EPISODES, AT_A_TIME = 500, 10
KINDS = ("fine", "fine", "suicide", "root_refused", "root_down", "sub_down", "overlong", "turns", "spin")
TRANSIENT = (
    Reply.rate_limited(),
    Reply.server_error(),
    Reply.cut(),
    Reply.malformed(),
    Reply(content="", status=503, error={"message": "warming up", "type": "x", "code": 503}),
)


def plan(number: int) -> str:
    return random.Random(f"kind {number}").choice(KINDS)


class FlakyModel:
    """Answers by the episode's plan; a third of all first attempts fail in transport before that."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()

    def __call__(self, request):
        text = request.last if is_sub(request) else f"{request.first_user}/{request.turn}"
        self.attempts[text] += 1
        dice = random.Random(f"{text} {self.attempts[text]}")
        number = int(request.first_user.split("#")[1].split()[0])
        kind = plan(number)
        if kind == "sub_down" and is_sub(request):
            return Reply.server_error()
        if kind == "root_down" and not is_sub(request) and request.turn == 1:
            return Reply.server_error()
        if self.attempts[text] <= 2 and dice.random() < 0.3:
            return dice.choice(TRANSIENT)
        if is_sub(request):
            return Reply(content=f"sub{number}", delay=dice.random() * 0.02)
        if request.turn == 0:
            first = {
                "suicide": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
                "spin": "while True: pass",
                "sub_down": f"try:\n    llm_query('[sub] #{number} ')\nexcept SubCallError:\n    print(1)",
            }
            return fence(
                first.get(kind, f"parts = llm_batch(['[sub] #{number} ' + str(i) for i in range(3)])")
            )
        if kind == "root_refused":
            return Reply.failure(403, "content policy", "refused")
        if kind == "overlong":
            return Reply.context_exceeded()
        if kind == "turns":
            return fence(f"answer['content'] = 'part {number}'")
        return fence(finish(f"'done {number}'"))


EXPECTED = {
    "fine": (True, "agent_completed", "done"),
    "suicide": (True, "agent_completed", "done"),
    "sub_down": (True, "agent_completed", "done"),
    "spin": (True, "agent_completed", "done"),
    "turns": (True, "max_turns", "part"),
    "overlong": (True, "context_overflow", ""),
    "root_refused": (False, "provider_error", ""),
    "root_down": (False, "provider_error", ""),
}


def left_behind(cache: Path) -> tuple[int, int, int]:
    """(child processes, descriptors, runtime directories) of this process."""
    directories = cache / "runtimes" / "subprocess"
    return (
        len(psutil.Process().children(recursive=True)),
        len(os.listdir("/proc/self/fd")),
        len(list(directories.iterdir())) if directories.is_dir() else 0,
    )


async def assassin(stop: asyncio.Event) -> int:
    """Kills a process of the REPLs now and then, the way the kernel's OOM killer would."""
    dice, killed = random.Random(0), 0
    others = {process.pid for process in psutil.Process().children(recursive=True)}
    while not stop.is_set():
        await asyncio.sleep(0.4)
        victims = [p for p in psutil.Process().children(recursive=True) if p.pid not in others]
        if victims:
            try:
                os.kill(dice.choice(victims).pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    return killed


@pytest.mark.timeout(1200)
async def test_every_episode_ends_with_its_outcome_and_nothing_is_left(caplog, monkeypatch, tmp_path):
    caplog.set_level("ERROR")
    # Of its own, since other runs on this machine make and remove directories in the common one.
    monkeypatch.setattr("verifiers.v1.runtimes.subprocess.CACHE_DIR", tmp_path)
    # The slower the machine, the more of the starts are hit by a killer that goes by the clock.
    monkeypatch.setattr("rlm_env.harness._START_ATTEMPTS", 30)
    gate = asyncio.Semaphore(AT_A_TIME)
    settings = harness_config(
        limits={"max_turns": 12},
        repl={"call_seconds": 1.0, "max_restarts": 50},
        retry={"initial_seconds": 0.01, "max_seconds": 0.03, "attempts": 4},
    )
    async with FakeModelServer(FlakyModel()) as server, agent_for(server, settings) as live:

        async def play(number: int):
            async with gate:
                return await live.run(demo(f"#{number} do it", reference=f"done {number}"))

        await play(0)  # caches and pools that stay by design are filled before the count
        before = left_behind(tmp_path)
        # Idle keep-alive connections stay open, both ends of them here: three sub-LLMs an episode at most.
        allowed = (before[0], before[1] + 2 * 3 * AT_A_TIME, before[2])
        stop = asyncio.Event()
        killer = asyncio.create_task(assassin(stop))
        traces = await asyncio.gather(*(play(number) for number in range(EPISODES)))
        stop.set()
        killed = await killer
        for _ in range(60):  # what was killed takes a moment to go
            after = left_behind(tmp_path)
            if all(left <= most for left, most in zip(after, allowed, strict=True)):
                break
            await asyncio.sleep(0.5)

    assert killed > 5
    outcomes = Counter()
    for number, trace in enumerate(traces):
        kind = plan(number)
        ok, reason, answer = EXPECTED[kind]
        outcomes[kind] += 1
        assert (trace.ok, trace.stop_condition) == (ok, reason), (number, kind, trace.errors)
        if ok and answer:
            assert trace.root_reply == f"{answer} {number}", (number, kind)
        assert (trace.rewards.get("exact") is None) == (not ok)
        # Each reply that was used is one sampled message, however often its request was repeated.
        metrics = trace.metrics
        answered = {call.acp.request_id for call in trace.calls if call.node is not None}
        assert len(answered) == sum(call.node is not None for call in trace.calls)
        info = trace.info["rlm"]
        turns = [turn["request_id"] for node in info["episodes"] for turn in node["turns"]]
        used = Counter(turns + [request for call in info["calls"] for request in call["request_ids"]])
        assert set(used.values()) <= {1}
        assert len(used) == metrics["root_turns"] + metrics["sub_turns"]
        assert used.keys() <= answered, (number, kind)
        # What was answered and not used was on its way when its code was stopped, by a kill or by the clock.
        unused = answered - used.keys()
        cancelled = {call["id"] for call in info["calls"] if (call["error"] or "").startswith("cancelled")}
        assert {request.rpartition(".")[0] for request in unused} <= cancelled, (number, kind)
        if cancelled:
            assert metrics["repl_restarts"] or metrics["repl_timeouts"], (number, kind)
    assert set(outcomes) == set(KINDS)
    assert sum(outcomes.values()) == EPISODES == len({trace.id for trace in traces})
    assert after[0] <= allowed[0], "processes left"
    assert after[1] <= allowed[1], "descriptors left"
    assert after[2] <= allowed[2], f"directories left in {tmp_path}"
