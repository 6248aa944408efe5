"""`training.train` as a whole, on the scripted policy server: steps, checkpoints, stop, resume, evaluation.

The trainer is TRL's, the weight transfer writes real files, the rollout loop runs on a thread; only vLLM is
scripted. `test_train_vllm.py` is the same with nothing scripted.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from tests.fakes import FakeModelServer
from tests.fakes.wire import Reply
from tests.training.scripted_run import scripted_run
from tests.training.test_rollout_worker import RENDERER, half_good
from training.callbacks import CheckpointCallback, StopSignal, complete_checkpoints, progress_line
from training.config import TrainConfig
from training.run_setup import (
    LauncherError,
    ResumeError,
    prepare_reporting,
    resume_checkpoint,
    trainer_arguments,
)
from training.server import VLLMServerError
from training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def scripted(monkeypatch, tiny_tokenizer, tiny_checkpoint):
    """The scripted server in vLLM's place."""
    fake = FakeModelServer(half_good(), tokenizer=tiny_tokenizer)
    with scripted_run(fake, monkeypatch, tiny_checkpoint) as served:
        yield served


@pytest.fixture
def make_config(tmp_path, tiny_checkpoint):
    def make(**sections) -> TrainConfig:
        data = {
            "model": {"path": str(tiny_checkpoint)},
            "env": {
                "taskset": {"id": "toy_rollouts", "num_tasks": 40},
                "agent": {"harness": {"id": "toy_rollouts"}, "runtime": {"type": "subprocess"}},
            },
            "grpo": {"group_size": 4},
            "optim": {"lr": 1e-3},
            "batch": {"steps": 3, "rows_per_device": 8},
            "precision": {"device": "cpu"},
            "parity": {"enabled": False},
            "checkpoint": {"every_steps": 1},
            "run": {"name": "run", "output_dir": str(tmp_path)},
        }
        for section, values in sections.items():
            data[section] = {**data.get(section, {}), **values}
        return TrainConfig.model_validate(data)

    return make


def weights(directory):
    return load_file(directory / "model.safetensors")


