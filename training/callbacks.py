"""What the trainer tells and asks its surroundings between steps: progress, checkpoints, a wish to stop.

Invariants: a checkpoint that has `rollout_state.json` is complete, since that file is written last and by
rename; older checkpoints go only after that; all ranks stop at the same step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.rollout_child import kill_tree

STATE_FILE = "rollout_state.json"
ORPHAN_SECONDS = 120.0
"""Time for a rank whose launcher is gone to write its checkpoint and end."""

CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    found = [path for path in run_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return sorted(
        (path for path in found if CHECKPOINT.match(path.name)), key=lambda path: int(path.name.split("-")[1])
    )


def write_json(path: Path, data: Any) -> None:
    """Writes by rename, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2, allow_nan=True) + "\n", encoding="utf-8")
    partial.replace(path)


class StopSignal:
    """SIGINT and SIGTERM as a wish that the trainer reads. While `armed` the first one only sets `requested`;
    a second one, or one outside training, raises KeyboardInterrupt.

    Under a launcher that dies without passing its signal on (accelerate's does), its death is the wish too.
    """

    def __init__(self) -> None:
        self.requested = False
        self.armed = False
        self.reason = ""
        self._parent = os.getppid()

    def install(self) -> None:
        """Takes over both signals; starts the watch over the launcher when there is one."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)
        if any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")):
            threading.Thread(target=self._watch_launcher, name="launcher-watch", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested, self.reason = self.requested, True, signal.Signals(number).name
        if again or not self.armed:
            raise KeyboardInterrupt(self.reason)

    def _watch_launcher(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        # A rank that waits for others inside a collective never gets to handle a signal.
        time.sleep(ORPHAN_SECONDS)
        kill_tree(os.getpid())


class StopCallback(TrainerCallback):
    """Ends training after the step at hand, with a checkpoint, when any rank was asked to stop.

    Args:
        stop: this rank's wish.
        reduce_sum: sums a tensor over ranks (`accelerator.reduce`); None with one process.
    """

    def __init__(
        self, stop: StopSignal, reduce_sum: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.stop = stop
        self.reduce_sum = reduce_sum

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        wish = torch.tensor(float(self.stop.requested), device=args.device)
        if self.reduce_sum is not None:
            wish = self.reduce_sum(wish)
        if wish.item() > 0:
            self.stop.requested = True
            control.should_save = True
            control.should_training_stop = True
        return control


class CheckpointCallback(TrainerCallback):
    """Completes a checkpoint with the rollouts' state, then deletes old ones. Main process only does
    anything.

    Args:
        run_dir: where checkpoints are.
        state: what to write, asked at each save; None on other ranks.
        keep: complete checkpoints to keep.
    """

    def __init__(self, run_dir: Path, state: Callable[[], Mapping[str, Any]] | None, keep: int) -> None:
        self.run_dir = run_dir
        self.state = state
        self.keep = keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.state is not None:
            self.complete(state.global_step)
        return control

    def complete(self, step: int) -> Path:
        """Completes the checkpoint of `step`; returns its directory."""
        assert self.state is not None
        path = self.run_dir / f"checkpoint-{step}"
        write_json(path / STATE_FILE, {"step": step, **self.state()})
        newest = int(path.name.split("-")[1])
        for old in complete_checkpoints(self.run_dir)[: -self.keep]:
            shutil.rmtree(old)
        # What a crash left half-written before this one is of no use to anybody.
        for other in self.run_dir.glob("checkpoint-*"):
            match = CHECKPOINT.match(other.name)
            if match and int(match[1]) < newest and not (other / STATE_FILE).is_file():
                shutil.rmtree(other)
        return path


def short(number: float) -> str:
    """1234567 -> '1.2M'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def progress_line(step: int, steps: int, logs: Mapping[str, Any]) -> str:
    """One line about one step, from TRL's log of it. Values that the step does not have are left out.

    Example: `step 12/40 | reward 0.412 (std 0.310) | groups 6/8 | tokens 4.1k root 2.3k sub | rollout 3.2s
    (waited 1.1s) train 1.9s sync 0.2s | staleness 0.8 | loss -0.0123 grad 0.81 ratio 1.0002`
    """

    def get(name: str) -> float | None:
        value = logs.get(name)
        return float(value) if isinstance(value, int | float) else None

    def joined(*parts: str | None) -> str:
        return " ".join(part for part in parts if part)

    def part(text: str, name: str, form: Callable[[float], str]) -> str | None:
        value = get(name)
        return None if value is None else text.format(form(value))

    def plain(digits: int) -> Callable[[float], str]:
        return lambda value: f"{value:.{digits}f}"

    train = [value for value in (get("perf/fwd_bwd_s"), get("perf/optimizer_s")) if value is not None]
    kept, total = get("rollout/groups_kept_total"), get("rollout/groups_total")
    failed = get("rollout/episodes_left_out_total")
    fields = [
        f"step {step}/{steps}",
        joined(part("reward {}", "reward", plain(3)), part("(std {})", "reward_std", plain(3))),
        "" if kept is None or total is None else f"groups {kept:.0f}/{total:.0f}",
        joined(
            part("tokens {} root", "rows/root_tokens_total", short),
            part("{} sub", "rows/sub_tokens_total", short),
        ),
        joined(
            part("rollout {}s", "rollout/group_seconds", plain(1)),
            part("(waited {}s)", "perf/rollout_wait_s", plain(1)),
            f"train {sum(train):.1f}s" if train else None,
            part("sync {}s", "perf/weight_sync_s", plain(1)),
        ),
        part("staleness {}", "sample/staleness_mean", plain(2)) or "",
        joined(
            part("loss {}", "loss", plain(4)),
            part("grad {}", "grad_norm", plain(2)),
            part("ratio {}", "ratio", plain(4)),
        ),
        f"{failed:.0f} episodes failed" if failed else "",
    ]
    return " | ".join(field for field in fields if field)


class ProgressCallback(TrainerCallback):
    """One line per step on the console, everything in `metrics.jsonl`. Main process only.

    Attributes:
        history: the logs of all steps, oldest first.
    """

    def __init__(self, run_dir: Path, echo: Callable[[str], None] = print) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.echo = echo
        self.history: list[dict[str, Any]] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return control
        record = {"step": state.global_step, "time": time.time(), **logs}
        self.history.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.echo(progress_line(state.global_step, state.max_steps, logs))
        return control
