"""One worker process as the host holds it: its bytes as frames, its writes in order, its end.

Invariant: every failure of the process or its pipes, and every frame that an honest worker would not send,
is ``Died``; ``kill`` always ends the process and, through its supervisor, all that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from verifiers.v1.runtimes.base import RuntimeProcess

from rlm_env.repl.config import ReplConfig
from rlm_env.repl.protocol import BadFrame, Frame, FrameReader
from rlm_env.repl.worker import pack

ASK_SECONDS = 3.0
"""How long a worker gets to end itself and all that it started, when asked and when told. Killed before it is
done, it leaves what it had not come to."""


class Died(Exception):
    """The worker is gone, or no longer one that can be talked to; the message says how."""


class Worker:
    """One process and its frames."""

    def __init__(self, process: RuntimeProcess, config: ReplConfig) -> None:
        self.process = process
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
        # asyncio counts a process as ended only once its output was read to the end.
        discard = asyncio.create_task(self._discard())
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
        discard.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await discard

    async def _discard(self) -> None:
        with contextlib.suppress(Exception):
            while await self.reading():
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
