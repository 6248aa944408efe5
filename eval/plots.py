"""The PNG plots: those of every suite, and the drawing of all. `suite_plots.py` holds those of single suites.

The idea: a plot is a function of the rows that returns a figure or raises `NotDrawn` with the reason, which
the report prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
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
    mode_markers,
    mode_patches,
    modes_of,
    new_figure,
    reward_axis,
    tick_log,
    token_panels,
    where,
    wide,
)
from eval.rows import Row
from eval.stats import Paired, Ratio
from eval.suite_plots import SUITE_PLOTS
from eval.summary import reward_completed, reward_overflow_as_zero


def reward_by_suite(rows: Sequence[Row], stats: Stats) -> Figure:
    labelled = groups(rows)
    figure = new_figure(wide(labelled, len(modes_of(rows))), 4.0)
    axes = figure.add_subplot()
    marked = grouped_bars(axes, labelled, stats, reward_completed)
    reward_axis(axes, rows)
    legend_above(figure, [*mode_patches(modes_of(rows)), *([OVERFLOW_MARK] if marked else [])])
    return figure


def lift_over_llm(rows: Sequence[Row], stats: Stats) -> Figure:
    modes = [mode for mode in modes_of(rows) if mode != "llm"]
    if "llm" not in modes_of(rows) or not modes:
        raise NotDrawn("needs the mode llm and one other")
    labelled = groups(rows)
    points: list[tuple[float, str, Paired, bool]] = []
    for line, own in enumerate(labelled.values()):
        for i, mode in enumerate(modes):
            place = line + (i - (len(modes) - 1) / 2) * 0.34
            base, other = where(own, mode="llm"), where(own, mode=mode)
            scored = stats.difference(base, other)
            every = stats.difference(base, other, reward_overflow_as_zero)
            if scored is not None:
                points.append((place, mode, scored, False))
            if every is not None and every != scored:
                points.append((place + 0.13, mode, every, True))
    if not points:
        raise NotDrawn("no task was completed in both modes")
    figure = new_figure(6.5, 1.6 + 0.75 * len(labelled))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1)
    for y, mode, difference, hollow in points:
        if difference.low is not None and difference.high is not None:
            axes.plot(
                [difference.low, difference.high],
                [y, y],
                ":" if hollow else "-",
                color=COLOURS[mode],
                linewidth=2,
            )
        face, edge = ("white", COLOURS[mode]) if hollow else (COLOURS[mode], "white")
        axes.plot(difference.difference, y, MARKERS[mode], mfc=face, mec=edge, ms=7)
    axes.set_yticks(range(len(labelled)), list(labelled))
    axes.set_ylim(len(labelled) - 0.5, -0.5)
    axes.margins(x=0.04)
    axes.set_xlabel("reward minus that of the LLM on the same tasks")
    axes.grid(axis="y", visible=False)
    handles = mode_markers(modes, lw=2, ms=7)
    if any(hollow for *_, hollow in points):
        label = "with prompts beyond the window as 0"
        handles.append(Line2D([], [], marker="o", color=INK, mfc="white", ls=":", lw=2, ms=7, label=label))
    legend_above(figure, handles)
    return figure


def tokens(rows: Sequence[Row], stats: Stats) -> Figure:
    done = completed(rows)
    if not any(row.get("root_tokens") for row in done):
        raise NotDrawn("no completed episode reports its tokens")
    return token_panels(groups(done), modes_of(rows), stats)


def root_efficiency(rows: Sequence[Row], stats: Stats) -> Figure:
    """(mean reward / mean root tokens) of each mode over that of the LLM on the tasks that both completed; a
    log axis."""
    values: dict[str, dict[str, Ratio]] = {}
    for label, own in groups(rows).items():
        base = where(own, mode="llm")
        ratios = {
            mode: stats.efficiency(base, where(own, mode=mode), "root_tokens")
            for mode in modes_of(own)
            if mode != "llm"
        }
        known = {mode: ratio for mode, ratio in ratios.items() if ratio is not None}
        if any(ratio.ratio > 0 for ratio in known.values()):
            values[label] = known
    if not values:
        raise NotDrawn("needs a suite on which the LLM and another mode have a mean reward above 0")
    modes = [mode for mode in MODES if any(mode in per_mode for per_mode in values.values())]
    figure = new_figure(wide(values, len(modes)), 3.8)
    axes = figure.add_subplot()
    shown = [1.0, *(r.ratio for per_mode in values.values() for r in per_mode.values() if r.ratio)]
    # An interval may reach to 0 or to infinity; it then ends in an arrow at the frame.
    bottom, top = min(shown) / 4, max(shown) * 4
    width = 0.8 / len(modes)
    for x, per_mode in enumerate(values.values()):
        for i, mode in enumerate(modes):
            if mode not in per_mode:
                continue
            place = x + (i - (len(modes) - 1) / 2) * width
            ratio = per_mode[mode]
            if ratio.ratio == 0:
                axes.text(place, 0.96, "no\nreward", ha="center", va="top", fontsize=7, color=INK)
                continue
            # Bars grow from 1, the LLM: up is better, down is worse, by the same factor on a log axis.
            axes.bar(
                place,
                ratio.ratio - 1,
                width * 0.92,
                bottom=1,
                color=COLOURS[mode],
                hatch=HATCHES[mode],
                edgecolor="white",
                linewidth=0,
            )
            if ratio.low is not None and ratio.high is not None:
                _interval(axes, place, max(ratio.low, bottom), min(ratio.high, top), (bottom, top))
            # On the other side of the line, where neither bars nor intervals of most suites are.
            up = ratio.ratio >= 1
            axes.annotate(
                f"{ratio.ratio:.2g}x",
                (place + 0.04 * width, 1),
                textcoords="offset points",
                xytext=(2, -3 if up else 3),
                va="top" if up else "bottom",
                fontsize=8,
            )
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    tick_log(axes.yaxis, axes.get_ylim())
    axes.axhline(1, color=INK, linewidth=1)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_ylabel("reward per root token,\nLLM = 1 (log)")
    axes.grid(axis="x", visible=False)
    legend_above(figure, mode_patches(modes))
    return figure


def _interval(axes: Axes, x: float, low: float, high: float, frame: tuple[float, float]) -> None:
    """A vertical interval with caps, or with an arrow where it goes on beyond the frame."""
    axes.plot([x, x], [low, high], color=INK, linewidth=1)
    for end, edge, arrow in ((low, frame[0], "v"), (high, frame[1], "^")):
        axes.plot(x, end, arrow if end == edge else "_", color=INK, ms=5, clip_on=False)


def time(rows: Sequence[Row], stats: Stats) -> Figure:
    """Seconds per episode: median, quartiles, p10 to p90, mean and maximum, on a log axis."""
    done = [row for row in completed(rows) if row.get("wall_seconds")]
    if not done:
        raise NotDrawn("no completed episode reports its time")
    labelled, modes = groups(done), modes_of(done)
    figure = new_figure(max(8.0, wide(labelled, len(modes))), 4.2)
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
        figure,
        [
            *mode_patches(modes),
            Line2D([], [], color="black", lw=2, label="median (box: quartiles)"),
            Line2D([], [], color=INK, lw=1, label="p10 to p90"),
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
            tokens_of = stats.mean(chosen, lambda row: row.get("total_tokens"))
            assert tokens_of is not None  # `done` has only rows with tokens
            axes.errorbar(
                tokens_of.mean,
                estimate.mean,
                xerr=error_bar(tokens_of),
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
    legend_above(figure, mode_markers(modes, ls="none", ms=9))
    return figure


GENERAL = (
    Plot(
        "reward_by_suite",
        "Mean reward by suite and mode, over completed episodes (n tasks).",
        reward_by_suite,
    ),
    Plot(
        "lift_over_llm",
        "Lift over the LLM: paired difference of the reward on the tasks that both completed.",
        lift_over_llm,
    ),
    Plot("tokens", "Prompt and completion tokens per episode, root and sub-LLMs.", tokens),
    Plot(
        "root_efficiency",
        "Root-token efficiency: mean reward / mean root tokens on the tasks that both completed, LLM = 1.",
        root_efficiency,
    ),
    Plot("time", "Seconds per episode: quartiles (box), p10 to p90 (line), median, mean, maximum.", time),
    Plot("reward_against_tokens", "Mean reward against mean tokens per episode.", reward_against_tokens),
)


def draw_all(
    rows: Sequence[Row], directory: Path, stats: Stats, *, dpi: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Draw every plot whose data exists, one file per model (and suite, for a plot of single suites).

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
                of_model = where(rows, model=model)
                suites = list(dict.fromkeys(r["suite"] for r in of_model if r["family"] == plot.family))
                for suite in suites if len(suites) > 1 else [None]:
                    own = of_model if suite is None else where(of_model, suite=suite)
                    parts = {"Suite": suite, "Model": model if len(models) > 1 else None}
                    told = {kind: value for kind, value in parts.items() if value is not None}
                    name = "__".join([plot.name, *told.values()])
                    try:
                        figure = plot.draw(main_rows(own) if plot in GENERAL else own, stats)
                    except NotDrawn as reason:
                        skipped[name] = str(reason)
                        continue
                    figure.savefig(directory / f"{name}.png", dpi=dpi)
                    caption = [plot.caption, *(f"{kind}: {value}." for kind, value in told.items())]
                    drawn[f"{name}.png"] = " ".join(caption)
    return drawn, skipped
