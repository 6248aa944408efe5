"""Rows forwarded as the trainer forwards a step: packed into TRL's prefix tree, scored by its fused head.

For what is not a training step but has to see the same numbers: the parity check, the GPU check, tests.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.trl_seams import TreeRow


def pack_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Pack rows of (token ids, mask of the tokens to score) as the trainer packs a step; see TRL's
    `TreeRow.pack`."""
    tree = TreeRow()
    for ids, mask in rows:
        tree.add(
            {
                "input_ids": np.asarray(ids, dtype=np.int64),
                "completion_mask": np.asarray(mask, dtype=np.int64),
                "old_log_probs": np.zeros(len(ids), dtype=np.float32),
                "advantage": 0.0,
                "group_id": 0,
            }
        )
    return tree.pack()


def tree_inputs(packed: dict[str, torch.Tensor], device: torch.device | str) -> dict[str, Any]:
    """The model inputs of a packed row, as `AsyncGRPOTrainer.compute_loss` passes them (without labels)."""
    max_q, max_k = packed["tree_max_seqlens"].tolist()
    inputs: dict[str, Any] = {key: packed[key].to(device)[None] for key in ("input_ids", "position_ids")}
    for key in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k"):
        inputs[key] = packed[key].to(device)
    return {**inputs, "tree_max_seqlen_q": max_q, "tree_max_seqlen_k": max_k}


def score_rows(
    model: torch.nn.Module,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    device: torch.device | str,
    fused: bool = True,
) -> list[torch.Tensor]:
    """Log-probabilities of the masked tokens of each row, forwarded as one packed row.

    Args:
        model: with tree attention; with TRL's fused head when `fused`, whose temperature then applies.
        rows: (token ids, mask); a row's first token cannot be scored, its mask is ignored.
        fused: through the fused head, as in training; False takes the model's logits, at temperature 1.

    Returns:
        A (masked tokens,) tensor a row, float32 with the fused head's gradient.
    """
    packed = pack_rows(rows)
    inputs = tree_inputs(packed, device)
    labels = packed["shift_labels"].to(device)
    if fused:
        flat = model(**inputs, shift_labels=labels[None], fused_lm_head=True).log_probs.flatten()
    else:
        logits = model(**inputs, use_cache=False).logits[0].float()
        flat = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    scores = flat[packed["token_index"].to(device)]
    return list(scores.split([int(np.asarray(mask)[1:].sum()) for _, mask in rows]))
