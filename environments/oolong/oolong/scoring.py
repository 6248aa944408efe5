r"""How a reply is scored: pure functions of the row's answer and the reply.

`synth_score` and `real_score` are the official rules, quirks included: numbers may be compared with published
ones only if nothing is repaired here. Their source is `src/eval/eval_helpers.py` of
https://github.com/abertsch72/oolong (`synth_process_response`, `dnd_process_response`), whose rules are
restated in each docstring.

`hardened_synth_score` and `hardened_real_score` close what a trained policy exploits or is robbed by:

- an official list score is recall alone, so naming everything scores 1: F1 instead, and letter case, which
  the official rule ignores for strings, is ignored in lists too;
- an official integer or list without `\boxed{}` scores 0: it is read as if it were boxed;
- an official label, user or date that ties with others counts only if it is the first one listed: any does;
- an official date may be partial, which `dateutil` completes from today's: it has to be whole.
"""

from __future__ import annotations

import ast
import re
from datetime import datetime

from dateutil import parser as dateutil_parser

PHRASES = ("more common", "less common", "same frequency")
"""What a comparison comes down to."""
NUMERIC = "ANSWER_TYPE.NUMERIC"
DATE = "ANSWER_TYPE.DATE"

_SHORT = 20
"""Characters; a candidate shorter than this is taken as it stands."""
_BASE = 0.75
_BOXED_TEXT = "\\boxed{\\text{"
_BOXED = "\\boxed{"
_MAX_DATE = 10_000
"""Characters; dateutil takes seconds to find that more than this is no date."""
# Two days that differ in every part: what a partial date takes from its default differs too.
_DEFAULTS = (datetime(2001, 2, 3), datetime(2012, 11, 24))

RealAnswer = int | str | list[str]


# ---- synth


def parse_synth(reply: str) -> str:
    """The candidate in a reply.

    Official rule (`synth_attempt_answer_parse`): without ":" the whole reply if it is shorter than 20
    characters, else its last word. Otherwise the text after the last ":", stripped, then without `*`, `[` and
    `]`. If that is 20 characters or longer, it becomes "more common", "less common" or "same frequency", the
    first of these that it contains.

    A reply of 20 or more blanks, on which the official code fails, is the empty candidate.
    """
    if ":" not in reply:
        if len(reply) < _SHORT:
            return reply
        words = reply.split()
        return words[-1] if words else ""
    candidate = reply.split(":")[-1].strip()
    for mark in "*[]":
        candidate = candidate.replace(mark, "")
    if len(candidate) >= _SHORT:
        return next((phrase for phrase in PHRASES if phrase in candidate), candidate)
    return candidate


def synth_golds(answer: str) -> list[object]:
    """What the answer column of a row holds: str or int items, or a datetime (midnight) for dates.

    The column is a Python list as text, for example `['ham']`, `[12]` or `[datetime.date(2023, 2, 14)]`; of
    answers that tie it lists all. (On a list of several dates the official code fails.)

    Raises:
        ValueError: the text is no such list.
    """
    try:
        if "datetime" in answer:
            days = re.findall(r"datetime\.date\((\d+), (\d+), (\d+)\)", answer)
            golds: list[object] = [datetime(int(year), int(month), int(day)) for year, month, day in days]
        else:
            golds = list(ast.literal_eval(answer))
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"the answer {answer!r} is not a list as the synth data has it: {error}") from error
    if not golds:
        raise ValueError(f"the answer {answer!r} is an empty list")
    return golds


def synth_score(answer: str, answer_type: str, reply: str) -> float:
    """The official score of a reply to a synth question, in [0, 1].

    Official rule (`synth_process_response`), with the parsed candidate and the first item of the answer as
    gold, in this order:

    1. the candidate equals str(gold): 1;
    2. the candidate is one of the three comparison phrases: 1 if str(gold) contains it, else 0;
    3. ANSWER_TYPE.NUMERIC: 0.75 ** |gold - int(candidate)|, and 0 if that is no integer;
    4. ANSWER_TYPE.DATE: 1 if dateutil reads the candidate as the gold date, else 0;
    5. else 0.
    """
    return _synth_score(synth_golds(answer)[0], answer_type, parse_synth(reply))


def hardened_synth_score(answer: str, answer_type: str, reply: str) -> float:
    """`synth_score`, but a date has to be whole, and any of several tied golds counts."""
    candidate = parse_synth(reply)
    if answer_type == DATE and not _is_whole_date(candidate):
        return 0.0
    return max(_synth_score(gold, answer_type, candidate) for gold in synth_golds(answer))


