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
import json
import math
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from types import NoneType
from typing import Any, Literal

from verifiers.v1.runtimes.base import Runtime, RuntimeProcess

from rlm_env.repl import isolation
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
from rlm_env.repl.protocol import BadFrame, Frame, FrameReader, cut, field, strings
from rlm_env.repl.worker import MAX_NAMES, pack, pack_json

CHUNK = 1 << 20
"""Bytes of context or file in one frame."""
ASK_SECONDS = 1.0
"""How long a worker gets to end itself and all that it started, when asked and when told."""
DEPTH_FUNCTIONS = ("llm_batch", "llm_query", "rlm_batch", "rlm_query")
RESERVED = (
    "context",
    "context_files",
    "answer",
    *DEPTH_FUNCTIONS,
    "SubCallError",
    "SubCallLimitError",
    "SubCallFailure",
    "ToolError",
)
"""Names that every REPL defines and restores (the depth functions only where they are available)."""


class Died(Exception):
    """The worker is gone, or no longer one that can be talked to; the message says how."""


class Worker:
    """One process and its frames."""

    def __init__(self, process: RuntimeProcess, plan: isolation.Plan, config: ReplConfig) -> None:
        self.process = process
        self.plan = plan
        # The supervisor may add a little to a frame of its child's.
        self.reader = FrameReader(config.frame_bytes + (1 << 16))
        self._stdout: AsyncIterator[bytes] = aiter(process.stdout)
        self._reading: asyncio.Task[bytes] | None = None
        self._write_lock = asyncio.Lock()

    async def _read(self) -> bytes:
        try:
            return await anext(self._stdout)
        except StopAsyncIteration:
            return b""

    def reading(self) -> asyncio.Task[bytes]:
        """The one read in flight. It is waited for and never cancelled while the process lives: cancelling
        it would end the runtime's stream."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return self._reading

    def read(self) -> None:
        """Take in what ``reading()``, which is done, has brought."""
        task, self._reading = self._reading, None
        assert task is not None
        try:
            data = task.result()
        except Exception as error:  # a remote runtime's transport
            raise Died(f"its connection broke: {error}") from error
        if not data:
            raise Died("it ended without notice")
        self.reader.feed(data)

    def next(self) -> Frame | None:
        try:
            return self.reader.next()
        except BadFrame as error:
            raise Died(f"the program wrote to the REPL's own channel ({error})") from None

    async def write(self, *frames: bytes) -> None:
        async with self._write_lock:
            for frame in frames:
                try:
                    await self.process.write(frame)
                except (OSError, RuntimeError) as error:
                    raise Died(f"its pipe broke: {error}") from error

    async def kill(self) -> None:
        """End the process and all that it started. Never raises, and is not cut short by cancellation."""
        task = asyncio.ensure_future(self._kill())
        cancelled = False
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    async def _kill(self) -> None:
        # First asked: the supervisor ends everything below it, and each process is reaped by its parent.
        # Killed outright, they would be left to the machine's init as zombies, and in a container without
        # one for good. Without a process namespace nobody else can find what the code started.
        for ask in (self.write(pack("K", b"")), self.process.terminate()):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(ASK_SECONDS):
                    await ask
                    await self.process.wait()
        with contextlib.suppress(Exception):
            await self.process.kill()
            await asyncio.wait_for(self.process.wait(), 10)
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._reading
            self._reading = None

    async def complaint(self) -> str:
        """What a worker that did not start said on its stderr."""
        text = b""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                async for chunk in self.process.stderr:
                    text += chunk[:4000]
                    if len(text) > 4000:
                        break
        code = None
        with contextlib.suppress(Exception):
            code = await asyncio.wait_for(self.process.wait(), 2)
        return f"{text.decode(errors='replace').strip()[-1500:]} (exit code {code})"


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
    ) -> None:
        self.config = config
        self.plan = isolation.resolve(config, runtime.type)
        """How the worker is confined; ``plan.report`` says it in words."""
        self.answer = Answer()
        """The answer variable as the process last reported it."""
        self.restarts = 0
        self._runtime = runtime
        self._handler = handler
        self._context = context
        self._files = {
            name: body.encode() if isinstance(body, str) else bytes(body)
            for name, body in (context_files or {}).items()
        }
        _check_data(context, self._files, config)
        _check_functions(functions, depth_functions)
        self._requests = {"tool"} if any(spec.source is None for spec in functions) else set()
        self._requests |= {name.replace("query", "batch") for name in depth_functions}
        self._start_fields = {
            "functions": [
                {"name": spec.name, "description": spec.description, "source": spec.source}
                for spec in functions
            ],
            "depth_functions": list(depth_functions),
            "on_sub_error": on_sub_error,
            "answer_chars": config.answer_chars,
        }
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
    ) -> ReplClient:
        """Start a worker in ``runtime`` and hand it the data.

        ``context``: JSON data (str of any size, list, dict, number or None), the variable ``context``.
        ``context_files``: relative path -> body, written to the working directory. ``depth_functions``:
        which of ``llm_batch``, ``llm_query``, ``rlm_batch``, ``rlm_query`` exist. ``on_sub_error``: what
        failed sub-calls become, an exception or falsy markers among the results.

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
                process = await self._runtime.open_process(plan.command(config, folder), {})
                worker = Worker(process, plan, config)
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
        kind, body = _encode_context(self._context)
        start = {
            "context": {"kind": kind, "bytes": len(body)},
            "files": [[name, len(data)] for name, data in self._files.items()],
            "answer": {"content": self.answer.content, "ready": self.answer.ready},
            **self._start_fields,
        }
        await worker.write(pack_json("S", start))
        for frame_kind, data in (("C", body), *(("F", data) for data in self._files.values())):
            for begin in range(0, len(data), CHUNK):
                await worker.write(pack(frame_kind, data[begin : begin + CHUNK]))

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
            return await _Call(self, code).run()
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


