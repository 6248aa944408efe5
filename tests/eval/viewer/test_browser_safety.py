"""Hostile traces in a real browser: they stay text, and the browser would refuse what the page never does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eval.viewer import TraceIndex, ViewerServer, export_page
from tests.eval.viewer import synth
from tests.eval.viewer.browser import Page
from tests.eval.viewer.pages import HOSTILE, ROWS, episode, one, served

pytestmark = pytest.mark.browser


def hostile_records() -> list[dict[str, Any]]:
    """Hostile text in every string of a record that a model, a task or a server chooses."""
    made = synth.Builder(1, task_type=HOSTILE, prompt=HOSTILE, model=HOSTILE, name=HOSTILE, answer=HOSTILE)
    made.trace.task.data.__pydantic_extra__.update({HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE] * 3}})
    ids = made.rlm_turn(
        HOSTILE + synth.fenced(HOSTILE),
        [synth.block(HOSTILE, HOSTILE, error=HOSTILE, lost=[HOSTILE], restored=[HOSTILE], truncated_chars=3)],
        observation=HOSTILE,
        answer=(HOSTILE, False),
        batch=(HOSTILE, [(HOSTILE, HOSTILE), (HOSTILE, "!" + HOSTILE)]),
    )
    made.child(ids[1])
    made.rlm_turn(HOSTILE, [], answer=(HOSTILE[::-1] + "\n" + HOSTILE, True))
    record = made.finish(reward=1.0, stop=HOSTILE, error=(HOSTILE, HOSTILE))
    record["metrics"][HOSTILE] = 1.0
    record["rewards"][HOSTILE] = {"score": 1.0, "weight": 1.0}
    record["info"][HOSTILE] = HOSTILE
    record["errors"][0]["traceback"] = HOSTILE
    chat = synth.chat(2, prompt=HOSTILE, reward=1.0)
    chat["nodes"][1]["message"]["tool_calls"][0].update(name=HOSTILE, arguments=HOSTILE)
    chat["nodes"][2]["message"].update(content=HOSTILE, name=HOSTILE)
    chat["nodes"][3]["message"].update(role=HOSTILE, reasoning_content=HOSTILE)
    return [record, chat]


def look_at_everything(page: Page, keys: list[str]) -> None:
    page.wait(f"document.querySelectorAll('{ROWS}').length === 2")
    assert HOSTILE.replace("\u2028\u2029", " ")[:80] in page.js("document.body.textContent")
    for key in keys:
        page.js(f"location.hash = '#/trace/{key}'")
        page.wait(f"document.querySelector({json.dumps(episode(key))})")
        for tab in range(page.js("document.querySelectorAll('.tabs [role=tab]').length")):
            page.js(f"document.querySelectorAll('.tabs [role=tab]')[{tab}].click()")
            page.js("View.setFolds(document.body, true)")
            assert page.js("document.getElementById('main').textContent.includes('<svg/onload=alert(1)>')")
    page.js("new Promise(done => setTimeout(done, 100))")  # time for what would load or run
    assert page.js("typeof window.pwned") == "undefined"
    assert (
        page.js(
            "document.querySelectorAll('img, svg, iframe, object, embed, main script, a[href^=java]').length"
        )
        == 0
    )


def test_hostile_traces_stay_text(browser, tmp_path):
    synth.write(tmp_path / "<img src=x onerror=pwned=1>" / "traces.jsonl", hostile_records())
    with served(browser, tmp_path) as (page, index):
        look_at_everything(page, [row["key"] for row in index.rows])


def test_hostile_traces_stay_text_in_an_exported_page(browser, tmp_path):
    synth.write(tmp_path / "<img src=x onerror=pwned=1>" / "traces.jsonl", hostile_records())
    index = TraceIndex(tmp_path)
    index.refresh()
    export_page(index, tmp_path / "page.html")
    with browser.page((tmp_path / "page.html").as_uri()) as page:
        look_at_everything(page, [row["key"] for row in index.rows])
        assert (page.problems, page.dialogs) == ([], [])
        assert [url for url in page.requests if not url.startswith(("file://", "data:,"))] == []


@pytest.mark.parametrize("address", ["served", "exported"])
def test_the_browser_itself_refuses_what_the_page_never_does(browser, tmp_path, address):
    """Were there a hole in the scripts, the policy would close it: tried here by hand."""
    index = TraceIndex(one(tmp_path, synth.chat(1)))
    index.refresh()
    export_page(index, tmp_path / "page.html")
    with ViewerServer(index) as server:
        url = server.url if address == "served" else (tmp_path / "page.html").as_uri()
        with browser.page(url) as page:
            page.wait(f"document.querySelector('{ROWS}')")
            assert (
                page.js("(() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name } })()")
                == "TypeError"
            )
            assert page.js("(() => { try { eval('1') } catch (e) { return e.name } })()") == "EvalError"
            style = "const s = document.createElement('style'); s.textContent = 'main { display: none }'"
            page.js(f"{{ {style}; document.body.append(s) }}")
            assert page.js("getComputedStyle(document.querySelector('main')).display") != "none"
            reached = "fetch('http://127.0.0.1:9/').then(() => 'yes', e => e.message)"
            assert "Failed to fetch" in page.js(reached)
            assert any("Content Security Policy" in problem for problem in page.problems)
