"""From a config to its cells, and what is said when it cannot be."""

import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf
from pydantic_config import ConfigFileError

from eval.cli import describe, parse
from eval.config import EvalConfig
from eval.matrix import Cell, MatrixError, expand, merge, tasks_of

CONFIGS = Path(__file__).parents[2] / "configs" / "eval"


def config(**changes: Any) -> EvalConfig:
    base: dict[str, Any] = {
        "name": "t",
        "num_tasks": 3,
        "models": {"m": {"base_url": "http://127.0.0.1:1/v1"}},
        "suites": {"copy": {"taskset": {"id": "verbatim-copy"}}},
    }
    return EvalConfig.model_validate(merge(base, changes))


class PlainTaskset(vf.Taskset[vf.Task[vf.TaskData, vf.State, vf.TaskConfig], vf.TasksetConfig]):
    """A taskset as others write them: no mode, no draw of its own."""

    def load(self) -> list[vf.Task]:
        return [vf.Task(vf.TaskData(prompt=f"question {i}")) for i in range(20)]


@pytest.fixture
def plain_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("plain_suite")
    module.__dict__.update({"PlainTaskset": PlainTaskset, "__all__": ["PlainTaskset"]})
    monkeypatch.setitem(sys.modules, "plain_suite", module)


@pytest.mark.usefixtures("plain_suite")
def test_a_taskset_without_a_draw_is_drawn_from_here() -> None:
    made = config(modes=["llm", "rlm"], suites={"plain": {"taskset": {"id": "plain-suite"}}})
    llm, rlm = [cell for cell in expand(made) if cell.suite == "plain"]
    positions = [task.data.idx for _, task in tasks_of(llm)]
    assert positions == [task.data.idx for _, task in tasks_of(rlm)]
    assert len(set(positions)) == 3
    assert positions != [0, 1, 2]  # a draw, not the first ones


def test_the_product_models_outermost_modes_innermost() -> None:
    cells = expand(
        config(
            models={"n": {"base_url": "http://127.0.0.1:2/v1"}},
            suites={
                "copy": {"settings": {"long": {"taskset": {"target_length": 900}}}},
                "copy2": {"taskset": {"id": "verbatim-copy"}, "modes": ["rlm"]},
            },
        )
    )
    ids = [cell.id for cell in cells]
    assert len(ids) == len(set(ids)) == 2 * (2 * 3 + 1)
    assert ids[:4] == [
        "copy__default__llm__m",
        "copy__default__rlm__m",
        "copy__default__rlm_tips__m",
        "copy__long__llm__m",
    ]
    assert [cell.model for cell in cells] == ["m"] * 7 + ["n"] * 7


def harness_of(cell: Cell) -> Any:
    return cell.env.agent.harness  # type: ignore[attr-defined]


def test_mode_and_scaffold_go_together() -> None:
    cells = expand(
        config(suites={"copy": {"harness_llm": {"python_tool": True}, "harness_rlm": {"max_depth": 2}}})
    )
    seen = {cell.mode: (cell.env.taskset.mode, harness_of(cell).scaffold, harness_of(cell).python_tool,
                        harness_of(cell).max_depth) for cell in cells}  # type: ignore[attr-defined]  # fmt: skip
    assert seen == {
        "llm": ("llm", "llm", True, 1),
        "rlm": ("rlm", "rlm", False, 2),
        "rlm_tips": ("rlm_tips", "rlm", False, 2),
    }


def test_all_modes_have_the_same_tasks_in_the_same_order() -> None:
    drawn = {cell.mode: [task_id for task_id, _ in tasks_of(cell)] for cell in expand(config())}
    assert drawn["llm"] == drawn["rlm"] == drawn["rlm_tips"]
    assert len(set(drawn["llm"])) == 3
    other = expand(config(seed=7))[0]
    assert [task_id for task_id, _ in tasks_of(other)] != drawn["llm"]


def test_settings_are_merged_over_the_suite_and_sweeps_vary_one_key() -> None:
    cells = expand(
        config(
            modes=["rlm"],
            suites={
                "copy": {
                    "taskset": {"target_length": 100},
                    "harness": {"repl": {"output_chars": 500}},
                    "settings": {"short": {"taskset": {"target_length": 50}, "num_tasks": 1}},
                    "sweep": {"harness.repl.call_seconds": [5, 7.5], "taskset.content_type": ["csv"]},
                }
            },
        )
    )
    assert [cell.setting for cell in cells] == [
        "default",
        "short",
        "call_seconds=5",
        "call_seconds=7.5",
        "content_type=csv",
    ]
    assert [cell.env.taskset.target_length for cell in cells] == [100, 50, 100, 100, 100]  # type: ignore[attr-defined]
    assert [cell.num_tasks for cell in cells] == [3, 1, 3, 3, 3]
    assert [harness_of(cell).repl.call_seconds for cell in cells] == [120, 120, 5, 7.5, 120]
    assert all(harness_of(cell).repl.output_chars == 500 for cell in cells)
    # What is swept is labelled in every cell, also where it is left at its default, for the plots over it.
    assert [cell.varied["harness.repl.call_seconds"] for cell in cells] == [120, 120, 5, 7.5, 120]
    assert [cell.varied["taskset.content_type"] for cell in cells] == ["all", "all", "all", "all", "csv"]


