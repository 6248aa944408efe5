"""The PNG plots: those of every suite, and the drawing of all. `suite_plots.py` holds those of single suites.

The idea: a plot is a function of the rows that returns a figure or raises `NotDrawn` with the reason, which
the report prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.config import MODES
from eval.plot_kit import (
    COLOURS,
    HATCHES,
    INK,
    MARKERS,
    OVERFLOW_MARK,
    STYLE,
    NotDrawn,
    Plot,
    Stats,
    completed,
    error_bar,
    grouped_bars,
    groups,
    legend_above,
    main_rows,
    mean_of,
    modes_of,
    new_figure,
    reward_axis,
    tick_log,
    token_panels,
    where,
    wide,
)
from eval.report import MODE_NAMES
from eval.rows import Row
from eval.suite_plots import SUITE_PLOTS
from eval.summary import reward_completed


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


def tokens(rows: Sequence[Row], stats: Stats) -> Figure:
    done = completed(rows)
    if not any(row.get("root_tokens") for row in done):
        raise NotDrawn("no completed episode reports its tokens")
    return token_panels(groups(done), modes_of(rows))


def root_efficiency(rows: Sequence[Row], stats: Stats) -> Figure:
    """(mean reward / mean root tokens) of each mode over that of the LLM, on a log axis."""
    values: dict[str, dict[str, float]] = {}
    for label, own in groups(completed(rows)).items():
        per_mode = {}
        for mode in modes_of(own):
            chosen = where(own, mode=mode)
            root = mean_of(chosen, "root_tokens")
            reward = mean_of(chosen, "reward")
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
    tick_log(axes.yaxis, axes.get_ylim())
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
    tick_log(axes.yaxis, axes.get_ylim())
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
                mean_of(chosen, "total_tokens"),
                estimate.mean,
                yerr=error_bar(estimate),
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
        tick_log(axes.xaxis, axes.get_xlim())
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
