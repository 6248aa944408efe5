"""How the scripted stand-in plays oolong: it parses, classifies by catchwords, and counts.

As a plain model it looks at the beginning of a long text only; as an RLM it parses all of it in the REPL and
lets sub-LLMs classify, up to `BATCHES` batches of lines. So its rewards fall with the length of the text, in
mode `llm` sooner, which is the shape that the plots by length are there to show.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

EYES = 8_000
"""Characters of a text that the plain model takes in."""
BATCHES = {"rlm": 6, "rlm_tips": 24}
"""Batches of lines that the root asks for: a longer text is sampled."""
LINES = 50
"""Lines that one sub-LLM classifies."""
PIECE = 20_000
"""Characters of a transcript that one sub-LLM reads."""

_LABELS = re.compile(r"one of these kinds: (.+?)\.\n")
_CATCHWORDS = (
    ("spam", r"\bwon\b|claim|notice|\bcall \d|prize|\bfree\b|urgent|winner"),
    ("abbreviation", r"stand for|abbreviat|acronym"),
    ("numeric", r"how many|how much|what year|\bwhen\b|how (?:far|tall|old|long|high|deep)"),
    ("human", r"^who\b|\bwho (?:was|is|were)"),
    ("location", r"^where|which (?:country|city|river)"),
    ("description", r"^why|^how|what does|what is an? |mean"),
    ("positive|sports", r"love|great|wonderful|goal|match"),
)
_ROLL = re.compile(r"rolled an? \d|\bis an? \d+ in total|natural \d+!", re.IGNORECASE)
_SPELL = re.compile(r"\bI cast\b|going to use\b|then I cast", re.IGNORECASE)


def is_synth(prompt: str) -> bool:
    return "one data point a line" in prompt or ("|| User:" in prompt and "Instance:" in prompt)


def is_real(prompt: str) -> bool:
    return "transcript" in prompt and "role-playing game" in prompt


def classify(text: str, labels: Sequence[str]) -> str:
    """The label whose catchwords the text has; the first one that has none of its own otherwise."""
    for name, words in _CATCHWORDS:
        for label in labels:
            if re.search(name, label, re.IGNORECASE) and re.search(words, text, re.IGNORECASE):
                return label
    plain = [x for x in labels if not any(re.search(name, x, re.IGNORECASE) for name, _ in _CATCHWORDS)]
    return (plain or list(labels))[0]


def parse_points(text):  # type: ignore[no-untyped-def]
    """(date, user, content, label or None) of every line. Its source also runs in the REPL: no annotations
    that need imports, nothing from outside."""
    import re

    line = re.compile(
        r"^Date: (.+?) \|\| User: (\d+) \|\| Instance: (.*?)(?: \|\| Label: (.*))?$", re.MULTILINE
    )
    return [match.groups() for match in line.finditer(text)]


def answer_points(question, points):  # type: ignore[no-untyped-def]
    """The answer to a question of the synth kind, from labelled points. Its source also runs in the REPL."""
    import re
    from collections import Counter
    from datetime import datetime

    quoted = re.findall(r"label '([^']+)'", question)
    only = re.search(r"data points of the users? ([\d ,and]+)", question)
    if only:
        users = set(re.findall(r"\d+", only[1]))
        points = [point for point in points if point[1] in users]
    labels = Counter(point[3] for point in points)
    order = (lambda c: min(c, key=lambda k: (c[k], k))) if "least common" in question else (
        lambda c: min(c, key=lambda k: (-c[k], k))
    )  # fmt: skip
    if not points:
        return "Answer: unknown"
    if "how many dates occur exactly" in question:
        times = int(question.partition("exactly ")[2].split()[0])
        return f"Answer: {sum(n == times for n in Counter(point[0] for point in points).values())}"
    if "which user has the most" in question:
        return f"User: {order(Counter(point[1] for point in points))}"
    if "which date occurs most" in question:
        return f"Date: {datetime.strptime(order(Counter(p[0] for p in points)), '%b %d, %Y'):%m/%d/%Y}"
    if "more data points with the label" in question:
        rivals = re.findall(r"user (\d+)", question)
        theirs = Counter(p[1] for p in points if p[3] == quoted[0] and p[1] in rivals)
        return f"User: {order(theirs) if theirs else rivals[0]}"
    if len(quoted) == 2 and "more common than" in question:
        a, b = (labels[label] for label in quoted)
        word = "same frequency as" if a == b else "more common than" if a > b else "less common than"
        return f"Answer: {quoted[0]} is {word} {quoted[1]}"
    if "ow many " in question and "classified as" in question:
        return f"Answer: {labels[quoted[0]]}"
    if "the most common" in question or "the least common" in question:
        return f"Label: {order(labels)}"
    return "Answer: unknown"


def plain_answer(prompt: str) -> str:
    """As a plain model: what can be seen in the first `EYES` characters, and the question at the end."""
    text, _, tail = prompt.rpartition("\n\n")
    if is_real(prompt):
        question = text.rpartition("\n\n")[2]  # the last paragraph says where the answer goes
        return f"\\boxed{{{count_events(question, prompt[:EYES])}}}"
    labels = kinds(prompt)
    points = [
        (date, user, content, label or classify(content, labels))
        for date, user, content, label in parse_points(prompt[:EYES])
    ]
    return str(answer_points(tail, points))


def kinds(text: str) -> list[str]:
    match = _LABELS.search(text)
    return match[1].split(", ") if match else ["unknown"]


def count_events(question: str, text: str) -> int:
    """Rolls or spells told in the text, by a character's player if the question names one."""
    event = _SPELL if "spell" in question else _ROLL
    return sum(bool(event.search(line)) for line in text.splitlines())