def test_a_swept_key_is_labelled_with_what_the_whole_evaluation_sets() -> None:
    sweep = {"harness.repl.call_seconds": [300], "agent.timeout.rollout": [9.0]}
    made = config(harness={"repl": {"call_seconds": 60}}, suites={"copy": {"sweep": sweep}}, modes=["llm"])
    labels = [cell.varied["harness.repl.call_seconds"] for cell in expand(made)]
    assert labels == [60, 300, 60]
    assert [cell.varied["agent.timeout.rollout"] for cell in expand(made)] == [None, None, 9.0]


def test_the_shipped_files_draw_math_at_120_300_and_600_seconds() -> None:
    for name in ("offline.toml", "published.toml"):
        cells = expand(parse(["@", str(CONFIGS / name), "--suites.math.taskset.split", "mini"]))
        limits = {cell.varied["harness.repl.call_seconds"] for cell in cells if cell.suite == "math"}
        assert limits == {120, 300, 600}


def test_without_base_only_the_settings_run() -> None:
    cells = expand(
        config(modes=["llm"], suites={"copy": {"base": False, "sweep": {"taskset.target_length": [9]}}})
    )
    assert [cell.setting for cell in cells] == ["target_length=9"]


def test_the_fingerprint_follows_what_changes_results() -> None:
    def prints(**changes: Any) -> dict[str, Any]:
        return expand(config(**changes))[0].fingerprint

    base = prints()
    assert prints() == base
    assert prints(max_concurrent=2, models={"m": {"base_url": "http://127.0.0.1:9/v1"}}) == base
    for change in (
        {"seed": 1},
        {"num_tasks": 4},
        {"sampling": {"temperature": 0.5}},
        {"harness": {"limits": {"max_turns": 3}}},
        {"suites": {"copy": {"taskset": {"target_length": 5}}}},
        {"models": {"m": {"name": "other"}}},
    ):
        assert prints(**change) != base, change


def test_a_models_sampling_is_merged_over_the_runs() -> None:
    cell = expand(
        config(sampling={"temperature": 0.5, "top_p": 0.9}, models={"m": {"sampling": {"temperature": 1.0}}})
    )[0]
    assert (cell.sampling.temperature, cell.sampling.top_p) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"suites": {"copy": {"taskset": {"target_lenght": 5}}}},
            r"taskset\.target_lenght.*did you mean 'target_length'",
        ),
        ({"harness": {"max_dept": 2}}, r"harness\.max_dept.*did you mean 'max_depth'"),
        ({"harness": {"limits": {"max_turn": 2}}}, r"harness\.limits\.max_turn.*did you mean 'max_turns'"),
        ({"harness": {"repl": {"call_secs": 2}}}, r"harness\.repl\.call_secs.*did you mean 'call_seconds'"),
        ({"suites": {"copy": {"agent": {"timeout": {"rolout": 2}}}}}, r"agent\.timeout\.rolout.*'rollout'"),
        (
            {"suites": {"copy": {"taskset": {"target_length": -1}}}},
            r"taskset\.target_length: .*greater than or equal to 1.*got -1",
        ),
        (
            {"suites": {"copy": {"taskset": {"id": "no-such-suite"}}}},
            r"suites\.copy\.taskset\.id: .*'no-such-suite'.*pip install -e environments/no_such_suite",
        ),
        ({"suites": {"copy": {"taskset": {"mode": "llm"}}}}, r"taskset\.mode is set by the evaluation"),
        (
            {"suites": {"copy": {"taskset": {"seed": 1}}}},
            r"taskset\.seed is set by the evaluation.*seed of the evaluation",
        ),
        ({"suites": {"copy": {"harness": {"scaffold": "llm"}}}}, r"harness\.scaffold follows from the mode"),
        ({"suites": {"copy": {"harness": {"python_tool": True}}}}, r"python_tool is for scaffold"),
        (
            {"suites": {"plain": {"taskset": {"id": "plain-suite"}}}},
            r"suites\.plain: .*no tips.*set modes",
        ),
        ({"suites": {"copy": {"settings": {"default": {}}}}}, r"settings\.default: choose another name"),
        ({"suites": {"copy": {"sweep": {"taskset.target_length": [5, 5]}}}}, r"two cells have the name"),
    ],
)
@pytest.mark.usefixtures("plain_suite")
def test_broken_cells_name_the_key_and_the_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MatrixError, match=message):
        expand(config(**changes))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--modez", "llm"], "modez: unknown key; did you mean 'modes'"),
        (
            ["--suites.verbatim.num-taks", "5"],
            r"suites\.verbatim\.num_taks: unknown key; did you mean 'num_tasks'",
        ),
        (
            ["--models.scripted.checkpont", "x"],
            r"models\.scripted\.checkpont: unknown key; did you mean 'checkpoint'",
        ),
        (["--report.bootstap", "500"], r"report\.bootstap: unknown key; did you mean 'bootstrap'"),
        (["--models.scripted.base-url", "http://x/v1"], "exactly one of base_url"),
        (["--num-tasks", "0"], r"num_tasks: .*greater than or equal to 1"),
        (["--modes", "rml"], "'llm', 'rlm' or 'rlm_tips'"),
        (["--suites.verbatim.published", "verbatm"], "none of deepdive"),
        (["--resume", "--clean"], "exclude each other"),
    ],
)
def test_the_command_line_names_the_nearest_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigFileError, match=message):
        parse(["@", str(CONFIGS / "offline.toml"), *overrides])


