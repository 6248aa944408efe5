"""What the tools did in one episode, as the tool server tells it to the host.

The server is shared by all episodes, so it keeps no counts of its own: after each call it adds the call's
report to the episode's state, which lives on the host (`trace.state`) and from which the metrics are read.
"""

from __future__ import annotations

import verifiers.v1 as vf
from pydantic import Field

from deepdive.web.tools import CallReport

TOOLS = ("search_web", "scan_page", "open_lines", "open")
MAX_KEPT = 2000
"""Queries and addresses kept of an episode, the first ones; the counts go on."""


class DeepDiveState(vf.State):
    queries: list[str] = Field(default_factory=list)
    """Search queries in the order of their calls' ends."""
    urls: list[str] = Field(default_factory=list)
    """Pages asked for, repetitions included."""
    counts: dict[str, int] = Field(default_factory=dict)
    """`calls/<tool>`, `failed_calls/<tool>`, `failures/<kind>`, `searches`, `pages`, `failed_searches`,
    `failed_pages`, `cache_hits`, `cut_results`."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Time inside the server, by tool."""

    def add(self, report: CallReport, seconds: float) -> None:
        def count(name: str, number: int = 1) -> None:
            if number:
                self.counts[name] = self.counts.get(name, 0) + number

        count(f"calls/{report.tool}")
        count(f"failed_calls/{report.tool}", int(report.failed))
        for kind in report.failures:
            count(f"failures/{kind}")
        search = report.tool == "search_web"
        count("searches", len(report.queries))
        count("pages", int(report.url is not None))
        count("failed_searches" if search else "failed_pages", len(report.failures))
        count("cache_hits", report.cache_hits)
        count("cut_results", int(report.cut))
        self.seconds[report.tool] = self.seconds.get(report.tool, 0.0) + seconds
        self.queries = [*self.queries, *report.queries][:MAX_KEPT]
        if report.url is not None:
            self.urls = [*self.urls, report.url][:MAX_KEPT]
