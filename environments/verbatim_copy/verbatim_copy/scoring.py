"""How a copy is scored: pure functions of the text and the reply.

The reward compares exactly, whitespace at the ends included, as the published suite does. The rule is the
same for every scaffold: a reply of a plain model and an `answer["content"]` of an RLM are compared as they
are. `matches_inside` says what the same replies earn when whitespace at the ends is not counted.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein


def exact_match(text: str, reply: str) -> float:
    """1 when the reply is the text, else 0."""
    return float(reply == text)


def matches_inside(text: str, reply: str) -> float:
    """1 when the reply without whitespace at its ends is the text without it, else 0."""
    return float(reply.strip() == text.strip())


def character_accuracy(text: str, reply: str) -> float:
    """The share of positions that hold the same character, of the longer one's length; 1 for two empty texts.

    One missing character near the start shifts all that follow: `levenshtein_similarity` does not mind that.
    """
    longest = max(len(text), len(reply))
    if longest == 0:
        return 1.0
    return sum(a == b for a, b in zip(text, reply, strict=False)) / longest


def levenshtein_similarity(text: str, reply: str) -> float:
    """1 - edit distance / the longer one's length; 1 for two empty texts (rapidfuzz)."""
    return float(Levenshtein.normalized_similarity(text, reply))
