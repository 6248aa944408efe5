"""Three GRPO steps on recorded rows; run alone or under torchrun. Prints a JSON line a step from the main
process.

    python tests/training/ddp_steps.py CHECKPOINT OUTPUT ROWS_PER_PROCESS
"""

import json
import os
import sys

import numpy as np

from tests.training.recorded import NoTransfer, RecordedWorker, cpu_trainer
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


def run(checkpoint: str, output: str, rows_per_process: int) -> list[dict[str, float]]:
    """What the steps logged; empty off the main process."""
    args = {
        "max_steps": 3,
        "per_device_train_batch_size": rows_per_process,
        "learning_rate": 1e-2,
        "max_grad_norm": 1e9,
        "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ else None,
    }
    trainer = cpu_trainer(checkpoint, output, RecordedWorker(rows), NoTransfer(), args=args)
    trainer.train()
    keys = ("loss", "grad_norm", "ratio", "sample/staleness_max")
    processes = {"processes": trainer.accelerator.num_processes}
    logs = trainer.state.log_history if trainer.accelerator.is_main_process else []
    return [processes | {key: log[key] for key in keys} for log in logs if "loss" in log]


if __name__ == "__main__":
    for log in run(sys.argv[1], sys.argv[2], int(sys.argv[3])):
        print(json.dumps(log), flush=True)
