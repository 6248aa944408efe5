"""One cache folder, several processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from deepdive.web.cache import DiskCache, default_cache_dir
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetcher
from deepdive.web.pages import PageStore
from deepdive.web.readers import Readers

from tests.environments.deepdive import site as sites


def _hammer(folder: str, worker: int, rounds: int, queue: Any) -> None:
    """Writes and reads the same few keys; reports how many entries it read, and any that was not whole."""
    cache = DiskCache(Path(folder), days=1)
    read = broken = 0
    for number in range(rounds):
        key = f"key {number % 5}"
        cache.put("pages", key, {"text": f"{worker}:" + "x" * 20_000, "worker": worker})
        entry = cache.get("pages", key)
        read += entry is not None
        broken += entry is None or entry["text"] != f"{entry['worker']}:" + "x" * 20_000
    queue.put((read, broken, cache.write_failures))


@pytest.mark.timeout(900)  # four processes that have all to import
def test_processes_that_write_the_same_entries_read_whole_ones(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_hammer, args=(str(tmp_path), n, 150, queue)) for n in range(4)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == [(150, 0, 0)] * 4
    assert len(list(tmp_path.rglob("*.json.z"))) == 5
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_damaged_foreign_or_old_counts_as_absent(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, days=1)
    cache.put("pages", "a", {"n": 1})
    path = cache.path("pages", "a")
    whole = path.read_bytes()
    assert cache.get("pages", "a") == {"n": 1}
    assert cache.get("pages", "b") is None
    for data in (whole[: len(whole) // 2], b"", b"not compressed"):
        path.write_bytes(data)
        assert cache.get("pages", "a") is None
    # Another key's entry under this key's name.
    cache.put("pages", "b", {"n": 2})
    os.replace(cache.path("pages", "b"), path)
    assert cache.get("pages", "a") is None
    path.write_bytes(whole)
    os.utime(path, (time.time() - 90_000,) * 2)
    assert cache.get("pages", "a") is None


def test_prune_takes_old_entries_and_leftovers_only(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, days=1)
    for key in ("old", "new"):
        cache.put("pages", key, {})
    os.utime(cache.path("pages", "old"), (time.time() - 90_000,) * 2)
    leftover = cache.path("pages", "new").with_name(".x.123.tmp")
    leftover.write_bytes(b"half")
    fresh = leftover.with_name(".y.123.tmp")
    fresh.write_bytes(b"being written")
    os.utime(leftover, (time.time() - 4000,) * 2)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not ours")
    os.utime(foreign, (0, 0))
    assert cache.prune() == 2
    assert cache.get("pages", "new") == {}
    assert fresh.exists()
    assert foreign.exists()


async def test_equal_requests_at_a_time_are_made_once(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, days=1)
    made = 0

    async def produce() -> dict[str, Any]:
        nonlocal made
        made += 1
        await asyncio.sleep(0.05)
        return {"n": made}

    results = await asyncio.gather(*(cache.fetch("searches", "q", produce) for _ in range(20)))
    assert made == 1
    assert [value for value, _ in results] == [{"n": 1}] * 20
    assert [hit for _, hit in results].count(False) == 1
    assert await DiskCache(tmp_path, days=1).fetch("searches", "q", produce) == ({"n": 1}, True)


async def test_failures_are_told_to_all_and_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, days=1)

    async def fail() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        raise ToolFailure("timeout", "no")

    async def work() -> dict[str, Any]:
        return {"n": 1}

    results = await asyncio.gather(*(cache.fetch("s", "q", fail) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, ToolFailure) for result in results)
    assert await cache.fetch("s", "q", work) == ({"n": 1}, False)


async def test_a_cancelled_request_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, days=1)

    producing, go = asyncio.Event(), asyncio.Event()

    async def produce() -> dict[str, Any]:
        producing.set()
        await go.wait()
        return {"n": 1}

    first = asyncio.create_task(cache.fetch("s", "q", produce))
    await producing.wait()
    second = asyncio.create_task(cache.fetch("s", "q", produce))
    await asyncio.sleep(0)  # it starts, and waits for the first
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go.set()
    assert (await second)[0] == {"n": 1}
    producing.clear()
    go.clear()
    third = asyncio.create_task(cache.fetch("s", "other", produce))
    await producing.wait()
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"taskset\.tools\.cache_dir"):
        DiskCache(blocked / "cache", days=1)


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "deepdive"


async def test_pages_are_shared_over_the_folder_but_not_over_fetching_rules(
    site: sites.Site, readers: Readers, tmp_path: Path
) -> None:
    fetcher = Fetcher(sites.config())

    def store(space: str) -> PageStore:
        return PageStore(fetcher.fetch, readers, DiskCache(tmp_path, days=1), space)

    try:
        url = f"{site.base}/article"
        first, hit = await store("web ['127.0.0.1/32']").page(url)
        assert not hit
        assert await store("web ['127.0.0.1/32']").page(url) == (first, True)
        assert site.hits["/article"] == 1
        # Who may not fetch this network gets nothing of it from the cache either.
        assert (await store("web []").page(url))[1] is False
        assert site.hits["/article"] == 2
    finally:
        await fetcher.aclose()
