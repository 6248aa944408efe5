"""Questions that take two to four steps from page to page, by random walks over the facts.

A question starts at a page that is named, or described so that exactly one page fits, follows facts from page
to page, and asks for the last one. What makes it worth asking is checked here: nothing on the first page
gives the answer, no page is visited twice, the answer is not in the question. `where` and `path` are the walk
in terms of what the pages show; tests follow it over the pages' text to prove that the answer is there and is
the only one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from deepdive.mini.world import Entity, World

# (kind, label) -> (noun phrase for what the fact leads to, question that asks for it); {x} is the page.
RELATIONS: dict[tuple[str, str], tuple[str, str]] = {
    ("town", "Region"): ("the region in which {x} lies", "In which region does {x} lie?"),
    ("town", "River"): ("the river that runs through {x}", "Which river runs through {x}?"),
    ("town", "Chartered"): ("", "In which year was {x} chartered?"),
    ("town", "Patron craft"): ("", "For which craft was {x} known for centuries?"),
    ("river", "Mouth at"): ("the town at the mouth of {x}", "At which town does {x} reach the sea?"),
    ("river", "Length"): ("", "How long is {x}, in kilometres?"),
    ("region", "Seat of government"): ("the seat of government of {x}", "From which town is {x} governed?"),
    ("region", "United in"): ("", "In which year was {x} united?"),
    ("feature", "Named after"): ("the person after whom {x} is named", "After whom is {x} named?"),
    ("person", "Birthplace"): ("the birthplace of {x}", "In which town was {x} born?"),
    ("person", "Born"): ("", "In which year was {x} born?"),
    ("person", "Profession"): ("", "What was the profession of {x}?"),
    ("person", "Studied under"): ("the teacher of {x}", "Under whom did {x} study?"),
    ("person", "Worked at"): ("the institution at which {x} worked", "At which institution did {x} work?"),
    ("person", "First command"): (
        "the first expedition led by {x}", "Which was the first expedition led by {x}?"),
    ("person", "First book"): ("the first book by {x}", "Which was the first book by {x}?"),
    ("ship", "Maiden expedition"): ("the maiden expedition of {x}", "What was the maiden expedition of {x}?"),
    ("ship", "Built at"): ("the town where {x} was built", "In which town was {x} built?"),
    ("ship", "Designer"): ("the designer of {x}", "Who designed {x}?"),
    ("ship", "Launched"): ("", "In which year was {x} launched?"),
    ("ship", "Rig"): ("", "What was the rig of {x}?"),
    ("expedition", "Leader"): ("the leader of {x}", "Who led {x}?"),
    ("expedition", "Ship"): ("the ship that carried {x}", "Which ship carried {x}?"),
    ("expedition", "Destination"): ("the destination of {x}", "What was the destination of {x}?"),
    ("expedition", "Naturalist"): ("the naturalist of {x}", "Who was the naturalist of {x}?"),
    ("expedition", "Sponsor"): ("the institution that paid for {x}", "Which institution paid for {x}?"),
    ("expedition", "Home port"): ("the home port of {x}", "What was the home port of {x}?"),
    ("expedition", "Official report"): ("the official report of {x}", ""),
    ("report", "Sledge dogs embarked"): ("", "How many sledge dogs were embarked according to {x}?"),
    ("report", "Days away from port"): ("", "How many days away from port does {x} give?"),
    ("report", "Quartermaster"): ("", "Who was quartermaster according to {x}?"),
    ("report", "Winter camp"): ("", "What was the winter camp called according to {x}?"),
    ("report", "Barrels of lamp oil"): ("", "How many barrels of lamp oil are listed in {x}?"),
    ("species", "First collected by"): (
        "the expedition that first collected {x}", "Which expedition first collected {x}?"),
    ("species", "Described by"): ("the person who described {x}", "Who described {x}?"),
    ("species", "Specimen kept at"): (
        "the institution that keeps the type specimen of {x}",
        "Which institution keeps the type specimen of {x}?",
    ),
    ("work", "Author"): ("the author of {x}", "Who wrote {x}?"),
    ("work", "Dedicated to"): ("the person to whom {x} is dedicated", "To whom is {x} dedicated?"),
    ("work", "Printed at"): ("the town where {x} was first printed", "In which town was {x} first printed?"),
    ("institute", "Seat"): ("the town that is the seat of {x}", "In which town is {x}?"),
    ("institute", "Founder"): ("the founder of {x}", "Who founded {x}?"),
    ("institute", "Founded"): ("", "In which year was {x} founded?"),
    ("institute", "Instrument"): ("", "What is the chief instrument or collection of {x}?"),
    ("museum", "Town"): ("the town of {x}", "In which town is {x}?"),
    ("museum", "Chronometer from"): (
        "the expedition whose chronometer is kept in {x}", "Which expedition's chronometer is kept in {x}?"),
    ("museum", "First curator"): ("the first curator of {x}", "Who was the first curator of {x}?"),
    ("prize", "Endowed by"): ("the person who endowed {x}", "Who endowed {x}?"),
    ("prize", "Awarded by"): ("the institution that awards {x}", "Which institution awards {x}?"),
}  # fmt: skip

_NAMED = {
    "species": "the {t}", "work": 'the book "{t}"', "museum": "the {t}", "prize": "the {t}", "feature": "{t}",
    "expedition": "the {t}", "ship": "the ship {t}", "person": "{t}", "institute": "the {t}",
}  # fmt: skip

_THAT = {
    "species": "that species", "work": "that book", "museum": "that museum", "prize": "that prize",
    "feature": "that place", "expedition": "that expedition", "ship": "that ship", "person": "that person",
    "institute": "that institution", "town": "that town", "river": "that river", "region": "that region",
    "report": "that report",
}  # fmt: skip

# Pages told by two facts instead of by name.
_DESCRIBED: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "ship": (
        (("Built at", "Launched"), "the ship launched at {0} in {1}"),
        (("Rig", "Launched"), "the {0} launched in {1}"),
    ),
    "expedition": (
        (("Destination", "Departed"), "the expedition that set out for {0} in {1}"),
        (("Sponsor", "Departed"), "the expedition paid for by the {0} that set out in {1}"),
    ),
    "person": ((("Profession", "Birthplace", "Born"), "the {0} born in {1} in {2}"),),
    "work": ((("Genre", "Printed at", "Published"), "the {0} first printed at {1} in {2}"),),
    "institute": ((("Instrument", "Founded"), "the institution with a {0} that was founded in {1}"),),
    "museum": ((("Town", "Opened"), "the museum opened at {0} in {1}"),),
}


@dataclass(frozen=True)
class Question:
    question: str
    answer: str
    kind: str
    """Kind of the first page."""
    where: tuple[tuple[str, str], ...]
    """What the first page shows: (label, value) pairs, or ("title", title)."""
    path: tuple[str, ...]
    """Labels followed from there; the last one's value is the answer."""


