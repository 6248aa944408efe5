"""One flat row per episode, and the category of its outcome.

The idea: a reward is a statement about the model only when an episode ran to an end that the model brought
about. Everything else (a prompt beyond the window, a refused request, a rate limit, a judge that failed,
broken infrastructure) is a category of its own, counted per cell and never averaged in as a 0.

A row holds scalars only, under these keys:

    identity     episode_id suite family setting mode model model_name task_id task_hash rollout
    outcome      outcome stop_condition error_type error_status error_message
    reward       reward (None unless scored), reward/<part>
    measures     the harness's and the suite's metrics by their own names, plus sums (total_tokens, ...)
    task         task/<field> for each scalar of the task's data (never its prompt, context or reference)
    settings     setting/<dotted.key> for each value that the cell sets or its suite sweeps

`episodes.jsonl` is appended a line at a time and flushed; a torn last line, the mark of a kill, is dropped
when read. A trace is written before its row, so a row always has its trace."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from verifiers.v1.episode import Episode
from verifiers.v1.trace import Error, Trace

Row = dict[str, Any]

EPISODES_FILE = "episodes.jsonl"


class Outcome(StrEnum):
    """What an episode's row counts as."""

    COMPLETED = "completed"
    """Ran to its end (own or a limit's) and was scored: in the mean."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The prompt did not fit the model's window and there was no answer to score. Shown apart, and as 0 in
    the second mean."""
    REFUSED = "refused"
    """The endpoint refused the request: content policy, authentication, a bad parameter."""
    RATE_LIMITED = "rate_limited"
    """HTTP 429 until the retries were spent."""
    JUDGE_ERROR = "judge_error"
    """The answer is there, its judge failed."""
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    """Everything else that is no fault of the model: transport, sandbox, tools' servers, scoring code."""


KEPT = frozenset({Outcome.COMPLETED, Outcome.CONTEXT_OVERFLOW})
"""What `--resume` keeps; every other outcome runs again."""

_OVERFLOW = re.compile(
    r"context[_ ]length|maximum context|max_model_len|maximum model length|context window|"
    r"prompt is too long|input is too long|too many (?:input )?tokens|longer than the maximum|"
    r"exceeds the (?:model'?s )?max",
    re.IGNORECASE,
)
_RATE = re.compile(r"rate.?limit|too many requests|quota", re.IGNORECASE)
_REFUSAL = re.compile(r"content.?(?:filter|policy|management)|safety|moderation|usage polic", re.IGNORECASE)
_JUDGE = re.compile(r"judge", re.IGNORECASE)

_UNSHOWN_TASK_FIELDS = frozenset(
    {
        "prompt",
        "system_prompt",
        "description",
        "context",
        "context_files",
        "answer",
        "reference",
        "gold",
        "target",
        "solution",
        "text",
        "question",
        "artifact_max_bytes",
    }
)
_SHORT = 200
"""Characters; a longer string of a task is content, not a label."""


def classify(episode: Episode) -> tuple[Outcome, Error | None]:
    """The category of a finished episode, and the error that put it there.

    An episode whose conversation outgrew the window *after* it had produced an answer (an RLM that wrote
    `answer["content"]`) is completed with the stop condition `context_overflow`, like one that met any limit.
    """
    trace = _trace(episode)
    if trace is not None and _scored(trace) and episode.ok:
        if trace.stop_condition == "context_overflow" and (_scaffold(trace) == "llm" or not trace.last_reply):
            return Outcome.CONTEXT_OVERFLOW, _last_call_error(trace)
        return Outcome.COMPLETED, None
    errors = [*(trace.errors if trace is not None else []), *episode.errors]
    if not errors:
        return Outcome.INFRASTRUCTURE_ERROR, None
    error = errors[-1]
    return _classify_error(error), error


def _classify_error(error: Error) -> Outcome:
    # A judge talks to an endpoint too: its rate limit is the judge's failure, so this comes first.
    if "Judge" in error.type or (error.type == "TaskError" and _JUDGE.search(error.message)):
        return Outcome.JUDGE_ERROR
    if error.type == "ProviderError" or error.status_code is not None:
        status = error.status_code or 0
        if status in (400, 413, 422) and _OVERFLOW.search(error.message):
            return Outcome.CONTEXT_OVERFLOW
        if status == 429 or _RATE.search(error.message):
            return Outcome.RATE_LIMITED
        if 400 <= status < 500 or _REFUSAL.search(error.message):
            return Outcome.REFUSED
    return Outcome.INFRASTRUCTURE_ERROR


def _last_call_error(trace: Trace) -> Error | None:
    """What the endpoint said: an overflow that ends an episode cleanly is an error of its call alone."""
    return next((call.error for call in reversed(trace.calls) if call.error is not None), None)


def _trace(episode: Episode) -> Trace | None:
    return episode.traces[-1] if episode.traces else None


