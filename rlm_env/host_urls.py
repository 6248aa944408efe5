"""Addresses that verifiers rewrote for a program inside a container, as they are on the host.

``Runtime.host_url`` turns an address of this host into one that works inside the runtime. Docker's and
Podman's gives a port that exists in the container's own network only, while the RLM's loop runs on the host.
Nothing leads back from the rewritten address, so what went in is kept.
"""

from __future__ import annotations

from verifiers.v1.runtimes import Runtime


def remember(runtime: Runtime) -> None:
    """From now on keep what ``runtime.host_url`` is given. A runtime may be shared by many episodes: calling
    it again changes nothing."""
    if "_rlm_host_urls" in vars(runtime):
        return
    kept: dict[str, str] = {}
    inside = runtime.host_url

    def host_url(url: str) -> str:
        rewritten = inside(url)
        if rewritten != url:
            kept[rewritten] = url
        return rewritten

    # Views of a runtime (other user, other environment) share this dictionary of attributes.
    vars(runtime).update(_rlm_host_urls=kept, host_url=host_url)


def on_host(runtime: Runtime, url: str) -> str:
    """The address for the host of one that ``runtime.host_url`` gave, or that begins with one it gave."""
    kept: dict[str, str] = vars(runtime).get("_rlm_host_urls", {})
    for rewritten in sorted(kept, key=len, reverse=True):
        if url.startswith(rewritten):
            return kept[rewritten] + url[len(rewritten) :]
    return url
