#!/usr/bin/env python
"""Forward and backward of one training step's rows: packed with shared prefixes, packed without, one row at a
time.

    OMP_NUM_THREADS=1 python scripts/benchmarks/tree_attention.py [--device cuda] [--shape tiny|0.5b|4b]

Prints tokens a second, counting every row in full. `attention` is what of the packed step is spent in the
attention function's forward.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from scripts.benchmarks.workload import Workload, make_model, make_rows, unshare
from training.attention import TreeAttention, install_tree_attention
from training.packing import score_rows
from training.trl_seams import TREE_ATTENTION, add_fused_lm_head

# About the rows of a step of the CPU quickstart: 64 of a few hundred tokens.
SMALL = Workload(
    groups=8,
    episodes=4,
    prompt=150,
    turns=2,
    code=40,
    observation=60,
    sub_calls=1,
    sub_system=30,
    sub_prompt=60,
    sub_reply=20,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="tiny", choices=["tiny", "0.5b", "4b"])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    model = make_model(args.shape, device)
    if not cuda:
        model.float()
    rows = make_rows(Workload() if cuda else SMALL, model.config.vocab_size)
    attention = install_tree_attention("auto", device, model.dtype)
    model.set_attn_implementation(TREE_ATTENTION)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    spent = 0.0
    call = TreeAttention.__call__

    def timed(*a, **k):
        nonlocal spent
        began = time.perf_counter()
        out = call(*a, **k)
        spent += time.perf_counter() - began
        return out

    def step(batches):
        model.zero_grad(set_to_none=True)
        for batch in batches:
            scores = score_rows(model, [(row.ids, row.mask) for row in batch], device=device)
            (-torch.cat(scores).sum()).backward()
        if cuda:
            torch.cuda.synchronize()

    kinds = {
        "packed, prefixes shared": [rows],
        "packed, nothing shared": [unshare(rows)],
        "one row at a time": [[row] for row in rows],
    }
    raw = sum(len(row.ids) for row in rows)
    print(
        f"{args.shape} on {device}, attention {attention.fast or 'segments'}: {len(rows)} rows, {raw:,} "
        "tokens"
    )
    for name, batches in kinds.items():
        step(batches)
        TreeAttention.__call__, spent = timed, 0.0  # type: ignore[method-assign]
        began = time.perf_counter()
        for _ in range(args.repeat):
            step(batches)
        seconds = (time.perf_counter() - began) / args.repeat
        TreeAttention.__call__ = call  # type: ignore[method-assign]
        note = "" if cuda else f", attention {spent / args.repeat / seconds:.0%}"
        print(f"{name:24} {seconds:8.3f} s {raw / seconds:10,.0f} tokens/s{note}")


if __name__ == "__main__":
    main()
