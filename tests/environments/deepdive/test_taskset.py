"""Loading, dividing and drawing; what a task holds and what it gives away; its metrics and rewards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import verifiers.v1 as vf
from deepdive import DeepDiveConfig, DeepDiveTaskset
from deepdive.config import ToolsConfig, ToolServerConfig
from deepdive.data import load_rows, load_split
from deepdive.state import DeepDiveState
from deepdive.taskset import DeepDiveTask
from deepdive.web.tools import CallReport
from pydantic import ValidationError
from verifiers.v1.utils.loaders import taskset_class, taskset_config_type

from tests.environments.traces import trace_of


def tasks(**settings: Any) -> list[DeepDiveTask]:
    return list(DeepDiveTaskset(DeepDiveConfig.model_validate({"split": "mini", **settings})))


@pytest.fixture
def copy_of_the_real_one(tmp_path: Path) -> Path:
    """A folder laid out as the dataset's repository is: parquet by split, named in the card."""
    schema = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "conversations": datasets.List(
                {"role": datasets.Value("string"), "content": datasets.Value("string")}
            ),
        }
    )
    (tmp_path / "data").mkdir()
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, size in (("qa_sft", 30), ("qa_rl", 200)):
        rows = [
            {
                "id": 1000 + n,
                "question": f"{split} question {n}?",
                "answer": f"answer {n}",
                "conversations": None,
            }
            for n in range(size)
        ]
        table = datasets.Dataset.from_list(rows, features=schema)
        table.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
        card += [f"  - split: {split}", f"    path: data/{split}-*"]
    (tmp_path / "README.md").write_text("\n".join([*card, "---", ""]))
    return tmp_path


def test_found_by_its_id() -> None:
    assert taskset_class("deepdive") is DeepDiveTaskset
    assert taskset_config_type("deepdive") is DeepDiveConfig


def test_the_real_splits_are_read_by_datasets(copy_of_the_real_one: Path) -> None:
    config = DeepDiveConfig(dataset=str(copy_of_the_real_one), part="all")
    rows = load_rows(config)
    assert len(rows) == 200
    assert {row.id for row in rows} == set(range(1000, 1200))
    assert all(row.question == f"qa_rl question {row.id - 1000}?" for row in rows)
    sft = load_rows(config.model_copy(update={"split": "qa_sft"}))
    assert len(sft) == 30
    (task, *_) = DeepDiveTaskset(config.model_copy(update={"num_tasks": 1}))
    assert task.data.scoring == "judge"
    assert "invented world" not in str(task.data.prompt)


def test_mini_has_exactly_the_schema_of_the_real_data(copy_of_the_real_one: Path) -> None:
    real = load_split(DeepDiveConfig(dataset=str(copy_of_the_real_one)))
    mini = load_split(DeepDiveConfig(split="mini"))
    assert mini.features == real.features


def test_held_out_is_a_tenth_and_train_the_rest(copy_of_the_real_one: Path) -> None:
    def ids(**settings: Any) -> set[int]:
        return {row.id for row in load_rows(DeepDiveConfig(dataset=str(copy_of_the_real_one), **settings))}

    held, train = ids(), ids(part="train")
    assert ids(part="heldout") == held, "the default for the real splits"
    assert (len(held), len(train)) == (20, 180)
    assert not held & train
    assert ids(part="heldout", seed=7) == held, "the draw's seed does not move the boundary"
    assert ids(part="heldout", split_seed=7) != held
    expected = load_split(DeepDiveConfig(dataset=str(copy_of_the_real_one))).train_test_split(
        test_size=0.1, seed=42
    )
    assert held == set(expected["test"]["id"])