def sub_answer(prompt: str) -> str:
    """As a sub-LLM: a label for every numbered line, or a count of events."""
    if prompt.startswith("Classify"):
        head, _, body = prompt.partition("\n")
        labels = head.partition(": ")[2].split(", ")
        lines = (line.partition(". ") for line in body.splitlines())
        return "\n".join(f"{number}: {classify(content, labels)}" for number, _, content in lines)
    question, _, piece = prompt.partition("\n")
    return str(count_events(question, piece))


def root_code(prompt: str, turn: int) -> str:
    """As an RLM: a look, the work, the answer."""
    if turn == 0:
        return "print(len(context))\nprint(context[:600])"
    question = next(line for line in prompt.splitlines() if line.startswith("Question: "))
    if is_real(prompt):
        return _REAL.format(question=question, piece=PIECE)
    return _SYNTH.format(
        parse=inspect.getsource(parse_points),
        answer=inspect.getsource(answer_points),
        question=question,
        lines=LINES,
        batches=BATCHES["rlm_tips" if "<env_tips>" in prompt else "rlm"],
    )


_REAL = """\
question = {question!r}
pieces = [context[i : i + {piece}] for i in range(0, len(context), {piece})]
asked = question + " Reply with the number in this piece alone."
counts = llm_batch([asked + chr(10) + piece for piece in pieces])
print(counts)
answer["content"] = r"\\boxed{{" + str(sum(map(int, counts))) + "}}"
answer["ready"] = True"""

_SYNTH = """\
import re
{parse}
{answer}
question = {question!r}
points = parse_points(context)
kinds = re.search(r"one of these kinds: (.+?)\\.\\n", context)[1]
if points and points[0][3] is None and "label" in question:
    step = max(1, -(-len(points) // ({lines} * {batches})))
    points = points[::step]
    batches = [points[i : i + {lines}] for i in range(0, len(points), {lines})]
    replies = llm_batch(
        [
            f"Classify each line as one of: {{kinds}}\\n"
            + "\\n".join(f"{{n}}. {{point[2]}}" for n, point in enumerate(batch))
            for batch in batches
        ]
    )
    labels = [line.partition(": ")[2] for reply in replies for line in reply.splitlines()]
    points = [(*point[:3], label) for point, label in zip(points, labels)]
answer["content"] = answer_points(question, points)
print(answer["content"])
answer["ready"] = True"""