def test_overrides_reach_into_suites_and_tasksets() -> None:
    got = parse(
        ["@", str(CONFIGS / "offline.toml"), "--suites.verbatim.num-tasks", "2", "--modes", "llm", "rlm",
         "--suites.verbatim.taskset.content-type", "csv", "--num-tasks", "None", "--resume"]
    )  # fmt: skip
    assert (got.suites["verbatim"].num_tasks, got.modes, got.num_tasks, got.resume) == (
        2,
        ["llm", "rlm"],
        None,
        True,
    )
    assert got.suites["verbatim"].taskset["content_type"] == "csv"


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.toml")))
def test_every_shipped_config_expands(file: str) -> None:
    parsed = parse(["@", str(CONFIGS / file)])
    assert len(expand(parsed)) >= 1
    assert parsed.name == Path(file).stem
    assert set(tomllib.loads((CONFIGS / file).read_text())) <= set(EvalConfig.model_fields)


def test_the_published_settings_are_those_of_the_articles() -> None:
    cells = {
        (cell.suite, cell.setting, cell.mode): cell
        for cell in expand(parse(["@", str(CONFIGS / "published.toml")]))
    }
    assert {cell.num_tasks for cell in cells.values()} == {50}
    assert {cell.seed for cell in cells.values()} == {42}
    assert harness_of(cells["deepdive", "default", "rlm"]).limits.max_turns == 50
    assert harness_of(cells["oolong_synth", "default", "rlm"]).repl.output_chars == 8192
    assert harness_of(cells["math", "default", "llm"]).python_tool
    seconds = {harness_of(cell).repl.call_seconds for key, cell in cells.items() if key[0] == "math"}
    assert seconds == {120, 300, 600}
    copy: Any = cells["verbatim", "default", "llm"].env.taskset
    assert (copy.content_type, copy.target_length, copy.mean_fragment_length) == ("all", 500, 20)


def test_the_quickstart_policy_is_evaluated_in_the_scaffold_that_it_was_trained_in() -> None:
    trained = tomllib.loads((CONFIGS.parent / "train" / "quickstart_cpu.toml").read_text())
    evaluated = tomllib.loads((CONFIGS / "quickstart-checkpoint.toml").read_text())
    assert evaluated["harness"] == {k: v for k, v in trained["env"]["agent"]["harness"].items() if k != "id"}
    assert evaluated["sampling"] == trained["sampling"]
    taskset = evaluated["suites"]["verbatim"]["taskset"]
    for key in ("placement", "content_type", "target_length"):
        assert taskset[key] == trained["env"]["taskset"][key]
    assert taskset["split"] == trained["eval"]["taskset"]["split"] != trained["env"]["taskset"]["split"]
    server = evaluated["models"]["trained"]["server"]
    assert server.items() <= trained["vllm"].items()


def test_a_dry_run_lists_cells_and_reckons_calls(tmp_path: Path) -> None:
    text = describe(config(output_dir=tmp_path, typical_calls={"llm": 2, "rlm": 10, "rlm_tips": 20}))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if "copy__" in line] == [
        "copy__default__llm__m",
        "copy__default__rlm__m",
        "copy__default__rlm_tips__m",
    ]
    assert "9 episodes, about 96 model calls" in text  # 3 * (2 + 10 + 20)
    # 3 tasks: llm 30 turns; each rlm mode 30 turns and 1,000 sub-calls of up to 6 turns.
    assert f"limits: {3 * 30 + 2 * 3 * (30 + 6000):,}" in text
    assert not any(tmp_path.iterdir())
