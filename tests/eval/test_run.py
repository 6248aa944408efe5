"""Whole evaluations against scripted model servers: three modes, failures, resume, kills, concurrent runs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from eval import cli
from eval.config import EvalConfig
from eval.endpoints import EndpointError
from eval.folder import RunError, prepare, sole_writer
from eval.matrix import expand, merge
from eval.rows import EPISODES_FILE, Row, append_row, key_of, read_rows
from eval.runner import run_matrix
from eval.scripted_replies import reply as scripted_reply
from tests.fakes import ChatRequest, FakeModelServer, Reply, ToolCall
from tests.processes import left_alive


def play(request: ChatRequest) -> Reply:
    """The stand-in's reply, from the tests' own server (which can also fail)."""
    message = scripted_reply(request.messages, [tool["function"]["name"] for tool in request.tools])
    calls = [
        ToolCall(call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", [])
    ]
    return Reply(content=message.get("content") or "", tool_calls=calls)


def config(folder: Path, server: FakeModelServer | None = None, **changes: Any) -> EvalConfig:
    base: dict[str, Any] = {
        "name": "run",
        "output_dir": str(folder),
        "num_tasks": 4,
        "max_concurrent": 4,
        "progress": False,
        "report": {"bootstrap": 200, "dpi": 50},
        "retries": {"max_retries": 0},
        "harness": {"retry": {"attempts": 2, "initial_seconds": 0.01}},
        "models": {"m": {"base_url": server.base_url if server else "http://127.0.0.1:1/v1"}},
        "suites": {"copy": {"taskset": {"id": "verbatim-copy", "target_length": 60}}},
    }
    return EvalConfig.model_validate(merge(base, changes))


def table(rows: list[Row]) -> dict[Any, Any]:
    """What the tables are made of, by row key."""
    return {
        key_of(row): (row["outcome"], row["reward"], row["root_tokens"], row["task_hash"]) for row in rows
    }


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def test_three_modes_on_the_same_tasks(tmp_path: Path) -> None:
    async with FakeModelServer(play) as server:
        made = config(tmp_path, server)
        rows = await run_matrix(made)
    assert len(rows) == len({key_of(row) for row in rows}) == 12
    assert {row["outcome"] for row in rows} == {"completed"}
    by_mode = {
        mode: {row["task_id"] for row in rows if row["mode"] == mode} for mode in ("llm", "rlm", "rlm_tips")
    }
    assert by_mode["llm"] == by_mode["rlm"] == by_mode["rlm_tips"]
    assert all(row["root_turns"] == (1 if row["mode"] == "llm" else 2) for row in rows)
    tips = [request for request in server.requests if "<env_tips>" in request.first_user]
    assert len(tips) == 4 * 2
    summary = cli.write_report(made, rows)
    results = made.results_dir
    assert {path.name for path in results.iterdir()} == {
        "config.toml", "episodes.jsonl", "cells", "summary.json", "report.md", "plots"
    }  # fmt: skip
    assert json.loads((results / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert "## Differences between modes on the same tasks" in (results / "report.md").read_text()
    # Every row has its trace, in the form that verifiers writes.
    from verifiers.v1.trace import WireTrace
    from verifiers.v1.utils.trace_store import read_episodes

    for cell in expand(made):
        episodes = read_episodes(results / "cells" / cell.id, WireTrace)
        assert {episode.id for episode in episodes} == {
            row["episode_id"] for row in rows if row["mode"] == cell.mode
        }


async def test_failures_are_rows_of_their_own(tmp_path: Path) -> None:
    faults = iter(
        [
            Reply.context_exceeded(),
            Reply.failure(400, "flagged by our content policy", "invalid_request_error"),
            Reply.rate_limited(),
            Reply.rate_limited(),  # the harness tries twice
            Reply.server_error(),
            Reply.server_error(),
        ]
    )

    def policy(request: ChatRequest) -> Reply:
        return next(faults, None) or play(request)

    async with FakeModelServer(policy) as server:
        made = config(tmp_path, server, modes=["llm"], num_tasks=6, max_concurrent=1)
        rows = await run_matrix(made)
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == [
        "context_overflow", "refused", "rate_limited", "infrastructure_error", "completed", "completed"
    ]  # fmt: skip
    assert [row["reward"] is None for row in rows] == [True] * 4 + [False] * 2
    assert rows[2]["error_status"] == 429
    (cell,) = cli.write_report(made, rows)["cells"]
    assert cell["reward"]["episodes"] == 2
    assert cell["reward_overflow_as_zero"]["episodes"] == 3


async def test_resume_runs_only_what_is_missing_or_errored(tmp_path: Path) -> None:
    broken = True

    def policy(request: ChatRequest) -> Reply:
        return Reply.server_error() if broken and request.index < 4 else play(request)

    async with FakeModelServer(policy) as server:
        made = config(tmp_path, server, modes=["llm"], num_tasks=5, max_concurrent=1)
        first = await run_matrix(made)
        assert [row["outcome"] for row in first].count("infrastructure_error") == 2
        broken = False
        kept = {row["episode_id"] for row in first if row["outcome"] == "completed"}
        seen = len(server.requests)
        second = await run_matrix(made.model_copy(update={"resume": True}))
        assert len(server.requests) - seen == 2
        assert len(second) == 5
        assert {row["outcome"] for row in second} == {"completed"}
        assert kept <= {row["episode_id"] for row in second}
        # The failed episodes' traces went with their rows.
        (cell,) = expand(made)
        assert line_count(made.results_dir / "cells" / cell.id / "traces.jsonl") == 5
        # Nothing is missing: nothing is asked.
        third = await run_matrix(made.model_copy(update={"resume": True}))
        assert len(server.requests) - seen == 2
        assert third == second
        # More episodes a task: the old ones stay.
        more = await run_matrix(made.model_copy(update={"resume": True, "rollouts": 2}))
        assert len(more) == 10
        assert len(server.requests) - seen == 7


@pytest.mark.timeout(900)  # two runs and a half, one of them in a process that has all to import
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
async def test_a_stopped_run_resumes_to_the_table_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_number: int
) -> None:
    monkeypatch.setattr("eval.folder.LOCK_SECONDS", 120.0)  # what was being forked may take its time to go on

    async def slow(request: ChatRequest) -> Reply:
        await asyncio.sleep(0.1)
        return play(request)

    async with FakeModelServer(slow) as server:
        unbroken = await run_matrix(config(tmp_path, server, name="unbroken", num_tasks=8))
        made = config(tmp_path, server, name="stopped", num_tasks=8)
        file = tmp_path / "config.json"
        file.write_text(made.model_dump_json(exclude_unset=True))
        command = [sys.executable, "-m", "eval.cli", "@", str(file)]
        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        rows_file = made.results_dir / EPISODES_FILE
        deadline = time.monotonic() + 300
        while line_count(rows_file) < 7:
            assert time.monotonic() < deadline
            assert process.returncode is None
            await asyncio.sleep(0.02)
        process.send_signal(signal_number)
        _, errors = await process.communicate()
        before = read_rows(rows_file)
        assert 7 <= len(before) < 24
        if signal_number == signal.SIGINT:
            assert process.returncode == 130
            assert b"--resume" in errors
        else:
            # What a kill leaves at worst: a row that is half written, and one whose trace was lost.
            with rows_file.open("ab") as handle:
                handle.write(b'{"suite": "copy", "sett')
            traces = made.results_dir / "cells" / "copy__default__llm__m" / "traces.jsonl"
            traces.write_bytes(traces.read_bytes()[:-300])
        resumed = await run_matrix(made.model_copy(update={"resume": True}))
    assert table(resumed) == table(unbroken)
    assert len(read_rows(rows_file)) == 24


async def test_a_folder_with_rows_is_not_overwritten(tmp_path: Path) -> None:
    async with FakeModelServer(play) as server:
        made = config(tmp_path, server, modes=["llm"], num_tasks=1)
        first = await run_matrix(made)
        with pytest.raises(
            RunError, match=r"holds 1 rows already: add --resume .* --clean .* another --name"
        ):
            await run_matrix(made)
        second = await run_matrix(made.model_copy(update={"clean": True}))
    assert first[0]["episode_id"] != second[0]["episode_id"]


async def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    async with FakeModelServer(play) as server:
        await run_matrix(config(tmp_path, server, modes=["llm"], num_tasks=1))
        other = config(
            tmp_path, server, modes=["llm"], num_tasks=1, resume=True, sampling={"temperature": 0.3}
        )
        with pytest.raises(
            RunError, match=r"copy__default__llm__m have changed \(sampling.temperature: None -> 0.3\)"
        ):
            await run_matrix(other)
        # A new mode is no change of the old ones.
        rows = await run_matrix(config(tmp_path, server, modes=["llm", "rlm"], num_tasks=1, resume=True))
    assert [row["mode"] for row in rows] == ["llm", "rlm"]


async def test_clean_deletes_nothing_but_results(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="does not look like a results folder"):
        await run_matrix(config(tmp_path, clean=True))
    assert (tmp_path / "run" / "thesis.txt").exists()


def test_two_runs_cannot_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_writer(tmp_path / "run"):
        with monkeypatch.context() as short:
            short.setattr("eval.folder.LOCK_SECONDS", 0.2)
            with pytest.raises(RunError, match="another run is writing"):
                with sole_writer(tmp_path / "run"):
                    pass
        with sole_writer(tmp_path / "other"):
            pass
    with sole_writer(tmp_path / "run"):
        pass


def test_what_a_killed_run_had_forked_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock until it executes its program, and then resuming would be refused."""
    monkeypatch.setattr("eval.folder.LOCK_SECONDS", 120.0)  # the sleep below is longer on a busy machine
    with sole_writer(tmp_path / "run"):
        (lock,) = tmp_path.glob(".run.lock")
    script = (
        "import fcntl, sys, time\nlock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(0.5)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with sole_writer(tmp_path / "run"):
            pass
    finally:
        child.communicate()


async def test_a_run_in_which_nothing_works_is_stopped(tmp_path: Path) -> None:
    def refuse(request: ChatRequest) -> Reply:
        return Reply.failure(401, "no such key", "invalid_request_error")

    async with FakeModelServer(refuse) as server:
        made = config(tmp_path, server, num_tasks=20, max_concurrent=2, abort_after_errors=3)
        with pytest.raises(
            RunError, match=r"first 3 episodes of model 'm' all failed.*401.*no such key.*--resume"
        ):
            await run_matrix(made)
        assert len(server.requests) <= 6
    assert 3 <= len(read_rows(made.results_dir / EPISODES_FILE)) <= 5


async def test_one_success_keeps_a_run_alive(tmp_path: Path) -> None:
    def once(request: ChatRequest) -> Reply:
        return play(request) if request.index == 0 else Reply.failure(400, "no", "invalid_request_error")

    async with FakeModelServer(once) as server:
        rows = await run_matrix(
            config(tmp_path, server, modes=["llm"], num_tasks=6, max_concurrent=1, abort_after_errors=2)
        )
    assert len(rows) == 6


async def test_concurrency_stays_within_both_limits(tmp_path: Path) -> None:
    """No request is answered until as many are under way as the run may have: however slowly episodes start,
    the limits are reached, and more would have the time to come."""
    full = asyncio.Event()
    most = 0

    async def slow(request: ChatRequest) -> Reply:
        nonlocal most
        most = max(most, first.in_flight + second.in_flight)
        if most >= 5:
            full.set()
        await asyncio.wait_for(full.wait(), 120)
        await asyncio.sleep(0.05)
        return play(request)

    async with FakeModelServer(slow) as first, FakeModelServer(slow) as second:
        made = config(
            tmp_path,
            first,
            modes=["llm"],
            num_tasks=12,
            max_concurrent=5,
            models={"n": {"base_url": second.base_url, "max_concurrent": 2}},
        )
        rows = await run_matrix(made)
    assert len(rows) == 24
    assert most == 5
    assert second.max_in_flight <= 2
    assert 3 <= first.max_in_flight <= 5
    assert len(first.requests) == len(second.requests) == 12


async def test_what_is_wrong_with_a_model_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    remote = config(tmp_path, models={"m": {"base_url": "https://api.example.com/v1"}})
    with pytest.raises(EndpointError, match=r"OPENAI_API_KEY is empty.*export OPENAI_API_KEY"):
        await run_matrix(remote)
    data: dict[str, Any] = config(tmp_path).model_dump(exclude_unset=True)
    data["models"] = {"m": {"checkpoint": str(tmp_path)}}
    with pytest.raises(EndpointError, match=r"models.m.checkpoint: .* holds no config.json"):
        await run_matrix(EvalConfig.model_validate(data))
    (tmp_path / "config.json").write_text("{}")
    data["models"]["m"]["server"] = {"max_model_length": 5}
    with pytest.raises(
        EndpointError, match=r"models.m.server.max_model_length.*did you mean 'max_model_len'"
    ):
        await run_matrix(EvalConfig.model_validate(data))
    assert not (tmp_path / "run").exists()


def test_a_damaged_results_file_is_not_overwritten(tmp_path: Path) -> None:
    made = config(tmp_path, resume=True)
    made.results_dir.mkdir()
    (made.results_dir / EPISODES_FILE).write_bytes(b"not json\n\n{}\n")
    with pytest.raises(ValueError, match="line 1"):
        prepare(made, expand(made))
    assert (made.results_dir / EPISODES_FILE).read_bytes() == b"not json\n\n{}\n"


def test_report_only_rebuilds_from_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.eval.synthetic import row

    made = config(tmp_path, modes=["llm"], num_tasks=4)
    file = tmp_path / "config.json"
    file.write_text(made.model_dump_json(exclude_unset=True))
    with pytest.raises(SystemExit) as stop:
        cli.main(["@", str(file), "--report-only"])
    assert stop.value.code == 1
    assert "holds no rows" in capsys.readouterr().err
    made.results_dir.mkdir()
    for i in range(3):
        append_row(
            made.results_dir / EPISODES_FILE, row(suite="copy", mode="llm", model="m", task_id=f"t{i}")
        )
    append_row(made.results_dir / EPISODES_FILE, row(suite="of another config"))
    cli.main(["@", str(file), "--report-only", "--no-report.plots"])
    out, errors = capsys.readouterr()
    assert "reward 1.000" in out
    assert "--resume" in errors
    assert "copy__default__llm__m: 3 of 4 episodes" in errors
    assert (made.results_dir / "report.md").read_text().count("| copy | LLM |") == 4
    assert "another" not in (made.results_dir / "report.md").read_text()
    append_row(made.results_dir / EPISODES_FILE, row(suite="copy", mode="llm", model="m", task_id="t3"))
    cli.main(["@", str(file), "--report-only", "--no-report.plots"])
    assert "fewer rows" not in capsys.readouterr().err


def test_config_errors_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["@", str(tmp_path / "absent.toml")], "absent.toml"),
        (["--name", "x"], "suites"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_wandb_gets_table_plots_and_traces_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    configs: list[dict[str, Any]] = []
    start = wandb.init

    def init(**settings: Any) -> Any:
        configs.append(settings["config"])
        return start(**settings)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "200")  # seconds until its service has started; 30 otherwise
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with FakeModelServer(play).in_thread() as server:
        made = config(
            tmp_path,
            server,
            num_tasks=2,
            modes=["llm", "rlm"],
            wandb={"mode": "offline", "traces": 3, "project": "p"},
            models={"m": {"headers": {"X-Key": "a-key-of-mine"}}},
        )
        rows = asyncio.run(run_matrix(made))
    cli.write_report(made, rows)
    (run,) = (made.results_dir / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (config_of_run,) = configs
    assert config_of_run["abort_after_errors"] == made.abort_after_errors
    assert "a-key-of-mine" not in str(config_of_run)
    media = run / "files" / "media"
    assert (
        len(list(media.glob("images/plots/*.png")))
        == len(list((made.results_dir / "plots").glob("*.png")))
        > 0
    )
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in media.glob("table/*.json")}
    assert len(tables["episodes"]["data"]) == 4
    assert "reward" in tables["episodes"]["columns"]
    assert len(tables["traces"]["data"]) == 3
    assert all("[user]\nCopy the text" in line[-1] for line in tables["traces"]["data"])


