"""The four tools as a verifiers toolset: one MCP server for all episodes of a run.

Shared, not one per episode, for three reasons. Starting costs seconds and 200 MB, connections and the page
store are worth sharing, and a shared server is never handed the task, so the reference answer does not leave
the host's process. What an episode did is added to that episode's own state after every call (see `state`).

Run by verifiers as `python -m deepdive.server`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import verifiers.v1 as vf
from mcp_types import CallToolResult, TextContent
from verifiers.v1.utils.decorators import discover_decorated

from deepdive.config import ToolServerConfig
from deepdive.state import DeepDiveState
from deepdive.web.cache import DiskCache, default_cache_dir
from deepdive.web.errors import ToolFailure
from deepdive.web.fetch import Fetcher
from deepdive.web.pages import FetchBytes, PageStore
from deepdive.web.readers import Readers
from deepdive.web.search import LocalSearch, SearchEngine, SerperSearch
from deepdive.web.tools import CallReport, ToolLimits, WebTools

logger = logging.getLogger(__name__)


class DeepDiveToolset(vf.Toolset[ToolServerConfig, DeepDiveState]):
    """search_web, scan_page, open_lines, open. Failures are MCP error results, whose text is for the
    model."""

    TOOL_PREFIX = "deepdive"

    def __init__(self, config: ToolServerConfig) -> None:
        super().__init__(config)
        self.tools: WebTools | None = None
        # A lock an episode: its state is read, changed and written back, and the last write wins.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def setup(self) -> None:
        """Open search engine, fetcher, readers and cache. Raises ValueError without a key on the web."""
        config = self.config
        readers = Readers(config.reader)
        self._exit_stack.push_async_callback(readers.aclose)
        cache: DiskCache | None = None
        engine: SearchEngine
        fetch: FetchBytes
        refuse_hosts: tuple[str, ...] = ()
        if config.backend == "mini":
            from deepdive.mini.corpus import Corpus

            corpus = await asyncio.to_thread(Corpus.load)
            engine, fetch, space = LocalSearch(corpus.documents()), corpus.fetch, "mini"
        else:
            if not config.serper_api_key:
                raise ValueError(missing_key(config.search.api_key_var))
            search = config.search
            engine = SerperSearch(
                config.serper_api_key, search.url, search.seconds, search.attempts, search.backoff_seconds
            )
            fetcher = Fetcher(config.fetch)
            self._exit_stack.push_async_callback(fetcher.aclose)
            refuse_hosts = tuple(sorted(config.fetch.refuse_hosts))
            reader = config.reader
            rules = [
                sorted(config.fetch.allow_networks),
                refuse_hosts,
                reader.max_chars,
                reader.max_pdf_pages,
            ]
            fetch, space = fetcher.fetch, f"web {rules}"
            if config.cache:
                cache = DiskCache(config.cache_dir or default_cache_dir(), config.cache_days)
                await asyncio.to_thread(cache.prune)
        self._exit_stack.push_async_callback(engine.aclose)
        limits = ToolLimits(
            config.result_chars, config.search.max_queries, config.search.max_results, refuse_hosts
        )
        self.tools = WebTools(engine, PageStore(fetch, readers, cache, space), readers, cache, limits)

    def register(self, mcp: Any) -> None:
        for tool in discover_decorated(self, "tool"):
            mcp.add_tool(self._served(tool), name=tool.__name__, description=inspect.getdoc(tool))

    @property
    def _ready(self) -> WebTools:
        assert self.tools is not None, "setup() has not run"
        return self.tools

    @vf.tool
    async def search_web(self, report: CallReport, queries: list[str] | str, num_results: int = 10) -> str:
        """Search the web. Returns numbered results (title, URL, snippet) for each query.

        queries: one or several different search queries; they run at the same time.
        num_results: results for each query.
        """
        return await self._ready.search_web(queries, num_results, report)

    @vf.tool
    async def scan_page(self, report: CallReport, url: str, pattern: str = "") -> str:
        """Look for a pattern in a web page or PDF without reading all of it. Returns title and size, and the
        lines that match, with their numbers.

        url: address of the page.
        pattern: regular expression, upper and lower case alike; empty shows the beginning of the page.
        """
        return await self._ready.scan_page(url, pattern, report)

    @vf.tool
    async def open_lines(self, report: CallReport, url: str, ranges: list[str] | str) -> str:
        """Read lines of a web page or PDF by number, as found with scan_page.

        url: address of the page.
        ranges: line ranges, first and last included, e.g. "1-40, 75, 120-140".
        """
        return await self._ready.open_lines(url, ranges, report)

    @vf.tool
    async def open(self, report: CallReport, url: str) -> str:
        """Read a web page or PDF from the beginning, as numbered lines. A long page is cut; use scan_page and
        open_lines there.

        url: address of the page.
        """
        return await self._ready.open(url, report)

    def _served(self, tool: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[CallToolResult]]:
        """`tool` as MCP sees it: without the report, with failures as error results, and with the report
        added to the state of the episode that called."""
        signature = inspect.signature(tool, eval_str=True)

        @functools.wraps(tool)
        async def served(**arguments: Any) -> CallToolResult:
            report = CallReport(tool.__name__)
            started = time.monotonic()
            try:
                text = await tool(report, **arguments)
            except ToolFailure as failure:
                report.failed = True
                report.failures.append(failure.kind)
                text = failure.message
            except Exception:
                # A bug here must neither end the episode nor pass for the model's mistake.
                logger.exception("tool %s failed on %s", tool.__name__, arguments)
                report.failed = True
                report.failures.append("internal")
                text = "the tool itself failed; this is not your mistake. Try something else"
            await self._tell(report, time.monotonic() - started)
            if report.failed:
                text = f"Error: {text}"
            return CallToolResult(content=[TextContent(type="text", text=text)], is_error=report.failed)

        served.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for name, p in signature.parameters.items() if name != "report"],
            return_annotation=CallToolResult,
        )
        served.__annotations__ = {}
        return served

    async def _tell(self, report: CallReport, seconds: float) -> None:
        """Add the report to the episode's state. A host that is gone costs the count, not the result."""
        _, _, route = self._state_channel()
        lock = self._locks.setdefault(route or "", asyncio.Lock())

        def add() -> None:
            self.state.add(report, seconds)

        try:
            async with lock:
                await self._with_state(add)()
        except Exception as error:
            logger.warning("the report of a %s call was not taken by the host: %s", report.tool, error)


def missing_key(variable: str) -> str:
    return (
        f"searching the web needs a key for serper.dev in the environment variable {variable} "
        '(another name: taskset.tools.search.api_key_var); taskset.split = "mini" needs none'
    )


if __name__ == "__main__":
    DeepDiveToolset.run()
