"""The choice of a back end, and confinement with the rights of an ordinary user as well as with root's."""

import functools
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlm_env.repl import IsolationUnavailable, ReplConfig, ReplStartError, isolation, seccomp
from rlm_env.repl.isolation import Plan

linux = pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def fresh():
    """Without what was found out before."""
    caches = (isolation._resolve, isolation.interpreter, isolation.landlock_abi, isolation.kernel_version)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@linux
def test_every_candidate_of_this_machine_is_tried_and_works():
    found = isolation.interpreter(None)
    plans = [*isolation._candidates("auto", found), *isolation._candidates("namespaces", found)]
    assert {plan.backend for plan in plans} == {"namespaces"} | (
        {"bwrap"} if shutil.which("bwrap") else set()
    )
    assert {plan.privileged for plan in plans} == ({True, False} if os.geteuid() == 0 else {False})
    for plan in plans:
        assert isolation._try(plan) is None


@linux
def test_auto_takes_bubblewrap_where_it_is_and_else_namespaces(fresh, monkeypatch):
    if shutil.which("bwrap"):
        assert isolation.resolve(ReplConfig(), "subprocess").backend == "bwrap"
    isolation._resolve.cache_clear()
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else which(name))
    plan = isolation.resolve(ReplConfig(), "subprocess")
    assert plan.backend == "namespaces"
    assert "landlock" in plan.report
    assert isolation.resolve(ReplConfig(), "subprocess") is plan


@linux
def test_where_nothing_works_the_error_gives_every_reason_and_both_cures(fresh, monkeypatch):
    monkeypatch.setattr(isolation, "_try", lambda plan: "unshare: Operation not permitted")
    with pytest.raises(IsolationUnavailable) as caught:
        isolation.resolve(ReplConfig(isolation="namespaces"), "subprocess")
    text = str(caught.value)
    assert "namespaces (user namespace): unshare: Operation not permitted" in text
    assert 'isolation = "none"' in text
    assert 'runtime.type = "docker"' in text


@linux
def test_asking_for_bubblewrap_where_there_is_none_says_so(fresh, monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else which(name))
    with pytest.raises(IsolationUnavailable, match="bubblewrap is not installed"):
        isolation.resolve(ReplConfig(isolation="bwrap"), "subprocess")


@linux
@pytest.mark.parametrize(
    ("breach", "fault"),
    [
        ("--share-net", "the host's network is reachable"),
        ("--bind-tmp", "files of the host are visible"),
        ("--environment", "the environment is not clean"),
    ],
)
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_probe_finds_a_leaky_back_end(monkeypatch, breach, fault):
    """A probe that could not fail would prove nothing: break the sandbox in one place at a time."""
    command = Plan.command

    def leaky(self, config, worker_dir=None):
        argv = command(self, config, worker_dir)
        if breach == "--share-net":
            argv.remove("--unshare-net")
            argv[-1] = json.dumps({**json.loads(argv[-1]), "landlock": False})
        elif breach == "--bind-tmp":
            if argv[argv.index("/tmp") - 2] == "--symlink":  # not when this Python lives below /tmp
                del argv[argv.index("/tmp") - 2 : argv.index("/tmp") + 1]
            at = argv.index("--proc")
            argv[at:at] = ["--bind", "/tmp", "/tmp"]
        else:
            argv.insert(argv.index("-i") + 1, "MY_PASSWORD=x")
        return argv

    monkeypatch.setattr(Plan, "command", leaky)
    plan = next(
        p for p in isolation._candidates("bwrap", isolation.interpreter(None)) if p.backend == "bwrap"
    )
    assert fault in (isolation._try(plan) or "")


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason="needs a Python that every user may run")
@pytest.mark.parametrize("backend", ["bwrap", "namespaces"])
def test_an_ordinary_user_is_confined_too(monkeypatch, backend):
    """The probe in a worker that is started with the rights of ``nobody``."""
    if backend == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    nobody = pwd.getpwnam("nobody")
    plan = Plan(backend, False, isolation.interpreter(SYSTEM_PYTHON))
    popen = functools.partial(
        subprocess.Popen, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], cwd="/"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # the checkout itself may be closed to others
        monkeypatch.setattr(isolation, "WORKER", Path(shutil.copy(isolation.WORKER, folder)))
        monkeypatch.setattr(isolation.subprocess, "Popen", popen)
        assert isolation._try(plan) is None


