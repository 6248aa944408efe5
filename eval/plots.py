"""The PNG plots: what every suite has in common. `suite_plots.py` holds those of single suites.

The idea: a plot is a function of the rows that returns a figure or raises `NotDrawn` with the reason, which
the report prints. Colours are Okabe and Ito's, which hold for colour-blind readers; each mode also has a
marker and a hatch of its own, so that a grey print reads the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from eval.config import MODES
from eval.report import MODE_NAMES
from eval.rows import Outcome, Row
from eval.stats import Estimate, mean_ci, paired_difference
from eval.summary import by_task, reward_completed, reward_overflow_as_zero

COLOURS = {"llm": "#0072B2", "rlm": "#E69F00", "rlm_tips": "#009E73"}
HATCHES = {"llm": "", "rlm": "///", "rlm_tips": "..."}
MARKERS = {"llm": "o", "rlm": "s", "rlm_tips": "^"}
ROOT_COLOUR, SUB_COLOUR = "#0072B2", "#56B4E9"
INK = "#333333"

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "hatch.color": "white",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


class NotDrawn(Exception):
    """The data for a plot is not there; the message says what is missing."""


@dataclass(frozen=True)
class Stats:
    """How intervals are made: the same numbers as in the tables."""

    bootstrap: int
    confidence: float
    seed: int

    def mean(self, rows: Sequence[Row], value: Callable[[Row], float | None]) -> Estimate | None:
        return mean_ci(
            by_task(rows, value), resamples=self.bootstrap, confidence=self.confidence, seed=self.seed
        )

    def difference(self, a: Sequence[Row], b: Sequence[Row]) -> Any:
        return paired_difference(
            by_task(a, reward_completed),
            by_task(b, reward_completed),
            resamples=self.bootstrap,
            confidence=self.confidence,
            seed=self.seed,
        )


Draw = Callable[[Sequence[Row], Stats], Figure]


@dataclass(frozen=True)
class Plot:
    """A plot by name: the file's stem, what it shows, and how."""

    name: str
    caption: str
    draw: Draw


# ---- helpers shared with suite_plots


