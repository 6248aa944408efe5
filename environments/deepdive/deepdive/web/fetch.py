"""URL in, bytes out: the guarded HTTP client.

Each hop of a redirect is a new request through the same checks. Everything is bounded: connecting, waiting
for bytes, the page as a whole (retries, back-off and redirects included), the bytes on the wire and the bytes
after decompression. The body is decompressed here, with a limit, and not by a library that would first
inflate a bomb to its full size.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from urllib.parse import unquote

import httpcore
import httpx
from pydantic import Field
from pydantic_config import BaseConfig

from deepdive.web.errors import ToolFailure
from deepdive.web.net import AddressPolicy, GuardedBackend

REDIRECTS = {301, 302, 303, 307, 308}
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 520, 522, 524}
MAX_URL = 4096
_MAX_MEMBERS = 64
"""Of a gzip body; each costs a copy of what follows it."""


class FetchConfig(BaseConfig):
    connect_seconds: float = Field(10.0, gt=0)
    """Limit for looking a host up, and for connecting to it."""
    read_seconds: float = Field(15.0, gt=0)
    """Longest silence while a page comes in."""
    page_seconds: float = Field(60.0, gt=0)
    """Limit for one page as a whole: lookups, redirects, retries, body."""
    max_bytes: int = Field(20_000_000, gt=0)
    """Largest body, on the wire and decompressed."""
    max_redirects: int = Field(5, ge=0)
    """Redirects followed for one page; each target is checked anew."""
    attempts: int = Field(3, ge=1)
    """Tries at a request that fails in a passing way (connection, time-out, 429, 5xx)."""
    backoff_seconds: float = Field(0.5, ge=0)
    """Wait before the second try; doubled each time, with jitter. A Retry-After header up to 10 s is kept."""
    connections: int = Field(64, ge=1)
    """Connections open at a time, over all hosts."""
    user_agent: str = "Mozilla/5.0 (compatible; deepdive-research/1.0)"
    """The User-Agent header. Many sites turn away clients without a browser-like one."""
    allow_networks: list[str] = Field(default_factory=list)
    """Networks (CIDR) that may be fetched although they are not public, e.g. an intranet's. Off by default:
    a page may name any address, and so may the model."""
    refuse_hosts: list[str] = Field(
        default_factory=lambda: ["huggingface.co", "hf.co", "hf-mirror.com", "modelscope.cn", "modelscope.ai"]
    )
    """Hosts, subdomains included, that are not opened and not shown in search results, nor any URL that names
    one (archives, proxies): there the questions can be read with their answers. `[]` opens all."""


@dataclass(frozen=True)
class Fetched:
    """A body as it was served. `url` is the last hop's."""

    url: str
    content_type: str
    """The Content-Type header in lower case, parameters included; empty when there was none."""
    body: bytes


