"""How the worker is started and confined: the choice of a back end, made once per machine and interpreter.

The idea: a back end is not believed but tried. Each candidate starts a real worker with the real command
line and lets it report from inside what it can still see and do; only one whose report is clean is used.
Where none is, ``IsolationUnavailable`` carries every candidate's reason and the two cures. Nothing weaker
than what was asked for is ever used in silence.

What each back end promises is in docs/security.md.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlm_env.repl import seccomp
from rlm_env.repl.config import Isolation, IsolationUnavailable, ReplConfig, ReplStartError
from rlm_env.repl.worker import HEADER, SCRATCH, Kernel, pack, pack_json

WORKER = Path(__file__).with_name("worker.py")
INSIDE = "/opt/rlm-repl"
"""Where bubblewrap shows the worker's file."""

BOOT = (
    "import sys\n"
    "if sys.version_info < (3, 8):\n"
    "    sys.exit('the REPL needs python >= 3.8; this is ' + sys.version.split()[0])\n"
    "sys.path.insert(0, sys.argv.pop(1))\n"
    "import worker\n"
    "del sys.path[0], sys.modules['worker']\n"
    "worker.main()\n"
)
"""Imports the worker rather than running its file, so that its compiled form is cached. Also tells too old
a Python, which could not even parse the file."""

FLAGS = ("-I", "-S", "-X", "utf8=1")
"""No environment, no site packages (their paths are added later), UTF-8 whatever the locale."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": SCRATCH + "/work",
    "TMPDIR": SCRATCH + "/.tmp",
    "LANG": "C.UTF-8",
    "LOGNAME": "repl",
    # One thread per linear-algebra library: many REPLs share the machine, and threads count as processes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""All that model code finds in ``os.environ``, in the ``subprocess`` runtime."""

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_DEVICES = ("null", "zero", "full", "random", "urandom")

Backend = Literal["bwrap", "namespaces", "none", "container"]


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine: its executable, the directories it needs, its package directories."""

    executable: str
    folders: tuple[str, ...]
    site: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A back end that works here, with what its command line needs."""

    backend: Backend
    privileged: bool = False
    """Set up with the rights of root, and then under a user id of its own; else in a user namespace."""
    interpreter: Interpreter | None = None
    report: str = ""
    """One line for people: what confines the code."""

    @property
    def isolated(self) -> bool:
        return self.backend in ("bwrap", "namespaces")

    def command(
        self, config: ReplConfig, worker_dir: str | None = None, hidden: Collection[str] = ()
    ) -> list[str]:
        """The argv that starts a worker. ``worker_dir``: where worker.py lies, in a container. ``hidden``:
        top-level modules that are not shown, see ``places``."""
        covered = places(self.interpreter, hidden) if self.isolated and self.interpreter else []
        settings = json.dumps(self._settings(config, covered))
        if self.backend == "container":
            return [config.python or "python3", *FLAGS, "-B", "-c", BOOT, str(worker_dir), settings]
        assert self.interpreter is not None
        python = [self.interpreter.executable, *FLAGS, "-c", BOOT]
        # env -i: whatever the host's environment holds, it is not in the worker's, nor in its /proc entry.
        clean = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        if self.backend == "bwrap":
            return [*clean, *self._bwrap(config, covered), *python, INSIDE, settings]
        return [*clean, *python, str(WORKER.parent), settings]

    def _settings(self, config: ReplConfig, covered: Sequence[str]) -> dict[str, Any]:
        links, binds = view(self.interpreter) if self.interpreter is not None else ([], [])
        program = seccomp.program(platform.machine()) if self.isolated else None
        return {
            "isolation": self.backend,
            "privileged": self.privileged,
            # 28 random bits: no account has such an id, and no two workers share one.
            "uid": 0x60000000 + int.from_bytes(os.urandom(4), "big") % 0x10000000,
            "links": links if self.backend == "namespaces" else [],
            "binds": [(os.path.realpath(path), path) for path in binds]
            if self.backend == "namespaces"
            else [],
            "covered": list(covered) if self.backend == "namespaces" else [],
            "site": None if self.interpreter is None else list(self.interpreter.site),
            "landlock": self.isolated and landlock_abi() > 0,
            "seccomp": base64.b64encode(program).decode() if program else "",
            "count_processes": self.privileged or kernel_version() >= (5, 14),
            "frame_bytes": config.frame_bytes,
            "output_chars": config.output_chars,
            "memory_mb": config.memory_mb,
            "cpu_seconds": config.cpu_seconds,
            "processes": config.processes,
            "open_files": config.open_files,
            "scratch_mb": config.scratch_mb,
        }

    def _bwrap(self, config: ReplConfig, covered: Sequence[str]) -> list[str]:
        assert self.interpreter is not None
        argv = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--as-pid-1"]
        argv += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if self.privileged:
            # Real root makes the mounts; the worker then takes an id of its own, for which it needs these.
            argv += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            argv += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
        links, binds = view(self.interpreter)
        ends = [*binds, *(path for path, _ in links), f"{INSIDE}/__pycache__/x", "/dev/x"]
        for folder in _parents(ends):
            # Those that bubblewrap makes itself may be closed to everyone but root.
            argv += ["--perms", "0755", "--dir", folder]
        for path, target in links:
            argv += ["--symlink", target, path]
        for path in binds:
            argv += ["--ro-bind", os.path.realpath(path), path]
        for path in covered:
            if os.path.isdir(path):
                argv += ["--tmpfs", path, "--remount-ro", path]
            else:
                argv += ["--ro-bind", "/dev/null", path]
        argv += ["--ro-bind", str(WORKER), f"{INSIDE}/worker.py"]
        for compiled in WORKER.parent.glob("__pycache__/worker.*.pyc"):
            argv += ["--ro-bind", str(compiled), f"{INSIDE}/__pycache__/{compiled.name}"]
        for name in _DEVICES:
            argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for target, path in (
            ("/proc/self/fd", "/dev/fd"),
            ("fd/0", "/dev/stdin"),
            ("fd/1", "/dev/stdout"),
            ("fd/2", "/dev/stderr"),
            (f"{SCRATCH}/.shm", "/dev/shm"),
        ):
            argv += ["--symlink", target, path]
        if not any(path.startswith("/tmp/") for path in binds):
            # A Python that lives below /tmp needs it as a folder; TMPDIR is the scratch either way.
            argv += ["--symlink", f"{SCRATCH}/.tmp", "/tmp"]
        argv += ["--proc", "/proc"]
        argv += ["--perms", "1777", "--size", str(config.scratch_mb << 20), "--tmpfs", SCRATCH]
        return [*argv, "--remount-ro", "/", "--chdir", "/"]


