"""Sub-LLM calls: order, failures, limits, tools, recursion."""

import asyncio
import json

from tests.fakes import FakeModelServer, Reply
from tests.fakes.policies import fence, finish, is_sub, script
from tests.rlm_env.episodes import agent_for, demo, episode, harness_config, observations, turns


async def test_a_batch_of_256_keeps_order_and_loses_nothing():
    async def sub(request):
        await asyncio.sleep(hash(request.last) % 7 / 200)  # replies come back in another order
        return request.last.removeprefix("[sub] ") + "!"

    async def policy(request):
        if is_sub(request):
            return await sub(request)
        return fence("r = llm_batch([f'[sub] {i}' for i in range(256)])\n" + finish("','.join(r)"))

    trace, server = await episode(policy)
    assert trace.root_reply == ",".join(f"{i}!" for i in range(256))
    assert trace.metrics["sub_calls"] == 256
    assert trace.metrics["sub_batches"] == 1
    assert trace.metrics["sub_batch_size_max"] == 256
    assert server.max_in_flight <= 32
    ids = {call.acp.request_id for call in trace.calls}
    assert ids == {"root.0"} | {f"sub.{i}.0" for i in range(256)}


async def test_sub_llms_see_their_prompt_only():
    _, server = await episode(
        script(fence("llm_query('[sub] what?')"), fence(finish("1"))), demo("TASK TEXT")
    )
    (sub,) = [request for request in server.requests if is_sub(request)]
    assert [message["role"] for message in sub.messages] == ["system", "user"]
    assert sub.messages[1]["content"] == "[sub] what?"
    assert "TASK TEXT" not in json.dumps(sub.messages)
    assert sub.system != server.requests[0].system


async def test_concurrent_episodes_do_not_mix():
    async def policy(request):
        if is_sub(request):
            await asyncio.sleep(0.01)
            return request.last.removeprefix("[sub] ")
        return fence(
            "r = llm_batch([f'[sub] {context}-{i}' for i in range(3)])\nprint(context)\n" + finish("r")
        )

    async with FakeModelServer(policy) as server, agent_for(server, harness_config()) as live:
        traces = await asyncio.gather(*(live.run(demo(context=f"e{n}")) for n in range(24)))
    for number, trace in enumerate(traces):
        assert trace.root_reply == str([f"e{number}-{i}" for i in range(3)])


async def test_transient_failures_are_retried():
    seen: dict[str, int] = {}

    def sub(request):
        count = seen[request.last] = seen.get(request.last, 0) + 1
        faults = [Reply.rate_limited(), Reply.server_error(), Reply.cut()]
        return faults[count - 1] if count <= 3 else "fine"

    trace, _ = await episode(script(fence("r = llm_query('[sub] x')"), fence(finish("r")), sub=sub))
    assert trace.root_reply == "fine"
    assert trace.metrics["call_retries"] == 3
    assert trace.metrics["sub_errors"] == 0
    assert trace.metrics["sub_calls"] == 1


async def test_a_failed_sub_call_raises_with_the_partial_results():
    def sub(request):
        return Reply.failure(403, "content policy", "refused") if "bad" in request.last else "good"

    code = (
        "try:\n    llm_batch(['[sub] a', '[sub] bad', '[sub] c'])\n"
        "except SubCallError as e:\n"
        "    print([r if isinstance(r, str) else type(r).__name__ for r in e.results])"
    )
    trace, server = await episode(script(fence(code), fence(finish("1")), sub=sub))
    assert "['good', 'SubCallFailure', 'good']" in observations(trace)[0]
    assert trace.metrics["sub_errors"] == 1
    assert sum("bad" in request.last for request in server.requests) == 1  # a refusal is not retried
    assert trace.info["rlm"]["calls"][1]["error"]


async def test_failures_as_markers():
    def sub(request):
        return Reply.context_exceeded() if "long" in request.last else "ok"

    code = "r = llm_batch(['[sub] a', '[sub] long'])\n"
    code += "print([bool(x) for x in r], isinstance(r[1], str), r[1].type)"
    trace, _ = await episode(script(fence(code), fence(finish("1")), sub=sub), on_sub_error="marker")
    assert "[True, False] False PromptTooLongError" in observations(trace)[0]


async def test_the_sub_call_limit_is_an_exception_with_partial_results():
    code = (
        "try:\n    llm_batch(['[sub] a'] * 5)\nexcept SubCallLimitError as e:\n"
        "    print([r for r in e.results if isinstance(r, str)], e)\n"
        "try:\n    llm_query('[sub] b')\nexcept SubCallLimitError as e:\n    print('again', e)"
    )
    trace, server = await episode(
        script(fence(code), fence(finish("1")), sub="yes"), limits={"max_sub_calls": 3}
    )
    shown = observations(trace)[0]
    assert "['yes', 'yes', 'yes']" in shown
    assert "again" in shown
    assert "0 of 3 sub-calls left" in shown
    assert sum(is_sub(request) for request in server.requests) == 3


async def test_depth_zero_has_no_sub_llms():
    trace, server = await episode(
        script(fence("print('llm_batch' in globals())"), fence(finish("1"))), max_depth=0
    )
    assert "False" in observations(trace)[0]
    assert "llm_batch" not in server.requests[0].system


async def test_children_have_their_own_repl_and_count_against_the_parent():
    def policy(request):
        if is_sub(request):
            return "leaf"
        if request.first_user.startswith("CHILD"):
            return fence("v = llm_query('[sub] q')\n" + finish("context.upper() + v"))
        return fence("v = 'mine'\nr = rlm_batch(['CHILD 1', 'CHILD 2'], ['ab', 'cd'])\n" + finish("r + [v]"))

    trace, server = await episode(policy, max_depth=2, limits={"max_sub_calls": 10})
    assert trace.root_reply == "['ABleaf', 'CDleaf', 'mine']"
    assert trace.metrics["rlm_calls"] == 2
    assert trace.metrics["sub_calls"] == 4
    ids = {call.acp.request_id for call in trace.calls}
    assert ids == {"root.0", "rlm.0.root.0", "rlm.0.sub.0.0", "rlm.1.root.0", "rlm.1.sub.0.0"}
    child_system = next(r.system for r in server.requests if r.first_user.startswith("CHILD"))
    assert "rlm_batch" not in child_system


async def test_depth_is_the_hosts():
    # The child asks the host for a grandchild by hand, past its missing functions.
    def policy(request):
        if request.first_user.startswith("CHILD"):
            return fence("print('rlm_query' in globals())\nanswer['content']='x'\nanswer['ready']=True")
        return fence("r = rlm_query('CHILD')\n" + finish("r"))

    trace, _ = await episode(policy, max_depth=2)
    assert trace.root_reply == "x"
    assert "False" in turns(trace, "rlm.0.")[0]["blocks"][0]["output"]


async def test_a_child_without_an_answer_is_an_error_not_a_text():
    def policy(request):
        if request.first_user.startswith("CHILD"):
            return fence("answer['content'] = 'half'")
        return fence(
            "try:\n    rlm_query('CHILD')\nexcept SubCallError as e:\n    m = str(e)\n"
            + finish("'max_turns' in m")
        )

    trace, _ = await episode(policy, max_depth=2, limits={"child_max_turns": 2})
    assert trace.root_reply == "True"
    assert trace.metrics["sub_errors"] == 1
