"""One trace as the page's document: the tree, what points where, and records of any shape."""

from __future__ import annotations

import copy
import json
import random
from pathlib import PurePosixPath
from typing import Any

from eval.viewer import summary
from eval.viewer.document import FIELD_CHARS, document
from eval.viewer.jsonl import dumps
from tests.eval.viewer import synth


def made(record: dict[str, Any], episode: dict[str, Any] | None = None) -> dict[str, Any]:
    around = episode or {}
    return document(record, around, summary.row(record, around, PurePosixPath("t.jsonl"), "0-0-0"))


def texts(doc: dict[str, Any], indices: list[int]) -> list[tuple[str, str]]:
    return [(doc["nodes"][n]["role"], doc["nodes"][n]["text"]) for n in indices]


def test_turns_point_at_their_replies_and_batches_at_their_calls():
    record = synth.oolong_rlm(7, calls=6)
    doc = made(record)
    turns = doc["rlm"]["nodes"][""]["turns"]
    assert [turn["request_id"] for turn in turns] == [f"root.{n}" for n in range(5)]
    assert "I start by looking" in doc["nodes"][turns[0]["node"]]["text"]
    assert [role for role, _ in texts(doc, turns[0]["received"])] == ["system", "user"]
    assert turns[1]["received"] == []  # its observation stands at turn 0
    assert [len(turn["batches"]) for turn in turns] == [0, 1, 0, 0, 0]
    batch = turns[1]["batches"][0]
    assert (batch["name"], batch["size"], batch["calls"]) == ("llm_batch", 6, [f"sub.{n}" for n in range(6)])
    for call_id in batch["calls"]:
        call = doc["rlm"]["calls"][call_id]
        if not call["error"]:
            _, user, assistant = texts(doc, call["messages"])
            assert user[1].startswith("Classify each line")
            assert assistant[0] == "assistant"
            assert call["out"] == len(assistant[1]) // 4 + 2


def test_the_answer_stands_where_it_changed():
    turns = made(synth.oolong_rlm(7))["rlm"]["nodes"][""]["turns"]
    assert [turn.get("answer", {}).get("ready") for turn in turns] == [None, None, None, False, True]
    assert turns[4]["answer"] == {"content": "Label: ham", "ready": True}


def test_no_text_of_a_conversation_stands_twice():
    record = synth.oolong_rlm(7, calls=24)
    doc = made(record)
    assert all("node" in t["observation"] for t in doc["rlm"]["nodes"][""]["turns"] if t["observation"])
    assert "node" in doc["task"]["prompt"]
    sent = dumps(doc)
    assert sent.count(b"[turn 2 of 30") == 1
    assert sent.count(b"You are a sub-LLM") == sum(call["turns"] for call in doc["rlm"]["calls"].values())
    assert len(sent) < len(json.dumps(record))


def test_child_rlms_hang_under_their_calls():
    doc = made(synth.deep_rlm(1))
    nodes = doc["rlm"]["nodes"]
    assert set(nodes) == {"", "rlm.0", "rlm.1"}
    assert doc["rlm"]["calls"]["rlm.0"]["child"] == "rlm.0"
    assert doc["rlm"]["calls"]["rlm.1"]["child"] == "rlm.1"
    batch = nodes["rlm.0"]["turns"][0]["batches"][0]
    assert batch["calls"] == ["rlm.0.sub.0"]
    assert batch["name"] == "llm_query"
    assert texts(doc, doc["rlm"]["calls"]["rlm.0.sub.0"]["messages"])[-1] == ("assistant", "Ada Finch")


def test_the_root_conversation_comes_first_wherever_its_leaf_is():
    doc = made(synth.oolong_rlm(7, calls=6))
    first, *others = doc["branches"]
    assert first["root"]
    assert (first["first"], first["last"], first["turns"]) == ("root.0", "root.4", 5)
    assert not any(branch["root"] for branch in others)
    assert sorted(n for branch in doc["branches"] for n in branch["nodes"]) == list(range(len(doc["nodes"])))


