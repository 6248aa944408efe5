"""The fetcher against a site that is slow, huge, broken or going in circles."""

from __future__ import annotations

import time

import pytest
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import FetchConfig, Fetched, Fetcher, _retry_after, normalise_url, refused_host

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
    found = await failure(f"{site.base}/silent", read_seconds=1.0, attempts=2)
    assert found.kind == "timeout"
    assert site.hits["/silent"] == 2


async def test_a_drip_is_bounded_by_the_limit_for_the_page(site: sites.Site) -> None:
    started = time.monotonic()
    found = await failure(f"{site.base}/drip", page_seconds=0.5)
    assert found.kind == "timeout"
    assert time.monotonic() - started < 60  # the page itself has no end


@pytest.mark.parametrize("kind", ["gzip", "deflate", "raw", "members"])
async def test_compressed_pages(site: sites.Site, kind: str) -> None:
    body = (await fetch(f"{site.base}/zipped?kind={kind}")).body
    assert b"Paragraph 29" in body
    assert body.endswith(b"</html>")


@pytest.mark.parametrize("kind", ["damaged", "br", "cut-member", "confetti"])
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
    assert _retry_after("\u00b2") == 0, "a digit that is no number"
    assert _retry_after("Mon, 01 Jan 0001 00:00:00 -0000") == 0


HOSTS = FetchConfig().refuse_hosts


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/zai-org/DeepDive/viewer",
        "https://HuggingFace.co./datasets",
        "https://datasets-server.huggingface.co/rows?dataset=zai-org%2FDeepDive",
        "https://hf.co/datasets/zai-org/DeepDive",
        "https://web.archive.org/web/2025/https://huggingface.co/datasets/zai-org/DeepDive",
        "https://proxy.example/?url=https%253A%252F%252Fhuggingface%252Eco%252Fdatasets",
        "https://huggingface-co.translate.goog/datasets/zai-org/DeepDive",
    ],
)
def test_where_the_questions_can_be_read_with_their_answers(url: str) -> None:
    assert refused_host(normalise_url(url), HOSTS)
    assert refused_host(url, []) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://en.wikipedia.org/wiki/Hugging_Face",
        "https://shelf.co/",
        "https://hf.com/x",
        "https://hf.co.uk/",
        "https://huggingface.community/",
        "https://nothuggingface.co/",
    ],
)
def test_other_sites_are_open(url: str) -> None:
    assert refused_host(url, HOSTS) is None


async def test_a_refused_site_is_not_even_asked(site: sites.Site) -> None:
    host = site.base.removeprefix("http://").split(":")[0]
    for url in (
        f"{site.base}/article",
        f"{site.base.replace('127.0.0.1', 'localhost')}/to?url={site.base}/x",
    ):
        assert (await failure(url, refuse_hosts=[host])).kind == "refused_site"
    assert not site.hits


async def test_a_redirect_to_a_refused_site_is_not_followed(site: sites.Site) -> None:
    found = await failure(f"{site.base}/secret-way", refuse_hosts=["answers.example"])
    assert (found.kind, "answers.example" in found.message) == ("refused_site", True)
    assert site.hits["/secret-way"] == 1
