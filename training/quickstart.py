"""The main job from nothing, on two CPU cores: what `scripts/quickstart.sh` runs after the set-up.

    python -m training.quickstart [--seed 1] [--output-dir DIR] [-- overrides of training.train]

Phases: (1) the tiny policy is built and imitates scripted episodes, most of which earn nothing
(`training.warmstart`); (2) `training.train`, started by `accelerate launch` as anyone would start it,
evaluates the policy on held-out tasks, trains it by reward on real vLLM, and evaluates it on the same tasks
again; (3) the results are gathered in `summary.json`, `reward_curve.png` and `traces/`.

Invariants: everything is derived from one seed; imitated, trained and evaluated tasks have no text in common
(train takes another split than evaluation, the scripts another seed); `summary.json` is written last and by
rename, so its presence says that the run is complete.

Not covered: installing (`scripts/setup.sh`), and any setting of training
(`configs/train/quickstart_cpu.toml`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Before torch is loaded. Threads that spin while they wait starve each other as soon as something else
    # wants a core: imitation was seven times slower with two spinning threads than with one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of the lines on the console every one should be about the run.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pydantic import Field
from pydantic_config import BaseConfig, ConfigFileError, cli

from training.callbacks import write_json
from training.config import TrainConfig, load_config
from training.reward_curve import plot_reward_curve
from training.run_setup import PhaseClock
from training.trace_store import TRACES_FILE, TraceStore
from training.warmstart import Warmstart, WarmstartConfig

if TYPE_CHECKING:
    import verifiers.v1 as vf

ROOT = Path(__file__).parent.parent

WARMSTART_SEED_OFFSET = 1_000_003
"""Between the seeds of the tasks that are imitated and those that are trained on."""

TRAINER_STOP_SECONDS = 60.0
"""Time for the trainer to take down its processes when the quickstart is stopped."""


class QuickstartConfig(BaseConfig):
    """The quickstart. Settings of training itself follow after `--`."""

    seed: int = 0
    """Seed of weights, scripts, tasks and their order."""
    output_dir: Path = Path("outputs/quickstart")
    """Where everything is written; an earlier quickstart there is replaced."""
    train_config: Path = ROOT / "configs/train/quickstart_cpu.toml"
    """Configuration of the training run."""
    accelerate_config: Path = ROOT / "configs/accelerate/cpu.yaml"
    """Configuration of `accelerate launch`."""
    warmstart: WarmstartConfig = WarmstartConfig()
    """The supervised start."""
    reward_before_max: float = Field(0.45, ge=0, le=1)
    """The run fails when the started policy is rewarded more often: there would be little left to learn."""
    reward_after_min: float = Field(0.85, ge=0, le=1)
    """The run fails when the trained policy is rewarded less often."""


class Console:
    """Progress lines with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall clock so far."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Prints one line."""
        print(f"[quickstart {self.seconds:4.0f} s] {text}", flush=True)


class QuickstartFailed(RuntimeError):
    """The trainer failed, or the policy did not learn what it was to learn."""


def train_arguments(config: QuickstartConfig, overrides: Sequence[str]) -> list[str]:
    """Arguments of `training.train`: the file, what the quickstart decides, then the user's own."""
    return [
        "@",
        str(config.train_config),
        "--model.path",
        str(config.output_dir / "start"),
        "--run.output-dir",
        str(config.output_dir),
        "--run.name",
        "grpo",
        "--run.overwrite",
        "--run.seed",
        str(config.seed),
        "--env.taskset.seed",
        str(config.seed),
        *overrides,
    ]


def warmstart_environment(train: TrainConfig, seed: int) -> vf.EnvConfig:
    """The environment of training on tasks of its own."""
    taskset = train.env.taskset.model_copy(update={"seed": seed + WARMSTART_SEED_OFFSET})
    return train.env.model_copy(update={"taskset": taskset})


