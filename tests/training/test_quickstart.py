"""The quickstart around its phases: settings, held-out tasks, the trainer's process, what is written.

`test_quickstart_on_real_vllm` runs all of it, small; the real size is `scripts/quickstart.sh`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from verifiers.v1.utils.loaders import load_environment

from training import quickstart as module
from training.config import TrainConfig, load_config
from training.evaluate import check_held_out, eval_environment
from training.quickstart import (
    QuickstartConfig,
    QuickstartFailed,
    clear,
    gather_traces,
    main,
    run_trainer,
    summarise,
    train_arguments,
    warmstart_environment,
)
from training.reward_curve import binomial_interval, moving_average, plot_reward_curve


def train_config(*overrides, **config):
    return load_config(train_arguments(QuickstartConfig(**config), overrides), TrainConfig)


# --- settings and tasks


def test_the_shipped_config_is_the_run_that_is_promised():
    train = train_config(seed=3)
    assert (train.run.seed, train.env.taskset.seed) == (3, 3)
    assert train.env.taskset.placement == "repl"
    assert train.eval.at_start
    assert train.eval.at_end
    assert train.eval.temperature is None  # sampled, at the temperature of training
    assert train.sampling.temperature == 1.0
    assert len(list(load_environment(eval_environment(train)).taskset.select(train.eval.select))) >= 64
    assert train.parity.enabled


def test_the_user_s_own_settings_win():
    assert train_config("--batch.steps", "2", "--run.seed", "9", seed=3).run.seed == 9


@pytest.mark.parametrize("seed", [0, 1])
def test_imitated_trained_and_evaluated_texts_are_disjoint(seed):
    train = train_config("--env.taskset.num-tasks", "300", seed=seed)
    scripts = load_environment(warmstart_environment(train, seed)).taskset
    training = load_environment(train.env).taskset
    evaluation = list(load_environment(eval_environment(train)).taskset)
    assert check_held_out(training, evaluation)
    assert check_held_out(scripts, evaluation)
    assert not {task.data.text for task in scripts} & {task.data.text for task in training}


def test_seeds_give_other_tasks():
    texts = [{task.data.text for task in load_environment(train_config(seed=s).env).taskset} for s in (0, 1)]
    assert not texts[0] & texts[1]


def test_the_prompts_tell_nothing_of_the_answer():
    task = next(iter(load_environment(train_config().env).taskset))
    harness = train_config().env.agent.harness
    told = f"{harness.system_prompt} {harness.sub_system_prompt} {task.data.prompt}"
    assert task.data.text not in told
    assert "= context" not in told
    assert "env_tips" not in told


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(["--", "--batch.step", "2"], "batch.steps"), (["--warmstart.epoch", "2"], "--warmstart.epoch")],
)
def test_a_wrong_setting_is_told_before_anything_is_done(tmp_path, capsys, wrong, named):
    (tmp_path / "start").mkdir()
    assert main(["--output-dir", str(tmp_path), *wrong]) == 2
    assert named in capsys.readouterr().err
    assert (tmp_path / "start").is_dir()


# --- the trainer's process


def launched_by(monkeypatch, program):
    """Has `run_trainer` run `program` in place of accelerate; returns the list of processes it started."""
    started = []

    class Process(subprocess.Popen):
        """Tells when somebody waits for its end."""

        def __init__(self, *args, **options):
            self.waited_for = threading.Event()
            super().__init__(*args, **options)

        def wait(self, timeout=None):
            self.waited_for.set()
            return super().wait(timeout)

    def popen(command, **options):
        assert command[1:3] == ["-m", "accelerate.commands.launch"]
        assert command[-3:] == ["-m", "training.train", "x"]
        process = Process([sys.executable, "-c", program], **options)
        started.append(process)
        return process

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    return started


def test_a_trainer_that_fails_fails_the_quickstart(monkeypatch, tmp_path):
    launched_by(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(QuickstartFailed, match="code 3"):
        run_trainer(QuickstartConfig(output_dir=tmp_path), ["x"])


def test_the_trainer_gets_one_thread_and_the_repository_on_its_path(monkeypatch, tmp_path):
    check = (
        "import os, training; assert os.environ['OMP_NUM_THREADS'] == '1'; "
        f"assert training.__path__[0] == {os.path.dirname(module.__file__)!r}"
    )
    launched_by(monkeypatch, check)
    monkeypatch.chdir(tmp_path)
    run_trainer(QuickstartConfig(output_dir=tmp_path), ["x"])


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_takes_the_trainer_down(monkeypatch, tmp_path, request, stubborn):
    # A shell's background jobs ignore SIGINT and so would this process and its child: say what each does.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    reaction = "SIG_IGN" if stubborn else "SIG_DFL"
    ignore = f"import signal; signal.signal(signal.SIGINT, signal.{reaction}); "
    ready = tmp_path / "ready"
    program = f"{ignore}import time; open({str(ready)!r}, 'w').close(); time.sleep(300)"
    started = launched_by(monkeypatch, program)
    # One that ends by itself has all the time that a busy machine may take for it.
    monkeypatch.setattr(module, "TRAINER_STOP_SECONDS", 1.0 if stubborn else 120.0)

    def interrupt():
        # The child may be ready before this process has so much as heard that it was started.
        while not (ready.exists() and started and started[0].waited_for.is_set()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_trainer(QuickstartConfig(output_dir=tmp_path), ["x"])
    assert started[0].poll() == (-signal.SIGKILL if stubborn else -signal.SIGINT)


# --- what is written

TRAINED = {
    "ended": "finished",
    "reward_before": 0.3,
    "reward_after": 0.9,
    "n_eval": 128,
    "steps": 45,
    "parity_max_abs_diff": 2e-6,
    "reward_curve": [[1, 0.3], [2, None], [3, 0.9]],
    "seconds": {"training": 1.0},
}
START = SimpleNamespace(
    parameters=10, episodes=[], rows=1, sampled_tokens=2, loss=0.1, reward=0.25, behaviours={}
)


def test_the_summary_has_what_is_promised():
    summary = summarise(QuickstartConfig(seed=4), START, TRAINED, {"total": 9.0})
    promised = ("reward_before", "reward_after", "n_eval", "steps", "seconds", "parity_max_abs_diff")
    assert {name: summary[name] for name in promised} == {
        **{name: TRAINED[name] for name in promised},
        "seconds": {"total": 9.0},
    }
    assert summary["seed"] == 4
    assert summary["goal"]["met"] is True
    json.dumps(summary)


@pytest.mark.parametrize(("before", "after"), [(0.46, 0.9), (0.3, 0.84)])
def test_a_missed_goal_is_said(before, after):
    trained = TRAINED | {"reward_before": before, "reward_after": after}
    assert summarise(QuickstartConfig(), START, trained, {})["goal"]["met"] is False


def test_a_run_that_was_stopped_gives_no_summary():
    with pytest.raises(QuickstartFailed, match="stopped by SIGINT"):
        summarise(QuickstartConfig(), START, TRAINED | {"ended": "stopped by SIGINT"}, {})
    half = {name: value for name, value in TRAINED.items() if name != "reward_after"}
    with pytest.raises(QuickstartFailed, match="reward_after"):
        summarise(QuickstartConfig(), START, half, {})


def test_clearing_removes_an_earlier_quickstart_and_nothing_else(tmp_path):
    for name in ("start", "grpo", "traces", "mine"):
        (tmp_path / name).mkdir()
    for name in ("summary.json", "reward_curve.png", "notes.txt"):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt"]


def test_traces_of_all_phases_are_gathered(tmp_path):
    for name in ("eval_before", "eval_after", "rollouts/part_00000", "rollouts/part_00001"):
        (tmp_path / "grpo" / name).mkdir(parents=True)
        (tmp_path / "grpo" / name / "traces.jsonl").write_text(name)
    gather_traces(tmp_path, START)
    found = {
        str(path.parent.relative_to(tmp_path / "traces")) for path in tmp_path.rglob("traces/**/*.jsonl")
    }
    assert found == {"warmstart", "eval_before", "eval_after", "rollouts/part_00000", "rollouts/part_00001"}


# --- the figure


def test_intervals_are_wilson_s():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20, method 3.
    assert binomial_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert binomial_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_moving_average_by_hand():
    assert moving_average([1, 2, 6, 1, 5], 3) == [1.5, 3, 3, 4, 3]
    assert moving_average([], 3) == []


@pytest.mark.parametrize("curve", [[[1, 0.2], [2, None], [3, 0.8]], []])
def test_the_figure_is_a_whole_png(tmp_path, curve):
    path = tmp_path / "curve.png"
    plot_reward_curve(path, curve, before=0.0, after=1.0, n_eval=64, title="t")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data[-8:-4] == b"IEND"
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


# --- all of it


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_quickstart_on_real_vllm(tmp_path, capfd):
    """Two steps cannot reach the goal: everything is written all the same, and the command says so."""
    start = ["--warmstart.tokenizer-episodes", "16", "--warmstart.episodes", "64", "--warmstart.epochs", "3"]
    train = ["--batch.steps", "2", "--batch.rows-per-device", "16"]
    train += ["--eval.select.limit", "8", "--traces.every-groups", "1"]
    own = [*start, "--seed", "5", "--output-dir", str(tmp_path)]
    assert main([*own, "--", *train]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["n_eval"], summary["seed"]) == (2, 8, 5)
    assert summary["parity_max_abs_diff"] < 1e-3
    assert summary["goal"]["met"] is False
    assert summary["seconds"]["total"] > summary["seconds"]["train/training"] > 0
    for phase in ("warmstart", "eval_before", "eval_after"):
        assert (tmp_path / "traces" / phase / "traces.jsonl").stat().st_size > 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "reward_curve.png").stat().st_size > 10_000
    assert "the goal was reward" in capfd.readouterr().err
