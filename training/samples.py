"""Traces -> training rows: which tokens are trained, and with what weight.

The idea: verifiers keeps a trace as a graph whose nodes hold the token ids and log-probabilities that vLLM
returned; a root-to-leaf path (a *branch*) is one conversation, and becomes one row of TRL's
`AsyncGRPOTrainer`. The invariants:

- **Nothing is re-tokenised.** A row's ids are the concatenated node ids: what the server saw and sampled.
- **The mask covers sampled tokens only**, never prompts or REPL output, and each sampled token carries the
  log-probability it was sampled with.
- **A sampled token is trained once.** Branches that share a prefix share its nodes; a node's tokens are
  trained in the first row that has them (root conversations first) and are context in the others. How many
  tokens that concerned is counted.
- **Nothing is dropped in silence.** A sampled message without ids or log-probabilities raises; every branch
  or row that is left out is in the counts.

Credit (`credit`): `"root"` trains the root conversation alone; `"episode"` trains the sub-LLM conversations
too, with the advantage of their episode, since root and sub-LLMs are one policy.

Weighting (`weighting`). The loss of a step is `-(1/N) * sum_t min(r_t A_t, clip(r_t) A_t)` over its `N`
trained tokens, those of all its micro-batches (see `training.trl_seams`), `r_t` the importance ratio. The
term is positively homogeneous in `A_t`: with `w > 0`, `min(r w A, clip(r) w A) = w min(r A, clip(r) A)`. So a
weight on a token's loss can ride on its advantage, and it is exact, clipping included.

- `"token"`: `A_t = A`, the episode's advantage. Every token counts the same, so an episode weighs in
  proportion to its trained tokens, and one with many sub-calls outweighs the others.
- `"episode"`: `A_t = A * R / E`, with `E` the trained tokens of that episode over all of its rows and `R` one
  number for the whole run. An episode's weights then sum to `sum_t |A_t| / N = |A| R / N`, whatever it
  sampled: equal for all episodes of a step. (The rows of an episode may fall into two steps; then `1/N` is
  that of each.) `R` scales all gradients alike, which Adam does not see but gradient clipping does, so it is
  the mean `E` of the first trained group.

By hand. Episode a has a root conversation with 3 sampled tokens and two sub-LLM conversations with 2 and 1;
episode b has a root conversation with 2. Rewards 1 and 0, so the advantages are 1/2 and -1/2; credit
"episode", all four rows in one step: N = 8.
    token:    a weighs 6 * 1/2 / 8 = 3/8, b weighs 2 * 1/2 / 8 = 1/8: a pulls three times as hard.
    episode:  R = (6 + 2) / 2 = 4. Tokens of a get 1/2 * 4/6 = 1/3, those of b -1/2 * 4/2 = -1.
              a weighs 6 * 1/3 / 8 = 1/4, b weighs 2 * 1 / 8 = 1/4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
from verifiers.v1 import graph

if TYPE_CHECKING:
    import verifiers.v1 as vf
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

Kind = Literal["root", "sub"]
Credit = Literal["root", "episode"]
Weighting = Literal["token", "episode"]

ROOT_REQUEST = re.compile(r"^root\.\d+$")
"""Request ids of the root's turns; anything else (`sub.3.0`, `rlm.0.root.1`) is below the root."""


class TraceTokensError(ValueError):
    """A trace cannot be trained on: its tokens are missing or contradict each other."""


@dataclass(frozen=True)
class BranchTokens:
    """One conversation as the server saw it. `T` is its length in tokens."""

    kind: Kind
    """The root's conversation, or one below it."""
    input_ids_T: np.ndarray
    """int64: prompt and sampled tokens."""
    mask_T: np.ndarray
    """int64: 1 where the token was sampled and is trained in this row, else 0."""
    logprobs_T: np.ndarray
    """float32: sampling log-probability where `mask_T` is 1, else 0."""

    @property
    def trained(self) -> int:
        """Trained tokens."""
        return int(self.mask_T.sum())


