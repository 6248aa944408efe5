"""The root's loop: code in, observation out, until the answer is ready."""

import json

import pytest

from tests.fakes import Reply, ToolCall
from tests.fakes.policies import fence, finish, script, sequence
from tests.rlm_env.episodes import demo, episode, observations, root_branches, turns


async def test_answer_is_the_reply_and_is_scored():
    trace, _ = await episode(script(fence(finish("context[::-1]"))), demo(context="abc", reference="cba"))
    assert trace.ok
    assert trace.root_reply == "cba"
    assert trace.reward == 1.0
    assert trace.metrics["answer_ready"] == 1.0
    assert trace.metrics["stop/answer_ready"] == 1.0
    assert trace.metrics["limit_hit"] == 0.0
    assert trace.stop_condition == "agent_completed"


async def test_state_lives_across_turns_and_the_answer_can_be_mended():
    policy = script(
        fence("import math\nx = math.factorial(5)\nanswer['content'] = 'draft'\nx"),
        fence("answer['content'] += f' {x}'\nprint(answer['content'])"),
        fence("answer['ready'] = True"),
    )
    trace, _ = await episode(policy, demo(reference="draft 120"))
    assert trace.reward == 1.0
    first, second = observations(trace)
    assert "120" in first  # a last expression is echoed
    assert "draft 120" in second
    assert [turn["answer"]["content"] for turn in turns(trace)] == ["draft", "draft 120", "draft 120"]


async def test_context_never_enters_the_conversation():
    secret = "only in the REPL " * 2000
    trace, server = await episode(script(fence(finish("len(context)"))), demo(context=secret))
    assert trace.root_reply == str(len(secret))
    assert all("only in the REPL" not in json.dumps(request.body) for request in server.requests)
    assert "34,000 characters" in server.requests[0].first_user


async def test_task_state_is_the_context_and_is_not_serialised():
    task = demo()

    async def setup(trace, runtime):
        trace.state.context = ["a", "b"]

    task.setup = setup
    trace, _ = await episode(script(fence(finish("len(context)"))), task)
    assert trace.root_reply == "2"
    assert "state" not in trace.to_record()


async def test_context_files_are_in_the_working_directory():
    task = demo(context_files={"notes.txt": "hello file"})
    trace, server = await episode(script(fence(finish("open('notes.txt').read()"))), task)
    assert trace.root_reply == "hello file"
    assert "notes.txt" in server.requests[0].first_user


async def test_root_is_exactly_one_branch():
    policy = script(fence("print(1)"), fence("llm_batch(['[sub] a', '[sub] b'])"), fence(finish("2")))
    trace, _ = await episode(policy)
    assert len(root_branches(trace)) == 1
    assert len(trace.branches) == 3
    ids = sorted(call.acp.request_id for call in trace.calls)
    assert ids == ["root.0", "root.1", "root.2", "sub.0.0", "sub.1.0"]


async def test_errors_show_the_models_own_lines_only():
    trace, _ = await episode(script(fence("def f():\n    return 1 / 0\nf()"), fence(finish("1"))))
    (shown,) = observations(trace)
    assert "ZeroDivisionError: division by zero" in shown
    assert "return 1 / 0" in shown
    assert "worker.py" not in shown
    assert turns(trace)[0]["blocks"][0]["error"] == "ZeroDivisionError"
    assert trace.metrics["repl_errors"] == 1


async def test_blocks_run_in_order_until_one_fails():
    trace, _ = await episode(
        script(
            "```python\nx = 1\n```\ntext\n```python\nx / 0\n```\n```python\nx = 5\n```", fence(finish("x"))
        )
    )
    assert trace.root_reply == "1"
    (shown,) = observations(trace)
    assert "block 2 failed" in shown
    assert len(turns(trace)[0]["blocks"]) == 2


async def test_a_reply_without_code_is_told_so_and_counted():
    trace, _ = await episode(script("The answer is 4.", "```json\n{}\n```", fence(finish("4"))))
    assert trace.root_reply == "4"
    assert all("no code was run" in shown for shown in observations(trace))
    assert trace.metrics["replies_without_code"] == 2


async def test_a_block_cut_at_the_token_limit_is_not_run():
    cut = Reply(content="```python\nx = 7\n```\nthen\n```python\nx = 'half", finish_reason="length")
    trace, _ = await episode(script(cut, fence(finish("x"))))
    assert trace.root_reply == "7"
    assert "token limit" in observations(trace)[0]


async def test_output_is_cut_with_a_note():
    trace, _ = await episode(
        script(fence("print('é' * 50_000)"), fence(finish("1"))), repl={"output_chars": 1000}
    )
    block = turns(trace)[0]["blocks"][0]
    assert block["output"].count("é") <= 1000
    assert block["truncated_chars"] >= 49_000
    assert len(block["output"]) < 1400
    assert trace.metrics["repl_truncated_outputs"] == 1


async def test_overwritten_reserved_names_are_restored_and_told():
    trace, _ = await episode(
        script(fence("context = None\nllm_batch = 3"), fence(finish("context + str(callable(llm_batch))"))),
        demo(context="kept"),
    )
    assert trace.root_reply == "keptTrue"
    assert "`context`" in observations(trace)[0]
    assert turns(trace)[0]["blocks"][0]["restored"]


