"""From rows to summary, report and plots."""

import itertools
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from eval import plot_kit, plots, report, suite_plots
from eval.config import ReportConfig
from eval.rows import Outcome, Row
from eval.summary import find_cell, summarise
from eval.wandb_log import sample
from tests.eval.synthetic import row, rows

OPTIONS = ReportConfig(bootstrap=200)
STATS = plot_kit.Stats(bootstrap=200, confidence=0.95, seed=0)


def failures() -> list[Row]:
    """Ten tasks in mode llm: six completed, four of these right; two beyond the window, one refused, one not
    judged."""
    made = [row(mode="llm", task_id=f"t{i}", reward=float(i < 4)) for i in range(6)]
    for i, outcome in enumerate(["context_overflow", "context_overflow", "refused", "judge_error"], 6):
        made.append(row(mode="llm", task_id=f"t{i}", outcome=outcome, reward=None))
    return made


def test_failures_are_counted_and_never_in_the_mean() -> None:
    summary = summarise(failures(), name="x", seed=0, report=OPTIONS)
    (cell,) = summary["cells"]
    assert cell["reward"]["mean"] == pytest.approx(4 / 6)
    assert cell["reward_overflow_as_zero"]["mean"] == pytest.approx(4 / 8)
    assert cell["outcomes"] == {
        "completed": 6,
        "context_overflow": 2,
        "refused": 1,
        "rate_limited": 0,
        "judge_error": 1,
        "infrastructure_error": 0,
    }
    assert cell["costs"]["wall_seconds"]["n"] == 6


def test_a_stray_reward_of_a_failed_episode_counts_for_nothing() -> None:
    made = [*failures(), row(mode="llm", task_id="t99", outcome="infrastructure_error", reward=0.0)]
    (cell,) = summarise(made, name="x", seed=0, report=OPTIONS)["cells"]
    assert cell["reward"]["mean"] == pytest.approx(4 / 6)


def test_the_report_says_how_many_of_each() -> None:
    text = report.render(
        summarise(failures(), name="x", seed=0, report=OPTIONS), plots={}, skipped={}, published={}
    )
    lines = [line for line in text.splitlines() if line.startswith("| verbatim | LLM |")]
    reward, outcomes = lines[0], lines[1]
    assert reward.startswith("| verbatim | LLM | 0.667 [")
    assert "| 0.500 [" in reward
    assert reward.endswith("| 6 of 10 | 4 |")
    assert outcomes.startswith("| verbatim | LLM | 6 | 2 | 1 | 0 | 1 | 0 |")


def said(message: str, **changes: str) -> Row:
    return row(
        mode="llm",
        outcome="infrastructure_error",
        reward=None,
        error_type="E",
        error_message=message,
        **changes,
    )


def test_failures_are_told_once_with_an_episode_to_look_at() -> None:
    made = [
        said("pod 4 died after 12 s", episode_id="e2", task_id="t2"),
        said("pod 17 died after 3 s", episode_id="e1", task_id="t1"),
        said("no such host", episode_id="e3", task_id="t3"),
        row(mode="llm", task_id="t4", outcome="context_overflow", reward=None, episode_id="e4"),
        row(mode="llm", task_id="t5", reward=1.0),
    ]
    summary = summarise(made, name="x", seed=0, report=OPTIONS)
    assert [(f["outcome"], f["episodes"], f["episode_id"]) for f in summary["failures"]] == [
        ("infrastructure_error", 2, "e1"),
        ("infrastructure_error", 1, "e3"),
        ("context_overflow", 1, "e4"),
    ]
    text = report.render(summary, plots={}, skipped={}, published={})
    assert "| verbatim | LLM | infrastructure | `E: pod 17 died after 3 s` | `e1` | 2 |" in text
    assert "| verbatim | LLM | beyond the window | nothing | `e4` | 1 |" in text
    whole = report.render(
        summarise([row()], name="x", seed=0, report=OPTIONS), plots={}, skipped={}, published={}
    )
    assert "None: every episode was completed." in whole


def test_an_endpoints_message_cannot_break_the_report() -> None:
    hostile = "a|b\n\n# head <script>alert(1)</script> `code` ![x](http://x) \x1b[31m"
    text = report.render(
        summarise([said(hostile)], name="x", seed=0, report=OPTIONS), plots={}, skipped={}, published={}
    )
    assert "`E: a\\|b # head <script>alert(1)</script> 'code' ![x](http://x) [31m`" in text
    assert "\x1b" not in text
    assert text.count("\n# ") == 0  # the only head of that level is the first line