def modes_of(rows: Sequence[Row]) -> list[str]:
    present = {row["mode"] for row in rows}
    return [mode for mode in MODES if mode in present]


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that general plots show: each suite as it stands. Variations have plots of their own; a suite
    that was run only in variations is shown with all of them."""
    with_base = {row["suite"] for row in rows if row["setting"] == "default"}
    return [row for row in rows if row["setting"] == "default" or row["suite"] not in with_base]


def group_label(row: Row) -> str:
    return row["suite"] if row["setting"] == "default" else f"{row['suite']}\n{row['setting']}"


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Label -> rows, one group per suite (and setting), in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(group_label(row), []).append(row)
    return found


def completed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["outcome"] == Outcome.COMPLETED]


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height))


def mode_legend(axes: Axes, modes: Sequence[str], extra: Sequence[Any] = (), **options: Any) -> None:
    handles: list[Any] = [
        Patch(facecolor=COLOURS[mode], hatch=HATCHES[mode], edgecolor="white", label=MODE_NAMES[mode])
        for mode in modes
    ]
    axes.legend(handles=[*handles, *extra], **options)


def legend_above(axes: Axes, modes: Sequence[str], extra: Sequence[Any] = ()) -> None:
    """The legend on a line of its own above the axes, where it can cover no data."""
    mode_legend(
        axes,
        modes,
        extra,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(modes) + len(extra),
        borderaxespad=0.2,
    )


def reward_axis(axes: Axes, rows: Sequence[Row]) -> None:
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    axes.set_ylabel("mean reward")
    axes.set_ylim(min(0.0, *rewards) if rewards else 0.0, max(1.02, *rewards) if rewards else 1.02)
    axes.grid(axis="x", visible=False)


def _error(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.mean - estimate.low)], [max(0.0, estimate.high - estimate.mean)]]


def grouped_bars(
    axes: Axes, labelled: Mapping[str, Sequence[Row]], stats: Stats, value: Callable[[Row], float | None]
) -> bool:
    """Bars of the mean with intervals: a group per label, a bar per mode. Returns whether any group has a
    mean with overflows as 0 that differs, drawn as a diamond."""
    modes = modes_of([row for rows in labelled.values() for row in rows])
    width = 0.8 / len(modes)
    marked = False
    for x, rows in enumerate(labelled.values()):
        for i, mode in enumerate(modes):
            own = where(rows, mode=mode)
            estimate = stats.mean(own, value)
            place = x + (i - (len(modes) - 1) / 2) * width
            if estimate is not None:
                axes.bar(
                    place,
                    estimate.mean,
                    width * 0.92,
                    color=COLOURS[mode],
                    hatch=HATCHES[mode],
                    edgecolor="white",
                    linewidth=0,
                )
                if estimate.mean == 0:
                    axes.text(place, 0.005, "0", ha="center", va="bottom", fontsize=8, color=INK)
                if (error := _error(estimate)) is not None and estimate.low != estimate.high:
                    axes.errorbar(
                        place, estimate.mean, yerr=error, color=INK, capsize=2.5, linewidth=1, fmt="none"
                    )
            elif own:
                axes.text(place, 0.01, "none\nscored", ha="center", va="bottom", fontsize=7, color=INK)
            if value is reward_completed and any(row["outcome"] == Outcome.CONTEXT_OVERFLOW for row in own):
                low = stats.mean(own, reward_overflow_as_zero)
                if low is not None:
                    axes.plot(place, low.mean, "D", mfc="white", mec=INK, ms=5, zorder=5, clip_on=False)
                    marked = True
    axes.set_xticks(range(len(labelled)), list(labelled))
    axes.set_xlim(-0.6, len(labelled) - 0.4)
    return marked


OVERFLOW_MARK = Line2D(
    [], [], marker="D", mfc="white", mec=INK, ls="none", ms=5, label="with prompts beyond the window as 0"
)


def wide(labels: int, modes: int) -> float:
    """Width in inches that keeps bars and their labels apart."""
    return max(5.5, 1.6 + labels * max(1.25, 0.42 * modes))


# ---- the plots


def reward_by_suite(rows: Sequence[Row], stats: Stats) -> Figure:
    labelled = groups(rows)
    figure = new_figure(wide(len(labelled), len(modes_of(rows))), 3.8)
    axes = figure.add_subplot()
    marked = grouped_bars(axes, labelled, stats, reward_completed)
    reward_axis(axes, rows)
    legend_above(axes, modes_of(rows), [OVERFLOW_MARK] if marked else [])
    return figure


def lift_over_llm(rows: Sequence[Row], stats: Stats) -> Figure:
    modes = [mode for mode in modes_of(rows) if mode != "llm"]
    if "llm" not in modes_of(rows) or not modes:
        raise NotDrawn("needs the mode llm and one other")
    labelled = groups(rows)
    points = []
    for line, own in enumerate(labelled.values()):
        for i, mode in enumerate(modes):
            difference = stats.difference(where(own, mode="llm"), where(own, mode=mode))
            if difference is not None:
                points.append((line + (i - (len(modes) - 1) / 2) * 0.25, mode, difference))
    if not points:
        raise NotDrawn("no task was completed in both modes")
    figure = new_figure(6.5, 1.4 + 0.65 * len(labelled))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1)
    for y, mode, difference in points:
        if difference.low is not None:
            axes.plot([difference.low, difference.high], [y, y], color=COLOURS[mode], linewidth=2)
        axes.plot(difference.difference, y, MARKERS[mode], color=COLOURS[mode], ms=7, mec="white")
    axes.set_yticks(range(len(labelled)), list(labelled))
    axes.set_ylim(len(labelled) - 0.5, -0.5)
    axes.set_xlabel("reward minus that of the LLM, on tasks completed by both")
    axes.grid(axis="y", visible=False)
    handles = [
        Line2D([], [], marker=MARKERS[m], color=COLOURS[m], lw=2, ms=7, mec="white", label=MODE_NAMES[m])
        for m in modes
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(modes), borderaxespad=0.2
    )
    return figure


def _mean_of(rows: Sequence[Row], measure: str) -> float:
    values = [row[measure] for row in rows if row.get(measure) is not None]
    return float(np.mean(values)) if values else 0.0


def tokens(rows: Sequence[Row], stats: Stats) -> Figure:
    done = completed(rows)
    if not any(row.get("root_tokens") for row in done):
        raise NotDrawn("no completed episode reports its tokens")
    return token_panels(groups(done), modes_of(rows))


def token_panels(labelled: Mapping[str, Sequence[Row]], modes: Sequence[str]) -> Figure:
    """Prompt (top) and completion tokens (bottom), root below sub-LLM; a column per label, each on its own
    scale: suites differ by orders of magnitude."""
    figure = new_figure(max(5.0, 1.0 + 1.9 * len(labelled)), 5.0)
    grid = figure.subplots(2, len(labelled), squeeze=False, sharex="col")
    for column, (label, rows) in enumerate(labelled.items()):
        for line, kind in enumerate(("prompt", "completion")):
            axes = grid[line][column]
            for x, mode in enumerate(modes):
                own = where(rows, mode=mode)
                root, sub = _mean_of(own, f"root_{kind}_tokens"), _mean_of(own, f"sub_{kind}_tokens")
                axes.bar(x, root, 0.7, color=ROOT_COLOUR, edgecolor="white", linewidth=0)
                if sub:  # a bar of height 0 would pin the axis to the top of the one below it
                    axes.bar(
                        x,
                        sub,
                        0.7,
                        bottom=root,
                        color=SUB_COLOUR,
                        hatch="///",
                        edgecolor="white",
                        linewidth=0,
                    )
            axes.margins(y=0.06)
            axes.set_xticks(range(len(modes)), [MODE_NAMES[m].replace("+", "\n+") for m in modes])
            axes.yaxis.set_major_formatter(lambda value, _: compact(value))
            axes.grid(axis="x", visible=False)
            if column == 0:
                axes.set_ylabel(f"{kind} tokens\nper episode (mean)")
            if line == 0:
                axes.set_title(label)
    figure.legend(
        handles=[
            Patch(facecolor=ROOT_COLOUR, label="root"),
            Patch(facecolor=SUB_COLOUR, hatch="///", edgecolor="white", label="sub-LLMs"),
        ],
        loc="outside upper right",
        ncols=2,
    )
    return figure


def compact(value: float) -> str:
    """1500 -> 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def root_efficiency(rows: Sequence[Row], stats: Stats) -> Figure:
    """(mean reward / mean root tokens) of each mode over that of the LLM, on a log axis."""
    values: dict[str, dict[str, float]] = {}
    for label, own in groups(completed(rows)).items():
        per_mode = {}
        for mode in modes_of(own):
            chosen = where(own, mode=mode)
            root = _mean_of(chosen, "root_tokens")
            reward = _mean_of(chosen, "reward")
            if root > 0:
                per_mode[mode] = reward / root
        base = per_mode.pop("llm", 0.0)
        if base > 0 and any(value > 0 for value in per_mode.values()):
            values[label] = {mode: value / base for mode, value in per_mode.items()}
    if not values:
        raise NotDrawn("needs a suite on which the LLM and another mode have a mean reward above 0")
    modes = [mode for mode in MODES if any(mode in per_mode for per_mode in values.values())]
    figure = new_figure(wide(len(values), len(modes)), 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(modes)
    for x, per_mode in enumerate(values.values()):
        for i, mode in enumerate(modes):
            if mode not in per_mode:
                continue
            place = x + (i - (len(modes) - 1) / 2) * width
            if per_mode[mode] == 0:
                axes.text(place, 0.96, "no\nreward", ha="center", va="top", fontsize=7, color=INK)
                continue
            # Bars grow from 1, the LLM: up is better, down is worse, by the same factor on a log axis.
            axes.bar(
                place,
                per_mode[mode] - 1,
                width * 0.92,
                bottom=1,
                color=COLOURS[mode],
                hatch=HATCHES[mode],
                edgecolor="white",
                linewidth=0,
            )
            axes.annotate(
                f"{per_mode[mode]:.2g}x",
                (place, per_mode[mode]),
                textcoords="offset points",
                xytext=(0, 3 if per_mode[mode] >= 1 else -3),
                ha="center",
                va="bottom" if per_mode[mode] >= 1 else "top",
                fontsize=8,
            )
    every = [1.0, *(value for per_mode in values.values() for value in per_mode.values() if value)]
    axes.set_yscale("log")
    axes.set_ylim(min(every) / 1.6, max(every) * 1.6)
    _tick_log(axes.yaxis, axes.get_ylim())
    axes.axhline(1, color=INK, linewidth=1)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_ylabel("reward per root token,\nLLM = 1 (log)")
    axes.grid(axis="x", visible=False)
    legend_above(axes, modes)
    return figure


def time(rows: Sequence[Row], stats: Stats) -> Figure:
    """Seconds per episode: median, quartiles, p10 to p90, mean and maximum, on a log axis."""
    done = [row for row in completed(rows) if row.get("wall_seconds")]
    if not done:
        raise NotDrawn("no completed episode reports its time")
    labelled, modes = groups(done), modes_of(done)
    figure = new_figure(max(8.0, wide(len(labelled), len(modes))), 3.8)
    axes = figure.add_subplot()
    width = 0.8 / len(modes)
    for x, own in enumerate(labelled.values()):
        for i, mode in enumerate(modes):
            seconds = [row["wall_seconds"] for row in where(own, mode=mode)]
            if not seconds:
                continue
            place = x + (i - (len(modes) - 1) / 2) * width
            p10, q1, median, q3, p90 = np.percentile(seconds, [10, 25, 50, 75, 90])
            axes.plot([place, place], [p10, p90], color=INK, linewidth=1)
            axes.bar(
                place,
                q3 - q1,
                width * 0.8,
                bottom=q1,
                color=COLOURS[mode],
                hatch=HATCHES[mode],
                edgecolor="white",
                linewidth=0,
            )
            axes.plot([place - width * 0.4, place + width * 0.4], [median] * 2, color="black", linewidth=2)
            axes.plot(place, np.mean(seconds), "D", mfc="white", mec=INK, ms=4.5, zorder=5)
            axes.plot(place, max(seconds), "_", color=INK, ms=8, mew=1.2)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high / 4), high)
    _tick_log(axes.yaxis, axes.get_ylim())
    axes.set_xticks(range(len(labelled)), list(labelled))
    axes.set_xlim(-0.6, len(labelled) - 0.4)
    axes.set_ylabel("seconds per episode (log)")
    axes.grid(axis="x", visible=False)
    legend_above(
        axes,
        modes,
        [
            Line2D([], [], color="black", lw=2, label="median"),
            Line2D([], [], marker="D", mfc="white", mec=INK, ls="none", ms=4.5, label="mean"),
            Line2D([], [], marker="_", color=INK, ls="none", ms=8, label="maximum"),
        ],
    )
    return figure


