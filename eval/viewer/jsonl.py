"""Lines of JSON as they are found in the wild: growing, torn, not quite JSON.

The idea: a line is a byte range. Nothing here guesses at a line that does not end in a newline yet; it is
left for the next look, when its writer has finished it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import from_json


class BadLineError(ValueError):
    """A finished line that is not a JSON object."""


def parse(line: bytes) -> dict[str, Any]:
    """The object on a line. ``NaN`` and ``Infinity``, lone surrogates and bytes that are not UTF-8 are
    accepted, since traces hold whatever a model wrote.

    Raises ``BadLineError`` when it is no JSON object.
    """
    try:
        value = from_json(line)
    except ValueError:
        # The fast parser refuses lone surrogates and invalid UTF-8; the standard one takes both.
        try:
            value = json.loads(line.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            raise BadLineError(str(error)) from None
    if not isinstance(value, dict):
        raise BadLineError(f"a JSON object was expected, found {type(value).__name__}")
    return value


def finished_lines(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """``(offset in bytes, line without its newline)`` of every finished, non-empty line from ``start`` on."""
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            if line.strip():
                yield offset, line[:-1]
            offset += len(line)


def browser_safe(value: Any) -> Any:
    """``value`` with the floats that JSON lacks (NaN, infinities) spelled as strings, so that the result
    is JSON for every parser."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): browser_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [browser_safe(item) for item in value]
    return value


def dumps(value: Any) -> bytes:
    """Strict JSON in ASCII: lone surrogates stay escapes, so the bytes are always valid UTF-8."""
    return json.dumps(browser_safe(value), allow_nan=False, separators=(",", ":")).encode("ascii")