def test_the_comparison_comes_first() -> None:
    made = failures() + [row(mode="rlm", task_id=f"t{i}", reward=1.0) for i in range(10)]
    text = report.render(
        summarise(made, name="x", seed=0, report=OPTIONS),
        plots={"tokens.png": "Tokens.", "reward_by_suite.png": "Rewards.", "lift_over_llm.png": "Lift."},
        skipped={},
        published={},
    )
    (line,) = [line for line in text.splitlines() if line.startswith("| verbatim | 10 |")]
    # Of ten tasks: 4/6 completed and right, 4/8 with overflows; lift 2/6 on six tasks, 4/8 on eight; bold
    # where the interval leaves out 0.
    assert line.startswith("| verbatim | 10 | 0.667 (0.500) | 1.000 | +0.333 [")
    assert "(**+0.500 [" in line
    assert line.endswith("| 4 |")
    places = [
        text.index(part)
        for part in ("## At a glance", "plots/reward", "plots/lift", "## Reward", "plots/tok")
    ]
    assert places == sorted(places)


def test_an_interval_without_width_is_explained_where_there_is_one() -> None:
    def rendered(rewards: list[float]) -> str:
        made = [row(task_id=f"t{i}", reward=reward) for i, reward in enumerate(rewards)]
        return report.render(
            summarise(made, name="x", seed=0, report=OPTIONS), plots={}, skipped={}, published={}
        )

    assert "no proof of certainty" in rendered([1.0, 1.0, 1.0])
    assert "no proof of certainty" not in rendered([1.0, 0.0, 1.0])


def test_models_are_compared_with_the_first_on_the_same_tasks() -> None:
    made = [
        row(model=model, task_id=f"t{i}", reward=float(i < right))
        for model, right in (("start", 1), ("trained", 3))
        for i in range(4)
    ]
    made[0].update(outcome="refused", reward=None)
    summary = summarise(made, name="x", seed=0, report=OPTIONS)
    (pair,) = summary["paired_models"]
    assert (pair["a"], pair["b"], pair["mode"]) == ("start", "trained", "rlm")
    assert (pair["reward"]["tasks"], pair["reward"]["difference"]) == (3, pytest.approx(2 / 3))
    text = report.render(summary, plots={}, skipped={}, published={})
    assert "| verbatim | RLM | trained - start | +0.667 [" in text


def test_modes_are_compared_on_the_tasks_that_both_completed() -> None:
    # t0..t5 completed by llm with 4 right; rlm completes t0..t9, all right.
    made = failures() + [row(mode="rlm", task_id=f"t{i}", reward=1.0) for i in range(10)]
    (pair,) = summarise(made, name="x", seed=0, report=OPTIONS)["paired"]
    assert (pair["a"], pair["b"]) == ("llm", "rlm")
    assert (pair["reward"]["tasks"], pair["reward"]["difference"]) == (6, pytest.approx(2 / 6))
    assert (pair["reward"]["wins"], pair["reward"]["ties"], pair["reward"]["losses"]) == (2, 4, 0)
    # With overflows as 0 the two tasks beyond the window are lost to the LLM as well.
    assert pair["reward_overflow_as_zero"]["tasks"] == 8
    assert pair["reward_overflow_as_zero"]["difference"] == pytest.approx(4 / 8)


def test_models_are_not_mixed() -> None:
    made = [
        row(model=model, task_id=f"t{i}", reward=value)
        for model, value in (("a", 0.0), ("b", 1.0))
        for i in range(3)
    ]
    summary = summarise(made, name="x", seed=0, report=OPTIONS)
    assert [(cell["model"], cell["reward"]["mean"]) for cell in summary["cells"]] == [("a", 0.0), ("b", 1.0)]
    found = find_cell(summary, model="b", mode="rlm")
    assert found is not None
    assert found["reward"]["mean"] == 1.0
    assert "| verbatim / b | RLM |" in report.render(summary, plots={}, skipped={}, published={})


