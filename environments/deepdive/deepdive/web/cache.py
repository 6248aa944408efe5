"""Searches and page texts on disk, shared by every process that points at the same folder.

One file an entry, named by the hash of its key, written beside its place and moved there in one step: a
reader sees a whole entry or none, whoever writes at the same time, and nobody waits for a lock. An entry that
does not read (a crash of the machine, another version) counts as absent. Within a process, equal requests
that overlap are made once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/deepdive`, else `~/.cache/deepdive`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deepdive"


class DiskCache:
    """Entries are JSON objects. `days` is how long they are good for."""

    def __init__(self, folder: Path, days: float) -> None:
        self.folder = folder
        self.seconds = days * 86_400
        self.write_failures = 0
        self._flights: dict[str, asyncio.Future[dict[str, Any]]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"the cache folder {folder} cannot be written ({error}); set taskset.tools.cache_dir"
            ) from error

    def path(self, kind: str, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / kind / name[:2] / f"{name}.json.z"

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        path = self.path(kind, key)
        try:
            if time.time() - path.stat().st_mtime > self.seconds:
                return None
            entry = json.loads(zlib.decompress(path.read_bytes()))
        except (OSError, ValueError, zlib.error):
            return None
        # The key is kept in the entry: it names what a file holds, and a foreign file is not taken for ours.
        return entry["value"] if isinstance(entry, dict) and entry.get("key") == key else None

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Store the entry; a disk that is full costs the entry, not the call."""
        path = self.path(kind, key)
        data = zlib.compress(json.dumps({"key": key, "value": value}).encode(), 6)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            self.write_failures += 1
            logger.warning("cache entry not written to %s: %s", path, error)
            temporary.unlink(missing_ok=True)

    async def fetch(
        self, kind: str, key: str, produce: Callable[[], Awaitable[dict[str, Any]]]
    ) -> tuple[dict[str, Any], bool]:
        """The entry, and whether it was there already. `produce` makes it otherwise; its exception reaches
        every caller that waits for the same key, and nothing is stored."""
        flight = f"{kind}\0{key}"
        while (running := self._flights.get(flight)) is not None:
            try:
                return await asyncio.shield(running), True
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not running.cancelled() or (task is not None and task.cancelling()):
                    raise
                # The caller that was producing has been cancelled, not this one: produce it here.
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._flights[flight] = future
        try:
            found = await asyncio.to_thread(self.get, kind, key)
            value = found if found is not None else await produce()
            if found is None:
                await asyncio.to_thread(self.put, kind, key, value)
            future.set_result(value)
            return value, found is not None
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # read here, so that a failure nobody else waits for is not logged as lost
            raise
        finally:
            del self._flights[flight]

    def prune(self) -> int:
        """Delete entries past their time and leftovers of writers that died. Returns how many."""
        gone = 0
        now = time.time()
        for path in self.folder.rglob("*"):
            limit = 3600.0 if path.name.endswith(".tmp") else self.seconds
            if not path.name.endswith((".tmp", ".json.z")):
                continue
            try:
                if now - path.stat().st_mtime > limit:
                    path.unlink()
                    gone += 1
            except OSError:
                continue  # another process was faster
        return gone
