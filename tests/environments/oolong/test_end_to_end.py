"""The suite under the real harness: an RLM that counts by code and by sub-LLMs, and a plain model."""

import json
import re

import pytest
from oolong import mini
from oolong.taskset import OolongConfig, OolongTaskset

from rlm_env.repl import client as repl_client
from tests.environments.episodes import run
from tests.fakes.policies import SUB, fence, is_sub, script

PARSE = (
    "import re\n"
    r"points = re.findall(r'^Date: (.+?) \|\| User: (\d+) \|\| Instance: (.*?)(?: \|\| Label: (.*))?$', "
    "context, re.M)\n"
)


def counting(question: str) -> str:
    """Code that answers a question of the kinds below from labelled points."""
    label = re.search(r"classified as label '([^']+)'", question)
    if label is not None and "Consider only" not in question:
        return f"value = sum(p[3] == {label[1]!r} for p in points)\nform = 'Answer: %s'"
    if "which user has the most" in question:
        return (
            "from collections import Counter\n"
            "value = Counter(p[1] for p in points).most_common(1)[0][0]\nform = 'User: %s'"
        )
    return "value, form = 'unknown', 'Answer: %s'"


async def test_two_million_characters_cross_once_and_never_reach_the_root(monkeypatch):
    """The same question about 1k and 2M characters: the root's prompt is the same but for the length that
    the harness tells, and the text goes over the worker's pipe once."""
    written: list[int] = []
    write = repl_client.Worker.write

    async def spy(self, *frames):
        written.append(sum(map(len, frames)))
        return await write(self, *frames)

    monkeypatch.setattr(repl_client.Worker, "write", spy)

    def policy(request):
        if request.turn == 0:
            return fence(PARSE + "print(len(context), len(points))")
        if request.turn == 1:
            return fence(counting(request.first_user) + "\nprint(value)")
        return fence('answer["content"] = form % value\nanswer["ready"] = True')

    prompts, crossed, rewards = {}, {}, {}
    for length in (256, 524288):
        written.clear()
        taskset = {"id": "oolong", "split": "mini", "subset": "synth_with_labels", "num_tasks": 6}
        traces, server = await run(
            {**taskset, "context_lens": [length], "datasets": ["mini_messages"]}, policy
        )
        crossed[length] = sum(written) / len(traces)
        prompts[length] = sum(len(json.dumps(request.body)) for request in server.requests) / len(traces)
        rewards[length] = sum(trace.reward for trace in traces)
        for trace in traces:
            assert trace.metrics["root_turns"] == 3
            assert trace.metrics["repl_errors"] == 0
            assert len(json.dumps(trace.to_record())) < 60_000
            assert str(trace.task.data.context_chars) in server_text(server)
    text = mini.rows("synth")[-1]["context_window_text_with_labels"].encode()
    assert len(text) > 2_000_000
    assert len(text) < crossed[524288] < len(text) + 20_000
    assert prompts[524288] < prompts[256] + 1000
    assert rewards[524288] == 2  # the two questions that the policy can do


def server_text(server) -> str:
    return json.dumps([request.body for request in server.requests])


async def test_an_rlm_classifies_with_sub_llms():
    """Without labels the root asks sub-LLMs, and only they see content."""
    taskset = {"id": "oolong", "split": "mini", "mode": "rlm_tips", "num_tasks": None}
    taskset |= {"datasets": ["mini_messages"], "context_lens": [256]}

    def policy(request):
        if is_sub(request):
            spam = re.search(r"\d{5}|!!|Hot singles", request.first_user.removeprefix(SUB))
            return "spam" if spam else "ham"
        if request.turn == 0:
            return fence(PARSE + f"labels = llm_batch([{SUB!r} + p[2] for p in points])\nprint(len(labels))")
        pair = re.search(r"is label '(\w+)' more common than label '(\w+)'", request.first_user)
        a, b = pair.groups() if pair else ("ham", "spam")
        return fence(
            f"a, b = labels.count({a!r}), labels.count({b!r})\n"
            "found = 'more common than' if a > b else 'less common than' if a < b else 'same frequency as'\n"
            f"answer['content'] = 'Answer: {a} is ' + found + ' {b}'\nanswer['ready'] = True"
        )

    traces, server = await run(taskset, policy)
    (trace,) = [trace for trace in traces if "is label" in trace.task.data.question]
    assert trace.reward == 1
    text = mini.rows("synth")[trace.task.data.index]["context_window_text"]
    contents = re.findall(r"Instance: (.*)", text)
    assert trace.metrics["sub_calls"] == len(contents) > 5
    of_root = [json.dumps(request.messages) for request in server.requests if not is_sub(request)]
    assert not any(content in messages for content in contents for messages in of_root)