def reward_against_tokens(rows: Sequence[Row], stats: Stats) -> Figure:
    """A panel per suite: mean reward over mean tokens of an episode, one marker per mode."""
    done = [row for row in completed(rows) if row.get("total_tokens")]
    if not done:
        raise NotDrawn("no completed episode reports its tokens")
    labelled, modes = groups(done), modes_of(done)
    columns = min(4, len(labelled))
    lines = -(-len(labelled) // columns)
    figure = new_figure(max(5.0, 1.0 + 2.3 * columns), 0.7 + 2.5 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, (label, own) in enumerate(labelled.items()):
        axes = grid[place // columns][place % columns]
        for mode in modes:
            chosen = where(own, mode=mode)
            estimate = stats.mean(chosen, reward_completed)
            if estimate is None:
                continue
            axes.errorbar(
                _mean_of(chosen, "total_tokens"),
                estimate.mean,
                yerr=_error(estimate),
                fmt=MARKERS[mode],
                color=COLOURS[mode],
                mec="white",
                ms=9,
                capsize=2.5,
                linewidth=1.2,
            )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        middle, span = math.sqrt(low * high), max(4.0, 2.0 * high / low)
        axes.set_xlim(middle / math.sqrt(span), middle * math.sqrt(span))
        _tick_log(axes.xaxis, axes.get_xlim())
        axes.set_title(label)
        axes.set_xlabel("tokens per episode (log)")
        if place % columns == 0:
            reward_axis(axes, rows)
            axes.grid(axis="x", visible=True)
    bottom, top = grid[0][0].get_ylim()
    grid[0][0].set_ylim(bottom - 0.04, top + 0.04)  # whole markers at 0 and 1
    for axes in list(grid.flat)[len(labelled) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], marker=MARKERS[m], color=COLOURS[m], ls="none", ms=9, mec="white", label=MODE_NAMES[m])
        for m in modes
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(modes))
    return figure


def _tick_log(axis: Axis, limits: tuple[float, float]) -> None:
    """Round ticks on a log axis, and no unlabelled ones between them."""
    ticks, labels = _log_ticks(limits)
    axis.set_ticks(ticks, labels=labels)
    axis.set_ticks([], minor=True)


def _log_ticks(limits: tuple[float, float]) -> tuple[list[float], list[str]]:
    """Two to five round ticks inside the limits of a log axis that spans a factor of 4 or more."""
    powers = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6)):
        every = (step * 10.0**power for power in powers for step in steps)
        ticks = [tick for tick in every if limits[0] <= tick <= limits[1]]
        if len(ticks) >= 2:
            break
    ticks = ticks[:: max(1, -(-len(ticks) // 5))]
    return ticks, [compact(tick) for tick in ticks]


GENERAL = (
    Plot("reward_by_suite", "Mean reward by suite and mode, over completed episodes.", reward_by_suite),
    Plot(
        "lift_over_llm",
        "Lift over the LLM: paired difference of the reward on the same tasks.",
        lift_over_llm,
    ),
    Plot("tokens", "Prompt and completion tokens per episode, root and sub-LLMs.", tokens),
    Plot(
        "root_efficiency", "Root-token efficiency: mean reward / mean root tokens, LLM = 1.", root_efficiency
    ),
    Plot("time", "Seconds per episode: quartiles (box), p10 to p90 (line), median, mean, maximum.", time),
    Plot("reward_against_tokens", "Mean reward against mean tokens per episode.", reward_against_tokens),
)


def draw_all(
    rows: Sequence[Row], directory: Path, stats: Stats, *, dpi: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Draw every plot whose data exists, one file per model.

    Returns ({file name: caption}, {plot name: reason it was not drawn}).
    """
    from eval.suite_plots import SUITE_PLOTS

    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("*.png"):
        stale.unlink()
    drawn: dict[str, str] = {}
    skipped: dict[str, str] = {}
    models = list(dict.fromkeys(row["model"] for row in rows))
    with mpl.rc_context(STYLE):
        for plot in (*GENERAL, *SUITE_PLOTS):
            for model in models:
                own = where(rows, model=model)
                several = len(models) > 1
                try:
                    figure = plot.draw(main_rows(own) if plot in GENERAL else own, stats)
                except NotDrawn as reason:
                    skipped[f"{plot.name} ({model})" if several else plot.name] = str(reason)
                    continue
                file = f"{plot.name}__{model}.png" if several else f"{plot.name}.png"
                figure.savefig(directory / file, dpi=dpi)
                drawn[file] = f"{plot.caption} Model: {model}." if several else plot.caption
    return drawn, skipped
