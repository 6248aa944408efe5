"""The harness in real containers: docker, podman and apptainer, through verifiers' own runtimes.

Each engine is tried first; where it is missing or cannot run a container its tests are skipped with what it
said. The images (``images.py``) hold a bare Python and no package, and the box is all that confines: what is
shown here is that the same code runs there, keeps its limits and leaves nothing behind.
"""

import asyncio
import os
import shutil
import sys
from contextlib import asynccontextmanager

import pytest
import verifiers.v1 as vf
from pydantic import TypeAdapter
from verifiers.v1.agent import Agent
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.runtimes import RuntimeConfig, provision_runtime

from rlm_env.repl import ReplClient, ReplConfig, ReplStartError
from tests.fakes import FakeModelServer
from tests.fakes.policies import SUB, fence, finish, script
from tests.rlm_env.episodes import demo, harness_config, observations
from tests.rlm_env.repl.conftest import echo
from tests.rlm_env.repl.images import ENGINES, PLACE, Engine, pythons

pytestmark = pytest.mark.container

PYTHONS = pythons()
TOO_OLD = next((PYTHONS[version] for version in ("3.6", "3.7") if version in PYTHONS), None)
OLDEST = next((PYTHONS[v] for v in PYTHONS if v not in ("3.6", "3.7")), sys.executable)
"""The oldest Python of this machine that the worker is written for."""
HELPER = "docker.io/library/python:3.11-alpine"
"""What verifiers runs beside a container whose own image has no Python."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory):
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    engine = Engine(name, tmp_path_factory.mktemp(name))
    try:
        engine.run(engine.image("none", None))
    except RuntimeError as error:
        engine.close()
        pytest.skip(f"{name} cannot run a container here: {error}")
    before = engine.containers()
    yield engine
    left = engine.containers() - before
    engine.close()
    assert not left, "containers are left"


async def run_episode(engine, image, policy, task, **settings):
    """One episode, its runtime chosen by the agent's config and nothing else."""
    async with FakeModelServer(policy) as server:
        config = AgentConfig(
            model="fake-model",
            client=vf.EvalClientConfig(base_url=server.base_url, api_key_var="FAKE_KEY"),
            harness=harness_config(**settings),
            runtime={"type": engine.name, "image": image},
        )
        async with Agent(config) as live:
            return await live.run(task)


@asynccontextmanager
async def box(engine, image):
    config = TypeAdapter(RuntimeConfig).validate_python({"type": engine.name, "image": image})
    async with provision_runtime(config) as runtime:
        yield runtime


async def in_the_box(runtime):
    """(command lines of the processes, entries of /tmp) as another program of the box sees them."""
    code = (
        "import glob, os\n"
        "for path in glob.glob('/proc/[0-9]*/stat'):\n"
        "    try: text, line = open(path).read(), open(path.replace('stat', 'cmdline')).read()[:200]\n"
        "    except OSError: continue\n"  # it ended meanwhile
        "    line = line.replace('\\0', ' ')\n"
        "    print('P', text.split(') ')[1][0], line)\n"
        "for name in os.listdir('/tmp'): print('F', name)"
    )
    done = await runtime.run(["python3", "-c", code], {})
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    return sorted(line[2:] for line in lines if line[0] == "P"), sorted(x[2:] for x in lines if x[0] == "F")


async def settled(runtime, fine):
    """The same, once ``fine(processes)`` or after 30 s: what was killed takes a moment to go."""
    for _ in range(60):
        seen = await in_the_box(runtime)
        if fine(seen[0]):
            break
        await asyncio.sleep(0.5)
    return seen


async def test_a_suite_whose_tools_run_on_the_host(engine):
    """The container's code asks, the host's loop answers: addresses made for the one must serve the other."""
    env = vf.load_environment(
        vf.resolve_env_config(
            {
                "taskset": {"id": "deepdive", "split": "mini", "num_tasks": 1},
                "agent": {
                    "harness": {"id": "rlm-env", "tools_for": "repl"},
                    "runtime": {"type": engine.name, "image": engine.image("oldest", OLDEST)},
                },
            }
        )
    )
    code = "r = search_web(['expedition'], num_results=2)\nprint(type(r).__name__, len(r) > 20)"
    async with FakeModelServer(script(fence(code), fence(finish("1")))) as server:
        client = vf.EvalClientConfig(base_url=server.base_url, api_key_var="UNSET_KEY")
        context = vf.ModelContext(model="fake-model", client=client, sampling=vf.SamplingConfig())
        async with env.serving():
            (task,) = env.taskset
            (trace,) = (await env.run_episode(task, context)).traces
    assert trace.ok, trace.errors
    assert "str True" in observations(trace)[0]
    assert trace.metrics["tool_calls/search_web"] == 1


BINARY = os.path.basename(os.path.realpath(OLDEST))
"""Of the form python3.8."""


async def test_an_episode(engine):
    """Context and files handed over, sub-calls, a time limit, a death: all of it, in a container."""
    policy = script(
        fence("import sys, os\nprint(os.path.realpath(sys.executable), len(context), context[-3:])"),
        fence("print(open('notes.txt').read(), llm_batch([f'[sub] {i}' for i in range(5)]))\nkept = 1"),
        fence("import time\nwhile True: time.sleep(60)"),
        fence("print('still', kept)\nimport os\nos._exit(3)"),
        fence("print('kept' in globals(), len(context), open('notes.txt').read(), llm_query('[sub] b'))"),
        fence(finish("context[-3:] + llm_query('[sub] c')")),
        sub=lambda request: request.first_user.removeprefix(SUB).upper(),
    )
    task = demo(context="é" * 3_000_000 + "end", context_files={"notes.txt": "täxt"}, reference="endC")
    image = engine.image("oldest", OLDEST)
    trace = await run_episode(engine, image, policy, task, repl={"call_seconds": 5})
    assert trace.ok, trace.errors
    assert trace.reward == 1.0
    told = observations(trace)
    assert f"{PLACE}/{BINARY} 3000003 end" in told[0]
    assert "täxt ['0', '1', '2', '3', '4']" in told[1]
    assert "KeyboardInterrupt" in told[2]
    assert "still 1" in told[3]
    assert "exited with code 3" in told[3]
    assert "False 3000003 täxt B" in told[4]
    assert trace.metrics["repl_timeouts"] == 1
    assert trace.metrics["repl_restarts"] == 1
    assert trace.metrics["sub_calls"] == 7