@pytest.mark.timeout(900)
async def test_the_offline_config_runs_all_four_suites_in_three_modes(tmp_path: Path) -> None:
    """The shipped file with fewer tasks and no sweeps: tools, sub-LLMs, REPLs and scoring of every suite.
    With wider limits of time, which a busy machine would turn into failed pages."""
    shipped = Path(__file__).parents[2] / "configs" / "eval" / "offline.toml"
    overrides = (
        "--num-tasks 2 --suites.oolong.num-tasks 4 --no-progress --report.bootstrap 200 --report.dpi 50 "
        "--suites.deepdive.taskset.tools.reader.seconds 300 "
        "--suites.deepdive.taskset.tools.reader.pattern-seconds 60"
    )
    made = cli.parse(["@", str(shipped), "--output-dir", str(tmp_path), *overrides.split()])
    for suite in made.suites.values():
        suite.sweep = {}
    rows = await run_matrix(made)
    assert len(rows) == 3 * (2 + 4 + 2 + 2)
    assert {row["outcome"] for row in rows} <= {"completed", "context_overflow"}
    assert all(row["outcome"] == "completed" for row in rows if row["mode"] != "llm")
    assert {row["stop_condition"] for row in rows} <= {"answer_ready", "context_overflow"}
    for family in ("verbatim_copy", "oolong", "deepdive", "math_python"):
        own = [row for row in rows if row["family"] == family]
        assert len({row["task_id"] for row in own}) * 3 == len(own)  # paired
    assert all(
        row["tool_calls/search_web"] == 1
        for row in rows
        if row["suite"] == "deepdive" and row["mode"] == "llm"
    )
    assert all(row["sub_calls"] >= 3 for row in rows if row["suite"] == "deepdive" and row["mode"] == "rlm")
    summary = cli.write_report(made, rows)
    assert len(summary["cells"]) == 12


