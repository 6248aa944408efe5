"""Calls from REPL code to the host."""

import asyncio
import time

import pytest

from rlm_env.repl import FunctionSpec


async def test_many_threads_may_ask_at_once_and_each_gets_its_own_reply(repl):
    async def handler(name, payload):
        await asyncio.sleep(0.02 * (len(payload["prompts"][0]) % 5))
        return {"results": [{"text": p[::-1]} for p in payload["prompts"]], "limit": None}

    client = await repl(handler=handler)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "texts = [f'prompt {i} ' + 'x' * i for i in range(40)]\n"
        "with ThreadPoolExecutor(20) as pool:\n"
        "    replies = list(pool.map(llm_query, texts))\n"
        "replies == [t[::-1] for t in texts]"
    )
    result = await client.run(code)
    assert result.output == "True\n"
    assert result.wait_seconds > 0.02


async def test_a_batch_of_256_keeps_order_and_loses_nothing(repl):
    client = await repl()
    result = await client.run(
        "r = llm_batch([f'p{i}' for i in range(256)])\nr == [f'P{i}' for i in range(256)]"
    )
    assert result.output == "True\n"


async def test_time_spent_waiting_does_not_count_against_the_limit(repl):
    async def slow(name, payload):
        await asyncio.sleep(2.5)
        return {"results": [{"text": "late"}], "limit": None}

    client = await repl(handler=slow, call_seconds=2)
    result = await client.run("import time\ntime.sleep(0.1)\nllm_query('x')")
    assert result.output == "'late'\n"
    assert not result.timed_out
    assert result.wait_seconds >= 2.5
    assert 0.1 <= result.seconds < 2


async def test_the_limit_still_holds_after_waiting(repl):
    client = await repl(call_seconds=0.5)
    began = time.monotonic()
    result = await client.run("for i in range(50): llm_query('x')\nwhile True: pass")
    assert result.timed_out
    assert result.error == "KeyboardInterrupt"
    assert time.monotonic() - began < 30


FAILING = {
    "results": [{"text": "good"}, {"error": {"type": "ContextOverflow", "message": "too long"}}],
    "limit": None,
}


async def test_failed_sub_calls_raise_with_the_others_at_hand(repl):
    async def handler(name, payload):
        return FAILING

    client = await repl(handler=handler)
    result = await client.run("llm_batch(['a', 'b'])")
    assert result.error == "SubCallError"
    assert "1 of 2 sub-calls failed, the first with ContextOverflow: too long" in result.output
    code = (
        "try:\n    llm_batch(['a', 'b'])\nexcept SubCallError as e:\n"
        "    print(e.results[0], e.results[1].type, bool(e.results[1]), isinstance(e.results[1], str))"
    )
    assert (await client.run(code)).output == "good ContextOverflow False False\n"


async def test_failed_sub_calls_as_markers(repl):
    async def handler(name, payload):
        return FAILING

    client = await repl(handler=handler, on_sub_error="marker")
    result = await client.run("llm_batch(['a', 'b'])")
    assert result.output == "['good', <SubCallFailure ContextOverflow: too long>]\n"
    assert (await client.run("'text ' + llm_batch(['a', 'b'])[1]")).error == "TypeError"


async def test_a_limit_raises_with_what_was_done(repl):
    async def handler(name, payload):
        return {
            "results": [{"text": "one"}],
            "limit": {"type": "SubCallLimitError", "message": "1 of 3 calls left"},
        }

    client = await repl(handler=handler, on_sub_error="marker")
    code = "try:\n    llm_batch(['a', 'b', 'c'])\nexcept SubCallLimitError as e:\n    print(e, e.results)"
    assert (await client.run(code)).output == "1 of 3 calls left ['one']\n"


async def test_child_rlms_are_asked_with_their_contexts(repl):
    seen = []

    async def handler(name, payload):
        seen.append((name, payload))
        return {"results": [{"text": "ok"} for _ in payload["prompts"]], "limit": None}

    client = await repl(handler=handler, depth_functions=["rlm_batch", "rlm_query"])
    await client.run("rlm_query('a', context=['data'])\nrlm_query('b')\nrlm_batch(['c', 'd'], [1, {'k': 2}])")
    assert seen == [
        ("rlm_batch", {"prompts": ["a"], "contexts": [["data"]]}),
        ("rlm_batch", {"prompts": ["b"]}),
        ("rlm_batch", {"prompts": ["c", "d"], "contexts": [1, {"k": 2}]}),
    ]
    assert "2 prompts but 1 contexts" in (await client.run("rlm_batch(['a', 'b'], [1])")).output
    assert (await client.run("rlm_query('a', context=object())")).error == "TypeError"


