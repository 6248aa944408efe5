"""What the model is told, by mode and by where the text is."""

from __future__ import annotations

_IN_PROMPT = """\
Copy the text between <text> and </text> exactly, character by character. Keep every space, line break, \
quotation mark and spelling as it is, also where the text breaks off or makes no sense.

<text>{text}</text>

"""

_LLM_END = """\
Reply with the copy alone: no tags, no code fence, no comment, no space or line break before or after it."""

_RLM_END = """\
Your answer must be the copy alone: no tags, no comment, no space or line break before or after it."""

_IN_REPL = """\
The variable `context` holds a text. Your answer must be an exact copy of it, character by character."""

_TIPS_PROMPT = """\
Write the copy into answer["content"] as a raw triple-quoted string, beginning right after the quotes. Do \
not declare it ready yet: print repr(answer["content"]) and its length first, and compare it with the text \
piece by piece. Correct single places with string operations instead of writing it all again. Look most \
carefully at codes, numbers, repeated spaces and line breaks. Set answer["ready"] = True only when a check \
finds nothing more to correct."""

_TIPS_REPL = """\
Do not print or retype the text: assign the variable by code, answer["content"] = context, check \
answer["content"] == context, then set answer["ready"] = True."""


def prompt(text: str, mode: str, placement: str) -> str:
    """The root's question; `placement` "repl" leaves the text out of it.

    Args:
        mode: `llm`, `rlm` or `rlm_tips`. A plain model has no REPL: its text is always in the prompt.
        placement: `prompt` or `repl`.
    """
    if mode == "llm":
        return _IN_PROMPT.format(text=text) + _LLM_END
    in_repl = placement == "repl"
    question = _IN_REPL if in_repl else _IN_PROMPT.format(text=text) + _RLM_END
    if mode == "rlm_tips":
        question += f"\n\n<env_tips>\n{_TIPS_REPL if in_repl else _TIPS_PROMPT}\n</env_tips>"
    return question
