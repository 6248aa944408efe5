"""The administration endpoints of a vLLM server, over real HTTP, with every call on record."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class ControlServer:
    """Answers {} to everything, or what `answers`, `fail` and `control` say.

    `control` is called with each request before it is answered, in the server's thread; an exception of its
    is raised when the server is closed.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[str, Any] = {
            "/is_paused": {"is_paused": False},
            "/server_info": {"vllm_config": {"model_config": {"model": "/models/policy"}}},
        }
        self.control: Callable[[Call], None] | None = None
        self._failures: dict[str, tuple[int, str, Callable[[Any], bool]]] = {}
        self._errors: list[BaseException] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                outer._handle(self)

            do_GET = do_POST = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def fail(
        self, path: str, status: int, text: str, when: Callable[[Any], bool] = lambda body: True
    ) -> None:
        """Answer requests to `path` whose body satisfies `when` with an error."""
        self._failures[path] = (status, text, when)

    def paths(self, method: str) -> list[str]:
        """The paths asked for, in order."""
        return [call.path for call in self.calls if call.method == method]

    def _handle(self, http: BaseHTTPRequestHandler) -> None:
        url = urlsplit(http.path)
        raw = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in http.headers.items()}
        call = Call(
            http.command, url.path, dict(parse_qsl(url.query)), json.loads(raw) if raw else None, headers
        )
        self.calls.append(call)
        status, payload = 200, json.dumps(self.answers.get(call.path, {})).encode()
        failure = self._failures.get(call.path)
        if failure is not None and failure[2](call.body):
            status, payload = failure[0], failure[1].encode()
        try:
            if self.control is not None:
                self.control(call)
        except BaseException as error:
            self._errors.append(error)
        try:
            http.send_response(status)
            http.send_header("Content-Length", str(len(payload)))
            http.end_headers()
            http.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):  # the client gave up waiting
            pass

    def __enter__(self) -> "ControlServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._http.shutdown()
        self._http.server_close()
        if error is None and self._errors:
            raise self._errors[0]
