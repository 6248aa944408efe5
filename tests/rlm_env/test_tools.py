"""Where the task's tools go: to sub-LLMs, to REPL code, or to both."""

import pytest

from tests.environments.episodes import run
from tests.fakes import Reply, ToolCall
from tests.fakes.policies import fence, finish, is_sub
from tests.rlm_env.episodes import observations

TASKSET = {"id": "deepdive", "split": "mini", "num_tasks": 1}


def seeker(code: str):
    def policy(request):
        if is_sub(request):
            if request.tools and request.turn < 3:
                return Reply(tool_calls=[ToolCall("search_web", {"queries": [f"q{request.turn}"]})])
            return f"tools={len(request.tools)} turns={request.turn}"
        return fence(code if request.turn == 0 else finish("1"))

    return policy


@pytest.mark.parametrize(
    ("tools_for", "sub_has", "repl_has"), [("sub", True, False), ("repl", False, True), ("both", True, True)]
)
async def test_placement(tools_for, sub_has, repl_has):
    code = "print(llm_query('[sub] go'))\nprint('search_web' in globals(), open('f', 'w') is not None)"
    (trace,), server = await run(TASKSET, seeker(code), harness={"tools_for": tools_for})
    (shown,) = observations(trace)
    assert f"tools={4 if sub_has else 0} turns={3 if sub_has else 0}" in shown
    assert f"{repl_has} True" in shown  # Python's own open is never hidden
    root = next(request for request in server.requests if not is_sub(request))
    assert not root.tools
    assert ("deepdive_open(" in root.system) == repl_has
    assert trace.metrics["sub_tool_calls"] == (3 if sub_has else 0)


async def test_repl_code_calls_a_tool():
    code = "r = search_web(['expedition'], num_results=2)\nprint(type(r).__name__, len(r) > 20)"
    code += "\ntry:\n    search_web(colour=1)\nexcept ToolError as e:\n    print('caught', e)"
    (trace,), _ = await run(TASKSET, seeker(code), harness={"tools_for": "repl"})
    (shown,) = observations(trace)
    assert "str True" in shown
    assert "caught search_web(queries" in shown
    assert trace.metrics["tool_calls/search_web"] == 1


async def test_a_sub_llm_that_never_stops_using_tools_must_answer():
    def policy(request):
        if is_sub(request):
            return Reply(tool_calls=[ToolCall("search_web", {"queries": ["again"]})])
        return fence(
            "try:\n    llm_query('[sub] go')\nexcept SubCallError as e:\n    m = str(e)\n" + finish("m")
        )

    (trace,), server = await run(TASKSET, policy, harness={"sub_tool_turns": 2})
    assert "no answer after 2 tool turns" in trace.root_reply
    sub = [request for request in server.requests if is_sub(request)]
    assert len(sub) == 3
    assert "answer now" in sub[-1].last