def _synth_score(gold: object, answer_type: str, candidate: str) -> float:
    if candidate == str(gold):
        return 1.0
    if candidate in PHRASES:
        return float(candidate in str(gold))
    if answer_type == NUMERIC:
        try:
            return _near(int(str(gold)), int(candidate))
        except ValueError:
            return 0.0
    if answer_type == DATE:
        return float(_read_date(candidate, None) == gold)
    return 0.0


def _near(gold: int, given: int) -> float:
    try:
        return _BASE ** abs(gold - given)
    except OverflowError:  # hundreds of digits off: the power is 0 long before
        return 0.0


def _read_date(text: str, default: datetime | None) -> datetime | None:
    if len(text) > _MAX_DATE:
        return None
    try:
        return dateutil_parser.parse(text, default=default)
    except (ValueError, OverflowError, TypeError):
        return None


def _is_whole_date(text: str) -> bool:
    first, second = (_read_date(text, default) for default in _DEFAULTS)
    return first is not None and second is not None and first.date() == second.date()


# ---- real


def parse_real_answer(text: str) -> RealAnswer:
    """An integer, a list or a string.

    Official rule (`dnd_parse_answer`): an integer if int() takes it; else, with a comma in it, the list of
    its stripped, non-empty parts; else the text as it is.
    """
    try:
        return int(text)
    except ValueError:
        pass
    if "," in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def boxed(reply: str) -> str | None:
    r"""What is in the first `\boxed{\text{...}}`, else in the first `\boxed{...}`; None without either.

    Official rule (`dnd_parse_response`): no closing brace inside, and any number of braces around, since the
    data's own instructions write `\boxed{{}}`.
    """
    # The official patterns, \\boxed\{\\text\{([^}]*)\}\} and \\boxed[\{]+([^}]*)[\}]+, take hours on a
    # variable of a hundred thousand boxes that nothing closes. This finds the same without ever going back.
    start = 0
    while (start := reply.find(_BOXED_TEXT, start)) >= 0:
        start += len(_BOXED_TEXT)
        end = reply.find("}", start)
        if end < 0:
            break
        if reply.startswith("}}", end):
            return reply[start:end]
        start = end  # a box that begins before this brace ends at it too
    start = reply.find(_BOXED)
    end = reply.find("}", start)
    if start < 0 or end < 0:
        return None
    return reply[start + len(_BOXED) : end].lstrip("{")


def parse_real(reply: str) -> RealAnswer:
    """The answer in a reply: what is boxed, as int, list or string; without a box the whole reply as a
    string, and so never an integer or a list (`dnd_parse_response`)."""
    content = boxed(reply)
    return reply if content is None else parse_real_answer(content)


def real_score(answer: str, reply: str) -> float:
    """The official score of a reply to a real question, in [0, 1].

    Official rule (`dnd_process_response`), where gold and reply are of the same kind, else 0:

    - integers: 0.75 ** |difference|;
    - strings: 1 if equal but for letter case and blanks around;
    - lists: items of the gold that the reply has too (as sets, letter case counts) / length of the gold.
    """
    gold, given = parse_real_answer(answer), parse_real(reply)
    if isinstance(gold, list) and isinstance(given, list):
        return len(set(gold) & set(given)) / len(gold) if gold else 0.0
    return _same_kind_score(gold, given)


def hardened_real_score(answer: str, reply: str) -> float:
    """`real_score` with F1 in place of recall for lists, and with a bare integer or list taken as boxed.

    F1 is over sets without letter case; a single item given where a list is asked for is a list of one.
    """
    gold, content = parse_real_answer(answer), boxed(reply)
    given = parse_real_answer(reply.replace("*", "").strip() if content is None else content)
    if isinstance(gold, list):
        wanted = {item.casefold() for item in gold}
        items = given if isinstance(given, list) else [str(given)]
        named = {item.strip().casefold() for item in items}
        return 2 * len(wanted & named) / (len(wanted) + len(named)) if wanted else 0.0
    return _same_kind_score(gold, given)


def _same_kind_score(gold: RealAnswer, given: RealAnswer) -> float:
    if isinstance(gold, int) and isinstance(given, int):
        return _near(gold, given)
    if isinstance(gold, str) and isinstance(given, str):
        return float(gold.strip().lower() == given.strip().lower())
    return 0.0
