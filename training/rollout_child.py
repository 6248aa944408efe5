"""The rollout process from its first line to its last: signals, log, the watch over its parent, the loop.

Invariants: the process never sees a GPU; it never outlives the trainer's process, however that ended; and
when it goes, the REPL processes below it go too. Signals are for the trainer's process alone, which then asks
this one to stop; so the order of things is one, whoever sent the signal to whom.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import psutil

from training.rollout_link import ChildError, ChildLink, LoopSettings

_PROCESS_GROUP_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
)
"""A library that finds these would try to join the trainer's process group. (List as in TRL's own worker.)"""


LAST_WORDS_SECONDS = 10.0
"""Time for the trainer's process to take what this one sent last, its error included."""


def kill_tree(pid: int, *, and_itself: bool = True) -> int:
    """Kills every process below `pid`, and `pid`; returns how many there were."""
    try:
        top = psutil.Process(pid)
        victims = top.children(recursive=True) + ([top] if and_itself else [])
    except psutil.NoSuchProcess:
        return 0
    for process in victims:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    # Not for `pid`: that would take its exit status away from multiprocessing, which then believes that it
    # lives, and at exit signals whoever has its id by then.
    psutil.wait_procs([process for process in victims if process != top], timeout=5)
    return len(victims)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the rollout process: no GPU, no process group, one thread per math library."""
    kept = {name: value for name, value in environment.items() if name not in _PROCESS_GROUP_VARIABLES}
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "")
    return {**kept, **hidden, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def child_main(settings: LoopSettings, link: ChildLink) -> None:
    """Target of the spawned process."""
    environment = child_environment(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    # Launchers and terminals signal process groups, batch systems every process of a job. The episodes of the
    # step at hand are still wanted then, and when they are not, the trainer's process says so.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _log_to(Path(settings.run_dir) / "logs" / "rollouts.log")
    status = 0
    try:
        # Not asyncio.run: it would wait without end for an episode that ignores its cancellation.
        asyncio.new_event_loop().run_until_complete(_run(settings, link))
    except BaseException as error:
        traceback.print_exc()
        link.put(ChildError(type(error).__name__, str(error), traceback.format_exc()))
        link.close(LAST_WORDS_SECONDS)
        status = 1
    sys.stderr.flush()
    kill_tree(os.getpid(), and_itself=False)
    os._exit(status)


async def _run(settings: LoopSettings, link: ChildLink) -> None:
    # Imported here: the watch over the parent has to stand before seconds of imports.
    stop = asyncio.Event()
    threading.Thread(
        target=_watch, args=(link, asyncio.get_running_loop(), stop), name="watch", daemon=True
    ).start()
    from training.rollout_loop import RolloutLoop

    await RolloutLoop(settings, link, stop).run()


def _watch(link: ChildLink, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Turns the stop event and the parent's death into the loop's stop, and ends the process when it
    lingers."""
    parent = multiprocessing.parent_process()
    while not link.counters.stop.value and (parent is None or parent.is_alive()):
        time.sleep(0.2)
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:  # the loop has ended by itself
        return
    while parent is None or parent.is_alive():  # the parent has a deadline of its own and kills
        time.sleep(0.5)
    time.sleep(10)
    kill_tree(os.getpid())


def _log_to(path: Path) -> None:
    """Sends logging, prints and everything that libraries write to stderr to the run's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    # One line per request of a model server is a million lines a run.
    for name in ("httpx", "aiohttp.access", "openai", "verifiers.v1.rollout"):
        logging.getLogger(name).setLevel(logging.WARNING)