def test_the_draw_is_seeded_shared_by_modes_and_a_prefix_of_larger_ones() -> None:
    fifty = [task.key for task in tasks(num_tasks=50)]
    assert len(set(fifty)) == 50
    for mode in ("llm", "rlm", "rlm_tips"):
        assert [task.key for task in tasks(num_tasks=50, mode=mode)] == fifty
    assert [task.key for task in tasks(num_tasks=20)] == fifty[:20]
    assert [task.key for task in tasks(num_tasks=50, seed=1)] != fifty
    assert [int(key.rsplit("/", 1)[1]) for key in fifty] != sorted(
        int(key.rsplit("/", 1)[1]) for key in fifty
    )
    assert len(tasks()) == 240


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="has 240 questions"):
        tasks(num_tasks=241)


def test_a_dataset_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r'taskset\.split = "mini"'):
        load_rows(DeepDiveConfig(dataset=str(tmp_path / "nowhere")))


def test_unknown_settings_are_errors() -> None:
    with pytest.raises(ValidationError):
        DeepDiveConfig.model_validate({"split": "mini", "num_task": 5})
    with pytest.raises(ValidationError):
        DeepDiveConfig.model_validate({"tools": {"serper_api_key": "secret"}})


def test_tips_are_an_addition_that_can_be_stripped() -> None:
    for plain, tips in zip(tasks(num_tasks=5, mode="rlm"), tasks(num_tasks=5, mode="rlm_tips"), strict=True):
        head, rest = str(tips.data.prompt).split("\n\n<env_tips>")
        assert head == plain.data.prompt
        assert rest.endswith("</env_tips>")
    assert [t.data.prompt for t in tasks(num_tasks=5, mode="llm")] == [
        t.data.prompt for t in tasks(num_tasks=5)
    ]


def test_the_reference_is_in_no_prompt_and_no_server_config(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in tasks(mode="rlm_tips"):
        question = task.data.question
        assert task.data.answer not in str(task.data.prompt).replace(question, "").replace("answer", ""), (
            task.key
        )
        assert task.runtime_env() == {}
    (toolset,) = DeepDiveTaskset.toolsets(DeepDiveConfig(split="mini"))
    assert set(ToolServerConfig.model_fields) - set(ToolsConfig.model_fields) == {"backend", "serper_api_key"}
    assert DeepDiveTask.toolsets(tasks(num_tasks=1)[0].config) == [], (
        "shared only: verifiers hands it no task"
    )
    assert toolset.server_name == "deepdive"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "sk-12345")
    monkeypatch.setenv("PRIME_API_KEY", "pk-67890")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("keys")
def test_what_would_fail_later_fails_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"taskset\.tools\.cache_dir"):
        DeepDiveTaskset.toolsets(DeepDiveConfig.model_validate({"tools": {"cache_dir": str(blocked / "x")}}))
    monkeypatch.setattr("deepdive.taskset.resolve_api_key", lambda config: "EMPTY")
    with pytest.raises(ValueError, match=r"PRIME_API_KEY.*taskset\.task\.judge\.base_url"):
        DeepDiveTaskset.toolsets(DeepDiveConfig())
    own = {"task": {"judge": {"base_url": "http://10.0.0.5:8000/v1", "api_key_var": "NONE"}}}
    assert DeepDiveTaskset.toolsets(DeepDiveConfig.model_validate(own))


@pytest.mark.usefixtures("keys")
def test_a_missing_key_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(ValueError, match=r"SERPER_API_KEY.*mini"):
        DeepDiveTaskset.toolsets(DeepDiveConfig())
    with pytest.raises(ValueError, match="MY_KEY"):
        DeepDiveTaskset.toolsets(
            DeepDiveConfig.model_validate({"tools": {"search": {"api_key_var": "MY_KEY"}}})
        )


@pytest.mark.usefixtures("keys")
def test_the_key_goes_to_the_server_and_into_no_record() -> None:
    config = DeepDiveConfig()
    (toolset,) = DeepDiveTaskset.toolsets(config)
    assert toolset.config.serper_api_key == "sk-12345"
    assert toolset.config.backend == "web"
    assert "sk-12345" not in repr(toolset.config)
    assert "sk-12345" not in config.model_dump_json()
    (mini,) = DeepDiveTaskset.toolsets(DeepDiveConfig(split="mini"))
    assert mini.config.serper_api_key == "", "mini has no use for it"