HOSTILE = {
    "daemons": "subprocess.Popen(['sh', '-c', 'setsid sleep 4321 & setsid sleep 4321 &'])\nprint('done')",
    "double fork": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(4321)\n    os._exit(0)\n"
        "print('done')"
    ),
    "no end": "while True:\n    try: time.sleep(4321)\n    except KeyboardInterrupt: pass",
    "memory": "try: bytearray(1 << 30)\nexcept MemoryError: print('done')",
    "memory of many": (
        "for _ in range(6):\n    if os.fork() == 0:\n        x = os.urandom(1 << 20) * 150\n"
        "        time.sleep(4321)\ntime.sleep(4321)"
    ),
    "flood": "for _ in range(200): os.write(1, b'x' * (1 << 20))\nprint('done')",
    "forged frame": (
        "import gc\nc = next(o for o in gc.get_objects() if type(o).__name__ == 'Channel')\n"
        "c.sock.sendall(bytes(100))\ntime.sleep(4321)"
    ),
    "files": "open('/tmp/left', 'w').write('x')\nopen('left', 'w').write('x')\nprint('done')",
    "kill all": "os.kill(-1, 9)",
}
DEADLY = {"no end", "memory of many", "forged frame", "kill all"}


async def test_hostile_code_spoils_its_own_repl_only_and_nothing_is_left(engine):
    async with box(engine, engine.image("oldest", OLDEST)) as runtime:
        clean, files = await in_the_box(runtime)
        beside = await ReplClient.start(runtime, ReplConfig(), context="beside", handler=echo)
        for name, code in HOSTILE.items():
            if name == "kill all":  # it reaches all of its box, which is why a box holds one episode
                await beside.close()
                processes, left = await settled(runtime, lambda processes: processes == clean)
                assert processes == clean
                # What code writes outside of its directory is the box's, and goes with it.
                assert [name for name in left if not name.startswith("rlm-repl-")] == ["left", *files]
            # The others are done, or ended, before: the limit is there for this one.
            seconds = 3 if name == "no end" else 60
            config = ReplConfig(call_seconds=seconds, interrupt_grace_seconds=0.5, memory_mb=512)
            client = await ReplClient.start(runtime, config, context="data", handler=echo)
            result = await client.run("import os, subprocess, time\n" + code)
            assert result.restarted == (name in DEADLY), (name, result)
            assert ("done" in result.output) == (name not in DEADLY), (name, result)
            assert len(result.output) < 9000
            assert (await client.run("context, llm_query('x')")).output == "('data', 'X')\n", name
            await client.close()
            if name != "kill all":
                assert (await beside.run("context")).output == "'beside'\n", name

        # It killed the supervisor that would have reaped: the dead stay listed until the box goes.
        def living(processes):
            return [line for line in processes if not line.startswith("Z")]

        processes, _ = await settled(runtime, lambda processes: living(processes) == clean)
        assert living(processes) == clean


async def test_many_repls_in_one_box(engine):
    async with box(engine, engine.image("oldest", OLDEST)) as runtime:
        started = (
            ReplClient.start(runtime, ReplConfig(), context=f"context {i}", handler=echo) for i in range(6)
        )
        clients = await asyncio.gather(*started)
        results = await asyncio.gather(*(c.run("llm_query(context)") for c in clients))
        assert [r.output for r in results] == [f"'CONTEXT {i}'\n" for i in range(6)]
        await asyncio.gather(*(client.close() for client in clients))
        processes, _ = await settled(runtime, lambda processes: "worker" not in "".join(processes))
        assert not any("worker" in line for line in processes), processes


async def test_an_image_without_python_is_a_clear_error_of_the_trace(engine):
    with engine.tagged(HELPER, OLDEST):
        trace = await run_episode(engine, engine.image("none", None), script(fence(finish("1"))), demo())
    assert not trace.ok
    assert [error.type for error in trace.errors] == ["SandboxError"]
    text = trace.errors[0].message
    assert f"the image of the {engine.name} runtime has no 'python3'" in text
    assert "Use an image with python3 >= 3.8, or set repl.python" in text


async def test_a_python_elsewhere_in_the_image_is_used_by_its_path(engine):
    binary = f"{PLACE}/{BINARY}"
    policy = script(fence("import sys"), fence(finish("sys.executable")))
    trace = await run_episode(
        engine, engine.image("oldest", OLDEST), policy, demo(reference=binary), repl={"python": binary}
    )
    assert trace.reward == 1.0, trace.errors


@pytest.mark.skipif(TOO_OLD is None, reason="there is no Python 3.6 or 3.7 on this machine")
async def test_an_image_with_too_old_a_python_is_named(engine):
    async with box(engine, engine.image("too-old", TOO_OLD)) as runtime:
        with pytest.raises(ReplStartError, match=r"needs python >= 3\.8; this is 3\.[67]\."):
            await ReplClient.start(runtime, ReplConfig(), handler=echo)
