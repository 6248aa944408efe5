"""The server: what it answers, to whom, and what it never does. The exported file's safety. The command."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.viewer import TraceIndex, ViewerServer, assets, export_page
from eval.viewer.cli import main
from tests.eval.viewer import synth

HOSTILE = "</script><script>alert(1)</script><!--\u2028<img src=x onerror=alert(2)>\ud800"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ViewerServer]:
    folder = tmp_path_factory.mktemp("results")
    synth.results_folder(folder, 10)
    (folder.parent / "secret.txt").write_text("secret")
    index = TraceIndex(folder)
    index.refresh()
    with ViewerServer(index) as running:
        yield running


def ask(
    server: ViewerServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=120)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_the_list_and_a_trace(server):
    status, _, body = ask(server, "/api/index?generation=-1&from=0")
    listing = json.loads(body)
    assert status == 200
    assert len(listing["rows"]) == listing["total"] == 10
    row = listing["rows"][4]
    status, _, body = ask(server, f"/api/trace/{row['key']}")
    assert status == 200
    assert json.loads(body)["row"] == row
    status, headers, body = ask(server, f"/api/line/{row['key']}")
    assert json.loads(body)["id"] == row["id"]
    assert headers["Content-Disposition"].startswith("attachment")
    assert json.loads(ask(server, "/api/index?generation=0&from=7")[2])["from"] == 7


def test_large_answers_are_compressed_for_those_who_can_read_that(server):
    plain = ask(server, "/api/index")[2]
    _, headers, packed = ask(server, "/api/index", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", ""]
)
def test_names_that_are_not_this_machine_are_refused(server, host):
    for path in ("/", "/api/index", "/static/app.js"):
        status, _, body = ask(server, path, Host=host)
        assert status == 403
        assert b"rows" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9999", "127.0.0.1:1"])
def test_this_machine_is_answered_under_any_port(server, host):
    assert ask(server, "/api/index", Host=host)[0] == 200  # a tunnel's port is not the server's


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_only_get(server, method):
    status, headers, _ = ask(server, "/api/index", method)
    assert status == 405
    assert headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../index.py",
        "/static/..%2f..%2fsecret.txt",
        "/static/%2e%2e/%2e%2e/secret.txt",
        "/static/index.html",  # a template, not a page
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/api/trace/../../secret.txt",
        "/api/line/0000000000-0-0",
        "/api/trace/",
        "/static/app.js/",
        "/secret.txt",
    ],
)
def test_nothing_outside_the_table_is_served(server, path):
    status, _, body = ask(server, path)
    assert status == 404
    assert b"secret" not in body
    assert b"root:" not in body


def test_every_answer_carries_the_policy(server):
    for path in ("/", "/static/app.js", "/api/index", "/nothing"):
        headers = ask(server, path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_it_listens_on_the_loopback_only(server):
    assert server._http.server_address[0] == "127.0.0.1"


def test_odd_queries_are_answered(server):
    for query in ("?from=-1", "?from=99999999999999999999", "?from=x&generation=%00", "?from=%D9%A3"):
        assert json.loads(ask(server, "/api/index" + query)[2])["from"] == 0


# --- the page's own files -------------------------------------------------------------------------------


def test_the_page_never_turns_text_into_html():
    source = "".join(assets.read(name) for name in assets.SCRIPTS)
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "eval(",
        "Function(",
    ):
        assert way not in source
    assert "</script" not in source.lower()
    assert "<!--" not in source
    assert "</style" not in assets.read("style.css").lower()


def test_the_page_loads_nothing_from_elsewhere():
    for name in (*assets.SCRIPTS, *assets.STYLES, "index.html"):
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]{2,}", assets.read(name)), name


# --- export ---------------------------------------------------------------------------------------------


class Scripts(HTMLParser):
    """The elements of a page: every script with its attributes and text, and the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[str] = []
        self.policy = ""
        self.style = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.tags.append("/" + tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        if self.tags[-1:] == ["style"]:
            self.style += data


def test_an_exported_page_holds_every_trace_as_inert_base64(tmp_path):
    records = [synth.oolong_rlm(1), synth.chat(2, prompt=HOSTILE, model=HOSTILE, name=HOSTILE)]
    synth.write(tmp_path / f"run{HOSTILE[:9].replace('/', '_')}" / "traces.jsonl", records)
    index = TraceIndex(tmp_path)
    index.refresh()
    out = tmp_path / "page.html"
    assert export_page(index, out) == out.stat().st_size
    page = out.read_text(encoding="utf-8")
    assert "alert(" not in page
    parsed = Scripts()
    parsed.feed(page)
    *data, (attributes, script) = parsed.scripts
    assert attributes == {}
    assert script == "\n".join(assets.read(name) for name in assets.SCRIPTS)
    assert [a["id"] for a, _ in data] == ["index", *("trace-" + row["key"] for row in index.rows)]
    for (attributes, packed), row in zip(data[1:], index.rows, strict=True):
        assert attributes["type"] == "application/octet-stream"
        assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
        assert json.loads(gzip.decompress(base64.b64decode(packed)))["row"] == row
    assert not list(tmp_path.glob("*.partial"))


def test_the_exported_policy_allows_exactly_its_own_script_and_style(tmp_path):
    synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    index = TraceIndex(tmp_path)
    index.refresh()
    export_page(index, tmp_path / "page.html")
    parsed = Scripts()
    parsed.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    for name, source in (("script-src", parsed.scripts[-1][1]), ("style-src", parsed.style)):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in parsed.policy
    assert "connect-src 'none'" in parsed.policy


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_fails_with_the_cure(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist. Give the folder" in capsys.readouterr().err
    synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    assert main([str(tmp_path), "--export", str(tmp_path / "no" / "page.html")]) == 2
    assert "in a folder that exists" in capsys.readouterr().err
    with ViewerServer(TraceIndex(tmp_path)) as taken:
        port = taken.url.rpartition(":")[2].rstrip("/")
        assert main([str(tmp_path), "--port", port]) == 2
    assert "--port 0 for a free one" in capsys.readouterr().err
    assert main([str(tmp_path), "--port", "70000"]) == 2


def test_the_command_exports(tmp_path, capsys):
    synth.results_folder(tmp_path, 5)
    assert main([str(tmp_path), "--export", str(tmp_path / "page.html")]) == 0
    assert "5 traces" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size > 20_000


def test_a_file_name_cannot_write_to_the_terminal(tmp_path, capsys):
    synth.write(tmp_path / "\x1b]0;title\x07\x9b2J.jsonl", [synth.chat(1)])
    with next(tmp_path.glob("*.jsonl")).open("a") as file:
        file.write("not json\n")
    assert main([str(tmp_path), "--export", str(tmp_path / "page.html")]) == 0
    assert main([str(tmp_path / "\x1b[2Jnowhere")]) == 2
    told = capsys.readouterr().err
    assert "1 line(s) could not be read: ]0;title 2J.jsonl, line 2" in told
    assert "nowhere does not exist" in told
    assert not set("\x1b\x07\x9b") & set(told)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(tmp_path, ending):
    synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.viewer.cli", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert address
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=120)
        connection.request("GET", "/")
        assert b"<title>Traces</title>" in connection.getresponse().read()
        connection.close()
        process.send_signal(ending)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()
