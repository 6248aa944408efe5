"""What the root and the sub-LLMs are told. Plain functions of the config and of what the episode has."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlm_env.config import RLMHarnessConfig
from rlm_env.limits import Ledger
from rlm_env.repl import ReplResult

SUB_SYSTEM = (
    "You answer one self-contained request from a program. Everything you may use is in the request"
    "{tools}. Reply with the answer itself, complete and without preamble: the program reads your reply as "
    "it is."
)

ROOT_SYSTEM = """\
You solve tasks by writing Python that runs in a persistent REPL. Variables, imports and functions stay \
from turn to turn. {channel} Of what your code does you see only what it prints (and the value of a last \
expression), at most {output_chars} characters a turn, so print what you need and never whole inputs.

In the REPL:
- `context`: the input data of the task, if it has any. It may be far larger than what you can read: look \
at its type, size and a sample first, then work on it with code.
- `answer = {{"content": "", "ready": False}}`: write your final reply into answer["content"]. You may build \
it up, print it, check it and mend it over several turns. The task ends when you set answer["ready"] = True, \
and what answer["content"] holds then is your reply; nothing else you write is seen.
{functions}
Each run of code may take {call_seconds:g} s (waiting for sub-LLMs is not counted); you have {max_turns} \
turns.\
{packages}"""

_FENCE_CHANNEL = "Put the code of a turn in one ```python block; it is run when your reply ends."
_TOOL_CHANNEL = "Call the `python` tool with the code of a turn."

_LLM_BATCH = """\
- `llm_batch(prompts: list[str]) -> list[str]`: asks a fresh language model each prompt, all at the same \
time, and gives the replies in order. Each sub-LLM sees its prompt only, so put into it the text to read and \
what you want to know of it. Use it for reading and judging in bulk: one batch of many prompts is much \
faster than a loop of single ones.{tools}
- `llm_query(prompt: str) -> str`: the same for one prompt."""

_RLM_BATCH = """\
- `rlm_batch(prompts, contexts=None) -> list[str]`, `rlm_query(prompt, context=None) -> str`: the same, but \
each is handed to an assistant with a REPL of its own, in which its `context` is the variable `context`. \
For parts that need work of several steps."""

_FOLD = """\
- `fold(n, note)`: drops your {n} oldest turns from what you see and puts your note in their place; all data \
stays in the REPL. For long tasks."""


def root_system(
    config: RLMHarnessConfig,
    *,
    depth: int,
    sub_tools: Sequence[str],
    repl_functions: Sequence[tuple[str, str]],
    packages: Sequence[str],
    task_system: str | None,
    max_turns: int,
) -> str:
    """The system prompt of an RLM at ``depth`` (0 = the root).

    ``sub_tools``: signatures of the tools that sub-LLMs have. ``repl_functions``: (signature, description)
    of tools and user functions that code can call.
    """
    parts: list[str] = []
    if depth < config.max_depth:
        has = f" Sub-LLMs can use these tools themselves: {', '.join(sub_tools)}." if sub_tools else ""
        parts.append(_LLM_BATCH.format(tools=has))
        if depth + 1 < config.max_depth:
            parts.append(_RLM_BATCH)
    for signature, description in repl_functions:
        parts.append(f"- `{signature}`: {' '.join(description.split())}")
    if config.folding:
        parts.append(_FOLD.format(n="`n`"))
    values = {
        "channel": _TOOL_CHANNEL if config.code_channel == "tool" else _FENCE_CHANNEL,
        "functions": "\n".join(parts),
        "packages": f" Beside the standard library you can import {', '.join(packages)}." if packages else "",
        "call_seconds": config.repl.call_seconds,
        "output_chars": f"{config.repl.output_chars:,}",
        "max_turns": max_turns,
    }
    if config.system_prompt is None:
        text = ROOT_SYSTEM.format(**values)
    else:
        # The user's own prompt may hold braces of its own, so only the known fields are filled in.
        text = config.system_prompt
        for name, value in values.items():
            text = text.replace("{" + name + "}", f"{value:g}" if isinstance(value, float) else str(value))
    return f"{text}\n\n{task_system}" if task_system else text


def sub_system(config: RLMHarnessConfig, has_tools: bool) -> str:
    """The system prompt of a plain sub-LLM. Never empty: it is what keeps a sub-call's branch of the trace
    apart from the root's."""
    if config.sub_system_prompt is not None:
        return config.sub_system_prompt
    return SUB_SYSTEM.format(tools=" or found with your tools" if has_tools else "")


