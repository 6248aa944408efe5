"""The list in a real browser: filters, order, keys, length, growth. And the exported page."""

from __future__ import annotations

import json
import shutil

import pytest

from eval.viewer import TraceIndex, export_page
from tests.eval.viewer import synth
from tests.eval.viewer.browser import Browser
from tests.eval.viewer.pages import ROWS, episode, opened, served

pytestmark = pytest.mark.browser


def test_without_chromium_the_tests_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get install -y chromium"):
        Browser()


def test_filters_narrow_the_list_and_the_address_keeps_them(browser, results):
    with served(browser, results) as (page, index):
        page.wait(f"document.querySelectorAll('{ROWS}').length > 5")
        assert page.texts("#summary b")[0] == "60 traces"

        def choose(name: str, value: str) -> None:
            page.js(
                f"{{const s = document.getElementById('filter-{name}'); s.value = '={value}'; "
                "s.dispatchEvent(new Event('change'))}"
            )

        choose("mode", "rlm")
        choose("suite", "oolong")
        expected = [r for r in index.rows if r["mode"] == "rlm" and r["suite"] == "oolong"]
        assert 0 < len(expected) < 30
        assert page.texts("#summary b")[0] == f"{len(expected)} of 60 traces"
        assert set(page.texts(f"{ROWS} .c-mode .cell-line:first-child")) == {"rlm"}
        # Each choice counts what it would show beside the other filters.
        rlm = sum(r["mode"] == "rlm" and r["suite"] == "deepdive" for r in index.rows)
        assert f"deepdive ({rlm})" in page.texts("#filter-suite option")
        assert page.js("location.hash") == "#/?mode=rlm&suite=oolong"

        page.reload()
        page.wait(f"document.querySelectorAll('{ROWS}').length === {len(expected)}")

        page.click("#clear")
        page.js("document.getElementById('max').focus()")
        page.type("0.5")
        low = [r for r in index.rows if r["reward"] is not None and r["reward"] <= 0.5]
        assert page.texts("#summary b")[0] == f"{len(low)} of 60 traces"
        page.click("#clear")
        choose("outcome", "error")
        errors = [r for r in index.rows if r["outcome"] == "error"]
        assert errors
        assert page.texts(f"{ROWS} .c-question .bad") == [r["error"] for r in errors]
        assert "without a reward" in page.texts("#summary")[0]  # errors are not zeros


def test_the_phases_of_a_run_are_folders_to_choose_from(browser, tmp_path):
    for phase, rewards in (("eval_before", (0.0, 0.0, 1.0)), ("eval_after", (1.0, 1.0))):
        records = [synth.chat(number, reward=reward) for number, reward in enumerate(rewards)]
        synth.write(tmp_path / phase / "traces.jsonl", records)
    with served(browser, tmp_path) as (page, _):
        page.wait(f"document.querySelectorAll('{ROWS}').length === 5")
        assert {"eval after (2)", "eval before (3)"} <= set(page.texts("#filter-folder option"))
        page.js(
            "{const s = document.getElementById('filter-folder'); s.value = '=eval_after'; "
            "s.dispatchEvent(new Event('change'))}"
        )
        assert page.texts(f"{ROWS} .c-mode .cell-line:last-child") == ["eval_after"] * 2
        assert page.texts("#summary b")[:2] == ["2 of 5 traces", "1.00"]


def test_search_finds_words_in_any_order(browser, results):
    with served(browser, results) as (page, index):
        page.wait(f"document.querySelector('{ROWS}')")
        page.key("/")
        page.type("WINDOW glm-4.6")
        hits = [r for r in index.rows if "window" in r["error"] and r["model"] == "glm-4.6"]
        assert hits
        assert page.js(f"document.querySelectorAll('{ROWS}').length") == len(hits)
        page.type(" nothing like this")
        assert page.texts(".empty") == ["No trace matches these filters."]


def test_sorting_by_any_column_both_ways_with_the_empty_last(browser, results):
    with served(browser, results) as (page, index):
        page.wait(f"document.querySelector('{ROWS}')")
        page.resize(1440, 5000)  # all rows at once

        def order() -> list[str]:
            return page.js(f"[...document.querySelectorAll('{ROWS}')].map(e => e.dataset.key)")

        page.wait(f"document.querySelectorAll('{ROWS}').length === 60")
        files = [r["key"] for r in index.rows]
        assert order() == files
        page.click("#sort-reward")
        rewards = {r["key"]: r["reward"] for r in index.rows}
        values = [rewards[key] for key in order()]
        scored = [v for v in values if v is not None]
        assert scored == sorted(scored, reverse=True)
        assert values[len(scored) :] == [None] * (60 - len(scored)) != []
        page.click("#sort-reward")
        values = [rewards[key] for key in order()]
        assert values[: len(scored)] == sorted(scored)
        assert values[-1] is None
        page.click("#sort-reward")
        assert order() == files
        page.click("#sort-suite")
        suites = {r["key"]: r["suite"] for r in index.rows}
        assert [suites[key] for key in order()] == sorted(suites.values())


