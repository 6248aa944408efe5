"""A results folder as one HTML file that needs no server.

The list and every trace are gzipped and base64-encoded into inert ``<script>`` elements, one per trace, so
that the browser unpacks only what is opened. Base64 has no ``<``: whatever a trace holds, it cannot end the
element that holds it.
"""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from eval.viewer.assets import single_page
from eval.viewer.document import document
from eval.viewer.index import TraceIndex
from eval.viewer.jsonl import dumps

_MARK = "<!--traces-->"


def export_page(index: TraceIndex, path: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write every trace of ``index`` (refreshed by the caller) to ``path``, atomically.

    ``progress`` is called with (done, total). Returns the size in bytes.
    """
    listing = index.since(0, 0)
    rows = listing["rows"]
    before, after = single_page(_element("index", dumps(listing)) + _MARK).split(_MARK)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(before)
            for done, element in enumerate(_traces(index, rows), 1):
                file.write(element)
                if progress:
                    progress(done, len(rows))
            file.write(after)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def _traces(index: TraceIndex, rows: list[dict]) -> Iterator[str]:
    for row in rows:
        yield _element("trace-" + row["key"], dumps(document(*index.trace(row["key"]))))


def _element(name: str, payload: bytes) -> str:
    packed = base64.b64encode(gzip.compress(payload, 6, mtime=0)).decode("ascii")
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>\n'
