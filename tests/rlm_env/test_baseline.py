"""The plain-LLM scaffold on the same tasks."""

from tests.fakes import Reply, ToolCall
from tests.rlm_env.episodes import demo, episode, turns


async def test_one_reply_is_the_answer():
    trace, server = await episode(lambda request: "cba", demo("Reverse abc", reference="cba"), scaffold="llm")
    assert trace.reward == 1.0
    assert trace.metrics["root_turns"] == 1
    assert [message["role"] for message in server.requests[0].messages] == ["user"]
    assert not server.requests[0].tools


async def test_the_tasks_system_prompt_is_kept():
    _, server = await episode(lambda request: "x", demo(system_prompt="Be brief."), scaffold="llm")
    assert server.requests[0].system == "Be brief."


async def test_python_tool_runs_in_the_same_worker():
    def policy(request):
        steps = ["x = 6\nimport sympy", "print(x * 7, sympy.__name__)"]
        if request.turn < 2:
            return Reply(tool_calls=[ToolCall("python", {"code": steps[request.turn]})])
        return request.last.split()[-2]

    trace, server = await episode(
        policy, demo(reference="42"), scaffold="llm", python_tool=True, repl={"call_seconds": 300}
    )
    assert trace.reward == 1.0
    assert "may take 300 s" in server.requests[0].tools[0]["function"]["description"]
    assert trace.metrics["repl_calls"] == 2
    assert "42 sympy" in turns(trace)[1]["observation"]


async def test_limits_hold_for_the_baseline_too():
    def policy(request):
        return Reply(content="so far", tool_calls=[ToolCall("python", {"code": "1"})])

    trace, _ = await episode(policy, scaffold="llm", python_tool=True, limits={"max_turns": 3})
    assert trace.stop_condition == "max_turns"
    assert trace.root_reply == "so far"


async def test_a_prompt_beyond_the_window_is_a_recorded_failure():
    trace, _ = await episode(lambda request: Reply.context_exceeded(), demo(reference="x"), scaffold="llm")
    assert trace.ok
    assert trace.stop_condition == "context_overflow"
    assert trace.reward == 0.0
