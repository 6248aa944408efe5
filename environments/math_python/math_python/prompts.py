"""What the model is told, by mode."""

from __future__ import annotations

from collections.abc import Sequence

_LLM = """\
Solve the math problem below. For calculations you can run Python code with the `python` tool{packages}. \
Explain your reasoning, then give the final answer inside \\boxed{{}}, once and in exact form unless the \
problem asks for something else."""

_RLM = """\
Solve the math problem below. Calculate with Python{packages}. Your answer must end with the result \
inside \\boxed{{}}, once and in exact form unless the problem asks for something else; in code, write it \
in a raw string, r"\\boxed{{...}}", so that the backslash stays."""

_TIPS = """\
- Prefer exact work: sympy for equations, sums, integrals and simplification, fractions.Fraction for \
rationals.
- Get the answer in two ways where you can: derive it, then check it by brute force on small cases or \
numerically.
- For a hard problem, send it to several sub-LLMs in one llm_batch call, asking each for a solution and a \
boxed result, compare the results, and decide by calculation where they differ.
- Search and enumeration can take long: start small, and mind the time limit of a call.
- Read the question once more before you declare the answer ready: does the box hold what was asked for?"""


def prompt(question: str, mode: str, packages: Sequence[str]) -> str:
    """The root's question.

    Args:
        question: the problem, as in the data.
        mode: `llm`, `rlm` or `rlm_tips`.
        packages: names of non-standard packages to tell the model about; empty tells of none.
    """
    listed = ", ".join(packages[:-1]) + " and " + packages[-1] if len(packages) > 1 else "".join(packages)
    told = f" ({listed} can be imported)" if packages else ""
    instructions = (_LLM if mode == "llm" else _RLM).format(packages=told)
    text = f"{instructions}\n\n{question}"
    if mode == "rlm_tips":
        text += f"\n\n<env_tips>\n{_TIPS}\n</env_tips>"
    return text