@pytest.mark.parametrize(
    "code", ["llm_batch([1])", "llm_batch(['a', None])", "llm_query(['a'])", "llm_batch(5)"]
)
async def test_wrong_prompts_are_refused_before_anything_is_sent(repl, code):
    async def handler(name, payload):
        raise AssertionError("asked")

    client = await repl(handler=handler)
    assert (await client.run(code)).error == "TypeError"
    assert (await client.run("llm_batch([])")).output == "[]\n"


async def test_a_tool_error_is_an_exception_of_its_own(repl):
    async def handler(name, payload):
        return {"error": {"type": "ValueError", "message": "no such page"}}

    client = await repl(handler=handler, functions=[FunctionSpec("open_page")])
    result = await client.run("open_page('x')")
    assert result.error == "ToolError"
    assert "ValueError: no such page" in result.output


async def test_a_request_over_the_frame_limit_teaches(repl):
    client = await repl(frame_mb=2, answer_chars=1000)
    result = await client.run("llm_batch(['x' * 3_000_000])")
    assert result.error == "ValueError"
    assert "at most 2 MB" in result.output
    assert (await client.run("llm_query('still')")).output == "'STILL'\n"


async def test_a_large_reply_arrives(repl):
    async def handler(name, payload):
        return {"results": [{"text": "ö" * 3_000_000}], "limit": None}

    client = await repl(handler=handler)
    assert (await client.run("r = llm_query('x'); len(r), set(r)")).output == "(3000000, {'ö'})\n"


async def test_what_the_handler_raises_comes_out_of_run_and_ends_the_worker(repl):
    class Infrastructure(Exception):
        pass

    async def handler(name, payload):
        raise Infrastructure("the server is gone")

    client = await repl(handler=handler)
    with pytest.raises(Infrastructure):
        await client.run("try:\n    llm_query('x')\nexcept BaseException:\n    pass\n'went on'")


async def test_host_calls_in_a_forked_process_fail_clearly(repl):
    client = await repl()
    code = (
        "import os\npid = os.fork()\n"
        "if pid == 0:\n"
        "    try: llm_query('x')\n"
        "    except RuntimeError as e: print(e, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)[1]"
    )
    result = await client.run(code)
    assert "only in the REPL's own process" in result.output
    assert (await client.run("llm_query('y')")).output == "'Y'\n"


async def test_requests_in_flight_are_bounded_and_all_answered(repl):
    flying, peak, full = 0, 0, asyncio.Event()

    async def handler(name, payload):
        nonlocal flying, peak
        flying += 1
        peak = max(peak, flying)
        if flying == 4:
            full.set()
        await full.wait()  # on a busy machine the first ones would be done before the fourth comes
        await asyncio.sleep(0.02)
        flying -= 1
        return {"results": [{"text": "ok"}], "limit": None}

    client = await repl(handler=handler, max_pending=4)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(24) as pool: print(len(list(pool.map(llm_query, ['x'] * 60))))"
    )
    assert (await client.run(code)).output == "60\n"
    assert peak == 4


async def test_a_thread_that_still_waits_when_the_call_ends_is_told_at_the_next(repl):
    asked = asyncio.Event()

    async def handler(name, payload):
        if payload["prompts"] == ["x"]:
            asked.set()
            await asyncio.sleep(600)
        await asked.wait()
        return {"results": [{"text": "x is being worked on"}], "limit": None}

    client = await repl(handler=handler)
    code = (
        "import threading\nseen = []\n"
        "def ask():\n    try: llm_query('x')\n    except SubCallError as e: seen.append(str(e))\n"
        "thread = threading.Thread(target=ask); thread.start(); done = llm_query('y')"
    )
    assert (await client.run(code)).error is None
    assert "ended before" in (await client.run("thread.join(); seen[0]")).output
