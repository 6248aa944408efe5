"""The process that reads pages: bytes in, text out. Run by `readers.py` as a script; imports nothing of ours.

HTML, PDF and regular expressions from outside can take for ever, take all memory, or crash a C library. So
they are handled in a process that has a memory limit and that is killed when it overruns: nothing that a page
or a model sends can hang or end the tool server.

Frames on stdin and stdout: 4 bytes of length (big-endian), then a JSON header; 4 bytes of length, then a
payload (may be empty). Requests: `{"do": "page", "content_type", "url", "max_chars", "max_pdf_pages"}` with
the body; `{"do": "scan", "pattern", "max_matches", "seconds"}` with the text. Replies: `{"ok":
true, ...}` with a payload, or `{"error": kind, "message": text}`.
"""

from __future__ import annotations

import io
import json
import re
import resource
import struct
import sys
from typing import Any, BinaryIO


class Problem(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


TEXT_TYPES = ("text/", "application/json", "application/xml", "application/ld+json", "application/rss+xml")
HTML_TYPES = ("text/html", "application/xhtml+xml")
OPAQUE_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/force-download")
_META_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([a-zA-Z0-9_.:-]+)""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]+encoding\s*=\s*["']([a-zA-Z0-9_.:-]+)""")
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def decode(body: bytes, header_charset: str) -> str:
    """Text of a page whose declared encoding may be absent or wrong.

    In order: byte-order mark; header; the page's own declaration; UTF-8; detection; each is believed only if
    the bytes decode under it. A declaration of latin-1 means windows-1252, as in browsers (WHATWG).
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    meta = _META_CHARSET.search(body[:4096]) or _XML_ENCODING.search(body[:200])
    declared = [header_charset, meta.group(1).decode("ascii") if meta else ""]
    for name in [*declared, "utf-8"]:
        if not name:
            continue
        name = "cp1252" if name.lower() in ("iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii") else name
        try:
            # A "latin-1" page that is valid UTF-8 with non-ASCII bytes is UTF-8 in practice.
            if name == "cp1252" and not body.isascii():
                try:
                    return body.decode("utf-8")
                except UnicodeDecodeError:
                    pass
            return body.decode(name)
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    from charset_normalizer import from_bytes

    matches = from_bytes(body[:200_000])
    best = matches.best()
    if best is None:
        return body.decode("cp1252", "replace")
    # Western text often reads as well in a neighbouring code page; windows-1252 is by far the likelier then.
    equal = [m for m in matches if (m.chaos, m.coherence) == (best.chaos, best.coherence)]
    name = "cp1252" if any(m.encoding == "cp1252" for m in equal) else best.encoding
    return body.decode(name, "replace")


def sniff(body: bytes, content_type: str) -> tuple[str, str]:
    """("html" | "pdf" | "text", charset) of a body. Raises Problem for what is neither."""
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    charset = ""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'")
    head = body[:1024].lstrip()
    if b"%PDF-" in body[:1024]:
        return "pdf", charset
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or charset.lower().startswith(("utf-16", "utf-32"))
    if b"\0" in body[:4096] and not wide:
        raise Problem("content_type", f"this is not a page of text but {media or 'binary data'}")
    markup = re.match(rb"(?is)<(!doctype html|html|head|body|\?xml|!--)", head.removeprefix(b"\xef\xbb\xbf"))
    if media in HTML_TYPES or (media in OPAQUE_TYPES and markup):
        return "html", charset
    if media == "application/pdf":
        raise Problem("unreadable", "the site says that this is a PDF, but it is not")
    if media.startswith(TEXT_TYPES) or media.endswith(("+json", "+xml")) or media in OPAQUE_TYPES:
        return ("html" if media == "text/plain" and head[:9].lower() == b"<!doctype" else "text"), charset
    raise Problem("content_type", f"only web pages, PDF and plain text can be read, this is {media}")


def read_html(body: bytes, charset: str, url: str) -> tuple[str, str]:
    """(title, Markdown) of a page: the main text with its tables and links, links absolute."""
    import trafilatura
    from trafilatura.settings import use_config

    config = use_config()
    config.set("DEFAULT", "MAX_FILE_SIZE", "1000000000")  # the fetcher limits the size
    source = decode(body, charset)
    tree = trafilatura.load_html(source)
    if tree is None:
        raise Problem("unreadable", "the page is not readable HTML")
    title = re.sub(r"\s+", " ", str(tree.findtext(".//title") or "")).strip()
    text = trafilatura.extract(
        tree,
        url=url,
        config=config,
        output_format="markdown",
        include_links=True,
        include_tables=True,
        include_comments=False,
        favor_recall=True,
    )
    plain, linked = all_text(source, url)
    # What trafilatura takes for boilerplate: pages of few words, and pages that are lists of links.
    if not text or (len(text) < 200 and len(plain) > 2 * len(text)) or linked > 0.5:
        text = plain
    return title, text


_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article aside blockquote br dd div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 "
        "header hr li main nav ol option p pre section table td th title tr ul",
    )
)
_SILENT = ("script", "style", "noscript", "template", "svg", "head")


def all_text(source: str, url: str) -> tuple[str, float]:
    """(every word of a page with its links as Markdown, share of the words that are links)."""
    import lxml.etree
    import lxml.html

    tree = lxml.html.document_fromstring(source)
    lxml.etree.strip_elements(tree, *_SILENT, lxml.etree.Comment, with_tail=False)
    tree.make_links_absolute(url, handle_failures="ignore")
    total = len("".join(tree.itertext()).split())
    linked = sum(len("".join(anchor.itertext()).split()) for anchor in tree.iter("a"))
    parts: list[str] = []
    for event, element in lxml.etree.iterwalk(tree, events=("start", "end")):
        tag = element.tag if isinstance(element.tag, str) else ""
        link = element.get("href", "") if tag == "a" else ""
        if event == "start":
            parts.append("\n" if tag in _BLOCKS else "[" if link.startswith("http") else "")
            parts.append(re.sub(r"\s+", " ", element.text or ""))
        else:
            parts.append("\n" if tag in _BLOCKS else f"]({link})" if link.startswith("http") else "")
            parts.append(re.sub(r"\s+", " ", element.tail or ""))
    lines = (line.strip() for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line), linked / max(1, total)


def read_pdf(body: bytes, max_pages: int) -> tuple[str, str, int]:
    """(title, text, pages) of a PDF; each page starts with a line `[page n]`."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Problem("unreadable", "the PDF is locked with a password")
        count = len(reader.pages)
        parts = []
        for number, page in enumerate(reader.pages[:max_pages], start=1):
            parts.append(f"[page {number}]\n{page.extract_text().strip()}")
        if count > max_pages:
            parts.append(f"[{count - max_pages} more pages are left out]")
        meta = reader.metadata
        title = str((meta.title if meta else None) or "").strip()
    except (Problem, MemoryError):
        raise
    except (PyPdfError, Exception) as error:
        # pypdf meets broken files with whatever its parsing trips over: KeyError, RecursionError, ...
        raise Problem("unreadable", f"the PDF is damaged ({type(error).__name__})") from None
    text = "\n".join(parts)
    if not re.sub(r"\[[^\]]*\]|\s", "", text):
        raise Problem("empty_page", "the PDF holds no text (it may be a scan)")
    return title, text, count


