"""The official rules, reply by reply: expected scores are written from the rules, not from this code.

Rules: `src/eval/eval_helpers.py` of abertsch72/oolong, restated in `oolong.scoring`.
"""

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oolong import scoring

LABEL, NUMERIC, DATE = "ANSWER_TYPE.LABEL", "ANSWER_TYPE.NUMERIC", "ANSWER_TYPE.DATE"
COMPARISON, USER, MONTH = "ANSWER_TYPE.COMPARISON", "ANSWER_TYPE.USER", "ANSWER_TYPE.MONTH_YEAR"
DAY = "[datetime.date(2023, 2, 14)]"

SYNTH = [
    # No colon, shorter than 20 characters: the whole reply.
    ("['ham']", LABEL, "ham", 1),
    ("['ham']", LABEL, "spam", 0),
    ("['ham']", LABEL, "Ham", 0),  # letter case counts
    ("['ham']", LABEL, "ham.", 0),  # so does punctuation
    ("['ham']", LABEL, "it is ham", 0),
    ("['ham']", LABEL, "**ham**", 0),  # marks are taken out only after a colon
    ("['ham']", LABEL, "[ham]", 0),
    ("['ham']", LABEL, "", 0),
    ("[12]", NUMERIC, "12", 1),
    ("[10432]", USER, "10432", 1),
    ("['numeric value']", LABEL, "numeric value", 1),
    # No colon, 20 characters or longer: the last word.
    ("['ham']", LABEL, "The most common label is ham", 1),
    ("['ham']", LABEL, "The most common label is ham.", 0),
    ("['numeric value']", LABEL, "The most common label is numeric value", 0),
    ("[12]", NUMERIC, "There are altogether 12", 1),
    ("[12]", NUMERIC, "There are altogether 12 of them", 0),
    ("['ham']", LABEL, "1234567890123456 ham", 1),  # exactly 20 characters
    ("['ham']", LABEL, "123456789012345 ham", 0),  # exactly 19: the whole reply
    ("['ham']", LABEL, " " * 25, 0),  # on this the official code fails
    # With a colon: after the last one, stripped, without * [ ].
    ("['ham']", LABEL, "Label: ham", 1),
    ("['ham']", LABEL, "Label:ham", 1),
    ("['ham']", LABEL, "Label: **ham**", 1),
    ("['ham']", LABEL, "**Label:** ham", 0),  # the blank after the marks stays
    ("['ham']", LABEL, "**Label: ham**", 1),
    ("['ham']", LABEL, "Label: [ham]", 1),
    ("['ham']", LABEL, "Label: spam\nNo, wait. Label: ham", 1),
    ("['ham']", LABEL, "Label: ham\nReason: there are more", 0),
    ("['ham']", LABEL, "Label: ham\n", 1),
    ("['ham']", LABEL, "Label: ham.", 0),
    ("['ham']", LABEL, "Label:", 0),
    ("['description and abstract concept']", LABEL, "Label: description and abstract concept", 1),
    ("['ham', 'spam']", LABEL, "Label: ham", 1),  # a tie: the first counts
    ("['ham', 'spam']", LABEL, "Label: spam", 0),
    ("[True]", LABEL, "Label: True", 1),  # labels that are no strings
    ("[10432]", USER, "User: 10432", 1),
    ("[10432]", USER, "User: 10433", 0),  # near is nothing for an ID
    ("['May 2023']", MONTH, "Answer: May 2023", 1),
    ("['May 2023']", MONTH, "Answer: may 2023", 0),
    # Comparison phrases.
    ("['more common than']", COMPARISON, "Answer: more common than", 1),
    ("['more common than']", COMPARISON, "Answer: more common", 1),
    ("['more common than']", COMPARISON, "Answer: ham is more common than spam", 1),
    ("['more common than']", COMPARISON, "Answer: ham is less common than spam", 0),
    ("['less common than']", COMPARISON, "Answer: ham is less common than spam", 1),
    ("['same frequency as']", COMPARISON, "Answer: ham is same frequency as spam", 1),
    ("['the same frequency']", COMPARISON, "Answer: ham is the same frequency before", 1),
    ("['the same frequency']", COMPARISON, "same frequency", 1),
    ("['more common than']", COMPARISON, "Answer: a is more common", 0),  # 18 characters: not mapped
    ("['more common than']", COMPARISON, "Answer: not less common but more common", 1),  # "more" first
    ("['less common than']", COMPARISON, "Answer: ham is less common; spam is more common", 0),
    ("['more common than']", COMPARISON, "ham is more common than spam", 0),  # no colon: "spam"
    ("['more common than']", COMPARISON, "more common", 1),
    ("['more common']", COMPARISON, "Answer: ham is **more common** before", 1),
    ("[12]", NUMERIC, "Answer: more common", 0),
    # Numbers: 0.75 ** |difference|.
    ("[12]", NUMERIC, "Answer: 12", 1),
    ("[12]", NUMERIC, "Answer: 13", 0.75),
    ("[12]", NUMERIC, "Answer: 11", 0.75),
    ("[12]", NUMERIC, "Answer: 10", 0.5625),
    ("[12]", NUMERIC, "13", 0.75),
    ("[0]", NUMERIC, "Answer: -4", 0.75**4),
    ("[12]", NUMERIC, "Answer: 12.0", 0),
    ("[12]", NUMERIC, "Answer: 1,200", 0),
    ("[12]", NUMERIC, "Answer: twelve", 0),
    ("[12]", NUMERIC, "Answer: 12 messages", 0),
    ("[12]", NUMERIC, "**Answer:** 13", 0.75),  # int() minds no blank
    ("[12]", NUMERIC, "Answer: " + "9" * 400, 0),
    ("[12]", NUMERIC, "Answer: " + "9" * 5000, 0),
    # Dates: what dateutil reads.
    (DAY, DATE, "Date: 02/14/2023", 1),
    (DAY, DATE, "Date: 2023-02-14", 1),
    (DAY, DATE, "Date: Feb 14, 2023", 1),
    (DAY, DATE, "Date: 14 February 2023", 1),
    (DAY, DATE, "Date: [02/14/2023]", 1),
    (DAY, DATE, "02/14/2023", 1),
    (DAY, DATE, "Date: 02/15/2023", 0),
    (DAY, DATE, "Date: Valentine's Day", 0),
    (DAY, DATE, "Date: 02/14/2023 10 am", 0),  # another time of day than midnight
    (DAY, DATE, "The date is 02/14/2023", 1),
    (DAY, DATE, "Date: ", 0),
]

