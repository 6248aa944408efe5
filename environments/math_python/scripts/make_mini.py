"""Write math_python/data/mini.jsonl: 120 problems in the schema of INTELLECT-3-RL's math subset.

Run `python environments/math_python/scripts/make_mini.py`; the output is the same every time. Each family
below makes ten problems from seeded parameters and computes the answer with sympy or by exact enumeration;
the parameters are kept in `info`, so that the tests recompute every answer in another way.

The difficulty columns hold a nominal figure per family (easy 0.875, medium 0.5, hard 0.125): no model was
measured on these problems.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sympy as sp

OUT = Path(__file__).parents[1] / "math_python" / "data" / "mini.jsonl"
PER_FAMILY = 10
x, y, n = sp.symbols("x y n", real=True)

Problem = tuple[str, Any, dict[str, Any]]
"""Question, answer (LaTeX text or a sympy object), parameters."""


def latex(value: Any) -> str:
    return sp.latex(value, ln_notation=True)  # math-verify reads log as the logarithm to base 10


def modular_power(rng: random.Random) -> Problem:
    base, exponent, modulus = rng.randint(2, 60), rng.randint(500, 9000), rng.randint(700, 9999)
    question = f"What is the remainder when ${base}^{{{exponent}}}$ is divided by ${modulus}$?"
    return question, pow(base, exponent, modulus), {"base": base, "exponent": exponent, "modulus": modulus}


def divisor_sum(rng: random.Random) -> Problem:
    limit, divisor = rng.randint(2000, 9000), rng.choice([3, 4, 5, 6, 7, 8, 9])
    total = sum(
        k for k in range(1, limit) if math.gcd(k, limit) == 1 and sum(map(int, str(k))) % divisor == 0
    )
    question = (
        f"Find the sum of all positive integers less than ${limit}$ that are relatively prime to ${limit}$ "
        f"and whose decimal digits add up to a multiple of ${divisor}$."
    )
    return question, total, {"limit": limit, "divisor": divisor}


def lattice_paths(rng: random.Random) -> Problem:
    width, height = rng.randint(5, 10), rng.randint(5, 10)
    px, py = rng.randint(1, width - 1), rng.randint(1, height - 1)
    total = math.comb(width + height, width)
    through = math.comb(px + py, px) * math.comb(width + height - px - py, width - px)
    question = (
        f"How many paths lead from $(0,0)$ to $({width},{height})$ in unit steps to the right or up without "
        f"passing through the point $({px},{py})$?"
    )
    return question, total - through, {"width": width, "height": height, "px": px, "py": py}


def dice_probability(rng: random.Random) -> Problem:
    dice, sides = rng.choice([(3, 6), (4, 6), (3, 8), (3, 10), (5, 6)])
    target = rng.randint(dice + 2, dice * sides - 2)
    counts = {0: 1}
    for _ in range(dice):
        counts = {
            total: sum(counts.get(total - face, 0) for face in range(1, sides + 1))
            for total in range(max(counts) + sides + 1)
        }
    question = (
        f"{dice} fair dice, each with sides numbered $1$ to ${sides}$, are rolled. What is the probability "
        f"that the numbers rolled add up to exactly ${target}$? Give a fraction in lowest terms."
    )
    answer = sp.Rational(counts[target], sides**dice)
    return question, answer, {"dice": dice, "sides": sides, "target": target}


def telescoping_sum(rng: random.Random) -> Problem:
    step, last = rng.randint(1, 4), rng.randint(8, 60)
    k = sp.symbols("k", integer=True)
    answer = sp.summation(1 / (k * (k + step)), (k, 1, last))
    question = (
        rf"Evaluate $\displaystyle\sum_{{k=1}}^{{{last}}} \frac{{1}}{{k(k+{step})}}$ as a single fraction."
    )
    return question, sp.Rational(answer), {"step": step, "last": last}


def definite_integral(rng: random.Random) -> Problem:
    power, scale = rng.randint(1, 3), rng.randint(2, 5)
    kind = rng.choice(["exp", "log", "sin"])
    integrand, low, high = {
        "exp": (x**power * sp.exp(-x / scale), 0, scale),
        "log": (x**power * sp.log(x), 1, scale),
        "sin": (x**power * sp.sin(scale * x), 0, sp.pi),
    }[kind]
    answer = sp.factor_terms(sp.expand(sp.integrate(integrand, (x, low, high))))
    limits = rf"\int_{{{low}}}^{{{sp.latex(high)}}}"
    question = rf"Find the exact value of $\displaystyle{limits} {latex(integrand)}\,dx$."
    return question, answer, {"kind": kind, "power": power, "scale": scale}


def radical_form(rng: random.Random) -> Problem:
    while True:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        radicand = a + b
        if a != b and not sp.sqrt(a * b).is_rational:
            break
    question = (
        rf"Write $\sqrt{{{radicand} + 2\sqrt{{{a * b}}}}} + \frac{{1}}{{\sqrt{{{a}}} - \sqrt{{{b}}}}}$ "
        "without nested roots and with rational denominators."
    )
    answer = sp.radsimp(sp.sqrt(a) + sp.sqrt(b) + 1 / (sp.sqrt(a) - sp.sqrt(b)))
    return question, sp.expand(answer), {"a": a, "b": b}


def polynomial_roots(rng: random.Random) -> Problem:
    roots = rng.sample(range(-9, 10), rng.choice([2, 3]))
    extra = rng.randint(1, 9)  # an irreducible factor: not every root is real
    polynomial = sp.expand(sp.prod([x - root for root in roots]) * (x**2 + extra))
    question = f"Find the set of all real numbers $x$ with ${sp.latex(polynomial)} = 0$. Give it as a set."
    listed = ", ".join(map(str, sorted(roots)))
    return question, rf"\{{{listed}\}}", {"roots": sorted(roots), "extra": extra}


def rational_inequality(rng: random.Random) -> Problem:
    low, middle, high = sorted(rng.sample(range(-12, 13), 3))
    sign = rng.choice(["<", ">"])
    expression = sp.Mul(x - low, x - high, evaluate=False)
    question = (
        rf"Solve the inequality $\displaystyle\frac{{{sp.latex(sp.expand(expression))}}}"
        rf"{{{sp.latex(x - middle)}}} {sign} 0$ for real $x$. Give the solution in interval notation."
    )
    positive = rf"({low}, {middle}) \cup ({high}, \infty)"
    negative = rf"(-\infty, {low}) \cup ({middle}, {high})"
    answer = positive if sign == ">" else negative
    return question, answer, {"low": low, "middle": middle, "high": high, "sign": sign}


def closed_form(rng: random.Random) -> Problem:
    a, b, c = rng.randint(1, 6), rng.randint(-6, 6), rng.randint(1, 9)
    k = sp.symbols("k", integer=True)
    term = a * k**2 + b * k + c
    answer = sp.factor(sp.summation(term, (k, 1, n)))
    total = rf"\sum_{{k=1}}^{{n}} \left({sp.latex(term)}\right)"
    question = rf"Find a closed form, in terms of $n$, for $\displaystyle{total}$."
    return question, answer, {"a": a, "b": b, "c": c}


def tangent_line(rng: random.Random) -> Problem:
    coefficients = [
        rng.choice([-3, -2, -1, 1, 2, 3]),
        rng.randint(-5, 5),
        rng.randint(-7, 7),
        rng.randint(-9, 9),
    ]
    point = rng.choice([-2, -1, 1, 2, 3])
    curve = sum(c * x**power for power, c in zip((3, 2, 1, 0), coefficients, strict=True))
    slope, height = sp.diff(curve, x).subs(x, point), curve.subs(x, point)
    question = (
        f"Find the equation of the tangent line to the curve $y = {sp.latex(curve)}$ at $x = {point}$. "
        "Give it in the form $y = mx + b$."
    )
    answer = f"y = {sp.latex(sp.expand(slope * (x - point) + height))}"
    return question, answer, {"coefficients": coefficients, "point": point}


def linear_system(rng: random.Random) -> Problem:
    while True:
        a, b, c, d = (rng.choice([-7, -5, -4, -3, -2, 2, 3, 4, 5, 7]) for _ in range(4))
        e, f = rng.randint(-20, 20), rng.randint(-20, 20)
        if a * d - b * c not in (0, 1, -1):
            break
    solution = sp.solve([a * x + b * y - e, c * x + d * y - f], [x, y])
    question = (
        f"Solve the system ${sp.latex(a * x + b * y)} = {e}$, ${sp.latex(c * x + d * y)} = {f}$. "
        "Give the solution as an ordered pair $(x, y)$."
    )
    answer = rf"\left({sp.latex(solution[x])}, {sp.latex(solution[y])}\right)"
    return question, answer, {"matrix": [[a, b], [c, d]], "right": [e, f]}


FAMILIES: dict[str, tuple[Callable[[random.Random], Problem], str, float]] = {
    "modular_power": (modular_power, "integer", 0.875),
    "divisor_sum": (divisor_sum, "integer", 0.125),
    "lattice_paths": (lattice_paths, "integer", 0.875),
    "dice_probability": (dice_probability, "fraction", 0.5),
    "telescoping_sum": (telescoping_sum, "fraction", 0.875),
    "definite_integral": (definite_integral, "expression", 0.5),
    "radical_form": (radical_form, "expression", 0.5),
    "polynomial_roots": (polynomial_roots, "set", 0.875),
    "rational_inequality": (rational_inequality, "interval", 0.5),
    "closed_form": (closed_form, "expression", 0.5),
    "tangent_line": (tangent_line, "equation", 0.875),
    "linear_system": (linear_system, "tuple", 0.875),
}
"""Problem maker, kind of answer, nominal solve rate."""


def rows() -> list[dict[str, Any]]:
    """All rows, families in turn, so that the first n hold every kind."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for family, (make, kind, rate) in FAMILIES.items():
        rng = random.Random(f"math-python-mini/{family}")
        made: dict[str, dict[str, Any]] = {}
        while len(made) < PER_FAMILY:
            question, answer, parameters = make(rng)
            info = {"source": "math-python-mini", "family": family, "kind": kind, "parameters": parameters}
            made[question] = {
                "question": question,
                "answer": answer if isinstance(answer, str) else latex(sp.sympify(answer)),
                "info": json.dumps(info),
                "avg@8_qwen3_4b_thinking_2507": rate,
                "avg@8_qwen3_4b_instruct_2507": max(0.0, rate - 0.125),
            }
        by_family[family] = list(made.values())
    return [by_family[family][index] for index in range(PER_FAMILY) for family in FAMILIES]


def main() -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows()]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{OUT}: {len(lines)} problems")


if __name__ == "__main__":
    main()