def test_a_run_and_its_continuation(scripted, make_config, capsys, tiny_checkpoint):
    held_out = {"taskset": {"offset": 1000, "num_tasks": 6}}
    config = make_config(
        eval={"at_start": True, "at_end": True, **held_out},
        checkpoint={"keep": 2},
        traces={"every_groups": 1},
    )
    summary = train(config)
    run_dir = config.run.directory
    assert json.loads((run_dir / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["ended"] == "finished"
    assert (summary["steps"], summary["policy_version"], summary["n_eval"]) == (3, 4, 6)
    assert [step for step, _ in summary["reward_curve"]] == [1, 2, 3]
    assert {"server_start", "eval_before", "training", "eval_after"} <= set(summary["seconds"])
    assert 0 <= summary["reward_before"] <= 1
    # Weights went to the server before the first step and after each; the last ones are those of the result.
    calls = [request.path for request in scripted.fake.control_requests]
    assert calls.count("/collective_rpc") == 4
    assert calls.count("/pause") == calls.count("/resume") or calls.count("/resume") == 5
    final = weights(run_dir / "final")
    start = weights(tiny_checkpoint)
    assert any(not torch.equal(final[name], start[name]) for name in start)
    assert [path.name for path in complete_checkpoints(run_dir)] == ["checkpoint-2", "checkpoint-3"]
    assert list((run_dir / "rollouts").glob("part_*/traces.jsonl"))
    assert (run_dir / "eval_after" / "traces.jsonl").is_file()
    rows = [json.loads(line) for line in (run_dir / "eval_after" / "episodes.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert sum(row["reward"] for row in rows) / 6 == pytest.approx(summary["reward_after"])
    log = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert all(entry["rows/root_tokens_total"] > 0 for entry in log)
    assert all(entry["sample/staleness_mean"] <= 1 for entry in log)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 3
    assert "| reward 0." in next(line for line in lines if line.startswith("step 2/3"))

    # An occupied directory is not written over by accident.
    with pytest.raises(ResumeError, match=r"checkpoint\.resume = 'last'"):
        train(config)

    # Two more steps: optimizer, step, task position and version go on.
    state = json.loads((run_dir / "checkpoint-3" / "rollout_state.json").read_text())
    more = make_config(
        batch={"steps": 5, "rows_per_device": 8}, checkpoint={"resume": "last"}, traces={"every_groups": 1}
    )
    summary = train(more)
    assert (summary["steps"], summary["policy_version"]) == (5, 6)
    assert [step for step, _ in summary["reward_curve"]] == [4, 5]
    optimizer = torch.load(run_dir / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {5}
    again = json.loads((run_dir / "checkpoint-5" / "rollout_state.json").read_text())
    done = [one["position"]["next_group"] + len(one["position"]["beyond"]) for one in (state, again)]
    assert done[1] >= done[0] + 2
    assert (state["model_version"], again["model_version"]) == (4, 6)
    assert again["reference_tokens"] == state["reference_tokens"]


def test_a_stop_while_waiting_for_rows_leaves_a_checkpoint(scripted, make_config, monkeypatch):
    """The policy falls silent after two steps; the signal comes while the trainer waits."""
    stop = StopSignal()
    monkeypatch.setattr("training.callbacks.StopSignal", lambda: stop)
    config = make_config(checkpoint={"every_steps": 50}, batch={"steps": 10}, rollout={"max_staleness": 0})

    content = half_good()

    def silent_after_two_steps(request):
        pushed = sum(call.path == "/collective_rpc" for call in scripted.fake.control_requests)
        return Reply(content(request), delay=600.0 if pushed >= 3 else 0.0)

    scripted.fake.policy = silent_after_two_steps

    def press():
        while sum(call.path == "/collective_rpc" for call in scripted.fake.control_requests) < 3:
            time.sleep(0.05)
        time.sleep(1.0)
        stop.reason, stop.requested = "SIGTERM", True

    threading.Thread(target=press, daemon=True).start()
    began = time.monotonic()
    summary = train(config)
    assert summary["ended"] == "stopped by SIGTERM"
    assert summary["steps"] == 2
    assert time.monotonic() - began < 290  # no reply came meanwhile
    (checkpoint,) = complete_checkpoints(config.run.directory)
    assert checkpoint.name == "checkpoint-2"
    assert (checkpoint / "optimizer.pt").is_file()
    assert summary["checkpoint"] == str(checkpoint)
    assert not (config.run.directory / "final").exists()


def test_a_policy_that_has_learnt_it_all_ends_the_run_in_order(scripted, make_config):
    """Mixed replies for two steps, then nothing but good ones: no signal is left, and that is no failure."""

    content = half_good()

    def learnt_after_two_steps(request):
        pushed = sum(call.path == "/collective_rpc" for call in scripted.fake.control_requests)
        return "good" if pushed >= 3 else content(request)

    scripted.fake.policy = learnt_after_two_steps
    config = make_config(
        batch={"steps": 50},
        rollout={"max_staleness": 0, "max_barren_groups": 4},
        checkpoint={"every_steps": 50},
        eval={"at_end": True, "taskset": {"offset": 1000, "num_tasks": 2}},
    )
    summary = train(config)
    assert summary["ended"] == "finished"
    assert "NoSignalError" in summary["note"]
    assert 2 <= summary["steps"] < 50
    assert summary["reward_after"] == 1.0
    assert (config.run.directory / "final" / "model.safetensors").is_file()
    assert complete_checkpoints(config.run.directory)


def test_a_server_that_dies_is_named_as_the_cause(scripted, make_config):
    """Requests fail first; the summary and the error name the server and the end of its log all the same."""
    config = make_config(batch={"steps": 10}, rollout={"max_staleness": 0})

    def die_after_two_steps(call):
        pushed = sum(done.path == "/collective_rpc" for done in scripted.fake.control_requests)
        if pushed >= 3:
            scripted.dead = True
            return Reply.server_error("engine is dead")
        return None

    scripted.fake.control = die_after_two_steps
    with pytest.raises(VLLMServerError, match="last words"):
        train(config)
    run_dir = config.run.directory
    ended = json.loads((run_dir / "summary.json").read_text())["ended"]
    assert ended == "failed: VLLMServerError: vLLM exited with status -9"
    # The step whose weights did not arrive has no checkpoint; the one before is intact.
    assert [path.name for path in complete_checkpoints(run_dir)][-1] == "checkpoint-1"


def test_evaluation_refuses_training_tasks(scripted, make_config):
    from training.evaluate import NotHeldOutError

    with pytest.raises(NotHeldOutError, match="are training tasks"):
        train(make_config(eval={"at_start": True}))


async def test_an_evaluation_leaves_failures_out(scripted, make_config, monkeypatch, tmp_path):
    from training.evaluate import evaluate

    monkeypatch.setattr("training.rollout_episode.RETRY_SECONDS", 0.01)
    config = make_config(
        eval={"taskset": {"offset": 1000, "num_tasks": 4, "behaviours": ["answer", "fail"]}, "rollouts": 2}
    )
    result = await evaluate(
        config,
        base_url=scripted.fake.base_url,
        model_name="policy",
        renderer=RENDERER,
        output=tmp_path / "eval",
    )
    assert (result.n, result.left_out) == (4, 4)
    assert len(result.rows) == 8
    assert result.mean_reward == pytest.approx(sum(row.reward or 0 for row in result.rows) / 4)
    assert result.summary()["errors"] == {"HarnessError": 8}
    assert {row.reward for row in result.rows if row.errors} == {None}


# ---- parts


def test_progress_line():
    logs = {
        "reward": 0.412,
        "reward_std": 0.31,
        "rollout/groups_kept_total": 6.0,
        "rollout/groups_total": 8.0,
        "rows/root_tokens_total": 4100.0,
        "rows/sub_tokens_total": 230.0,
        "rollout/group_seconds": 3.21,
        "perf/rollout_wait_s": 1.1,
        "perf/fwd_bwd_s": 1.8,
        "perf/optimizer_s": 0.1,
        "perf/weight_sync_s": 0.2,
        "sample/staleness_mean": 0.8,
        "loss": -0.0123,
        "grad_norm": 0.81,
        "ratio": 1.0002,
        "rollout/episodes_left_out_total": 2.0,
    }
    assert progress_line(12, 40, logs) == (
        "step 12/40 | reward 0.412 (std 0.310) | groups 6/8 | tokens 4.1k root 230 sub | "
        "rollout 3.2s (waited 1.1s) train 1.9s sync 0.2s | staleness 0.80 | "
        "loss -0.0123 grad 0.81 ratio 1.0002 | 2 episodes failed"
    )
    assert progress_line(1, 2, {"loss": 0.0, "reward": None}) == "step 1/2 | loss 0.0000"


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    callback = CheckpointCallback(tmp_path, lambda: {"position": {}}, keep=1)
    control = TrainerControl()
    callback.on_save(SimpleNamespace(), TrainerState(global_step=2), control)  # type: ignore[arg-type]
    # 1 was left half-written by a crash; 3 is being written.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    callback.on_save(SimpleNamespace(), TrainerState(global_step=3), control)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert json.loads((tmp_path / "checkpoint-3" / "rollout_state.json").read_text())["step"] == 3


def test_resuming_asks_for_a_complete_checkpoint(make_config, tmp_path):
    with pytest.raises(ResumeError, match="no complete checkpoint"):
        resume_checkpoint(make_config(checkpoint={"resume": "last"}))
    with pytest.raises(ResumeError, match="is no complete checkpoint"):
        resume_checkpoint(make_config(checkpoint={"resume": str(tmp_path)}))
    assert resume_checkpoint(make_config()) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED is not supported.* FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version is 1; set it to 2"),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
            },
            "fsdp_state_dict_type is SHARDED_STATE_DICT; set it to FULL_STATE_DICT",
        ),
    ],
    ids=["deepspeed", "fsdp 1", "sharded state dict"],
)
def test_launchers_that_would_lose_the_weights_are_refused(make_config, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = make_config()
    with pytest.raises(LauncherError, match=message):
        train(config)
    assert not config.run.directory.exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_resuming_asks_for_the_launcher_of_the_checkpoint(make_config, tmp_path, monkeypatch, sharded):
    (tmp_path / "rollout_state.json").write_text("{}")
    (tmp_path / ("pytorch_model_fsdp.bin" if sharded else "optimizer.pt")).touch()
    config = make_config(checkpoint={"resume": str(tmp_path)})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(sharded).lower())
    assert resume_checkpoint(config) == tmp_path
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(not sharded).lower())
    with pytest.raises(ResumeError, match=r"written with(out)? FSDP .* --config_file .* model\.path"):
        resume_checkpoint(config)


