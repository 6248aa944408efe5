"""The three steps of `ddp_steps` on a model sharded by FSDP2; run under torchrun.

    python tests/training/sharded_steps.py CHECKPOINT OUTPUT ROWS_PER_PROCESS

Each rank writes OUTPUT/rank<n>.json: `logs`, whether all parameters were `sharded`, the dtypes of the
`log_probs` that the forward returned, and the share of gradient entries that bfloat16 holds exactly. The main
one writes the weights that were sent last to OUTPUT/sent.pt.
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


class Watch(TrainerCallback):
    """Looks at the model once it is sharded: what its forward returns, and the gradients."""

    def __init__(self) -> None:
        self.sharded = False
        self.dtypes: set[str] = set()
        self.rounded: list[float] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.sharded = all(isinstance(p, DTensor) for p in model.parameters())
        model.register_forward_hook(lambda module, inputs, out: self.dtypes.add(str(out.log_probs.dtype)))

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
    told = {"logs": logs, "sharded": watch.sharded, "dtypes": sorted(watch.dtypes), "rounded": watch.rounded}
    rank = os.environ["RANK"]
    Path(output, f"rank{rank}.json").write_text(json.dumps(told))
    if rank == "0":
        torch.save(transfer.weights, Path(output, "sent.pt"))
