"""What holds for all four suites: they can be published alone, and their READMEs are true."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import verifiers.v1 as vf
from packaging.requirements import Requirement
from verifiers.v1.cli.eval import main as vf_eval

from rlm_env.repl import ReplClient
from tests.environments.episodes import run
from tests.fakes import FakeModelServer
from tests.fakes.policies import fence, finish, script

ROOT = Path(__file__).parents[2]
SUITES = {
    "verbatim_copy": "verbatim-copy",
    "oolong": "oolong",
    "math_python": "math-python",
    "deepdive": "deepdive",
}
"""Folder and package -> id and distribution."""
suites = pytest.mark.parametrize("suite", SUITES)


def sources(suite: str) -> list[Path]:
    return sorted((ROOT / "environments" / suite / suite).rglob("*.py"))


def commands(suite: str) -> list[list[str]]:
    """The `vf-eval` commands of a README that can be run as they stand."""
    readme = (ROOT / "environments" / suite / "README.md").read_text()
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", readme, re.S)).replace("\\\n", " ").split("\n")
    found = [line for line in lines if line.startswith("vf-eval ") and "..." not in line]
    return [shlex.split(line, comments=True)[1:] for line in found]


# ---- modes


@suites
def test_verifiers_loads_every_mode_with_the_same_tasks_and_tips_that_can_be_stripped(suite: str) -> None:
    prompts, keys = {}, {}
    for mode in ("llm", "rlm", "rlm_tips"):
        taskset = {"id": SUITES[suite], "split": "mini", "mode": mode, "num_tasks": 5}
        tasks = list(vf.load_taskset(vf.resolve_env_config({"taskset": taskset}).taskset))
        prompts[mode] = [str(task.data.prompt) for task in tasks]
        keys[mode] = [task.key for task in tasks]
    assert keys["llm"] == keys["rlm"] == keys["rlm_tips"]
    assert len(set(keys["rlm"])) == 5
    stripped = [
        re.sub(r"\n\n<env_tips>\n.*?\n</env_tips>", "", text, flags=re.S) for text in prompts["rlm_tips"]
    ]
    assert stripped == prompts["rlm"] != prompts["rlm_tips"]
    assert not any("env_tips" in text for text in prompts["llm"])


# ---- the sandbox


async def test_no_suite_is_in_the_sandbox() -> None:
    """The generators and the mini splits' files hold references: code must find neither."""
    look = f"""
import importlib, pathlib, sys
found = []
for name in {list(SUITES)!r}:
    try:
        found.append(importlib.import_module(name).__file__)
    except ImportError:
        pass
for folder in sys.path:
    for name in ('mini.jsonl', 'questions.jsonl'):
        found += map(str, pathlib.Path(folder).glob('*/**/' + name))
print(found, len(sys.path))
"""
    taskset = {"id": "verbatim-copy", "num_tasks": 1}
    (trace,), _ = await run(taskset, script(fence(look), fence(finish("'x'"))))
    observation = trace.info["rlm"]["episodes"][0]["turns"][0]["observation"]
    found = re.search(r"^\[(.*)\] (\d+)$", observation, re.M)
    assert found is not None, observation
    assert found[1] == ""
    assert int(found[2]) > 1


async def test_the_harness_hides_the_suite_that_is_played(monkeypatch) -> None:
    start, hidden = ReplClient.start, []

    async def spy(*args, **kwargs):
        hidden.append(kwargs["hidden"])
        return await start(*args, **kwargs)

    monkeypatch.setattr(ReplClient, "start", spy)
    for suite in ("verbatim-copy", "math-python"):
        taskset = {"id": suite, "split": "mini", "num_tasks": 1}
        await run(taskset, script(fence(finish("'x'"))))
        assert suite.replace("-", "_") in hidden[-1]
        await run(taskset, script(fence(finish("'x'"))), harness={"repl": {"hide_tasksets": False}})
        assert hidden[-1] == ()


# ---- the READMEs


@suites
def test_the_readmes_commands_are_understood(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands(suite)
    for command in commands(suite):
        arguments = vf_eval.with_positional_taskset(command)
        monkeypatch.setattr(sys, "argv", ["vf-eval", *arguments])
        config = vf_eval.cli(vf_eval.narrow_config(vf_eval.EvalConfig, arguments))
        assert config.env.taskset.id == SUITES[suite]


@suites
def test_every_setting_is_in_the_readme(suite: str) -> None:
    readme = (ROOT / "environments" / suite / "README.md").read_text()
    config = vf.taskset_config_type(SUITES[suite])
    own = set(config.model_fields) - set(vf.TasksetConfig.model_fields)
    assert [name for name in sorted(own | {"task"}) if f"`{name}" not in readme] == []


@pytest.mark.timeout(900)  # a program that has all to import and a data set to generate
@pytest.mark.parametrize("suite", ["oolong", "math_python", "deepdive"])  # verbatim_copy: its own tests
def test_the_readmes_offline_command_runs(suite: str, tmp_path: Path) -> None:
    command = commands(suite)[0]
    assert command[command.index("--env.taskset.split") + 1] == "mini"
    with FakeModelServer(script(fence(finish("'Answer: x'")))).in_thread() as server:
        endpoint = [
            "-m",
            "fake-model",
            "--client.base-url",
            server.base_url,
            "--client.api-key-var",
            "UNSET_KEY",
        ]
        program = str(Path(sys.executable).with_name("vf-eval"))
        done = subprocess.run(
            [program, *command, "-n", "2", *endpoint, "--no-push", "-o", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(server.requests) == 2
    (saved,) = tmp_path.rglob("traces.jsonl")
    records = [json.loads(line) for line in saved.read_text().splitlines()]
    traces = [record["traces"][0] if "traces" in record else record for record in records]
    assert [trace["root_reply"] for trace in traces] == ["Answer: x"] * 2
    assert not any(trace.get("errors") for trace in traces)


# ---- packages


@suites
def test_what_is_imported_is_declared(suite: str) -> None:
    project = tomllib.loads((ROOT / "environments" / suite / "pyproject.toml").read_text())["project"]
    assert project["name"] == SUITES[suite]
    declared = {canonical(Requirement(text).name) for text in project["dependencies"]}
    imported = set()
    for path in sources(suite):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    providers = importlib.metadata.packages_distributions()
    for name in sorted(imported - set(sys.stdlib_module_names) - {suite}):
        assert {canonical(provider) for provider in providers[name]} & declared, name


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.timeout(900)
@suites
def test_a_wheel_holds_the_whole_package(suite: str, tmp_path: Path) -> None:
    """Built from the suite's folder alone, as for publishing."""
    copy = tmp_path / suite
    here = ROOT / "environments" / suite
    shutil.copytree(here, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", str(wheels), str(copy)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = archive.read(metadata).decode()
    files = {path.relative_to(here).as_posix() for path in (here / suite).rglob("*") if path.is_file()}
    assert packed == {name for name in files if "__pycache__" not in name}
    assert (here / "README.md").read_text().strip() in about
    assert f"{suite}/py.typed" in packed


@suites
def test_every_setting_says_what_it_is(suite: str) -> None:
    silent = []
    for path in sources(suite):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
                continue
            for field, following in zip(node.body, [*node.body[1:], None], strict=True):
                told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not told:
                    silent.append(f"{node.name}.{ast.unparse(field.target)}")
    assert silent == []