# --- what this machine is ---


@functools.cache
def kernel_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


@functools.cache
def landlock_abi() -> int:
    """Version of Landlock in the running kernel; 0 = none."""
    return max(0, Kernel().landlock_abi()) if sys.platform == "linux" else 0


@functools.cache
def interpreter(python: str | None) -> Interpreter:
    """Ask an interpreter where it lives. Raises ReplStartError when it does not run or is too old."""
    executable = shutil.which(python) if python else sys.executable
    if not executable:
        raise ReplStartError(f"repl.python={python!r} is no executable on this machine")
    question = (
        "import json, sys, sysconfig\n"
        "if sys.version_info < (3, 8): sys.exit('python >= 3.8 is needed')\n"
        "print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix,"
        " sys.base_exec_prefix, [sysconfig.get_paths()[k] for k in ('stdlib', 'platstdlib')],"
        " [p for p in sys.path if p.rstrip('/').endswith(('site-packages', 'dist-packages'))]]))"
    )
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", question], capture_output=True, text=True, timeout=60, check=True
        )
        path, *prefixes, stdlib, site = json.loads(answer.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise ReplStartError(f"repl.python: {executable} does not work: {detail.strip()[-500:]}") from None
    folders = [*prefixes, *stdlib, *site, os.path.dirname(os.path.realpath(path))]
    if executable.endswith(path) or not path:
        path = executable
    return Interpreter(path, tuple(dict.fromkeys(folders)), tuple(site))


def view(python: Interpreter) -> tuple[list[tuple[str, str]], list[str]]:
    """The file system shown to model code: (symbolic links as (path, target), paths bound read-only)."""
    links, binds = [], []
    for path in _SYSTEM:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            binds.append(path)
    binds += [path for path in _ETC if os.path.exists(path)]
    home = os.path.realpath(os.path.expanduser("~"))
    wanted = [path for folder in python.folders for path in (folder, os.path.realpath(folder))]
    for path in sorted(set(wanted), key=len):
        if os.path.commonpath([path, home]) == path:
            raise IsolationUnavailable(
                f"the Python installation at {path} holds your home directory {home}, so showing the one to "
                "model code would show the other. Set repl.python to a virtual environment's interpreter"
            )
        shown = [*binds, *(link for link, _ in links)]
        if any(path == other or path.startswith(other + "/") for other in shown):
            continue
        if os.path.islink(path):  # its target is among the wanted too
            links.append((path, os.path.realpath(path)))
        elif os.path.isdir(path):
            binds.append(path)
    return links, binds


def places(python: Interpreter, modules: Collection[str]) -> list[str]:
    """Where top-level ``modules`` lie in the view of ``python``: package folders, single files, compiled
    forms. Covered there, they can be neither imported nor read."""
    _, binds = view(python)
    sites = [path for site in python.site for path in (site, os.path.realpath(site))]
    found = []
    for folder in dict.fromkeys(path for site in sites for path in (site, f"{site}/__pycache__")):
        if os.path.isdir(folder) and any(folder.startswith(f"{bound}/") for bound in binds):
            names = (name for name in os.listdir(folder) if name.partition(".")[0] in modules)
            found += [f"{folder}/{name}" for name in sorted(names)]
    return found


def _parents(paths: Sequence[str]) -> list[str]:
    """Every folder above the given paths that is not itself one of them, outermost first."""
    above = {str(folder) for path in paths for folder in Path(path).parents} - {"/", *paths}
    return sorted(above, key=len)


# --- the choice ---

_PROBE = r"""
import os, socket, json
def works(action):
    try:
        action()
        return True
    except BaseException:
        return False
def connect():
    s = socket.socket(); s.settimeout(2); s.connect(("127.0.0.1", PORT))
status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else ""
caps = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
faults = []
if works(connect): faults.append("the host's network is reachable")
if os.path.exists(MARKER): faults.append("files of the host are visible")
if works(lambda: open("/usr/.rlm-repl-probe", "w")): faults.append("/usr is writable")
if works(lambda: os.kill(HOST, 0)): faults.append("the host's process is visible")
if caps and int(caps[0], 16): faults.append("capabilities are left: " + caps[0])
if set(os.environ) - set(ALLOWED): faults.append("the environment is not clean")
answer["content"] = json.dumps(faults)
"""


def resolve(config: ReplConfig, runtime_type: str) -> Plan:
    """The plan for this config. Blocks for a fraction of a second the first time, then is cached.

    Raises IsolationUnavailable with the reasons when the asked-for isolation does not work here, and
    ReplStartError when the interpreter does not.
    """
    if runtime_type != "subprocess":
        return Plan("container", report=f"the {runtime_type} runtime")
    return _resolve(config.isolation, config.python)


@functools.cache
def _resolve(isolation: Isolation, python: str | None) -> Plan:
    found = interpreter(python)
    if isolation == "none":
        return Plan("none", interpreter=found, report="none: model code can do all that this user can")
    faults = []
    for plan in _candidates(isolation, found):
        fault = _try(plan)
        if fault is None:
            return plan
        faults.append(f"{plan.backend} ({'as root' if plan.privileged else 'user namespace'}): {fault}")
    if isolation == "bwrap" and shutil.which("bwrap") is None:
        faults.append("bwrap: bubblewrap is not installed")
    if sys.platform != "linux":
        faults.append(f"{sys.platform}: only Linux has what it takes")
    raise IsolationUnavailable(
        f"model code cannot be confined on this machine (repl.isolation={isolation!r}):\n  "
        + "\n  ".join(faults)
        + '\nEither run the agent in a container (runtime.type = "docker", "apptainer", ...), or accept that '
        'model code can do all that you can: harness.repl.isolation = "none".'
    )


def _candidates(isolation: Isolation, found: Interpreter) -> Sequence[Plan]:
    if sys.platform != "linux":
        return []
    rights = [True, False] if os.geteuid() == 0 else [False]
    layers = ["landlock"] if landlock_abi() else []
    layers += ["seccomp"] if seccomp.program(platform.machine()) else []
    backends: list[Backend] = []
    if isolation in ("auto", "bwrap") and shutil.which("bwrap"):
        backends.append("bwrap")
    if isolation in ("auto", "namespaces"):
        backends.append("namespaces")
    return [
        Plan(
            backend,
            privileged,
            found,
            f"{backend} ({'own user id' if privileged else 'user namespace'})"
            + "".join(f" + {x}" for x in layers),
        )
        for backend in backends
        for privileged in rights
    ]


def _try(plan: Plan) -> str | None:
    """Run the probe in a real worker; the reason why the plan will not do, or None."""
    import socket
    import tempfile

    config = ReplConfig(memory_mb=1024, scratch_mb=16)
    with tempfile.NamedTemporaryFile() as marker, socket.create_server(("127.0.0.1", 0)) as server:
        constants = {
            "PORT": server.getsockname()[1],
            "MARKER": marker.name,
            "HOST": os.getpid(),
            # LC_CTYPE is set by Python itself when it coerces the C locale.
            "ALLOWED": [*ENVIRONMENT, "LC_CTYPE", "PWD"],
        }
        code = "".join(f"{name} = {value!r}\n" for name, value in constants.items()) + _PROBE
        start = {
            "context": {"kind": "none", "bytes": 0},
            "files": [],
            "functions": [],
            "depth_functions": [],
            "on_sub_error": "raise",
            "answer": {"content": "", "ready": False},
            "answer_chars": 10_000,
        }
        frames = pack_json("S", start) + pack_json("X", {"run": 1, "code": code})
        process = subprocess.Popen(
            plan.command(config),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(frames)
            process.stdin.flush()
            return _read_probe(process)
        except (OSError, ValueError) as error:
            return str(error)
        finally:
            process.kill()
            process.communicate()


def _read_probe(process: subprocess.Popen[bytes]) -> str | None:
    assert process.stdout is not None
    assert process.stderr is not None
    output = ""
    while True:
        header = process.stdout.read(HEADER.size)
        if len(header) < HEADER.size:
            return process.stderr.read(2000).decode(errors="replace").strip() or "it ended without a word"
        size, kind = HEADER.unpack(header)
        body = json.loads(process.stdout.read(size))
        if chr(kind) in "ED":
            return str(body.get("message") or body.get("reason"))
        if chr(kind) == "O":
            output = body["head"]
        if chr(kind) == "R":
            if body["error"]:
                return f"the self-check failed: {output.strip()[-500:]}"
            faults = json.loads(body["answer"]["content"])
            return "; ".join(faults) or None


__all__ = ["BOOT", "WORKER", "Plan", "interpreter", "pack", "resolve"]
