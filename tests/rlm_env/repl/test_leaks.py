"""Many REPLs, workers killed at random: the right outcome for each, and nothing left over."""

import asyncio
import os
import random
import signal
import threading
from pathlib import Path

from rlm_env.repl import ReplClient, ReplConfig
from tests.rlm_env.repl.conftest import echo
from tests.rlm_env.repl.test_attacks import Namespaces, eventually


def files_in(runtime):
    return sorted(Path(runtime.workdir).rglob("*"))


def children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_sixty_episodes_ten_at_a_time_with_workers_killed_at_random(runtime):
    rng = random.Random(1)
    # What is found out and opened once is no leak.
    first = await ReplClient.start(runtime, ReplConfig(), handler=echo)
    await first.close()
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    files = files_in(runtime)
    namespaces = Namespaces()
    slots = asyncio.Semaphore(10)
    restarts = 0

    async def episode(number: int) -> None:
        nonlocal restarts
        context = f"context {number}"
        async with slots:
            client = await ReplClient.start(
                runtime, ReplConfig(max_restarts=20), context=context, handler=echo
            )
            try:
                for turn in range(4):
                    pid = client._worker.process._process.pid
                    namespaces.add_below(pid)
                    killed = rng.random() < 0.3
                    # One that is to be killed cannot be done before.
                    code = f"import time\ntime.sleep({60 if killed else 0.02})\nr = llm_query(context)\n"
                    call = asyncio.create_task(client.run(f"{code}answer['content'] = '{turn}'\nr"))
                    if killed:
                        await asyncio.sleep(rng.random() * 0.04)
                        os.killpg(pid, signal.SIGKILL)
                    result = await call
                    if killed:
                        assert (result.error, result.restarted) == ("ReplDied", True)
                        restarts += 1
                    else:
                        assert result.output == f"'CONTEXT {number}'\n"
                        assert result.answer.content == str(turn)
                assert (await client.run("context")).output == f"'{context}'\n"
            finally:
                await client.close()

    await asyncio.gather(*(episode(number) for number in range(60)))
    assert restarts > 20
    await eventually(lambda: not namespaces.processes(), "processes are left")
    namespaces.close()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors are left")
    assert files_in(runtime) == files
    assert threading.active_count() <= threads, "the host has made threads"


async def test_cancelled_starts_and_calls_leave_nothing(runtime):
    first = await ReplClient.start(runtime, ReplConfig(), handler=echo)
    await first.close()
    descriptors = len(os.listdir("/proc/self/fd"))
    before = children()
    for delay in (0, 0.005, 0.02, 0.05, 0.1):
        task = asyncio.create_task(
            ReplClient.start(runtime, ReplConfig(), context="x" * 3_000_000, handler=echo)
        )
        await asyncio.sleep(delay)
        if task.cancel():
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            await (await task).close()
    client = await ReplClient.start(runtime, ReplConfig(), handler=echo)
    for delay in (0, 0.01, 0.1):
        task = asyncio.create_task(client.run("import time; time.sleep(60)"))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await client.run("'still'")).output == "'still'\n"
    await client.close()
    await eventually(lambda: children() <= before, "processes are left")
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors are left")
