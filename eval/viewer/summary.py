"""One trace as one row of the list: small, flat, and enough to filter and sort by.

Failures stay apart from answers: the row of an errored trace has no reward, whatever its record says, nor has
that of an evaluation's trace whose prompt did not fit the window (by the rule of ``eval.rows.classify``).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from eval.viewer.shapes import (
    ROOT_REQUEST,
    duration,
    integer,
    mapping,
    message_text,
    number,
    records,
    text,
    usage_tokens,
)

QUESTION_CHARS = 240
ANSWER_CHARS = 160
TRUNCATING_STOPS = {
    "max_turns",
    "max_input_tokens",
    "max_output_tokens",
    "max_total_tokens",
    "compaction_failed",
}
"""Stop conditions with which verifiers itself ends a trace at a limit (``Trace.is_truncated``)."""


def row(record: dict[str, Any], episode: dict[str, Any], file: PurePosixPath, key: str) -> dict[str, Any]:
    """The list's row for a trace ``record`` found in ``file`` (relative to the results folder), inside
    the ``episode`` line (empty when the trace is a line of its own)."""
    data = mapping(record, "task", "data")
    cell = _cell(file)
    outcome = _outcome(record)
    # Training does score an overflow, so only the rows of an evaluation leave its reward out.
    unscored = ("error", "running", "overflow") if cell else ("error", "running")
    metrics = mapping(record, "metrics")
    root_in, root_out, sub_in, sub_out = _tokens(record, metrics)
    errors = [*records(record, "errors"), *records(episode, "errors")]
    if outcome == "overflow":
        errors = errors or failed_calls(record)
    last_error = errors[-1] if errors and outcome in ("error", "timeout", "overflow") else {}
    return {
        "key": key,
        "id": text(record, "id"),
        "episode": text(episode, "id"),
        "file": str(file),
        # Phases of a run: warmstart, eval_before, rollouts, ...
        "folder": file.parts[0] if len(file.parts) > 1 and not cell else "",
        "suite": cell.get("suite") or _suite(record, episode),
        "setting": cell.get("setting", ""),
        "mode": cell.get("mode") or text(data, "mode") or _scaffold(record),
        "model": cell.get("model") or _model(record),
        "agent": text(record, "agent", "name"),
        "task": _task_name(data),
        "question": _head(question(record), QUESTION_CHARS),
        "answer": _head(reply(record), ANSWER_CHARS),
        "reward": None if outcome in unscored else reward(record),
        "outcome": outcome,
        "stop": text(record, "info", "rlm", "stop_reason") or text(record, "stop_condition"),
        "error": _head(f"{text(last_error, 'type')}: {text(last_error, 'message')}", 200)
        if last_error
        else "",
        "turns": integer_metric(
            metrics, "root_turns", sum(n.get("sampled") is True for n in records(record, "nodes"))
        ),
        "sub_calls": integer_metric(metrics, "sub_calls", 0),
        "root_in": root_in,
        "root_out": root_out,
        "sub_in": sub_in,
        "sub_out": sub_out,
        "seconds": _seconds(record, metrics),
        "start": number(record, "timing", "start"),
        "step": integer(episode, "run", "work", "step"),
    }


def integer_metric(metrics: dict[str, Any], name: str, default: int) -> int:
    value = number(metrics, name)
    return int(value) if value is not None and value == value and abs(value) < 1e15 else default


def reward(record: dict[str, Any]) -> float | None:
    """Sum of the weighted rewards, as ``Trace.reward``; ``None`` where nothing was scored."""
    values = [
        (number(part, "score") or 0.0) * (1.0 if (weight := number(part, "weight")) is None else weight)
        for part in mapping(record, "rewards").values()
        if number(part, "score") is not None
    ]
    return sum(values) if values else None


def question(record: dict[str, Any]) -> str:
    """The task's prompt; for prompts that are messages, the first user message."""
    prompt = mapping(record, "task", "data").get("prompt")
    if isinstance(prompt, str) and prompt:
        return prompt
    messages = [m for m in prompt if isinstance(m, dict)] if isinstance(prompt, list) else []
    messages = messages or [mapping(node, "message") for node in records(record, "nodes")]
    return next((message_text(m.get("content")) for m in messages if m.get("role") == "user"), "")


