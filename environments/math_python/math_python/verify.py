"""Whether two answers are equal, decided in processes that can be killed.

The idea: math-verify hands what a model wrote to sympy, which may never return, and its own time-outs need
SIGALRM in the main thread, which a trainer or a server cannot give. So a small pool of worker processes
(`worker.py`) does it: a worker that overruns its budget dies, is replaced, and the answer counts as not
equal. Nothing here blocks the event loop: a worker is waited for in a thread of the pool's own, so that a
hang cannot starve asyncio's default threads either.

Invariants: `compare` returns a verdict for whatever the two strings are; it raises only when workers cannot
run at all, which is the machine's fault and not the answer's. The pool belongs to no event loop and starts
its workers when they are first needed; they end with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

MAX_ANSWER_CHARS = 4_000
"""Longer answers are not parsed: no answer of the data is near this, and parsing is superlinear."""

_START_SECONDS = 180.0
"""Until a worker has imported sympy, on a busy machine."""
_WALL_FACTOR = 8.0
_WALL_GRACE = 60.0
"""Wall-clock seconds a worker gets are its CPU seconds times the factor, plus the grace: a second net, for a
worker that waits without computing. Wide, since a busy machine must not make an answer wrong."""
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What a worker gets of the environment."""
_MEMORY_BYTES = 2 << 30
"""Address space of a worker."""


class Verdict(StrEnum):
    """How a comparison ended; only `EQUAL` earns the reward."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNPARSED = "unparsed"
    """The reply's answer is not mathematics that math-verify can read."""
    GOLD_UNPARSED = "gold_unparsed"
    """The reference is not: the row's fault."""
    TOO_BIG = "too_big"
    """Beyond the length, the memory or the recursion that is allowed."""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The worker died of something else."""


class VerifierBroken(RuntimeError):
    """No worker can be started: math-verify is missing or cannot run here."""


class _Worker:
    """One worker process and its pipes. Used by one thread at a time."""

    def __init__(self) -> None:
        # The file, not `-m`: importing the package would import verifiers, which takes seconds. stderr
        # is kept for error messages.
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), str(_MEMORY_BYTES)],
            # What reads a model's text has no use for the keys that the environment may hold.
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._buffer = b""
        ready = self._receive(_START_SECONDS)
        if ready != {"ready": True}:
            self.kill()
            assert self.process.stderr is not None
            detail = self.process.stderr.read().decode(errors="replace").strip()[-2000:]
            raise VerifierBroken(
                f"the math-verify worker did not start (exit status {self.process.returncode}). Check that "
                f"`{sys.executable} -c 'import math_verify'` works. {detail}"
            )
        # From now on nobody reads stderr, and a full pipe would block the worker.
        assert self.process.stderr is not None
        threading.Thread(target=_drain, args=(self.process.stderr,), daemon=True).start()

    def compare(self, gold: str, reply: str, seconds: float) -> Verdict:
        request = json.dumps({"gold": gold, "reply": reply, "seconds": seconds}) + "\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
        except OSError:
            self.kill()
            return Verdict.CRASHED
        answer = self._receive(seconds * _WALL_FACTOR + _WALL_GRACE)
        if answer is not None:
            return Verdict(answer["verdict"])
        if self.process.poll() is None:
            self.kill()
            return Verdict.TIMEOUT
        # -26 is SIGVTALRM: the budget of CPU seconds was spent.
        return Verdict.TIMEOUT if self.process.returncode == -26 else Verdict.CRASHED

    def _receive(self, seconds: float) -> dict | None:
        """The next message; None at the end of the stream (the process is reaped) or when time is up."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()  # not select(): descriptors beyond 1,023 are usual here
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                self.process.wait()
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # unwritten input of a dead process


def _drain(stream) -> None:  # type: ignore[no-untyped-def]
    while stream.read(65536):
        pass
    stream.close()


class VerifyPool:
    """At most `size` workers, started on demand and kept."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.started = 0
        """Workers started in all; one more for each that had to be killed."""
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="math-verify")
        self._closed = False

    async def compare(self, gold: str, reply: str, *, seconds: float) -> Verdict:
        """Whether the LaTeX `reply` equals the LaTeX `gold`, both without their box.

        Args:
            seconds: CPU seconds of the worker. The wall clock is bounded too, far more widely.

        Raises:
            VerifierBroken: no worker can be started.
        """
        if len(reply) > MAX_ANSWER_CHARS:
            return Verdict.TOO_BIG
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._compare, gold, reply, seconds)

    def _compare(self, gold: str, reply: str, seconds: float) -> Verdict:
        verdict = self._attempt(gold, reply, seconds)
        # Killed from outside, perhaps: an answer is judged on a second try.
        if verdict is Verdict.CRASHED and not self._closed:
            verdict = self._attempt(gold, reply, seconds)
        return verdict

    def _attempt(self, gold: str, reply: str, seconds: float) -> Verdict:
        worker = self._take()
        try:
            return worker.compare(gold, reply, seconds)
        finally:
            self._give(worker)

    def _take(self) -> _Worker:
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                break
            if worker.alive:
                return worker
            self._forget(worker)
        if not self._closed:
            worker = _Worker()
            with self._lock:
                self.started += 1
                if not self._closed:
                    self._workers.add(worker)
                    return worker
            worker.kill()  # `close` came while it started, and did not see it
        raise VerifierBroken("the verify pool is closed")

    def _give(self, worker: _Worker) -> None:
        if worker.alive and not self._closed:
            self._idle.put(worker)
        else:
            self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._workers.discard(worker)

    def close(self) -> None:
        """Kill every worker, busy ones too."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.kill()


_shared: VerifyPool | None = None
_shared_pid = 0
_shared_lock = threading.Lock()


def shared_pool() -> VerifyPool:
    """The pool of this process: a worker for every core, four at most."""
    global _shared, _shared_pid
    with _shared_lock:
        # A forked child must not write into its parent's pipes.
        if _shared is None or _shared_pid != os.getpid():
            _shared = VerifyPool(max(1, min(4, os.cpu_count() or 1)))
            _shared_pid = os.getpid()
            atexit.register(_shared.close)
        return _shared
