"""The four tools, as functions from arguments to text. How they are served is `deepdive.server`'s matter.

Every result is bounded; what is left out is told, with the call that shows it. Every failure is a
`ToolFailure`. What a call did is written into its `CallReport`, from which the episode's metrics are made.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepdive.web.cache import DiskCache
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import refused_host
from deepdive.web.pages import Page, PageStore, parse_ranges
from deepdive.web.readers import Readers
from deepdive.web.search import SearchEngine, from_json, render, to_json

MAX_PATTERN = 1000
MAX_MATCHES = 200
MAX_QUERY = 500


@dataclass
class CallReport:
    """What one call of a tool did."""

    tool: str
    queries: list[str] = field(default_factory=list)
    url: str | None = None
    """The page that was asked for, when the call got as far as a page."""
    failures: list[str] = field(default_factory=list)
    """Kinds, one for each query or page that failed."""
    cache_hits: int = 0
    cut: bool = False
    """Whether the result was cut to the limit."""
    failed: bool = False
    """Whether the call as a whole gave nothing but a message."""


@dataclass(frozen=True)
class ToolLimits:
    result_chars: int
    max_queries: int
    max_results: int
    refuse_hosts: tuple[str, ...] = ()
    """Hosts whose pages are not shown in search results; the fetcher does not open them either."""


class WebTools:
    def __init__(
        self,
        engine: SearchEngine,
        pages: PageStore,
        readers: Readers,
        cache: DiskCache | None,
        limits: ToolLimits,
    ) -> None:
        self._engine = engine
        self._pages = pages
        self._readers = readers
        self._cache = cache
        self._limits = limits

    async def search_web(self, queries: Sequence[str] | str, num_results: int, report: CallReport) -> str:
        """The results of all queries, each with a budget of its own. Raises ToolFailure when all fail."""
        wanted = _queries(queries)
        if len(wanted) > self._limits.max_queries:
            raise ToolFailure("bad_arguments", f"at most {self._limits.max_queries} queries a call")
        count = max(1, min(int(num_results), self._limits.max_results))
        report.queries.extend(wanted)
        outcomes = await asyncio.gather(
            *(self._one_query(query, count) for query in wanted), return_exceptions=True
        )
        parts: list[str] = []
        for query, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, ToolFailure):
                report.failures.append(outcome.kind)
                parts.append(f"Results for {query!r}: the search failed: {outcome.message}")
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                text, hit = outcome
                report.cache_hits += hit
                parts.append(text)
        if len(report.failures) == len(wanted):
            failures = [outcome for outcome in outcomes if isinstance(outcome, ToolFailure)]
            report.failures.clear()  # counted by whoever catches this one
            report.failures.extend(failure.kind for failure in failures[1:])
            raise ToolFailure(failures[0].kind, "\n\n".join(parts))
        share = self._limits.result_chars // len(parts) - 2
        return "\n\n".join(
            self._cut(part, share, report, "ask for fewer results or queries") for part in parts
        )

    async def _one_query(self, query: str, count: int) -> tuple[str, bool]:
        async def produce() -> dict[str, Any]:
            return to_json(await self._engine.search(query, count))

        if self._cache is None:
            entry, hit = await produce(), False
        else:
            key = json.dumps([self._engine.name, count, query])
            entry, hit = await self._cache.fetch("searches", key, produce)
        hits = [item for item in from_json(entry) if not refused_host(item.url, self._limits.refuse_hosts)]
        return render(query, hits), hit

    async def scan_page(self, url: str, pattern: str, report: CallReport) -> str:
        """Metadata, and the lines that match `pattern` (a regular expression, case ignored); without a
        pattern the first lines."""
        page = await self._page(url, report)
        if len(pattern) > MAX_PATTERN:
            raise ToolFailure("bad_pattern", f"the pattern is longer than {MAX_PATTERN} characters")
        if not pattern.strip():
            numbers, total = list(range(1, min(20, len(page.lines)) + 1)), 0
            title = f"No pattern was given; the first {len(numbers)} lines:"
        else:
            numbers, total = await self._readers.scan(page.text, pattern, MAX_MATCHES)
            shown = f", the first {len(numbers)} shown" if total > len(numbers) else ""
            title = f"{total} lines match {pattern!r}{shown}:"
            if total == 0:
                title = f"No line matches {pattern!r}. Try a shorter pattern, or open the page."
        text = "\n".join([page.header(), "", title, *page.numbered(numbers)])
        return self._cut(text, self._limits.result_chars, report, "use a narrower pattern, or open_lines")

    async def open_lines(self, url: str, ranges: Any, report: CallReport) -> str:
        """The lines of the ranges, numbered."""
        page = await self._page(url, report)
        spans = parse_ranges(ranges, len(page.lines))
        blocks = ["\n".join(page.numbered(range(first, last + 1))) for first, last in spans]
        return self._cut_lines(page.header() + "\n\n", "\n...\n".join(blocks), page, report)

    async def open(self, url: str, report: CallReport) -> str:
        """The page from its first line on, as far as a result holds."""
        page = await self._page(url, report)
        body = "\n".join(page.numbered(range(1, len(page.lines) + 1)))
        return self._cut_lines(page.header() + "\n\n", body, page, report)

    async def _page(self, url: str, report: CallReport) -> Page:
        report.url = url[:2000]
        page, hit = await self._pages.page(url)
        report.url = page.url
        report.cache_hits += hit
        return page

    def _cut(self, text: str, limit: int, report: CallReport, advice: str) -> str:
        if len(text) <= limit:
            return text
        report.cut = True
        note = f"\n[cut: {len(text) - limit:,} more characters; {advice}]"
        return text[: max(0, limit - len(note))] + note

    def _cut_lines(self, header: str, body: str, page: Page, report: CallReport) -> str:
        """Header and body within the limit, cut after a whole line, with the number to go on from."""
        limit = self._limits.result_chars
        if len(header) + len(body) <= limit:
            return header + body
        report.cut = True
        kept = body[: limit - len(header) - 120].rsplit("\n", 1)[0]
        last = next((line for line in reversed(kept.split("\n")) if line.split(":")[0].isdigit()), "0:")
        following = int(last.split(":")[0]) + 1
        note = f"\n[cut at {limit:,} characters; go on with open_lines(url, '{following}-{len(page.lines)}')]"
        return header + kept + note


def _queries(queries: Sequence[str] | str) -> list[str]:
    """The queries without blanks and repetitions. Raises ToolFailure when none is left."""
    listed = [queries] if isinstance(queries, str) else list(queries)
    # JSON can hold half a character (a lone surrogate), which no search engine takes.
    texts = [str(query).encode(errors="replace").decode() for query in listed]
    wanted = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if not wanted:
        raise ToolFailure("bad_arguments", "give at least one query")
    if any(len(query) > MAX_QUERY for query in wanted):
        raise ToolFailure("bad_arguments", f"a query has at most {MAX_QUERY} characters")
    return wanted
