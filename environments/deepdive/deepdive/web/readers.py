"""The reader processes: a small pool, started at need, killed at overrun, replaced after a number of jobs.

A job has the worker to itself until it is done, so killing the worker ends that job and no other. See
`reader.py` for what runs inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, cast

from pydantic import Field
from pydantic_config import BaseConfig

from deepdive.web.errors import FAILURE_KINDS, FailureKind, ToolFailure

SCRIPT = Path(__file__).with_name("reader.py")


class ReaderConfig(BaseConfig):
    processes: int = Field(2, ge=1)
    """Reader processes at most; each holds about 60 MB once it has read a page."""
    seconds: float = Field(30.0, gt=0)
    """Limit for turning one page into text; the process is killed then."""
    memory_mb: int = Field(1024, ge=256)
    """Address space of a reader process."""
    jobs: int = Field(500, ge=1)
    """Jobs after which a reader process is replaced, against slow leaks in parsers."""
    max_chars: int = Field(2_000_000, ge=1000)
    """Text kept of a page, in characters."""
    max_pdf_pages: int = Field(400, ge=1)
    """Pages read of a PDF."""
    pattern_seconds: float = Field(2.0, gt=0)
    """Limit for matching a pattern against a page."""


class _Reader:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.jobs = 0

    @classmethod
    async def start(cls, memory_mb: int) -> _Reader:
        # -I: no PYTHON* settings and no working directory on the path. The environment is reduced too: what
        # parses foreign files has no use for keys.
        environment = {
            k: os.environ[k] for k in ("PATH", "LANG", "LC_ALL", "TMPDIR", "HOME") if k in os.environ
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(SCRIPT),
            str(memory_mb),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        return cls(process)

    async def ask(self, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """The reply. Raises IncompleteReadError or OSError when the process is gone."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        self.jobs += 1
        head = json.dumps(request).encode()
        stdin.write(struct.pack(">I", len(head)) + head + struct.pack(">I", len(payload)))
        stdin.write(payload)
        await stdin.drain()
        reply = json.loads(await stdout.readexactly(*struct.unpack(">I", await stdout.readexactly(4))))
        data = await stdout.readexactly(*struct.unpack(">I", await stdout.readexactly(4)))
        return reply, data

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Readers:
    """`page` and `scan` on a pool of reader processes. Close with `aclose`."""

    def __init__(self, config: ReaderConfig) -> None:
        self.config = config
        self._slots = asyncio.Semaphore(config.processes)
        self._idle: list[_Reader] = []
        self._all: set[_Reader] = set()

    async def page(self, body: bytes, content_type: str, url: str) -> tuple[dict[str, Any], str]:
        """({"kind", "title", "pages", "cut"}, text) of a body. Raises ToolFailure."""
        config = self.config
        request = {
            "do": "page",
            "content_type": content_type,
            "url": url,
            "max_chars": config.max_chars,
            "max_pdf_pages": config.max_pdf_pages,
        }
        overrun = ToolFailure(
            "unreadable", f"the page took longer than {config.seconds:g} s to turn into text"
        )
        reply, data = await self._job(request, body, config.seconds, overrun)
        return reply, data.decode()

    async def scan(self, text: str, pattern: str, max_matches: int) -> tuple[list[int], int]:
        """(numbers of the first matching lines, from 1; how many lines match). Raises ToolFailure."""
        request = {
            "do": "scan",
            "pattern": pattern,
            "max_matches": max_matches,
            "seconds": self.config.pattern_seconds,
        }
        overrun = ToolFailure("pattern_timeout", "the pattern takes too long to match; use a simpler one")
        # The matcher stops by itself; the kill behind it is for patterns that hang while compiling.
        limit = self.config.pattern_seconds + 5.0
        reply, _ = await self._job(request, text.encode(), limit, overrun)
        return reply["lines"], reply["total"]

    async def _job(
        self, request: dict[str, Any], payload: bytes, seconds: float, overrun: ToolFailure
    ) -> tuple[dict[str, Any], bytes]:
        async with self._slots:
            reader = self._idle.pop() if self._idle else await self._start()
            done = False
            try:
                async with asyncio.timeout(seconds):
                    reply, data = await reader.ask(request, payload)
                done = True
            except TimeoutError:
                raise overrun from None
            except (asyncio.IncompleteReadError, OSError):
                raise ToolFailure(
                    "unreadable",
                    "the page could not be read: the program that reads pages ran out of memory or crashed",
                ) from None
            finally:
                if done and reader.jobs < self.config.jobs:
                    self._idle.append(reader)
                else:
                    self._all.discard(reader)
                    await asyncio.shield(reader.kill())
        if "error" in reply:
            assert reply["error"] in FAILURE_KINDS, reply
            raise ToolFailure(cast(FailureKind, reply["error"]), reply["message"])
        return reply, data

    async def _start(self) -> _Reader:
        reader = await _Reader.start(self.config.memory_mb)
        self._all.add(reader)
        return reader

    async def aclose(self) -> None:
        readers, self._all, self._idle = self._all, set(), []
        for reader in readers:
            await reader.kill()
