"""Mini rows of the real data: transcripts of invented role-playing sessions, and questions about them.

An episode is a list of spoken lines; those that tell of a roll or a cast spell carry an `Event`, the others
are talk, some of it about rolls and spells that did not happen. Answers are computed from the events.

What counts, so that it can be counted: a roll is a line in which a player tells a die's result, a spell is
cast when a player says that they cast or use it.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from oolong.mini import vocabulary as v

WINDOWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "toy_dnd": ((4_000,), (8_000,), (6_000, 6_000)),
    "dnd": (
        (16_000,),
        (50_000,),
        (40_000, 50_000),
        (220_000,),
        (200_000, 220_000, 180_000),
    ),
}
"""Characters of each episode of each window."""
CAMPAIGN = "mini_campaign"
START, END = "[START OF EPISODE]", "[END OF EPISODE]"
_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Event:
    kind: Literal["roll", "spell"]
    character: str
    what: str
    """The skill or the spell."""
    die: int = 0
    """What the die showed, for a roll."""


@dataclass(frozen=True)
class Episode:
    lines: tuple[str, ...]
    events: tuple[Event, ...]

    def rolls(self) -> list[Event]:
        return [event for event in self.events if event.kind == "roll"]

    def spells(self) -> list[Event]:
        return [event for event in self.events if event.kind == "spell"]


@dataclass(frozen=True)
class Question:
    kind: Literal["rolls", "spells"]
    text: str
    answer: str


@lru_cache(maxsize=2)
def rows(config: str) -> list[dict[str, Any]]:
    """All rows of `dnd` or `toy_dnd`; columns as in oolongbench/oolong-real."""
    result: list[dict[str, Any]] = []
    for number, lengths in enumerate(WINDOWS[config]):
        rng = random.Random(f"oolong/mini/real/1/{config}/{number}")
        episodes = [make_episode(rng, chars) for chars in lengths]
        text = write(episodes)
        window_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        questions = _ask_one(rng, episodes[0]) if len(episodes) == 1 else _ask_many(rng, episodes)
        span = "singledoc" if len(episodes) == 1 else "multidoc"
        result += [
            {
                "id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                "context_window_id": window_id,
                "context_window_text": text,
                "question": question.text,
                "answer": question.answer,
                "question_type": f"{span}_{question.kind}",
                "episodes": list(range(1, len(episodes) + 1)),
                "campaign": CAMPAIGN,
            }
            for question in questions
        ]
    return result


def write(episodes: Sequence[Episode]) -> str:
    many = len(episodes) > 1
    head = [
        f"What follows {'are the transcripts of episodes' if many else 'is the transcript of an episode'} of "
        f"a role-playing game, each between the lines {START} and {END}. A question about "
        f"{'them' if many else 'it'} comes after that. A roll is a line in which a player tells the result "
        "of a die; a spell is cast when a player says that they cast or use it. Count exactly, do not "
        "estimate. Return the final answer in \\boxed{}.",
        "",
        f"{v.MASTER} is the game master.",
        *(f"{player} plays the character {character}." for player, character in v.PLAYERS.items()),
        "",
    ]
    body = [line for episode in episodes for line in (START, *episode.lines, END)]
    return "\n".join([*head, *body])


# ---- episodes


def make_episode(rng: random.Random, chars: int) -> Episode:
    """An episode of about `chars` characters, with at least two different spells of some character."""
    lines: list[str] = []
    events: list[Event] = []
    size = 0
    while size < chars:
        beat, event = _beat(rng)
        lines += beat
        size += sum(len(line) + 1 for line in beat)
        if event is not None:
            events.append(event)
    return Episode(tuple(lines), tuple(events))


def _beat(rng: random.Random) -> tuple[list[str], Event | None]:
    """A few lines, and what happened in them."""
    player, character = rng.choice(list(v.PLAYERS.items()))
    luck = rng.random()
    if luck < 0.16:
        return _roll(rng, player, character)
    if luck < 0.24:
        spell = rng.choice(v.SPELLS)
        foe = rng.choice(v.FOES)
        said = rng.choice(
            (
                f"I cast {spell}.",
                f"I am going to use {spell} on the {foe}.",
                f"Then I cast {spell} at the {foe}!",
            )
        )
        return [f"{player}: {said}"], Event("spell", character, spell)
    if luck < 0.45:
        return [f"{v.MASTER}: {_fill(rng, rng.choice(v.NARRATION))}"], None
    return [f"{player}: {_fill(rng, rng.choice(v.CHATTER))}"], None


def _roll(rng: random.Random, player: str, character: str) -> tuple[list[str], Event]:
    skill, die = rng.choice(v.SKILLS), rng.randint(1, 20)
    total = die + rng.randint(0, 7)
    if die in (1, 20):
        told = f"Natural {die}! With my bonus {total} for {skill}."
    else:
        told = rng.choice(
            (f"I rolled a {total} for {skill}.", f"{skill.capitalize()} is a {total} in total.")
        )
    asked = rng.choice((f"{character}, make a check for {skill}.", f"Give me {skill}, {character}."))
    return [f"{v.MASTER}: {asked}", f"{player}: {told}"], Event("roll", character, skill, die)


def _fill(rng: random.Random, template: str) -> str:
    return template.format(
        foe=rng.choice(v.FOES),
        spell=rng.choice(v.SPELLS),
        skill=rng.choice(v.SKILLS),
        character=rng.choice(list(v.PLAYERS.values())),
    )


# ---- questions


def _who(rng: random.Random, events: Sequence[Event]) -> str:
    return rng.choice(sorted({event.character for event in events}))


def _ask_one(rng: random.Random, episode: Episode) -> list[Question]:
    rolls, spells = episode.rolls(), episode.spells()
    roller, caster = _who(rng, rolls), _who(rng, spells)
    own = [event.what for event in spells if event.character == caster]
    questions = [
        Question("rolls", "What is the total number of rolls in this episode?", str(len(rolls))),
        Question(
            "rolls",
            f"How many rolls does the character {roller} make in this episode?",
            str(sum(event.character == roller for event in rolls)),
        ),
        Question(
            "rolls",
            "How many rolls of natural 20 are there in this episode?",
            str(sum(event.die == 20 for event in rolls)),
        ),
        Question("spells", "How many spells are cast in this episode?", str(len(spells))),
        Question(
            "spells", f"What is the first spell that the character {caster} casts in this episode?", own[0]
        ),
        Question("spells", "What is the last spell cast in this episode?", spells[-1].what),
    ]
    skills = Counter(event.what for event in rolls).most_common(2)
    if skills[0][1] > skills[1][1]:
        questions.append(
            Question("rolls", "For which skill are the most rolls made in this episode?", skills[0][0])
        )
    if len(set(own)) > 1:  # a list of one has no comma, and so is none to the official rules
        text = (
            f"Which different spells does the character {caster} cast in this episode? "
            "Return a list separated by commas."
        )
        questions.append(Question("spells", text, ", ".join(dict.fromkeys(own))))
    return questions


def _ask_many(rng: random.Random, episodes: Sequence[Episode]) -> list[Question]:
    rolls = [event for episode in episodes for event in episode.rolls()]
    spells = [event for episode in episodes for event in episode.spells()]
    roller, caster = _who(rng, rolls), _who(rng, spells)
    which = rng.randrange(len(episodes))
    questions = [
        Question("rolls", "What is the total number of rolls across all episodes?", str(len(rolls))),
        Question(
            "rolls",
            f"How many rolls are there in the {_ORDINALS[which]} of these episodes?",
            str(len(episodes[which].rolls())),
        ),
        Question(
            "rolls",
            f"How many rolls does the character {roller} make across all episodes?",
            str(sum(event.character == roller for event in rolls)),
        ),
        Question(
            "spells",
            f"How many spells does the character {caster} cast across all episodes?",
            str(sum(event.character == caster for event in spells)),
        ),
        Question(
            "spells",
            f"What is the last spell cast in the {_ORDINALS[which]} of these episodes?",
            episodes[which].spells()[-1].what,
        ),
    ]
    first = [episode.spells()[0].what for episode in episodes]
    if len(set(first)) == len(first):
        text = (
            "What is the first spell cast in each episode? Return a list separated by commas, in the order "
            "of the episodes."
        )
        questions.append(Question("spells", text, ", ".join(first)))
    return questions
