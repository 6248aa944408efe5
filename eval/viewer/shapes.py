"""Reading records that nobody vouches for.

A viewer is what one opens when something went wrong, so a record of an older version, of another tool or
with fields of the wrong type must still show as much as it holds. These accessors give an empty value of
the asked-for type where a field is missing or is something else.
"""

from __future__ import annotations

import re
from typing import Any

ROOT_REQUEST = re.compile(r"root\.\d+")
"""Request ids of root turns; all others belong to sub-LLMs and child RLMs."""


def mapping(value: Any, *path: str) -> dict[str, Any]:
    """The dict at ``path`` inside ``value``, else an empty one."""
    found = dig(value, *path)
    return found if isinstance(found, dict) else {}


def records(value: Any, *path: str) -> list[dict[str, Any]]:
    """The dicts of the list at ``path`` inside ``value``."""
    found = dig(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def strings(value: Any, *path: str) -> list[str]:
    """The strings of the list at ``path`` inside ``value``."""
    found = dig(value, *path)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def text(value: Any, *path: str) -> str:
    """The string at ``path``; ``""`` when it is none."""
    found = dig(value, *path)
    return found if isinstance(found, str) else ""


def number(value: Any, *path: str) -> float | None:
    """The number at ``path``; ``None`` when it is none (booleans are not numbers)."""
    found = dig(value, *path)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def integer(value: Any, *path: str) -> int | None:
    """The whole number at ``path``; ``None`` when it is none."""
    found = number(value, *path)
    return found if isinstance(found, int) else None


def dig(value: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def message_text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list joined by newlines."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(text(part, "text") for part in content if text(part, "text"))
    return ""


def usage_tokens(usage: Any) -> tuple[int, int]:
    """``(input tokens with cache reads, completion tokens)`` of one usage record."""
    prompt = integer(usage, "prompt_tokens") or 0
    cached = integer(usage, "cached_input_tokens") or 0
    return prompt + cached, integer(usage, "completion_tokens") or 0


def duration(span: Any) -> float | None:
    """Seconds of a ``{"start", "end"}`` span; ``None`` while it has not ended."""
    start, end = number(span, "start"), number(span, "end")
    return max(0.0, end - start) if start and end else None
