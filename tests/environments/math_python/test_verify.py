"""Verdicts on pairs of answers, and what happens when deciding takes for ever."""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from math_python import verify
from math_python.verify import Verdict, VerifierBroken, VerifyPool


@pytest.fixture(scope="module")
def pool():
    pool = VerifyPool(2)
    yield pool
    pool.close()


EQUAL = [
    ("5", "5.0"),
    ("5", "x = 5"),
    ("1000", "1,000"),
    ("2^{100}", "1267650600228229401496703205376"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\frac{2}{4}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"10\%", "0.1"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"\{1, 2\}", "1, 2"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3, \infty) \cup (-\infty, 2)"),
    ("x^2 + 1", "1 + x^2"),
    ("(x-1)(x+1)", "x^2 - 1"),
    (r"\sin^2 x", r"1 - \cos^2 x"),
    ("y = 2x + 1", "y = 1 + 2x"),
    ("x^2 + y^2 = 4", "x^2 + y^2 - 4 = 0"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    ("3 + 4i", "4i + 3"),
    (r"\text{yes}", "yes"),
]
DIFFERENT = [
    ("5", "6"),
    ("5", "5, 6"),
    ("5", "5 or 6"),
    ("5", r"6 \text{ or } $5$"),
    ("5", "6 $5$"),
    ("5", r"6\) \(5"),
    ("5", "5.0000001"),
    (r"\frac{1}{3}", "0.333"),
    (r"\{1, 2\}", r"\{1, 2, 3\}"),
    ("(1, 2)", "(2, 1)"),
    ("[0, 1)", "(0, 1]"),
    ("x + 1", "y + 1"),
    ("x = 5", "y = 5"),
    ("12", "twelve"),
]


async def test_equal_answers_in_other_notations(pool):
    verdicts = await asyncio.gather(*(pool.compare(gold, reply, seconds=5) for gold, reply in EQUAL))
    assert [(pair, v) for pair, v in zip(EQUAL, verdicts, strict=True) if v is not Verdict.EQUAL] == []


async def test_different_answers_and_several_guesses_in_one(pool):
    verdicts = await asyncio.gather(*(pool.compare(gold, reply, seconds=5) for gold, reply in DIFFERENT))
    assert [(pair, v) for pair, v in zip(DIFFERENT, verdicts, strict=True) if v is Verdict.EQUAL] == []


@pytest.mark.parametrize("reply", ["9^{9^{9^{9}}}", r"\int_0^{10} \sin(x^{x^{x}}) dx", "1000000000!"])
async def test_a_hang_is_killed_and_the_loop_goes_on(pool, reply):
    assert await pool.compare("5", "5", seconds=5) is Verdict.EQUAL  # so that there is a worker to take
    started = pool.started
    workers = [worker.process for worker in pool._workers]
    for process in workers:
        process.send_signal(signal.SIGSTOP)  # none ends before the loop has been seen to go on
    comparing = asyncio.create_task(pool.compare("5", reply, seconds=0.5))
    try:
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert not comparing.done()  # a loop that waited for it would be here only after it
    finally:
        for process in workers:
            process.send_signal(signal.SIGCONT)
    assert await comparing is Verdict.TIMEOUT
    assert await pool.compare("5", "5", seconds=5) is Verdict.EQUAL
    assert pool.started <= started + 1


async def test_a_worker_that_waits_without_computing_is_killed(monkeypatch):
    """Such a worker spends no CPU time, so the wall clock has to end it."""
    monkeypatch.setattr(verify, "_WALL_GRACE", 0.1)
    pool = VerifyPool(1)
    try:
        assert await pool.compare("5", "5", seconds=60) is Verdict.EQUAL
        (worker,) = pool._workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert await pool.compare("5", "5", seconds=0.1) is Verdict.TIMEOUT
        assert worker.process.returncode == -signal.SIGKILL
        assert await pool.compare("5", "5", seconds=60) is Verdict.EQUAL
    finally:
        pool.close()


async def test_a_worker_gets_no_key_of_the_host(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-host")
    pool = VerifyPool(1)
    try:
        assert await pool.compare("5", "5", seconds=5) is Verdict.EQUAL
        (worker,) = pool._workers
        environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()  # noqa: ASYNC240
        assert b"PATH=" in environment
        assert b"sk-of-the-host" not in environment
    finally:
        pool.close()


async def test_hangs_beside_good_answers_lose_none(pool):
    replies = ["9^{9^{9^{9}}}" if i % 8 == 0 else str(i) for i in range(24)]
    verdicts = await asyncio.gather(*(pool.compare("5", reply, seconds=0.5) for reply in replies))
    assert verdicts[5] is Verdict.EQUAL
    assert all(v is Verdict.TIMEOUT for v in verdicts[::8])
    assert verdicts.count(Verdict.DIFFERENT) == 24 - 3 - 1


async def test_hostile_text_gets_a_verdict(pool):
    replies = [
        "",
        "(" * 3000,
        "\\frac{" * 500,
        "x" * 10_000,
        "\x00\ud800'\"\n{}",
        "\\text{",
        "__import__('os')._exit(0)",
    ]
    verdicts = await asyncio.gather(*(pool.compare("5", reply, seconds=2) for reply in replies))
    assert not any(v is Verdict.EQUAL for v in verdicts)
    assert verdicts[3] is Verdict.TOO_BIG
    assert await pool.compare("5", "5", seconds=5) is Verdict.EQUAL


async def test_a_reference_that_cannot_be_read_is_told_apart(pool):
    assert await pool.compare("", "5", seconds=5) is Verdict.GOLD_UNPARSED


async def test_a_worker_killed_from_outside_is_replaced():
    pool = VerifyPool(1)
    try:
        assert await pool.compare("1", "1", seconds=5) is Verdict.EQUAL
        (worker,) = pool._workers
        os.kill(worker.process.pid, signal.SIGKILL)
        assert await pool.compare("2", "2", seconds=5) is Verdict.EQUAL
        assert pool.started == 2
    finally:
        pool.close()


async def test_the_pool_serves_several_event_loops(pool):
    """A trainer scores in one thread's loop and evaluates in another's."""

    def other_loop():
        return asyncio.run(pool.compare("3", "3", seconds=5))

    assert await asyncio.to_thread(other_loop) is Verdict.EQUAL
    assert await pool.compare("3", "3", seconds=5) is Verdict.EQUAL


async def test_closing_leaves_no_process_even_in_a_hang():
    pool = VerifyPool(1)
    hanging = asyncio.create_task(pool.compare("5", "9^{9^{9^{9}}}", seconds=600))
    while not pool._workers:  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.02)
    (worker,) = pool._workers
    started = time.monotonic()
    await asyncio.to_thread(pool.close)
    assert time.monotonic() - started < 120
    assert worker.process.poll() is not None
    hanging.cancel()


async def test_a_worker_that_starts_while_the_pool_closes_is_not_waited_for(monkeypatch):
    starting, go = threading.Event(), threading.Event()
    workers = []

    class Late(verify._Worker):
        def __init__(self):
            super().__init__()
            workers.append(self)
            starting.set()
            go.wait()

    monkeypatch.setattr(verify, "_Worker", Late)
    pool = VerifyPool(1)
    hanging = asyncio.create_task(pool.compare("5", "9^{9^{9^{9}}}", seconds=600))
    await asyncio.to_thread(starting.wait)
    closing = asyncio.create_task(asyncio.to_thread(pool.close))
    while not pool._closed:  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.02)
    go.set()
    with pytest.raises(VerifierBroken, match="closed"):
        await hanging
    await closing
    assert workers[0].process.poll() is not None


async def test_a_machine_that_cannot_verify_is_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(verify.sys, "executable", sys.executable)
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    pool = VerifyPool(1)
    try:
        with pytest.raises(VerifierBroken, match="import math_verify"):
            await pool.compare("5", "5", seconds=5)
    finally:
        pool.close()
