"""Outcome categories, the flat row, and files that a kill has torn."""

from pathlib import Path
from typing import Any

import pytest
from verifiers.v1.episode import WireEpisode
from verifiers.v1.trace import ModelCall

from eval.rows import Outcome, append_row, classify, key_of, read_rows, rewrite_lines, row_of
from eval.text import printable
from tests.eval.synthetic import row

IDENTITY = {
    "suite": "s",
    "family": "f",
    "setting": "default",
    "mode": "rlm",
    "model": "m",
    "model_name": "m",
    "task_id": "t",
    "rollout": 0,
}


def episode(
    *,
    ok: bool = True,
    scaffold: str = "rlm",
    stop: str = "answer_ready",
    reply: str | None = "an answer",
    rewards: dict[str, Any] | None = None,
    errors: list[dict[str, Any]] | None = None,
    own_errors: list[dict[str, Any]] | None = None,
    metrics: dict[str, float] | None = None,
    data: dict[str, Any] | None = None,
    traces: bool = True,
) -> WireEpisode:
    task = {"type": "T", "data": data or {"idx": 0, "prompt": "q"}, "hash": "h"}
    trace = {
        "task": task,
        "agent": {"config": {"runtime": {"type": "subprocess"}}},
        "rewards": {"r": {"score": 1.0}} if rewards is None else rewards,
        "metrics": metrics or {},
        "info": {"rlm": {"scaffold": scaffold}},
        "root_reply": reply,
        "stop_condition": stop,
        "ok": ok,
        "errors": errors or [],
    }
    return WireEpisode.model_validate(
        {"task": task, "ok": ok, "errors": own_errors or [], "traces": [trace] if traces else []}
    )


def failed(kind: str, message: str, status: int | None = None) -> WireEpisode:
    error = {"type": kind, "message": message, "status_code": status}
    return episode(ok=False, stop="error", reply=None, rewards={"r": None}, errors=[error])


VLLM = "This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (episode(), Outcome.COMPLETED),
        (episode(stop="max_turns"), Outcome.COMPLETED),
        (episode(stop="rollout_timeout"), Outcome.COMPLETED),
        # An RLM that had written an answer before its conversation outgrew the window met a limit like any
        # other.
        (episode(stop="context_overflow"), Outcome.COMPLETED),
        (episode(stop="context_overflow", reply=""), Outcome.CONTEXT_OVERFLOW),
        (episode(stop="context_overflow", scaffold="llm"), Outcome.CONTEXT_OVERFLOW),
        (failed("ProviderError", f"upstream 400: {VLLM}", 400), Outcome.CONTEXT_OVERFLOW),
        (failed("ProviderError", "upstream 400: context_length_exceeded", 400), Outcome.CONTEXT_OVERFLOW),
        (failed("ProviderError", "upstream 429: slow down", 429), Outcome.RATE_LIMITED),
        (failed("ProviderError", "no reply after 5 attempts: Rate limit reached", 502), Outcome.RATE_LIMITED),
        (failed("ProviderError", "upstream 400: flagged by our usage policy", 400), Outcome.REFUSED),
        (failed("ProviderError", "upstream 401: no such key", 401), Outcome.REFUSED),
        (failed("ProviderError", "upstream 500: oops", 500), Outcome.INFRASTRUCTURE_ERROR),
        (failed("ProviderError", "connection reset", 503), Outcome.INFRASTRUCTURE_ERROR),
        (failed("TaskError", "task T scoring: ValueError: judge returned no verdict"), Outcome.JUDGE_ERROR),
        # The judge's own rate limit is the judge's failure, not the model's.
        (failed("TaskError", "task T scoring: JudgeError: HTTP 429 rate limit"), Outcome.JUDGE_ERROR),
        (failed("TaskError", "task T scoring: ZeroDivisionError"), Outcome.INFRASTRUCTURE_ERROR),
        (failed("SandboxError", "the REPL did not start"), Outcome.INFRASTRUCTURE_ERROR),
        # A context-length message that is not a refusal of the request is not an overflow.
        (failed("SandboxError", "maximum context length"), Outcome.INFRASTRUCTURE_ERROR),
        (
            episode(ok=False, traces=False, own_errors=[{"type": "EnvError", "message": "setup()"}]),
            Outcome.INFRASTRUCTURE_ERROR,
        ),
        # ok, but nothing was scored: a reward that reads 0 and is none.
        (episode(rewards={}), Outcome.INFRASTRUCTURE_ERROR),
        (episode(rewards={"r": None}), Outcome.INFRASTRUCTURE_ERROR),
    ],
)
def test_outcomes(made: WireEpisode, expected: Outcome) -> None:
    assert classify(made)[0] is expected


