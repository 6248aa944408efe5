"""`training.train` with nothing scripted: real vLLM, spawned rollouts, two ranks, signals, a dying server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import left_alive
from tests.training.sharded import launcher_environment
from training.callbacks import complete_checkpoints

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(program, arguments, log, environment=os.environ):
    environment = {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent / "plugins")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_steps(process, run_dir, steps, log):
    """Waits until `steps` steps are logged; returns all processes below `process`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        metrics = run_dir / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= steps:
            return psutil.Process(process.pid).children(recursive=True)
        assert process.poll() is None, log.read_text()[-8000:]
        time.sleep(0.2)
    raise AssertionError(f"no {steps} steps in {START_SECONDS} s:\n{log.read_text()[-8000:]}")


def of(processes, part):
    """Those with `part` in their command line; the episodes' processes come and go while one looks."""
    found = []
    for process in processes:
        try:
            if part in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def stop(process):
    """Ends what a failed test left behind; the session is the launcher's own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def write_config(checkpoint, directory):
    """A run on the toy taskset in `directory`/run; returns the file."""
    config = directory / "train.toml"
    config.write_text(
        f"""
        [model]
        path = "{checkpoint}"
        [env.taskset]
        id = "toy_rollouts"
        behaviours = ["parity"]
        num_tasks = 32
        [env.agent.harness]
        id = "toy_rollouts"
        [env.agent.runtime]
        type = "subprocess"
        [sampling]
        max_tokens = 12
        temperature = 0.9
        [grpo]
        group_size = 4
        [optim]
        lr = 1e-4
        [batch]
        steps = 500
        rows_per_device = 4
        [precision]
        device = "cpu"
        [vllm]
        device = "cpu"
        max_model_len = 512
        cpu_kv_cache_gigabytes = 1
        [checkpoint]
        every_steps = 2
        [run]
        name = "run"
        output_dir = "{directory}"
        """
    )
    return config


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_stop_resume_and_the_death_of_the_server(tiny_checkpoint, tmp_path):
    run_dir, config = tmp_path / "run", write_config(tiny_checkpoint, tmp_path)

    # Two ranks; SIGTERM to the launcher. The step at hand is finished, a checkpoint written, everything ends.
    log = tmp_path / "first.log"
    first = launch([*RANKS, "-m", "training.train"], ["@", str(config)], log)
    try:
        below = wait_for_steps(first, run_dir, 3, log)
        assert of(below, "vllm")
        first.send_signal(signal.SIGTERM)
        first.wait(240)
    finally:
        stop(first)
    assert not left_alive(below, 30)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["ended"] == "stopped by SIGTERM", log.read_text()[-4000:]
    assert summary["world_size"] == 2
    assert summary["parity_max_abs_diff"] < 1e-3
    checkpoint = complete_checkpoints(run_dir)[-1]
    assert checkpoint.name == f"checkpoint-{summary['steps']}"
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(0.9 < entry["ratio"] < 1.1 for entry in entries)
    steps = summary["steps"]

    # One rank goes on from there; then vLLM is killed.
    log = tmp_path / "second.log"
    second = launch(["-m", "training.train"], ["@", str(config), "--checkpoint.resume", "last"], log)
    try:
        below = wait_for_steps(second, run_dir, steps + 3, log)
        engines = of(below, "vllm.entrypoints")
        assert engines
        for engine in engines:
            engine.kill()
        assert second.wait(240) == 1
    finally:
        stop(second)
    assert not left_alive(below, 30)
    text = log.read_text()
    assert "VLLMServerError" in text
    assert "The end of" in text
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["ended"].startswith("failed")
    newest = complete_checkpoints(run_dir)[-1]
    assert int(newest.name.split("-")[1]) >= steps
    state = json.loads((newest / "trainer_state.json").read_text())
    assert state["global_step"] == int(newest.name.split("-")[1])


@pytest.mark.vllm
@pytest.mark.timeout(1200)
def test_sharded_ranks_sync_checkpoint_and_resume(tiny_checkpoint, tmp_path):
    """FSDP2 with bf16 and gradient checkpointing, as the configs for a node have it, but over gloo."""
    run_dir, config = tmp_path / "run", write_config(tiny_checkpoint, tmp_path)
    program = [*RANKS, str(ROOT / "tests/training/sharded_train.py")]
    half = ["--precision.bf16", "true", "--precision.gradient-checkpointing", "true"]
    for steps, resume in ((2, []), (4, ["--checkpoint.resume", "last"])):
        log = tmp_path / f"{steps}.log"
        arguments = ["@", str(config), *half, "--batch.steps", str(steps), *resume]
        process = launch(program, arguments, log, launcher_environment("bf16"))
        try:
            assert process.wait(500) == 0, log.read_text()[-8000:]
        finally:
            stop(process)
        summary = json.loads((run_dir / "summary.json").read_text())
        assert (summary["ended"], summary["steps"], summary["world_size"]) == ("finished", steps, 2)
        assert summary["policy_version"] == steps + 1
        # The trainer rounds to bfloat16 and the server does not.
        assert summary["parity_max_abs_diff"] < 0.1
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(0.9 < entry["ratio"] < 1.1 for entry in entries)
    checkpoint = complete_checkpoints(run_dir)[-1]
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {4}
    final, start = (load_file(path / "model.safetensors") for path in (run_dir / "final", tiny_checkpoint))
    assert {name: tensor.shape for name, tensor in final.items()} == {
        name: tensor.shape for name, tensor in start.items()
    }
    assert any(not torch.equal(final[name], start[name]) for name in start)
