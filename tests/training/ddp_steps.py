"""Three GRPO steps on recorded rows; run alone or under torchrun. The main process writes a JSON line a step.

    python tests/training/ddp_steps.py CHECKPOINT OUTPUT ROWS_PER_PROCESS [ENDING]

With ENDING the rows are used up after two steps and the queue raises that error; each rank writes what
reached it. Each rank has a file of its own, OUTPUT/rank<n>.jsonl: on one shared stdout the lines of two
processes may run into each other.
"""

import json
import os
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.training.recorded import NoTransfer, RecordedWorker, cpu_trainer
from training.rollout_worker import NothingLeftToLearn
from training.trl_seams import RolloutSample


def rows(version: int) -> list[RolloutSample]:
    """Two groups of two rows of uneven lengths, each group with a prompt of its own."""
    rng = np.random.default_rng(version)
    samples = []
    for group in range(2):
        prompt = rng.integers(0, 256, 6).tolist()
        for length, advantage in ((5, 1.0), (14, -1.0)):
            ids = np.array(prompt + rng.integers(0, 256, length).tolist())
            mask = np.array([0] * 6 + [1] * length)
            logps = np.where(mask, -6.0, 0.0).astype(np.float32)
            sample = RolloutSample(
                [], [], ids, mask, logps, advantage, version, 10 * version + group, {"reward": advantage}
            )
            samples.append(sample)
    return samples


class Unpicklable(Exception):
    """Does not survive the way to another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text, lambda: None)


ENDINGS = {"NothingLeftToLearn": NothingLeftToLearn, "Unpicklable": Unpicklable}


class EndingQueue(queue.Queue):
    """Raises `error` instead of waiting for rows."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def get(self, block=True, timeout=None):
        if self.empty():
            raise self.error
        return super().get(block, timeout)


def run_to_the_end(checkpoint: str, output: str, rows_per_process: int, ending: str) -> dict[str, object]:
    """What this rank was told when the rows of two steps were used up."""
    worker = RecordedWorker(lambda version: rows(version) if version <= 2 else [])
    worker.rollout_buffer = EndingQueue(ENDINGS[ending]("all groups are solved"))
    args = {"max_steps": 9, "per_device_train_batch_size": rows_per_process, "ddp_backend": "gloo"}
    trainer = cpu_trainer(checkpoint, output, worker, NoTransfer(), args=args)
    try:
        trainer.train()
    except Exception as error:
        return {
            "rank": trainer.accelerator.process_index,
            "step": trainer.state.global_step,
            "error": type(error).__name__,
            "text": str(error),
        }
    raise AssertionError("training went on without rows")


def run(
    checkpoint: str,
    output: str,
    rows_per_process: int,
    *,
    transfer: NoTransfer | None = None,
    args: dict[str, Any] | None = None,
    **kwargs: Any,
) -> list[dict[str, float]]:
    """What the steps logged; empty off the main process. Further arguments are the trainer's."""
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": rows_per_process,
        "learning_rate": 1e-2,
        "max_grad_norm": 1e9,
        "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ else None,
    }
    worker, settings = RecordedWorker(rows), defaults | (args or {})
    trainer = cpu_trainer(checkpoint, output, worker, transfer or NoTransfer(), args=settings, **kwargs)
    trainer.train()
    keys = ("loss", "grad_norm", "ratio", "sample/staleness_max")
    processes = {"processes": trainer.accelerator.num_processes}
    logs = trainer.state.log_history if trainer.accelerator.is_main_process else []
    return [processes | {key: log[key] for key in keys} for log in logs if "loss" in log]


if __name__ == "__main__":
    checkpoint, output, rows_per_process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if len(sys.argv) > 4:
        told: list[dict] = [run_to_the_end(checkpoint, output, rows_per_process, sys.argv[4])]
    else:
        told = run(checkpoint, output, rows_per_process)
    lines = "".join(json.dumps(line) + "\n" for line in told)
    Path(output, f"rank{os.environ.get('RANK', 0)}.jsonl").write_text(lines)
