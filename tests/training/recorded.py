"""A rollout worker that hands out recorded rows, and a trainer on the CPU around it."""

import queue
from collections.abc import Callable

import torch

from training.trl_seams import AsyncGRPOConfig, RolloutSample, build_trainer


class RecordedWorker:
    """TRL's rollout worker protocol over a function: policy version -> the rows sampled from it."""

    def __init__(self, rows: Callable[[int], list[RolloutSample]]):
        self.rollout_buffer: queue.Queue = queue.Queue()
        self.metrics_queue: queue.Queue = queue.Queue()
        self.rows = rows
        self.versions: list[int] = []
        self.started = self.stopped = False

    def start(self) -> None:
        self.started = True
        self._emit()

    def stop(self) -> None:
        self.stopped = True

    def update_model_version(self, model_version: int) -> None:
        self.versions.append(model_version)
        if self.started:
            self._emit()

    def check_health(self, stale_after_s: float) -> None:
        """Nothing can go wrong."""

    def _emit(self) -> None:
        for row in self.rows(self.versions[-1]):
            self.rollout_buffer.put(row)


class NoTransfer:
    """TRL's weight transfer protocol; only keeps a record."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.names: list[str] = []

    def init_weight_transfer(self) -> None:
        self.calls.append("init")

    def pause(self) -> None:
        self.calls.append("pause")

    def send_weights(self, iterator) -> None:
        self.calls.append("send")
        self.names = [name for name, _ in iterator]

    def resume(self) -> None:
        self.calls.append("resume")

    def destroy(self) -> None:
        self.calls.append("destroy")


class KeptWeights(NoTransfer):
    """Keeps a copy of what was sent last."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, torch.Tensor] = {}

    def send_weights(self, iterator) -> None:
        self.calls.append("send")
        self.weights = {name: tensor.detach().clone() for name, tensor in iterator}


def cpu_trainer(model, output, worker, transfer, *, args=None, **kwargs):
    """A trainer for four rows a step, on the newest policy version only."""
    defaults = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "token_budget": -1,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "max_staleness": 0,
        "save_strategy": "no",
    }
    config = AsyncGRPOConfig(**(defaults | (args or {})))
    return build_trainer(model, config, rollout_worker=worker, weight_transfer=transfer, **kwargs)
