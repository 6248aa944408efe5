"""The tools' texts: what they hold, where they are cut, and what is reported of a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from deepdive.web.cache import DiskCache
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetched
from deepdive.web.pages import PageStore
from deepdive.web.readers import ReaderConfig, Readers
from deepdive.web.search import Hit
from deepdive.web.tools import CallReport, ToolLimits, WebTools

LONG = "\n".join(f"entry {n}: the log of day {n}" for n in range(1, 3001))
LIMIT = 20_000


class Engine:
    name = "fake"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def search(self, query: str, count: int) -> list[Hit]:
        self.asked.append((query, count))
        if "broken" in query:
            raise ToolFailure("search", "the search engine failed: HTTP 500")
        size = 3000 if "wordy" in query else 10
        return [Hit(f"Title {n}", f"https://a.example/{n}", "s" * size, "3 May 1900") for n in range(count)]

    async def aclose(self) -> None: ...


async def _fetch(url: str) -> Fetched:
    if "missing" in url:
        raise ToolFailure("http_status", "HTTP 404: there is no such page")
    return Fetched(url.replace("moved", "here"), "text/plain", LONG.encode())


class Kit:
    def __init__(self, tools: WebTools, engine: Engine) -> None:
        self.tools, self.engine, self.report = tools, engine, CallReport("test")


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    readers = Readers(ReaderConfig(processes=1, seconds=300.0, pattern_seconds=60.0))
    engine = Engine()
    cache = DiskCache(tmp_path, days=1)
    pages = PageStore(_fetch, readers, cache, "test")
    yield Kit(WebTools(engine, pages, readers, cache, ToolLimits(LIMIT, 10, 20)), engine)
    await readers.aclose()


async def test_search_numbers_its_results_query_by_query(kit: Kit) -> None:
    text = await kit.tools.search_web(["  one  two ", "three", "three", ""], 2, kit.report)
    assert text == (
        "Results for 'one two':\n"
        "1. Title 0 (3 May 1900)\n   https://a.example/0\n   ssssssssss\n"
        "2. Title 1 (3 May 1900)\n   https://a.example/1\n   ssssssssss\n\n"
        "Results for 'three':\n"
        "1. Title 0 (3 May 1900)\n   https://a.example/0\n   ssssssssss\n"
        "2. Title 1 (3 May 1900)\n   https://a.example/1\n   ssssssssss"
    )
    assert kit.report.queries == ["one two", "three"]


async def test_search_takes_one_query_as_text_and_bounds_the_count(kit: Kit) -> None:
    await kit.tools.search_web("just one", 500, kit.report)
    await kit.tools.search_web("just two", -3, kit.report)
    assert kit.engine.asked == [("just one", 20), ("just two", 1)]


async def test_searches_are_cached(kit: Kit) -> None:
    first = await kit.tools.search_web("again", 3, kit.report)
    assert (await kit.tools.search_web("again", 3, kit.report)) == first
    assert await kit.tools.search_web("again", 4, kit.report) != first
    assert kit.engine.asked == [("again", 3), ("again", 4)]
    assert kit.report.cache_hits == 1


async def test_results_of_refused_hosts_are_not_shown(kit: Kit) -> None:
    """From the cache neither: they are left out whenever a result is shown."""
    await kit.tools.search_web("answers", 3, kit.report)
    limits = ToolLimits(LIMIT, 10, 20, refuse_hosts=("a.example",))
    careful = WebTools(kit.engine, kit.tools._pages, kit.tools._readers, kit.tools._cache, limits)
    assert await careful.search_web("answers", 3, kit.report) == (
        "Results for 'answers': none. Try other or fewer words."
    )
    assert kit.engine.asked == [("answers", 3)]


async def test_half_a_character_in_a_query_is_replaced(kit: Kit) -> None:
    await kit.tools.search_web("Undine \ud83d", 1, kit.report)
    assert kit.engine.asked == [("Undine ?", 1)]


async def test_one_failed_query_leaves_the_others(kit: Kit) -> None:
    text = await kit.tools.search_web(["broken", "fine"], 1, kit.report)
    assert "Results for 'broken': the search failed: the search engine failed: HTTP 500" in text
    assert "https://a.example/0" in text
    assert kit.report.failures == ["search"]


async def test_all_queries_failed_is_a_failure_that_names_each(kit: Kit) -> None:
    with pytest.raises(ToolFailure) as caught:
        await kit.tools.search_web(["broken a", "broken b"], 1, kit.report)
    assert "'broken a'" in caught.value.message
    assert "'broken b'" in caught.value.message
    assert [caught.value.kind, *kit.report.failures] == ["search", "search"]


@pytest.mark.parametrize("queries", [[], "", ["", "  "], ["x" * 501], [f"q{n}" for n in range(11)]])
async def test_searches_that_are_none(kit: Kit, queries: list[str] | str) -> None:
    with pytest.raises(ToolFailure) as caught:
        await kit.tools.search_web(queries, 3, kit.report)
    assert caught.value.kind == "bad_arguments"


async def test_long_results_are_shared_out_over_the_queries(kit: Kit) -> None:
    text = await kit.tools.search_web(["wordy a", "wordy b", "short"], 10, kit.report)
    assert len(text) <= LIMIT
    assert all(f"Results for '{query}':" in text for query in ("wordy a", "wordy b", "short"))
    assert text.count("[cut: ") == 2
    assert kit.report.cut


async def test_open_cuts_after_a_whole_line_and_says_how_to_go_on(kit: Kit) -> None:
    text = await kit.tools.open("https://a.example/moved", kit.report)
    assert len(text) <= LIMIT
    assert text.startswith("Title: (none)\nURL: https://a.example/here\nSize: 3000 lines, ")
    *body, note = text.split("\n\n", 1)[1].split("\n")
    last = int(body[-1].split(":")[0])
    assert body == [f"{n}: entry {n}: the log of day {n}" for n in range(1, last + 1)]
    assert note == f"[cut at 20,000 characters; go on with open_lines(url, '{last + 1}-3000')]"
    assert kit.report.cut
    assert kit.report.url == "https://a.example/here"
    rest = await kit.tools.open_lines("https://a.example/moved", f"{last + 1}-{last + 2}", CallReport("t"))
    assert rest.split("\n")[-2:] == [f"{n}: entry {n}: the log of day {n}" for n in (last + 1, last + 2)]


async def test_open_lines_gives_each_range_once(kit: Kit) -> None:
    text = await kit.tools.open_lines("https://a.example/x", "2990-9999, 5, 4-6", kit.report)
    body = text.split("\n\n", 1)[1].split("\n")
    expected = [f"{n}: entry {n}: the log of day {n}" for n in (4, 5, 6)]
    expected += ["...", *(f"{n}: entry {n}: the log of day {n}" for n in range(2990, 3001))]
    assert body == expected
    assert not kit.report.cut


async def test_scan_page_finds_lines_by_number(kit: Kit) -> None:
    text = await kit.tools.scan_page("https://a.example/x", r"DAY (7|42)$", kit.report)
    assert text.endswith(
        "2 lines match 'DAY (7|42)$':\n7: entry 7: the log of day 7\n42: entry 42: the log of day 42"
    )
    text = await kit.tools.scan_page("https://a.example/x", "whale", kit.report)
    assert "No line matches 'whale'" in text
    text = await kit.tools.scan_page("https://a.example/x", "entry", kit.report)
    assert "3000 lines match 'entry', the first 200 shown:" in text
    text = await kit.tools.scan_page("https://a.example/x", "", kit.report)
    assert text.endswith("20: entry 20: the log of day 20")


async def test_failures_keep_the_page_that_was_asked_for(kit: Kit) -> None:
    with pytest.raises(ToolFailure) as caught:
        await kit.tools.open("https://a.example/missing", kit.report)
    assert caught.value.kind == "http_status"
    assert kit.report.url == "https://a.example/missing"
    with pytest.raises(ToolFailure) as caught:
        await kit.tools.scan_page("https://a.example/x", "x" * 1001, kit.report)
    assert caught.value.kind == "bad_pattern"
