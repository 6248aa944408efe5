"""`report.md`: the tables a reader wants first, the plots below them, and what is not shown and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.published import COSTS_NOTE, FIGURES
from eval.rows import Outcome
from eval.summary import Summary, find_cell

MODE_NAMES = {"llm": "LLM", "rlm": "RLM", "rlm_tips": "RLM+tips"}

_OUTCOME_NAMES = {
    Outcome.COMPLETED: "completed",
    Outcome.CONTEXT_OVERFLOW: "beyond the window",
    Outcome.REFUSED: "refused",
    Outcome.RATE_LIMITED: "rate-limited",
    Outcome.JUDGE_ERROR: "judge failed",
    Outcome.INFRASTRUCTURE_ERROR: "infrastructure",
}


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column is left-aligned, the others right."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _ci(estimate: Mapping[str, Any] | None, *, key: str = "mean", sign: bool = False) -> str:
    if estimate is None:
        return "-"
    text = f"{estimate[key]:+.3f}" if sign else f"{estimate[key]:.3f}"
    if estimate["low"] is None:
        return text
    low, high = estimate["low"], estimate["high"]
    return f"{text} [{low:+.3f}, {high:+.3f}]" if sign else f"{text} [{low:.3f}, {high:.3f}]"


def _unless_equal(estimate: Mapping[str, Any] | None, other: Mapping[str, Any] | None, **options: Any) -> str:
    """The estimate, or "same" where it is the one beside it: most cells have no prompt beyond the window."""
    return "same" if estimate is not None and estimate == other else _ci(estimate, **options)


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _label(cell: Mapping[str, Any], *, models: bool) -> str:
    parts = [cell["suite"]] + ([cell["setting"]] if cell["setting"] != "default" else [])
    return _escape(" / ".join(parts + ([cell["model"]] if models else [])))


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
    models = len({cell["model"] for cell in summary["cells"]}) > 1
    percent = f"{100 * summary['confidence']:g} %"
    sections = [
        f"# {summary['name']}",
        f"{summary['episodes']} episodes in {len(summary['cells'])} cells; tasks drawn with seed "
        f"{summary['seed']}, the same ones for every mode. Intervals are {percent} bootstrap intervals "
        "over tasks "
        f"({summary['bootstrap']:,} resamples).",
        "## Reward",
        "The mean over completed episodes, and the mean with each prompt beyond the model's window as 0. "
        "Every "
        "other failure is in neither; it is counted in the next table.",
        _reward_table(summary, models),
        "## Outcomes",
        _outcome_table(summary, models),
        "## Differences between modes on the same tasks",
        _paired_table(summary, models),
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
    if plots:
        sections.append("## Plots")
        sections += [f"![{caption}](plots/{file})\n\n{caption}" for file, caption in plots.items()]
    if skipped:
        sections += ["Not drawn:", "\n".join(f"- {name}: {reason}" for name, reason in skipped.items())]
    if notes:
        sections += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(sections) + "\n"


def _reward_table(summary: Summary, models: bool) -> str:
    body = []
    for cell in summary["cells"]:
        failed = cell["episodes"] - cell["outcomes"][Outcome.COMPLETED]
        body.append(
            [
                _label(cell, models=models),
                MODE_NAMES[cell["mode"]],
                _ci(cell["reward"]),
                _unless_equal(cell["reward_overflow_as_zero"], cell["reward"]),
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
                _label(cell, models=models),
                MODE_NAMES[cell["mode"]],
                *(str(cell["outcomes"][outcome]) for outcome in _OUTCOME_NAMES),
                _escape(", ".join(f"{reason} {count}" for reason, count in cell["stop_conditions"].items())),
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
                _label(pair, models=models),
                f"{MODE_NAMES[pair['b']]} - {MODE_NAMES[pair['a']]}",
                _ci(completed, key="difference", sign=True),
                "-"
                if completed is None
                else f"{completed['wins']} / {completed['ties']} / {completed['losses']}",
                "0" if completed is None else str(completed["tasks"]),
                _unless_equal(pair["reward_overflow_as_zero"], completed, key="difference", sign=True),
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
        return " / ".join(_number(cost[key]) for key in ("mean", "median", "p90", "max"))

    return table(
        ["suite", "mode", *measures.values()],
        [
            [
                _label(cell, models=models),
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
        "sub_batch_size_max": "largest batch",
        "sub_errors": "sub errors",
        "repl_calls": "REPL calls",
        "repl_seconds": "REPL seconds",
        "repl_timeouts": "timeouts",
        "repl_restarts": "restarts",
        "repl_truncated_outputs": "cut outputs",
        "repl_errors": "code errors",
    }

    def show(cell: Summary, measure: str) -> str:
        cost = cell["costs"].get(measure)
        return "-" if cost is None else _number(cost["mean"])

    body = [
        [
            _label(cell, models=models),
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
            _label(cell, models=models),
            MODE_NAMES[cell["mode"]],
            _escape(name),
            _number(tool["calls"]),
            _number(tool["seconds"]),
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
                    _escape(suite),
                    _escape(model),
                    *(_ci(cell["reward_overflow_as_zero"] if cell else None) for cell in measured),
                ]
            )
        for figure in FIGURES[key]:
            about = "about " if figure.approximate else ""
            body.append(
                [
                    _escape(suite),
                    f"{figure.model}, published",
                    *(f"{about}{figure.reward(mode):.2f}" for mode in MODE_NAMES),
                ]
            )
    return table(["suite", "model", *MODE_NAMES.values()], body) if body else None
