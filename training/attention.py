"""Attention over TRL's packed prefix tree, on any device.

TRL folds the rows of a step into a prefix trie and forwards every distinct token once. The trie is laid out
as contiguous *segments* (unary chains), and a token sees exactly the root-to-segment path of its own sample:

    sample A = p0 p1 p2 a3 a4        row:       p0 p1 | p2 a3 a4 | p2 b3          positions 0 .. 6
    sample B = p0 p1 p2 b3           segments:  0: [0, 2)   1: [2, 5)   2: [5, 7)
                                     paths:     0: 0 1      1: 0 1 2 3 4      2: 0 1 5 6

(The fork is one token early because TRL keys a node on its token *and* the next one.) Query `i` of segment
`s` is the entry `len(path) - len(segment) + i` of the path `kv_index[cu_k[s]:cu_k[s + 1]]` and attends to
that entry and all before it: causal, aligned at the bottom right.

TRL computes this with a Flash-Attention-3 kernel that is fetched from a hub and runs on Hopper only. Here are
two more ways, and `install_tree_attention` registers the fastest that works under TRL's own name:

- `fa3`: TRL's kernel.
- `varlen`: the variable-length Flash-Attention that ships with torch; CUDA, half precision.
- `segments`: one `scaled_dot_product_attention` a segment; every device and dtype. The reference for the
  others.

Invariant: an unknown kernel is never trusted. `fa3` and `varlen` are taken only after a small random tree,
forward and backward, agrees with `segments` on the device in use.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

AttentionBackend = Literal["auto", "fa3", "varlen", "segments"]
HALF = (torch.float16, torch.bfloat16)
# Largest head that Flash-Attention takes.
MAX_FLASH_HEAD_DIM = 256


class TreeAttentionError(RuntimeError):
    """The tree attention was asked for something that it cannot do; the message names the cure."""


@dataclass(frozen=True)
class Segment:
    """One segment of a packed row, as `segment_attention` needs it."""

    length: int
    """Queries: tokens of the segment."""

    path_length: int
    """Keys: tokens from the root up to and including the segment."""

    skip: int
    """Leading path entries that no query of the segment sees (only with a sliding window)."""

    mask: torch.Tensor | None
    """Boolean (length, path_length - skip), True where a query sees a key; None when plain causal masking
    says it."""


def build_segments(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, window: int | None, device: torch.device
) -> list[Segment]:
    """The segments of a packed row with their visibility masks.

    Args:
        cu_seqlens_q: (S + 1,) segment boundaries in the row.
        cu_seqlens_k: (S + 1,) path boundaries in `tree_kv_index`.
        window: keys that a query sees at most, itself included; None for no limit.
        device: where the masks are to live.
    """
    segments = []
    lengths = cu_seqlens_q.diff().tolist()
    path_lengths = cu_seqlens_k.diff().tolist()
    for length, path_length in zip(lengths, path_lengths, strict=True):
        if length > path_length:
            raise TreeAttentionError(f"a segment of {length} tokens has a path of {path_length}")
        first = path_length - length  # the path entry of the segment's first query
        skip = max(0, first - window + 1) if window else 0
        limited = window is not None and window < path_length
        if first == 0 and not limited:
            mask = None
        else:
            query_at = torch.arange(first, path_length, device=device)[:, None]
            key_at = torch.arange(skip, path_length, device=device)[None, :]
            mask = key_at <= query_at
            if window is not None and limited:
                mask &= key_at > query_at - window
        segments.append(Segment(length, path_length, skip, mask))
    return segments


class _SegmentCache:
    """Remembers the segments of the row that is being forwarded.

    All layers of a forward, and their recomputation under gradient checkpointing, get the same index tensors;
    reading them back from the GPU once instead of once a layer saves a stall each.
    """

    def __init__(self) -> None:
        self._row: weakref.ref[torch.Tensor] | None = None
        self._version = -1
        self._by_window: dict[int | None, list[Segment]] = {}

    def get(
        self, kv_index: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, window: int | None
    ) -> list[Segment]:
        if self._row is None or self._row() is not kv_index or self._version != kv_index._version:
            self._row, self._version, self._by_window = weakref.ref(kv_index), kv_index._version, {}
        if window not in self._by_window:
            self._by_window[window] = build_segments(cu_q, cu_k, window, kv_index.device)
        return self._by_window[window]


_segment_cache = _SegmentCache()


def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_index: torch.Tensor,
    segments: list[Segment],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Tree attention by one dense attention a segment.

    Args:
        query: (N, Hq, D), the N tokens of the row.
        key: (N, Hkv, D); Hq is a multiple of Hkv (grouped heads).
        value: (N, Hkv, Dv).
        kv_index: (K,) the paths of all segments end to end, as positions in the row.
        segments: from `build_segments`.
        scaling: factor on the scores; None is D ** -0.5.
        softcap: scores become `softcap * tanh(scores / softcap)` when given.

    Returns:
        (N, Hq, Dv).
    """
    groups = query.shape[1] // key.shape[1]
    # Gathered once and split: the backward of a split is one concatenation and that of the gather one
    # index_add, where slicing or gathering per segment would fill a zero tensor of the whole row for each of
    # them.
    path_lengths = [segment.path_length for segment in segments]
    queries = query.split([segment.length for segment in segments])
    keys = key.index_select(0, kv_index).split(path_lengths)
    values = value.index_select(0, kv_index).split(path_lengths)
    outputs = []
    for segment, q, k, v in zip(segments, queries, keys, values, strict=True):
        q, k, v = q.transpose(0, 1), k[segment.skip :].transpose(0, 1), v[segment.skip :].transpose(0, 1)
        if groups > 1:
            # Kernels other than the slow reference one do not take grouped heads together with a mask.
            k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
        if softcap:
            out = _soft_capped_attention(q, k, v, segment.mask, scaling, softcap)
        else:
            # A batch axis: without one, the CUDA kernels are not considered.
            out = F.scaled_dot_product_attention(
                q[None],
                k[None],
                v[None],
                attn_mask=segment.mask,
                is_causal=segment.mask is None,
                scale=scaling,
            )[0]
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def _soft_capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """(H, Lq, D), (H, Lk, D), (H, Lk, Dv) -> (H, Lq, Dv); `mask` None is plain causal, where Lq == Lk."""
    if mask is None:
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(1, 2)).float() * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_index: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Tree attention by torch's own variable-length Flash-Attention, CUDA and half precision only.

    Shapes as in `segment_attention`.
    """
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key.index_select(0, kv_index),
        value.index_select(0, kv_index),
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scaling,
        # (left, right); -1 is no limit, and a right limit of 0 is what makes it causal.
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out


class TreeAttention:
    """The attention function registered with transformers under TRL's name for it.

    Args:
        fast: `fa3` or `varlen`, used for half-precision CUDA tensors that it can take; None for `segments`
            always.
    """

    def __init__(self, fast: Literal["fa3", "varlen"] | None = None):
        self.fast = fast

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        tree_kv_index: torch.Tensor | None = None,
        tree_cu_seqlens_q: torch.Tensor | None = None,
        tree_cu_seqlens_k: torch.Tensor | None = None,
        tree_max_seqlen_q: int | None = None,
        tree_max_seqlen_k: int | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """(1, H, N, D) queries, keys, values -> ((1, N, Hq, Dv), None): transformers' attention interface.

        Raises:
            TreeAttentionError: on a plain forward, a batch of more than one row, attention dropout or
                attention sinks.
        """
        if tree_kv_index is None or tree_cu_seqlens_q is None or tree_cu_seqlens_k is None:
            raise TreeAttentionError(
                "this model was loaded with TRL's tree attention, which forwards packed rows only; for a "
                "plain "
                "forward call model.set_attn_implementation('sdpa') first, or score rows with "
                "training.packing.score_rows"
            )
        if query.shape[0] != 1:
            raise TreeAttentionError(f"a packed row has a batch size of 1, not {query.shape[0]}")
        if dropout:
            raise TreeAttentionError(
                f"attention dropout {dropout} would make the trainer score another policy than the one "
                "that sampled: set attention_dropout = 0.0 in the model's config.json"
            )
        if kwargs.get("s_aux") is not None:
            raise TreeAttentionError("attention sinks are not supported by tree attention")
        dtype = compute_dtype(query, value)
        if self.fast == "fa3" and self._fits_flash(query, dtype):
            from training.trl_seams import tree_fa3

            return tree_fa3(
                module,
                query.to(dtype),
                key.to(dtype),
                value.to(dtype),
                None,
                tree_kv_index=tree_kv_index,
                tree_cu_seqlens_q=tree_cu_seqlens_q,
                tree_cu_seqlens_k=tree_cu_seqlens_k,
                tree_max_seqlen_q=tree_max_seqlen_q,
                tree_max_seqlen_k=tree_max_seqlen_k,
                scaling=scaling,
                sliding_window=sliding_window,
                softcap=softcap,
            )
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        if self.fast == "varlen" and not softcap and self._fits_flash(query, dtype):
            assert tree_max_seqlen_q is not None
            assert tree_max_seqlen_k is not None
            out = varlen_attention(
                q,
                k,
                v,
                tree_kv_index,
                tree_cu_seqlens_q,
                tree_cu_seqlens_k,
                tree_max_seqlen_q,
                tree_max_seqlen_k,
                scaling=scaling,
                window=sliding_window,
            )
        else:
            segments = _segment_cache.get(tree_kv_index, tree_cu_seqlens_q, tree_cu_seqlens_k, sliding_window)
            out = segment_attention(q, k, v, tree_kv_index, segments, scaling=scaling, softcap=softcap)
        return out.unsqueeze(0), None

    @staticmethod
    def _fits_flash(query: torch.Tensor, dtype: torch.dtype) -> bool:
        return query.is_cuda and dtype in HALF and query.shape[-1] <= MAX_FLASH_HEAD_DIM


def compute_dtype(query: torch.Tensor, value: torch.Tensor) -> torch.dtype:
    """The dtype to attend in.

    Under autocast the query and key norms of Qwen3 hand back float32 while the value, which has no norm, is
    half: the autocast dtype is the one meant. Without autocast the value carries the dtype of the layer's
    weights.
    """
    device = query.device.type
    if value.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return value.dtype


def check_kernel(fast: Literal["fa3", "varlen"], device: torch.device, dtype: torch.dtype) -> None:
    """Run `fast` on a small random tree and compare output and gradients with `segments` in float32.

    Raises:
        TreeAttentionError: it cannot run here, or it differs by more than half precision explains.
    """
    generator = torch.Generator().manual_seed(0)
    # A root of 5, children of 7 and 3, and under the first a child of 4: prefixes, a fork and uneven lengths.
    paths = [range(5), range(12), [*range(12), *range(12, 16)], [*range(5), *range(16, 19)]]
    lengths = [5, 7, 4, 3]
    tree: dict[str, Any] = {
        "tree_kv_index": torch.tensor([i for path in paths for i in path], device=device),
        "tree_cu_seqlens_q": _boundaries(lengths, device),
        "tree_cu_seqlens_k": _boundaries([len(path) for path in paths], device),
        "tree_max_seqlen_q": max(lengths),
        "tree_max_seqlen_k": max(len(path) for path in paths),
    }
    shapes = [(1, heads, sum(lengths), 64) for heads in (4, 2, 2, 4)]
    *qkv, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)

    def run(attention: TreeAttention, window: int | None, precision: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.detach().to(precision).requires_grad_() for x in qkv]
        q, k, v = leaves
        out, _ = attention(torch.nn.Identity(), q, k, v, None, sliding_window=window, **tree)
        (out * weight.to(precision).transpose(1, 2)).sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for window in (None, 6):
        try:
            found = run(TreeAttention(fast), window, dtype)
        except Exception as error:
            raise TreeAttentionError(
                f"{fast} does not run on {device}: {type(error).__name__}: {error}"
            ) from error
        wanted = run(TreeAttention(), window, torch.float32)
        for name, a, b in zip(("output", "dq", "dk", "dv"), found, wanted, strict=True):
            difference = (a.float() - b).abs().max().item()
            # bfloat16 keeps 8 bits; sums of a dozen products of unit normals stay well inside this.
            if not difference < 0.1:
                raise TreeAttentionError(
                    f"{fast} disagrees with the reference on {device}: {name} differs by {difference:.3g} "
                    f"(sliding window {window})"
                )


def _boundaries(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)


def choose_attention(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> TreeAttention:
    """The tree attention for a model that computes in `dtype` on `device`.

    `auto` takes the first of fa3, varlen and segments that works, and logs why the others did not. Any other
    value takes that one.

    Raises:
        TreeAttentionError: the backend that was asked for by name does not work here.
    """
    if backend == "segments":
        return TreeAttention()
    if device.type != "cuda" or dtype not in HALF:
        if backend != "auto":
            raise TreeAttentionError(
                f"attention = {backend!r} needs CUDA and half precision, not {device.type} and {dtype}; "
                "use 'auto'"
            )
        logger.info("tree attention: segments (%s, %s)", device.type, dtype)
        return TreeAttention()
    candidates: tuple[Literal["fa3", "varlen"], ...] = ("fa3", "varlen") if backend == "auto" else (backend,)
    for fast in candidates:
        try:
            check_kernel(fast, device, dtype)
        except TreeAttentionError as error:
            if backend != "auto":
                raise
            logger.warning("tree attention: %s is left out: %s", fast, error)
        else:
            logger.info("tree attention: %s (%s, %s)", fast, device, dtype)
            return TreeAttention(fast)
    logger.warning(
        "tree attention: segments, since no fused kernel works on %s; expect it to be slower", device
    )
    return TreeAttention()


def install_tree_attention(
    backend: AttentionBackend = "auto", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TreeAttention:
    """Choose a tree attention and register it with transformers under TRL's name, replacing what is there.

    Transformers looks the function up at every forward, so this also changes models that are already loaded.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    from training.trl_seams import TREE_ATTENTION

    attention = choose_attention(backend, torch.device(device), dtype)
    register: Callable[[str, Callable], None] = AttentionInterface.register
    register(TREE_ATTENTION, attention)
    # The tree says who sees whom; no mask is to be built.
    AttentionMaskInterface.register(TREE_ATTENTION, lambda **kwargs: None)
    return attention
