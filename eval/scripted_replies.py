"""What the scripted stand-in says: one function of the conversation, without state.

Each task is recognised by the words of its prompt and played in three parts: as a plain model (with its
tools), as the root of an RLM, and as a sub-LLM. The stand-in knows no reference answer. It copies with slips,
calculates what it has a formula for, searches and guesses from what it reads, and gives up otherwise."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from eval import scripted_oolong

Message = dict[str, Any]

_SUB_LLM = re.compile(r"one self-contained request", re.IGNORECASE)
_RLM = re.compile(r"answer\[.content.\]")
_TIPS = "<env_tips>"


def reply(messages: Sequence[Message], tools: Sequence[str]) -> Message:
    """The assistant message that follows `messages`; `tools` are the names it may call."""
    system = next((text_of(m) for m in messages if m["role"] == "system"), "")
    prompt = next((text_of(m) for m in messages if m["role"] == "user"), "")
    turn = sum(m["role"] == "assistant" for m in messages)
    results = [text_of(m) for m in messages if m["role"] == "tool"]
    if _SUB_LLM.search(system):
        return _sub(prompt, turn, tools, results)
    if _RLM.search(system):
        observation = text_of(messages[-1]) if turn else ""
        return say(f"```python\n{_root(prompt, turn, observation)}\n```")
    return _plain(prompt, turn, tools, results)


def text_of(message: Message) -> str:
    """The text of a message whose content may be a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def say(text: str) -> Message:
    return {"role": "assistant", "content": text}


def call(tool: str, turn: int, **arguments: Any) -> Message:
    function = {"name": tool, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call-{turn}", "type": "function", "function": function}],
    }


