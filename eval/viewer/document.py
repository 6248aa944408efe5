"""One trace as the document that the page shows.

Texts are large and a trace repeats them (an observation is a message, a sub-call's prompt is a message), so
each stands in the document once, as a message of ``nodes``; everything else points there by index. Token ids,
masks and log-probabilities stay on disk.

``rlm`` is the tree: RLM nodes by path, their turns, the batches of a turn, the calls of a batch; a call of
kind ``rlm`` leads to the RLM node of its own path. It is ``None`` for traces of other harnesses, which show
as ``branches``: the conversations of the message graph, one per leaf.
"""

from __future__ import annotations

from typing import Any

from eval.viewer import summary
from eval.viewer.shapes import (
    ROOT_REQUEST,
    duration,
    integer,
    mapping,
    message_text,
    number,
    records,
    strings,
    text,
    usage_tokens,
)

RLM_INFO_VERSION = 1
"""The newest ``info["rlm"]["version"]`` that this module knows."""

FIELD_CHARS = 100_000
"""Longest text of a task field, config or info value in the document. Conversations are never cut."""

FIELD_DEPTH = 40
"""Deepest nesting of such a value."""

TASK_SETTINGS = {
    "image", "workdir", "agent_user", "skills", "network_allow", "network_block", "artifacts",
    "artifact_max_bytes", "timeout", "resources",
}  # fmt: skip
"""Fields that every verifiers task has: about where it runs, not what it asks."""

_EMPTY: tuple[Any, ...] = (None, "", [], {}, ["*"])


