"""Mini rows of the synth data: data points with a date, a user and a label, and questions about aggregates.

A window is a list of `Point`s, written with labels and without. Each question is a function of the points
that gives a text and its answer, or None where the points leave no single right answer (a tie).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

from oolong.mini import vocabulary as v

SETS = {
    "mini_messages": ("text messages", v.MESSAGES),
    "mini_questions": ("trivia questions", v.QUESTIONS),
    "mini_news": ("news headlines", v.NEWS),
}
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144, 524288)
"""Context lengths in tokens, of four characters each: 1k to 2M characters."""
ONE_SET_FROM = 262144
"""From this length on there is a window of one set instead of all: they take most of the time."""
CHARS_PER_TOKEN = 4
QUESTIONS_PER_WINDOW = 6
_START = date(2022, 1, 1)
_DAYS = 1200


@dataclass(frozen=True)
class Point:
    day: date
    user: int
    text: str
    label: str

    def line(self, with_label: bool) -> str:
        line = f"Date: {_shown(self.day)} || User: {self.user} || Instance: {self.text}"
        return f"{line} || Label: {self.label}" if with_label else line


@lru_cache(maxsize=2048)
def _shown(day: date) -> str:
    return f"{day:%b %d, %Y}"


@dataclass(frozen=True)
class Question:
    text: str
    answer: object
    group: str
    task: str
    answer_type: str
    subset: bool = False
    """Whether it is about part of the points."""


# ---- windows


@lru_cache(maxsize=1)
def rows() -> list[dict[str, Any]]:
    """All rows, shortest windows first; columns as in oolongbench/oolong-synth."""
    result: list[dict[str, Any]] = []
    for place, length in enumerate(LENGTHS):
        names = list(SETS)
        if length >= ONE_SET_FROM:
            names = [names[place % len(names)]]
        for name in names:
            result += _window_rows(name, length, window_id=10000 * (list(SETS).index(name) + 1) + place)
    return result


def _window_rows(name: str, length: int, window_id: int) -> list[dict[str, Any]]:
    rng = random.Random(f"oolong/mini/synth/1/{name}/{length}")  # a str seeds by SHA-512
    noun, templates = SETS[name]
    points = make_points(rng, noun, templates, length * CHARS_PER_TOKEN)
    plain, labelled = (write(noun, list(templates), points, with_label=shown) for shown in (False, True))
    return [
        {
            "id": 1000 * window_id + number,
            "context_len": length,
            "dataset": name,
            "context_window_id": window_id,
            "num_labels": len(templates),
            "context_window_text": plain,
            "context_window_text_with_labels": labelled,
            "question": question.text,
            "answer": repr([question.answer]),
            "task_group": question.group,
            "task": f"TASK_TYPE.{question.task}",
            "answer_type": f"ANSWER_TYPE.{question.answer_type}",
            "input_subset": str(question.subset),
        }
        for number, question in enumerate(ask(rng, points, first=window_id))
    ]


def write(noun: str, labels: Sequence[str], points: Sequence[Point], *, with_label: bool) -> str:
    """The text of a window, without a line break at its end."""
    count = len(points)
    lines = [
        f"Below are {count} {noun}, one a line. Each is of one of these kinds: {', '.join(labels)}.",
        "A question about all of them follows; count exactly, do not estimate.",
        "",
        *(point.line(with_label) for point in points),
        "",
        f"These were {count} {noun}.",
    ]
    return "\n".join(lines)


def make_points(
    rng: random.Random, noun: str, templates: dict[str, list[str]], chars: int
) -> tuple[Point, ...]:
    """As many points as fit into a text of `chars` characters without labels."""
    labels = list(templates)
    weights = [rng.uniform(0.4, 2.0) for _ in labels]
    rough = max(4, chars // 110)
    users = rng.sample(range(10000, 100000), min(300, max(3, rough // 30)))
    days = [_START + timedelta(days=n) for n in rng.sample(range(_DAYS), min(400, max(4, rough // 5)))]
    # One user and one day are made common, so that there is a most frequent one also among thousands.
    users += [users[0]] * 3
    days += [days[0]] * 3
    room = chars - len(write(noun, labels, (), with_label=False)) - 2 * len(str(rough * 2))
    points: list[Point] = []
    while True:
        label = rng.choices(labels, weights)[0]
        point = Point(
            day=rng.choice(days),
            user=rng.choice(users),
            text=_fill(rng, rng.choice(templates[label])),
            label=label,
        )
        room -= len(point.line(False)) + 1
        if room < 0:
            return tuple(points)
        points.append(point)


_SLOT = re.compile(r"\{(\w+)\}")


def _fill(rng: random.Random, template: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        return str(rng.randrange(10000, 100000)) if name == "number" else rng.choice(v.SLOTS[name])

    return _SLOT.sub(value, template)


# ---- questions


def ask(rng: random.Random, points: Sequence[Point], first: int) -> list[Question]:
    """Up to `QUESTIONS_PER_WINDOW` questions with one right answer, of kinds that go round from `first`."""
    turned = [_KINDS[(first + step) % len(_KINDS)] for step in range(len(_KINDS))]
    asked = (kind(rng, points) for kind in turned)
    return [question for question in asked if question is not None][:QUESTIONS_PER_WINDOW]


def _single(counts: Counter[Any], *, least: bool = False) -> Any:
    """The most (or least) frequent key; None if it ties."""
    order = sorted(counts.items(), key=lambda item: item[1], reverse=not least)
    if len(order) > 1 and order[0][1] == order[1][1]:
        return None
    return order[0][0]


def _labels(points: Sequence[Point]) -> Counter[str]:
    return Counter(point.label for point in points)


def _two(rng: random.Random, counts: Counter[str]) -> tuple[str, str] | None:
    return tuple(rng.sample(sorted(counts), 2)) if len(counts) > 1 else None  # type: ignore[return-value]


def _compare(first: float, second: float) -> str:
    return "more common" if first > second else "less common" if first < second else "same frequency"


def _extreme_label(points: Sequence[Point], word: str, task: str, least: bool) -> Question | None:
    counts = _labels(points)
    label = _single(counts, least=least)
    if label is None:
        return None
    text = (
        f"Of the labels that occur in the above data, which is the {word} common? "
        f"Give your final answer in the form 'Label: answer' where answer is one of the labels: "
        f"{', '.join(sorted(counts))}."
    )
    return Question(text, label, "counting", task, "LABEL")


def _most_label(rng: random.Random, points: Sequence[Point]) -> Question | None:
    return _extreme_label(points, "most", "MOST_FREQ", least=False)


def _least_label(rng: random.Random, points: Sequence[Point]) -> Question | None:
    return _extreme_label(points, "least", "LEAST_FREQ", least=True)


def _count_label(rng: random.Random, points: Sequence[Point]) -> Question | None:
    label = rng.choice(sorted(_labels(points)))
    text = (
        f"In the above data, how many data points should be classified as label '{label}'? "
        "Give your final answer in the form 'Answer: number'."
    )
    return Question(text, _labels(points)[label], "counting", "NUMERIC_ONE_CLASS", "NUMERIC")


def _relative_label(rng: random.Random, points: Sequence[Point]) -> Question | None:
    counts = _labels(points)
    pair = _two(rng, counts)
    if pair is None:
        return None
    a, b = pair
    verdict = _compare(counts[a], counts[b]) + (" as" if counts[a] == counts[b] else " than")
    text = (
        f"In the above data, is label '{a}' more common than label '{b}', less common, or of the same "
        f"frequency? Give your final answer in the form 'Answer: {a} is [X] {b}', where [X] is "
        "'more common than', 'less common than' or 'same frequency as'."
    )
    return Question(text, verdict, "counting", "RELATIVE_FREQ", "COMPARISON")


def _most_user(rng: random.Random, points: Sequence[Point]) -> Question | None:
    user = _single(Counter(point.user for point in points))
    if user is None:
        return None
    text = (
        "In the above data, which user has the most data points? "
        "Give your final answer in the form 'User: [X]', where [X] is the user ID."
    )
    return Question(text, user, "user", "MOST_FREQ", "USER")


def _count_of_users(rng: random.Random, points: Sequence[Point]) -> Question | None:
    users = rng.sample(sorted({point.user for point in points}), 2)
    own = [point for point in points if point.user in users]
    label = rng.choice(sorted(_labels(own)))
    text = (
        f"Consider only the data points of the users {users[0]} and {users[1]}. How many of them should be "
        f"classified as label '{label}'? Give your final answer in the form 'Answer: number'."
    )
    return Question(text, _labels(own)[label], "user", "NUMERIC_ONE_CLASS", "NUMERIC", subset=True)


def _user_with_more(rng: random.Random, points: Sequence[Point]) -> Question | None:
    a, b = rng.sample(sorted({point.user for point in points}), 2)
    label = rng.choice(sorted(_labels(points)))
    counts = Counter(point.user for point in points if point.label == label)
    if counts[a] == counts[b]:
        return None
    text = (
        f"In the above data, which user has more data points with the label '{label}': user {a} or user {b}? "
        "Give your final answer in the form 'User: [X]', where [X] is the user ID."
    )
    return Question(text, a if counts[a] > counts[b] else b, "user", "RELATIVE_FREQ", "USER", subset=True)


def _most_day(rng: random.Random, points: Sequence[Point]) -> Question | None:
    day = _single(Counter(point.day for point in points))
    if day is None:
        return None
    text = (
        "In the above data, which date occurs most often? "
        "Give your final answer in the form 'Date: [X]', where [X] is the date in the format MM/DD/YYYY."
    )
    return Question(text, day, "timeline", "MOST_FREQ", "DATE")


def _days_n_times(rng: random.Random, points: Sequence[Point]) -> Question | None:
    counts = Counter(point.day for point in points)
    times = rng.choice(sorted(set(counts.values())))
    text = (
        f"In the above data, how many dates occur exactly {times} times? "
        "Give your final answer in the form 'Answer: [X]', where [X] is the number of dates."
    )
    answer = sum(count == times for count in counts.values())
    return Question(text, answer, "timeline", "REPRESENTED_N_TIMES", "NUMERIC")


def _before_after(rng: random.Random, points: Sequence[Point]) -> Question | None:
    day = sorted(point.day for point in points)[len(points) // 2]
    before = _labels([point for point in points if point.day < day])
    after = _labels([point for point in points if point.day > day])
    if not before or not after:
        return None
    label = rng.choice(sorted(before))
    verdict = _compare(before[label] * after.total(), after[label] * before.total())
    verdict = "the same frequency" if verdict == "same frequency" else verdict
    text = (
        f"In the above data, was label '{label}' more common, less common, or of the same frequency before "
        f"{day:%B %d, %Y} as compared to after it (as a share of the data points of each side, the day "
        f"itself left out)? Give your final answer in the form 'Answer: {label} is [X] before that date', "
        "where [X] is 'more common', 'less common' or 'the same frequency'."
    )
    return Question(text, verdict, "timeline", "RELATIVE_FREQ", "COMPARISON")


def _by_month(points: Sequence[Point]) -> dict[tuple[int, int], Counter[str]]:
    months: dict[tuple[int, int], Counter[str]] = {}
    for point in points:
        months.setdefault((point.day.year, point.day.month), Counter())[point.label] += 1
    return dict(sorted(months.items()))


def _months_more(rng: random.Random, points: Sequence[Point]) -> Question | None:
    pair = _two(rng, _labels(points))
    if pair is None:
        return None
    a, b = pair
    text = (
        f"In the above data, in how many months (of a year: May 2022 and May 2023 are two) does label '{a}' "
        f"occur more often than label '{b}'? Give your final answer in the form 'Answer: [X]', where [X] is "
        "the number of months."
    )
    answer = sum(counts[a] > counts[b] for counts in _by_month(points).values())
    return Question(text, answer, "timeline", "RELATIVE_FREQ", "NUMERIC")


def _first_month(rng: random.Random, points: Sequence[Point]) -> Question | None:
    pair = _two(rng, _labels(points))
    if pair is None:
        return None
    a, b = pair
    months = [month for month, counts in _by_month(points).items() if counts[a] > counts[b]]
    if not months:
        return None
    year, month = months[0]
    text = (
        f"In the above data, in which month did label '{a}' first occur more often than label '{b}'? "
        "Give your final answer in the form 'Answer: [month] [year]', for example 'Answer: May 2020'."
    )
    return Question(text, f"{date(year, month, 1):%B %Y}", "timeline", "RELATIVE_FREQ", "MONTH_YEAR")


_KINDS: tuple[Callable[[random.Random, Sequence[Point]], Question | None], ...] = (
    _most_label,
    _most_user,
    _most_day,
    _count_label,
    _count_of_users,
    _before_after,
    _relative_label,
    _user_with_more,
    _days_n_times,
    _least_label,
    _months_more,
    _first_month,
)
