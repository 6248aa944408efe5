"""Headless Chromium, driven over the DevTools protocol: as much of it as these tests need.

``Browser`` starts one process with a profile of its own; ``page`` opens a tab that records what went wrong in
it (exceptions, console errors, refusals of the content-security policy) and every request it made.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars=false",
    "--remote-debugging-port=0",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "the viewer's browser tests need Chromium and none was found (looked for: " + ", ".join(NAMES) + "). "
    "Install it: on Debian and Ubuntu `apt-get update && apt-get install -y chromium`, then run them again."
)
SECONDS = 120.0
"""For anything that the browser is asked: one that hangs takes so long, one on a busy machine does not."""


class Browser:
    """One Chromium process. Raises ``FileNotFoundError``, with the cure, where there is no Chromium."""

    def __init__(self) -> None:
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            raise FileNotFoundError(MISSING)
        self._folder = tempfile.TemporaryDirectory(prefix="rlm-view-chromium-", ignore_cleanup_errors=True)
        profile = Path(self._folder.name)
        self._log = (profile / "log").open("wb")
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=self._log,
            stderr=self._log,
        )
        self.address = f"http://127.0.0.1:{self._port(profile)}"

    def _port(self, profile: Path) -> int:
        written = profile / "DevToolsActivePort"
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if written.exists() and (lines := written.read_text().splitlines()):
                return int(lines[0])
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        log = (profile / "log").read_text(errors="replace")[-2000:]
        self.__exit__(None, None, None)
        raise RuntimeError(f"Chromium did not start:\n{log}")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    @contextmanager
    def page(self, url: str, width: int = 1440, height: int = 900) -> Iterator[Page]:
        target = httpx.put(f"{self.address}/json/new?about:blank", timeout=SECONDS).json()
        # No pings: a browser that is busy would be taken for one that is gone.
        with connect(
            target["webSocketDebuggerUrl"], max_size=2**28, open_timeout=SECONDS, ping_interval=None
        ) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            # A tab behind another one draws no frames and follows its folder five times more slowly.
            page.call("Page.bringToFront")
            page.resize(width, height)
            page.open(url)
            yield page
        httpx.get(f"{self.address}/json/close/{target['id']}", timeout=SECONDS)


class Page:
    """One tab. ``problems`` and ``requests`` fill as it runs."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._count = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        own = self._count  # answering a dialog meanwhile counts on
        self._socket.send(json.dumps({"id": own, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == own:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._heard(message.get("method"), message.get("params", {}))

    def _heard(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(str([argument.get("value") for argument in params["args"]]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._count += 1
            self._socket.send(
                json.dumps(
                    {"id": self._count, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                )
            )

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self) -> None:
        """Load the page anew. The old document, which goes on answering for a while, is told by a mark."""
        self.js("window.isOld = true")
        self.call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression (promises are awaited)."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """The first value of ``expression`` that is true, an element counting as such."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := self.js(f"(value => value instanceof Node || value)({expression})"):
                    return value
            except RuntimeError:
                pass  # the document was replaced while it was asked
            if time.monotonic() > end:
                raise AssertionError(f"never true: {expression}\nproblems: {self.problems}")
            time.sleep(0.02)

    def texts(self, selector: str) -> list[str]:
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.js(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, key: str) -> None:
        """Press and release a key, as a person does: through the browser's input, not the page's events."""
        printable = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "End": 35, "Home": 36}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **printable, **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def theme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path
