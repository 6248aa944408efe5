"""What the model is told, by mode and by kind of data.

A plain model gets the text and then the question, as in the official evaluation. An RLM gets the question and
is told that "the above data" is in its REPL: the length of its prompt does not depend on that of the text.
"""

from __future__ import annotations

_BOX = "Give the final answer inside \\boxed{}; if it is a list, separate the items by commas."
_BOX_IN_CODE = _BOX + ' In code, write a raw string, r"\\boxed{...}", so that the backslash stays.'

_IN_REPL = """\
The variable `context` holds {what}. The question is about it; where the question says "above", it means \
`context`. The answer has to be exact: go through all of the text, do not estimate from a part of it.

Question: {question}

{form}"""

_WHAT = {
    "synth": "a text: instructions, then one data point a line, with its date, the ID of its user and its "
    "content; what label a data point has, you find out from its content",
    "synth_with_labels": "a text: instructions, then one data point a line, with its date, the ID of its "
    "user, its content and its label",
    "real": "a text: instructions, then who plays which character, then the transcript of one or more "
    "episodes of a role-playing game",
}
_SYNTH_FORM = "Your answer must be in the form that the question asks for, without anything after it."

_TIPS = {
    "synth": """\
- Print the first 1,000 and the last 500 characters of `context`: they say what the labels are and how a \
line is built. Parse every line into date, user and content, and count the data points: the instructions say \
how many there are.
- If the question is about labels, let sub-LLMs classify: batches of about 50 numbered data points, all \
batches in one llm_batch call, each prompt with the labels to choose from and a form such as "number: label" \
per line. Ask only for data points that matter to the question (some users, some dates).
- Check each reply: every number is there, every label is one of the given. Ask again for what is missing.
- Questions about users and dates alone need no sub-LLM. Count with Python, never by eye.""",
    "synth_with_labels": """\
- Print the first 1,000 and the last 500 characters of `context`: they say how a line is built.
- The labels are in the text, so no sub-LLM is needed: parse every line with Python into date, user and \
label, check that you found as many data points as the instructions say there are, and count.""",
    "real": """\
- Print the first 2,000 characters of `context`: they say who plays whom and how episodes are delimited. \
Split into episodes at lines that consist of the marker alone; the instructions mention the markers too.
- Cut the part that matters into pieces of about 20,000 characters at line breaks, and send them all in one \
llm_batch call: each prompt with the mapping of players to characters, asking for one line per event (roll \
or spell, who, what, value, quoted), in order, or "none".
- Searching for words finds too much and too little: rolls are told in many ways, and spells are talked \
about without being cast.
- Merge, order and count with Python, and look again at what seems doubtful.""",
}


def prompt(question: str, mode: str, subset: str, context: str | None) -> str:
    """The root's question.

    Args:
        question: as in the data; questions of the synth sets say what form the answer has to have.
        mode: `llm`, `rlm` or `rlm_tips`.
        subset: `synth`, `synth_with_labels` or `real`.
        context: the text, for mode `llm` only.
    """
    real = subset == "real"
    if mode == "llm":
        return f"{context}\n\n{question}" + (f"\n\n{_BOX}" if real else "")
    form = _BOX_IN_CODE if real else _SYNTH_FORM
    text = _IN_REPL.format(what=_WHAT[subset], question=question, form=form)
    if mode == "rlm_tips":
        text += f"\n\n<env_tips>\n{_TIPS[subset]}\n</env_tips>"
    return text
