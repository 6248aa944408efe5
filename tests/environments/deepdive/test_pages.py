"""Bytes to numbered lines: encodings, PDF, what is no page at all, and pages that try to hang the reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import psutil
import pytest
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetcher
from deepdive.web.pages import LINE_WIDTH, PageStore, fold, parse_ranges
from deepdive.web.readers import ReaderConfig, Readers

from tests.environments.deepdive import site as sites


async def read(readers: Readers, name: str) -> tuple[dict, str]:
    body, kind = sites.RAW[name]
    return await readers.page(body, kind, f"https://site.example/raw/{name}")


async def refuse(readers: Readers, name: str) -> ToolFailure:
    with pytest.raises(ToolFailure) as caught:
        await read(readers, name)
    return caught.value


@pytest.mark.parametrize(
    "name",
    ["utf8-declared-cp1252-sent", "latin1-declared-utf8-sent", "meta-only", "utf16-bom",
     "unknown-charset", "no-type"],
)  # fmt: skip
async def test_wrong_and_missing_encodings(readers: Readers, name: str) -> None:
    about, text = await read(readers, name)
    assert "Grüße aus Köln über die Straße, naïve façade — “quoted”." in text
    assert about["title"] == "A page"


async def test_declared_in_the_page(readers: Readers) -> None:
    _, text = await read(readers, "shift-jis-meta")
    assert "灯台守は船の名前を書き留めた" in text


async def test_pdf(readers: Readers) -> None:
    about, text = await read(readers, "pdf")
    assert (about["kind"], about["title"], about["pages"]) == ("pdf", "Muster roll", 2)
    assert text.split("\n") == ["[page 1]", "The ship Undine", "Crew: 31", "[page 2]", "Second sheet"]
    assert "The ship Undine" in (await read(readers, "pdf-as-octets"))[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pdf-cut", "unreadable"), ("pdf-garbage", "unreadable"), ("pdf-not", "unreadable"),
     ("pdf-scan", "empty_page"), ("png", "content_type"), ("zip-as-html", "content_type"),
     ("video", "content_type"), ("empty", "empty_page"), ("only-script", "empty_page")],
)  # fmt: skip
async def test_what_cannot_be_read_says_why(readers: Readers, name: str, kind: str) -> None:
    found = await refuse(readers, name)
    assert found.kind == kind
    assert len(found.message) > 15


async def test_text_that_is_not_html(readers: Readers) -> None:
    assert (await read(readers, "json"))[1] == '{"ships": ["Calliope", "Undine"]}'
    assert (await read(readers, "plain"))[1] == "first line\nsecond line\n"


async def test_blanks_of_every_kind_keep_words_apart(readers: Readers) -> None:
    _, text = await read(readers, "spaces")
    assert text == "Mr. Smith has 10 000 km, no\nmore\nthan\nthat\n"


async def test_a_title_is_one_line(readers: Readers) -> None:
    body = sites.pdf([["Crew: 31"]], "Muster\nURL: https://b.example/  roll")
    about, _ = await readers.page(body, "application/pdf", "https://a.example/")
    assert about["title"] == "Muster URL: https://b.example/ roll"


async def test_lists_of_links_keep_their_links(readers: Readers) -> None:
    _, text = await read(readers, "links")
    assert "[Entry 7](https://site.example/p/7)" in text


async def test_control_characters_do_not_reach_the_model(readers: Readers) -> None:
    _, text = await read(readers, "control")
    assert "Paragraph 3" in text
    assert not set(text) & {"\x07", "\u202e"}


async def test_a_failure_costs_no_other_page(readers: Readers) -> None:
    for name in ("pdf-garbage", "deep", "png"):
        try:
            await read(readers, name)
        except ToolFailure:
            pass
    assert "Undine" in (await read(readers, "pdf"))[1]


async def test_a_reader_that_hangs_is_killed_and_the_next_page_is_read(readers: Readers) -> None:
    await read(readers, "pdf")
    (reader,) = readers._all
    os.kill(reader.process.pid, signal.SIGSTOP)  # hangs as a parser in an endless loop does, only surely
    readers.config.seconds = 0.3
    assert (await refuse(readers, "pdf")).kind == "unreadable"
    assert reader.process.returncode == -signal.SIGKILL
    readers.config.seconds = 300.0
    assert "Undine" in (await read(readers, "pdf"))[1]


async def test_a_reader_that_dies_is_replaced(readers: Readers) -> None:
    await read(readers, "pdf")
    (reader,) = readers._all
    reader.process.kill()
    assert (await refuse(readers, "pdf")).kind == "unreadable"
    assert "Undine" in (await read(readers, "pdf"))[1]


async def test_readers_leave_no_process_behind() -> None:
    readers = Readers(ReaderConfig(processes=2, seconds=300.0))
    await asyncio.gather(*(read(readers, "pdf") for _ in range(6)))
    # Handles that know when each process began: its number may soon be another process's.
    processes = [psutil.Process(reader.process.pid) for reader in readers._all]
    assert 1 <= len(processes) <= 2
    await readers.aclose()
    assert not any(process.is_running() for process in processes)


async def test_a_page_that_takes_all_memory_is_a_failure() -> None:
    readers = Readers(ReaderConfig(processes=1, memory_mb=256, seconds=300.0))
    try:
        with pytest.raises(ToolFailure) as caught:
            await readers.page(b"<p>x" * 10_000_000, "text/html", "https://a.example/")
        assert caught.value.kind == "unreadable"
        assert "Undine" in (await read(readers, "pdf"))[1]
    finally:
        await readers.aclose()


async def test_text_beyond_the_limit_is_left_out_and_counted() -> None:
    readers = Readers(ReaderConfig(processes=1, max_chars=1000, seconds=300.0))
    try:
        about, text = await readers.page(b"abcdefghi\n" * 500, "text/plain", "https://a.example/")
    finally:
        await readers.aclose()
    assert (len(text), about["cut"]) == (1000, 4000)


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|aa)+$", r"(a*)*b", r"(.*a){25}$", r"((a{0,99}){0,99}){0,99}b"]
)
async def test_patterns_cannot_hang_the_server(readers: Readers, pattern: str) -> None:
    """Whether the matcher is clever about a pattern or stops: the pool answers, and goes on."""
    readers.config.pattern_seconds = 0.3
    started = time.monotonic()
    with contextlib.suppress(ToolFailure):
        await readers.scan("\n".join(["a" * 60 + "!"] * 40), pattern, 10)
    assert time.monotonic() - started < 120  # without an end to it, it would take years
    readers.config.pattern_seconds = 60.0
    assert await readers.scan("one\ntwo", "TWO", 10) == ([2], 1)


async def test_a_pattern_known_to_explode_is_stopped(readers: Readers) -> None:
    readers.config.pattern_seconds = 0.3
    with pytest.raises(ToolFailure) as caught:
        await readers.scan("\n".join(["x" * 3000] * 2000), r"(x+x+)+y|(x*)*z{2}", 10)
    assert caught.value.kind == "pattern_timeout"


@pytest.mark.parametrize("pattern", ["(", "[a", "a{2,1}", "(?P<x>a)(?P<x", "*"])
async def test_bad_patterns_say_so(readers: Readers, pattern: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        await readers.scan("text", pattern, 10)
    assert caught.value.kind == "bad_pattern"


def test_fold_keeps_every_word_links_whole_and_lines_short() -> None:
    link = "[the name of it](https://a.example/some/rather/long/path/that/goes/on)"
    text = " ".join(["word"] * 95 + [link] + ["tail"] * 200)
    lines = fold(f"{text}\n\n\n\n| a | b |\n\n")
    assert " ".join(lines[:-2]) == text
    assert lines[-2:] == ("", "| a | b |")
    assert sum(link in line for line in lines) == 1
    assert all(len(line) <= LINE_WIDTH for line in lines)
    assert max(len(line) for line in fold("x" * 10_000)) <= 4 * LINE_WIDTH


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ("3-5", [(3, 5)]),
        ("3-5, 7", [(3, 5), (7, 7)]),
        ("8-12, 1-3; 4", [(1, 4), (8, 12)]),
        (["2-3", "90-200"], [(2, 3), (90, 100)]),
        ("lines 4 to 6", [(4, 6)]),
        ([[1, 2], 5], [(1, 2), (5, 5)]),
        ("0-2", [(1, 2)]),
        (17, [(17, 17)]),
        ("[5-6]", [(5, 6)]),
    ],
)
def test_ranges(ranges: object, expected: list[tuple[int, int]]) -> None:
    assert parse_ranges(ranges, 100) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ranges",
    ["", "abc", "5-3", "101-110", "1-2-3", [[1, 2, 3]], [None], "-5", "1" * 5000, "1" + " " * 1_000_000 + "x",
     "1," * 500_000, [1] * 501, ["1-2"] * 501, "1" + " " * 9000 + "x"],
    ids=lambda ranges: str(ranges)[:12],
)  # fmt: skip
def test_ranges_that_are_none(ranges: object) -> None:
    with pytest.raises(ToolFailure) as caught:
        parse_ranges(ranges, 100)  # type: ignore[arg-type]
    assert caught.value.kind == "bad_arguments"


async def test_pages_come_from_memory_the_second_time(site: sites.Site, readers: Readers) -> None:
    fetcher = Fetcher(sites.config())
    store = PageStore(fetcher.fetch, readers, None, "web")
    try:
        first, hit = await store.page(f"{site.base}/article#top")
        again, second = await store.page(f"{site.base}/article")
    finally:
        await fetcher.aclose()
    assert (hit, second) == (False, True)
    assert first == again
    assert site.hits["/article"] == 1