def test_the_published_figures_stand_beside_the_measured_ones() -> None:
    made = [row(mode=mode, task_id=f"t{i}", reward=1.0) for mode in ("llm", "rlm") for i in range(2)]
    text = report.render(
        summarise(made, name="x", seed=0, report=OPTIONS),
        plots={},
        skipped={},
        published={"verbatim": "verbatim"},
    )
    assert "| verbatim | m | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | - |" in text
    assert "| verbatim | GPT-5-mini, published | about 0.83 | about 0.91 | about 0.88 |" in text


def test_names_cannot_break_the_tables() -> None:
    text = report.render(
        summarise([row(suite="a|b")], name="x", seed=0, report=OPTIONS), plots={}, skipped={}, published={}
    )
    assert "| a\\|b | RLM |" in text


def test_every_plot_of_the_list_is_drawn_from_a_full_evaluation(tmp_path: Path) -> None:
    drawn, skipped = plots.draw_all(rows(tasks=20), tmp_path, STATS, dpi=50)
    assert skipped == {}
    assert set(drawn) == {
        f"{name}.png"
        for name in (
            "reward_by_suite",
            "lift_over_llm",
            "tokens",
            "root_efficiency",
            "time",
            "reward_against_tokens",
            "oolong_by_subset",
            "oolong_by_length",
            "oolong_tokens",
            "verbatim_by_content",
            "verbatim_by_length",
            "verbatim_by_fragment",
            "math_by_time_limit",
        )
    }
    for name in drawn:
        image = imread(tmp_path / name)
        assert min(image.shape[:2]) > 100
        assert image[..., :3].std() > 0.05  # not an empty page


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    made = [
        one
        for one in rows(tasks=5)
        if one["suite"] == "verbatim" and one["mode"] == "rlm" and one["setting"] == "default"
    ]
    (tmp_path / "old.png").write_bytes(b"of an earlier run")
    drawn, skipped = plots.draw_all(made, tmp_path, STATS, dpi=50)
    assert set(drawn) == {
        "reward_by_suite.png",
        "tokens.png",
        "time.png",
        "reward_against_tokens.png",
        "verbatim_by_content.png",
    }
    assert skipped["lift_over_llm"] == "needs the mode llm and one other"
    assert skipped["oolong_by_length"] == "the suite oolong was not run"
    assert 'sweep = { "taskset.target_length"' in skipped["verbatim_by_length"]
    assert {path.name for path in tmp_path.iterdir()} == set(drawn)
    text = report.render(
        summarise(made, name="x", seed=0, report=OPTIONS), plots=drawn, skipped=skipped, published={}
    )
    assert "- oolong_tokens: the suite oolong was not run" in text
    assert "![" in text
    assert "(plots/tokens.png)" in text


def test_plots_bear_cells_in_which_nothing_was_completed(tmp_path: Path) -> None:
    made = rows(tasks=6)
    for one in made:
        if one["mode"] == "llm":
            one.update(outcome=str(Outcome.CONTEXT_OVERFLOW), reward=None)
    drawn, skipped = plots.draw_all(made, tmp_path, STATS, dpi=50)
    assert {"root_efficiency"} == set(skipped)  # the lift is there with overflows as 0
    assert "reward_by_suite.png" in drawn
    assert "oolong_by_length.png" in drawn


def published_rows() -> list[Row]:
    """With the long names of configs/eval/published.toml, and suites in which prompts were too long."""
    made = rows(tasks=12)
    synth = [one for one in made if one["suite"] == "oolong_synth"]
    labels = {"suite": "oolong_synth_labels", "task/subset": "synth_with_labels"}
    return made + [{**one, **labels, "task_id": f"labels-{one['task_id']}"} for one in synth]


@pytest.mark.parametrize("plot", [*plots.GENERAL, *plots.SUITE_PLOTS], ids=lambda plot: plot.name)
def test_nothing_is_cut_off_or_written_over_another(plot: plot_kit.Plot) -> None:
    with mpl.rc_context(plot_kit.STYLE):
        figure = plot.draw(published_rows(), STATS)
        FigureCanvasAgg(figure).draw()
        page = figure.bbox
        (legend,) = figure.legends
        boxes = [legend.get_window_extent()]
        for axes in figure.axes:
            if not axes.get_visible():
                continue
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [
                    tick.label1.get_window_extent()
                    for tick in axis.get_major_ticks()
                    if low <= tick.get_loc() <= high and tick.label1.get_text() and tick.label1.get_visible()
                ]
                boxes += ticks
                overlapping = [1 for a, b in itertools.pairwise(ticks) if a.overlaps(b)]
                assert not overlapping, f"{axes.get_title()}: tick labels overlap"
            boxes.append(axes.title.get_window_extent())
            boxes += [text.get_window_extent() for text in axes.texts]
        titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
        assert not [1 for a, b in itertools.combinations(titles, 2) if a.overlaps(b)]
        for box in boxes:
            assert box.x0 >= page.x0 - 1
            assert box.x1 <= page.x1 + 1
            assert box.y0 >= page.y0 - 1
            assert box.y1 <= page.y1 + 1


