"""Trainer and a real vLLM on the CPU: weights arrive, and a sync that leaves a tensor out is noticed."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.training.recorded import RecordedWorker, cpu_trainer
from tests.training.tiny_models import save_tiny
from training.parity import ParityConfig, ParityError
from training.server import VLLMConfig, VLLMServer
from training.trl_seams import RolloutSample
from training.weight_sync import FileWeightTransfer, WeightSyncConfig, make_weight_transfer, tied_parameters

# A server that starts takes half a minute of two idle cores.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
NAME = "policy"


def random_rows(version: int) -> list[RolloutSample]:
    """Four rows of random tokens, half of them good."""
    rng = np.random.default_rng(version)
    rows = []
    for i in range(4):
        mask = np.array([0] * 8 + [1] * 16)
        logps = np.where(mask, -5.0, 0.0).astype(np.float32)
        ids = rng.integers(0, 256, 24)
        rows.append(RolloutSample([], [], ids, mask, logps, (-1.0) ** i, version, version, {"reward": 0.5}))
    return rows


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(request, tmp_path_factory):
    """A vLLM that serves a tiny model, and the model's directory."""
    path = save_tiny(tmp_path_factory.mktemp("policy"), tied=request.param)
    config = VLLMConfig(device="cpu", max_model_len=128, max_num_seqs=8, startup_seconds=600)
    with VLLMServer(config, model=path, served_model=NAME, output_dir=path) as server:
        yield server, path, request.param


def trainer_for(server, model, output, transfer, *, steps, temperature=0.7, **parity):
    return cpu_trainer(
        model,
        output,
        RecordedWorker(random_rows),
        transfer,
        args={"max_steps": steps, "learning_rate": 0.05, "temperature": temperature},
        parity=ParityConfig(**parity),
        server=server.admin,
        served_model=NAME,
    )


def served_logprobs(server, ids):
    """Log-probabilities of `ids[1:]`, by another endpoint than the parity check's.

    vLLM gives those of prompt tokens before the temperature, whatever --logprobs-mode says.
    """
    body = {
        "model": NAME,
        "prompt": ids,
        "max_tokens": 1,
        "prompt_logprobs": 0,
    }
    answer = server.admin.call("POST", "/v1/completions", json=body)
    entries = answer["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)]


def test_after_training_the_server_computes_what_the_trainer_does(served, tmp_path):
    server, model, tied = served
    transfer = make_weight_transfer(
        WeightSyncConfig(backend="file", keep=1),
        model=model,
        server_url=server.url,
        output_dir=tmp_path,
        device="cpu",
    )
    assert bool(transfer.tied) == tied
    trainer = trainer_for(server, model, tmp_path, transfer, steps=2)
    before = trainer.model.get_output_embeddings().weight.detach().clone()
    trainer.train()

    report = trainer.parity_report
    assert report.max_abs_diff < 1e-4
    assert report.plain.tokens == report.scrambled.tokens == 4 * 32
    # Two steps on rows of the newest version only: nothing is fetched ahead, so max_staleness = 0 is met.
    assert trainer.rollout_worker.versions == [1, 2, 3]
    assert trainer.state.global_step == 2
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["weights-000004"]  # one was scrambled

    # The trained weights, not the ones of the start, are what the server has.
    policy = trainer.model
    assert (policy.get_output_embeddings().weight - before).abs().max() > 0.05
    policy.set_attn_implementation("sdpa")
    ids = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(9)).tolist()
    with torch.no_grad():
        logits = policy.eval()(torch.tensor([ids])).logits[0]
    wanted = logits.log_softmax(-1)[range(39), ids[1:]]
    np.testing.assert_allclose(served_logprobs(server, ids), wanted.numpy(), atol=1e-4)


def restore_checkpoint(server, model, output):
    """Have the server load the weights of the checkpoint again, as after its start."""
    transfer = FileWeightTransfer(server.url, output / "restored", tied=tied_parameters(model))
    trainer = trainer_for(server, model, output, transfer, steps=1)
    transfer.init_weight_transfer()
    trainer.push_weights()


