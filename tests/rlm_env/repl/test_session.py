"""What code in the REPL finds, and what a call reports back."""

import asyncio
import json

import pytest

from rlm_env.repl import FunctionSpec, ReplError, ReplStartError


async def shown(client, code):
    result = await client.run(code)
    assert result.error is None, result.output
    return result.output


async def test_state_lives_from_call_to_call_and_the_last_expression_is_echoed(repl):
    client = await repl()
    assert await shown(client, "x = 20\ndef double(n):\n    return 2 * n") == ""
    assert await shown(client, "double(x) + 2") == "42\n"
    assert await shown(client, "print('a')\n'b'") == "a\n'b'\n"
    assert await shown(client, "None") == ""
    assert await shown(client, "_ + 'c'") == "'bc'\n"
    assert await shown(client, "for i in range(2): i") == ""


async def test_long_containers_are_echoed_over_several_lines(repl):
    client = await repl()
    text = await shown(client, "{f'key {i}': list(range(8)) for i in range(12)}")
    assert len(text.splitlines()) > 4
    assert max(map(len, text.splitlines())) <= 112


async def test_output_of_every_origin_is_captured_in_order(repl):
    client = await repl()
    code = (
        "import os, sys, subprocess\n"
        "print('print')\n"
        "os.write(1, b'os.write\\n')\n"
        "subprocess.run(['sh', '-c', 'echo child; echo child-err >&2'])\n"
        "sys.stderr.write('stderr\\n')\n"
        "sys.stdout.write('no newline')"
    )
    lines = (await shown(client, code)).splitlines()
    assert lines == ["print", "os.write", "child", "child-err", "stderr", "no newline10"]


async def test_stdin_is_empty(repl):
    client = await repl()
    result = await client.run("input('name? ')")
    assert result.error == "EOFError"


async def test_tracebacks_show_the_models_own_lines_and_nothing_of_the_worker(repl):
    client = await repl()
    await client.run("def divide(a, b):\n    return a / b")
    result = await client.run("y = 1\ndivide(y, 0)")
    assert result.error == "ZeroDivisionError"
    assert "divide(y, 0)" in result.output
    assert "return a / b" in result.output
    assert "worker" not in result.output
    result = await client.run("try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('v') from e")
    assert "KeyError: 'k'" in result.output
    assert "direct cause" in result.output
    result = await client.run("llm_batch('not a list')")
    assert result.error == "TypeError"
    assert "takes a list of strings, not str" in result.output
    assert "check_prompts" not in result.output


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = = 2", "SyntaxError"),
        ("\0", "SyntaxError"),
        ("    x = 1", "IndentationError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseExceptionGroup('g', [GeneratorExit()])", "BaseExceptionGroup"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("'\\ud800'.encode()", "UnicodeEncodeError"),
    ],
)
async def test_errors_end_the_code_and_not_the_repl(repl, code, error):
    client = await repl()
    result = await client.run(code)
    assert (result.error == error) or (code == "\0" and result.error == "ValueError")
    assert error in result.output or result.error == "ValueError"
    assert not result.restarted
    assert await shown(client, "1 + 1") == "2\n"