def finished(task: DeepDiveTask, reply: str, state: DeepDiveState | None = None) -> vf.Trace:
    trace = trace_of(task, root_reply=reply)
    trace.state = state or DeepDiveState()
    return trace


async def test_exact_match_says_that_it_is_one() -> None:
    (task,) = tasks(num_tasks=1)
    for reply, reward in ((rf"\boxed{{{task.data.answer}}}", 1.0), (r"\boxed{no}", 0.0), ("", 0.0)):
        trace = finished(task, reply)
        await task.score(trace)
        assert {name: r.score for name, r in trace.rewards.items()} == {"correct": reward}
        assert trace.metrics["judged_by_llm"] == 0
        assert trace.metrics["answer_given"] == float(bool(reply))
        assert trace.info["deepdive"]["scoring"]["by"] == "exact_match"


async def test_scoring_by_judge_skips_the_call_when_there_is_no_answer() -> None:
    (task,) = tasks(
        num_tasks=1,
        task={"scoring": "judge", "judge": {"base_url": "http://127.0.0.1:9/v1", "api_key_var": "NONE"}},
    )
    trace = finished(task, "  ")
    await task.score(trace)
    assert trace.rewards["correct"].score == 0
    assert trace.info["deepdive"]["scoring"]["by"] == "llm_judge"


def used() -> DeepDiveState:
    state = DeepDiveState()
    state.add(CallReport("search_web", queries=["ship Undine", "Undine ship"], cache_hits=1), 0.5)
    state.add(CallReport("search_web", queries=["other"], failures=["search"], failed=True), 0.5)
    state.add(CallReport("open", url="https://a.example/", cut=True), 0.25)
    state.add(CallReport("scan_page", url="https://a.example/"), 0.25)
    state.add(CallReport("open", url="https://b.example/", failures=["timeout"], failed=True), 0.5)
    return state


async def test_metrics_of_tool_use() -> None:
    (task,) = tasks(num_tasks=1)
    trace = finished(task, "x", used())
    await task.score(trace)
    expected = {
        "searches": 3, "pages": 3, "failed_searches": 1, "failed_pages": 1, "cache_hits": 1, "cut_results": 1,
        "web_calls/search_web": 2, "web_calls/open": 2, "web_calls/scan_page": 1, "web_calls/open_lines": 0,
        "web_failed_calls/search_web": 1, "web_failed_calls/open": 1, "web_failures/search": 1,
        "web_failures/timeout": 1, "distinct_pages": 2, "web_seconds": 2.0,
    }  # fmt: skip
    assert {name: trace.metrics[name] for name in expected} == expected
    assert trace.metrics["duplicate_query_share"] == pytest.approx(1 / 3)
    assert "duplicate_query_penalty" not in trace.rewards
    assert trace.info["deepdive"]["tools"]["queries"] == ["ship Undine", "Undine ship", "other"]
    assert json.dumps(trace.info["deepdive"])


async def test_a_saved_trace_scores_the_same_again() -> None:
    """State is not saved with a trace; its record in `info` is."""
    (task,) = tasks(num_tasks=1)
    trace = finished(task, "x", used())
    await task.score(trace)
    first = dict(trace.metrics)
    trace.state = vf.State()
    await task.score(trace)
    assert trace.metrics == first


async def test_penalty_for_repeated_queries() -> None:
    (task,) = tasks(num_tasks=1, task={"duplicate_query_penalty": 0.3})
    trace = finished(task, rf"\boxed{{{task.data.answer}}}", used())
    await task.score(trace)
    assert trace.rewards["duplicate_query_penalty"].score == pytest.approx(-0.1)
    assert trace.reward == pytest.approx(0.9)


def test_importing_the_package_costs_nothing() -> None:
    """The reader processes and tools of other packages import it; verifiers alone takes seconds."""
    import subprocess
    import sys

    code = (
        "import sys, deepdive, deepdive.web.tools\n"
        "print(sorted({'verifiers', 'datasets', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "[]"
