"""The optional second opinion: a model that compares a reply with the reference answer.

Asked only where the rules give less than 1. It sees the question, the reference and the end of the reply,
never the context. A call that fails or gives no verdict raises: that is an error of the episode, not a wrong
answer.
"""

from __future__ import annotations

import verifiers.v1 as vf
from verifiers.v1.judge import judge_verdict

CHOICES = ("CORRECT", "INCORRECT")
SHOWN_CHARS = 2000
"""Characters of a reply that the judge is shown, counted from its end."""

_PROMPT = """\
Compare a candidate's final answer to a question about a long text with the reference answer. The reference \
is correct, and the text is not shown: do not answer the question again.

The candidate is correct if its final answer says the same as the reference, in whatever form: another date \
format, another letter case, words around it. A number has to be the same number, and a list has to have the \
same items, in any order, none missing and none added. A candidate that names several answers where one is \
asked for is incorrect.

Question:
{question}

Reference answer:
{answer}

Candidate's reply:
{response}

Reply with one line: "Verdict: CORRECT" or "Verdict: INCORRECT"."""


class OolongJudgeConfig(vf.JudgeConfig):
    sampling: vf.SamplingConfig = vf.SamplingConfig(temperature=0.0)
    """Temperature 0: the same reply should get the same verdict."""


class OolongJudge(vf.Judge[bool, OolongJudgeConfig]):
    prompt = _PROMPT

    def parse(self, response: vf.JudgeResponse[bool]) -> bool:
        return judge_verdict(response.text, CHOICES) == CHOICES[0]