def test_the_settings_reach_trl(make_config):
    config = make_config(
        optim={"lr": 3e-4, "schedule": "cosine", "warmup_steps": 7, "max_grad_norm": 0.3, "beta2": 0.9},
        grpo={"clip_low": 0.1, "clip_high": 0.28},
        batch={"steps": 9, "rows_per_device": 6, "accumulation": 2, "token_budget": 512},
        sampling={"temperature": 0.7},
        rollout={"max_staleness": 3},
    )
    args = trainer_arguments(config)
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (3e-4, "cosine", 7)
    assert (args.max_grad_norm, args.adam_beta2, args.epsilon, args.epsilon_high) == (0.3, 0.9, 0.1, 0.28)
    assert (args.max_steps, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (9, 6, 2)
    assert (args.token_budget, args.temperature, args.max_staleness) == (512, 0.7, 3)
    assert args.use_cpu
    assert not args.bf16
    assert args.save_total_limit is None
    assert trainer_arguments(make_config()).token_budget == -1


def test_wandb_never_asks_for_a_key(make_config, monkeypatch, tmp_path):
    names = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_API_KEY")
    for name in names:
        monkeypatch.setenv(name, "x")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    prepare_reporting(make_config())
    assert not any(name in os.environ for name in names)
    prepare_reporting(make_config(run={"report_to": ["wandb"]}))
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_PROJECT"]) == ("offline", "rlm-env")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    prepare_reporting(make_config(run={"report_to": ["wandb"]}))
    assert "WANDB_MODE" not in os.environ


def test_signals(monkeypatch):
    # Trainers of other tests leave the first behind: a launcher, it says, whose end would then end all tests.
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = StopSignal()
    try:
        stop.install()
        with pytest.raises(KeyboardInterrupt):  # outside training the first signal ends the process
            signal.raise_signal(signal.SIGTERM)
        stop.requested, stop.armed = False, True
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        assert stop.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):  # a second one does so in training, too
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