class _Call:
    """The state of one ``run``: its clock, its requests in flight, what came of it."""

    def __init__(self, client: ReplClient, code: str) -> None:
        assert client._worker is not None
        self.client = client
        self.config = client.config
        self.worker = client._worker
        self.loop = asyncio.get_running_loop()
        client._run_number += 1
        self.number = client._run_number
        self.code = code
        self.requests: dict[asyncio.Task[None], int] = {}
        self.handling: set[int] = set()
        """Requests that the handler is working on: while there are any, the clock stands."""
        self.started = self.loop.time()
        self.waited = 0.0
        self.waiting_since: float | None = None
        self.interrupted_at: float | None = None
        self.output: tuple[str, str, int] = ("", "", 0)

    # The clock.

    def wait_seconds(self) -> float:
        open_wait = 0.0 if self.waiting_since is None else self.loop.time() - self.waiting_since
        return self.waited + open_wait

    def seconds(self) -> float:
        return max(0.0, self.loop.time() - self.started - self.wait_seconds())

    def left(self) -> float | None:
        """Seconds until something has to be done about the code; None while the clock stands."""
        if self.interrupted_at is not None:
            return self.interrupted_at + self.config.interrupt_grace_seconds - self.loop.time()
        return None if self.handling else self.config.call_seconds - self.seconds()

    async def run(self) -> ReplResult:
        send = asyncio.create_task(self.worker.write(pack_json("X", {"run": self.number, "code": self.code})))
        try:
            try:
                result = await self._until_result(send)
            except Died as died:
                return await self._after_death(str(died))
            await self._drop_requests()
            return result
        finally:
            await _cancel([send, *self.requests])

    async def _until_result(self, send: asyncio.Task[None]) -> ReplResult:
        while True:
            # Frames that are here already come first, as long as there is room for their requests.
            # Requests count until their reply is taken, so one that takes none cannot pile them up here.
            while len(self.requests) < self.config.max_pending and (frame := self.worker.next()) is not None:
                if (result := self._handle(frame)) is not None:
                    return result
            left = self.left()
            if left is not None and left <= 0:
                await self._out_of_time()
                continue
            waits: set[asyncio.Task[Any]] = set(self.requests)
            if not send.done():
                waits.add(send)
            elif (error := send.exception()) is not None:
                raise error
            if len(self.requests) < self.config.max_pending:
                waits.add(self.worker.reading())
            done, _ = await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self.client._closed:
                raise ReplError("the REPL was closed during a call")
            for task in done & self.requests.keys():
                del self.requests[task]
                task.result()  # raises what the handler raised
            if self.worker._reading in done:
                self.worker.read()

    async def _out_of_time(self) -> None:
        if self.interrupted_at is not None:
            raise Died(
                f"it went on for {self.config.interrupt_grace_seconds:g} s after it was interrupted at its "
                f"limit of {self.config.call_seconds:g} s"
            )
        self.interrupted_at = self.loop.time()
        await _cancel(list(self.requests))  # answers that are made but not taken
        self.requests.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.interrupt_grace_seconds):
                await self.worker.write(pack_json("I", {"run": self.number}))

    # Frames.

    def _handle(self, frame: Frame) -> ReplResult | None:
        """Act on one frame; returns the result when it is the frame that ends the call."""
        body = frame.body
        try:
            if frame.kind == "Q":
                self._start_request(body)
            elif frame.kind == "O":
                head, tail, total = (
                    field(body, "head", str),
                    field(body, "tail", str),
                    field(body, "total", int),
                )
                if not 0 <= total < 1 << 60:
                    raise BadFrame("a length that cannot be")
                limit = self.config.output_chars
                self.output = (head[:limit], tail[-limit:], total)
            elif frame.kind == "R":
                if field(body, "run", int) != self.number:
                    raise BadFrame("the result of another call")
                return self._result(body)
            elif frame.kind == "D":
                raise Died(field(body, "reason", str)[:500])
            else:
                raise BadFrame(f"kind {frame.kind!r} during a call")
        except BadFrame as error:
            raise Died(f"the program wrote to the REPL's own channel ({error})") from None
        return None

    def _start_request(self, body: dict[str, Any]) -> None:
        number, name = field(body, "id", int), field(body, "name", str)
        payload = field(body, "payload", dict)
        if name not in self.client._requests:
            raise BadFrame(f"no such request: {name[:40]!r}")
        if number in self.requests.values():
            raise BadFrame(f"request {number} is sent twice")
        if self.waiting_since is None:
            self.waiting_since = self.loop.time()
        self.handling.add(number)
        task = asyncio.create_task(self._answer(number, name, payload))
        task.add_done_callback(lambda _: self._handled(number))  # also of a task cancelled before it began
        self.requests[task] = number

    async def _answer(self, number: int, name: str, payload: dict[str, Any]) -> None:
        try:
            reply = await self.client._handler(name, payload)
        finally:
            # The clock goes on before the reply is written: a process that does not read its replies must
            # not stop it.
            self._handled(number)
        with contextlib.suppress(Died):  # the reader sees the death too
            await self.worker.write(pack_json("A", {"id": number, "reply": reply}))

    def _handled(self, number: int) -> None:
        self.handling.discard(number)
        if not self.handling and self.waiting_since is not None:
            self.waited += self.loop.time() - self.waiting_since
            self.waiting_since = None

    async def _drop_requests(self) -> None:
        """Threads may be waiting for replies when the call that started them ends: let them fail."""
        numbers = list(self.requests.values())
        await _cancel(list(self.requests))
        self.requests.clear()
        error = {"type": "CallEnded", "message": "the code ended before this request was answered"}
        with contextlib.suppress(TimeoutError, Died):
            async with asyncio.timeout(1):
                for number in numbers:
                    await self.worker.write(pack_json("A", {"id": number, "reply": {"error": error}}))

    # Ends.

    def _result(self, body: dict[str, Any]) -> ReplResult:
        """Raises BadFrame, and then changes nothing."""
        error = field(body, "error", (str, NoneType))
        restored = strings(body, "restored", 1000, 100)
        notes = strings(body, "notes", 100, 500)
        names = strings(body, "names", MAX_NAMES, 80)
        answer = self.client.answer
        if field(body, "answer", (dict, NoneType)) is not None:
            content = field(body["answer"], "content", str)[: self.config.answer_chars]
            answer = Answer(content, field(body["answer"], "ready", bool))
        self.client.answer, self.client._names = answer, names
        error = error[:200] if error is not None else None
        return self._make(error=error, restored=restored, notes=notes)

    async def _after_death(self, reason: str) -> ReplResult:
        seconds, waited = self.seconds(), self.wait_seconds()
        lost, self.client._names = self.client._names, ()
        await self.client._restart(reason)
        note = f"the REPL process ended: {reason}"
        return self._make(
            error="ReplDied", lost=lost, notes=(note,), restarted=True, seconds=seconds, waited=waited
        )

    def _make(
        self,
        *,
        error: str | None,
        restored: tuple[str, ...] = (),
        lost: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        restarted: bool = False,
        seconds: float | None = None,
        waited: float | None = None,
    ) -> ReplResult:
        head, tail, total = self.output
        output, truncated = cut(head, tail, total, self.config.output_chars)
        return ReplResult(
            output=output,
            total_chars=total,
            truncated_chars=truncated,
            error=error,
            seconds=self.seconds() if seconds is None else seconds,
            wait_seconds=self.wait_seconds() if waited is None else waited,
            timed_out=self.interrupted_at is not None,
            restarted=restarted,
            lost=lost,
            restored=restored,
            answer=self.client.answer,
            notes=notes,
        )


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- checks of what the host's side hands over ---