def context_note(description: str | None, files: Sequence[str]) -> str:
    """Tells what data the REPL holds, without showing any of it."""
    lines = []
    if description:
        lines.append(f"`context` holds {description}.")
    if files:
        shown = ", ".join(files[:20]) + (f" and {len(files) - 20} more" if len(files) > 20 else "")
        lines.append(f"Files in the working directory: {shown}.")
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def block_text(config: RLMHarnessConfig, result: ReplResult, index: int, total: int) -> str:
    """What the root is told of one block that ran: time, output, and anything that went wrong with the
    REPL itself."""
    lines: list[str] = []
    if config.observation_style == "full":
        head = f"Block {index + 1} of {total}" if total > 1 else "Output"
        wait = f" + {_seconds(result.wait_seconds)} waiting for calls" if result.wait_seconds >= 0.005 else ""
        lines.append(f"{head} ({_seconds(result.seconds)}{wait}):")
        lines.append(result.output or "(no output)")
    else:
        lines.append(result.output or "(no output)")
    lines += [f"[{note}]" for note in result.notes]
    if result.timed_out:
        lines.append(
            f"[stopped: the code ran longer than {config.repl.call_seconds:g} s; "
            "do less in one turn, or in a faster way]"
        )
    if result.restarted:
        lost = ", ".join(result.lost[:20]) if result.lost else "nothing that you defined"
        more = f" and {len(result.lost) - 20} more" if len(result.lost) > 20 else ""
        lines.append(
            f'[the REPL had to be restarted: lost {lost}{more}. `context` and answer["content"] are kept]'
        )
    if result.restored:
        names = ", ".join(f"`{name}`" for name in result.restored)
        lines.append(f"[you overwrote {names}; reserved names, restored]")
    return "\n".join(lines)


NO_CODE_FENCE = (
    "[no code was run: your reply had no ```python block. Write code in one, and when "
    'answer["content"] holds your final reply, set answer["ready"] = True]'
)
NO_CODE_TOOL = (
    '[no code was run: call the `python` tool. When answer["content"] holds your final reply, set '
    'answer["ready"] = True]'
)
CUT_REPLY = (
    "[your reply reached its token limit inside a code block, so the block was not run; write shorter code]"
)


def skipped_note(first_failed: int, total: int) -> str:
    return (
        f"[block {first_failed + 1} failed, so the {total - first_failed - 1} block(s) after it were not run]"
    )


def budget_notes(
    config: RLMHarnessConfig, ledger: Ledger, *, turns_left: int, max_turns: int, seconds_left: float | None
) -> list[str]:
    """A line for each limit that is near, with what is left of it."""
    limits = config.limits
    notes: list[str] = []
    if turns_left <= limits.near * max_turns or turns_left == 1:
        notes.append(f"{turns_left} turn{'s' if turns_left != 1 else ''} left")
    for allowance, left, name in (
        (ledger.sub_calls, ledger.sub_calls_left, "sub-calls"),
        (ledger.root_tokens, ledger.root_tokens.left, "tokens of your own"),
        (ledger.sub_tokens, ledger.sub_tokens_left, "sub-LLM tokens"),
    ):
        if allowance.total is not None and not math.isinf(left) and left <= limits.near * allowance.total:
            notes.append(f"{int(left)} of {int(allowance.total)} {name} left")
    if (
        seconds_left is not None
        and limits.episode_seconds is not None
        and seconds_left <= limits.near * limits.episode_seconds
    ):
        notes.append(f"{max(0, round(seconds_left))} s of the episode left")
    if notes and turns_left == 1:
        notes.append(
            'this is the last turn: put your reply in answer["content"] and set answer["ready"] = True'
        )
    return [f"[{'; '.join(notes)}]"] if notes else []
