"""The fetcher against a site that is slow, huge, broken or going in circles."""

from __future__ import annotations

import time

import pytest
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetched, Fetcher, _retry_after

from tests.environments.deepdive import site as sites


async def fetch(url: str, **settings: object) -> Fetched:
    fetcher = Fetcher(sites.config(**settings))
    try:
        return await fetcher.fetch(url)
    finally:
        await fetcher.aclose()


async def failure(url: str, **settings: object) -> ToolFailure:
    with pytest.raises(ToolFailure) as caught:
        await fetch(url, **settings)
    return caught.value


async def test_a_page_after_redirects(site: sites.Site) -> None:
    fetched = await fetch(f"{site.base}/chain?n=3")
    assert fetched.url == f"{site.base}/article"
    assert b"Paragraph 29" in fetched.body
    assert fetched.content_type.startswith("text/html")
    assert site.headers[0]["Host"] == site.base.removeprefix("http://")


async def test_redirects_end(site: sites.Site) -> None:
    assert (await failure(f"{site.base}/around")).kind == "redirects"
    assert site.hits["/around"] == 6
    assert (await failure(f"{site.base}/chain?n=5")).kind == "redirects"
    assert (await fetch(f"{site.base}/chain?n=4")).url.endswith("/article")


@pytest.mark.parametrize("path", ["declared-huge", "endless", "bomb"])
async def test_huge_pages_are_cut_off(site: sites.Site, path: str) -> None:
    found = await failure(f"{site.base}/{path}", max_bytes=1_000_000)
    assert found.kind == "too_large"
    assert "1,000,000" in found.message
    assert site.hits[f"/{path}"] == 1, "too large once is too large again: not tried twice"


async def test_a_page_of_exactly_the_limit_is_read(site: sites.Site) -> None:
    size = len((await fetch(f"{site.base}/article")).body)
    assert len((await fetch(f"{site.base}/article", max_bytes=size)).body) == size
    assert (await failure(f"{site.base}/article", max_bytes=size - 1)).kind == "too_large"


async def test_silence_ends_in_time_and_is_tried_again(site: sites.Site) -> None:
    found = await failure(f"{site.base}/silent", read_seconds=0.15, attempts=2)
    assert found.kind == "timeout"
    assert site.hits["/silent"] == 2


async def test_a_drip_is_bounded_by_the_limit_for_the_page(site: sites.Site) -> None:
    started = time.monotonic()
    found = await failure(f"{site.base}/drip", page_seconds=0.5)
    assert found.kind == "timeout"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("kind", ["gzip", "deflate", "raw"])
async def test_compressed_pages(site: sites.Site, kind: str) -> None:
    assert b"Paragraph 29" in (await fetch(f"{site.base}/zipped?kind={kind}")).body


@pytest.mark.parametrize("kind", ["damaged", "br"])
async def test_compression_that_cannot_be_undone(site: sites.Site, kind: str) -> None:
    assert (await failure(f"{site.base}/zipped?kind={kind}")).kind == "encoding"


async def test_passing_failures_are_tried_again(site: sites.Site) -> None:
    assert (await fetch(f"{site.base}/flaky")).body
    assert site.hits["/flaky"] == 3
    assert (await fetch(f"{site.base}/wait")).body
    assert site.hits["/wait"] == 2


async def test_lasting_failures_are_not(site: sites.Site) -> None:
    for code in (401, 403, 404, 410):
        found = await failure(f"{site.base}/status?code={code}")
        assert found.kind == "http_status"
        assert str(code) in found.message
        assert "secret detail" not in found.message
    assert site.hits["/status"] == 4


async def test_a_server_that_keeps_failing_is_given_up(site: sites.Site) -> None:
    found = await failure(f"{site.base}/status?code=502", attempts=3)
    assert "502" in found.message
    assert site.hits["/status"] == 3
    assert (await failure(f"{site.base}/hangup", attempts=2)).kind == "connect"
    assert site.hits["/hangup"] == 2


async def test_nobody_listening(site: sites.Site) -> None:
    assert (await failure("http://127.0.0.1:9/", attempts=1)).kind == "connect"


def test_retry_after_in_both_forms() -> None:
    assert _retry_after("7") == 7
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after("soon") == 0
