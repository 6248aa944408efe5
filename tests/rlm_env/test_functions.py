"""Functions of the user's, and tools of the task, by name in the REPL."""

import os

import pytest
from pydantic import ValidationError

from tests.fakes.policies import fence, finish, script
from tests.rlm_env.episodes import episode, harness_config, observations

HERE = "tests.rlm_env.demo_functions"


async def run(code: str, *functions: dict, **settings):
    return await episode(script(fence(code), fence(finish("1"))), functions=list(functions), **settings)


async def test_host_functions_run_on_the_host_and_are_counted():
    trace, server = await run(
        "print(lookup('a'), lookup('b', default=7), process_id())",
        {"fn": f"{HERE}:lookup"},
        {"fn": f"{HERE}:process_id"},
    )
    assert f"1 7 {os.getpid()}" in observations(trace)[0]
    assert trace.metrics["tool_calls/lookup"] == 2
    assert "lookup(key, default=...)" in server.requests[0].system
    assert "The value of a key." in server.requests[0].system


async def test_worker_functions_run_in_the_worker():
    trace, _ = await run("print(twice(21))", {"fn": f"{HERE}:double", "name": "twice", "where": "worker"})
    assert "42" in observations(trace)[0]
    assert not [name for name in trace.metrics if name.startswith("tool_calls/")]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("lookup()", "missing arguments ['key']"),
        ("lookup('a', 1, 2)", "at most 2 arguments"),
        ("lookup('a', key='b')", "given twice"),
        ("lookup('a', colour=1)", "unknown arguments ['colour']"),
        ("lookup(['a'])", "lookup: wrong arguments: key: Input should be a valid string"),
        ("lookup('a', default='many')", "default: Input should be a valid integer"),
        ("slow('long')", "slow: wrong arguments: seconds: Input should be a valid number"),
        ("broken()", "KeyError"),
        ("not_json('nan')", "not_json: its result is not JSON"),
        ("not_json(1)", "not_json: its result is not JSON"),
        ("slow(30)", "longer than 0.3 s"),
    ],
)
async def test_bad_calls_are_exceptions_that_code_can_catch(call, says):
    code = f"try:\n    {call}\nexcept ToolError as error:\n    print('caught', error)"
    functions = [{"fn": f"{HERE}:{name}"} for name in ("lookup", "broken", "not_json")]
    trace, _ = await run(code, *functions, {"fn": f"{HERE}:slow", "seconds": 0.3})
    assert trace.ok
    shown = observations(trace)[0]
    assert "caught" in shown
    assert says in shown


async def test_a_function_overwritten_by_the_model_is_restored():
    trace, _ = await run("lookup = 3", {"fn": f"{HERE}:lookup"})
    assert "`lookup`" in observations(trace)[0]


async def test_a_function_that_cannot_be_imported_is_an_error_that_names_it():
    trace, _ = await run("1", {"fn": f"{HERE}:missing"})
    assert not trace.ok
    assert f"{HERE}:missing" in trace.last_error.message


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="scaffold"):
        harness_config(scaffold="llm", functions=[{"fn": f"{HERE}:lookup"}])
    with pytest.raises(ValidationError, match="python_tool"):
        harness_config(python_tool=True)