@dataclass
class RowCounts:
    """What became of the branches of some episodes; adds up."""

    root_branches: int = 0
    """Root conversations. More than one per episode means that conversations were split."""
    sub_branches: int = 0
    """Conversations below the root."""
    shared_tokens: int = 0
    """Sampled tokens that a later branch repeats and that are therefore context there."""
    skipped_unsampled: int = 0
    """Branches in which nothing was sampled (the model call failed)."""
    skipped_untrainable: int = 0
    """Branches that the harness marked as not trainable, or whose agent is frozen."""
    rows_overlong: int = 0
    """Rows longer than `max_row_tokens`, left out."""
    rows_without_tokens: int = 0
    """Rows in which every sampled token is trained elsewhere, left out."""
    root_tokens: int = 0
    """Trained tokens of root rows."""
    sub_tokens: int = 0
    """Trained tokens of rows below the root."""

    def add(self, other: RowCounts) -> None:
        """Adds `other` field by field."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass(frozen=True)
class TrainRow:
    """One training row, picklable and free of torch; `to_sample` gives TRL's type."""

    input_ids_T: np.ndarray
    mask_T: np.ndarray
    logprobs_T: np.ndarray
    advantage: float
    """Already weighted; see the module docstring."""
    version: int
    """Policy version when the episode started."""
    group: int
    """Position of the group in the run's order of tasks."""
    kind: Kind
    metrics: dict[str, float] = field(default_factory=dict)
    """Per-row values for TRL's collator, which averages them over rows."""

    def to_sample(self, enqueued_at: float | None = None) -> RolloutSample:
        """The row as TRL's `RolloutSample`. The messages are left empty: TRL only shows them to trackio, and
        the saved traces hold them."""
        from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

        return RolloutSample(
            prompt=[],
            completion=[],
            input_ids=self.input_ids_T,
            completion_mask=self.mask_T,
            old_log_probs=self.logprobs_T,
            advantage=self.advantage,
            model_version=self.version,
            group_id=self.group,
            metrics=self.metrics,
            enqueued_at=enqueued_at,
        )


def branch_kind(request_ids: Sequence[str | None]) -> Kind | None:
    """Whether a branch is the root's, from the request ids of its calls in order.

    Returns None when no call carries an id (a harness that sends none).

    Raises:
        TraceTokensError: root and other calls lie on one branch. Two conversations with the same opening
            messages were merged; sub-LLMs need a system prompt of their own.
    """
    if all(request_id is None for request_id in request_ids):
        return None
    kinds = {"root" if ROOT_REQUEST.match(request_id or "") else "sub" for request_id in request_ids}
    if len(kinds) > 1:
        raise TraceTokensError(
            f"root and sub-LLM calls lie on one branch ({', '.join(map(str, request_ids))}): their prompts "
            "begin alike. Give sub-LLMs a system prompt of their own (harness.sub_system_prompt)."
        )
    return "root" if kinds == {"root"} else "sub"


def _node_arrays(node: graph.MessageNode) -> tuple[list[int], list[bool], list[float]]:
    """Ids, mask and log-probabilities (0 where not sampled) of one message; checks that they agree."""
    ids, mask = node.token_ids, node.mask
    if node.sampled and not ids:
        raise TraceTokensError(
            "a sampled message has no token ids: episodes for training need client type 'train' "
            "(vLLM started with --enable-scale-out)"
        )
    if len(ids) != len(mask) or len(node.logprobs) != sum(mask):
        raise TraceTokensError(
            f"a {node.message.role} message has {len(ids)} ids, {len(mask)} mask values, {sum(mask)} "
            f"sampled tokens and {len(node.logprobs)} log-probabilities; the first two must be equal, and "
            "the last two"
        )
    values = iter(node.logprobs)
    return ids, mask, [next(values) if sampled else 0.0 for sampled in mask]