def ask(world: World, documents: dict[str, bytes], per_length: int = 80) -> list[Question]:
    """`per_length` questions of each of 2, 3 and 4 steps, shuffled; a quarter of them end in a PDF.

    `documents`: the pages by URL.
    """
    rng = random.Random(world.rng.random())
    found: dict[str, Question] = {}
    for steps in (2, 3, 4):
        wanted = len(found) + per_length
        while len(found) < wanted:
            walk = _walk(world, steps, rng)
            if walk is None or (len(found) % 4 == 0 and "Official report" not in walk[0].path):
                continue
            if _worthy(walk[0], documents[walk[1].url]):
                found.setdefault(walk[0].question, walk[0])
    questions = list(found.values())
    rng.shuffle(questions)
    return questions


def _starts(world: World, rng: random.Random) -> tuple[Entity, tuple[tuple[str, str], ...], str] | None:
    """A first page, the facts that tell it, and the words for it; None when the facts fit another page
    too."""
    kind = rng.choice(
        ["species", "work", "museum", "prize", "expedition", "ship", "person", "institute", "winner"]
    )
    if kind == "winner":
        prize = rng.choice(world.of("prize"))
        label = rng.choice([label for label in prize.facts if label.startswith("Winner")])
        return prize, (("title", prize.title),), label
    page = rng.choice(world.of(kind))
    if kind in _DESCRIBED and rng.random() < 0.7:
        labels, words = rng.choice(_DESCRIBED[kind])
        facts = tuple((label, page.value(label)) for label in labels)
        fitting = [e for e in world.of(kind) if all(e.value(label) == value for label, value in facts)]
        return (page, facts, words.format(*(value for _, value in facts))) if len(fitting) == 1 else None
    name = page.title[0].lower() + page.title[1:] if kind == "species" else page.title
    return page, (("title", page.title),), _NAMED[kind].replace("{t}", name)


def _walk(world: World, steps: int, rng: random.Random) -> tuple[Question, Entity] | None:
    """A question of that many steps with its first page, or None for a walk that leads nowhere."""
    start = _starts(world, rng)
    if start is None:
        return None
    first, where, words = start
    page, path, visited = first, [], [first]
    if words.startswith("Winner"):
        label, year = words, words.split()[1]
        winner = page.facts[label]
        assert isinstance(winner, Entity)
        page, words = winner, f"the winner of the {page.title} in {year}"
        path.append(label)
        visited.append(page)
    while True:
        last = len(path) == steps - 1
        part = 1 if last else 0
        labels = [label for label in page.facts if RELATIONS.get((page.kind, label), ("", ""))[part]]
        if not labels:
            return None
        label = rng.choice(labels)
        if page is first and label in dict(where):
            return None  # "the town in which the ship launched at X was built"
        value = page.facts[label]
        path.append(label)
        if last:
            text = RELATIONS[page.kind, label][1]
            # Long phrases are set apart: "Which river runs through the town in which ... worked was founded?"
            # leaves the reader to guess where the phrase ends.
            text = (
                text.replace("{x}", words)
                if steps == 2
                else f"Consider {words}. {text.replace('{x}', _THAT[page.kind])}"
            )
            answer = value if isinstance(value, str) else value.title
            if value in visited or any(value == shown for _, shown in where):
                return None
            question = Question(_sentence(text), _short(label, answer), first.kind, where, tuple(path))
            return question, first
        if not isinstance(value, Entity) or value in visited:
            return None
        words = RELATIONS[page.kind, label][0].replace("{x}", words)
        page = value
        visited.append(page)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _short(label: str, answer: str) -> str:
    """The answer in the unit that the question asks for."""
    return answer.removesuffix(" km") if label == "Length" else answer


def _worthy(question: Question, first_page: bytes) -> bool:
    """Whether neither the question nor its first page tells the answer already."""
    if question.answer.casefold() in question.question.casefold():
        return False
    return all(question.answer.encode(code, "replace") not in first_page for code in ("utf-8", "cp1252"))
