"""Text that a stranger wrote (an endpoint, a web page, a file name), made fit for a terminal.

Imports nothing, so that the viewer starts at once."""

from __future__ import annotations


def printable(text: str, limit: int = 300) -> str:
    """The text on one line of at most `limit` characters, without what a terminal would obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[: limit - 1]}\u2026"
