"""Finding traces: growing, torn, replaced and foreign files; rows; byte offsets."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import pytest

from eval.viewer.index import MovedError, NoTracesError, TraceIndex
from eval.viewer.jsonl import BadLineError, dumps, finished_lines, parse
from tests.eval.viewer import synth


def refreshed(root: Path) -> TraceIndex:
    index = TraceIndex(root)
    index.refresh()
    return index


def append(path: Path, data: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(data)


# --- offsets --------------------------------------------------------------------------------------------


def test_every_trace_is_found_again_by_its_byte_range(tmp_path):
    rng = random.Random(5)
    alphabet = 'aß→🦊\u2028"\\\n'
    written = []
    for n in range(30):
        noise = "".join(rng.choice(alphabet) for _ in range(rng.randrange(200)))
        written.append(synth.chat(n, reward=0.5, prompt=noise))
    path = tmp_path / "a" / "traces.jsonl"
    path.parent.mkdir()
    lines = [json.dumps(record, ensure_ascii=n % 2 == 0) for n, record in enumerate(written)]
    path.write_text("".join(line + "\n" * (1 + n % 3) for n, line in enumerate(lines)), encoding="utf-8")

    index = refreshed(tmp_path)
    assert [row["id"] for row in index.rows] == [record["id"] for record in written]
    for row, record, line in zip(index.rows, written, lines, strict=True):
        found, episode, same_row = index.trace(row["key"])
        assert found == record
        assert episode == {}
        assert same_row is row
        assert index.line(row["key"]) == line.encode()


def test_keys_are_the_same_in_every_index(tmp_path):
    synth.results_folder(tmp_path, 12)
    first, second = refreshed(tmp_path), refreshed(tmp_path)
    assert [row["key"] for row in first.rows] == [row["key"] for row in second.rows]
    assert len({row["key"] for row in first.rows}) == 12


def test_episode_lines_give_a_row_for_each_agent(tmp_path):
    solver, judge = synth.chat(1, reward=1.0), synth.chat(2, reward=0.0)
    episode = synth.as_episode(solver, env="best-of-n+gsm8k")
    episode["traces"] = [solver, judge]
    synth.write(tmp_path / "traces.jsonl", [episode])
    index = refreshed(tmp_path)
    assert [row["id"] for row in index.rows] == [solver["id"], judge["id"]]
    assert {row["suite"] for row in index.rows} == {"gsm8k"}
    record, around, _ = index.trace(index.rows[1]["key"])
    assert (record["id"], around["id"]) == (judge["id"], episode["id"])


def test_an_episode_that_failed_before_any_trace_is_seen(tmp_path):
    episode = synth.as_episode(synth.chat(1))
    episode |= {"traces": [], "ok": False, "errors": [{"type": "EnvError", "message": "setup() broke"}]}
    synth.write(tmp_path / "traces.jsonl", [episode])
    index = refreshed(tmp_path)
    assert [(row["outcome"], row["error"]) for row in index.rows] == [("error", "EnvError: setup() broke")]
    assert index.trace(index.rows[0]["key"])[0]["id"] == episode["id"]


# --- files that change ----------------------------------------------------------------------------------


def test_a_torn_last_line_waits_until_it_is_finished(tmp_path):
    path = synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    late = json.dumps(synth.chat(2))
    append(path, late[: len(late) // 2])
    index = refreshed(tmp_path)
    assert (len(index.rows), index.problem_count) == (1, 0)
    append(path, late[len(late) // 2 :])
    index.refresh()
    assert len(index.rows) == 1
    append(path, "\n")
    index.refresh()
    assert [row["id"] for row in index.rows] == [synth.chat(1)["id"], synth.chat(2)["id"]]
    assert index.generation == 0


def test_a_growing_folder_is_followed_without_reading_twice(tmp_path, monkeypatch):
    synth.write(tmp_path / "a.jsonl", [synth.chat(1)])
    index = refreshed(tmp_path)
    looked_at = []
    monkeypatch.setattr(
        "eval.viewer.index.finished_lines",
        lambda path, start: looked_at.append((path.name, start)) or finished_lines(path, start),
    )
    size = (tmp_path / "a.jsonl").stat().st_size
    synth.write(tmp_path / "a.jsonl", [synth.chat(2)])
    synth.write(tmp_path / "b" / "traces.jsonl", [synth.chat(3)])
    index.refresh()
    assert looked_at == [("a.jsonl", size), ("traces.jsonl", 0)]
    answer = index.since(0, 1)
    assert (answer["from"], answer["total"]) == (1, 3)
    assert [row["id"] for row in answer["rows"]] == [synth.chat(2)["id"], synth.chat(3)["id"]]


@pytest.mark.parametrize("how", ["replaced", "shortened", "removed"])
def test_a_file_that_is_not_what_it_was_starts_a_new_generation(tmp_path, how):
    path = synth.write(tmp_path / "traces.jsonl", [synth.chat(1), synth.chat(2)])
    synth.write(tmp_path / "other.jsonl", [synth.chat(3)])
    index = refreshed(tmp_path)
    key = next(row["key"] for row in index.rows if row["id"] == synth.chat(2)["id"])
    if how == "replaced":  # as verifiers does on resume: written beside, then moved over
        beside = synth.write(tmp_path / "traces.jsonl.tmp", [synth.chat(4), synth.chat(5)])
        os.replace(beside, path)
    elif how == "shortened":
        path.write_text(json.dumps(synth.chat(4)) + "\n")
    else:
        path.unlink()
    with pytest.raises(MovedError):
        index.trace(key)
    index.refresh()
    assert index.generation == 1
    kept = {"replaced": {3, 4, 5}, "shortened": {3, 4}, "removed": {3}}[how]
    assert {row["id"] for row in index.rows} == {synth.chat(n)["id"] for n in kept}
    assert index.since(0, 3)["from"] == 0  # a page of the old generation gets all rows


def test_broken_lines_are_named_and_hide_nothing(tmp_path):
    path = synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    append(path, '{"nodes": [\n[1, 2]\n{"half": \n')
    synth.write(path, [synth.chat(2)])
    index = refreshed(tmp_path)
    assert len(index.rows) == 2
    assert index.problem_count == 3
    assert index.problems[0].startswith("traces.jsonl, line 2: not JSON")


def test_other_jsonl_files_are_left_alone(tmp_path):
    synth.write(tmp_path / "cells" / "x" / "traces.jsonl", [synth.chat(1)])
    synth.write(tmp_path / "episodes.jsonl", [{"suite": "oolong", "reward": 1.0}] * 3)
    index = refreshed(tmp_path)
    assert (len(index.rows), index.problem_count) == (1, 0)


# --- nothing to show ------------------------------------------------------------------------------------


def test_a_missing_folder_an_empty_one_and_one_without_traces_say_what_to_do(tmp_path):
    with pytest.raises(NoTracesError, match=r"nowhere does not exist\. Give the folder"):
        TraceIndex(tmp_path / "nowhere").check()
    with pytest.raises(NoTracesError, match=r"no \.jsonl file under .*rlm-eval @ configs/eval/offline\.toml"):
        TraceIndex(tmp_path).check()
    synth.write(tmp_path / "episodes.jsonl", [{"suite": "oolong"}])
    with pytest.raises(NoTracesError, match="none holds verifiers traces"):
        TraceIndex(tmp_path).check()


def test_a_run_that_has_just_begun_is_waited_for(tmp_path):
    (tmp_path / "traces.jsonl").touch()
    TraceIndex(tmp_path).check()
    index = refreshed(tmp_path / "traces.jsonl")
    assert index.rows == []
    synth.write(tmp_path / "traces.jsonl", [synth.chat(1)])
    index.refresh()
    assert [row["file"] for row in index.rows] == ["traces.jsonl"]


# --- JSON as it is found --------------------------------------------------------------------------------


def test_lines_with_nan_surrogates_and_wrong_bytes_are_read():
    assert math.isnan(parse(b'{"reward": NaN}')["reward"])
    assert parse(b'{"text": "\\ud83d alone"}')["text"] == "\ud83d alone"
    assert parse(b'{"text": "\xff"}')["text"] == "\ufffd"
    for bad in (b"[1]", b"{", b"", b"nonsense", b"[" * 100_000):
        with pytest.raises(BadLineError):
            parse(bad)


def test_what_is_sent_is_strict_ascii_json():
    value = {"a": [math.nan, -math.inf, 1.5, True, None], "b": ("\ud83d", "\u2028</script><!--", "ß")}
    sent = dumps(value)
    back = json.loads(sent.decode("ascii"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back == {"a": ["nan", "-inf", 1.5, True, None], "b": ["\ud83d", "\u2028</script><!--", "ß"]}


# --- rows -----------------------------------------------------------------------------------------------


def row_of(tmp_path: Path, record: dict, name: str = "traces.jsonl") -> dict:
    synth.write(tmp_path / name, [record])
    return refreshed(tmp_path).rows[0]


def test_a_row_says_where_the_cell_is(tmp_path):
    row = row_of(
        tmp_path, synth.oolong_rlm(3, calls=6), "cells/oolong__long__rlm_tips__org--m__x/traces.jsonl"
    )
    assert (row["suite"], row["setting"], row["mode"], row["model"]) == (
        "oolong",
        "long",
        "rlm_tips",
        "org--m__x",
    )
    assert row["folder"] == ""
    assert row["turns"] == 5
    assert row["sub_calls"] == 6
    assert row["answer"] == "Label: ham"
    assert row["stop"] == "answer_ready"


def test_a_row_of_a_lone_trace_is_told_from_the_trace(tmp_path):
    row = row_of(tmp_path, synth.chat(1, reward=0.25, model="tiny"))
    assert (row["suite"], row["mode"], row["model"], row["reward"]) == ("math-python", "null", "tiny", 0.25)
    assert row["root_in"] > 0
    assert row["sub_in"] == row["sub_out"] == 0


def test_tokens_of_calls_are_split_by_request_id_where_metrics_are_missing(tmp_path):
    record = synth.oolong_rlm(3, calls=6)
    metrics = record["metrics"]
    row = row_of(tmp_path, {**record, "metrics": {}})
    assert row["root_in"] == metrics["root_prompt_tokens"]
    assert row["root_out"] == metrics["root_completion_tokens"]
    assert row["sub_in"] == metrics["sub_prompt_tokens"]
    assert row["sub_out"] == metrics["sub_completion_tokens"]


@pytest.mark.parametrize(
    ("change", "outcome", "reward"),
    [
        ({}, "answered", 1.0),
        ({"stop_condition": "max_turns"}, "limit", 1.0),
        ({"info": {"rlm": {"stop_reason": "max_root_tokens"}}}, "limit", 1.0),
        ({"info": {"rlm": {"stop_reason": "answer_ready"}}, "stop_condition": "max_turns"}, "answered", 1.0),
        ({"is_timeout": True}, "timeout", 1.0),
        ({"ok": False, "errors": [{"type": "ProviderError", "message": "503"}]}, "error", None),
        ({"ok": False, "is_completed": False}, "running", None),
    ],
)
def test_outcomes_keep_failures_apart_from_answers(tmp_path, change, outcome, reward):
    row = row_of(tmp_path, {**synth.chat(1, reward=1.0), **change})
    assert (row["outcome"], row["reward"]) == (outcome, reward)


CELL = "cells/oolong__default__llm__m"


@pytest.mark.parametrize(
    ("folder", "record", "outcome", "reward"),
    [
        (CELL, synth.overflow(1), "overflow", None),
        (CELL, synth.overflow(1, scaffold="rlm"), "overflow", None),
        # An RLM that had written an answer met a limit like any other, as in eval.rows.classify.
        (CELL, synth.overflow(1, scaffold="rlm", reply="7"), "limit", 0.0),
        ("rollouts", synth.overflow(1), "overflow", 0.0),  # training counts it
    ],
)
def test_a_prompt_beyond_the_window_is_no_zero_of_an_evaluation(tmp_path, folder, record, outcome, reward):
    row = row_of(tmp_path, record, f"{folder}/traces.jsonl")
    assert (row["outcome"], row["reward"]) == (outcome, reward)
    assert ("maximum context length is 65536" in row["error"]) is (outcome == "overflow")


def test_rewards_are_weighted_as_verifiers_does(tmp_path):
    record = synth.chat(1)
    record["rewards"] = {"a": {"score": 0.5, "weight": 2.0}, "b": {"score": 1.0, "weight": 0.0}, "c": None}
    assert row_of(tmp_path, record)["reward"] == 1.0
    assert row_of(tmp_path / "none", {**record, "rewards": {}})["reward"] is None


def test_a_prompt_of_megabytes_costs_the_row_nothing(tmp_path):
    row = row_of(tmp_path, synth.chat(1, prompt="long " * 500_000))
    assert len(row["question"]) <= 240
    assert len(json.dumps(row)) < 2000
