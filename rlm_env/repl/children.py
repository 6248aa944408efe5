"""Waiting for child processes without a thread for each, on Python 3.11.

3.11 watches every child with a thread of its own unless told otherwise, so a thousand REPLs would be a
thousand threads; from 3.12 on asyncio waits on pidfds by itself. This is that behaviour for 3.11: unlike
3.11's own ``PidfdChildWatcher`` it serves every running loop, on whatever thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any


def watch_by_pidfd() -> None:
    """Replace the default watcher, once. Does nothing where it is not needed or another one was chosen."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        policy = asyncio.get_event_loop_policy()
        if type(policy.get_child_watcher()) is asyncio.ThreadedChildWatcher:
            policy.set_child_watcher(_Watcher())


if sys.version_info < (3, 12):

    class _Watcher(asyncio.AbstractChildWatcher):
        def __init__(self) -> None:
            self._watched: dict[int, tuple[asyncio.AbstractEventLoop, int]] = {}

        def is_active(self) -> bool:
            return True

        def attach_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
            pass

        def close(self) -> None:
            pass

        def __enter__(self) -> _Watcher:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def add_child_handler(  # type: ignore[override]
            self, pid: int, callback: Callable[..., object], *args: Any
        ) -> None:
            loop = asyncio.get_running_loop()
            pidfd = os.pidfd_open(pid)
            self._watched[pid] = (loop, pidfd)
            loop.add_reader(pidfd, self._ended, pid, callback, args)

        def remove_child_handler(self, pid: int) -> bool:
            watched = self._watched.pop(pid, None)
            if watched is None:
                return False
            loop, pidfd = watched
            loop.remove_reader(pidfd)
            os.close(pidfd)
            return True

        def _ended(self, pid: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
            self.remove_child_handler(pid)
            try:
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:  # reaped elsewhere; asyncio's own word for that
                code = 255
            callback(pid, code, *args)
