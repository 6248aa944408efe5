"""Which addresses may be reached, decided where the connection is made.

A check of the URL before the request leaves two holes: a redirect, and a name that resolves to another
address the second time it is asked (DNS rebinding). Here the check sits in the network backend of the HTTP
client: every connection, first hop or fifth, resolves its name once, refuses it unless every address it
has is public, and then connects to one of those very addresses. TLS still verifies the host's name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import typing

import httpcore

from deepdive.web.errors import ToolFailure

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        # What only newer versions of Python know to be special (IANA registries, RFC 6890 and later).
        *("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "5f00::/16"),
        # Azure's host agent and metadata, at an address that looks public.
        "168.63.129.16/32",
    )
)


def embedded_ipv4(address: IPAddress) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to an IPv6 address may end up at: mapped, compatible, NAT64, 6to4,
    Teredo. Python's `is_global` looks into some of these only, and that by version."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _V4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [item for item in found if item is not None]


def is_public(address: IPAddress) -> bool:
    """Whether the address is one that anybody on the internet reaches: not private, loopback, link-local,
    shared (100.64/10), multicast, reserved, unspecified, nor an IPv6 wrapping of such an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address.scope_id):
        return False
    inner = embedded_ipv4(address)
    if inner:
        return all(is_public(item) for item in inner)
    if any(address.version == net.version and address in net for net in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class AddressPolicy:
    """Public addresses, and those in `allow_networks` (CIDR text, e.g. `127.0.0.1/32`)."""

    def __init__(self, allow_networks: typing.Iterable[str] = ()) -> None:
        self.allowed: list[IPNetwork] = [ipaddress.ip_network(item, strict=False) for item in allow_networks]

    def permits(self, address: IPAddress) -> bool:
        return is_public(address) or any(
            address.version == net.version and address in net for net in self.allowed
        )

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        """The addresses of `host`, all of them permitted.

        Raises ToolFailure `dns` or `refused_address`. One forbidden address among good ones refuses the
        host: a public site has no business there, and an attacker's does.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        except TimeoutError:
            raise ToolFailure("dns", f"looking up the host {host!r} timed out", retry=True) from None
        except (OSError, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise ToolFailure(
                "dns", f"the host {host!r} was not found; check the address", retry=again
            ) from None
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        for text in addresses:
            if not self.permits(ipaddress.ip_address(text)):
                # The address itself is not told: it would map the internal network for whoever asks.
                raise ToolFailure(
                    "refused_address",
                    f"{host!r} is not a public internet address; only public http(s) pages can be opened",
                )
        if not addresses:
            raise ToolFailure("dns", f"the host {host!r} has no address")
        return addresses


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """httpcore's network, with `AddressPolicy` between the name and the socket."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._network: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: typing.Iterable[typing.Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._policy.resolve(host, port, timeout)
        error: Exception | None = None
        for address in addresses[:4]:
            try:
                # An IP literal: nothing looks the name up a second time.
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        assert error is not None
        raise error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: typing.Iterable[typing.Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise ToolFailure("refused_address", "only public http(s) pages can be opened")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
