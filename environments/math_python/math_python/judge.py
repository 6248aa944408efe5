"""The optional second opinion: a model that compares two final answers.

Asked only where math-verify did not find the answers equal. It sees the problem, the reference and what is in
the box, never the reasoning, so that it cannot be talked into a verdict. A call that fails or gives no
verdict raises: that is an error of the episode, not a wrong answer.
"""

from __future__ import annotations

import verifiers.v1 as vf
from verifiers.v1.judge import judge_verdict

CHOICES = ("EQUIVALENT", "DIFFERENT")

_PROMPT = """\
Compare a candidate's final answer to a math problem with the reference answer. The reference is correct: \
do not solve the problem again, and do not give credit for anything but the final answer.

The answers are equivalent if they denote the same mathematical object, or the same choice, in another \
notation: order within a set, an equal expression, an equal equation, a unit left out where the problem \
leaves no doubt. They are different if any part is missing, added, rounded where the reference is exact, \
or wrong.

Problem:
{question}

Reference answer:
{answer}

Candidate's final answer:
{response}

Reply with one line: "Verdict: EQUIVALENT" or "Verdict: DIFFERENT"."""


class MathJudgeConfig(vf.JudgeConfig):
    sampling: vf.SamplingConfig = vf.SamplingConfig(temperature=0.0)
    """Temperature 0: the same pair of answers should get the same verdict."""


class MathJudge(vf.Judge[bool, MathJudgeConfig]):
    prompt = _PROMPT

    def parse(self, response: vf.JudgeResponse[bool]) -> bool:
        return judge_verdict(response.text, CHOICES) == CHOICES[0]
