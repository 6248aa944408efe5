"""One call: the code goes down, requests and then a result come up, against the host's clock.

Invariant: the clock stands only while the host itself is working on a request, so nothing that the process
does, or leaves undone, can stop it. A result is taken whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import NoneType
from typing import TYPE_CHECKING, Any

from rlm_env.repl.config import Answer, ReplError, ReplResult
from rlm_env.repl.process import Died
from rlm_env.repl.protocol import BadFrame, Frame, cut, field, strings
from rlm_env.repl.worker import MAX_NAMES, pack_json

if TYPE_CHECKING:
    from rlm_env.repl.client import ReplClient


class Call:
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
        if name not in self.client.requests:
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
