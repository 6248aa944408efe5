"""``rlm-view``: look at the traces of a results folder in the browser, or write them as one page."""

from __future__ import annotations

import argparse
import queue
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from eval.text import printable
from eval.viewer.export import export_page
from eval.viewer.index import MovedError, NoTracesError, TraceIndex
from eval.viewer.server import ViewerServer

DEFAULT_PORT = 8765


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlm-view",
        description="Browse the traces that rlm-eval, vf-eval or training wrote. Serves on localhost only.",
    )
    parser.add_argument(
        "results", type=Path, help="a results folder (searched for *.jsonl), or one .jsonl file"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"port on 127.0.0.1 (default {DEFAULT_PORT}; 0 takes a free one)",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FILE.html", help="write one self-contained page and exit"
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    index = TraceIndex(args.results)
    try:
        index.check()
        return _export(index, args.export) if args.export else _serve(index, args.port, args.open)
    except NoTracesError as error:
        return _fail(str(error))


def _export(index: TraceIndex, path: Path) -> int:
    if path.is_dir() or not path.parent.is_dir():
        return _fail(f"--export {path}: give a file name in a folder that exists, such as traces.html")
    index.refresh()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} traces", end="\n" if done == total else "", file=sys.stderr)

    try:
        size = export_page(index, path, progress)
    except MovedError as error:
        return _fail(f"{error} while it was being exported: wait for the run to end, then export again")
    except OSError as error:
        return _fail(f"--export {path}: {error.strerror or error}")
    print(f"{path}: {len(index.rows):,} traces, {size / 1e6:.1f} MB")
    if index.problem_count:
        first = printable(index.problems[0])
        print(f"{index.problem_count:,} line(s) could not be read: {first}", file=sys.stderr)
    return 0


def _serve(index: TraceIndex, port: int, open_browser: bool) -> int:
    try:
        server = ViewerServer(index, port)
    except OSError as error:
        return _fail(f"--port {port}: {error.strerror or error}. Take another, or --port 0 for a free one.")
    except OverflowError:
        return _fail(f"--port {port}: a port is a number from 0 to 65535")
    # Not an Event: a handler that comes while `wait` takes the Event's lock would wait for it for ever.
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stop.put(number))
    with server:
        bare = server.url.removeprefix("http://").rstrip("/")
        number = bare.rpartition(":")[2]
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        print(
            f"from another machine: ssh -L {number}:{bare} {socket.gethostname()}, then the same address",
            flush=True,
        )
        if open_browser:
            webbrowser.open(server.url)
        stop.get()
    return 0


def _fail(message: str) -> int:
    print(f"rlm-view: {printable(message, 1000)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
