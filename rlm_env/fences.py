"""Fenced code blocks of a reply, by CommonMark's rules for fences, narrowed to Python.

A fence opens with three or more backticks or tildes at the start of a line (up to three spaces before
it) and is closed by a line of the same character, at least as long, with nothing after it. A block
without a language or with a Python one is code; any other is prose. Invariant: the code of a block is
exactly the text between its fence lines, never re-indented or stripped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PYTHON_LANGUAGES = frozenset({"", "python", "python3", "py", "repl", "ipython", "pycon"})

_OPEN = re.compile(r"^ {0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\r\n]*)$")


@dataclass(frozen=True)
class CodeBlock:
    """One Python block of a reply."""

    code: str
    """The text between the fences, newlines kept."""
    closed: bool
    """False when the reply ended inside the block."""


def python_blocks(reply: str) -> list[CodeBlock]:
    """The Python blocks of ``reply``, in order."""
    blocks: list[CodeBlock] = []
    fence = ""
    is_python = False
    lines: list[str] = []
    # Split on "\n" only: str.splitlines would also cut at form feeds and U+2028 inside string literals.
    for line in reply.split("\n"):
        bare = line.rstrip("\r")
        if not fence:
            opened = _OPEN.match(bare)
            if opened is None:
                continue
            info = opened["info"].strip()
            if opened["fence"][0] == "`" and "`" in info:
                continue  # inline code such as ```x``` is not a fence (CommonMark 4.5)
            fence = opened["fence"]
            language = re.split(r"[\s{},:]", info.lstrip("{"), maxsplit=1)[0].lower()
            is_python = language in PYTHON_LANGUAGES
            lines = []
            continue
        stripped = bare.strip(" \t")
        indent = len(bare) - len(bare.lstrip(" "))
        if indent <= 3 and stripped and set(stripped) == {fence[0]} and len(stripped) >= len(fence):
            if is_python:
                blocks.append(CodeBlock("\n".join(lines), closed=True))
            fence = ""
            continue
        lines.append(line)
    if fence and is_python:
        blocks.append(CodeBlock("\n".join(lines), closed=False))
    return blocks