def run_trainer(config: QuickstartConfig, arguments: Sequence[str]) -> None:
    """Runs `training.train` under `accelerate launch`, in a process of its own, to its end.

    Raises:
        QuickstartFailed: it ended with an error.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(config.accelerate_config), "-m", "training.train", *arguments]
    # One thread for the trainer: the server and the episodes need the other core.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    # A session of its own, so that a Ctrl-C at the terminal reaches it once, from here.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(TRAINER_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        run = config.output_dir / "grpo"
        raise QuickstartFailed(f"training ended with code {code}; see the lines above and {run}")


def clear(directory: Path) -> None:
    """Removes what an earlier quickstart wrote, and nothing else."""
    for name in ("start", "start.partial", "grpo", "model", "traces"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in ("summary.json", "reward_curve.png"):
        (directory / name).unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)


def gather_traces(directory: Path, start: Warmstart) -> None:
    """`traces/`: one folder a phase, each with a `traces.jsonl` as verifiers' own tools and the viewer
    read."""
    traces = directory / "traces"
    (traces / "warmstart").mkdir(parents=True)
    TraceStore.write(traces / "warmstart" / TRACES_FILE, [scripted.episode for scripted in start.episodes])
    for phase in ("eval_before", "eval_after", "rollouts"):
        source = directory / "grpo" / phase
        for file in sorted(source.rglob(TRACES_FILE)):
            target = traces / phase / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def summarise(
    config: QuickstartConfig, start: Warmstart, trained: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """The summary of the whole run; `seconds` by phase and in total."""
    wanted = ("reward_before", "reward_after", "n_eval", "steps", "parity_max_abs_diff")
    missing = [name for name in wanted if name not in trained]
    if missing or trained["ended"] != "finished":
        raise QuickstartFailed(f"training ended as {trained.get('ended')!r}, without {missing}")
    met = (
        trained["reward_before"] <= config.reward_before_max
        and trained["reward_after"] >= config.reward_after_min
    )
    return {
        **{name: trained[name] for name in wanted},
        "seed": config.seed,
        "goal": {
            "reward_before_max": config.reward_before_max,
            "reward_after_min": config.reward_after_min,
            "met": met,
        },
        "seconds": seconds,
        "parameters": start.parameters,
        "warmstart": {
            "episodes": len(start.episodes),
            "rows": start.rows,
            "sampled_tokens": start.sampled_tokens,
            "loss": start.loss,
            "reward": start.reward,
            "behaviours": start.behaviours,
        },
        "reward_curve": trained["reward_curve"],
    }


def quickstart(config: QuickstartConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The whole run; returns the summary.

    Raises:
        QuickstartFailed: training failed. A policy that did not reach the goals is returned, with
            `summary["goal"]["met"]` false.
    """
    from training.warmstart import warm_start

    console, clock = Console(), PhaseClock()
    directory = config.output_dir
    arguments = train_arguments(config, overrides)
    train = load_config(list(arguments), TrainConfig)  # a wrong setting is told now, not in two minutes
    clear(directory)

    console.say(f"seed {config.seed}; results go to {directory}")
    start = warm_start(
        directory / "start",
        warmstart_environment(train, config.seed),
        config.warmstart,
        seed=config.seed,
        max_tokens=train.sampling.max_tokens,
        clock=clock,
        say=console.say,
    )
    console.say("training by reward: vLLM server, evaluation, GRPO, evaluation")
    with clock.phase("train_process"):
        run_trainer(config, arguments)
    trained = json.loads((directory / "grpo" / "summary.json").read_text(encoding="utf-8"))

    with clock.phase("figures"):
        (directory / "grpo" / "final").rename(directory / "model")
        gather_traces(directory, start)
        plot_reward_curve(
            directory / "reward_curve.png",
            trained["reward_curve"],
            before=trained.get("reward_before"),
            after=trained.get("reward_after"),
            n_eval=trained.get("n_eval", 0),
            title=f"verbatim copy by a {start.parameters / 1e6:.1f} M-parameter RLM, seed {config.seed}",
        )
    seconds = clock.seconds | {f"train/{name}": value for name, value in trained["seconds"].items()}
    seconds["total"] = round(console.seconds, 3)
    summary = summarise(config, start, trained, seconds)
    write_json(directory / "summary.json", summary)
    console.say(
        f"reward {summary['reward_before']:.3f} -> {summary['reward_after']:.3f} on {summary['n_eval']} "
        f"held-out episodes, {summary['steps']} steps; see {directory}/: summary.json, reward_curve.png, "
        "traces/, model/"
    )
    return summary


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 when the goals were met, 1 when not, 2 for a wrong setting, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, overrides = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, overrides = arguments[:at], arguments[at + 1 :]
    try:
        config = cli(QuickstartConfig, args=own)
        signal.signal(signal.SIGTERM, _interrupt)
        summary = quickstart(config, overrides)
    except ConfigFileError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    except QuickstartFailed as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quickstart: interrupted", file=sys.stderr)
        return 130
    if not summary["goal"]["met"]:
        print(
            f"quickstart: the goal was reward <= {config.reward_before_max} before and >= "
            f"{config.reward_after_min} after training",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
