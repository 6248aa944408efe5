"""Texts: their length, alphabet, determinism and proportions, for every setting."""

import hashlib
import itertools
import json
import random
import re
import string
import uuid
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verbatim_copy.generate import DEFAULT_LENGTHS, KIND_SHARES, generate, kind_of

KINDS = sorted(DEFAULT_LENGTHS)
ALPHABET = set(string.ascii_letters + string.digits + string.punctuation + " \n") - set("<>")

kinds = st.sampled_from(KINDS)
keys = st.text(max_size=20)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds, keys, st.integers(1, 1500), st.none() | st.integers(1, 200))
def test_a_text_has_its_length_and_alphabet_and_no_whitespace_at_the_ends(kind, key, length, fragment):
    text = generate(kind, key, length=length, fragment=fragment)
    assert len(text) == length
    assert text == text.strip()
    assert set(text) <= ALPHABET
    assert generate(kind, key, length=length, fragment=fragment) == text


def test_no_global_random_state_is_read_or_written():
    random.seed(1)
    state = random.getstate()
    first = generate("mixed", "k", fragment=20)
    assert random.getstate() == state
    random.seed(2)
    assert generate("mixed", "k", fragment=20) == first


def test_texts_are_the_same_on_every_machine():
    """A change here changes published tasks: raise the version in the task's key with it."""
    everything = "\0".join(
        generate(kind, f"{n}", fragment=f) for kind in KINDS for n in range(5) for f in (None, 20)
    )
    assert hashlib.sha256(everything.encode()).hexdigest()[:16] == "b056d99eda65257a"


@pytest.mark.parametrize("kind", KINDS)
def test_default_lengths(kind):
    wanted = {"words": 200, "json": 500, "csv": 500, "codes": 300, "mixed": 600}
    assert len(generate(kind, "k")) == wanted[kind]


def test_each_kind_is_what_it_says():
    assert re.fullmatch(r"[a-z]+( [a-z]+)*", generate("words", "k", length=1000))
    lines = generate("csv", "k", length=2000).split("\n")[:-1]
    assert {line.count(",") for line in lines} == {5}
    for code in generate("codes", "k", length=2000).split("\n")[:-1]:
        if not re.fullmatch(r"[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}", code):
            assert str(uuid.UUID(code)) == code
    whole, _, _ = generate("json", "k", length=3000).rpartition('},\n  {\n    "id"')
    assert len(json.loads(whole + "}]")) > 5
    mixed = generate("mixed", "k")
    parts = mixed.split("\n\n")
    assert len(parts) == 4
    assert sorted(p.lstrip()[0] for p in parts if p[0] in "[o")[0] == "["  # the JSON part


def test_the_kinds_of_all_hold_their_proportions_in_every_block():
    dealt = [kind_of("all", "k", index) for index in range(200)]
    for start in range(0, 200, 20):
        assert Counter(dealt[start : start + 20]) == KIND_SHARES
    assert {k: n * 5 for k, n in KIND_SHARES.items()} == {
        "words": 20,
        "json": 20,
        "csv": 20,
        "codes": 25,
        "mixed": 15,
    }
    assert dealt[:20] != dealt[20:40]
    assert {kind_of("csv", "k", i) for i in range(30)} == {"csv"}


def test_fragments_break_words_the_more_the_shorter_they_are():
    known = {word for n in range(40) for word in generate("words", str(n), length=2000).split()}

    def whole(fragment: int | None) -> float:
        words = generate("words", "k", length=4000, fragment=fragment).split()
        return sum(word in known for word in words) / len(words)

    shares = [whole(fragment) for fragment in (None, 200, 60, 20, 5)]
    assert shares[0] > 0.99
    assert shares == sorted(shares, reverse=True)
    assert shares[3] < 0.8


def test_fragments_are_half_to_one_and_a_half_times_their_mean_long(monkeypatch):
    """The pool's texts are replaced by runs of one letter each, so that a fragment can be seen."""
    letters = iter("abcd" * 50)
    monkeypatch.setattr("verbatim_copy.generate._write", lambda kind, rng, length: next(letters) * length)
    text = generate("words", "k", length=4000, fragment=20)
    runs = [len(list(run)) for _, run in itertools.groupby(text)]
    # Two neighbouring fragments of one letter make one run, so single fragments are the runs up to 30.
    assert min(runs[:-1]) >= 10
    singles = [run for run in runs[:-1] if run <= 30]
    assert max(singles) > 27
    assert 18 < sum(singles) / len(singles) < 22
