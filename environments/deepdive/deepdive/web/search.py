"""Search engines behind one call: Serper on the web, SQLite's FTS5 over the shipped corpus."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import httpx

from deepdive.web.errors import ToolFailure

SERPER_URL = "https://google.serper.dev/search"


@dataclass(frozen=True)
class Hit:
    title: str
    url: str
    snippet: str
    date: str = ""


class SearchEngine(Protocol):
    name: str
    """Part of the cache key: results of one engine are not another's."""

    async def search(self, query: str, count: int) -> list[Hit]:
        """At most `count` hits, best first; empty when nothing was found. Raises ToolFailure."""
        ...

    async def aclose(self) -> None: ...


class SerperSearch:
    """Google's results through serper.dev. The key is a header, and appears in no message."""

    def __init__(self, api_key: str, url: str, seconds: float, attempts: int, backoff_seconds: float) -> None:
        self.name = f"serper {url}"
        self._url = url
        self._attempts = attempts
        self._backoff = backoff_seconds
        self._client = httpx.AsyncClient(
            timeout=seconds, headers={"X-API-KEY": api_key}, limits=httpx.Limits(max_connections=64)
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def search(self, query: str, count: int) -> list[Hit]:
        for attempt in range(1, self._attempts + 1):
            try:
                return self._hits(await self._ask(query, count))[:count]
            except ToolFailure as failure:
                if not failure.retry or attempt == self._attempts:
                    raise
                await asyncio.sleep(self._backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    async def _ask(self, query: str, count: int) -> dict[str, Any]:
        try:
            response = await self._client.post(self._url, json={"q": query, "num": count})
        except httpx.TimeoutException:
            raise ToolFailure("timeout", "the search engine did not answer in time", retry=True) from None
        except httpx.HTTPError as error:
            text = f"the search engine cannot be reached ({type(error).__name__})"
            raise ToolFailure("search", text, retry=True) from None
        if response.status_code in (401, 403):
            text = "the search engine refused the key in SERPER_API_KEY; searching will not work in this run"
            raise ToolFailure("search", text)
        if response.status_code != 200:
            retry = response.status_code == 429 or response.status_code >= 500
            detail = "too many requests" if response.status_code == 429 else f"HTTP {response.status_code}"
            if "credits" in response.text.lower():
                detail, retry = "its account has no credits left", False
            raise ToolFailure("search", f"the search engine failed: {detail}", retry=retry)
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise ToolFailure("search", "the search engine's answer is not readable", retry=True)
        return data

    @staticmethod
    def _hits(data: dict[str, Any]) -> list[Hit]:
        hits: list[Hit] = []
        for key, label in (("answerBox", "Answer box"), ("knowledgeGraph", "Knowledge graph")):
            box = data.get(key)
            if isinstance(box, dict):
                facts = box.get("attributes") if isinstance(box.get("attributes"), dict) else {}
                text = [box.get("answer"), box.get("snippet"), box.get("description")]
                text += [f"{name}: {value}" for name, value in (facts or {}).items()]
                snippet = " · ".join(str(part) for part in text if part)
                url = box.get("link") or box.get("descriptionLink") or box.get("website") or ""
                if snippet:
                    hits.append(Hit(f"{label}: {box.get('title', '')}", str(url), snippet))
        for item in data.get("organic") or []:
            if isinstance(item, dict) and item.get("link"):
                hits.append(
                    Hit(
                        str(item.get("title", "")),
                        str(item["link"]),
                        str(item.get("snippet", "")),
                        str(item.get("date", "")),
                    )
                )
        return hits


class LocalSearch:
    """BM25 over documents given as (url, title, text), in an SQLite FTS5 table in memory.

    A query is a bag of its words, any of which may be missing; the title counts eight times the text.
    """

    name = "local"

    def __init__(self, documents: Iterable[tuple[str, str, str]]) -> None:
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute(
            "CREATE VIRTUAL TABLE pages USING fts5("
            "url UNINDEXED, title, body, tokenize = 'porter unicode61 remove_diacritics 2')"
        )
        self._base.executemany("INSERT INTO pages VALUES (?, ?, ?)", documents)
        self._base.commit()

    async def aclose(self) -> None:
        self._base.close()

    async def search(self, query: str, count: int) -> list[Hit]:
        words = dict.fromkeys(re.findall(r"\w+", query.casefold()))
        if not words:
            raise ToolFailure("bad_arguments", f"the query has no words in it: {query[:60]!r}")
        # Quoted words joined by OR: nothing in a query is syntax, and no word has to be there.
        expression = " OR ".join(f'"{word}"' for word in list(words)[:64])
        rows = self._base.execute(
            "SELECT title, url, snippet(pages, 2, '', '', ' … ', 40) FROM pages WHERE pages MATCH ? "
            "ORDER BY bm25(pages, 0.0, 8.0, 1.0), url LIMIT ?",
            (expression, count),
        ).fetchall()
        return [Hit(title, url, re.sub(r"\s+", " ", text).strip()) for title, url, text in rows]


def to_json(hits: list[Hit]) -> dict[str, Any]:
    return {"hits": [asdict(hit) for hit in hits]}


def from_json(entry: dict[str, Any]) -> list[Hit]:
    return [Hit(**hit) for hit in entry["hits"]]


def render(query: str, hits: list[Hit]) -> str:
    """The results of one query as the model reads them."""
    if not hits:
        return f"Results for {query!r}: none. Try other or fewer words."
    lines = [f"Results for {query!r}:"]
    for number, hit in enumerate(hits, start=1):
        date = f" ({hit.date})" if hit.date else ""
        lines.append(f"{number}. {hit.title}{date}\n   {hit.url}\n   {hit.snippet}".rstrip())
    return "\n".join(lines)
