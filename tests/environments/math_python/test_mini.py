"""Every answer of the mini split, computed again in another way than the script that made it did."""

import importlib.util
import itertools
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
from math_python.data import read_mini
from math_python.verify import Verdict, shared_pool
from scipy import integrate

SCRIPT = Path(__file__).parents[3] / "environments/math_python/scripts/make_mini.py"
ROWS = [row | json.loads(row["info"]) for row in read_mini()]


def of(family: str) -> list[tuple[dict, str]]:
    return [(row["parameters"], row["answer"]) for row in ROWS if row["family"] == family]


def latex(text: str):
    from math_verify import parse

    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)[0]


def test_the_file_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location("make_mini", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.rows() == list(read_mini())


def test_there_are_many_problems_of_many_kinds():
    assert len(ROWS) == 120
    assert len({row["question"] for row in ROWS}) == 120
    kinds = Counter(row["kind"] for row in ROWS)
    assert set(kinds) == {"integer", "fraction", "expression", "set", "interval", "equation", "tuple"}
    assert min(kinds.values()) >= 10
    assert len({row["kind"] for row in ROWS[:12]}) == 7  # the first n hold every kind


async def test_every_answer_is_read_and_equals_itself():
    for row in ROWS:
        assert await shared_pool().compare(row["answer"], row["answer"], seconds=10) is Verdict.EQUAL, row


async def test_no_answer_equals_the_next_one_of_its_family():
    by_family = [
        list(group)
        for _, group in itertools.groupby(sorted(ROWS, key=lambda r: r["family"]), lambda r: r["family"])
    ]
    for rows in by_family:
        for one, other in itertools.pairwise(rows):
            if one["answer"] != other["answer"]:
                verdict = await shared_pool().compare(one["answer"], other["answer"], seconds=10)
                assert verdict is Verdict.DIFFERENT, (one, other)


def test_integers():
    for p, answer in of("modular_power"):
        value = 1
        for _ in range(p["exponent"]):
            value = value * p["base"] % p["modulus"]
        assert int(answer) == value
    for p, answer in of("divisor_sum"):
        factors = sp.factorint(p["limit"])
        coprime = [k for k in range(1, p["limit"]) if all(k % f for f in factors)]
        assert int(answer) == sum(k for k in coprime if sum(int(d) for d in str(k)) % p["divisor"] == 0)
    for p, answer in of("lattice_paths"):
        paths = np.zeros((p["width"] + 1, p["height"] + 1), dtype=int)
        for i, j in np.ndindex(paths.shape):
            before = int(i == j == 0) + (paths[i - 1, j] if i else 0) + (paths[i, j - 1] if j else 0)
            paths[i, j] = 0 if (i, j) == (p["px"], p["py"]) else before
        assert int(answer) == paths[-1, -1]


def test_fractions():
    for p, answer in of("dice_probability"):
        rolls = Counter(map(sum, itertools.product(range(1, p["sides"] + 1), repeat=p["dice"])))
        value = Fraction(rolls[p["target"]], p["sides"] ** p["dice"])
        assert latex(answer) == sp.Rational(value.numerator, value.denominator)
        assert answer == f"\\frac{{{value.numerator}}}{{{value.denominator}}}"  # lowest terms
    for p, answer in of("telescoping_sum"):
        value = sum(Fraction(1, k * (k + p["step"])) for k in range(1, p["last"] + 1))
        assert latex(answer) == sp.Rational(value.numerator, value.denominator)


def test_expressions():
    for p, answer in of("definite_integral"):
        power, scale = p["power"], p["scale"]
        function, low, high = {
            "exp": (lambda t: t**power * np.exp(-t / scale), 0, scale),  # noqa: B023
            "log": (lambda t: t**power * np.log(t), 1, scale),  # noqa: B023
            "sin": (lambda t: t**power * np.sin(scale * t), 0, np.pi),  # noqa: B023
        }[p["kind"]]
        assert float(latex(answer)) == pytest.approx(
            integrate.quad(function, low, high)[0], rel=1e-9, abs=1e-9
        )
    for p, answer in of("radical_form"):
        a, b = p["a"], p["b"]
        value = np.sqrt(a + b + 2 * np.sqrt(a * b)) + 1 / (np.sqrt(a) - np.sqrt(b))
        assert float(latex(answer)) == pytest.approx(value, rel=1e-12)
    for p, answer in of("closed_form"):
        closed = latex(answer)
        (symbol,) = closed.free_symbols
        for n in (1, 2, 7, 20):
            assert closed.subs(symbol, n) == sum(
                p["a"] * k * k + p["b"] * k + p["c"] for k in range(1, n + 1)
            )


def test_sets_and_intervals():
    for p, answer in of("polynomial_roots"):
        coefficients = np.polymul(np.poly(p["roots"]), [1, 0, p["extra"]])
        roots = np.roots(coefficients)
        real = sorted(round(r.real) for r in roots if abs(r.imag) < 1e-6)
        assert set(latex(answer)) == set(real)
    for p, answer in of("rational_inequality"):
        solution = latex(answer)
        for value in np.arange(-20, 20, 0.25):
            holds = False
            if value != p["middle"]:
                quotient = (value - p["low"]) * (value - p["high"]) / (value - p["middle"])
                holds = quotient > 0 if p["sign"] == ">" else quotient < 0
            assert solution.contains(sp.Rational(str(value))) == sp.S(bool(holds)), (p, value)


def test_equations_and_pairs():
    for p, answer in of("tangent_line"):
        curve = np.poly1d(p["coefficients"])
        at, slope = p["point"], np.polyder(curve)(p["point"])
        line = latex(answer)
        assert str(line.lhs) == "y"
        (symbol,) = line.rhs.free_symbols or {sp.Symbol("x")}
        for value in (-3, 0, 5):
            assert line.rhs.subs(symbol, value) == curve(at) + slope * (value - at)
    for p, answer in of("linear_system"):
        solution = np.linalg.solve(np.array(p["matrix"], float), np.array(p["right"], float))
        inner = answer.removeprefix(r"\left(").removesuffix(r"\right)")
        assert [float(latex(part)) for part in inner.split(",")] == pytest.approx(list(solution))
