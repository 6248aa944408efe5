"""One trace in a real browser: turns, batches, child RLMs, the answer, and texts of megabytes."""

from __future__ import annotations

import json

import pytest

from tests.eval.viewer import synth
from tests.eval.viewer.pages import HOSTILE, ROWS, one, opened, served

pytestmark = pytest.mark.browser


def test_turns_show_code_with_output_and_errors(browser, tmp_path):
    with served(browser, one(tmp_path, synth.oolong_rlm(3, calls=6))) as (page, index):
        opened(page, index)
        assert page.texts("#panel > .tree > .turn h3") == [f"Turn {n}" for n in range(5)]
        cells = page.texts(".repl")
        assert "print(type(context), len(context))" in cells[0]
        assert "<class 'str'>" in cells[0]
        assert page.texts(".py-scaffold")[:1] == ["context"]
        assert page.texts(".repl.failed .repl-bar span")[0] == "✕ NameError"
        assert page.texts(".prose")[0] == "I start by looking at what `context` is."
        assert page.texts(".right .card h2")[:3] == ["Rewards", "Limits", "Tokens and time"]
        assert "5 of 30" in page.texts(".right")[0]
        assert page.texts(".answers .card .text")[0] == "Label: ham"


def test_batches_open_into_calls_and_calls_into_conversations(browser, tmp_path):
    with served(browser, one(tmp_path, synth.oolong_rlm(3, calls=120))) as (page, index):
        opened(page, index)
        assert page.js("document.querySelectorAll('.call').length") == 0  # made when they are asked for
        page.click(".batch > summary")
        page.wait("document.querySelectorAll('.call').length === 50")
        assert "120 calls" in page.texts(".batch > summary")[0]
        page.click(".calls > .more")
        page.wait("document.querySelectorAll('.call').length === 120")
        assert page.js("document.querySelector('.calls > .more').hidden") is True
        page.click(".call:nth-child(8) > summary")
        page.wait("document.querySelector('.call:nth-child(8) .message.assistant')")
        assert page.texts(".call:nth-child(8) .message-head b") == ["system", "user", "assistant"]
        assert page.texts(".call:nth-child(8) .call-id") == ["sub.7"]


def test_child_rlms_open_below_their_call(browser, tmp_path):
    with served(browser, one(tmp_path, synth.deep_rlm(1))) as (page, index):
        opened(page, index)
        page.click(".batch > summary")
        page.click(".call:first-child > summary")
        page.wait("document.querySelectorAll('.call .tree .turn').length === 2")
        page.key("e")  # everything else, the grandchildren's calls included
        page.wait("document.querySelector('[data-path=\"rlm.1\"]')")
        assert "Ada Finch" in page.texts('[data-path="rlm.0"] .call .message.assistant')[0]
        page.key("c")
        page.wait("document.querySelectorAll('#panel details[open]').length === 0")


def test_the_answer_is_shown_as_it_changed(browser, tmp_path):
    with served(browser, one(tmp_path, synth.oolong_rlm(3, calls=6))) as (page, index):
        opened(page, index)
        answers = page.texts(".answer > summary")
        assert len(answers) == 2  # of five turns, those in which it changed
        assert "ready" in answers[1]
        assert page.texts(".turn:last-of-type .diff-line") == [
            " Label: ham",
            "−(checked against 40 lines by hand)",
        ]


def test_a_trace_of_another_harness_shows_its_conversation(browser, tmp_path):
    with served(browser, one(tmp_path, synth.chat(1, reward=1.0))) as (page, index):
        opened(page, index)
        assert page.texts(".tabs [role=tab]") == ["Conversations (1)", "Task data and configuration"]
        assert page.texts(".message-head b") == ["user", "assistant", "tool python", "assistant"]
        assert page.texts(".tool-call b") == ["python"]
        page.key("2")
        page.wait("document.querySelector('.outline')")
        page.key("e")
        assert "subprocess" in page.texts("#panel")[0]


def test_failures_stand_first(browser, tmp_path):
    record = synth.chat(1, error=("ProviderError", "503 from the endpoint"))
    with served(browser, one(tmp_path, record)) as (page, index):
        opened(page, index)
        assert page.texts(".left > .problem b")[0] == "ProviderError"
        assert page.js("document.querySelector('.left').firstElementChild.className") == "problem"
        assert page.texts(".reward b") == ["–"]


def test_what_the_endpoint_said_to_a_prompt_beyond_the_window(browser, tmp_path):
    made = synth.as_episode(synth.overflow(1))
    others = [synth.as_episode(synth.chat(n, reward=1.0)) for n in (2, 3)]
    synth.write(tmp_path / "cells" / "oolong__default__llm__m" / "traces.jsonl", [*others, made])
    with served(browser, tmp_path) as (page, index):
        page.wait("document.querySelector('#search')")
        page.js("document.querySelector('#search').focus()")
        page.type(made["id"])  # as the report names an episode
        page.wait(f"document.querySelectorAll('{ROWS}').length === 1")
        opened(page, index, outcome="overflow")
        assert page.texts(".left > .problem b") == ["root.0: ProviderError (HTTP 400)"]
        assert "maximum context length is 65536" in page.texts(".left > .problem")[0]
        assert page.texts(".episode-head .chip.bad") == ["⊘ prompt beyond the window"]
        assert page.texts(".reward b") == ["–"]