def clean(text: str) -> str:
    """`text` with one kind of line break and one kind of blank, without characters that show nothing.

    A no-break or thin space stands between words as any other does: left out, it would join them.
    """
    lines = "\n".join(text.splitlines()) + ("\n" if text.endswith(("\n", "\r")) else "")
    return "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "" for c in lines)


def page(request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    if not body.strip():
        raise Problem("empty_page", "the page is empty")
    kind, charset = sniff(body, request["content_type"])
    title, pages = "", 0
    if kind == "pdf":
        title, text, pages = read_pdf(body, request["max_pdf_pages"])
    elif kind == "html":
        title, text = read_html(body, charset, request["url"])
    else:
        text = decode(body, charset)
    text = clean(text)
    if not text.strip():
        raise Problem("empty_page", "the page holds no text (it may need a browser to show any)")
    cut = max(0, len(text) - request["max_chars"])
    text = text[: request["max_chars"]]
    return {
        "kind": kind,
        "title": " ".join(clean(title).split())[:300],
        "pages": pages,
        "cut": cut,
    }, text.encode("utf-8", "replace")


def scan(request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Numbers (from 1) of the lines that match; the time limit covers all lines together."""
    import time

    import regex

    try:
        pattern = regex.compile(request["pattern"], regex.IGNORECASE)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise Problem("bad_pattern", f"not a valid regular expression: {str(error)[:200]}") from None
    until = time.monotonic() + request["seconds"]
    found: list[int] = []
    total = 0
    for number, line in enumerate(payload.decode().split("\n"), start=1):
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            hit = pattern.search(line, timeout=left)
        except TimeoutError:
            raise Problem(
                "pattern_timeout",
                "the pattern takes too long to match; use a simpler one, without nested repeats",
            ) from None
        if hit is not None:
            total += 1
            if len(found) < request["max_matches"]:
                found.append(number)
    return {"lines": found, "total": total}, b""


def read_frame(stream: BinaryIO) -> bytes | None:
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    return stream.read(size)


def main() -> None:
    memory = int(sys.argv[1]) * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = sys.stdin.buffer
    sink = sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not break the frames
    while (head := read_frame(source)) is not None:
        payload = read_frame(source)
        if payload is None:
            return
        request = json.loads(head)
        try:
            reply, data = {"page": page, "scan": scan}[request["do"]](request, payload)
            reply["ok"] = True
        except Problem as problem:
            reply, data = {"error": problem.kind, "message": str(problem)}, b""
        except MemoryError:
            reply, data = {"error": "unreadable", "message": "the page needs too much memory to read"}, b""
        except Exception as error:  # anything a parser trips over is that page's failure
            reply = {"error": "unreadable", "message": f"the page could not be read ({type(error).__name__})"}
            data = b""
        text = json.dumps(reply).encode()
        sink.write(struct.pack(">I", len(text)) + text + struct.pack(">I", len(data)) + data)
        sink.flush()


if __name__ == "__main__":
    main()