async def test_a_plain_model_gets_the_text_and_the_same_tasks():
    taskset = {"id": "oolong", "split": "mini", "subset": "all", "max_context_len": 1024, "num_tasks": 8}
    tasks = list(OolongTaskset(OolongConfig(**taskset, mode="llm")))
    known = {task.data.prompt: task.data for task in tasks}

    def policy(request):
        data = known[request.first_user]
        assert len(request.first_user) > data.context_chars
        gold = data.answer.strip("[]'")
        day = re.fullmatch(r"datetime\.date\((\d+), (\d+), (\d+)\)", gold)
        gold = "/".join((day[2], day[3], day[1])) if day else gold
        return f"\\boxed{{{gold}}}" if data.subset == "real" else f"I counted.\nAnswer: {gold}"

    plain, server = await run({**taskset, "mode": "llm"}, policy, harness={"scaffold": "llm"})
    assert [trace.reward for trace in plain] == [1.0] * 8
    assert len(server.requests) == 8
    rlm, _ = await run(taskset, script(fence("answer['content'] = 'no'\nanswer['ready'] = True")))
    assert [trace.task.key for trace in plain] == [trace.task.key for trace in rlm]
    assert max(trace.reward for trace in rlm) == 0


async def test_a_spy_finds_no_reference_outside_the_text():
    """Everything that the REPL can reach is searched for the reference: variables, environment, files."""
    taskset = {"id": "oolong", "split": "mini", "subset": "real", "max_context_len": 5000, "num_tasks": 2}
    secret = "Zanthor's Unspoken Spell"
    tasks = OolongTaskset(OolongConfig(**taskset))
    look = (
        "import os, pathlib\n"
        "mine = {k: v for k, v in globals().items() if k not in ('context', 'seen')}\n"
        "seen = [repr(mine), repr(os.environ)]\n"
        "for path in pathlib.Path('.').rglob('*'):\n"
        "    seen += [str(path), path.read_text(errors='replace') if path.is_file() else '']\n"
        "answer['content'] = '\\n'.join(seen)\nanswer['ready'] = True"
    )
    original = OolongTaskset.load
    try:
        OolongTaskset.load = lambda self: [  # type: ignore[method-assign]
            task.with_data(answer=secret) for task in original(self)
        ]
        traces, server = await run(taskset, script(fence(look)))
    finally:
        OolongTaskset.load = original  # type: ignore[method-assign]
    assert len(list(tasks)) == len(traces) == 2
    for trace in traces:
        assert trace.task.data.answer == secret
        assert "PATH" in (trace.root_reply or "")
        assert "Zanthor" not in (trace.root_reply or "")
    assert "Zanthor" not in server_text(server)


@pytest.mark.parametrize("mode", ["rlm", "rlm_tips"])
async def test_the_root_prompt_is_small(mode):
    taskset = {"id": "oolong", "split": "mini", "subset": "real", "num_tasks": 3, "mode": mode}
    traces, server = await run(taskset, script(fence("answer['content'] = '0'\nanswer['ready'] = True")))
    assert len(traces) == 3
    assert max(len(json.dumps(request.body)) for request in server.requests) < 12_000
