"""The trace viewer: a results folder as a page that a person can read.

Four steps, one file each: ``index`` finds every trace in a folder and remembers where it lies (byte
offsets, never contents); ``summary`` makes the row that stands for a trace in the list; ``document``
turns one trace into what the page shows of it; ``server`` and ``export`` deliver both to the same
static page (``static/``), live on localhost or embedded in one file.

Invariant: what a trace contains reaches the page as JSON and the screen as text. No string of a trace is
ever part of HTML, CSS, JavaScript or a path, and the page's content-security policy forbids the browser to
treat one as such.

It reads whatever verifiers writes (``Trace.to_record()`` lines and the episode lines of ``vf-eval``), from
any harness; traces of this package's RLM harness, which carry ``trace.info["rlm"]``, show as a tree.
"""

from eval.viewer.document import document
from eval.viewer.export import export_page
from eval.viewer.index import NoTracesError, TraceIndex
from eval.viewer.server import ViewerServer

__all__ = ["NoTracesError", "TraceIndex", "ViewerServer", "document", "export_page"]
