"""Texts to copy, each from a random generator of its own.

Invariants, which the tests hold for every setting:
- a text is a function of its key (split, seed, index) and settings alone: no global random state is read or
  written, and the i-th text is the same however many are asked for;
- its length is exactly the length asked for;
- it neither begins nor ends with whitespace, and it is printable ASCII and line feeds, without `<` and `>`.

The content types, lengths and the two ways of making a text harder (an exact target length, joined
fragments) are those of the verbatim-copy suite in "Recursive Language Models: the paradigm of 2026".
"""

from __future__ import annotations

import json
import random
import string
import textwrap
import uuid
from collections.abc import Callable
from typing import Literal

from verbatim_copy import vocabulary as v

ContentType = Literal["words", "json", "csv", "codes", "mixed", "all"]
KIND_SHARES = {"words": 4, "json": 4, "csv": 4, "codes": 5, "mixed": 3}
"""How many of 20 texts of content type `all` are of each kind: 20, 20, 20, 25 and 15 %."""
DEFAULT_LENGTHS = {"words": 200, "json": 500, "csv": 500, "codes": 300, "mixed": 600}
"""Characters per text when no target length is set."""

_POOL = 4
"""Texts that fragments are sliced from."""


def kind_of(content_type: ContentType, key: str, index: int) -> str:
    """The kind of the `index`-th text: the content type itself, or for `all` one of the five kinds.

    `all` deals the kinds in blocks of 20, each block shuffled by a generator of its own, so the proportions
    hold exactly in every block and a text's kind does not depend on how many texts are asked for.
    """
    if content_type != "all":
        return content_type
    deck = [kind for kind, share in KIND_SHARES.items() for _ in range(share)]
    block, place = divmod(index, len(deck))
    random.Random(f"{key}/deck/{block}").shuffle(deck)
    return deck[place]


def generate(kind: str, key: str, *, length: int | None = None, fragment: int | None = None) -> str:
    """One text.

    Args:
        kind: `words`, `json`, `csv`, `codes` or `mixed`.
        key: names the text's random generator; equal arguments give equal texts on every machine.
        length: characters; None takes `DEFAULT_LENGTHS`.
        fragment: mean length in characters of the fragments the text is joined from; each is a random slice,
            0.5 to 1.5 times the mean long, of one of several texts. None joins nothing.
    """
    rng = random.Random(key)  # seeding with a str is by SHA-512: the same in every process
    length = DEFAULT_LENGTHS[kind] if length is None else length
    if fragment is None:
        return _cut(_write(kind, rng, length), rng, kind, length)
    # The pool's texts are long enough to slice from, however short the text asked for.
    pool_length = max(length, 2 * fragment, 100)
    pool = [_write(kind, rng, pool_length) for _ in range(_POOL)]
    pieces: list[str] = []
    size = 0
    while size < length:
        source = rng.choice(pool)
        width = max(1, round(rng.uniform(0.5, 1.5) * fragment))
        start = rng.randrange(max(1, len(source) - width + 1))
        pieces.append(source[start : start + width])
        size += len(pieces[-1])
    return _cut("".join(pieces), rng, kind, length)


def _cut(text: str, rng: random.Random, kind: str, length: int) -> str:
    """Exactly `length` characters of `text`, without whitespace at either end.

    Whitespace that a cut would leave at the end is taken out of the text, so that the length stays; more text
    is written where that leaves too little.
    """
    text = text.lstrip()
    while True:
        head = text[:length].rstrip()
        rest = text[length:].lstrip()
        if len(head) == length:
            return head
        if not rest:
            rest = _write(kind, rng, length).lstrip()
        text = head + rest


def _write(kind: str, rng: random.Random, length: int) -> str:
    """At least `length` characters of a kind."""
    if kind == "mixed":
        return _mixed(rng, length)
    return _WRITERS[kind](rng, length)


def _words(rng: random.Random, length: int) -> str:
    words: list[str] = []
    size = 0
    while size <= length:
        words.append(rng.choice(v.WORDS))
        size += len(words[-1]) + 1
    return " ".join(words)


def _json(rng: random.Random, length: int) -> str:
    """A JSON array of people; cutting it makes it end in the middle of a record."""
    records: list[str] = []
    size = 0
    while size <= length:
        first, last = rng.choice(v.FIRST_NAMES), rng.choice(v.LAST_NAMES)
        record = {
            "id": rng.randint(1000, 99999),
            "name": f"{first} {last}",
            "email": f"{first}.{last}{rng.randint(1, 99)}@{rng.choice(v.DOMAINS)}".lower(),
            "address": {
                "street": f"{rng.randint(1, 999)} {rng.choice(v.STREETS)} Street",
                "city": rng.choice(v.CITIES),
                "zip": f"{rng.randint(0, 99999):05d}",
            },
            "active": rng.random() < 0.5,
            "score": round(rng.uniform(0, 100), 2),
        }
        records.append(textwrap.indent(json.dumps(record, indent=2), "  "))
        size += len(records[-1])
    return "[\n" + ",\n".join(records) + "\n]"


def _csv(rng: random.Random, length: int) -> str:
    rows = ["order_id,product,quantity,unit_price,date,status"]
    size = len(rows[0])
    while size <= length:
        product = f"{rng.choice(v.QUALITIES)} {rng.choice(v.PRODUCTS)}"
        date = f"{rng.randint(2015, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        price = f"{rng.randint(1, 999)}.{rng.randint(0, 99):02d}"
        order = f"{rng.choice(string.ascii_uppercase)}{rng.randint(0, 999999):06d}"
        rows.append(f"{order},{product},{rng.randint(1, 500)},{price},{date},{rng.choice(v.STATUSES)}")
        size += len(rows[-1]) + 1
    return "\n".join(rows)


def _codes(rng: random.Random, length: int) -> str:
    """UUIDs and XXXX-XXXX-XXXX codes, one a line: nothing to guess a character from."""
    alphabet = string.ascii_uppercase + string.digits
    lines: list[str] = []
    size = 0
    while size <= length:
        if rng.random() < 0.5:
            lines.append(str(uuid.UUID(int=rng.getrandbits(128), version=4)))
        else:
            lines.append("-".join("".join(rng.choices(alphabet, k=4)) for _ in range(3)))
        size += len(lines[-1]) + 1
    return "\n".join(lines)


def _mixed(rng: random.Random, length: int) -> str:
    """A part of each other kind, of about equal length and in random order, a blank line between them."""
    kinds = list(_WRITERS)
    rng.shuffle(kinds)
    share = -(-length // len(kinds))
    return "\n\n".join(_cut(_WRITERS[kind](rng, share), rng, kind, share) for kind in kinds)


_WRITERS: dict[str, Callable[[random.Random, int], str]] = {
    "words": _words,
    "json": _json,
    "csv": _csv,
    "codes": _codes,
}
