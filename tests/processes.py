"""Whether processes have ended. One that nobody has waited for yet (a zombie) counts as ended."""

import time
from collections.abc import Iterable

import psutil


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_alive(processes: Iterable[psutil.Process], seconds: float = 30.0) -> list[psutil.Process]:
    """Those that are still there after `seconds`: a busy machine needs a while to take down a killed one."""
    processes = list(processes)
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def gone(pid: int, seconds: float = 30.0) -> bool:
    """Whether the process `pid` ends within `seconds`."""
    try:
        return not left_alive([psutil.Process(pid)], seconds)
    except psutil.NoSuchProcess:
        return True