def _encode_context(context: Any) -> tuple[str, memoryview]:
    if context is None:
        return "none", memoryview(b"")
    if isinstance(context, str):
        return "str", memoryview(context.encode("utf-8", "surrogatepass"))
    text = json.dumps(context, ensure_ascii=False, separators=(",", ":"))
    return "json", memoryview(text.encode("utf-8", "surrogatepass"))


def _check_data(context: Any, files: Mapping[str, bytes], config: ReplConfig) -> None:
    _check_json(context, "context")
    for name in files:
        parts = name.split("/")
        if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"context_files: {name!r} is no plain relative path")
    size = sum(map(len, files.values()))
    if size > config.scratch_mb << 20:
        raise ValueError(
            f"context_files hold {size / 2**20:.1f} MB, over repl.scratch_mb={config.scratch_mb}; raise it"
        )


def _check_json(value: Any, where: str) -> None:
    """JSON would silently turn integer keys into text and tuples into lists; say so instead."""
    todo = [(value, where)]
    while todo:
        value, where = todo.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where} has the key {key!r}; keys must be str")
                if not isinstance(item, (str, int)):
                    todo.append((item, f"{where}[{key!r}]"))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, (str, int)):
                    todo.append((item, f"{where}[{index}]"))
        elif not (value is None or isinstance(value, (str, bool, int))):
            if not isinstance(value, float):
                raise TypeError(f"{where} is {type(value).__name__}; context must be JSON data")
            if not math.isfinite(value):
                raise ValueError(f"{where} is {value}, which is not JSON")


def _check_functions(functions: Sequence[FunctionSpec], depth_functions: Sequence[str]) -> None:
    unknown = set(depth_functions) - set(DEPTH_FUNCTIONS)
    if unknown:
        raise ValueError(f"depth_functions: {sorted(unknown)} are not among {DEPTH_FUNCTIONS}")
    seen = set(RESERVED)
    for spec in functions:
        if not spec.name.isidentifier():
            raise ValueError(f"function {spec.name!r} has no name that Python could call")
        if spec.name in seen:
            raise ValueError(f"function {spec.name!r} would hide another of that name in the REPL; rename it")
        seen.add(spec.name)
