"""Time, output, death and restart."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from rlm_env.repl import ReplConfig, ReplFailure

IGNORE_INTERRUPT = (
    "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: print('no')"
)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os; os.system('sleep 60')",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import threading; threading.Event().wait()",
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    ],
)
async def test_code_over_its_time_is_interrupted_and_its_state_is_kept(repl, code):
    client = await repl(call_seconds=1.5)  # enough to come to the code, also on a busy machine
    await client.run("kept = 'here'")
    began = time.monotonic()
    result = await client.run("print('before')\n" + code)
    assert result.timed_out
    assert not result.restarted
    assert result.output.startswith("before\n")
    assert time.monotonic() - began < 30  # and not the 60 that it asked for
    assert (await client.run("kept")).output == "'here'\n"


def only_child(pid):
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


async def test_an_interrupt_that_comes_before_the_code_has_begun_is_not_lost(repl):
    """On a busy machine the whole time limit may pass before the process gets to run."""
    client = await repl(isolation="none", call_seconds=0.2, interrupt_grace_seconds=60)
    child = only_child(client._worker.process._process.pid)
    os.kill(child, signal.SIGSTOP)
    call = asyncio.create_task(client.run("while True: pass"))
    await asyncio.sleep(1)
    os.kill(child, signal.SIGCONT)
    result = await call
    assert (result.error, result.timed_out, result.restarted) == ("KeyboardInterrupt", True, False)


async def test_a_host_call_is_interrupted_only_by_cancelling(repl):
    asked = asyncio.Event()

    async def handler(name, payload):
        asked.set()
        await asyncio.sleep(600)
        return {}

    client = await repl(handler=handler, call_seconds=2)
    call = asyncio.create_task(client.run("llm_query('x')"))
    await asked.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 2.5)
    result = await client.run("'back'")
    assert result.output == "'back'\n"
    assert client.restarts == 1


async def test_code_that_ignores_the_interrupt_is_killed_and_what_is_lost_is_named(repl):
    client = await repl(
        call_seconds=2, interrupt_grace_seconds=0.3, context="data", context_files={"f": "body"}
    )
    await client.run("import os\nx = 1\n_private = 2\nanswer['content'] = 'draft'")
    result = await client.run(IGNORE_INTERRUPT)
    assert (result.timed_out, result.restarted, result.error) == (True, True, "ReplDied")
    assert result.lost == ("os", "x")
    assert "went on for 0.3 s after it was interrupted" in result.notes[0]
    assert result.answer.content == "draft"
    assert (await client.run("context, open('f').read(), answer")).output == (
        "('data', 'body', {'content': 'draft', 'ready': False})\n"
    )


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exited with code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import os; os.abort()", "signal 6"),
        ("import ctypes; ctypes.string_at(0)", "segmentation fault"),
        ("import os; os.closerange(0, 300)", ""),
    ],
)
async def test_a_worker_that_dies_is_replaced(repl, code, how):
    client = await repl(context="data")
    await client.run("x = 1")
    result = await client.run("print('last words', flush=True)\n" + code)
    assert (result.restarted, result.error, result.timed_out) == (True, "ReplDied", False)
    assert result.output == "last words\n"
    assert how in result.notes[0]
    assert result.lost == ("x",)
    assert (await client.run("context")).output == "'data'\n"


async def test_too_many_deaths_are_a_failure_that_carries_the_answer(repl):
    client = await repl(max_restarts=2)
    await client.run("answer['content'] = 'kept'")
    for _ in range(2):
        assert (await client.run("import os; os._exit(1)")).restarted
    with pytest.raises(ReplFailure, match="max_restarts=2") as caught:
        await client.run("import os; os._exit(1)")
    assert caught.value.answer.content == "kept"


async def test_memory_is_limited(repl):
    client = await repl(memory_mb=512)
    result = await client.run("x = bytearray(1 << 30)")
    assert result.error == "MemoryError"
    assert not result.restarted


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
async def test_output_is_cut_by_characters_with_a_note(repl, size):
    client = await repl(output_chars=1024)
    text = "".join(chr(0x4E00 + i % 5000) for i in range(size))
    result = await client.run(f"print(''.join(chr(0x4E00 + i % 5000) for i in range({size})), end='')")
    assert result.total_chars == size
    assert result.truncated_chars == max(0, size - 1024)
    if size <= 1024:
        assert result.output == text
    else:
        assert result.output == text[:768] + f"\n[... {size - 1024:,} characters cut ...]\n" + text[-256:]


async def test_a_traceback_survives_the_cut(repl):
    client = await repl(output_chars=1000)
    result = await client.run("print('x' * 100_000)\n1/0")
    assert result.output.startswith("xxx")
    assert result.output.endswith("ZeroDivisionError: division by zero\n")


async def test_bytes_that_are_no_text_are_shown_and_counted(repl):
    client = await repl()
    result = await client.run("import os\nn = os.write(1, b'a\\xff\\xfe\\xc3(\\n')")
    assert result.output == "a\ufffd\ufffd\ufffd(\n"
    assert result.total_chars == 6


async def test_nothing_of_the_models_runs_between_calls(repl):
    client = await repl()
    code = (
        "import threading, time\nticks = []\n"
        "def tick():\n    while True:\n        ticks.append(time.monotonic())\n        time.sleep(0.005)\n"
        "threading.Thread(target=tick, daemon=True).start()\nwhile len(ticks) < 5: time.sleep(0.01)"
    )
    await client.run(code)
    await asyncio.sleep(1.5)
    result = await client.run(
        "while len(ticks) < 20: time.sleep(0.01)\nmax(b - a for a, b in zip(ticks, ticks[1:]))"
    )
    assert float(result.output) > 1.4, "it ran on while the host was waiting"


async def test_closing_during_a_call_ends_it(repl):
    client = await repl()
    call = asyncio.create_task(client.run("import time; time.sleep(60)"))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await call


def test_an_answer_that_no_frame_could_carry_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="raise frame_mb to 116"):
        ReplConfig(answer_chars=10_000_000)
