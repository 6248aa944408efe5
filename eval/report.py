"""`report.md`: the tables a reader wants first, the plots below them, and what is not shown and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.markdown import ci, escape, label, lift, number, table, unless_equal, verbatim
from eval.published import COSTS_NOTE, FIGURES
from eval.rows import Outcome
from eval.summary import Summary, find_cell

MODE_NAMES = {"llm": "LLM", "rlm": "RLM", "rlm_tips": "RLM+tips"}

_FIRST_PLOTS = ("reward_by_suite", "lift_over_llm")
"""Shown at the top; the others come after the tables."""

_OUTCOME_NAMES = {
    Outcome.COMPLETED: "completed",
    Outcome.CONTEXT_OVERFLOW: "beyond the window",
    Outcome.REFUSED: "refused",
    Outcome.RATE_LIMITED: "rate-limited",
    Outcome.JUDGE_ERROR: "judge failed",
    Outcome.INFRASTRUCTURE_ERROR: "infrastructure",
}


def render(
    summary: Summary,
    *,
    plots: Mapping[str, str],
    skipped: Mapping[str, str],
    published: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """The report's text.

    Args:
        summary: of `summary.summarise`.
        plots: file name below `plots/` -> caption, in order.
        skipped: plot -> why it was not drawn.
        published: suite -> key into `published.FIGURES`.
        notes: further lines for the end.
    """
    names = list(dict.fromkeys(cell["model"] for cell in summary["cells"]))
    models = len(names) > 1
    percent = f"{100 * summary['confidence']:g} %"
    figures = {file: f"![{caption}](plots/{file})\n\n{caption}" for file, caption in plots.items()}
    first = [file for file in figures if file.startswith(_FIRST_PLOTS)]
    sections = [
        f"# {summary['name']}",
        f"{summary['episodes']} episodes in {len(summary['cells'])} cells, played by "
        f"{', '.join(escape(name) for name in names)}; tasks drawn with seed {summary['seed']}, the same "
        f"ones for every mode. Intervals are {percent} bootstrap intervals over tasks "
        f"({summary['bootstrap']:,} resamples).",
        "## At a glance",
        "Mean reward of completed episodes, and the difference between modes on the tasks that both "
        "completed (bold where its interval leaves out 0). In brackets: with prompts beyond the model's "
        "window as 0, where that makes a difference.",
        _glance_table(summary, models),
        *(figures[file] for file in first),
        "## Reward",
        "The mean over completed episodes, and the mean with each prompt beyond the model's window as 0. "
        "Every other failure is in neither; it is counted under Outcomes and told under Failures."
        + _width_note(summary),
        _reward_table(summary, models),
        "## Outcomes",
        _outcome_table(summary, models),
        "## Failures",
        _failure_table(summary, models),
        "## Differences between modes on the same tasks",
        _paired_table(summary, models),
        *(
            ["## Differences between models on the same tasks", _model_table(summary)]
            if summary["paired_models"]
            else []
        ),
        "## Costs",
        "Per completed episode: mean / median / p90 / maximum. Tokens are prompt and completion together.",
        _cost_table(summary, models),
        _scaffold_table(summary, models),
    ]
    tools = _tool_table(summary, models)
    if tools:
        sections += ["Tool calls and seconds per completed episode:", tools]
    comparison = _published_table(summary, published)
    if comparison:
        sections += ["## Beside the published figures", comparison, COSTS_NOTE]
    if len(figures) > len(first):
        sections.append("## Plots")
        sections += [figure for file, figure in figures.items() if file not in first]
    if skipped:
        sections += ["Not drawn:", "\n".join(f"- {name}: {reason}" for name, reason in skipped.items())]
    if notes:
        sections += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(sections) + "\n"


def _glance_table(summary: Summary, models: bool) -> str:
    """One line per suite and setting: what a reader looks for first."""
    modes = [mode for mode in MODE_NAMES if any(cell["mode"] == mode for cell in summary["cells"])]
    pairs = [("llm", mode) for mode in modes if mode != "llm" and "llm" in modes]
    body = []
    for where in dict.fromkeys((c["suite"], c["setting"], c["model"]) for c in summary["cells"]):
        wanted = dict(zip(("suite", "setting", "model"), where, strict=True))
        cells = [find_cell(summary, mode=mode, **wanted) for mode in modes]
        present = [cell for cell in cells if cell is not None]
        body.append(
            [
                label(present[0], models=models),
                str(max(cell["tasks"] for cell in present)),
                *(_glance(cell) for cell in cells),
                *(lift(_find(summary["paired"], a=a, b=b, **wanted)) for a, b in pairs),
                str(sum(cell["episodes"] - cell["outcomes"][Outcome.COMPLETED] for cell in present)),
            ]
        )
    return table(
        [
            "suite",
            "tasks",
            *(MODE_NAMES[mode] for mode in modes),
            *(f"{MODE_NAMES[b]} - {MODE_NAMES[a]}" for a, b in pairs),
            "not in the mean",
        ],
        body,
    )


def _glance(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["reward_overflow_as_zero"] is None:
        return "-"
    both, every = cell["reward"], cell["reward_overflow_as_zero"]
    mean = "-" if both is None else f"{both['mean']:.3f}"
    return mean if both == every else f"{mean} ({every['mean']:.3f})"


def _find(entries: Sequence[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any] | None:
    return next((e for e in entries if all(e[name] == value for name, value in wanted.items())), None)


def _width_note(summary: Summary) -> str:
    """Said only where it applies: an interval without width invites a wrong conclusion."""
    rewards = [cell["reward"] for cell in summary["cells"] if cell["reward"] is not None]
    if not any(r["low"] is not None and r["low"] == r["high"] for r in rewards):
        return ""
    return (
        " An interval without width means that all tasks had the same reward: resampling cannot show what "
        "was not drawn, so it is no proof of certainty."
    )


def _failure_table(summary: Summary, models: bool) -> str:
    if not summary["failures"]:
        return "None: every episode was completed."
    body = []
    for failure in summary["failures"]:
        said = ": ".join(filter(None, (failure["error_type"], failure["message"])))
        body.append(
            [
                label(failure, models=models),
                MODE_NAMES[failure["mode"]],
                _OUTCOME_NAMES[Outcome(failure["outcome"])],
                verbatim(said) if said else "nothing",
                f"`{failure['episode_id']}`",
                str(failure["episodes"]),
            ]
        )
    head = ["suite", "mode", "outcome", "what was said", "first episode", "episodes"]
    return (
        "None of these is in a mean of completed episodes. Messages that differ only in numbers are one "
        "line; search for the episode's id in `rlm-view` to see how it came about.\n\n"
        + table(head, body, left=range(5))
    )


def _model_table(summary: Summary) -> str:
    return table(
        ["suite", "mode", "difference", "both completed (beyond the window = 0)", "tasks"],
        [
            [
                label(pair, models=False),
                MODE_NAMES[pair["mode"]],
                escape(f"{pair['b']} - {pair['a']}"),
                lift(pair),
                "0" if pair["reward"] is None else str(pair["reward"]["tasks"]),
            ]
            for pair in summary["paired_models"]
        ],
    )


def _reward_table(summary: Summary, models: bool) -> str:
    body = []
    for cell in summary["cells"]:
        failed = cell["episodes"] - cell["outcomes"][Outcome.COMPLETED]
        body.append(
            [
                label(cell, models=models),
                MODE_NAMES[cell["mode"]],
                ci(cell["reward"]),
                unless_equal(cell["reward_overflow_as_zero"], cell["reward"]),
                f"{cell['outcomes'][Outcome.COMPLETED]} of {cell['episodes']}",
                str(failed),
            ]
        )
    return table(
        ["suite", "mode", "mean of completed", "mean, beyond the window = 0", "completed", "not in the mean"],
        body,
    )


def _outcome_table(summary: Summary, models: bool) -> str:
    return table(
        ["suite", "mode", *_OUTCOME_NAMES.values(), "ended by"],
        [
            [
                label(cell, models=models),
                MODE_NAMES[cell["mode"]],
                *(str(cell["outcomes"][outcome]) for outcome in _OUTCOME_NAMES),
                escape(", ".join(f"{reason} {count}" for reason, count in cell["stop_conditions"].items())),
            ]
            for cell in summary["cells"]
        ],
    )


def _paired_table(summary: Summary, models: bool) -> str:
    body = []
    for pair in summary["paired"]:
        completed = pair["reward"]
        body.append(
            [
                label(pair, models=models),
                f"{MODE_NAMES[pair['b']]} - {MODE_NAMES[pair['a']]}",
                ci(completed, key="difference", sign=True),
                "-"
                if completed is None
                else f"{completed['wins']} / {completed['ties']} / {completed['losses']}",
                "0" if completed is None else str(completed["tasks"]),
                unless_equal(pair["reward_overflow_as_zero"], completed, key="difference", sign=True),
            ]
        )
    if not body:
        return "Only one mode was run, so there is nothing to compare."
    return table(
        [
            "suite",
            "difference",
            "both completed",
            "better / equal / worse",
            "tasks",
            "beyond the window = 0",
        ],
        body,
    )


def _cost_table(summary: Summary, models: bool) -> str:
    measures = {
        "root_tokens": "root tokens",
        "sub_tokens": "sub-LLM tokens",
        "root_peak_context_tokens": "peak root context",
        "wall_seconds": "seconds",
    }

    def show(cell: Summary, measure: str) -> str:
        cost = cell["costs"].get(measure)
        if cost is None:
            return "-"
        return " / ".join(number(cost[key]) for key in ("mean", "median", "p90", "max"))

    return table(
        ["suite", "mode", *measures.values()],
        [
            [
                label(cell, models=models),
                MODE_NAMES[cell["mode"]],
                *(show(cell, measure) for measure in measures),
            ]
            for cell in summary["cells"]
        ],
    )


def _scaffold_table(summary: Summary, models: bool) -> str:
    measures = {
        "root_turns": "root turns",
        "sub_calls": "sub-calls",
        "sub_batches": "batches",
        "sub_batch_size_max": "largest batch",
        "sub_errors": "sub errors",
        "repl_calls": "REPL calls",
        "repl_seconds": "code seconds",
        "repl_wait_seconds": "waiting seconds",
        "repl_timeouts": "timeouts",
        "repl_restarts": "restarts",
        "repl_truncated_outputs": "cut outputs",
        "repl_errors": "code errors",
    }

    def show(cell: Summary, measure: str) -> str:
        cost = cell["costs"].get(measure)
        return "-" if cost is None else number(cost["mean"])

    body = [
        [
            label(cell, models=models),
            MODE_NAMES[cell["mode"]],
            *(show(cell, measure) for measure in measures),
            "-" if cell["answer_ready"] is None else f"{100 * cell['answer_ready']:.0f} %",
        ]
        for cell in summary["cells"]
    ]
    return "Means per completed episode:\n\n" + table(
        ["suite", "mode", *measures.values(), "answer ready"], body
    )


def _tool_table(summary: Summary, models: bool) -> str | None:
    body = [
        [
            label(cell, models=models),
            MODE_NAMES[cell["mode"]],
            escape(name),
            number(tool["calls"]),
            number(tool["seconds"]),
        ]
        for cell in summary["cells"]
        for name, tool in cell["tools"].items()
    ]
    return table(["suite", "mode", "tool", "calls", "seconds"], body) if body else None


def _published_table(summary: Summary, published: Mapping[str, str]) -> str | None:
    """Measured beside published, for the suites that name a published row."""
    models = list(dict.fromkeys(cell["model"] for cell in summary["cells"]))
    body = []
    for suite, key in published.items():
        for model in models:
            measured = [
                find_cell(summary, suite=suite, setting="default", mode=m, model=model) for m in MODE_NAMES
            ]
            if not any(measured):
                continue
            body.append(
                [
                    escape(suite),
                    escape(model),
                    *(ci(cell["reward_overflow_as_zero"] if cell else None) for cell in measured),
                ]
            )
        for figure in FIGURES[key]:
            about = "about " if figure.approximate else ""
            body.append(
                [
                    escape(suite),
                    f"{figure.model}, published",
                    *(f"{about}{figure.reward(mode):.2f}" for mode in MODE_NAMES),
                ]
            )
    return table(["suite", "model", *MODE_NAMES.values()], body) if body else None
