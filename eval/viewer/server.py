"""The viewer's HTTP server: one folder, one machine, reading only.

What keeps it harmless: it binds 127.0.0.1 and cannot be told otherwise; it answers only requests whose
``Host`` is this machine, so that no web page can reach it through a name of its own (DNS rebinding); it
knows ``GET`` only; static files come from a fixed table and traces by keys of the index, so that no part of
a URL ever becomes a path.
"""

from __future__ import annotations

import gzip
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from eval.viewer import assets
from eval.viewer.document import document
from eval.viewer.index import MovedError, TraceIndex
from eval.viewer.jsonl import dumps

REFRESH_SECONDS = 2.0
"""How often the folder is looked through for new traces."""

_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Content-Security-Policy": assets.SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}


class ViewerServer:
    """Serves ``index`` on ``http://127.0.0.1:<port>``; port 0 takes a free one.

    Use as a context manager: inside, the server and the thread that follows the folder run. Raises
    ``OSError`` from the constructor when the port is taken.
    """

    def __init__(self, index: TraceIndex, port: int = 0) -> None:
        self.index = index
        self._http = _HTTPServer(("127.0.0.1", port), _Handler)
        self._http.index = index
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, name="rlm-view-http", daemon=True),
            threading.Thread(target=self._follow, name="rlm-view-index", daemon=True),
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/"

    def __enter__(self) -> ViewerServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.index.refresh()
            self._stop.wait(REFRESH_SECONDS)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    index: TraceIndex

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            self._fail(HTTPStatus.FORBIDDEN, "open this page as http://127.0.0.1 or http://localhost")
            return
        url = urlsplit(self.path)
        match url.path.split("/")[1:]:
            case [""]:
                self._send(assets.served_page().encode(), "html")
            case ["static", name] if name in assets.SCRIPTS or name in assets.STYLES:
                self._send(assets.read(name).encode(), name.rpartition(".")[2])
            case ["api", "index"]:
                query = parse_qs(url.query)
                start, generation = _whole(query, "from"), _whole(query, "generation")
                self._send(dumps(self.server.index.since(generation, start)), "json")
            case ["api", "trace", key]:
                self._trace(key)
            case ["api", "line", key]:
                self._line(key)
            case _:
                self._fail(HTTPStatus.NOT_FOUND, "no such page")

    def _trace(self, key: str) -> None:
        try:
            found = self.server.index.trace(key)
        except KeyError:
            self._fail(HTTPStatus.NOT_FOUND, "no such trace: its file was replaced or removed")
        except MovedError as error:
            self._fail(HTTPStatus.GONE, f"{error}; the list will reload itself")
        else:
            self._send(dumps(document(*found)), "json")

    def _line(self, key: str) -> None:
        try:
            line = self.server.index.line(key)
        except (KeyError, MovedError):
            self._fail(HTTPStatus.NOT_FOUND, "no such trace: its file was replaced or removed")
        else:
            name = re.sub(r"[^0-9a-f-]", "", key)
            self._send(line, "json", {"Content-Disposition": f'attachment; filename="trace-{name}.json"'})

    def _send(
        self,
        body: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        sent = {**_HEADERS, "Content-Type": f"{_TYPES[kind]}; charset=utf-8", **(headers or {})}
        # For those who read over an SSH tunnel; level 1 costs less than it saves.
        if len(body) > 4096 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            sent["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self._send(dumps({"error": message}), "json", status=status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Also for what the base class refuses by itself (other methods, malformed requests)."""
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = self.MessageClass()
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self._send(
            dumps({"error": message or status.phrase}),
            "json",
            {"Connection": "close", "Allow": "GET"},
            status,
        )

    def log_message(self, *args: Any) -> None:
        """Quiet: the terminal belongs to the command's own two lines."""


def _whole(query: dict[str, list[str]], name: str) -> int:
    value = query.get(name, ["0"])[0]
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