def test_a_trace_of_another_harness_shows_as_conversations():
    doc = made(synth.chat(1, reward=1.0))
    assert doc["rlm"] is None
    roles = [doc["nodes"][n]["role"] for n in doc["branches"][0]["nodes"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert doc["nodes"][1]["tool_calls"][0]["name"] == "python"
    assert doc["nodes"][3]["reasoning"] == "Easy."


def test_token_ids_and_logprobs_stay_on_disk():
    record = synth.chat(1)
    node = record["nodes"][1]
    node |= {
        "token_ids": [9] * 5000,
        "mask": [True] * 5000,
        "logprobs": [-0.1] * 5000,
        "advantages": [0.5] * 5000,
    }
    sent = dumps(made(record))
    assert len(sent) < 6000
    assert made(record)["nodes"][1]["advantage"] == 0.5


def test_long_task_fields_are_cut_and_say_so_but_conversations_are_whole():
    long = "x" * (2 * FIELD_CHARS)
    doc = made(synth.chat(1, prompt=long, context=long))
    assert doc["task"]["fields"]["context"].endswith("… 100,000 more characters, in the trace file")
    assert doc["nodes"][0]["text"] == long


def test_nesting_without_end_is_cut():
    record = synth.chat(1)
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"d": deep}
    record["task"]["data"]["deep"] = record["info"]["deep"] = deep
    record["metrics"] = {"deep": deep, "good": 1.0}
    doc = made(record)
    assert dumps(doc).count(b'"d":') < 200
    assert doc["metrics"] == {"good": 1.0}


def test_links_to_later_or_missing_messages_are_dropped():
    record = synth.chat(1)
    record["nodes"][0]["parent"] = 3  # a loop, were it followed
    record["nodes"][2]["parent"] = 99
    record["calls"][0]["node"] = -5
    doc = made(record)
    assert [node["parent"] for node in doc["nodes"]] == [None, 0, None, 2]
    assert doc["calls"][0]["node"] is None


def test_records_of_any_shape_still_give_a_row_and_a_document():
    """Values of a good record replaced at random by values of other types: nothing may raise, and what is
    sent must be JSON."""
    rng = random.Random(11)
    junk: list[Any] = [
        None,
        0,
        -1,
        10**30,
        float("nan"),
        "",
        "x",
        [],
        {},
        [None],
        [[]],
        {"a": []},
        True,
        [{}],
    ]
    originals = [synth.oolong_rlm(1, calls=3), synth.deep_rlm(1), synth.chat(1, reward=1.0)]
    for _ in range(1500):
        record = copy.deepcopy(rng.choice(originals))
        for _ in range(rng.randrange(1, 4)):
            damage(record, rng, junk)
        json.loads(dumps(made(record, rng.choice([{}, {"errors": 3}, {"run": [], "env": "x"}]))))


def damage(value: Any, rng: random.Random, junk: list[Any]) -> None:
    """Replace one value, somewhere down a random way into ``value``."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            return
        key = rng.choice(list(keys))
        below = value[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.2:
            value[key] = copy.deepcopy(rng.choice(junk))
            return
        value = below


def test_time_between_turns_that_no_block_explains_is_kept():
    record = synth.oolong_rlm(7, calls=6)
    turns = made(record)["rlm"]["nodes"][""]["turns"]
    assert turns[-1]["gap"] is None
    waited = turns[1]["blocks"][0]
    assert abs(turns[1]["gap"] - waited["seconds"] - waited["wait"]) < 1e-6
    late = next(call for call in record["calls"] if call["acp"]["request_id"] == "root.1")
    late["time"]["start"] += 5.0  # as if a tool of the root had run before it
    assert abs(made(record)["rlm"]["nodes"][""]["turns"][0]["gap"] - turns[0]["gap"] - 5.0) < 1e-6
