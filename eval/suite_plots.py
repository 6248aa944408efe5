"""Plots of single suites: oolong by subset and context length, verbatim by text, math by time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.plot_kit import (
    COLOURS,
    INK,
    MARKERS,
    OVERFLOW_MARK,
    NotDrawn,
    Plot,
    Stats,
    compact,
    completed,
    grouped_bars,
    legend_above,
    main_rows,
    mode_markers,
    mode_patches,
    modes_of,
    new_figure,
    reward_axis,
    token_panels,
    where,
    wide,
)
from eval.rows import Outcome, Row
from eval.stats import length_bin
from eval.summary import reward_completed

LENGTH_FIELDS = ("task/context_len", "task/context_chars")
"""Where a task says how long its context is: in tokens, else in characters."""


def _family(rows: Sequence[Row], family: str) -> list[Row]:
    own = where(rows, family=family)
    if not own:
        raise NotDrawn(f"the suite {family} was not run")
    return own


def _grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Value -> rows, sorted by value, rows without one left out."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        value = key(row)
        if value is not None:
            found.setdefault(value, []).append(row)
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def binary(value: float) -> str:
    """1024 -> 1k: context lengths come in powers of two."""
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _bars(rows: Sequence[Row], stats: Stats, key: Callable[[Row], Any], axis: str, missing: str) -> Figure:
    grouped = _grouped(rows, key)
    if not grouped:
        raise NotDrawn(missing)
    labelled = {
        compact(value) if isinstance(value, int | float) else str(value): own
        for value, own in grouped.items()
    }
    return _labelled_bars(labelled, stats, axis)


def _labelled_bars(labelled: dict[str, list[Row]], stats: Stats, axis: str) -> Figure:
    rows = [row for own in labelled.values() for row in own]
    figure = new_figure(wide(labelled, len(modes_of(rows))), 4.0)
    axes = figure.add_subplot()
    marked = grouped_bars(axes, labelled, stats, reward_completed)
    reward_axis(axes, rows)
    axes.set_xlabel(axis)
    legend_above(figure, [*mode_patches(modes_of(rows)), *([OVERFLOW_MARK] if marked else [])])
    return figure


# ---- oolong


def subset_of(row: Row) -> str:
    """Which part of oolong a task is of: the task's word, else the suite's name."""
    return str(row.get("task/subset") or row["suite"])


def _by_subset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Label -> rows; subsets that several suites have are kept apart by the suite's name."""
    suites: dict[str, set[str]] = {}
    for row in rows:
        suites.setdefault(subset_of(row), set()).add(row["suite"])

    def label(row: Row) -> str:
        subset = subset_of(row)
        return subset if len(suites[subset]) == 1 else f"{row['suite']}: {subset}"

    return _grouped(rows, label)


def context_length(row: Row) -> float | None:
    """The task's context length in the unit that its suite reports."""
    return next((float(row[name]) for name in LENGTH_FIELDS if row.get(name)), None)


def _length_unit(rows: Sequence[Row]) -> str:
    name = next((name for name in LENGTH_FIELDS if any(row.get(name) for row in rows)), "")
    return "characters" if name.endswith("chars") else "tokens"


def oolong_by_subset(rows: Sequence[Row], stats: Stats) -> Figure:
    return _labelled_bars(_by_subset(main_rows(_family(rows, "oolong"))), stats, "subset")


def oolong_tokens(rows: Sequence[Row], stats: Stats) -> Figure:
    own = completed(main_rows(_family(rows, "oolong")))
    if not own:
        raise NotDrawn("no episode of oolong was completed")
    return token_panels(_by_subset(own), modes_of(own), stats)


