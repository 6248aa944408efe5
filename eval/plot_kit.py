"""What all plots share: style, which rows, bars with intervals, axes.

Colours are Okabe and Ito's, which hold for colour-blind readers; each mode also has a marker and a hatch of
its own, so that a grey print reads the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from eval.config import MODES
from eval.report import MODE_NAMES
from eval.rows import Outcome, Row
from eval.stats import Estimate, Paired, Ratio, efficiency_ratio, mean_ci, paired_difference
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

    def difference(
        self, a: Sequence[Row], b: Sequence[Row], value: Callable[[Row], float | None] = reward_completed
    ) -> Paired | None:
        return paired_difference(
            by_task(a, value),
            by_task(b, value),
            resamples=self.bootstrap,
            confidence=self.confidence,
            seed=self.seed,
        )

    def efficiency(self, a: Sequence[Row], b: Sequence[Row], cost: str) -> Ratio | None:
        """Reward per `cost` of b over that of a, on the tasks that both completed."""

        def pairs(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
            found: dict[str, list[tuple[float, float]]] = {}
            for row in completed(rows):
                found.setdefault(row["task_id"], []).append((row["reward"], row.get(cost) or 0.0))
            return found

        return efficiency_ratio(
            pairs(a), pairs(b), resamples=self.bootstrap, confidence=self.confidence, seed=self.seed
        )


Draw = Callable[[Sequence[Row], Stats], Figure]


@dataclass(frozen=True)
class Plot:
    """A plot by name: the file's stem, what it shows, and how."""

    name: str
    caption: str
    draw: Draw
    family: str | None = None
    """Drawn once for each suite of this taskset, where a run has several; None: once for all suites."""


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


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """The legend above all axes, where it can cover no data, in as many lines as it takes to fit the
    figure's width."""
    for lines in range(1, len(handles) + 1):
        columns = -(-len(handles) // lines)
        # matplotlib fills column by column; this order reads line by line.
        ordered = [handle for column in range(columns) for handle in handles[column::columns]]
        legend = figure.legend(handles=ordered, loc="outside upper left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def mode_patches(modes: Sequence[str]) -> list[Patch]:
    """Of bars: a colour and a hatch per mode."""
    return [
        Patch(facecolor=COLOURS[mode], hatch=HATCHES[mode], edgecolor="white", label=MODE_NAMES[mode])
        for mode in modes
    ]


def mode_markers(modes: Sequence[str], **style: Any) -> list[Line2D]:
    """Of points: a colour and a marker per mode."""
    return [
        Line2D([], [], marker=MARKERS[m], color=COLOURS[m], mec="white", label=MODE_NAMES[m], **style)
        for m in modes
    ]


def reward_axis(axes: Axes, rows: Sequence[Row]) -> None:
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    axes.set_ylabel("mean reward")
    axes.set_ylim(min(0.0, *rewards) if rewards else 0.0, max(1.02, *rewards) if rewards else 1.02)
    axes.grid(axis="x", visible=False)


def error_bar(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[max(0.0, estimate.mean - estimate.low)], [max(0.0, estimate.high - estimate.mean)]]


def grouped_bars(
    axes: Axes, labelled: Mapping[str, Sequence[Row]], stats: Stats, value: Callable[[Row], float | None]
) -> bool:
    """Bars of the mean with intervals: a group per label, with its number of tasks, a bar per mode. Returns
    whether any group has a mean with overflows as 0 that differs, drawn as a diamond."""
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
                if (error := error_bar(estimate)) is not None and estimate.low != estimate.high:
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
    axes.set_xticks(
        range(len(labelled)),
        [f"{label}\nn = {len({row['task_id'] for row in own})}" for label, own in labelled.items()],
    )
    axes.set_xlim(-0.6, len(labelled) - 0.4)
    return marked


OVERFLOW_MARK = Line2D(
    [], [], marker="D", mfc="white", mec=INK, ls="none", ms=5, label="with prompts beyond the window as 0"
)


def wide(labels: Collection[str], modes: int) -> float:
    """Width in inches that keeps bars and their labels apart; a letter takes at most a tenth of an inch."""
    names = [line for label in labels for line in label.split("\n")]
    longest = max((len(name) for name in names), default=0)
    return max(5.5, 1.0 + len(labels) * max(1.25, 0.42 * modes, 0.3 + 0.085 * longest))


def mean_of(rows: Sequence[Row], measure: str) -> float:
    values = [row[measure] for row in rows if row.get(measure) is not None]
    return float(np.mean(values)) if values else 0.0


def token_panels(labelled: Mapping[str, Sequence[Row]], modes: Sequence[str], stats: Stats) -> Figure:
    """Prompt (top) and completion tokens (bottom), root below sub-LLM, with the mean of their sum and its
    interval; a column per label, each on its own scale: suites differ by orders of magnitude."""
    longest = max(len(label) for label in labelled)
    figure = new_figure(max(5.0, 1.0 + max(1.9, 0.5 + 0.09 * longest) * len(labelled)), 5.2)
    grid = figure.subplots(2, len(labelled), squeeze=False, sharex="col")
    for column, (label, rows) in enumerate(labelled.items()):
        for line, kind in enumerate(("prompt", "completion")):
            axes = grid[line][column]
            for x, mode in enumerate(modes):
                own = where(rows, mode=mode)
                root, sub = mean_of(own, f"root_{kind}_tokens"), mean_of(own, f"sub_{kind}_tokens")
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
                estimate = stats.mean(own, lambda row, kind=kind: both_tokens(row, kind))  # type: ignore[misc]
                if estimate is None:
                    continue
                if (error := error_bar(estimate)) is not None and estimate.low != estimate.high:
                    axes.errorbar(x, root + sub, yerr=error, color=INK, capsize=2.5, linewidth=1, fmt="none")
                axes.annotate(
                    compact(root + sub),
                    (x, max(root + sub, estimate.high or 0.0)),
                    textcoords="offset points",
                    xytext=(0, 2),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                )
            axes.margins(y=0.14)
            axes.set_ylim(bottom=0)
            axes.set_xticks(range(len(modes)), [MODE_NAMES[m].replace("+", "\n+") for m in modes])
            axes.yaxis.set_major_formatter(lambda value, _: compact(value))
            axes.grid(axis="x", visible=False)
            if column == 0:
                axes.set_ylabel(f"{kind} tokens\nper episode (mean)")
            if line == 0:
                axes.set_title(label)
    legend_above(
        figure,
        [
            Patch(facecolor=ROOT_COLOUR, label="root"),
            Patch(facecolor=SUB_COLOUR, hatch="///", edgecolor="white", label="sub-LLMs"),
        ],
    )
    return figure


def both_tokens(row: Row, kind: str) -> float | None:
    """Prompt or completion tokens of root and sub-LLMs together."""
    root, sub = row.get(f"root_{kind}_tokens"), row.get(f"sub_{kind}_tokens")
    return None if root is None else root + (sub or 0.0)


def compact(value: float) -> str:
    """1500 -> 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def tick_log(axis: Axis, limits: tuple[float, float]) -> None:
    """Round ticks on a log axis, and no unlabelled ones between them."""
    ticks, labels = log_ticks(limits)
    axis.set_ticks(ticks, labels=labels)
    axis.set_ticks([], minor=True)


def log_ticks(limits: tuple[float, float]) -> tuple[list[float], list[str]]:
    """Three to five round ticks inside the limits of a log axis, two where it spans less than a factor of
    8."""
    powers = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    enough = 3 if limits[1] >= 8 * limits[0] else 2
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6)):
        every = (step * 10.0**power for power in powers for step in steps)
        ticks = [tick for tick in every if limits[0] <= tick <= limits[1]]
        if len(ticks) >= enough:
            break
    ticks = ticks[:: max(1, -(-len(ticks) // 5))]
    return ticks, [compact(tick) for tick in ticks]