def _scored(trace: Trace) -> bool:
    return bool(trace.rewards) and all(reward is not None for reward in trace.rewards.values())


def _scaffold(trace: Trace) -> str:
    record = trace.info.get("rlm")
    return str(record.get("scaffold", "rlm")) if isinstance(record, Mapping) else "llm"


def _stop_reason(trace: Trace) -> str | None:
    """What ended the episode: the harness's reason (`answer_ready`, `max_turns`, ...) where it is finer than
    verifiers' own (`agent_completed` for all of these)."""
    record = trace.info.get("rlm")
    reason = record.get("stop_reason") if isinstance(record, Mapping) else None
    if reason is not None and trace.stop_condition in (None, "agent_completed"):
        return str(reason)
    return trace.stop_condition


def row_of(
    episode: Episode,
    *,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Row:
    """The row of one episode.

    Args:
        episode: as `Env.run_episode` gave it.
        identity: suite, family, setting, mode, model, model_name, task_id, rollout.
        settings: dotted key -> value that the cell set; scalars are kept.
    """
    outcome, error = classify(episode)
    trace = _trace(episode)
    row: Row = {
        "episode_id": episode.id,
        **identity,
        "task_hash": episode.task.hash,
        "outcome": str(outcome),
        "stop_condition": _stop_reason(trace) if trace is not None else None,
        "error_type": error.type if error is not None else None,
        "error_status": error.status_code if error is not None else None,
        "error_message": error.message[:500] if error is not None else None,
        "reward": trace.reward if trace is not None and outcome is Outcome.COMPLETED else None,
    }
    if trace is not None:
        if outcome is Outcome.COMPLETED:
            row.update(
                {f"reward/{name}": part.score for name, part in trace.rewards.items() if part is not None}
            )
        for name, value in measures(trace).items():
            # A suite may name a metric like a column of the row's own; the column wins its plain name.
            row[name if name not in row else f"metric/{name}"] = value
    row.update({f"task/{name}": value for name, value in task_fields(episode).items()})
    row.update({f"setting/{key}": value for key, value in settings.items() if _is_scalar(value)})
    return row


def measures(trace: Trace) -> dict[str, float | None]:
    """The trace's metrics, completed where its harness records none.

    With a harness other than this package's (any of verifiers' own) the root's turns and tokens are summed
    from the trace's model calls, all of which are then the root's."""
    values: dict[str, float | None] = dict(trace.metrics)
    if "root_turns" not in values:
        usages = [call.usage for call in trace.calls if call.usage is not None]
        values |= {
            "root_turns": float(trace.num_turns),
            "root_prompt_tokens": float(sum(usage.input_tokens for usage in usages)),
            "root_completion_tokens": float(sum(usage.completion_tokens for usage in usages)),
            "root_peak_context_tokens": float(max((usage.total_tokens for usage in usages), default=0)),
            "sub_calls": 0.0,
            "sub_prompt_tokens": 0.0,
            "sub_completion_tokens": 0.0,
        }
    # A metric that scoring was to fill but did not is None; in a sum it counts for nothing.
    number = {name: value or 0.0 for name, value in values.items()}
    values["root_tokens"] = number["root_prompt_tokens"] + number["root_completion_tokens"]
    values["sub_tokens"] = number.get("sub_prompt_tokens", 0.0) + number.get("sub_completion_tokens", 0.0)
    values["total_tokens"] = (values["root_tokens"] or 0.0) + (values["sub_tokens"] or 0.0)
    values["judge_tokens"] = float(sum(usage.total_tokens for usage in trace.extra_usage))
    values["model_seconds"] = float(trace.timing.agent.model.duration)
    values.setdefault("wall_seconds", trace.timing.agent.duration)
    return values


def task_fields(episode: Episode) -> dict[str, Any]:
    """The task's labels: scalar fields of its data, without what could hold content or the reference."""
    data = episode.task.data.model_dump(mode="python", exclude_none=True)
    return {
        name: value for name, value in data.items() if name not in _UNSHOWN_TASK_FIELDS and _is_scalar(value)
    }


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _SHORT)


def key_of(row: Mapping[str, Any]) -> tuple[str, str, str, str, str, int]:
    """What makes a row unique in a results folder."""
    return (row["suite"], row["setting"], row["mode"], row["model"], row["task_id"], row["rollout"])


def read_rows(path: Path) -> list[Row]:
    """All whole rows of an `episodes.jsonl`; a torn last line is dropped.

    Raises ValueError on a broken line elsewhere, with its number: that is damage, not a kill.
    """
    if not path.exists():
        return []
    rows: list[Row] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not a row of an evaluation: {error!r}") from error
        rows.append(row)
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append one row as one line and hand it to the operating system, so that a kill loses at most this
    one."""
    with path.open("ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def rewrite_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replace a file by `lines` (each ending in a newline) in one atomic step."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