def labels_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def test_content_types_are_compared_on_the_sweep_where_there_is_one() -> None:
    made = rows(tasks=10)
    assert labels_of(suite_plots.verbatim_by_content(made, STATS))[0] == "codes\nn = 2"
    swept = [
        {**one, "setting": f"content_type={kind}", "task/kind": kind}
        for kind in ("csv", "words")
        for one in made
        if one["suite"] == "verbatim" and one["setting"] == "default"
    ]
    assert labels_of(suite_plots.verbatim_by_content(made + swept, STATS)) == ["csv\nn = 10", "words\nn = 10"]


def test_efficiency_compares_the_same_tasks() -> None:
    """The LLM did the short ones alone; that the RLM did the long ones too must not count against it."""
    made = [
        row(mode=mode, task_id=f"t{i}", reward=1.0, root_tokens=tokens * (i + 1))
        for mode, tokens in (("llm", 100.0), ("rlm", 50.0))
        for i in range(10)
        if mode == "rlm" or i < 5
    ]
    figure = plots.root_efficiency(made, STATS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["2x"]


def test_one_file_per_model(tmp_path: Path) -> None:
    made = [row(model=model, mode=mode, task_id="t") for model in ("a", "b") for mode in ("llm", "rlm")]
    drawn, _ = plots.draw_all(made, tmp_path, STATS, dpi=50)
    assert {"reward_by_suite__a.png", "reward_by_suite__b.png"} <= set(drawn)
    assert "Model: b." in drawn["reward_by_suite__b.png"]


def test_suites_of_one_taskset_are_not_pooled(tmp_path: Path) -> None:
    made = rows(tasks=4)
    other = {"verbatim": "verbatim_repl", "oolong_real": "oolong_real_2"}
    both = made + [{**one, "suite": other[one["suite"]]} for one in made if one["suite"] in other]
    drawn, _ = plots.draw_all(both, tmp_path, STATS, dpi=50)
    files = {name for name in drawn if name.startswith("verbatim_by_content")}
    assert files == {"verbatim_by_content__verbatim.png", "verbatim_by_content__verbatim_repl.png"}
    assert drawn["verbatim_by_content__verbatim_repl.png"].endswith("Suite: verbatim_repl.")
    assert "math_by_time_limit.png" in drawn  # the only suite of its taskset
    shown = [label.split("\n")[0] for label in labels_of(suite_plots.oolong_by_subset(both, STATS))]
    assert shown == ["oolong_real: real", "oolong_real_2: real", "synth"]


def test_the_main_plots_leave_variations_out() -> None:
    made = rows(tasks=2)
    assert {one["setting"] for one in plot_kit.main_rows(made) if one["suite"] == "verbatim"} == {"default"}
    assert len({one["setting"] for one in plot_kit.main_rows(made) if one["suite"] == "math"}) == 3


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12.5, "12.5"), (999, "999"), (1500, "1.5k"), (2e6, "2M"), (3.2e9, "3.2G")]
)
def test_axis_numbers(value: float, text: str) -> None:
    assert plot_kit.compact(value) == text


def test_log_ticks_lie_inside_and_are_few() -> None:
    for low, high in ((3, 12), (450, 5000), (1e3, 1e7), (110_000, 440_000)):
        ticks, labels = plot_kit.log_ticks((low, high))
        assert 2 <= len(ticks) <= 5
        assert all(low <= tick <= high for tick in ticks)
        assert len(set(labels)) == len(ticks)


def test_samples_are_spread_over_the_cells() -> None:
    made = [row(mode=mode, task_id=f"t{i}") for mode in ("llm", "rlm") for i in range(5)]
    assert [(one["mode"], one["task_id"]) for one in sample(made, 3)] == [
        ("llm", "t0"),
        ("rlm", "t0"),
        ("llm", "t1"),
    ]
    assert len(sample(made, 100)) == 10
    assert sample(made, 0) == []
