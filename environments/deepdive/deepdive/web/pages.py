"""A page as the tools show it: numbered lines of text, in pieces that fit a result.

Lines are what `scan_page` finds and `open_lines` opens, so a page keeps the same numbers however it is looked
at. Paragraphs are folded to a bounded width: a line is a unit of reading, not a whole chapter.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepdive.web.cache import DiskCache
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetched, normalise_url
from deepdive.web.readers import Readers

LINE_WIDTH = 400
TEXT_VERSION = 2
"""Part of every cache key: raise it when the same bytes would give another text."""
_MEMORY_PAGES = 64
_RANGE = re.compile(r"\s*(?:lines?\s*)?(\d+)\s*(?:(?:-|–|:|to|\.\.)\s*(\d+))?\s*", re.IGNORECASE)
_MAX_RANGES = 500
_MAX_RANGE_CHARS = 60
"""Of one range. All episodes share the process that reads them: nothing long is matched."""

FetchBytes = Callable[[str], Awaitable[Fetched]]


@dataclass(frozen=True)
class Page:
    url: str
    """Where the text came from, after redirects."""
    title: str
    kind: str
    """`html`, `pdf` or `text`."""
    pdf_pages: int
    cut: int
    """Characters of the page beyond the limit, which are not there."""
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def header(self) -> str:
        """The metadata, one item a line."""
        size = f"{len(self.lines)} lines, {len(self.text):,} characters"
        if self.kind == "pdf":
            size += f", PDF of {self.pdf_pages} pages"
        if self.cut:
            size += f" (the last {self.cut:,} characters of this very long page are left out)"
        return f"Title: {self.title or '(none)'}\nURL: {self.url}\nSize: {size}"

    def numbered(self, numbers: Sequence[int]) -> list[str]:
        return [f"{number}: {self.lines[number - 1]}" for number in numbers]


_TOKEN = re.compile(r"\[[^\]\n]{0,300}\]\([^()\s]{0,2000}\)\S*|\S+")


def fold(text: str) -> tuple[str, ...]:
    """Lines of at most about LINE_WIDTH, broken between words; runs of empty lines become one. Links stay in
    one piece, and so do table rows up to four times that width, for they mean nothing in halves."""
    lines: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip()
        if not line and (not lines or not lines[-1]):
            continue
        if len(line) <= (4 * LINE_WIDTH if line.startswith("|") else LINE_WIDTH):
            lines.append(line)
            continue
        row = ""
        for token in _TOKEN.findall(line):
            if row and len(row) + 1 + len(token) > LINE_WIDTH:
                lines.append(row)
                row = ""
            row = f"{row} {token}" if row else token
            while len(row) > 4 * LINE_WIDTH:  # no blanks at all: base64, or a language without them
                lines.append(row[:LINE_WIDTH])
                row = row[LINE_WIDTH:]
        if row:
            lines.append(row)
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def parse_ranges(ranges: str | int | Sequence[Any], last: int) -> list[tuple[int, int]]:
    """Line ranges, first and last included, sorted, merged and clipped to 1..last.

    Takes "10-20, 35", ["10-20", "35"], [[10, 20], 35]. Raises ToolFailure `bad_arguments`.
    """
    pieces: list[Any] = (
        re.split(r"[,;]", ranges)
        if isinstance(ranges, str)
        else (list(ranges) if isinstance(ranges, Sequence) else [ranges])
    )
    if len(pieces) > _MAX_RANGES or sum(len(piece) for piece in pieces if isinstance(piece, str)) > 10_000:
        raise ToolFailure("bad_arguments", f"too many line ranges; give at most {_MAX_RANGES} a call")
    found: list[tuple[int, int]] = []
    for piece in pieces:
        if isinstance(piece, str):
            for part in re.split(r"[,;]", piece.strip("[]() ")):
                match = _RANGE.fullmatch(part) if len(part) <= _MAX_RANGE_CHARS else None
                if match is None:
                    raise ToolFailure(
                        "bad_arguments", f"not a line range: {part.strip()[:60]!r}; write '10-25, 40'"
                    )
                first = int(match[1])
                found.append((first, int(match[2] or first)))
        elif isinstance(piece, int):
            found.append((piece, piece))
        elif isinstance(piece, Sequence) and len(piece) == 2 and all(isinstance(n, int) for n in piece):
            found.append((piece[0], piece[1]))
        else:
            raise ToolFailure("bad_arguments", f"not a line range: {str(piece)[:60]!r}; write '10-25, 40'")
    clipped = sorted((max(1, a), min(last, b)) for a, b in found if a <= b and b >= 1 and a <= last)
    if not clipped:
        raise ToolFailure("bad_arguments", f"no such lines: the page has lines 1 to {last}")
    merged = [clipped[0]]
    for first, end in clipped[1:]:
        if first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return merged


class PageStore:
    """URL in, `Page` out: memory, then disk, then fetched and read. Raises ToolFailure."""

    def __init__(self, fetch: FetchBytes, readers: Readers, cache: DiskCache | None, space: str) -> None:
        self._fetch = fetch
        self._readers = readers
        self._cache = cache
        # `space` names the rules: pages fetched under others (a network allowed, a corpus, a longer limit)
        # are not handed to those without.
        self._space = f"{TEXT_VERSION} {space}"
        self._memory: OrderedDict[str, Page] = OrderedDict()

    async def page(self, url: str) -> tuple[Page, bool]:
        """The page, and whether it was at hand already."""
        url = normalise_url(url)
        if url in self._memory:
            self._memory.move_to_end(url)
            return self._memory[url], True
        if self._cache is None:
            entry, hit = await self._read(url), False
        else:
            entry, hit = await self._cache.fetch("pages", f"{self._space} {url}", lambda: self._read(url))
        page = Page(
            url=entry["url"],
            title=entry["title"],
            kind=entry["kind"],
            pdf_pages=entry["pages"],
            cut=entry["cut"],
            lines=fold(entry["text"]),
        )
        self._memory[url] = page
        while len(self._memory) > _MEMORY_PAGES:
            self._memory.popitem(last=False)
        return page, hit

    async def _read(self, url: str) -> dict[str, Any]:
        fetched = await self._fetch(url)
        about, text = await self._readers.page(fetched.body, fetched.content_type, fetched.url)
        return {"url": fetched.url, "text": text, **{k: about[k] for k in ("title", "kind", "pages", "cut")}}
