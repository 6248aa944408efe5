"""The three steps of `ddp_steps` on a model sharded by FSDP2; run under torchrun.

    python tests/training/sharded_steps.py CHECKPOINT OUTPUT ROWS_PER_PROCESS

Each rank writes OUTPUT/rank<n>.json: `logs`, whether all parameters were `sharded`, how far `scrambled`
weights change a score and whether they were all `restored`, the dtypes of the `log_probs` that the forward
returned, and the share of gradient entries that bfloat16 holds exactly. The main one writes the weights that
were sent last to OUTPUT/sent.pt.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tests.training import ddp_steps
from tests.training.recorded import KeptWeights
from tests.training.sharded import shard_on_cpu
from training.packing import score_rows
from training.parity import reshard, scrambled_weights


class Watch(TrainerCallback):
    """Looks at the model once it is sharded: what its forward returns, and the gradients."""

    def __init__(self) -> None:
        self.sharded = self.restored = False
        self.scrambled = 0.0
        self.dtypes: set[str] = set()
        self.rounded: list[float] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.sharded = all(isinstance(p, DTensor) for p in model.parameters())
        self.scramble(model)
        model.register_forward_hook(lambda module, inputs, out: self.dtypes.add(str(out.log_probs.dtype)))

    @torch.no_grad()
    def scramble(self, model) -> None:
        """As the parity check does it: the run's first forward comes while the weights are scrambled."""
        rows = [(list(range(20)), [0] * 5 + [1] * 15)]
        before = [p.to_local().clone() for p in model.parameters()]
        with scrambled_weights(model):
            (scrambled,) = score_rows(model, rows, device=torch.device("cpu"))
        (score,) = score_rows(model, rows, device=torch.device("cpu"))
        reshard(model)
        self.scrambled = (scrambled - score).abs().max().item()
        self.restored = all(
            torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters(), strict=True)
        )

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        entries = torch.cat([p.grad.to_local().flatten() for p in model.parameters()])
        entries = entries[entries != 0]
        self.rounded.append((entries == entries.bfloat16()).float().mean().item())


if __name__ == "__main__":
    checkpoint, output, rows_per_process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    shard_on_cpu()
    watch, transfer = Watch(), KeptWeights()
    bf16 = os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    logs = ddp_steps.run(
        checkpoint,
        output,
        rows_per_process,
        transfer=transfer,
        args={"bf16": bf16},
        callbacks=[watch],
    )
    told = {"logs": logs, **vars(watch), "dtypes": sorted(watch.dtypes)}
    rank = os.environ["RANK"]
    Path(output, f"rank{rank}.json").write_text(json.dumps(told))
    if rank == "0":
        torch.save(transfer.weights, Path(output, "sent.pt"))
