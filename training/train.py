"""GRPO training of an RLM policy; this file is the algorithm, top to bottom.

    accelerate launch --config_file configs/accelerate/cpu.yaml -m training.train @ configs/train/FILE.toml
    torchrun --standalone --nproc_per_node 2 -m training.train @ configs/train/FILE.toml

What runs where: the main process (rank 0) owns the vLLM server, the rollout process and the weight sync;
every rank trains. Invariants: whatever ends the run, no process is left and complete checkpoints stay
complete; `summary.json` says how it ended.

Nothing heavy is imported at the top: the rollout process is spawned from here and so imports this file again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from training.config import TrainConfig, load_config

if TYPE_CHECKING:
    from training.evaluate import EvalResult
    from training.policy_server import ServedPolicy


LAST_WORDS_SECONDS = 60.0
"""How long a rank waits after a failure for the main process to end first; the launcher's signal cuts it
short."""


def train(config: TrainConfig) -> dict[str, Any]:
    """One run; returns its summary, which the main process also writes to `<run>/summary.json`.

    Summary: `ended` (finished, stopped by ..., failed: ...), `note` when it finished early, `steps`,
    `policy_version`, `seconds` by phase, `reward_curve` as [step, reward], `parity_max_abs_diff` in nats,
    `checkpoint` (the last complete one), and with `[eval]` `reward_before`, `reward_after`, `n_eval`.

    Raises:
        LauncherError: the launcher's config asks for what cannot be done.
        VLLMServerError: the server did not start or died; the message has the end of its log.
        ParityError: server and trainer disagree after the first sync.
        RolloutProcessDied: episodes cannot be made; the message has the last error.
    """
    from training.callbacks import (
        CheckpointCallback,
        ProgressCallback,
        StopCallback,
        StopSignal,
        complete_checkpoints,
        write_json,
    )
    from training.policy_server import serve_policy
    from training.rollout_worker import NothingLeftToLearn, RolloutWorker, StopRequested
    from training.run_setup import (
        PID_FILE,
        PhaseClock,
        check_launcher,
        prepare_directory,
        prepare_reporting,
        quiet,
        resume_checkpoint,
        rollout_state,
        share,
        trainer_arguments,
    )
    from training.server import VLLMServerError
    from training.trl_seams import build_trainer
    from training.vllm_admin import VLLMAdmin
    from training.weight_sync import make_weight_transfer

    stop = StopSignal()
    stop.install()
    clock = PhaseClock()
    run_dir = config.run.directory
    check_launcher()
    resume = resume_checkpoint(config)
    state = rollout_state(resume)
    prepare_reporting(config)
    args = trainer_arguments(config)  # joins the process group
    main = args.process_index == 0
    if main:
        prepare_directory(config, resume)
    summary: dict[str, Any] = {"ended": "failed", "world_size": args.world_size, "seconds": clock.seconds}
    served: ServedPolicy | None = None

    with contextlib.ExitStack() as stack:
        if main:
            stack.callback((run_dir / PID_FILE).unlink, missing_ok=True)
            stack.callback(lambda: write_json(run_dir / "summary.json", summary))
        try:
            # 1. A policy server with the weights that training starts from.
            if main:
                with clock.phase("server_start"):
                    served = stack.enter_context(serve_policy(config))
                if config.eval.at_start and resume is None:
                    with clock.phase("eval_before"):
                        summary |= measure(config, served, "before")
            server_url = share(served.server.url if served else None)
            args.vllm_server_base_url = server_url

            # 2. A process that makes episodes and turns them into rows.
            worker = weight_transfer = None
            if served is not None:
                worker = RolloutWorker(
                    config,
                    base_url=served.base_url,
                    model_name=served.model_name,
                    renderer=served.renderer,
                    processes=args.world_size,
                    done_steps=state.get("step", 0),
                    state=state,
                    health_checks=[served.server.watch],
                    stop_requested=lambda: stop.requested,
                )
                stack.callback(worker.stop)
                weight_transfer = make_weight_transfer(
                    config.weight_sync,
                    model=config.model.path,
                    server_url=server_url,
                    output_dir=run_dir,
                    device=args.device.type,
                    api_key=config.vllm.api_key,
                )

            # 3. TRL's trainer takes rows from there and sends weights to the server.
            progress = ProgressCallback(run_dir)
            checkpoints = CheckpointCallback(
                run_dir, worker.state if worker else None, config.checkpoint.keep
            )
            stopping = StopCallback(stop)
            trainer = build_trainer(
                config.model.path,
                args,
                rollout_worker=worker,  # type: ignore[arg-type]  # unused off the main process
                weight_transfer=weight_transfer,
                callbacks=[progress, checkpoints, stopping],
                attention=config.precision.attention,
                parity=config.parity,
                server=VLLMAdmin(server_url, api_key=config.vllm.api_key),
                served_model=config.model.served_name,
            )
            quiet(trainer)
            if args.world_size > 1:
                stopping.reduce_sum = lambda tensor: trainer.accelerator.reduce(tensor, reduction="sum")
            if resume is not None:
                # The first sync then publishes the version that the checkpoint had.
                trainer.model_version = state["model_version"] - 1

            # 4. A step: fresh enough rows -> clipped loss -> weights to the server -> the next version.
            stop.armed = True
            try:
                with clock.phase("training"):
                    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            except (StopRequested, NothingLeftToLearn) as end:
                # Raised on every rank, between two steps; what the unfinished one had accumulated is thrown
                # away.
                if isinstance(end, NothingLeftToLearn):
                    summary["note"] = str(end)
                    if main:
                        print(f"ending early: {end}", flush=True)
                else:
                    stop.requested = True
                step = trainer.state.global_step
                saved = run_dir / f"checkpoint-{step}" in complete_checkpoints(run_dir)
                if share(step > state.get("step", 0) and not saved):  # the main process's view of the disk
                    trainer._save_checkpoint(trainer.model, trial=None)
                    if main:
                        checkpoints.complete(step)
            finally:
                stop.armed = False
                summary |= {
                    "steps": trainer.state.global_step,
                    "policy_version": trainer.model_version,
                    "reward_curve": [[log["step"], log.get("reward")] for log in progress.history],
                    "checkpoint": next(map(str, reversed(complete_checkpoints(run_dir))), None),
                }
                if trainer.parity_report is not None:
                    summary["parity_max_abs_diff"] = trainer.parity_report.max_abs_diff
            stopped = share(stop.requested)  # what follows takes every rank, or none
            summary["ended"] = f"stopped by {stop.reason or 'another rank'}" if stopped else "finished"

            # 5. The trained policy on the same held-out tasks; the server has it since the last sync.
            if not stopped:
                trainer.save_model(str(run_dir / "final"))
                if served is not None and config.eval.at_end:
                    with clock.phase("eval_after"):
                        summary |= measure(config, served, "after")
        except KeyboardInterrupt:
            summary["ended"] = f"interrupted by {stop.reason}"
            raise
        except Exception as error:
            summary["ended"] = failure(error)
            if not main:
                # The launcher ends all ranks as soon as one has failed: the main one has its say first.
                time.sleep(LAST_WORDS_SECONDS)
            if served is not None:
                time.sleep(1.0)  # a server that is dying closes its connections before it is gone
                try:
                    served.server.watch()
                except VLLMServerError as dead:  # the true cause, with the end of the log
                    summary["ended"] = failure(dead)
                    raise dead from error
            raise
    return summary


def failure(error: Exception) -> str:
    """How the summary names the error that ended the run."""
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def measure(config: TrainConfig, served: ServedPolicy, when: str) -> dict[str, Any]:
    """Evaluates the served policy; what goes into the summary. Writes `<run>/eval_<when>/`."""
    from training.evaluate import evaluate

    result: EvalResult = asyncio.run(
        evaluate(
            config,
            base_url=served.base_url,
            model_name=served.model_name,
            renderer=served.renderer,
            output=config.run.directory / f"eval_{when}",
        )
    )
    note = f" ({result.left_out} left out)" if result.left_out else ""
    print(f"{when} training: reward {result.mean_reward:.3f} over {result.n} episodes{note}", flush=True)
    return {f"reward_{when}": result.mean_reward, "n_eval": result.n}


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when the run finished or was stopped in order."""
    config = load_config(argv, TrainConfig)
    try:
        train(config)
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {interrupt}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
