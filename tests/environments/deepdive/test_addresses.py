"""Only public addresses are reached, however they are written and whenever they are resolved."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpcore
import pytest
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetcher, normalise_url
from deepdive.web.net import AddressPolicy, GuardedBackend, is_public

from tests.environments.deepdive import site as sites

FORBIDDEN = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.254 127.0.0.1 127.8.8.8 169.254.169.254 172.16.0.1 172.31.9.9
192.0.0.1 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd12:3456::1 ff02::1 ff0e::1 2001:db8::1 100::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a00:1
64:ff9b:1::1 2002:7f00:1::1 2002:a00:1:: 2001:0:4136:e378:8000:63bf:f5ff:fffe
192.0.0.192 192.88.99.1 168.63.129.16 ::ffff:168.63.129.16 64:ff9b::a83f:8110 3fff::1 5f00::1 100.100.100.200
fd00:ec2::254
"""
PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 172.32.0.1 2606:4700::1111 2a00:1450:4001::1 64:ff9b::808:808
"""


@pytest.mark.parametrize("text", FORBIDDEN.split())
def test_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC.split())
def test_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def test_allow_networks_widen_by_exactly_themselves() -> None:
    policy = AddressPolicy(["127.0.0.1/32", "fd00:1::/32"])
    assert policy.permits(ipaddress.ip_address("127.0.0.1"))
    assert policy.permits(ipaddress.ip_address("fd00:1::5"))
    assert not policy.permits(ipaddress.ip_address("127.0.0.2"))
    assert not policy.permits(ipaddress.ip_address("fd00:2::5"))
    assert not AddressPolicy().permits(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/article",
        "http://localhost:{port}/article",
        "http://127.1:{port}/article",
        "http://2130706433:{port}/article",
        "http://0x7f000001:{port}/article",
        "http://0177.0.0.1:{port}/article",
        "http://[::1]:{port}/article",
        "http://[::ffff:127.0.0.1]:{port}/article",
        "http://0:{port}/article",
        "http://127.0.0.1.:{port}/article",
        "http://①②⑦.⓪.⓪.①:{port}/article",
    ],
)
async def test_loopback_is_refused_by_default_in_every_spelling(site: sites.Site, url: str) -> None:
    fetcher = Fetcher(sites.config(allow_networks=[], attempts=1))
    try:
        with pytest.raises(ToolFailure) as caught:
            await fetcher.fetch(url.format(port=site.base.rsplit(":", 1)[1]))
    finally:
        await fetcher.aclose()
    assert caught.value.kind in ("refused_address", "dns", "bad_url")
    assert not site.hits


@pytest.mark.parametrize(
    "target",
    [
        "{internal}/admin",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:1/",
        "http://192.168.0.1/",
        "http://224.0.0.1/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "http://user:pw@127.0.0.1/",
        "//127.0.0.2:{internal_port}/admin",
    ],
)
async def test_redirects_are_checked_like_first_requests(site: sites.Site, target: str) -> None:
    target = target.format(internal=site.internal, internal_port=site.internal.rsplit(":", 1)[1])
    fetcher = Fetcher(sites.config(attempts=1))
    try:
        with pytest.raises(ToolFailure) as caught:
            await fetcher.fetch(f"{site.base}/to?url={target}")
    finally:
        await fetcher.aclose()
    assert caught.value.kind in ("refused_address", "bad_url", "redirects")
    assert site.hits["/to"] == 1
    assert site.internal_hits == 0
    assert "127.0.0.2" not in caught.value.message or "127.0.0.2" in target


class _Recorder(httpcore.AsyncNetworkBackend):
    """Notes where a connection would go, and makes none."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        self.hosts.append(host)
        raise httpcore.ConnectError("recorded")


def _resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to the given addresses, another list at each lookup. Returns the log of lookups."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when checked and loopback a moment later (DNS rebinding)."""
    asked = _resolver(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    backend = GuardedBackend(AddressPolicy())
    backend._network = recorder = _Recorder()
    with pytest.raises(httpcore.ConnectError):
        await backend.connect_tcp("rebind.example", 80, timeout=120)
    assert recorder.hosts == ["93.184.216.34"]
    assert asked == ["rebind.example"]


async def test_one_forbidden_address_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolver(monkeypatch, ["93.184.216.34", "10.1.2.3"])
    backend = GuardedBackend(AddressPolicy())
    backend._network = recorder = _Recorder()
    with pytest.raises(ToolFailure) as caught:
        await backend.connect_tcp("mixed.example", 80, timeout=120)
    assert caught.value.kind == "refused_address"
    assert "10.1.2.3" not in caught.value.message
    assert recorder.hosts == []


async def test_lookup_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        await asyncio.sleep(30)
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(ToolFailure) as caught:
        await AddressPolicy().resolve("slow.example", 80, timeout=0.05)
    assert caught.value.kind == "dns"


@pytest.mark.parametrize(
    "url", ["", "   ", "file:///etc/passwd", "javascript:alert(1)", "data:text/html,x", "ftp://a.example/",
            "http://", "http:///x", "https://u:p@a.example/", "http://a.example/\n/x", "http://" + "a" * 5000]
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        normalise_url(url)
    assert caught.value.kind == "bad_url"


def test_urls_in_one_form() -> None:
    assert normalise_url(" HTTP://Example.ORG:80/a b?q=ü#part ") == "http://example.org/a%20b?q=%C3%BC"
    assert normalise_url("example.org/x") == "https://example.org/x"
    assert normalise_url("https://bücher.example/") == "https://xn--bcher-kva.example/"