def document(record: dict[str, Any], episode: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The document of trace ``record`` within ``episode`` (empty for a lone trace); ``row`` is the trace's
    row of the list."""
    nodes = [_node(node) for node in records(record, "nodes")]
    _check_parents(nodes)
    calls = [_call(call, len(nodes)) for call in records(record, "calls")]
    by_request = {call["request_id"]: i for i, call in enumerate(calls) if call["request_id"]}
    for i, call in enumerate(calls):
        if call["node"] is not None:
            nodes[call["node"]]["call"] = i
    config = mapping(record, "agent", "config")
    info = mapping(record, "info")
    return {
        "row": row,
        "nodes": nodes,
        "calls": calls,
        "branches": _branches(nodes, calls),
        "rlm": _tree(mapping(info, "rlm"), nodes, calls, by_request)
        if isinstance(info.get("rlm"), dict)
        else None,
        "reply": _same_as_node(summary.reply(record), nodes),
        "task": _task(record, nodes),
        "rewards": _rewards(record),
        "metrics": _numbers(mapping(record, "metrics")),
        "limits": _numbers(mapping(config, "harness", "limits")),
        "errors": [_error(e) for e in [*records(record, "errors"), *records(episode, "errors")]],
        "timing": _timing(mapping(record, "timing")),
        "usage_outside": [usage_tokens(usage) for usage in records(record, "extra_usage")],
        "config": _cut(_set(config)),
        "info": _cut({name: value for name, value in info.items() if name != "rlm"}),
        "about": {
            "trace id": text(record, "id"),
            "episode id": text(episode, "id"),
            "file": row["file"],
            "task key": text(record, "task", "key"),
            "environment": text(episode, "env", "id"),
            "group": text(episode, "group", "id"),
            "verifiers": text(record, "verifiers", "version"),
            "stop condition": text(record, "stop_condition"),
        },
    }


# --- the message graph ----------------------------------------------------------------------------------


def _node(node: dict[str, Any]) -> dict[str, Any]:
    message = mapping(node, "message")
    content = message.get("content")
    advantages = node.get("advantages")
    view: dict[str, Any] = {
        "parent": integer(node, "parent"),
        "role": text(message, "role") or "?",
        "text": message_text(content),
        "sampled": node.get("sampled") is True,
    }
    if text(message, "reasoning_content"):
        view["reasoning"] = text(message, "reasoning_content")
    if records(message, "tool_calls"):
        view["tool_calls"] = [
            {"id": text(c, "id"), "name": text(c, "name"), "arguments": text(c, "arguments")}
            for c in records(message, "tool_calls")
        ]
    for name in ("tool_call_id", "name"):
        if text(message, name):
            view[name] = text(message, name)
    if isinstance(content, list):
        view["images"] = sum(part.get("type") == "image_url" for part in content if isinstance(part, dict))
    if isinstance(advantages, list) and advantages:
        values = [value for value in advantages if isinstance(value, int | float)]
        view["advantage"] = sum(values) / len(values) if values else None
    return view


def _check_parents(nodes: list[dict[str, Any]]) -> None:
    """Parents precede their children; a link that does not is dropped, so that every walk ends."""
    for i, node in enumerate(nodes):
        if node["parent"] is not None and not 0 <= node["parent"] < i:
            node["parent"] = None


def _call(call: dict[str, Any], node_count: int) -> dict[str, Any]:
    node = integer(call, "node")
    prompt, completion = usage_tokens(mapping(call, "usage"))
    return {
        "node": node if node is not None and 0 <= node < node_count else None,
        "request_id": text(call, "acp", "request_id"),
        "model": text(call, "model"),
        "finish": text(call, "finish_reason"),
        "in": prompt,
        "out": completion,
        "cached": integer(call, "usage", "cached_input_tokens"),
        "reasoning": integer(call, "usage", "reasoning_tokens"),
        "start": number(call, "time", "start"),
        "end": number(call, "time", "end"),
        "seconds": duration(mapping(call, "time")),
        "error": _error(call["error"]) if isinstance(call.get("error"), dict) else None,
    }


def _path(nodes: list[dict[str, Any]], leaf: int) -> list[int]:
    """Node indices of the conversation that ends at ``leaf``, first message first."""
    path: list[int] = []
    current: int | None = leaf
    while current is not None:
        path.append(current)
        current = nodes[current]["parent"]
    return path[::-1]


def _branches(nodes: list[dict[str, Any]], calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One conversation per leaf. The root's are those whose request ids are all ``root.<n>``; their place
    among the branches says nothing, so they are put first."""
    parents = {node["parent"] for node in nodes}
    branches = []
    for leaf in (i for i in range(len(nodes)) if i not in parents):
        path = _path(nodes, leaf)
        own = [calls[nodes[n]["call"]] for n in path if "call" in nodes[n]]
        ids = [call["request_id"] for call in own if call["request_id"]]
        branches.append(
            {
                "nodes": path,
                "root": bool(ids) and all(ROOT_REQUEST.fullmatch(i) for i in ids),
                "first": ids[0] if ids else "",
                "last": ids[-1] if ids else "",
                "turns": sum(nodes[n]["sampled"] for n in path),
                "in": sum(call["in"] for call in own),
                "out": sum(call["out"] for call in own),
            }
        )
    return sorted(branches, key=lambda branch: not branch["root"])


def _same_as_node(string: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """``{"node": index}`` when a message is exactly ``string``, else ``{"text": string}``."""
    for i in range(len(nodes) - 1, -1, -1):
        if nodes[i]["text"] == string:
            return {"node": i}
    return {"text": string}


# --- the RLM tree ---------------------------------------------------------------------------------------


def _tree(
    rlm: dict[str, Any], nodes: list[dict[str, Any]], calls: list[dict[str, Any]], by_request: dict[str, int]
) -> dict[str, Any]:
    version = integer(rlm, "version")
    sub_calls = {
        text(call, "id"): _sub_call(call, nodes, calls, by_request) for call in records(rlm, "calls")
    }
    batches = {
        (_scope(text(batch, "path")), integer(batch, "batch")): batch for batch in records(rlm, "batches")
    }
    tree_nodes = {}
    for episode in records(rlm, "episodes"):
        path = _scope(text(episode, "path"))
        tree_nodes[path] = _tree_node(episode, path, sub_calls, batches, nodes, calls, by_request)
    for call_id, call in sub_calls.items():
        if call["kind"] == "rlm" and call_id in tree_nodes:
            call["child"] = call_id
    for path, node in tree_nodes.items():
        parent = sub_calls.get(node["parent_call"])
        if parent is not None and path:
            parent["child"] = path
    return {
        "scaffold": text(rlm, "scaffold"),
        "stop_reason": text(rlm, "stop_reason"),
        "nodes": tree_nodes,
        "calls": sub_calls,
        "newer": version if version is not None and version > RLM_INFO_VERSION else None,
    }


def _scope(path: str) -> str:
    """``rlm.0.rlm.2.`` and ``rlm.0.rlm.2`` name the same RLM node; the root is ``""``."""
    return path.strip(".")


def _tree_node(
    episode: dict[str, Any],
    path: str,
    sub_calls: dict[str, dict[str, Any]],
    batches: dict[tuple[str, int | None], dict[str, Any]],
    nodes: list[dict[str, Any]],
    calls: list[dict[str, Any]],
    by_request: dict[str, int],
) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    before = {"content": "", "ready": False}
    previous: int | None = None
    previous_call: dict[str, Any] | None = None
    seen = ""
    for record in records(episode, "turns"):
        call_index = by_request.get(text(record, "request_id"))
        call = calls[call_index] if call_index is not None else None
        node = call["node"] if call else None
        answer = mapping(record, "answer")
        after = (
            {"content": text(answer, "content"), "ready": answer.get("ready") is True} if answer else before
        )
        observation = record.get("observation")
        turn = {
            "turn": integer(record, "turn"),
            "request_id": text(record, "request_id"),
            "seconds": number(record, "seconds"),
            "call": call_index,
            "node": node,
            "received": _between(nodes, previous, node, seen),
            "gap": None,
            "blocks": [_block(block) for block in records(record, "blocks")],
            "observation": _same_as_node(observation, nodes) if isinstance(observation, str) else None,
            "batches": _turn_batches(strings(record, "calls"), path, sub_calls, batches),
        }
        if after != before:
            turn["answer"] = after
        if turns and call and previous_call and call["start"] and previous_call["end"]:
            turns[-1]["gap"] = max(0.0, call["start"] - previous_call["end"])
        turns.append(turn)
        seen = observation if isinstance(observation, str) else ""
        previous_call = call
        before = after
        previous = node if node is not None else previous
    return {
        "path": path,
        "depth": integer(episode, "depth") or 0,
        "parent_call": text(episode, "parent_call"),
        "stop_reason": text(episode, "stop_reason"),
        "turns": turns,
    }


def _between(nodes: list[dict[str, Any]], previous: int | None, node: int | None, seen: str) -> list[int]:
    """What the model was given since its last reply, beside the observation ``seen`` that the turn before
    shows: the messages on the way to ``node`` that come after ``previous``."""
    path = _path(nodes, node)[:-1] if node is not None else []
    new = path[path.index(previous) + 1 :] if previous in path else path
    return [n for n in new if not nodes[n]["text"] or nodes[n]["text"] not in seen]


def _block(block: dict[str, Any]) -> dict[str, Any]:
    return {
        "code": text(block, "code"),
        "output": text(block, "output"),
        "truncated": integer(block, "truncated_chars") or 0,
        "error": text(block, "error"),
        "seconds": number(block, "seconds"),
        "wait": number(block, "wait_seconds"),
        "timed_out": block.get("timed_out") is True,
        "restarted": block.get("restarted") is True,
        "lost": strings(block, "lost"),
        "restored": strings(block, "restored"),
    }


def _turn_batches(
    ids: list[str],
    path: str,
    sub_calls: dict[str, dict[str, Any]],
    batches: dict[tuple[str, int | None], dict[str, Any]],
) -> list[dict[str, Any]]:
    grouped: dict[int | None, list[str]] = {}
    for call_id in ids:
        if call_id in sub_calls:
            grouped.setdefault(sub_calls[call_id]["batch"], []).append(call_id)
    return [
        {
            "name": text(batches.get((path, number), {}), "name"),
            "size": integer(batches.get((path, number), {}), "size") or len(members),
            "seconds": batches.get((path, number), {}).get("seconds"),
            "calls": members,
        }
        for number, members in grouped.items()
    ]


def _sub_call(
    call: dict[str, Any], nodes: list[dict[str, Any]], calls: list[dict[str, Any]], by_request: dict[str, int]
) -> dict[str, Any]:
    made = [calls[by_request[i]] for i in strings(call, "request_ids") if i in by_request]
    last = next((c["node"] for c in reversed(made) if c["node"] is not None), None)
    error = call.get("error")
    return {
        "id": text(call, "id"),
        "kind": text(call, "kind") or "llm",
        "batch": integer(call, "batch"),
        "turns": integer(call, "turns") or 0,
        "tool_calls": integer(call, "tool_calls") or 0,
        "in": integer(call, "prompt_tokens") or 0,
        "out": integer(call, "completion_tokens") or 0,
        "seconds": number(call, "seconds"),
        "error": error
        if isinstance(error, str)
        else message_text(mapping(error).get("message"))
        if error
        else "",
        "messages": _path(nodes, last) if last is not None else [],
    }


# --- everything around it -------------------------------------------------------------------------------


def _task(record: dict[str, Any], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    data = mapping(record, "task", "data")
    fields = {
        name: value for name, value in _set(data).items() if name not in ("prompt", "idx", "id", "name")
    }
    return {
        "type": text(record, "task", "type"),
        "prompt": _same_as_node(summary.question(record), nodes),
        "fields": _cut({name: value for name, value in fields.items() if name not in TASK_SETTINGS}),
        "settings": _cut({name: value for name, value in fields.items() if name in TASK_SETTINGS}),
    }


def _set(values: dict[str, Any]) -> dict[str, Any]:
    """What is not empty, at the top and one level below."""
    kept = {
        name: {n: v for n, v in value.items() if v not in _EMPTY} if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return {name: value for name, value in kept.items() if value not in _EMPTY}


def _rewards(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "score": number(part, "score"), "weight": number(part, "weight")}
        for name, part in mapping(record, "rewards").items()
    ]


def _error(error: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": text(error, "type"),
        "message": text(error, "message"),
        "status": integer(error, "status_code"),
        "traceback": text(error, "traceback"),
    }


def _timing(timing: dict[str, Any]) -> dict[str, Any]:
    stages = {
        stage: duration(mapping(timing, stage)) for stage in ("boot", "setup", "agent", "finalize", "scoring")
    }
    return {"start": number(timing, "start"), **{name: s for name, s in stages.items() if s is not None}}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name in values if (value := number(values, name)) is not None}


def _cut(value: Any, depth: int = 0) -> Any:
    """``value`` with its long strings and its depth cut, and told so: task fields can hold a context of
    megabytes, and a record from elsewhere any nesting."""
    if depth > FIELD_DEPTH:
        return "… nested deeper, in the trace file"
    if isinstance(value, str) and len(value) > FIELD_CHARS:
        return value[:FIELD_CHARS] + f"\n… {len(value) - FIELD_CHARS:,} more characters, in the trace file"
    if isinstance(value, dict):
        return {name: _cut(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, depth + 1) for item in value]
    return value
