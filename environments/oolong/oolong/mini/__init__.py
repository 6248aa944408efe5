"""The mini split: rows in exactly the schema of the real data, generated when they are loaded.

Invariants, which the tests hold: rows are a function of this code alone, the same in every process (every
window has a random generator of its own, seeded by its name); a reference answer follows from its text alone,
and only questions with one right answer are asked.
"""

from __future__ import annotations

from typing import Any

from oolong.mini import synth, transcripts


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of `synth`, `dnd` or `toy_dnd`, shortest texts first, as in the real data."""
    return synth.rows() if name == "synth" else transcripts.rows(name)
