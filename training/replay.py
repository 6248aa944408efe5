"""Recorded rows instead of episodes: for tests and for measuring the trainer alone.

`ReplayWorker` implements TRL's rollout-worker protocol over a fixed list of rows, in order and without end, so
a training run is a function of rows and seed. Not for training policies: the rows never get fresher; each is
handed out as if the version at hand had sampled it.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from training.samples import TrainRow


def save_rows(path: Path, rows: Sequence[TrainRow]) -> None:
    """Writes rows to one `.npz` file; `load_rows` reads them back bit for bit."""
    arrays: dict[str, Any] = {
        "lengths": np.asarray([len(row.input_ids_T) for row in rows], dtype=np.int64),
        "input_ids": np.concatenate([row.input_ids_T for row in rows]),
        "mask": np.concatenate([row.mask_T for row in rows]),
        "logprobs": np.concatenate([row.logprobs_T for row in rows]),
        "advantages": np.asarray([row.advantage for row in rows], dtype=np.float64),
        "versions": np.asarray([row.version for row in rows], dtype=np.int64),
        "groups": np.asarray([row.group for row in rows], dtype=np.int64),
        "roots": np.asarray([row.kind == "root" for row in rows]),
    }
    np.savez_compressed(path, **arrays)


def load_rows(path: Path) -> list[TrainRow]:
    """Reads what `save_rows` wrote."""
    with np.load(path) as data:
        cuts = np.cumsum(data["lengths"])[:-1]
        columns = [np.split(data[name], cuts) for name in ("input_ids", "mask", "logprobs")]
        return [
            TrainRow(
                ids,
                mask,
                logprobs,
                float(data["advantages"][i]),
                int(data["versions"][i]),
                int(data["groups"][i]),
                "root" if data["roots"][i] else "sub",
            )
            for i, (ids, mask, logprobs) in enumerate(zip(*columns, strict=True))
        ]


class _Repeat:
    """A queue that never runs dry; the part of `queue.Queue` that TRL uses."""

    def __init__(self, rows: Sequence[TrainRow]) -> None:
        if not rows:
            raise ValueError("there are no rows to replay")
        self._rows = rows
        self._next = 0
        self.version = 0

    def qsize(self) -> int:
        return len(self._rows)

    def get(self, block: bool = True, timeout: float | None = None) -> RolloutSample:
        sample = self._rows[self._next % len(self._rows)].to_sample()
        # A second pass over a prompt is another group to TRL's planner.
        sample.group_id += (self._next // len(self._rows)) * 1_000_000
        sample.model_version = self.version
        self._next += 1
        return sample


class ReplayWorker:
    """TRL's rollout worker over recorded rows."""

    def __init__(self, rows: Sequence[TrainRow]) -> None:
        self.rollout_buffer: Any = _Repeat(rows)
        self.metrics_queue: queue.Queue = queue.Queue()

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def update_model_version(self, model_version: int) -> None:
        """Rows handed out from now on carry `model_version`."""
        self.rollout_buffer.version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Always well."""


class NoTransfer:
    """TRL's weight transfer for a run without a server: takes the weights and drops them."""

    def init_weight_transfer(self) -> None:
        """Nothing to set up."""

    def pause(self) -> None:
        """Nothing to pause."""

    def send_weights(self, iterator: Any) -> None:
        """Consumes the iterator, which gathers sharded parameters as it goes."""
        for _ in iterator:
            pass

    def resume(self) -> None:
        """Nothing to resume."""

    def destroy(self) -> None:
        """Nothing to release."""
