"""The host's handle on one REPL: start it, run code in it, answer its requests, replace it when it dies.

The idea: one process at a time, one call at a time, and no thread. The clock, the size of every buffer, the
number of requests in flight and the number of restarts live here. Bytes from the process are parsed by
``protocol.py`` and are read only while a call runs, so a process that writes without being asked stalls in
its own pipe.

Invariant: ``run`` returns a ``ReplResult`` whatever the code did, its process's death included. It raises
only ``ReplFailure`` (died too often), ``ReplStartError`` (cannot be started again), or what the handler
raised. ``answer`` is always the last one that the process reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from verifiers.v1.runtimes.base import Runtime

from rlm_env.repl import isolation
from rlm_env.repl.call import Call
from rlm_env.repl.children import watch_by_pidfd
from rlm_env.repl.config import (
    Answer,
    FunctionSpec,
    HostHandler,
    IsolationUnavailable,
    ReplConfig,
    ReplError,
    ReplFailure,
    ReplResult,
    ReplStartError,
)
from rlm_env.repl.handover import Handover
from rlm_env.repl.process import Died, Worker


class ReplClient:
    """A persistent Python REPL in a process of its own. Make one with ``start``."""

    def __init__(
        self,
        runtime: Runtime,
        config: ReplConfig,
        *,
        context: Any,
        context_files: Mapping[str, bytes | str] | None,
        functions: Sequence[FunctionSpec],
        depth_functions: Sequence[str],
        on_sub_error: Literal["raise", "marker"],
        handler: HostHandler,
        hidden: Sequence[str],
    ) -> None:
        self.config = config
        self.plan = isolation.resolve(config, runtime.type)
        """How the worker is confined; ``plan.report`` says it in words."""
        self.answer = Answer()
        """The answer variable as the process last reported it."""
        self.restarts = 0
        self._runtime = runtime
        self._handler = handler
        self._hidden = tuple(hidden)
        self._handover = Handover(
            context=context,
            files={
                name: body.encode() if isinstance(body, str) else bytes(body)
                for name, body in (context_files or {}).items()
            },
            functions=functions,
            depth_functions=depth_functions,
            on_sub_error=on_sub_error,
            answer_chars=config.answer_chars,
        )
        self._handover.check(config)
        self.requests = self._handover.requests
        """Names of the requests that REPL code may make."""
        self._run_number = 0
        self._names: tuple[str, ...] = ()
        self._running = False
        self._closed = False
        self._worker: Worker | None = None

    @classmethod
    async def start(
        cls,
        runtime: Runtime,
        config: ReplConfig,
        *,
        context: Any = None,
        context_files: Mapping[str, bytes | str] | None = None,
        functions: Sequence[FunctionSpec] = (),
        depth_functions: Sequence[str] = ("llm_batch", "llm_query"),
        on_sub_error: Literal["raise", "marker"] = "raise",
        handler: HostHandler,
        hidden: Sequence[str] = (),
    ) -> ReplClient:
        """Start a worker in ``runtime`` and hand it the data.

        ``context``: JSON data (str of any size, list, dict, number or None), the variable ``context``.
        ``context_files``: relative path -> body, written to the working directory. ``depth_functions``:
        which of ``llm_batch``, ``llm_query``, ``rlm_batch``, ``rlm_query`` exist. ``on_sub_error``: what
        failed sub-calls become, an exception or falsy markers among the results. ``hidden``: top-level
        modules of the interpreter's packages that are not there for model code, where we confine it.

        Raises ValueError / TypeError for data or functions that cannot be handed over, ReplStartError (with
        the cure) when no worker can be started, IsolationUnavailable when it cannot be confined as asked.
        """
        client = cls(
            runtime,
            config,
            context=context,
            context_files=context_files,
            functions=functions,
            depth_functions=depth_functions,
            on_sub_error=on_sub_error,
            handler=handler,
            hidden=hidden,
        )
        watch_by_pidfd()
        client._worker = await client._open()
        return client

    # --- one worker's life ---

    async def _open(self) -> Worker:
        config, plan = self.config, self.plan
        worker: Worker | None = None
        try:
            async with asyncio.timeout(config.start_seconds):
                folder = await self._ship() if plan.backend == "container" else None
                worker = await self._launch(plan.command(config, folder, self._hidden))
                handing = asyncio.create_task(self._hand_over(worker))
                try:
                    await self._await_hello(worker)
                finally:
                    handing.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Died):
                        await handing
                return worker
        except TimeoutError:
            error: Exception = ReplStartError(
                f"the REPL process did not start within repl.start_seconds={config.start_seconds:g}"
            )
        except Died as died:
            assert worker is not None
            error = self._start_error(str(died), await worker.complaint())
        except (ReplError, asyncio.CancelledError):
            if worker is not None:
                await worker.kill()
            raise
        except Exception as other:
            error = self._start_error(f"{type(other).__name__}: {other}", "")
        if worker is not None:
            await worker.kill()
        raise error

    async def _launch(self, command: list[str]) -> Worker:
        """Open the process. A cancelled asyncio waits for ever for a process whose pipes it had not yet
        connected, so opening is let finish and undone."""
        opening = asyncio.ensure_future(self._runtime.open_process(command, {}))
        try:
            return Worker(await asyncio.shield(opening), self.config)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self.config.start_seconds):
                    await Worker(await asyncio.shield(opening), self.config).kill()
            raise

    def _start_error(self, died: str, complaint: str) -> ReplStartError:
        python = self.config.python or ("python3" if self.plan.backend == "container" else sys.executable)
        missing = re.search(r"not found|no such file|exit code 127", f"{died} {complaint}", re.IGNORECASE)
        if self.plan.backend == "container" and missing:
            return ReplStartError(
                f"the image of the {self._runtime.type} runtime has no {python!r} ({complaint.strip()}). Use "
                "an image with python3 >= 3.8, or set repl.python to the path of one in it"
            )
        return ReplStartError(
            f"the REPL process ({python}, {self.plan.report}) did not start: {died}. {complaint}"
        )

    async def _ship(self) -> str:
        """Write the worker's file into the runtime; returns its folder there. Named by content, so that
        episodes which share a box share the file."""
        source = isolation.WORKER.read_bytes()
        folder = f"/tmp/rlm-repl-{hashlib.sha256(source).hexdigest()[:16]}"
        await self._runtime.write(f"{folder}/worker.py", source)
        return folder

    async def _hand_over(self, worker: Worker) -> None:
        for frame in self._handover.frames(self.answer):
            await worker.write(frame)

    async def _await_hello(self, worker: Worker) -> None:
        while True:
            frame = worker.next()
            if frame is None:
                await asyncio.wait([worker.reading()])
                worker.read()
            elif frame.kind == "H":
                return
            elif frame.kind == "E":
                raise ReplStartError(f"the REPL process could not be set up: {frame.body.get('message')}")
            elif frame.kind == "D":
                raise Died(str(frame.body.get("reason")))

    # --- one call ---

    async def run(self, code: str) -> ReplResult:
        """Run ``code`` and wait for its end. One call at a time (RuntimeError otherwise).

        Cancelling it kills the worker; the next call then starts a new one.
        """
        if self._closed:
            raise ReplError("the REPL is closed")
        if self._running:
            raise RuntimeError("this REPL is running another call; calls go one after another")
        self._running = True
        try:
            if self._worker is None:
                await self._restart("it was stopped in the middle of a call")
            return await Call(self, code).run()
        except BaseException:
            if self._worker is not None:
                worker, self._worker = self._worker, None
                await worker.kill()
            raise
        finally:
            self._running = False

    async def _restart(self, reason: str) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.kill()
        while self._worker is None:
            self.restarts += 1
            if self.restarts > self.config.max_restarts:
                raise ReplFailure(
                    f"the REPL process died {self.restarts} times "
                    f"(repl.max_restarts={self.config.max_restarts}), the last time because {reason}",
                    self.answer,
                )
            try:
                self._worker = await self._open()
            except IsolationUnavailable:
                raise
            except ReplStartError as error:
                # It started before, so this is a young process that was killed (memory, say): one more death.
                reason = str(error)
        if self._closed:
            raise ReplError("the REPL was closed during a call")  # run() kills the worker

    async def close(self) -> None:
        """Kill the worker and all that it started. May be called any number of times, also during a run,
        which then ends with ReplError."""
        self._closed = True
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.kill()