def reply(record: dict[str, Any]) -> str:
    """What the rewards saw: the root's reply, else the last sampled message (``Trace.last_reply``)."""
    if isinstance(record.get("root_reply"), str):
        return record["root_reply"]
    sampled = [n for n in records(record, "nodes") if n.get("sampled") is True]
    return message_text(mapping(sampled[-1], "message").get("content")) if sampled else ""


def failed_calls(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors of the model calls that got no reply, retried ones included, in order."""
    return [call["error"] for call in records(record, "calls") if isinstance(call.get("error"), dict)]


def _outcome(record: dict[str, Any]) -> str:
    """``answered``, ``limit`` (ended by a budget, and scored), ``timeout``, ``overflow`` (the prompt did not
    fit the window and there is no answer), ``error`` (not scored) or ``running``."""
    if record.get("is_timeout") is True:
        return "timeout"
    if record.get("ok") is not True:
        return "error" if record.get("errors") or record.get("is_completed") is True else "running"
    rlm_stop = text(record, "info", "rlm", "stop_reason")
    if (text(record, "stop_condition") or rlm_stop) == "context_overflow":
        scaffold = text(record, "info", "rlm", "scaffold") or "llm"
        return "overflow" if scaffold == "llm" or not reply(record) else "limit"
    if rlm_stop:
        return "answered" if rlm_stop == "answer_ready" else "limit"
    return "limit" if text(record, "stop_condition") in TRUNCATING_STOPS else "answered"


def _cell(file: PurePosixPath) -> dict[str, str]:
    """What an evaluation says in its folder names: ``cells/<suite>__<setting>__<mode>__<model>/``."""
    for folder in file.parents:
        parts = folder.name.split("__", 3)
        if folder.parent.name == "cells" and len(parts) == 4:
            return dict(zip(("suite", "setting", "mode", "model"), parts, strict=True))
    return {}


def _suite(record: dict[str, Any], episode: dict[str, Any]) -> str:
    env = text(episode, "env", "id") or text(episode, "env", "name")
    if env:
        return env.rpartition("+")[2]
    # A trace on its own names only its task's class: VerbatimCopyTask -> verbatim-copy.
    kind = text(record, "task", "type").removesuffix("Task")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind).lower()


def _scaffold(record: dict[str, Any]) -> str:
    return text(record, "info", "rlm", "scaffold") or text(record, "agent", "config", "harness", "id")


def _model(record: dict[str, Any]) -> str:
    own = text(record, "agent", "config", "model")
    return own or next((text(call, "model") for call in records(record, "calls") if text(call, "model")), "")


def _task_name(data: dict[str, Any]) -> str:
    for name in ("name", "id"):
        if isinstance(data.get(name), str | int) and data[name] != "":
            return _head(str(data[name]), 80)
    index = integer(data, "idx")
    return "" if index is None else f"#{index}"


def _tokens(record: dict[str, Any], metrics: dict[str, Any]) -> tuple[int, int, int, int]:
    """``(root input, root output, sub input, sub output)``: the harness's metrics, else the calls."""
    names = ("root_prompt_tokens", "root_completion_tokens", "sub_prompt_tokens", "sub_completion_tokens")
    if number(metrics, names[0]) is not None:
        root_in, root_out, sub_in, sub_out = (integer_metric(metrics, name, 0) for name in names)
        return root_in, root_out, sub_in, sub_out
    totals = {True: [0, 0], False: [0, 0]}
    for call in records(record, "calls"):
        request = text(call, "acp", "request_id")
        total = totals[not request or ROOT_REQUEST.fullmatch(request) is not None]
        prompt, completion = usage_tokens(mapping(call, "usage"))
        total[0] += prompt
        total[1] += completion
    return totals[True][0], totals[True][1], totals[False][0], totals[False][1]


def _seconds(record: dict[str, Any], metrics: dict[str, Any]) -> float | None:
    wall = number(metrics, "wall_seconds")
    return wall if wall is not None else duration(mapping(record, "timing", "agent"))


def _head(string: str, limit: int) -> str:
    """The first ``limit`` characters on one line. Cut before the split: a prompt can be megabytes."""
    line = " ".join(string[: limit * 4].split())
    return line if len(line) <= limit and len(string) <= limit * 4 else line[: limit - 1] + "…"
