"""GRPO under FSDP2, two ranks over gloo, with the settings of the shipped launcher config."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import ddp_steps
from tests.training.recorded import KeptWeights
from tests.training.sharded import launcher_environment
from tests.training.tiny_models import save_tiny

ROOT = Path(__file__).parents[2]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def sharded_steps(checkpoint, output, mixed_precision):
    """What the ranks of `sharded_steps` told, and the weights that were sent last."""
    environment = launcher_environment(mixed_precision) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*RANKS, str(ROOT / "tests/training/sharded_steps.py"), str(checkpoint), str(output), "2"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
    assert out.returncode == 0, out.stderr[-3000:]
    told = [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(2)]
    return told, torch.load(output / "sent.pt", weights_only=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_sharded_ranks_take_the_steps_of_one_process(tmp_path, tied):
    """Losses, gradients and the weights sent are those of one process that holds the whole model."""
    checkpoint = save_tiny(tmp_path / "model", window=6, tied=tied)
    told, sent = sharded_steps(checkpoint, tmp_path, "no")
    transfer = KeptWeights()
    alone = ddp_steps.run(str(checkpoint), str(tmp_path / "alone"), 4, transfer=transfer)
    assert [one["sharded"] for one in told] == [True, True]
    # The parity check scrambles the weights and has to leave them as they were, bit by bit.
    assert min(one["scrambled"] for one in told) > 0.1
    assert [one["restored"] for one in told] == [True, True]
    assert [one["processes"] for one in told[0]["logs"]] == [2, 2, 2]
    for a, b in zip(alone, told[0]["logs"], strict=True):
        for key in ("loss", "grad_norm", "ratio"):
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), key
    assert all(type(tensor) is torch.Tensor for tensor in sent.values())
    # Adam's first steps are signs: where a gradient is next to nothing, its sign is the rounding's.
    torch.testing.assert_close(sent, transfer.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.timeout(600)
def test_half_precision_leaves_log_probabilities_and_sums_of_gradients_whole(tmp_path):
    """accelerate's own policy for bf16 hands out log-probabilities and sums gradients in bfloat16, whose
    entries then are all bfloat16 numbers; a sum of two in float32 mostly is none."""
    checkpoint = save_tiny(tmp_path / "model", window=6)
    told, sent = sharded_steps(checkpoint, tmp_path, "bf16")
    alone = ddp_steps.run(str(checkpoint), str(tmp_path / "alone"), 4)
    for one in told:
        assert one["sharded"]
        assert one["restored"]
        assert one["dtypes"] == ["torch.float32"]
        assert max(one["rounded"]) < 0.7
    assert {tensor.dtype for tensor in sent.values()} == {torch.float32}
    assert told[0]["logs"][0]["loss"] == pytest.approx(alone[0]["loss"], rel=0.03)