def oolong_by_length(rows: Sequence[Row], stats: Stats) -> Figure:
    """A panel per subset: mean reward over context length, in bins of a factor 4. A line breaks off where no
    prompt of its mode fits the window; a cross marks each bin in which some did not."""
    own = [row for row in main_rows(_family(rows, "oolong")) if context_length(row) is not None]
    if not own:
        raise NotDrawn(f"no task reports its context length ({', '.join(LENGTH_FIELDS)})")
    subsets, modes = _by_subset(own), modes_of(own)
    bins = sorted({length_bin(context_length(row) or 1.0) for row in own})
    columns = min(3, len(subsets))
    lines = -(-len(subsets) // columns)
    figure = new_figure(max(6.0, 1.0 + 3.2 * columns), 0.9 + 2.9 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    overflowed = False
    for place, (subset, members) in enumerate(subsets.items()):
        axes = grid[place // columns][place % columns]
        for i, mode in enumerate(modes):
            xs, means, lows, highs = [], [], [], []
            for x, (low, high) in enumerate(bins):
                chosen = [
                    row for row in where(members, mode=mode) if low <= (context_length(row) or 0) < high
                ]
                at = x + (i - (len(modes) - 1) / 2) * 0.13
                estimate = stats.mean(chosen, reward_completed)
                if estimate is not None:
                    xs.append(at)
                    means.append(estimate.mean)
                    lows.append(estimate.mean - (estimate.mean if estimate.low is None else estimate.low))
                    highs.append((estimate.mean if estimate.high is None else estimate.high) - estimate.mean)
                beyond = sum(row["outcome"] == Outcome.CONTEXT_OVERFLOW for row in chosen)
                if beyond:
                    overflowed = True
                    axes.plot(at, 0, "x", color=COLOURS[mode], ms=7, mew=2, clip_on=False, zorder=6)
            axes.errorbar(
                xs,
                means,
                yerr=np.clip([lows, highs], 0, None) if xs else None,
                fmt=f"-{MARKERS[mode]}",
                color=COLOURS[mode],
                mec="white",
                ms=7,
                linewidth=1.5,
                elinewidth=1,
                capsize=2,
            )
        axes.set_title(subset)
        axes.set_xticks(range(len(bins)), [binary(low) for low, _ in bins])
        axes.set_xlim(-0.5, len(bins) - 0.5)
        if place // columns == lines - 1 or place + columns >= len(subsets):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(f"context, {_length_unit(own)}\n(from; bins of a factor 4)")
        if place % columns == 0:
            reward_axis(axes, own)
            axes.grid(axis="x", visible=True)
    bottom, top = grid[0][0].get_ylim()
    grid[0][0].set_ylim(bottom - 0.04, top + 0.02)  # whole markers at 0 and 1
    for axes in list(grid.flat)[len(subsets) :]:
        axes.set_visible(False)
    handles = mode_markers(modes, lw=1.5, ms=7)
    if overflowed:
        label = "some prompts beyond the window"
        handles.append(Line2D([], [], marker="x", color=INK, ls="none", ms=7, mew=2, label=label))
    legend_above(figure, handles)
    return figure


# ---- verbatim copy


def _verbatim(field: str, setting: str) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        # The cell's setting comes first: a sweep over it is what the plot is about.
        return row.get(f"setting/taskset.{setting}", row.get(f"task/{field}"))

    return value


def _one_varied(rows: Sequence[Row], leaf: str) -> list[Row]:
    """The rows of the base setting and of those that vary `leaf` alone, so that nothing else differs."""
    varied = [row for row in rows if row["setting"] == "default" or row["setting"].startswith(f"{leaf}=")]
    if not any(row["setting"] != "default" for row in varied):
        raise NotDrawn(f'{leaf} was not varied; sweep it: sweep = {{ "taskset.{leaf}" = [...] }}')
    return varied


def verbatim_by_content(rows: Sequence[Row], stats: Stats) -> Figure:
    """From a sweep over the content type where there is one: it has all of `num_tasks` for each type, and the
    mix of the base setting only a share."""
    every = _family(rows, "verbatim_copy")
    own = [row for row in every if row["setting"].startswith("content_type=")]
    if not own:
        own = [row for row in every if row["setting"] == "default"]
        if len({row.get("task/kind") for row in own} - {None}) < 2:
            own = _one_varied(every, "content_type")
    return _bars(own, stats, lambda row: row.get("task/kind"), "content type", "no task names its kind")


def verbatim_by_length(rows: Sequence[Row], stats: Stats) -> Figure:
    own = _one_varied(_family(rows, "verbatim_copy"), "target_length")
    own = [row for row in own if row.get("setting/taskset.target_length") is not None]
    return _bars(
        own, stats, _verbatim("length", "target_length"), "length of the text, characters", "no length is set"
    )


def verbatim_by_fragment(rows: Sequence[Row], stats: Stats) -> Figure:
    own = _one_varied(_family(rows, "verbatim_copy"), "mean_fragment_length")

    def fragment(row: Row) -> Any:
        value = _verbatim("mean_fragment_length", "mean_fragment_length")(row)
        return "whole" if value is None or value == "None" else value

    return _bars(own, stats, fragment, "mean length of fragments, characters", "no fragment length is set")


# ---- math


def math_by_time_limit(rows: Sequence[Row], stats: Stats) -> Figure:
    own = _one_varied(_family(rows, "math_python"), "call_seconds")

    def limit(row: Row) -> Any:
        return row.get("setting/harness.repl.call_seconds")

    return _bars(own, stats, limit, "time limit of one run of code, seconds", "no time limit is set")


SUITE_PLOTS = (
    Plot("oolong_by_subset", "Oolong: mean reward by subset.", oolong_by_subset),
    Plot("oolong_by_length", "Oolong: mean reward by context length.", oolong_by_length),
    Plot("oolong_tokens", "Oolong: tokens by subset, root and sub-LLMs.", oolong_tokens),
    Plot(
        "verbatim_by_content",
        "Verbatim copy: mean reward by content type.",
        verbatim_by_content,
        "verbatim_copy",
    ),
    Plot(
        "verbatim_by_length",
        "Verbatim copy: mean reward by length of the text.",
        verbatim_by_length,
        "verbatim_copy",
    ),
    Plot(
        "verbatim_by_fragment",
        "Verbatim copy: mean reward by length of fragments.",
        verbatim_by_fragment,
        "verbatim_copy",
    ),
    Plot(
        "math_by_time_limit",
        "Math: mean reward by time limit of a run of code.",
        math_by_time_limit,
        "math_python",
    ),
)
