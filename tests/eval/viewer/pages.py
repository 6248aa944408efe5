"""What the browser tests share: a folder served to a page that must stay without problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.viewer import TraceIndex, ViewerServer
from tests.eval.viewer import synth
from tests.eval.viewer.browser import Browser, Page

ROWS = ".space > .row"

HOSTILE = (
    "</script><script>window.pwned = 1</script><!--<script>--><img src=x onerror='pwned=1'>"
    "<svg/onload=alert(1)>\"><a href='javascript:pwned=1'>x</a>"
    "\u2028\u2029\x00{{7*7}}${pwned=1}\u202eevil"
)
"""What ends scripts, starts elements, breaks lines of JavaScript, and turns the direction of writing."""


@contextmanager
def served(browser: Browser, folder: Path) -> Iterator[tuple[Page, TraceIndex]]:
    """``folder`` in the browser. At the end: no exception, refusal or dialog, and no request elsewhere."""
    index = TraceIndex(folder)
    index.refresh()
    with ViewerServer(index) as server, browser.page(server.url) as page:
        yield page, index
        assert page.problems == []
        assert page.dialogs == []
        outside = [url for url in page.requests if not url.startswith((server.url, "data:,", "about:"))]
        assert outside == []


def opened(page: Page, index: TraceIndex, **like: Any) -> dict[str, Any]:
    """Open the first trace whose row has the given values; returns the row."""
    row = next(row for row in index.rows if all(row[name] == value for name, value in like.items()))
    page.js(f"location.hash = '#/trace/{row['key']}'")
    page.wait(f"document.querySelector({json.dumps(episode(row['key']))})")
    return row


def episode(key: str) -> str:
    """The selector of an open trace."""
    return f'.episode[data-key="{key}"]'


def one(tmp_path: Path, record: dict[str, Any]) -> Path:
    synth.write(tmp_path / "traces.jsonl", [record])
    return tmp_path