def normalise_url(url: str) -> str:
    """The URL in one canonical form, without its fragment. Raises ToolFailure `bad_url`: other schemes than
    http(s), credentials, no host, unparsable."""
    text = url.strip().strip("<>")
    if not text or len(text) > MAX_URL or any(ord(c) < 32 for c in text):
        raise ToolFailure("bad_url", f"not a URL: {text[:200]!r}")
    if "://" not in text.split("?")[0] and not text.lower().startswith(("data:", "file:", "javascript:")):
        text = f"https://{text}"
    try:
        parsed = httpx.URL(text)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise ToolFailure("bad_url", f"not a URL: {text[:200]!r}") from None
    if parsed.scheme not in ("http", "https"):
        raise ToolFailure("bad_url", f"only http and https pages can be opened, not {parsed.scheme}:")
    if not parsed.host:
        raise ToolFailure("bad_url", f"the URL names no host: {text[:200]!r}")
    if parsed.userinfo:
        raise ToolFailure("bad_url", "URLs with a user name or password in them are not opened")
    return str(parsed.copy_with(fragment=None))


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """`body` without its Content-Encoding, at most `limit` bytes. Raises ToolFailure."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        wbits = [zlib.MAX_WBITS | 16]
    elif encoding == "deflate":
        # Servers send both kinds under this name: with the zlib header, and without.
        wbits = [zlib.MAX_WBITS, -zlib.MAX_WBITS]
    else:
        raise ToolFailure(
            "encoding", f"the page is compressed in a way that cannot be read ({encoding[:40]})"
        )
    for index, bits in enumerate(wbits):
        try:
            data, whole = _inflate_members(body, bits, limit + 1)
        except zlib.error:
            if index + 1 < len(wbits):
                continue
            raise ToolFailure("encoding", "the page's compressed data is damaged") from None
        if len(data) > limit:
            raise ToolFailure("too_large", f"the page is larger than {limit:,} bytes when decompressed")
        if not whole:
            raise ToolFailure("encoding", "the page's compressed data is incomplete", retry=True)
        return data
    raise AssertionError("unreachable")


def _inflate_members(body: bytes, wbits: int, limit: int) -> tuple[bytes, bool]:
    """(at most `limit` bytes of a body's compressed members, one after another; whether they were whole).

    A gzip body may have several (RFC 1952). What follows the last and is none is left out, as browsers do.
    Raises zlib.error for a damaged one.
    """
    parts, size, rest = [], 0, body
    for _ in range(_MAX_MEMBERS):
        stream = zlib.decompressobj(wbits)
        parts.append(stream.decompress(rest, limit - size))
        size += len(parts[-1])
        rest = stream.unused_data
        if not stream.eof or size >= limit or not rest.startswith(b"\x1f\x8b"):
            return b"".join(parts), stream.eof
    return b"".join(parts), False


def refused_host(url: str, hosts: Sequence[str]) -> str | None:
    """The one of `hosts` that a URL leads to or names anywhere, as those of archives, proxies and translators
    do; None without one. `example.org` stands for its subdomains too."""
    text = unquote(unquote(url)).casefold()
    for host in hosts:
        name = re.escape(host.casefold().strip("."))
        dashed = name.replace(r"\.", "-")  # huggingface-co.translate.goog
        if re.search(rf"(?<![\w-])({name}(?![\w-]|\.\w)|{dashed}(?![\w-]))", text):
            return host
    return None


class Fetcher:
    """One client for all pages; connections are kept and shared. Close it with `aclose`."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.policy = AddressPolicy(config.allow_networks)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=config.connections,
            max_keepalive_connections=config.connections,
            keepalive_expiry=15.0,
            network_backend=GuardedBackend(self.policy),
        )

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str) -> Fetched:
        """The page at `url`, redirects followed. Raises ToolFailure."""
        config = self.config
        url = normalise_url(url)
        try:
            async with asyncio.timeout(config.page_seconds):
                for _ in range(config.max_redirects + 1):
                    if refused := refused_host(url, config.refuse_hosts):
                        text = f"pages of {refused} cannot be opened with these tools; try another source"
                        raise ToolFailure("refused_site", text)
                    answer = await self._patiently(url)
                    if isinstance(answer, Fetched):
                        return answer
                    url = answer
        except TimeoutError:
            raise ToolFailure(
                "timeout", f"the page took longer than {config.page_seconds:g} s to load", retry=True
            ) from None
        raise ToolFailure("redirects", f"the page redirects more than {config.max_redirects} times")

    async def _patiently(self, url: str) -> Fetched | str:
        """One hop, tried again with back-off when the failure may pass."""
        for attempt in range(1, self.config.attempts + 1):
            try:
                return await self._once(url)
            except _Again as again:
                if attempt == self.config.attempts:
                    raise again.failure from None
                wait = self.config.backoff_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                await asyncio.sleep(max(wait, min(again.after, 10.0)))
            except ToolFailure as failure:
                if not failure.retry or attempt == self.config.attempts:
                    raise
                await asyncio.sleep(self.config.backoff_seconds * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _once(self, url: str) -> Fetched | str:
        """The body, or the next URL of a redirect. Raises _Again and ToolFailure."""
        config = self.config
        target = httpx.URL(url)
        headers: dict[bytes | str, bytes | str] = {
            "Host": target.netloc.decode("ascii"),
            "User-Agent": config.user_agent,
            "Accept": "text/html,application/xhtml+xml,application/pdf,text/plain;q=0.9,*/*;q=0.5",
            "Accept-Language": "en,*;q=0.5",
            "Accept-Encoding": "gzip, deflate",
        }
        timeouts = {
            "connect": config.connect_seconds,
            "read": config.read_seconds,
            "write": config.read_seconds,
            "pool": config.page_seconds,
        }
        raw = httpcore.URL(
            scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
        )
        try:
            async with self._pool.stream(
                "GET", raw, headers=headers, extensions={"timeout": timeouts}
            ) as response:
                fields = {k.lower().decode("latin-1"): v.decode("latin-1") for k, v in response.headers}
                if response.status in REDIRECTS and fields.get("location"):
                    return self._redirect(url, fields["location"])
                self._check_status(response.status, fields)
                body = await self._read(response, fields)
        except httpcore.TimeoutException:
            raise _Again(ToolFailure("timeout", f"{target.host} did not answer in time")) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            failure = ToolFailure(
                "connect", f"the connection to {target.host} failed ({type(error).__name__})"
            )
            raise _Again(failure) from None
        return Fetched(
            url=url,
            content_type=fields.get("content-type", "").strip().lower(),
            body=inflate(body, fields.get("content-encoding", ""), config.max_bytes),
        )

    @staticmethod
    def _redirect(url: str, location: str) -> str:
        try:
            return normalise_url(
                str(httpx.URL(url).join(location.encode("latin-1").decode("utf-8", "replace")))
            )
        except (httpx.InvalidURL, ValueError):
            raise ToolFailure("redirects", "the page redirects to something that is not a URL") from None

    @staticmethod
    def _check_status(status: int, fields: dict[str, str]) -> None:
        if 200 <= status < 300:
            return
        hint = {
            401: "it needs a login",
            403: "the site refuses automatic readers; try another source",
            404: "there is no such page",
            410: "the page is gone",
            429: "the site asks for fewer requests",
        }.get(status, "the server failed; try another source" if status >= 500 else "try another source")
        failure = ToolFailure("http_status", f"HTTP {status}: {hint}")
        if status in TRANSIENT:
            raise _Again(failure, _retry_after(fields.get("retry-after", "")))
        raise failure

    async def _read(self, response: httpcore.Response, fields: dict[str, str]) -> bytes:
        limit = self.config.max_bytes
        too_large = ToolFailure("too_large", f"the page is larger than {limit:,} bytes")
        length = fields.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
        return b"".join(parts)


class _Again(Exception):
    def __init__(self, failure: ToolFailure, after: float = 0.0) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.after = after


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, either form; 0 when it says nothing usable."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
