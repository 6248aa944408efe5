"""What is taken out of replies and rows."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_python.answers import boxed, reference, restore_latex


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : x > 0\right\}}", r"\left\{x : x > 0\right\}"),
        (r"first \boxed{4}, no, \boxed{5}", "5"),
        (r"\boxed{a \\ {b}}", r"a \\ {b}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        (r"\boxed{4} and \boxed{5", None),
        ("5", None),
        ("", None),
        (r"<think>\boxed{4}", None),
        (r"<think>\boxed{4}</think> it is \boxed{5}", "5"),
        (r"<think>\boxed{4}</think> no box", None),
        # From Python strings that were not raw.
        ("\boxed{\frac{\theta}{2}}", r"\frac{\theta}{2}"),
        ("\boxed{5}", "5"),
        ("\boxed{(-\\infty, 3) \\cup (4, \\infty)}", r"(-\infty, 3) \cup (4, \infty)"),
    ],
)
def test_the_last_box_is_the_answer(reply, answer):
    assert boxed(reply) == answer


def test_a_line_break_is_not_taken_for_a_command():
    assert boxed("\\boxed{\nu\n}") == "u"
    assert restore_latex("a\tb\n\tc") == "a\\tb\n\\tc"


# How long an example takes is the machine's business, and so is how long it takes to draw one.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

balanced = st.recursive(
    st.text("abc01+-^_ ", max_size=5) | st.sampled_from([r"\{", r"\}", r"\frac", r"\\"]),
    lambda inner: (
        st.tuples(inner, inner).map(lambda p: f"{p[0]}{{{p[1]}}}") | st.tuples(inner, inner).map("".join)
    ),
    max_leaves=8,
)


@untimed
@given(balanced, st.text(max_size=20).filter(lambda t: "boxed" not in t and "think" not in t))
def test_what_is_boxed_is_found(content, around):
    assert boxed(f"{around}\\boxed{{{content}}}{around}") == (restore_latex(content).strip() or None)


@untimed
@given(st.text(st.sampled_from("\\boxed{}<think>/ \b5"), max_size=60))
def test_any_text_is_read_without_an_error(text):
    answer = boxed(text)
    assert answer is None or answer == answer.strip() != ""


def test_reading_is_linear_in_the_reply():
    started = time.process_time()
    assert boxed("\\boxed{" + "{\\}" * 1_000_000) is None
    assert time.process_time() - started < 60  # the square of it would take days


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ("5", "5"),
        (" 5 ", "5"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"0 \\text{ or } 5", r"0 \text{ or } 5"),
        (r"\\{1, 2\\}", r"\{1, 2\}"),
        (r"\boxed{7}", "7"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix}a\\b\end{pmatrix}", r"\begin{pmatrix}a\\b\end{pmatrix}"),
        (r"\\begin{pmatrix}a\\\\b\\end{pmatrix}", r"\begin{pmatrix}a\\b\end{pmatrix}"),
    ],
)
def test_references_are_read_as_the_data_means_them(row, wanted):
    assert reference(row) == wanted
