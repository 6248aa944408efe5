"""Numbers and strangers' texts as markdown: what the tables of `report.md` are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """A markdown table; the columns `left` are left-aligned, the others right."""
    rule = [":--" if column in left else "--:" for column in range(len(head))]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join(lines)


def escape(text: str) -> str:
    """A name in a table: it cannot end its column."""
    return text.replace("|", "\\|")


def verbatim(text: str) -> str:
    """A stranger's text (an error message) as code, where no markdown, HTML or link takes effect."""
    return f"`{escape(text.replace('`', chr(39)))}`"


def ci(estimate: Mapping[str, Any] | None, *, key: str = "mean", sign: bool = False) -> str:
    if estimate is None:
        return "-"
    text = f"{estimate[key]:+.3f}" if sign else f"{estimate[key]:.3f}"
    if estimate["low"] is None:
        return text
    low, high = estimate["low"], estimate["high"]
    return f"{text} [{low:+.3f}, {high:+.3f}]" if sign else f"{text} [{low:.3f}, {high:.3f}]"


def unless_equal(estimate: Mapping[str, Any] | None, other: Mapping[str, Any] | None, **options: Any) -> str:
    """The estimate, or "same" where it is the one beside it: most cells have no prompt beyond the window."""
    return "same" if estimate is not None and estimate == other else ci(estimate, **options)


def lift(pair: Mapping[str, Any] | None) -> str:
    """A paired difference with its interval, bold where the interval leaves out 0; behind it the one with
    prompts beyond the window as 0, where that is another."""
    if pair is None:
        return "-"

    def show(estimate: Mapping[str, Any] | None) -> str:
        text = ci(estimate, key="difference", sign=True)
        clear = (
            estimate is not None and estimate["low"] is not None and estimate["low"] * estimate["high"] > 0
        )
        return f"**{text}**" if clear else text

    first, second = pair["reward"], pair["reward_overflow_as_zero"]
    return show(first) if first == second else f"{show(first)} ({show(second)})"


def number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def label(cell: Mapping[str, Any], *, models: bool) -> str:
    parts = [cell["suite"]] + ([cell["setting"]] if cell["setting"] != "default" else [])
    return escape(" / ".join(parts + ([cell["model"]] if models else [])))
