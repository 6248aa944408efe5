"""Serper against a server that speaks its protocol, and the local index on the shipped corpus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from deepdive.mini.corpus import Corpus
from deepdive.web.errors import ToolFailure
from deepdive.web.search import Hit, LocalSearch, SerperSearch, render

KEY = "serper-key-1234567890"
FULL = {
    "searchParameters": {"q": "x"},
    "answerBox": {"title": "Undine", "answer": "1887", "link": "https://a.example/box"},
    "knowledgeGraph": {"title": "Undine", "description": "A ship.", "attributes": {"Launched": "1887"}},
    "organic": [
        {"title": f"T{n}", "link": f"https://a.example/{n}", "snippet": f"S{n}", "position": n}
        for n in range(1, 9)
    ],
}


@asynccontextmanager
async def serper(answer: Callable[[dict[str, Any], int], web.Response]):
    """A search engine whose n-th answer is `answer(body, n)`; yields (engine, requests)."""
    seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((dict(request.headers), body))
        return answer(body, len(seen))

    app = web.Application()
    app.router.add_post("/search", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    engine = SerperSearch(KEY, f"http://{host}:{port}/search", seconds=120, attempts=3, backoff_seconds=0.0)
    try:
        yield engine, seen
    finally:
        await engine.aclose()
        await runner.cleanup()


async def test_results_with_boxes_first() -> None:
    async with serper(lambda body, n: web.json_response(FULL)) as (engine, seen):
        hits = await engine.search("who built the Undine", 5)
    headers, body = seen[0]
    assert headers["X-API-KEY"] == KEY
    assert body == {"q": "who built the Undine", "num": 5}
    assert hits[0] == Hit("Answer box: Undine", "https://a.example/box", "1887")
    assert hits[1].snippet == "A ship. · Launched: 1887"
    assert [hit.url for hit in hits[2:]] == [f"https://a.example/{n}" for n in (1, 2, 3)]


async def test_nothing_found_is_not_a_failure() -> None:
    async with serper(lambda body, n: web.json_response({"organic": []})) as (engine, _):
        hits = await engine.search("qwxz", 5)
    assert hits == []
    assert "none" in render("qwxz", hits)


async def test_passing_failures_are_tried_again() -> None:
    def answer(body: dict[str, Any], n: int) -> web.Response:
        return [web.Response(status=429), web.Response(status=503), web.json_response(FULL)][n - 1]

    async with serper(answer) as (engine, seen):
        assert len(await engine.search("x", 3)) == 3
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("reply", "tries", "words"),
    [
        (lambda: web.Response(status=403, text=f"bad key {KEY}"), 1, "SERPER_API_KEY"),
        (lambda: web.json_response({"message": "Not enough credits"}, status=400), 1, "no credits"),
        (lambda: web.Response(status=404), 1, "404"),
        (lambda: web.Response(status=500), 3, "500"),
        (lambda: web.Response(text="<html>not json"), 3, "not readable"),
        (lambda: web.json_response([1]), 3, "not readable"),
    ],
)
async def test_failures_say_why_and_never_the_key(reply: Any, tries: int, words: str) -> None:
    async with serper(lambda body, n: reply()) as (engine, seen):
        with pytest.raises(ToolFailure) as caught:
            await engine.search("x", 3)
    assert len(seen) == tries
    assert words in caught.value.message
    assert KEY not in caught.value.message
    assert caught.value.kind == "search"


async def test_an_engine_that_is_not_there() -> None:
    engine = SerperSearch(KEY, "http://127.0.0.1:9/search", seconds=120, attempts=1, backoff_seconds=0)
    with pytest.raises(ToolFailure) as caught:
        await engine.search("x", 3)
    await engine.aclose()
    assert caught.value.kind == "search"


@pytest.fixture(scope="module")
def index() -> LocalSearch:
    return LocalSearch(Corpus.load().documents())


async def test_every_page_is_found_by_its_title(index: LocalSearch) -> None:
    """Search quality. A name that others contain ("Sable Coast") may be outdone by them, not by much."""
    documents = [item for item in Corpus.load().documents() if "/index/" not in item[0]]
    ranks = []
    for url, title, _ in documents:
        urls = [hit.url for hit in await index.search(title, 10)]
        ranks.append(urls.index(url) if url in urls else 10)
    assert sum(rank == 0 for rank in ranks) / len(documents) > 0.9
    assert max(ranks) < 5, [documents[n][1] for n, rank in enumerate(ranks) if rank >= 5]


@pytest.mark.parametrize(
    "query",
    ['"', "a OR", "NEAR(", "title:x*", "ship -built", "x AND (", "ünïcode", "'; DROP TABLE pages; --"],
)
async def test_queries_are_words_never_syntax(index: LocalSearch, query: str) -> None:
    if query == '"':
        with pytest.raises(ToolFailure, match="no words"):
            await index.search(query, 5)
    else:
        await index.search(query, 5)
    assert len(await index.search("ship Calliope", 5)) == 5


async def test_accents_case_and_word_forms_do_not_matter(index: LocalSearch) -> None:
    title = next(t for _, t, _ in Corpus.load().documents() if "ø" not in t and not t.isascii() and " " in t)
    plain = title.translate(str.maketrans("äöü", "aou")).upper()
    assert plain.isascii()
    assert (await index.search(plain, 3))[0].title == title
    assert {h.url for h in await index.search("expeditions", 20)} == {
        h.url for h in await index.search("expedition", 20)
    }