@linux
@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("backend", ["bwrap", "namespaces"])
async def test_limits_and_packages_in_every_flavour(repl, monkeypatch, backend, privileged):
    if backend == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if privileged and os.geteuid() != 0:
        pytest.skip("needs root")
    plan = Plan(backend, privileged, isolation.interpreter(None), backend)
    monkeypatch.setattr(isolation, "resolve", lambda *_: plan)
    client = await repl(memory_mb=512, scratch_mb=8, processes=24, context_files={"data.txt": "d"})
    code = (
        "import os, numpy\n"
        "print(numpy.ones(3).sum(), os.getpid() != 1, os.getcwd(), open('data.txt').read())\n"
        "try: open('big', 'wb').write(bytes(9 << 20))\n"
        "except OSError as e: print(e.strerror)\n"
        "try: bytearray(1 << 30)\n"
        "except MemoryError: print('memory')\n"
        "print(sorted(set(os.listdir('/')) & {'home', 'var', 'mnt', 'boot', 'sys', 'run', 'srv', 'media'}))\n"
        "print(os.path.exists('/proc/self/status'))"
    )
    lines = (await client.run(code)).output.splitlines()
    assert lines[1] in ("File too large", "No space left on device")
    assert lines[:1] + lines[2:] == ["3.0 True /scratch/work d", "memory", "[]", "True"]
    code = (
        "import os, signal, time\n"
        "pids = []\n"
        "try:\n"
        "    while len(pids) < 60:\n"
        "        pid = os.fork()\n"
        "        if pid == 0: time.sleep(60); os._exit(0)\n"
        "        pids.append(pid)\n"
        "    time.sleep(60)\n"  # for the supervisor, which looks now and then
        "except OSError: pass\n"
        "print(len(pids) < 40)\n"
        "for pid in pids: os.kill(pid, 9)"
    )
    result = await client.run(code)
    if privileged:
        # A user id of its own: the kernel's own count binds.
        assert result.output == "True\n"
    else:
        # Root's id inside a user namespace is exempt from that count; then the supervisor ends it.
        assert result.output == "True\n" or "processes:" in result.notes[0]


def test_the_seccomp_program_is_there_for_the_common_machines_and_no_others():
    for machine in seccomp.ARCHITECTURES:
        program = seccomp.program(machine)
        assert len(program) % 8 == 0
        assert len(program) > 100
    assert seccomp.program("riscv64") is None


@linux
def test_the_seccomp_program_can_be_made_anew():
    try:
        program = seccomp.compile_program()
    except OSError as error:
        pytest.skip(f"libseccomp: {error}")
    assert program == seccomp.program("x86_64")


def test_a_home_directory_is_never_shown_with_the_python_in_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "usr" / "me"))
    found = isolation.Interpreter("python", (str(tmp_path / "usr"),), ())
    with pytest.raises(IsolationUnavailable, match="home directory"):
        isolation.view(found)


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/true"])
def test_an_interpreter_that_does_not_work_is_an_error_with_its_setting(python):
    with pytest.raises(ReplStartError, match=r"repl\.python"):
        isolation.resolve(ReplConfig(python=python, isolation="none"), "subprocess")