@pytest.mark.parametrize(
    "context",
    [
        "plain text",
        "",
        "lone surrogate \ud800, astral \U0001f600, nul \0, \r\n",
        ["a", {"b": [1, 2.5, None, True]}],
        {"text": "ä" * 1000},
        3,
        None,
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_context_arrives_unchanged(repl, context):
    client = await repl(context=context)
    code = "import json\nanswer['content'] = json.dumps(context)"
    await shown(client, code)
    assert json.loads(client.answer.content) == context


async def test_a_context_of_sixteen_million_characters(repl):
    text = "0123456789abcdé\n" * 1_000_000
    client = await repl(context=text)
    code = "len(context), context[:15], context == '0123456789abcdé\\n' * 1_000_000"
    assert await shown(client, code) == "(16000000, '0123456789abcdé', True)\n"


@pytest.mark.parametrize(
    "context", [{1: "a"}, {"a": {2: 3}}, [("t",)], [{"x": b"bytes"}], [float("nan")], {"s": {1, 2}}]
)
async def test_a_context_that_would_change_on_the_way_is_refused(repl, context):
    with pytest.raises((TypeError, ValueError), match=r"context(\[|\b)"):
        await repl(context=context)


async def test_context_files_lie_in_the_working_directory(repl):
    client = await repl(context_files={"a.txt": "täxt", "sub/dir/b.bin": bytes(range(256)), "empty": ""})
    assert await shown(client, "context_files") == "['a.txt', 'sub/dir/b.bin', 'empty']\n"
    assert await shown(client, "import os; sorted(os.listdir()), open('a.txt').read()") == (
        "(['a.txt', 'empty', 'sub'], 'täxt')\n"
    )
    assert await shown(client, "open('sub/dir/b.bin', 'rb').read() == bytes(range(256))") == "True\n"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a//b", "./a", "a\0b"])
async def test_file_names_that_leave_the_directory_are_refused(repl, name):
    with pytest.raises(ValueError, match="context_files"):
        await repl(context_files={name: "x"})


async def test_files_larger_than_the_scratch_directory_are_refused_with_the_setting(repl):
    with pytest.raises(ValueError, match="scratch_mb"):
        await repl(scratch_mb=1, context_files={"a": b"x" * (1 << 20) + b"x"})


async def test_installed_packages_can_be_imported(repl):
    client = await repl()
    assert await shown(client, "import numpy\nint(numpy.arange(10).sum())") == "45\n"


async def test_what_every_python_prompt_has_is_there(repl):
    client = await repl()
    assert "Ask a fresh language model" in await shown(client, "help(llm_batch)")
    assert (await client.run("exit()")).error == "SystemExit"
    assert await shown(client, "import sys; sys.argv, __name__") == "([''], '__main__')\n"


async def test_threads_and_process_pools_work(repl):
    client = await repl()
    code = (
        "import concurrent.futures as cf, multiprocessing as mp\n"
        "def square(n): return n * n\n"
        "with cf.ThreadPoolExecutor(4) as pool: print(list(pool.map(square, range(5))))\n"
        "with mp.get_context('fork').Pool(2) as pool: print(pool.map(square, range(5)))"
    )
    assert await shown(client, code) == "[0, 1, 4, 9, 16]\n" * 2


async def test_a_closed_repl_says_so_and_closing_twice_is_fine(repl):
    client = await repl()
    await client.close()
    await client.close()
    with pytest.raises(ReplError, match="closed"):
        await client.run("1")


async def test_two_calls_at_once_are_refused(repl):
    asked, go = asyncio.Event(), asyncio.Event()

    async def handler(name, payload):
        asked.set()
        await go.wait()
        return {"results": [{"text": "first"}], "limit": None}

    client = await repl(handler=handler)
    first = asyncio.create_task(client.run("llm_query('x')"))
    await asked.wait()
    with pytest.raises(RuntimeError, match="another call"):
        await client.run("2")
    go.set()
    assert (await first).output == "'first'\n"


async def test_concurrent_repls_do_not_mix(repl):
    clients = await asyncio.gather(*(repl(context=f"context {i}") for i in range(12)))
    code = "import time\nfor i in range(20):\n    print(context)\n    time.sleep(0.002)\n"
    code += "answer['content'] = context"
    results = await asyncio.gather(*(client.run(code) for client in clients))
    for i, result in enumerate(results):
        assert result.output == f"context {i}\n" * 20
        assert result.answer.content == f"context {i}"


# --- the answer ---


async def test_the_answer_is_reported_and_kept(repl):
    client = await repl()
    result = await client.run("answer['content'] = 'draft'")
    assert (result.answer.content, result.answer.ready) == ("draft", False)
    result = await client.run("1/0")
    assert result.answer.content == "draft"
    result = await client.run("answer['content'] += ' two \\ud800'\nanswer['ready'] = True")
    assert (result.answer.content, result.answer.ready) == ("draft two \ufffd", True)
    assert client.answer == result.answer


@pytest.mark.parametrize(
    ("code", "content", "ready", "told"),
    [
        ("answer = {'content': 'x', 'ready': True}", "x", True, ""),
        ("answer = {'content': 'x'}", "x", False, ""),
        ("answer['content'] = 42", "42", False, "was int"),
        ("answer['content'] = None", "None", False, "was NoneType"),
        ("answer['content'] = ['a']; answer['ready'] = 1", "['a']", True, "was list"),
        ("answer['ready'] = 'no'", "", False, "True or False"),
        ("import numpy; answer['ready'] = numpy.bool_(True)", "", True, ""),
        ("answer.clear()", "", False, ""),
        ("del answer['content']; answer['ready'] = True", "", True, ""),
        ("class S(str): pass\nanswer['content'] = S('sub')", "sub", False, ""),
        ("class B:\n    def __str__(self): 1/0\nanswer['content'] = B()", "", False, "ZeroDivisionError"),
        ("answer['content'] = float('nan')", "nan", False, "was float"),
    ],
)
async def test_odd_answers(repl, code, content, ready, told):
    client = await repl()
    result = await client.run(code)
    assert result.error is None
    assert (result.answer.content, result.answer.ready) == (content, ready)
    assert told in " ".join(result.notes)
    assert (result.notes == ()) == (told == "")
    assert "answer" not in result.restored


async def test_an_overlong_answer_is_cut_and_told(repl):
    client = await repl(answer_chars=1000)
    result = await client.run("answer['content'] = 'é' * 5000")
    assert result.answer.content == "é" * 1000
    assert "5,000 characters" in result.notes[0]


# --- reserved names ---


async def test_reserved_names_are_restored_and_reported(repl):
    client = await repl(context="data", functions=[FunctionSpec("search")])
    result = await client.run(
        "context = 1\ndef llm_batch(p): return p\ndel llm_query\nsearch = answer = None"
    )
    assert set(result.restored) == {"context", "llm_batch", "llm_query", "search", "answer"}
    assert await shown(client, "context, llm_batch(['a']), llm_query('b'), answer['ready']") == (
        "('data', ['A'], 'B', False)\n"
    )


async def test_only_the_functions_of_this_depth_exist(repl):
    client = await repl(depth_functions=["llm_query"])
    assert await shown(client, "[n for n in dir() if 'lm_' in n]") == "['llm_query']\n"


# --- functions ---


async def test_functions_with_source_run_in_the_worker(repl):
    spec = FunctionSpec("triple", "Three times.", "def triple(n):\n    return 3 * n if n else 1 / 0\n")
    client = await repl(functions=[spec])
    assert await shown(client, "triple(4)") == "12\n"
    assert "return 3 * n" in (await client.run("triple(0)")).output


async def test_tools_go_to_the_host_with_their_arguments(repl):
    client = await repl(functions=[FunctionSpec("search", "Searches the web.")])
    assert (
        await shown(client, "search('q', 2, deep=True)") == "{'args': ['q', 2], 'kwargs': {'deep': True}}\n"
    )
    assert await shown(client, "search.__doc__") == "'Searches the web.'\n"
    result = await client.run("search({1, 2})")
    assert result.error == "TypeError"
    assert "JSON" in result.output


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        ([FunctionSpec("context")], "would hide"),
        ([FunctionSpec("f"), FunctionSpec("f")], "would hide"),
        ([FunctionSpec("not a name")], "no name"),
    ],
)
async def test_functions_that_cannot_be_called_are_refused(repl, functions, says):
    with pytest.raises(ValueError, match=says):
        await repl(functions=functions)


@pytest.mark.parametrize(
    ("source", "says"),
    [("def other(): pass", "does not define"), ("def f(:", "SyntaxError"), ("1/0", "ZeroDivision")],
)
async def test_a_function_whose_source_fails_stops_the_start(repl, source, says):
    with pytest.raises(ReplStartError, match=says):
        await repl(functions=[FunctionSpec("f", source=source)])