def test_calls_that_were_retried_are_folded_away(browser, tmp_path):
    record = synth.chat(1, reward=1.0)
    lost = synth.overflow(1)["calls"][0]
    record["calls"] = [lost, lost, *record["calls"]]
    with served(browser, one(tmp_path, record)) as (page, index):
        opened(page, index)
        assert page.texts(".left > .problem") == []
        assert page.texts(".left > .fold > summary") == ["2 model calls without a reply"]
        page.click(".left > .fold > summary")
        page.wait("document.querySelectorAll('.left > .fold .problem').length === 2")


def test_an_answer_of_a_hundred_thousand_lines_is_not_as_many_elements(browser, tmp_path):
    made = synth.Builder(1, prompt="Count.")
    content = "\n".join(map(str, range(100_000)))
    made.rlm_turn(synth.fenced("x"), [synth.block("x", "")], answer=(content, True))
    with served(browser, one(tmp_path, made.finish(reward=0.0))) as (page, index):
        opened(page, index)
        page.key("e")
        page.wait("document.querySelector('.answer .diff-line')")
        assert page.texts(".answer > summary .come") == ["+100000 "]
        assert page.texts(".answer .diff-line summary") == ["98,000 more lines"]
        assert page.js("document.querySelectorAll('*').length") < 10_000


def test_an_observation_of_two_megabytes(browser, tmp_path):
    line = "the same line again and again, until there are two megabytes of it 🦊\n"
    output = line * (2_000_000 // len(line))
    no_breaks = "🦊" * 300_000
    made = synth.Builder(1, prompt="Print it all.")
    made.rlm_turn(synth.fenced("print(context)"), [synth.block("print(context)", output)], observation=output)
    made.rlm_turn(synth.fenced("x"), [synth.block("x", no_breaks)], answer=("done", True))
    with served(browser, one(tmp_path, made.finish(reward=0.0))) as (page, index):
        opened(page, index)
        first, second = ".turn:nth-of-type(1) .repl", ".turn:nth-of-type(2) .repl"
        assert page.js("document.body.textContent.length") < 60_000
        length = len(output.encode("utf-16-le")) // 2  # as JavaScript counts
        assert page.texts(f"{first} .more")[0] == f"show all {length:,} characters"
        page.click(f"{first} .output .more")
        shown = (
            f"[...document.querySelectorAll('{first} .output .piece')].map(e => e.textContent).join('\\n')"
        )
        assert page.js(f"{shown} + '\\n'") == output or page.js(shown) == output
        page.click(f"{second} .output .more")
        joined = shown.replace(first, second).replace("\\n", "")
        assert page.js(joined) == no_breaks  # cut between characters, never through one
        page.click(f"{first} .output .more")
        page.wait(f"!document.querySelector('{first} .piece')")


# --- the scripts' own functions -------------------------------------------------------------------------


def test_diffs_turn_one_text_into_the_other(browser, results):
    """Random lists: what is kept and removed is the old one, what is kept and added the new one, and what is
    kept is a longest common subsequence (by an independent recursion)."""
    check = """(() => {
        let state = 12345;
        const random = (n) => (state = (state * 1103515245 + 12345) % 2147483648) % n;
        for (let round = 0; round < 400; round++) {
            const list = () => Array.from({length: random(9)}, () => "abc"[random(3)]);
            const [a, b] = [list(), list()];
            const steps = View.diffLists(a, b);
            const side = (mark) => steps.filter(([k]) => k === "=" || k === mark).map(([, x]) => x).join("");
            const lcs = (i, j) => i === a.length || j === b.length ? 0
                : a[i] === b[j] ? 1 + lcs(i + 1, j + 1) : Math.max(lcs(i + 1, j), lcs(i, j + 1));
            const kept = steps.filter(([k]) => k === "=").length;
            if (side("-") !== a.join("") || side("+") !== b.join("") || kept !== lcs(0, 0)) return [a, b];
        }
        return "good";
    })()"""
    with served(browser, results) as (page, _):
        assert page.js(check) == "good"
        big = "Array.from({length: 5000}, (_, i) => String(i % 7 + START)).join('\\n')"
        texts = f"{big.replace('START', '0')}, {big.replace('START', '100')}"
        counts = page.js(f"(({{added, removed}}) => [added, removed])(View.diff({texts}))")
        assert counts == [5000, 5000]


def test_colouring_and_splitting_change_no_character(browser, results):
    samples = [
        "x = f'a{b}' # c\n'''open",
        'print("un\\"closed\ny = 1e-5j + 0x_ff',
        "@d\nasync def f(ß: int = 3) -> None: ...",
        '\'\\\\\' """a"b""" r\'\\d\'',
        HOSTILE,
        "\\",
        "'" * 50,
    ]
    with served(browser, results) as (page, _):
        for code in samples:
            source = json.dumps(code)
            shown = f"View.el('pre', '', View.python({source})).textContent"
            assert page.js(shown) == page.js(source)
        reply = (
            "one\n\n```python\na = '''\n```not a fence\n'''\n```\ntwo\n~~~\n"
            "```\nbare\n```\n````py\n```\n````\nlast ```x``` end"
        )
        parts = page.js(f"View.segments({json.dumps(reply)}).map(p => [p.code, p.text])")
        assert parts == [
            [False, "one"],
            [True, "a = '''\n```not a fence\n'''"],
            [False, "two\n~~~"],
            [True, "bare"],
            [True, "```"],
            [False, "last ```x``` end"],
        ]
        assert page.js("View.segments('```python\\nunfinished').map(p => p.text)") == ["unfinished"]
