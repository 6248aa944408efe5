"""The suite under the real harness: an RLM with sub-LLMs, a plain model with a Python tool, and a spy."""

import json

import pytest

from rlm_env.repl import client as repl_client
from tests.environments.episodes import run
from tests.fakes import Reply, ToolCall, policies
from tests.fakes.policies import SUB, fence, script

TASKS = {"id": "math-python", "split": "mini", "num_tasks": 2}


async def test_a_raw_string_and_a_plain_one_both_earn_the_reward():
    for literal in (r'r"\boxed{%s}"', r'"\boxed{%s}"'):

        def policy(request, literal=literal):
            # 2024 is nobody's answer: the reference is put in below.
            return fence(f'answer["content"] = {literal % "2024"}\nanswer["ready"] = True')

        traces, _ = await run(TASKS, policy)
        assert [trace.info["math_verify"]["answer"] for trace in traces] == ["2024", "2024"]
        assert [trace.reward for trace in traces] == [0, 0]
        assert [trace.metrics["boxed"] for trace in traces] == [1, 1]


async def test_an_rlm_computes_with_the_packages_and_sub_llms():
    code = (
        "import numpy, scipy, sympy\n"
        f"votes = llm_batch([{SUB!r} + str(i) for i in range(3)])\n"
        "result = sympy.Integer(max(set(votes), key=votes.count))\n"
        r'answer["content"] = r"\boxed{" + sympy.latex(result) + "}"' + "\n"
        'answer["ready"] = True'
    )
    traces, _ = await run(TASKS, script(fence(code), sub="7"))
    for trace in traces:
        assert trace.root_reply == r"\boxed{7}"
        assert trace.metrics["sub_calls"] == 3
        assert trace.metrics["repl_errors"] == 0


async def test_a_plain_model_uses_the_python_tool():
    def policy(request):
        if request.turn == 0:
            assert [tool["function"]["name"] for tool in request.tools] == ["python"]
            code = "import numpy, scipy, sympy\nprint(sympy.factorint(2024))"
            return Reply(tool_calls=[ToolCall("python", {"code": code})])
        assert "{2: 3, 11: 1, 23: 1}" in request.last
        return r"It is \boxed{2024}."

    traces, _ = await run({**TASKS, "mode": "llm"}, policy, harness={"scaffold": "llm", "python_tool": True})
    assert [trace.info["math_verify"]["answer"] for trace in traces] == ["2024", "2024"]
    assert [trace.metrics["repl_calls"] for trace in traces] == [1, 1]


@pytest.mark.parametrize("seconds", [120, 300, 600])
async def test_the_ablation_of_time_limits_reaches_the_harness(seconds, monkeypatch):
    """The published one, in both kinds of mode: the limit is told to the root and is the REPL's."""
    kept = []
    call = repl_client.ReplClient.run

    async def spy(self, *args, **kwargs):
        kept.append(self.config.call_seconds)
        return await call(self, *args, **kwargs)

    monkeypatch.setattr(repl_client.ReplClient, "run", spy)
    limit = {"repl": {"call_seconds": seconds}}
    finish = script(fence('answer["content"] = "none"\nanswer["ready"] = True'))
    _, server = await run({**TASKS, "num_tasks": 1}, finish, harness=limit)
    assert f"may take {seconds} s" in server.requests[0].system

    def plain(request):
        return Reply(tool_calls=[ToolCall("python", {"code": "1"})]) if request.turn == 0 else r"\boxed{1}"

    llm = {"scaffold": "llm", "python_tool": True, **limit}
    await run({**TASKS, "num_tasks": 1, "mode": "llm"}, plain, harness=llm)
    assert kept == [seconds, seconds]


async def test_the_right_answer_of_the_task_is_rewarded_in_every_mode():
    from math_python import MathPythonTaskset
    from math_python.taskset import MathPythonConfig

    tasks = list(MathPythonTaskset(MathPythonConfig(split="mini", num_tasks=2)))
    known = {task.data.question: task.data.answer for task in tasks}

    def solve(request):
        return next(answer for question, answer in known.items() if question in request.first_user)

    def rlm(request):
        return policies.answer_with(f"The result is \\boxed{{{solve(request)}}}.")(request)

    for mode in ("rlm", "rlm_tips"):
        traces, _ = await run({**TASKS, "mode": mode}, rlm)
        assert [trace.reward for trace in traces] == [1, 1]
    traces, _ = await run(
        {**TASKS, "mode": "llm"}, lambda r: rf"\boxed{{{solve(r)}}}", harness={"scaffold": "llm"}
    )
    assert [trace.reward for trace in traces] == [1, 1]


async def test_nothing_in_the_repl_knows_the_reference():
    """A spy prints its globals, environment, arguments, files and the objects that Python can reach."""
    spy = """
import gc, os, sys
print({k: v for k, v in globals().items() if not k.startswith('__')})
print(dict(os.environ), sys.argv, os.getcwd())
for folder, _, files in os.walk('.'):
    for name in files:
        print(name, open(os.path.join(folder, name), errors='replace').read())
needle = 'math-python-' + 'mini'


def text(value):
    # Making text of an object can import and cache things, which changes what is being read: once more then.
    for _ in range(100):
        try:
            return str(value)
        except RuntimeError as error:
            if 'during iteration' not in str(error):
                raise
    raise RuntimeError('something that changes whenever it is read')


# Each is copied in one step, for the same reason.
dicts = [dict.copy(o) for o in gc.get_objects() if isinstance(o, dict)]
print('found', [text(d) for d in dicts if any(needle in text(v)[:9999] for v in d.values())][:3])
"""
    finish = 'answer["content"] = "none"\nanswer["ready"] = True'
    traces, server = await run(
        TASKS, script(fence(spy), fence(finish)), harness={"repl": {"output_chars": 100_000}}
    )
    told = json.dumps([request.messages for request in server.requests])
    for trace in traces:
        data = trace.task.data
        observation = trace.info["rlm"]["episodes"][0]["turns"][0]["observation"]
        assert "found [" in observation  # the spy ran to its end
        assert json.loads(data.info)["family"] not in told
        assert data.info not in observation
        outside = observation.replace(data.question, "")
        if len(data.answer) > 3:
            assert data.answer not in outside
