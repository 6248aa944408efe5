"""A small and badly behaved web site on loopback, and an internal service that nobody may reach."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from deepdive.mini.pages import pdf
from deepdive.web.fetch import FetchConfig

ARTICLE = "".join(
    f"<p>Paragraph {n}: the keeper of the lighthouse counted {n} ships and wrote their names down.</p>"
    for n in range(30)
)


def page(body: str, head: str = "") -> str:
    title = "<title>A page</title>"
    return f"<!DOCTYPE html><html><head>{title}{head}</head><body><main>{body}</main></body></html>"


class Site:
    """Answers by path. `hits` counts requests, `base` is the address, `internal` the other service's."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.internal_hits = 0
        self.base = self.internal = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.hits[path] += 1
        self.headers.append(dict(request.headers))
        name = path.strip("/").replace("-", "_").split("/")[0]
        method = getattr(self, f"_{name}", None)
        if method is None:
            return web.Response(status=404, text="nothing here")
        return await method(request)

    async def _article(self, request: web.Request) -> web.Response:
        return web.Response(text=page(ARTICLE), content_type="text/html")

    async def _to(self, request: web.Request) -> web.Response:
        """Redirects to the query's `url`."""
        raise web.HTTPFound(request.query["url"])

    async def _secret_way(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("http://www.answers.example/all")

    async def _around(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("/around")

    async def _chain(self, request: web.Request) -> web.Response:
        left = int(request.query["n"])
        raise web.HTTPFound(f"/chain?n={left - 1}" if left else "/article")

    async def _declared_huge(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "5000000000", "Content-Type": "text/html"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(b"x" * 1000)
            await asyncio.sleep(5)
        return response

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"<p>more</p>" * 5000)
        return response

    async def _bomb(self, request: web.Request) -> web.Response:
        return web.Response(
            body=gzip.compress(b"\0" * 50_000_000),
            headers={"Content-Encoding": "gzip", "Content-Type": "text/html"},
        )

    async def _zipped(self, request: web.Request) -> web.Response:
        kind = request.query["kind"]
        raw = page(ARTICLE).encode()
        stream = zlib.compressobj(wbits=-15)
        body = {
            "gzip": gzip.compress(raw),
            "deflate": zlib.compress(raw),
            "raw": stream.compress(raw) + stream.flush(),
            "damaged": gzip.compress(raw)[:40] + b"\xff" * 40,
            "members": gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + b"\0 padding",
            "cut-member": gzip.compress(raw[:500]) + gzip.compress(raw[500:])[:-20],
            "confetti": gzip.compress(b"") * 100_000,
            "br": b"\x1b\x00\x00",
        }[kind]
        encoding = {"raw": "deflate", "deflate": "deflate", "br": "br"}.get(kind, "gzip")
        return web.Response(body=body, headers={"Content-Encoding": encoding, "Content-Type": "text/html"})

    async def _silent(self, request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response(text="late")

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.05)
        return response

    async def _flaky(self, request: web.Request) -> web.Response:
        if self.hits["/flaky"] < 3:
            return web.Response(status=503, text="busy")
        return web.Response(text=page(ARTICLE), content_type="text/html")

    async def _wait(self, request: web.Request) -> web.Response:
        if self.hits["/wait"] < 2:
            return web.Response(status=429, headers={"Retry-After": "0"})
        return web.Response(text=page(ARTICLE), content_type="text/html")

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.query["code"]), text="the secret detail of the error page")

    async def _hangup(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _raw(self, request: web.Request) -> web.Response:
        body, kind = RAW[request.path.removeprefix("/raw/")]
        return web.Response(body=body, headers={"Content-Type": kind} if kind else {})

    async def _internal(self, request: web.Request) -> web.Response:
        self.internal_hits += 1
        return web.Response(text="internal secrets")


UMLAUT = "<p>Grüße aus Köln über die Straße, naïve façade — “quoted”.</p>" * 8
JAPANESE = "<p>灯台守は船の名前を書き留めた。日本語の文章です。</p>" * 12
RAW: dict[str, tuple[bytes, str]] = {
    "utf8-declared-cp1252-sent": (page(UMLAUT).encode("cp1252"), "text/html; charset=utf-8"),
    "latin1-declared-utf8-sent": (page(UMLAUT).encode(), "text/html; charset=iso-8859-1"),
    "meta-only": (page(UMLAUT, '<meta charset="windows-1252">').encode("cp1252"), "text/html"),
    "shift-jis-meta": (page(JAPANESE, '<meta charset="shift_jis">').encode("shift_jis"), "text/html"),
    "utf16-bom": (page(UMLAUT).encode("utf-16"), "text/html"),
    "unknown-charset": (page(UMLAUT).encode(), "text/html; charset=klingon"),
    "no-type": (page(UMLAUT).encode(), ""),
    "json": (b'{"ships": ["Calliope", "Undine"]}', "application/json"),
    "spaces": (
        "Mr.\u00a0Smith\u2009has 10\u202f000\u3000km,\u200b\x07 no\u2028more\x0cthan\rthat\r\n".encode(),
        "text/plain; charset=utf-8",
    ),
    "plain": (b"first line\r\nsecond line\r\n", "text/plain"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "image/png"),
    "zip-as-html": (b"PK\x03\x04\x00\x00\x00" + bytes(200), "text/html"),
    "video": (b"just bytes without nulls", "video/mp4"),
    "empty": (b"", "text/html"),
    "only-script": (page("<script>document.write('hello')</script>").encode(), "text/html"),
    "pdf": (pdf([["The ship Undine", "Crew: 31"], ["Second sheet"]], "Muster roll"), "application/pdf"),
    "pdf-as-octets": (pdf([["The ship Undine"]], "Muster roll"), "application/octet-stream"),
    "pdf-cut": (pdf([["The ship Undine"] * 40], "Muster roll")[:300], "application/pdf"),
    "pdf-garbage": (b"%PDF-1.7\n" + bytes(range(256)) * 20, "application/pdf"),
    "pdf-not": (page("<p>Please log in.</p>").encode(), "application/pdf"),
    "pdf-scan": (pdf([[]], ""), "application/pdf"),
    "deep": (page("<div>" * 30_000 + "the bottom" + "</div>" * 30_000).encode(), "text/html"),
    "links": (
        page(
            "<ul>" + "".join(f'<li><a href="/p/{n}">Entry {n}</a></li>' for n in range(40)) + "</ul>"
        ).encode(),
        "text/html",
    ),
    "control": (page(ARTICLE + "<p>bell\x07 and \u202e reversed</p>").encode(), "text/html"),
}


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[Site]:
    """The site on 127.0.0.1 and the internal service on 127.0.0.2."""
    site = Site()
    runners = []
    for address, handler in (("127.0.0.1", site.handle), ("127.0.0.2", site._internal)):
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, address, 0).start()
        runners.append(runner)
    site.base, site.internal = (
        f"http://{host}:{port}" for host, port in (runner.addresses[0][:2] for runner in runners)
    )
    try:
        yield site
    finally:
        for runner in runners:
            await runner.cleanup()


def config(**settings: Any) -> FetchConfig:
    """The fetcher's config with 127.0.0.1 allowed and no waiting."""
    return FetchConfig(
        **{"allow_networks": ["127.0.0.1/32"], "backoff_seconds": 0.0, "read_seconds": 60.0, **settings}
    )
