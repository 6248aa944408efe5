r"""From a reply to the answer in its box, and from a dataset row to its reference: pure functions.

What is found is LaTeX without `\boxed{}`; whether two of them are equal is decided in `verify`.
"""

from __future__ import annotations

import re

_BOX = "\\boxed{"
_ESCAPED_OR_BRACE = re.compile(r"\\.|[{}]", re.S)
# What Python makes of LaTeX in a string that is not raw: "\boxed" becomes a backspace and "oxed".
_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\v": r"\v", "\t": r"\t", "\r": r"\r"}
_ESCAPED = re.compile("[" + "".join(map(re.escape, _ESCAPES)) + "](?=[A-Za-z])")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z{}])")


def restore_latex(text: str) -> str:
    r"""LaTeX commands that went through a Python string which was not raw, put right.

    An RLM that writes `answer["content"] = "\boxed{\frac{1}{2}}"` gets control characters for `\b` and `\f`.
    Before a letter none of them means anything else in an answer, so the command is restored. (A line feed
    before a letter is usual text and stays.)
    """
    return _ESCAPED.sub(lambda match: _ESCAPES[match.group()], text)


def boxed(reply: str) -> str | None:
    r"""The content of the last `\boxed{...}` after any thinking, stripped; None without one.

    Of several boxes only the last counts: the others would be guesses. A box that does not end, an empty one,
    or one in an unfinished `<think>` is none. Braces may nest; `\{` and `\}` are characters.
    """
    text = restore_latex(reply)
    if "<think>" in text and "</think>" not in text:
        return None
    text = text.rsplit("</think>", 1)[-1]
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for match in _ESCAPED_OR_BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : match.start()].strip() or None
    return None


def reference(answer: str) -> str:
    """A row's answer as LaTeX: out of its box if it is in one, doubled backslashes made single.

    Some rows of the data are JSON-escaped (two backslashes before `frac`), which math-verify would read as a
    line break. In a matrix doubled backslashes end its rows: they stay, unless `begin` is escaped itself.
    """
    answer = answer.strip()
    if "\\\\begin" in answer:
        answer = answer.replace("\\\\", "\\")
    elif "\\begin" not in answer:
        answer = _DOUBLED.sub(r"\\", answer)
    return boxed(answer) or answer