def pythons():
    folder = os.path.expanduser("~/.pyenv/versions")
    found = {f"3.{minor}": shutil.which(f"python3.{minor}") for minor in (8, 9, 10, 12, 13, 14)}
    for version in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        found.setdefault(".".join(version.split(".")[:2]), None)
        path = f"{folder}/{version}/bin/python"
        minor = ".".join(version.split(".")[:2])
        if os.path.exists(path) and minor in found:
            found[minor] = path
    return found


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10", "3.12", "3.13"])
async def test_other_pythons_than_the_hosts(repl, version):
    python = pythons().get(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    client = await repl(python=python, context={"a": ["é"]})
    result = await client.run("import sys\nsys.version_info[:2], context, llm_query('x')")
    assert result.output == f"({tuple(map(int, version.split('.')))}, {{'a': ['é']}}, 'X')\n"
    result = await client.run("def f():\n    1/0\nf()")
    assert result.error == "ZeroDivisionError"
    assert "1/0" in result.output
    assert (await client.run("import os; os._exit(1)")).restarted
    assert (await client.run("context")).output == "{'a': ['é']}\n"


def test_a_python_that_is_too_old_is_named():
    python = pythons().get("3.7") or pythons().get("3.6")
    if python is None:
        pytest.skip("there is no old Python here")
    with pytest.raises(ReplStartError, match=r"3\.8"):
        isolation.interpreter(python)
    done = subprocess.run([python, "-c", isolation.BOOT, "/tmp", "{}"], capture_output=True, text=True)
    assert "needs python >= 3.8; this is 3." in done.stderr


@pytest.fixture
def venv_below_tmp():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        yield folder


@linux
@pytest.mark.parametrize("backend", ["bwrap", "namespaces"])
async def test_a_python_below_tmp_can_be_confined(repl, venv_below_tmp, backend):
    """A clone in a temporary folder: /tmp must then be a folder of the view and not a link to the scratch."""
    if backend == "bwrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    client = await repl(isolation=backend, python=f"{venv_below_tmp}/bin/python")
    result = await client.run(
        "import os, tempfile\nprint(os.listdir('/tmp'))\n"
        "with tempfile.TemporaryFile() as f: print(f.write(b'abc'))\n"
        "try: open('/tmp/x', 'w')\nexcept OSError as error: print(error.errno)"
    )
    assert result.output.split() == [f"['{os.path.basename(venv_below_tmp)}']", "3", "30"]


@pytest.fixture(scope="module")
def with_a_suite(tmp_path_factory):
    """The interpreter of an environment in which a suite is installed: a package with data, a module."""
    root = tmp_path_factory.mktemp("env") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (site,) = root.glob("lib/python*/site-packages")
    for name in ("suite", "other"):
        (site / name / "data").mkdir(parents=True)
        (site / name / "__init__.py").write_text("REFERENCE = 42\n")
        (site / name / "data" / "mini.jsonl").write_text('{"answer": 42}\n')
    (site / "suite_module.py").write_text("REFERENCE = 42\n")
    (site / "suites_alike.py").write_text("REFERENCE = 0\n")
    subprocess.run([str(root / "bin/python"), "-m", "compileall", "-q", str(site)], check=True)
    assert list(site.glob("__pycache__/suite_module.*.pyc"))
    return root / "bin" / "python", site


LOOK = """
import importlib, os
def look(name):
    try:
        return importlib.import_module(name).REFERENCE
    except Exception as error:
        return type(error).__name__
print([look(name) for name in ("suite", "suite_module", "other", "suites_alike")])
found = []
for folder, _, names in os.walk("SITE"):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                text = file.read()
        except PermissionError:
            continue
        if text and "suite" in folder + name and "alike" not in name:
            found.append(name)
print(found)
for change in (lambda: open("SITE/suite/x", "w"), lambda: os.rmdir("SITE/suite")):
    try:
        change()
    except OSError as error:
        print(error.strerror)
"""


@linux
@pytest.mark.parametrize("backend", ["bwrap", "namespaces"])
async def test_hidden_modules_can_be_neither_imported_nor_read(repl, with_a_suite, backend):
    if backend == "bwrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    python, site = with_a_suite
    code = LOOK.replace("SITE", str(site))
    settings = {"isolation": backend, "python": str(python)}
    open_to_all = await (await repl(**settings)).run(code)
    assert "[42, 42, 42, 0]" in open_to_all.output
    assert "mini.jsonl" in open_to_all.output
    result = await (await repl(**settings, hidden=["suite", "suite_module"])).run(code)
    imports, found, *refused = result.output.splitlines()
    assert imports == "['AttributeError', 'ModuleNotFoundError', 42, 0]"  # the folder is there, and empty
    assert found == "[]"
    assert len(refused) == 2


@linux
@pytest.mark.parametrize("backend", ["bwrap", "namespaces"])
async def test_an_environment_behind_a_symbolic_link(repl, with_a_suite, backend, tmp_path):
    if backend == "bwrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    python, site = with_a_suite
    link = tmp_path / "venv"
    link.symlink_to(python.parents[1])
    client = await repl(isolation=backend, python=str(link / "bin" / "python"), hidden=["suite"])
    code = "import os, other\nprint(other.REFERENCE, [os.listdir(f'{site}/suite') for site in SITES])"
    sites = [str(site), str(link / site.relative_to(python.parents[1]))]
    result = await client.run(code.replace("SITES", repr(sites)))
    assert result.output.strip() == "42 [[], []]"
