"""From the run's configuration to what TRL, accelerate and W&B want, and back to files of the run.

Kept apart from `training.train` so that that file shows the algorithm only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback
from trl.experimental.async_grpo import AsyncGRPOConfig

from training.callbacks import STATE_FILE, complete_checkpoints, write_json
from training.config import TrainConfig

T = TypeVar("T")

PID_FILE = "trainer.pid"
"""Process id of rank 0. SIGTERM to it stops all ranks in order, without the 30 s that torchrun grants."""


class PhaseClock:
    """Wall-clock seconds of the run's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block, also when it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 3)


class ResumeError(ValueError):
    """The checkpoint to go on from is not there, or the run's directory is not free."""


def resume_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint that `checkpoint.resume` names, or None for a new run.

    Raises:
        ResumeError: it does not exist or is not complete, it is one of FSDP's and the launcher asks for
            another kind or the other way round, or a new run would write over an old one's checkpoints.
    """
    run_dir, wanted = config.run.directory, config.checkpoint.resume
    complete = complete_checkpoints(run_dir)
    if wanted is None:
        if complete and not config.run.overwrite:
            raise ResumeError(
                f"{run_dir} holds checkpoints of an earlier run (the last: {complete[-1].name}): set "
                "checkpoint.resume = 'last' to go on, run.overwrite = true to start anew, or another run.name"
            )
        return None
    if wanted == "last":
        if not complete:
            raise ResumeError(f"checkpoint.resume = 'last', but {run_dir} has no complete checkpoint")
        path = complete[-1]
    else:
        path = Path(wanted)
        if not (path / STATE_FILE).is_file():
            raise ResumeError(f"checkpoint.resume: {path} is no complete checkpoint (it has no {STATE_FILE})")
    sharded, of_fsdp = launched_with_fsdp(), any(path.glob(f"{FSDP_MODEL_NAME}*"))
    if sharded != of_fsdp:
        kinds = {True: "with FSDP", False: "without FSDP"}
        raise ResumeError(
            f"checkpoint.resume: {path} was written {kinds[of_fsdp]} and this run is launched "
            f"{kinds[sharded]}; their optimizer states do not fit each other. Launch with the --config_file "
            "that it was made with, or start a run of another run.name with model.path set to it"
        )
    return path


class LauncherError(ValueError):
    """The launcher's config asks for what this trainer cannot do."""


def check_launcher() -> None:
    """Refuse, before anything starts, what would end a run without weights or with wrong ones.

    Raises:
        LauncherError: DeepSpeed (ZeRO-3 keeps empty parameters, which would be sent to the server as they
            are), FSDP 1 (its flat parameters cannot be sent one by one), or sharded state dicts (of which
            transformers makes no `final/`).
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise LauncherError(
            "distributed_type: DEEPSPEED is not supported, its sharded weights do not reach the server; "
            "shard with FSDP2, as configs/accelerate/fsdp2_6gpu.yaml does"
        )
    if not launched_with_fsdp():
        return
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise LauncherError(f"fsdp_config.fsdp_version is {version}; set it to 2")
    if (kind := os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")) != "FULL_STATE_DICT":
        raise LauncherError(
            f"fsdp_config.fsdp_state_dict_type is {kind}; set it to FULL_STATE_DICT, or the run would end "
            "without a model that can be loaded"
        )


def launched_with_fsdp() -> bool:
    """Whether `accelerate launch` was given a config with `distributed_type: FSDP`."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def rollout_state(checkpoint: Path | None) -> dict[str, Any]:
    """What the rollouts of `checkpoint` had come to; empty for a new run."""
    if checkpoint is None:
        return {}
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))


def prepare_directory(config: TrainConfig, resume: Path | None) -> None:
    """Makes the run's directory and writes the resolved configuration; clears it for a new run. Main
    process."""
    run_dir = config.run.directory
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    if resume is None:
        for old in run_dir.glob("checkpoint-*"):
            shutil.rmtree(old)
        for name in ("rollouts", "weights", "final", "eval_before", "eval_after"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    (run_dir / "summary.json").unlink(missing_ok=True)  # it says how this run ended, once that is known
    (run_dir / PID_FILE).write_text(f"{os.getpid()}\n", encoding="utf-8")
    write_json(run_dir / "config.json", config.model_dump(mode="json"))


def prepare_reporting(config: TrainConfig) -> None:
    """W&B's project and directory; offline when there is no key, so that a run never waits at a prompt."""
    if "wandb" not in config.run.report_to:
        return
    os.environ.setdefault("WANDB_PROJECT", config.run.project)
    os.environ.setdefault("WANDB_DIR", str(config.run.directory))
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = "WANDB_API_KEY" in os.environ or (
        netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    )
    if not has_key:
        os.environ.setdefault("WANDB_MODE", "offline")


def trainer_arguments(config: TrainConfig) -> AsyncGRPOConfig:
    """TRL's arguments. Making them joins the process group of the launcher."""
    batch, optim, precision = config.batch, config.optim, config.precision
    cpu = precision.device == "cpu" or not torch.cuda.is_available()
    return AsyncGRPOConfig(
        output_dir=str(config.run.directory),
        run_name=config.run.name,
        seed=config.run.seed,
        report_to=list(config.run.report_to),
        disable_tqdm=True,
        logging_steps=1,
        # steps and rows
        max_steps=batch.steps,
        per_device_train_batch_size=batch.rows_per_device,
        gradient_accumulation_steps=batch.accumulation,
        token_budget=batch.token_budget if batch.token_budget is not None else -1,
        # objective
        num_generations=config.grpo.group_size,
        temperature=config.sampling.temperature,
        epsilon=config.grpo.clip_low,
        epsilon_high=config.grpo.clip_high,
        # optimizer
        optim="adamw_torch",
        learning_rate=optim.lr,
        lr_scheduler_type=optim.schedule,
        warmup_steps=optim.warmup_steps,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        max_grad_norm=optim.max_grad_norm,
        # device and memory
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and "WORLD_SIZE" in os.environ else None,
        # The other ranks wait while the main process starts the server and evaluates.
        ddp_timeout=int(config.vllm.startup_seconds) + 7200,
        bf16=precision.bf16,
        gradient_checkpointing=precision.gradient_checkpointing,
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        # rollouts
        max_staleness=config.rollout.max_staleness,
        weight_sync_steps=1,
        heartbeat_stale_after_s=config.rollout.stale_seconds,
        # checkpoints; deleting old ones is CheckpointCallback's, after the new one is complete
        save_strategy="steps",
        save_steps=config.checkpoint.every_steps,
        save_total_limit=None,
    )


def share(value: T | None) -> T:
    """The main process's value, on every rank. Others may give None."""
    values: list[T | None] = [value]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        broadcast_object_list(values, from_process=0)
    assert values[0] is not None
    return values[0]


def quiet(trainer: Trainer) -> None:
    """Takes away the printing of whole log dicts: `ProgressCallback` prints a line, `metrics.jsonl` has the
    rest."""
    trainer.remove_callback(PrinterCallback)
