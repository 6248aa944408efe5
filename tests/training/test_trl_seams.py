"""TRL's private names are where we think, and its loss is the one that we think, worked out by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import ddp_steps
from tests.training.recorded import NoTransfer, RecordedWorker, cpu_trainer
from tests.training.tiny_models import save_tiny
from training import trl_seams
from training.trl_seams import TREE_ATTENTION, TRL_VERSION, RolloutSample, missing_seams


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), window=6)


def sample(ids, prompt, logps, advantage, version=1, group=0):
    """A row whose tokens after `prompt` were sampled with the log-probabilities `logps`."""
    mask = [0] * prompt + [1] * (len(ids) - prompt)
    return RolloutSample(
        [], [], np.array(ids), np.array(mask), np.array([0.0] * prompt + logps, dtype=np.float32),
        advantage, version, group, {"reward": 1.0},
    )  # fmt: skip


def test_every_seam_is_in_its_place():
    assert missing_seams() == []


class TestMovedSeams:
    def test_another_version(self, monkeypatch, checkpoint, tmp_path):
        monkeypatch.setattr(trl_seams.trl, "__version__", "9.9")
        assert missing_seams() == [f"trl is 9.9, not {TRL_VERSION}"]
        with pytest.raises(RuntimeError, match=r"trl is 9\.9"):
            cpu_trainer(checkpoint, tmp_path, RecordedWorker(lambda v: []), NoTransfer())

    def test_a_name_that_is_gone(self, monkeypatch):
        monkeypatch.delattr(trl_seams._trainer_module, "get_peak_flops_per_device")
        assert any("get_peak_flops_per_device is gone" in text for text in missing_seams())

    def test_a_method_that_works_otherwise(self, monkeypatch):
        def _sync_weight_merged(self, t0):
            self.weight_transfer.push()

        monkeypatch.setattr(trl_seams.AsyncGRPOTrainer, "_sync_weight_merged", _sync_weight_merged)
        assert sum("_sync_weight_merged no longer has" in text for text in missing_seams()) == 4


def test_a_step_on_the_cpu_in_the_order_of_the_protocol(checkpoint, tmp_path):
    rng = np.random.default_rng(0)

    def rows(version):
        ids = rng.integers(0, 256, (4, 12)).tolist()
        return [sample(row, 5, [-5.0] * 7, (-1.0) ** i, version) for i, row in enumerate(ids)]

    worker, transfer = RecordedWorker(rows), NoTransfer()
    trainer = cpu_trainer(checkpoint, tmp_path, worker, transfer, args={"max_steps": 3})
    trainer.train()
    sync = ["pause", "send", "resume"]
    assert transfer.calls == ["init", *sync, *sync, *sync, *sync, "destroy"]
    assert worker.versions == [1, 2, 3, 4]
    assert worker.stopped
    assert set(transfer.names) == {name for name, _ in trainer.model.named_parameters()}
    assert trainer.tree_attention.fast is None
    # Each step used the rows of its own version: with a batch fetched ahead it would have starved.
    staleness = [log["sample/staleness_max"] for log in trainer.state.log_history if "loss" in log]
    assert staleness == [0, 0, 0]


def test_the_saved_model_says_nothing_of_tree_attention(checkpoint, tmp_path):
    trainer = cpu_trainer(checkpoint, tmp_path, RecordedWorker(lambda v: []), NoTransfer())
    trainer.save_model(str(tmp_path / "saved"))
    assert TREE_ATTENTION not in (tmp_path / "saved" / "config.json").read_text()


def test_grpo_loss_worked_out_by_hand(checkpoint, tmp_path):
    """Ratio, clip, advantage, mask and normalisation, in numpy, on log-probabilities of plain forwards.

    Two rows share a prompt and half a reply, one is by itself. With T the temperature and A the row's
    advantage:

        r_t  = exp(logp_T(t) - old_t)
        loss = -(1 / number of sampled tokens in the step) sum_t min(r_t A, clip(r_t, 0.8, 1.3) A)

    The old log-probabilities are set around the true ones, so that ratios fall below, inside and above the
    clip range for advantages of either sign.
    """
    temperature, low, high = 0.7, 0.2, 0.3
    args = {
        "temperature": temperature,
        "epsilon": low,
        "epsilon_high": high,
        "per_device_train_batch_size": 3,
    }
    trainer = cpu_trainer(checkpoint, tmp_path, RecordedWorker(lambda v: []), NoTransfer(), args=args)
    prompt, reply = [1, 2, 3, 4], [50, 51, 52]
    ids = [prompt + reply + [60, 61], prompt + reply + [70, 71, 72], [9, 8, 7, 6, 5]]
    starts, advantages = [4, 4, 2], [1.5, -0.5, -2.0]
    # log(r) of each sampled token, chosen: inside, above and below the clip range.
    log_ratios = [[0.1, 0.5, -0.5, 0.0, 0.29], [0.1, 0.5, -0.5, -0.1, 0.3, -0.3], [0.4, -0.4, 0.05]]

    model = trainer.model
    model.set_attn_implementation("eager")
    rows, terms = [], []
    for row, start, advantage, wanted in zip(ids, starts, advantages, log_ratios, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double().numpy() / temperature
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        sampled = np.array([logp[p - 1, row[p]] for p in range(start, len(row))])
        old = (sampled - np.array(wanted)).astype(np.float32)
        rows.append(sample(row, start, old.tolist(), advantage))
        ratio = np.exp(sampled - old)
        terms.append(np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage))
    by_hand = -sum(t.sum() for t in terms) / sum(len(t) for t in terms)

    # The first row's second token, say: r = e^0.5 = 1.649 is clipped to 1.3, times 1.5 is 1.95.
    assert terms[0][1] == pytest.approx(1.95, abs=1e-4)
    # A negative advantage is not clipped from above: e^0.5 * -0.5.
    assert terms[1][1] == pytest.approx(-0.8244, abs=1e-4)

    model.set_attn_implementation(TREE_ATTENTION)
    for row in rows:
        trainer.rollout_queue.put(row)
    trainer.model_version = 1
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].numel() < sum(map(len, ids))  # the shared prompt is there once
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, batch)
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)

    # And its gradient, against one taken through plain forwards with the same formula.
    loss.backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    total, count = torch.zeros(()), 0
    for row, ids_, start, advantage in zip(rows, ids, starts, advantages, strict=True):
        logp = (model(torch.tensor([ids_])).logits[0] / temperature).log_softmax(-1)
        sampled = logp[range(start - 1, len(ids_) - 1), ids_[start:]]
        ratio = (sampled - torch.tensor(row.old_log_probs[start:])).exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage).sum()
        count += len(sampled)
    (total / count).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-4, atol=2e-5, msg=name)


def test_the_parity_check_needs_a_server(checkpoint, tmp_path):
    from training.parity import ParityConfig

    with pytest.raises(ValueError, match=r"parity\.enabled"):
        cpu_trainer(checkpoint, tmp_path, RecordedWorker(lambda v: []), NoTransfer(), parity=ParityConfig())


def two_ranks(checkpoint, output, *arguments):
    """The JSON lines that `ddp_steps` writes under torchrun with two processes, rank by rank."""
    script = Path(ddp_steps.__file__)
    env = os.environ | {"PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(script), *map(str, (checkpoint, output, *arguments))]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=540)
    assert out.returncode == 0, out.stderr[-3000:]
    files = [output / f"rank{rank}.jsonl" for rank in range(2)]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ending", "other_rank"),
    [
        ("NothingLeftToLearn", ("NothingLeftToLearn", "all groups are solved")),
        ("Unpicklable", ("RuntimeError", "Unpicklable: ('all groups are solved', ")),
    ],
)
def test_what_ends_the_rows_ends_every_rank_at_the_same_step(checkpoint, tmp_path, ending, other_rank):
    first, second = two_ranks(checkpoint, tmp_path, 2, ending)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["step"] == second["step"] == 2
    assert first["error"] == ending
    assert second["error"] == other_rank[0]
    assert second["text"].startswith(other_rank[1])


@pytest.mark.parametrize("rows_per_batch", [2, 1])
def test_a_step_does_not_depend_on_its_cut_into_micro_batches(checkpoint, tmp_path, rows_per_batch):
    """Rows of 5 and 14 sampled tokens: means of micro-batches are not the step's mean."""
    whole = ddp_steps.run(str(checkpoint), str(tmp_path), 4)
    accumulation = {"gradient_accumulation_steps": 4 // rows_per_batch}
    cut = ddp_steps.run(str(checkpoint), str(tmp_path), rows_per_batch, args=accumulation)
    for a, b in zip(whole, cut, strict=True):
        for key in ("loss", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), key


@pytest.mark.timeout(600)
def test_two_processes_take_the_steps_of_one(checkpoint, tmp_path):
    """Rows are dealt out to the ranks and nothing is fetched ahead; losses and gradients are those of one
    process."""
    two = two_ranks(checkpoint, tmp_path, 2)
    one = ddp_steps.run(str(checkpoint), str(tmp_path), 4)
    assert [log["processes"] for log in one + two] == [1, 1, 1, 2, 2, 2]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "ratio"):
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), key
        assert a["sample/staleness_max"] == b["sample/staleness_max"] == 0
