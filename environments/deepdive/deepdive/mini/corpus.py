"""The shipped web of the invented world: pages by URL, as a server would send them."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from importlib.resources import files

from deepdive.mini.pages import Document
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetched

CORPUS = "corpus.jsonl.xz"
QUESTIONS = "questions.jsonl"
_TAGS = re.compile(r"<(title|nav|footer)\b.*?</\1>|<[^>]*>", re.DOTALL)


def pack(documents: list[Document]) -> bytes:
    """The archive: one JSON line a page, the body as latin-1 text, xz-compressed. Same in, same out."""
    lines = [
        json.dumps([d.url, d.title, d.content_type, d.body.decode("latin-1")], ensure_ascii=False)
        for d in documents
    ]
    return lzma.compress("\n".join(lines).encode(), preset=9)


def unpack(archive: bytes) -> list[Document]:
    rows = (json.loads(line) for line in lzma.decompress(archive).decode().split("\n"))
    return [Document(url, title, kind, body.encode("latin-1")) for url, title, kind, body in rows]


class Corpus:
    def __init__(self, documents: list[Document]) -> None:
        self.pages = {document.url: document for document in documents}

    @classmethod
    def load(cls) -> Corpus:
        return cls(unpack((files("deepdive.mini") / "data" / CORPUS).read_bytes()))

    async def fetch(self, url: str) -> Fetched:
        """The page as it is served. Raises ToolFailure for what is not in this web."""
        page = self.pages.get(url) or self.pages.get(url.replace("http://", "https://", 1).rstrip("/"))
        if page is None:
            raise ToolFailure("http_status", "HTTP 404: there is no such page")
        return Fetched(page.url, page.content_type, page.body)

    def documents(self) -> Iterator[tuple[str, str, str]]:
        """(url, title, text) for the search index."""
        for page in self.pages.values():
            yield page.url, page.title, _plain(page)


def _plain(page: Document) -> str:
    if page.content_type == "application/pdf":
        import io

        from pypdf import PdfReader

        return "\n".join(sheet.extract_text() for sheet in PdfReader(io.BytesIO(page.body)).pages)
    import html

    text = page.body.decode("utf-8" if "utf-8" in page.content_type else "cp1252")
    return html.unescape(_TAGS.sub(" ", text))
