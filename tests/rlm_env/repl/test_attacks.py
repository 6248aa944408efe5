"""Hostile programs, run for real in both isolation back ends.

For each: nothing of the host is reached, the call ends with the stated outcome, the REPL then works with its
context whole, and the host has lost no memory, descriptor or process to it.
"""

import asyncio
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.rlm_env.repl.attacks import ATTACKS, PRELUDE

LIMITS = {
    "memory_mb": 512,
    "scratch_mb": 16,
    "processes": 32,
    "open_files": 64,
    "frame_mb": 4,
    "answer_chars": 100_000,
}
HOST_MEMORY = 80 << 20
"""What an attack may cost the host for a moment: twenty frames of frame_mb."""


def backend(name):
    missing = name == "bwrap" and shutil.which("bwrap") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="bubblewrap is not installed"))


class Host:
    """What an attack must not reach: a secret in the environment and in a file, listening sockets."""

    def __init__(self, folder: Path) -> None:
        self.secret = f"TOPSECRET-{secrets.token_hex(8)}"
        self.folder = folder
        self.file = folder / "secret.txt"
        self.file.write_text(self.secret)
        self.file.chmod(0o644)
        self.tcp = socket.create_server(("0.0.0.0", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("0.0.0.0", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "s"))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.name = secrets.token_hex(8)
        self.abstract.bind("\0" + self.name)
        for server in (self.unix, self.abstract):
            server.listen()
        for server in self.servers:
            server.setblocking(False)

    @property
    def servers(self):
        return [self.tcp, self.udp, self.unix, self.abstract]

    def constants(self) -> str:
        values = {
            "PORT": self.tcp.getsockname()[1],
            "UDP_PORT": self.udp.getsockname()[1],
            "SECRET_FILE": str(self.file),
            "UNIX_PATH": str(self.folder / "s"),
            "ABSTRACT": self.name,
            "HOST_PID": os.getpid(),
            "PYTHON_LIB": sysconfig.get_path("stdlib"),
        }
        return "".join(f"{name} = {value!r}\n" for name, value in values.items())

    def assert_unreached(self) -> None:
        for server in (self.tcp, self.unix, self.abstract):
            with pytest.raises(BlockingIOError):
                server.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(10)
        assert self.file.read_text() == self.secret
        for place in ("/tmp/planted", "/dev/shm/planted", "/usr/lib/planted"):
            assert not os.path.exists(place)


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(tmp_path)
    monkeypatch.setenv("MY_PASSWORD", host.secret)
    yield host
    for server in host.servers:
        server.close()


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Namespaces:
    """The process namespaces of workers. Held open: the number of one that is gone goes to the next that is
    made, by whomever on this machine."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def add_below(self, pid: int) -> None:
        """Those below a process, the host's own left out."""
        own, queue = os.readlink("/proc/self/ns/pid"), [pid]
        while queue:
            pid = queue.pop()
            try:
                queue += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                handle = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
            except OSError:
                continue
            name = os.readlink(f"/proc/self/fd/{handle}")
            if name == own or name in self.held:
                os.close(handle)
            else:
                self.held[name] = handle

    def processes(self) -> list[str]:
        """The processes that are in one of them."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") in self.held:
                    found.append(pid)
            except OSError:
                continue
        return found

    def close(self) -> None:
        while self.held:
            os.close(self.held.popitem()[1])


@pytest.fixture
def namespaces():
    namespaces = Namespaces()
    yield namespaces
    namespaces.close()


async def eventually(check, what: str) -> None:
    for _ in range(1500):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(what)


def test_there_are_enough_attacks_and_no_two_alike():
    assert len(ATTACKS) >= 60
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


GETS_THROUGH = {
    "secret-file": "TOPSECRET",
    "symlink-to-the-secret": "ESCAPED link 'TOPSECRET",
    "tcp": "ESCAPED connect",
    "udp": "ESCAPED 8.8.8.8|ESCAPED 127.0.0.1|got 127.0.0.1",
    "unix-socket": "ESCAPED unix",
    "abstract-unix-socket": "ESCAPED abstract",
    "signal-the-host": "ESCAPED host",
    "command-lines-of-all": "ESCAPED",
    "root-of-other-processes": "ESCAPED",
}
"""Attacks that do no harm where nothing confines them, and what they then print (root or not)."""


@pytest.mark.parametrize("name", GETS_THROUGH)
async def test_without_confinement_the_attacks_get_through(repl, host, name):
    """So it is the confinement that stops them above, and not a mistake in the program."""
    program = next(attack for attack in ATTACKS if attack.name == name)
    client = await repl(isolation="none", call_seconds=10)
    result = await client.run(PRELUDE + host.constants() + program.code)
    assert re.search(GETS_THROUGH[name], result.output), result.output


@pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
@pytest.mark.parametrize("isolation", [backend("bwrap"), backend("namespaces")])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack(repl, host, namespaces, attack, isolation):
    async def handler(name, payload):
        await asyncio.sleep(0.3 if payload["prompts"] == ["slow"] else 0)
        return {"results": [{"text": "reply"} for _ in payload["prompts"]], "limit": None}

    descriptors = len(os.listdir("/proc/self/fd"))
    client = await repl(
        isolation=isolation,
        call_seconds=attack.seconds,
        # A busy machine takes its time over an interrupt that is to be obeyed.
        interrupt_grace_seconds=10 if attack.outcome == "alive" else 0.5,
        context="the context",
        handler=handler,
        **{**LIMITS, **attack.settings},
    )
    namespaces.add_below(client._worker.process._process.pid)
    assert len(namespaces.held) == 1
    reset_peak_memory()
    before = memory("VmRSS")

    result = await client.run(PRELUDE + host.constants() + attack.code)

    cost = memory("VmHWM") - before
    assert cost < HOST_MEMORY, f"the host needed {cost >> 20} MB"
    told = result.output + repr(result)
    assert "ESCAPED" not in result.output, result.output
    assert host.secret not in told
    assert attack.says in result.output, result.output
    assert len(result.output) <= 8192 + 100
    assert len(client.answer.content) <= 100_000
    if attack.outcome != "any":
        assert result.restarted == (attack.outcome == "dead"), (result.notes, result.output)
    if attack.error:
        assert result.error == attack.error, result.output

    namespaces.add_below(client._worker.process._process.pid)
    after = await client.run("answer['content'] = f'alive, {context}'")
    if after.restarted:  # the attack's last word came only now
        assert attack.outcome == "any", after
        after = await client.run("answer['content'] = f'alive, {context}'")
    if not attack.name.startswith("poisoned"):
        assert after.answer.content == "alive, the context", after
    host.assert_unreached()

    namespaces.add_below(client._worker.process._process.pid)
    await client.close()
    await eventually(lambda: not namespaces.processes(), f"processes live on in {[*namespaces.held]}")
    namespaces.close()
    await eventually(
        lambda: len(os.listdir("/proc/self/fd")) <= descriptors,
        f"{len(os.listdir('/proc/self/fd'))} descriptors, {descriptors} before",
    )