def test_an_overflow_says_what_the_endpoint_said() -> None:
    """It ends an episode cleanly, so the error is that of the call alone."""
    made = episode(stop="context_overflow", scaffold="llm", reply="")
    for status, message in ((429, "slow down"), (400, VLLM)):
        call = {"model": "m", "error": {"type": "ProviderError", "message": message, "status_code": status}}
        made.traces[0].calls.append(ModelCall.model_validate(call))
    found = row_of(made, identity=IDENTITY, settings={})
    assert (found["outcome"], found["error_status"]) == ("context_overflow", 400)
    assert found["error_message"] == VLLM


def test_a_strangers_text_is_one_printable_line() -> None:
    assert printable("a\x1b[31m\nb\u202e\x9b c\u2028d\x00") == "a [31m b c d"
    assert printable("x" * 300) == "x" * 300
    assert printable("x" * 301) == "x" * 299 + "\u2026"
    assert printable("x" + " " * 5000 + "y") == "x\u2026"  # what is left out is told


def test_only_a_completed_episode_has_a_reward() -> None:
    done = row_of(
        episode(rewards={"a": {"score": 1.0, "weight": 0.5}, "b": {"score": 2.0}}),
        identity=IDENTITY,
        settings={},
    )
    assert done["reward"] == 2.5
    assert (done["reward/a"], done["reward/b"]) == (1.0, 2.0)
    for made in (failed("ProviderError", "x", 500), episode(stop="context_overflow", reply="")):
        bad = row_of(made, identity=IDENTITY, settings={})
        assert bad["reward"] is None
        assert not any(name.startswith("reward/") for name in bad)


def test_a_row_is_flat_and_holds_no_content() -> None:
    made = episode(
        metrics={"root_turns": 2.0, "root_prompt_tokens": 90.0, "root_completion_tokens": 10.0,
                 "sub_prompt_tokens": 5.0, "sub_completion_tokens": 1.0, "mode": 7.0},
        data={"idx": 3, "id": "t", "prompt": "secret", "answer": "42", "context": "long", "subset": "synth",
              "length": 1024, "essay": "x" * 300, "labels": ["a"]},
    )  # fmt: skip
    result = row_of(
        made, identity=IDENTITY, settings={"taskset.n": 5, "harness.functions": [1], "taskset.flag": True}
    )
    assert all(value is None or isinstance(value, str | int | float | bool) for value in result.values())
    assert (result["root_tokens"], result["sub_tokens"], result["total_tokens"]) == (100.0, 6.0, 106.0)
    assert result["mode"] == "rlm"  # a metric of that name does not hide which mode it was
    assert result["metric/mode"] == 7.0
    assert {name for name in result if name.startswith("task/")} == {
        "task/idx",
        "task/id",
        "task/subset",
        "task/length",
    }
    assert (result["setting/taskset.n"], result["setting/taskset.flag"]) == (5, True)
    assert "setting/harness.functions" not in result
    assert not {"secret", "42", "long"} & {str(value) for value in result.values()}


def test_tokens_of_a_foreign_harness_are_those_of_its_calls() -> None:
    made = episode()
    call = {"usage": {"prompt_tokens": 30, "completion_tokens": 5, "cached_input_tokens": 10}}
    made.traces[0] = type(made.traces[0]).model_validate(
        {**made.traces[0].model_dump(), "calls": [call, call], "metrics": {}, "info": {}}
    )
    result = row_of(made, identity=IDENTITY, settings={})
    assert result["root_prompt_tokens"] == 80.0
    assert result["root_completion_tokens"] == 10.0
    assert result["root_peak_context_tokens"] == 45.0


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    rows = [row(task_id=f"t{i}") for i in range(3)]
    for one in rows:
        append_row(path, one)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        expected = 3 if cut == 1 else 2  # only the newline is missing: the row is whole
        assert len(read_rows(path)) == expected
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_a_broken_line_in_the_middle_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    append_row(path, row())
    with path.open("ab") as file:
        file.write(b'{"half": \n')
    append_row(path, row())
    with pytest.raises(ValueError, match="line 2"):
        read_rows(path)


def test_rows_survive_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    one = row(task_id="ä\n\u2028|", reward=0.1 + 0.2)
    append_row(path, one)
    assert read_rows(path) == [one]
    assert key_of(one) == ("verbatim", "default", "rlm", "m", "ä\n\u2028|", 0)
    rewrite_lines(path, [b'{"a": 1}\n'])
    assert path.read_bytes() == b'{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]
