"""The worker in a box of its own, as in docker or a remote sandbox.

The box is verifiers' subprocess runtime that says it is another: files are shipped and the box's ``python3``
is used, exactly as in a container, but no daemon is needed.
"""

import os
import secrets
import shutil
import stat
from pathlib import Path

import pytest
from verifiers.v1.errors import SandboxError
from verifiers.v1.runtimes.subprocess import SubprocessConfig, SubprocessRuntime

from rlm_env.repl import ReplStartError
from tests.fakes.policies import fence, finish, script
from tests.rlm_env.episodes import demo, episode
from tests.rlm_env.repl.test_attacks import eventually

PYTHON = shutil.which("python3")


def folder_exists(path):
    return os.path.exists(path)


def endless():
    """The command line of a process that no other test starts, not even in another run on this machine."""
    return ["sleep", str(10**6 + secrets.randbelow(10**6))]


def running(command):
    """Whether any process has this command line. It has for a moment none after it was started, and keeps its
    own for a moment after it was killed."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1] == command:
                return True
        except OSError:
            continue
    return False


class Box(SubprocessRuntime):
    """``python``: what ``python3`` is in the box; None = the image has none."""

    def __init__(self, folder, python):
        super().__init__(SubprocessConfig())
        self.written, self.folder, self.python = [], folder, python

    @property
    def type(self):
        return "docker"

    async def write(self, path, data):
        self.written.append(path)
        await super().write(str(self.folder / path.lstrip("/")), data)

    async def open_process(self, argv, env):
        if self.python is None:
            # As a container's shell says it.
            return await super().open_process(
                ["sh", "-c", f"echo 'exec: {argv[0]}: not found' >&2; exit 127"], env
            )
        argv = [self.python if a == "python3" else a for a in argv]
        argv = [str(self.folder / a.lstrip("/")) if a.startswith("/tmp/rlm-repl-") else a for a in argv]
        return await super().open_process(argv, env)


@pytest.fixture
async def box(tmp_path):
    made = []

    async def make(python=PYTHON):
        made.append(Box(tmp_path, python))
        await made[-1].start()
        return made[-1]

    yield make
    for box in made:
        await box.stop()


async def test_the_worker_is_shipped_as_one_file_and_works(repl, box):
    runtime = await box()
    client = await repl(runtime=runtime, context="data", context_files={"f": "body"})
    assert client.plan.backend == "container"
    assert len(runtime.written) == 1
    result = await client.run("import os\ncontext, open('f').read(), llm_query('x'), os.getcwd()[:10]")
    assert result.output == "('data', 'body', 'X', '/tmp/repl-')\n"
    assert (await client.run("1/0")).error == "ZeroDivisionError"
    assert (await client.run("os._exit(1)")).restarted
    assert (await client.run("context")).output == "'data'\n"


async def test_nothing_is_left_in_the_box(repl, box):
    client, command = await repl(runtime=await box()), endless()
    code = f"import os, subprocess\np = subprocess.Popen({command})\nprint(os.getcwd())"
    folder = (await client.run(code)).output.strip()
    await eventually(lambda: running(command), "it was not started")
    await client.close()
    assert not folder_exists(os.path.dirname(folder))
    await eventually(lambda: not running(command), "it runs on")


async def test_a_time_limit_in_the_box(repl, box):
    runtime = await box()
    client = await repl(runtime=runtime, call_seconds=0.3, interrupt_grace_seconds=60)
    assert (await client.run("import time; time.sleep(60)")).error == "KeyboardInterrupt"
    client = await repl(runtime=runtime, call_seconds=2, interrupt_grace_seconds=0.3)
    result = await client.run(
        "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"
    )
    assert result.restarted


async def test_an_image_without_python_is_named_with_its_cures(repl, box):
    with pytest.raises(
        ReplStartError, match=r"(?s)the image of the docker runtime has no 'python3'.*repl\.python"
    ):
        await repl(runtime=await box(None))


async def test_an_image_with_too_old_a_python_is_named(repl, box, tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 'the REPL needs python >= 3.8; this is 3.6.1' >&2\nexit 1\n")
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ReplStartError, match=r"needs python >= 3\.8; this is 3\.6\.1"):
        await repl(runtime=await box(str(old)))


async def test_a_box_that_is_gone_is_a_start_error(repl, box):
    runtime = await box()

    async def gone(path, data):
        raise SandboxError("the container is gone")

    runtime.write = gone
    with pytest.raises(ReplStartError, match="the container is gone"):
        await repl(runtime=runtime)


async def test_without_isolation_it_works_and_cleans_up(repl):
    client, command = await repl(isolation="none", context="data"), endless()
    result = await client.run("import os\nprint(context, sorted(os.environ)[:3]); os.getcwd()")
    assert result.output.startswith("data ['HOME', 'LANG',")
    folder = result.output.splitlines()[-1].strip("'")
    await client.run(f"import subprocess; p = subprocess.Popen({command}, start_new_session=True)")
    await eventually(lambda: running(command), "it was not started")
    await client.close()
    assert not folder_exists(os.path.dirname(folder))
    await eventually(lambda: not running(command), "it runs on")


async def test_addresses_made_for_the_box_are_not_used_on_the_host(monkeypatch):
    """Docker's ``host_url`` gives a port of the container's own network; the loop runs outside of it."""
    monkeypatch.setattr(
        SubprocessRuntime,
        "host_url",
        lambda self, url: url.replace("http://", "http://127.0.0.1:1/callback/"),
    )
    trace, _ = await episode(script(fence(finish("1"))), demo(reference="1"))
    assert trace.ok, trace.errors
    assert trace.reward == 1.0