def test_the_keyboard_alone_is_enough(browser, results):
    with served(browser, results) as (page, index):
        page.wait(f"document.querySelector('{ROWS}')")
        for key in ("j", "ArrowDown", "j", "k"):
            page.key(key)
        assert page.js("document.querySelector('.row.cursor').dataset.key") == index.rows[2]["key"]
        page.key("Enter")
        page.wait(f"document.querySelector({json.dumps(episode(index.rows[2]['key']))})")
        page.key("]")
        page.wait(f"document.querySelector({json.dumps(episode(index.rows[3]['key']))})")
        page.key("Escape")
        page.wait("document.querySelector('.row.cursor')")
        assert page.js("document.querySelector('.row.cursor').dataset.key") == index.rows[3]["key"]
        page.key("End")
        assert page.js("document.querySelector('.row.cursor').dataset.key") == index.rows[-1]["key"]
        page.key("?")
        assert page.js("document.getElementById('keys').open") is True
        page.key("Escape")
        page.wait("!document.getElementById('keys').open")
        before = page.js("document.documentElement.dataset.theme")
        page.key("t")
        assert page.js("document.documentElement.dataset.theme") != before


def test_a_thousand_traces_are_a_screenful_of_elements(browser, tmp_path):
    lines = [json.dumps(synth.chat(n, reward=n % 2)) for n in range(20)]
    records = [json.loads(lines[n % 20]) | {"id": f"{n:032x}"} for n in range(1000)]
    synth.write(tmp_path / "traces.jsonl", records)
    with served(browser, tmp_path) as (page, index):
        page.wait(f"document.querySelectorAll('{ROWS}').length > 5")
        assert page.texts("#summary b")[0] == "1,000 traces"
        assert page.js("document.querySelectorAll('*').length") < 2500
        page.js("document.getElementById('rows').scrollTop = 1e9")
        page.wait(f"document.querySelector('{ROWS}[data-at=\"999\"]')")
        assert (
            page.js(f"document.querySelector('{ROWS}[data-at=\"999\"]').dataset.key")
            == index.rows[999]["key"]
        )
        assert page.js(f"document.querySelectorAll('{ROWS}').length") < 60
        page.key("/")
        page.type(f"{777:032x}")
        assert page.js(f"document.querySelectorAll('{ROWS}').length") == 1


def test_traces_appear_as_they_are_written(browser, tmp_path):
    path = tmp_path / "traces.jsonl"
    path.touch()
    with served(browser, tmp_path) as (page, _):
        page.wait("document.querySelector('.empty')?.textContent.includes('appear here')")
        synth.write(path, [synth.chat(1, reward=1.0)])
        page.wait(f"document.querySelectorAll('{ROWS}').length === 1")
        with path.open("a") as file:
            file.write("{torn")
        synth.write(path, [synth.chat(2, reward=0.0)])  # ends the torn line
        synth.write(path, [synth.chat(3, reward=0.0)])
        page.wait(f"document.querySelectorAll('{ROWS}').length === 2")
        page.wait("document.getElementById('notice').textContent.includes('1 line could not be read')")


def test_an_exported_page_works_from_a_file(browser, results, tmp_path):
    index = TraceIndex(results)
    index.refresh()
    export_page(index, tmp_path / "page.html")
    with browser.page((tmp_path / "page.html").as_uri()) as page:
        page.wait(f"document.querySelectorAll('{ROWS}').length > 5")
        assert page.texts("#summary b")[0] == "60 traces"
        assert page.js("document.getElementById('live').hidden") is True
        row = opened(page, index, suite="oolong", mode="rlm")
        assert page.texts("#panel > .tree > .turn h3") == [f"Turn {n}" for n in range(5)]
        assert page.texts("h1 .muted") == [" " + row["task"]]
        assert page.js("document.querySelectorAll('a[download]').length") == 0  # nothing to download from
        assert page.problems == []
        assert {url for url in page.requests if not url.startswith("data:,")} == {
            (tmp_path / "page.html").as_uri()
        }