def chance(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


# ---- the three parts


def _plain(prompt: str, turn: int, tools: Sequence[str], results: Sequence[str]) -> Message:
    if (text := to_copy(prompt)) is not None:
        return say(slip(text, 0.3))
    if "search_web" in tools:
        return _research(prompt, turn, results)
    if scripted_oolong.is_synth(prompt) or scripted_oolong.is_real(prompt):
        return say(scripted_oolong.plain_answer(prompt))
    if "\\boxed" in prompt and (code := math_code(prompt)) is not None and "python" in tools:
        if chance(prompt) < 0.2:
            return say("It should be about \\boxed{1}.")  # too sure of itself to calculate
        if turn == 0:
            return call("python", turn, code=f"{code}\nprint(value)")
        return say(f"The calculation gives \\boxed{{{last_line(results[-1])}}}.")
    return say("I do not know. \\boxed{0}")


def _root(prompt: str, turn: int, observation: str) -> str:
    """The code of an RLM's turn."""
    tips = _TIPS in prompt
    if (text := to_copy(prompt)) is not None:
        if turn == 0:
            copied = slip(text, 0.15 if tips else 0.2)
            return f'answer["content"] = {copied!r}\nprint(len(answer["content"]))'
        return 'answer["ready"] = True'
    if "an exact copy of it" in prompt:
        return 'answer["content"] = context\nanswer["ready"] = True'
    if "searching for pages" in prompt:
        return _research_root(prompt, turn, batch=4 if tips else 3)
    if scripted_oolong.is_synth(prompt) or scripted_oolong.is_real(prompt):
        return scripted_oolong.root_code(prompt, turn)
    if "\\boxed" in prompt and (code := math_code(prompt)) is not None:
        if turn == 0:
            return f"{code}\nprint(value)"
        return 'answer["content"] = "\\\\boxed{" + str(value) + "}"\nanswer["ready"] = True'
    return 'answer["content"] = "I do not know. \\\\boxed{0}"\nanswer["ready"] = True'


def _sub(prompt: str, turn: int, tools: Sequence[str], results: Sequence[str]) -> Message:
    if "search_web" in tools:
        return _research(prompt, turn, results, patience=4)
    return say(scripted_oolong.sub_answer(prompt))


# ---- verbatim copy

_COPY = re.compile(r"^<text>(.*)</text>$", re.DOTALL | re.MULTILINE)


def to_copy(prompt: str) -> str | None:
    match = _COPY.search(prompt)
    return match[1] if match else None


def slip(text: str, rate: float) -> str:
    """The text, with one character lost in `rate` of all texts."""
    luck = chance(f"{rate}{text}")
    if luck >= rate or not text:
        return text
    place = int(luck / rate * len(text))
    return text[:place] + text[place + 1 :]


# ---- research

_URL = re.compile(r"https?://[^\s)>\]\"']+")
_FACT = re.compile(r"\| ([A-Z][^|]*?) \| (?:\[([^\]]+)\]\(([^)]+)\)|([^|]+?)) \|")
_RELATIONS = (
    (r"first collected", "First collected by"),
    (r"who described", "Described by"),
    (r"specimen", "Specimen kept at"),
    (r"endowed", "Endowed by"),
    (r"awards", "Awarded by"),
    (r"paid for", "Sponsor"),
    (r"teacher|under whom", "Studied under"),
    (r"birthplace|in which town was .* born", "Birthplace"),
    (r"naturalist", "Naturalist"),
    (r"designer", "Designer"),
    (r"who led", "Leader"),
    (r"\bship\b", "Ship"),
    (r"destination", "Destination"),
    (r"home port", "Home port"),
    (r"founder|who founded", "Founder"),
    (r"\bwork", "Worked at"),
    (r"seat of the", "Seat"),
    (r"named", "Named after"),
    (r"which river", "River"),
    (r"craft", "Patron craft"),
    (r"chartered", "Chartered"),
    (r"founded", "Founded"),
    (r"launched", "Launched"),
    (r"year was .* born", "Born"),
    (r"profession", "Profession"),
)
"""Words of a question -> label of the fact on a page that they ask for."""


def _research(prompt: str, turn: int, results: Sequence[str], *, patience: int = 2) -> Message:
    """Search, open the first result, and follow facts from page to page, up to `patience` pages."""
    question = question_of(prompt)
    if turn == 0:
        return call("search_web", turn, queries=[question], num_results=5)
    found = _URL.findall(results[0])
    if turn == 1 and found:
        return call("open", turn, url=found[0])
    link, value = follow(question, results[1:])
    if link is not None and turn <= patience:
        return call("open", turn, url=link)
    return say(f"\\boxed{{{value or 'unknown'}}}")


def question_of(prompt: str) -> str:
    return prompt.strip().split("\n", 1)[0]


def follow(question: str, pages: Sequence[str]) -> tuple[str | None, str | None]:
    """(address to go on to, last value found): on each page the first fact that the question asks for and
    that no earlier page has given."""
    wanted = [f"Winner {year}" for year in re.findall(r"winner of .*? in (\d{4})", question)]
    wanted += [label for words, label in _RELATIONS if re.search(words, question, re.IGNORECASE)]
    link: str | None = None
    value: str | None = None
    for page in pages:
        facts = {match[1]: (match[3], match[2] or match[4]) for match in _FACT.finditer(page)}
        label = next((label for label in wanted if label in facts), None)
        if label is None:
            return None, value
        wanted.remove(label)
        link, value = facts[label]
    return (link if wanted else None), value


def _research_root(prompt: str, turn: int, *, batch: int) -> str:
    question = question_of(prompt)
    if turn == 0:
        views = [f"{question}\nLook from side {side}." for side in range(1, batch + 1)]
        return f"notes = llm_batch({views!r})\nprint(notes)"
    return (
        "from collections import Counter\n"
        'answer["content"] = Counter(notes).most_common(1)[0][0]\n'
        'answer["ready"] = True'
    )


# ---- math

_DICE = re.compile(
    r"(\d+) fair dice, each with sides numbered \$1\$ to \$(\d+)\$.*exactly \$(\d+)\$", re.DOTALL
)
_POWER = re.compile(r"remainder when \$(\d+)\^\{(\d+)\}\$ is divided by \$(\d+)\$")
_SYSTEM = re.compile(r"Solve the system \$(.+?)\$, \$(.+?)\$")
_FRACTIONS = re.compile(r"\\sum_\{k=1\}\^\{(\d+)\} \\frac\{1\}\{k\(k\+(\d+)\)\}")
_COPRIME = re.compile(r"less than \$(\d+)\$ that are relatively prime.*multiple of \$(\d+)\$", re.DOTALL)


def math_code(prompt: str) -> str | None:
    """Python that sets `value`, for the kinds of problems that the stand-in can do; None for the others."""
    if match := _DICE.search(prompt):
        dice, sides, total = map(int, match.groups())
        return (
            "from fractions import Fraction\nfrom itertools import product\n"
            f"hits = sum(sum(roll) == {total} for roll in product(range(1, {sides + 1}), repeat={dice}))\n"
            f"value = Fraction(hits, {sides**dice})"
        )
    if match := _POWER.search(prompt):
        return "value = pow({}, {}, {})".format(*match.groups())
    if match := _FRACTIONS.search(prompt):
        terms, gap = map(int, match.groups())
        return (
            "from fractions import Fraction\n"
            f"value = sum(Fraction(1, k * (k + {gap})) for k in range(1, {terms + 1}))"
        )
    if match := _COPRIME.search(prompt):
        bound, divisor = map(int, match.groups())
        return (
            "from math import gcd\n"
            f"value = sum(n for n in range(1, {bound})\n"
            f"            if gcd(n, {bound}) == 1 and sum(map(int, str(n))) % {divisor} == 0)"
        )
    if match := _SYSTEM.search(prompt):
        equations = [side.replace(" ", "") for side in match.groups()]
        return (
            "import re\nfrom fractions import Fraction\n"
            "rows = [tuple(map(int, re.fullmatch(r'(-?\\d+)x([+-]\\d+)y=(-?\\d+)', s).groups())) for s "
            f"in {equations!r}]\n"
            "(a, b, c), (d, e, f) = rows\n"
            "value = (Fraction(c * e - b * f, a * e - b * d), Fraction(a * f - c * d, a * e - b * d))\n"
            "value = f'({value[0]}, {value[1]})'"
        )
    return None


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""
