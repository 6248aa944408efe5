"""`training.train` around the scripted model server: vLLM is scripted, the rollout loop runs on a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeModelServer
from tests.training.test_rollout_worker import RENDERER, ThreadWorker
from training.callbacks import StopSignal
from training.policy_server import ServedPolicy
from training.server import VLLMServerError


class Served:
    """What `serve_policy` gives, around the scripted server."""

    def __init__(self, fake: FakeModelServer):
        self.fake = fake
        self.dead = False
        self.url = fake.url

    def watch(self):
        if self.dead:
            raise VLLMServerError("vLLM exited with status -9\nThe end of vllm.log:\nlast words")


@contextlib.contextmanager
def scripted_run(
    fake: FakeModelServer, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> Iterator[Served]:
    """Replaces vLLM by `fake` and the rollout process by a thread."""
    with fake.in_thread():
        served = Served(fake)

        @contextlib.contextmanager
        def serve_policy(config) -> Iterator[ServedPolicy]:
            yield ServedPolicy(served, fake.base_url, config.model.served_name, RENDERER)  # type: ignore[arg-type]

        monkeypatch.setattr("training.policy_server.serve_policy", serve_policy)
        monkeypatch.setattr("training.rollout_worker.RolloutWorker", ThreadWorker)
        monkeypatch.setattr(StopSignal, "install", lambda self: None)
        # Questions that the scripted server does not know.
        info = {"model_config": {"model": str(checkpoint), "logprobs_mode": "processed_logprobs"}}
        monkeypatch.setattr("training.vllm_admin.VLLMAdmin.server_info", lambda self: info)
        monkeypatch.setattr("training.vllm_admin.VLLMAdmin.is_paused", lambda self: False)
        yield served