REAL = [
    # Integers.
    ("84", r"\boxed{84}", 1),
    ("84", r"\boxed{\text{84}}", 1),
    ("84", r"\boxed{{84}}", 1),  # the data's own instructions write two braces
    ("84", r"The total is \boxed{83}.", 0.75),
    ("84", r"\boxed{87}", 0.75**3),
    ("84", r"\boxed{ 84 }", 1),
    ("84", r"\boxed{84} and not \boxed{12}", 1),  # the first box
    ("84", r"\boxed{12} or \boxed{84}", 0.75**72),
    ("84", r"\boxed{12} or \boxed{\text{84}}", 1),  # \text first
    ("84", "84", 0),  # a bare integer is a string
    ("84", "The total is 84", 0),
    ("84", r"\boxed{84 rolls}", 0),
    ("84", r"\boxed{84.0}", 0),
    ("84", r"\boxed{}", 0),
    ("84", r"boxed{84}", 0),
    ("84", r"\boxed{80, 84}", 0),
    ("84", "", 0),
    # Strings, without letter case.
    ("Hex", r"\boxed{Hex}", 1),
    ("Hex", r"\boxed{\text{hex}}", 1),
    ("Hex", r"\boxed{ HEX }", 1),
    ("Hex", r"\boxed{Hexes}", 0),
    ("Hex", "hex", 1),  # a bare string is compared whole
    ("Hex", "It is Hex", 0),
    ("Hex", r"\boxed{Hex, Shield}", 0),
    ("Hex", r"\boxed{7}", 0),
    # Lists: recall alone, letter case counts.
    ("Hex, Shield", r"\boxed{Hex, Shield}", 1),
    ("Hex, Shield", r"\boxed{\text{Shield, Hex}}", 1),
    ("Hex, Shield", r"\boxed{Shield,Hex,}", 1),
    ("Hex, Shield", r"\boxed{Hex, Fireball}", 0.5),
    ("Hex, Shield", r"\boxed{Hex, Shield, Fireball, Fly}", 1),  # naming everything scores 1
    ("Hex, Shield", r"\boxed{hex, Shield}", 0.5),
    ("Hex, Shield", r"\boxed{Hex}", 0),  # a string against a list
    ("Hex, Shield", "Hex, Shield", 0),  # no box: a string
    ("Hex, Shield", r"\boxed{\text{Hex}, \text{Shield}}", 0),  # cut at the first brace
    ("Hex, Shield, Hex", r"\boxed{Hex, Shield, Hex}", 2 / 3),  # of sets, by the gold's full length
]


def test_there_are_replies_enough():
    assert len(SYNTH) + len(REAL) >= 60
    assert len({(answer, reply) for answer, _, reply, _ in SYNTH}) == len(SYNTH)
    assert len({(answer, reply) for answer, reply, _ in REAL}) == len(REAL)


@pytest.mark.parametrize(("answer", "answer_type", "reply", "expected"), SYNTH)
def test_synth(answer, answer_type, reply, expected):
    assert scoring.synth_score(answer, answer_type, reply) == pytest.approx(expected)