@pytest.mark.vllm
@pytest.mark.timeout(900)  # a server has to start
def test_a_checkpoint_is_served_and_its_server_stopped(tmp_path: Path) -> None:
    """Real vLLM on a random tiny policy: rows come out, and no process is left."""
    from training.tiny_policy import TinyPolicyConfig, build_model, save_policy, train_tokenizer

    tokenizer = train_tokenizer(["Copy the text between the tags exactly."])
    checkpoint = save_policy(tmp_path / "tiny", build_model(TinyPolicyConfig(), tokenizer, seed=0), tokenizer)
    data: dict[str, Any] = config(tmp_path, num_tasks=2, modes=["llm", "rlm"]).model_dump(exclude_unset=True)
    data["models"] = {
        "tiny": {
            "checkpoint": str(checkpoint),
            "server": {"max_model_len": 2048, "cpu_kv_cache_gigabytes": 1},
            "sampling": {"max_tokens": 32},
        }
    }
    data["harness"] = {"limits": {"max_turns": 2}}
    made = EvalConfig.model_validate(data)
    rows = asyncio.run(run_matrix(made))
    assert len(rows) == 4
    assert {row["outcome"] for row in rows} <= {"completed", "context_overflow"}
    assert any(row["root_completion_tokens"] > 0 for row in rows)
    assert (made.results_dir / "logs" / "vllm-tiny.log").stat().st_size > 0
    assert left_alive(with_argument(str(checkpoint))) == []


def with_argument(text: str) -> list[psutil.Process]:
    """The processes whose command line holds `text`."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(text in argument for argument in process.info["cmdline"] or [])
    ]