class Lossy(FileWeightTransfer):
    """Leaves one tensor out of every version."""

    left_out: str

    def send_weights(self, iterator):
        super().send_weights((name, tensor) for name, tensor in iterator if name != self.left_out)


@pytest.mark.parametrize("left_out", ["lm_head.weight", "model.layers.1.self_attn.k_norm.weight"])
def test_a_sync_that_leaves_a_tensor_out_stops_the_run(served, tmp_path, left_out):
    server, model, tied = served
    restore_checkpoint(server, model, tmp_path)
    transfer = Lossy(server.url, tmp_path / "weights", tied={} if tied else tied_parameters(model))
    transfer.left_out = left_out  # with tied embeddings the trainer has no lm_head.weight to begin with
    trainer = trainer_for(server, model, tmp_path, transfer, steps=1)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ParityError, match=r"lm_head\.weight") as error:
        trainer.train()
    assert "scrambled weights" in str(error.value)
    # The run ends in order: nothing scrambled, nobody started, nothing paused.
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert not trainer.rollout_worker.started
    assert trainer.rollout_worker.stopped
    assert not server.admin.is_paused()


def test_a_trainer_at_another_temperature_is_noticed(served, tmp_path, monkeypatch):
    server, model, _ = served
    transfer = FileWeightTransfer(server.url, tmp_path / "weights", tied=tied_parameters(model))
    trainer = trainer_for(server, model, tmp_path, transfer, steps=1, temperature=0.7, scramble=False)
    # What a server without --logprobs-mode processed_logprobs would report: those of temperature 1.
    sample = server.admin.sample
    monkeypatch.setattr(server.admin, "sample", lambda *a, **k: sample(*a, **{**k, "temperature": 1.0}))
    with pytest.raises(ParityError, match="processed_logprobs"):
        trainer.train()


def test_requests_in_flight_survive_a_sync_and_new_ones_get_the_new_weights(served, tmp_path):
    server, model, _ = served
    transfer = FileWeightTransfer(server.url, tmp_path / "weights", tied=tied_parameters(model))
    trainer = trainer_for(server, model, tmp_path, transfer, steps=1)
    policy = trainer.model
    with torch.no_grad():
        policy.get_output_embeddings().weight.add_(torch.randn(264, 64))
    transfer.init_weight_transfer()
    prompt = [1, 2, 3]
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.admin.sample, NAME, prompt, max_tokens=120, temperature=1.0, seconds=300)
        time.sleep(0.05)
        transfer.pause()
        waiting = pool.submit(server.admin.sample, NAME, prompt, max_tokens=20, temperature=1.0, seconds=300)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        transfer.send_weights(trainer._streaming_iter())
        transfer.resume()
        assert len(running.result(timeout=300).token_ids) == 120
        sample = waiting.result(timeout=300)
    policy.set_attn_implementation("sdpa")
    ids = prompt + sample.token_ids
    with torch.no_grad():
        logp = policy.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    np.testing.assert_allclose(sample.logprobs, logp[range(2, len(ids) - 1), ids[3:]].numpy(), atol=1e-3)


def test_a_directory_that_the_server_cannot_read_leaves_it_running(served, tmp_path, monkeypatch):
    from training.weight_sync import WeightSyncError

    server, model, _ = served
    transfer = FileWeightTransfer(server.url, tmp_path / "weights", tied=tied_parameters(model))
    trainer = trainer_for(server, model, tmp_path, transfer, steps=1)
    transfer.init_weight_transfer()
    transfer.pause()
    write = transfer._write
    monkeypatch.setattr(transfer, "_write", lambda it: (tmp_path / "not there", write(it)[1]))
    with pytest.raises(WeightSyncError, match=r"answered 500.*has loaded .* again"):
        transfer.send_weights(trainer._streaming_iter())
    assert not server.admin.is_paused()
    assert len(server.admin.sample(NAME, [1, 2, 3], max_tokens=4, temperature=1.0).token_ids) == 4