async def test_code_over_its_time_is_interrupted_and_state_is_kept():
    policy = script(fence("x = 41\nimport time\ntime.sleep(30)"), fence(finish("x + 1")))
    trace, _ = await episode(policy, repl={"call_seconds": 2})
    assert trace.root_reply == "42"
    assert trace.metrics["repl_timeouts"] == 1
    assert trace.metrics["repl_restarts"] == 0
    assert "longer than 2 s" in observations(trace)[0]


async def test_a_dead_worker_does_not_end_the_episode():
    policy = script(
        fence("y = 1\nanswer['content'] = 'kept'"),
        fence("import os\nos._exit(3)"),
        fence(finish("answer['content'] + context")),
    )
    trace, _ = await episode(policy, demo(context=" data"))
    assert trace.root_reply == "kept data"
    assert trace.metrics["repl_restarts"] == 1
    assert "lost y" in observations(trace)[1]


async def test_waiting_for_sub_llms_is_not_counted():
    def slow(request):
        return Reply(content="late", delay=3)

    policy = script(fence("r = llm_query('[sub] x')"), fence(finish("r")), sub=slow)
    trace, _ = await episode(policy, repl={"call_seconds": 2.5})
    assert trace.root_reply == "late"
    assert trace.metrics["repl_timeouts"] == 0
    assert trace.metrics["repl_wait_seconds"] >= 2.9
    assert "waiting for calls" in observations(trace)[0]


async def test_code_by_tool_call():
    def policy(request):
        code = ["z = 6", "print(z * 7)", finish("z * 7")][request.turn]
        return Reply(tool_calls=[ToolCall("python", {"code": code})])

    trace, server = await episode(policy, code_channel="tool")
    assert trace.root_reply == "42"
    assert server.requests[0].tools[0]["function"]["name"] == "python"
    assert len(root_branches(trace)) == 1


async def test_bad_tool_calls_are_explained():
    def policy(request):
        calls = [
            [ToolCall("shell", {"code": "x"})],
            [ToolCall("python", "{not json")],
            [],
            [ToolCall("python", {"code": finish("1")})],
        ][request.turn]
        return Reply(content="hm", tool_calls=calls)

    trace, _ = await episode(policy, code_channel="tool")
    assert trace.root_reply == "1"
    shown = observations(trace)
    assert "no tool 'shell'" in shown[0]
    assert "JSON object" in shown[1]
    assert "call the `python` tool" in shown[2]


@pytest.mark.parametrize("channel", ["fence", "tool"])
async def test_several_user_turns_keep_the_repl(channel):
    from tests.fakes import FakeModelServer
    from tests.rlm_env.episodes import agent_for, harness_config

    def policy(request):
        users = [m for m in request.messages if m["role"] == "user"]
        code = finish("'one'") + "\nkept = 5" if len(users) == 1 else finish("f'two {kept}'")
        return fence(code) if channel == "fence" else Reply(tool_calls=[ToolCall("python", {"code": code})])

    async with FakeModelServer(policy) as server:
        async with agent_for(server, harness_config(code_channel=channel)) as live:
            async with live.interaction(demo()) as talk:
                first = await talk.turn()
                second = await talk.turn("And then?")
            trace = talk.trace
    assert first.last_reply == "one"
    assert second.last_reply == "two 5"
    assert trace.ok
    assert len(root_branches(trace)) == 1


async def test_folding_drops_old_turns_and_keeps_the_data():
    policy = sequence(  # by request: folding changes how many replies a conversation holds
        fence("a = 'old'\nprint('first output')"),
        fence("print('second output')"),
        fence("fold(1, 'a holds old')"),
        fence(finish("a")),
    )
    trace, server = await episode(policy, folding=True)
    assert trace.root_reply == "old"
    last = server.requests[-1]
    text = json.dumps(last.messages)
    assert "first output" not in text
    assert "second output" in text
    assert "a holds old" in last.first_user
    # Each sampled reply is sampled in exactly one node, so it is trained once.
    assert sum(node.sampled for node in trace.nodes) == 4


async def test_text_that_no_model_and_no_trace_can_hold_does_no_harm():
    """Lone surrogates, which Python text may hold: else a policy could turn a bad answer into an episode
    that cannot be sent on or saved, and so is never scored."""
    policy = sequence(
        fence("print('first')"),
        fence("globals()['n\\ud800'] = 1\nfold(1, 'note \\ud800')\nprint(llm_query('[sub] \\udfff!'))"),
        "sub says \ufffd",
        fence("answer['content'] = 'a\\ud800b'\nanswer['ready'] = True"),
    )
    trace, server = await episode(policy, demo(reference="a\ufffdb"), folding=True)
    assert trace.ok, trace.errors
    assert trace.reward == 1.0
    assert server.requests[2].last == "[sub] \ufffd!"
    assert "note \ufffd" in server.requests[3].first_user
    assert json.loads(trace.model_dump_json())["root_reply"] == "a\ufffdb"