def trace_branches(trace: vf.Trace) -> tuple[list[BranchTokens], RowCounts]:
    """The trainable conversations of one trace, the root's first, each sampled token masked in once.

    A trace whose calls carry no request ids (another harness) has only root conversations.

    Raises:
        TraceTokensError: tokens or log-probabilities are missing, or a branch mixes root and sub-LLM calls.
    """
    counts = RowCounts()
    branches = trace.branches
    if not trace.agent.trainable:
        counts.skipped_untrainable = len(branches)
        return [], counts
    # Branches hold the trace's own node objects, so identity names a node shared by two of them.
    paths: list[tuple[Kind, list[graph.MessageNode]]] = []
    has_ids = any(call.acp is not None for call in trace.calls)
    for branch in branches:
        if not branch.trainable:
            counts.skipped_untrainable += 1
        elif not any(node.sampled for node in branch.nodes):
            counts.skipped_unsampled += 1
        else:
            kind = branch_kind([call.acp.request_id if call.acp else None for call in branch.calls])
            if kind is None and has_ids:
                raise TraceTokensError("a sampled branch has no request id although its trace has some")
            paths.append((kind or "root", branch.nodes))
    paths.sort(key=lambda path: path[0] != "root")  # stable: roots first, otherwise in order
    seen: set[int] = set()
    out: list[BranchTokens] = []
    for kind, nodes in paths:
        ids: list[int] = []
        mask: list[bool] = []
        logprobs: list[float] = []
        for node in nodes:
            node_ids, node_mask, node_logprobs = _node_arrays(node)
            if id(node) in seen:
                counts.shared_tokens += sum(node_mask)
                node_mask, node_logprobs = [False] * len(node_mask), [0.0] * len(node_mask)
            seen.add(id(node))
            ids += node_ids
            mask += node_mask
            logprobs += node_logprobs
        if mask[0]:
            raise TraceTokensError("the first token of a branch is marked as sampled; nothing predicts it")
        out.append(
            BranchTokens(
                kind,
                np.asarray(ids, dtype=np.int64),
                np.asarray(mask, dtype=np.int64),
                np.asarray(logprobs, dtype=np.float32),
            )
        )
        counts.root_branches += kind == "root"
        counts.sub_branches += kind == "sub"
    return out, counts


def episode_branches(traces: Iterable[vf.Trace]) -> tuple[list[BranchTokens], RowCounts]:
    """`trace_branches` over all traces of one episode."""
    out: list[BranchTokens] = []
    counts = RowCounts()
    for trace in traces:
        branches, more = trace_branches(trace)
        out += branches
        counts.add(more)
    return out, counts


def trained_branches(
    branches: Iterable[BranchTokens], credit: Credit, max_row_tokens: int | None = None
) -> tuple[list[BranchTokens], RowCounts]:
    """The branches that become rows under `credit`; what is left out is counted."""
    kept: list[BranchTokens] = []
    counts = RowCounts()
    for branch in branches:
        if credit == "root" and branch.kind != "root":
            continue
        if not branch.trained:
            counts.rows_without_tokens += 1
        elif max_row_tokens is not None and len(branch.input_ids_T) > max_row_tokens:
            counts.rows_overlong += 1
        else:
            kept.append(branch)
            if branch.kind == "root":
                counts.root_tokens += branch.trained
            else:
                counts.sub_tokens += branch.trained
    return kept, counts


def mean_trained_tokens(episodes: Sequence[Sequence[BranchTokens]]) -> float:
    """Mean trained tokens per episode, over episodes that have any; the `R` of the module docstring.

    Raises:
        ValueError: no episode has a trained token.
    """
    totals = [total for branches in episodes if (total := sum(branch.trained for branch in branches))]
    if not totals:
        raise ValueError("no episode of the group has a trained token")
    return sum(totals) / len(totals)


def episode_rows(
    branches: Sequence[BranchTokens],
    advantage: float,
    *,
    weighting: Weighting,
    reference_tokens: float,
    version: int,
    group: int,
) -> list[TrainRow]:
    """Rows of one episode, from the branches that `trained_branches` kept.

    Args:
        branches: the episode's trained conversations.
        advantage: the episode's advantage.
        weighting: see the module docstring.
        reference_tokens: `R` there, in tokens; unused with "token".
        version: policy version at the episode's start.
        group: position of the group in the run's order.
    """
    total = sum(branch.trained for branch in branches)
    weight = reference_tokens / total if weighting == "episode" and total else 1.0
    return [
        TrainRow(
            branch.input_ids_T,
            branch.mask_T,
            branch.logprobs_T,
            advantage * weight,
            version,
            group,
            branch.kind,
        )
        for branch in branches
    ]