@pytest.mark.parametrize(("answer", "reply", "expected"), REAL)
def test_real(answer, reply, expected):
    assert scoring.real_score(answer, reply) == pytest.approx(expected)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([r"\boxed", "{", "{", "}", "}", r"\text", "a", "\n", r"\boxed{\text{"])).map(
        "".join
    )
)
def test_boxes_are_found_where_the_official_patterns_find_them(reply):
    official = re.search(r"\\boxed\{\\text\{([^}]*)\}\}", reply) or re.search(
        r"\\boxed[\{]+([^}]*)[\}]+", reply
    )
    assert scoring.boxed(reply) == (official and official[1])


@pytest.mark.parametrize(
    "reply",
    [r"\boxed{" * 150_000, r"\boxed{\text{" * 80_000 + "}", r"\boxed{\text{}" * 80_000, ":" * 1_000_000],
    ids=["open", "closed-once", "half-closed", "colons"],
)
def test_a_reply_made_to_be_slow_does_not_hold_the_host_up(reply):
    """An answer variable may hold a million characters. Work that grows with their square takes hours."""
    started = time.process_time()
    for rule in (scoring.real_score, scoring.hardened_real_score):
        rule("84", reply)
    for rule in (scoring.synth_score, scoring.hardened_synth_score):
        rule(DAY, DATE, reply)
        rule(DAY, DATE, "Date: " + "1 " * 500_000)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("answer", "reply", "expected"),
    [
        ("84", "84", 1),
        ("84", "**83**", 0.75),
        ("84", "The total is 84", 0),
        ("84", r"\boxed{82}", 0.5625),
        ("Hex", "hex", 1),
        ("Hex, Shield", r"\boxed{Hex, Shield}", 1),
        ("Hex, Shield", r"\boxed{hex, shield}", 1),
        ("Hex, Shield", "Shield, Hex", 1),
        ("Hex, Shield", r"\boxed{Hex}", 2 / 3),  # recall 1/2, precision 1
        ("Hex, Shield", r"\boxed{Hex, Shield, Fireball, Fly}", 2 / 3),  # recall 1, precision 1/2
        ("Hex, Shield", r"\boxed{Fireball, Fly}", 0),
        ("Hex, Shield", r"\boxed{Hex, Hex, Hex, Shield}", 1),
        ("Hex, Shield", r"\boxed{7}", 0),
        ("Hex, Shield", "", 0),
    ],
)
def test_hardened_real(answer, reply, expected):
    assert scoring.hardened_real_score(answer, reply) == pytest.approx(expected)


def test_naming_everything_pays_officially_and_not_when_hardened():
    gold = "Hex, Shield"
    everything = "\\boxed{" + ", ".join(["Hex", "Shield", *(f"Spell {n}" for n in range(98))]) + "}"
    assert scoring.real_score(gold, everything) == 1
    assert scoring.hardened_real_score(gold, everything) < 0.05


@pytest.mark.parametrize(
    ("answer", "answer_type", "reply", "expected"),
    [
        ("['ham', 'spam']", LABEL, "Label: spam", 1),
        ("['ham', 'spam']", LABEL, "Label: eggs", 0),
        ("[12]", NUMERIC, "Answer: 13", 0.75),
        ("['more common than']", COMPARISON, "Answer: ham is more common than spam", 1),
        (DAY, DATE, "Date: 02/14/2023", 1),
        (DAY, DATE, "Date: Feb 14, 2023", 1),
        (DAY, DATE, "Date: 02/13/2023", 0),
        ("[datetime.date(2023, 2, 13), datetime.date(2023, 2, 14)]", DATE, "Date: 02/14/2023", 1),
    ],
)
def test_hardened_synth(answer, answer_type, reply, expected):
    assert scoring.hardened_synth_score(answer, answer_type, reply) == pytest.approx(expected)


def test_a_partial_date_is_today_officially_and_nothing_when_hardened():
    """dateutil takes what is missing from today's date."""
    from datetime import date

    while True:
        today = date.today()
        answer = f"[{today!r}]"
        official = scoring.synth_score(answer, DATE, f"Date: {today.day}")
        if date.today() == today:  # not over midnight
            break
    assert official == 1
    for partial in (f"{today.day}", f"{today:%B %d}", f"{today:%Y}", f"{today:%Y-%m}", ""):
        assert scoring.hardened_synth_score(answer, DATE, f"Date: {partial}") == 0


@pytest.mark.parametrize("answer", ["ham", "[]", "[datetime.date(2023, 2)]", "12", "", "[ham]"])
def test_a_broken_reference_is_an_error_not_a_zero(answer):
    with pytest.raises(ValueError, match="the answer"):
        scoring.synth_score(answer, LABEL, "ham")
