"""Work to measure the trainer on: made-up RLM episodes, random models in real shapes, a worker that replays
rows.

Deterministic, and without a server, a checkpoint or a network.
"""

import queue
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from training.trl_seams import RolloutSample

# hidden, layers, heads, key heads, head_dim, intermediate, vocabulary: Qwen2.5-0.5B's and Qwen3-4B's sizes.
SHAPES = {
    "0.5b": (896, 24, 14, 2, 64, 4864, 151_936),
    "4b": (2560, 36, 32, 8, 128, 9728, 151_936),
    "tiny": (64, 2, 4, 2, 32, 128, 512),
}


@dataclass(frozen=True)
class Workload:
    """Sizes of the made-up episodes, in tokens unless said otherwise."""

    groups: int = 2
    """Groups; the episodes of one have the same prompt."""
    episodes: int = 8
    """Episodes a group."""
    prompt: int = 1024
    """System and user message of the root."""
    turns: int = 4
    """Root turns an episode."""
    code: int = 96
    """Sampled a root turn."""
    observation: int = 128
    """REPL output a root turn, not trained."""
    sub_calls: int = 2
    """Sub-calls an episode."""
    sub_system: int = 96
    """System prompt common to all sub-calls."""
    sub_prompt: int = 256
    """Rest of a sub-call's prompt, its own."""
    sub_reply: int = 64
    """Sampled a sub-call."""


TINY_WORKLOAD = Workload(1, 2, 24, 2, 6, 8, 1, 8, 10, 4)


@dataclass(frozen=True)
class Row:
    """One training row."""

    ids: list[int]
    mask: list[int]
    group: int
    advantage: float


def make_rows(work: Workload, vocabulary: int) -> list[Row]:
    """The rows of one step; the same in every run. Token 0 .. 999 are kept for `unshare`."""
    rng = np.random.default_rng(0)

    def tokens(n: int) -> list[int]:
        return rng.integers(min(1000, vocabulary // 2), vocabulary, n).tolist()

    rows, system = [], tokens(work.sub_system)
    for group in range(work.groups):
        prompt = tokens(work.prompt)
        for episode in range(work.episodes):
            advantage = 1.0 if episode % 2 else -1.0
            ids, mask = list(prompt), [0] * work.prompt
            for turn in range(work.turns):
                ids += tokens(work.code)
                mask += [1] * work.code
                if turn < work.turns - 1:
                    ids += tokens(work.observation)
                    mask += [0] * work.observation
            rows.append(Row(ids, mask, group, advantage))
            for _ in range(work.sub_calls):
                ids = system + tokens(work.sub_prompt) + tokens(work.sub_reply)
                mask = [0] * (work.sub_system + work.sub_prompt) + [1] * work.sub_reply
                rows.append(Row(ids, mask, group, advantage))
    return rows


def unshare(rows: list[Row]) -> list[Row]:
    """The same rows with a first token each of their own, so that none shares a prefix with another."""
    return [Row([i, *row.ids[1:]], row.mask, row.group, row.advantage) for i, row in enumerate(rows)]


class RecordedWorker:
    """TRL's rollout worker protocol: hands out the rows of step after step, one step a policy version."""

    def __init__(self, steps: list[list[RolloutSample]]):
        self.rollout_buffer: Any = queue.Queue()
        self.metrics_queue: Any = queue.Queue()
        self._steps = iter(steps)
        self._version, self._started = 0, False

    def start(self) -> None:
        self._started = True
        self._emit()

    def stop(self) -> None:
        """Nothing runs."""

    def update_model_version(self, model_version: int) -> None:
        self._version = model_version
        if self._started:
            self._emit()

    def check_health(self, stale_after_s: float) -> None:
        """Nothing can die."""

    def _emit(self) -> None:
        for sample in next(self._steps, []):
            sample.model_version = self._version
            self.rollout_buffer.put(sample)


class NoTransfer:
    """TRL's weight transfer protocol without a server."""

    def send_weights(self, iterator: Any) -> None:
        for _ in iterator:
            pass

    def init_weight_transfer(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def destroy(self) -> None: ...


def make_model(shape: str, device: torch.device) -> Qwen3ForCausalLM:
    """A Qwen3 of that shape with random bfloat16 weights."""
    hidden, layers, heads, key_heads, head_dim, intermediate, vocabulary = SHAPES[shape]
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    return model.to(torch.bfloat16).eval()


@torch.no_grad()
def plain_scores(model: Any, rows: list[Row], device: torch.device) -> list[torch.Tensor]:
    """Log-probabilities of the sampled tokens, each row in a forward of its own."""
    scores = []
    for row in rows:
        logits = model(torch.tensor([row.ids], device=device), use_cache=False).logits[0]
        at = torch.tensor([p for p in range(1, len(row.ids)) if row.mask[p]], device=device)
        logp = logits[at - 1].float().log_softmax(-1)
        targets = torch.tensor(row.ids, device=device)[at]
        scores.append(logp.gather(1, targets[:, None])[:, 0])
    return scores


def sample_of(row: Row, scores: torch.Tensor) -> RolloutSample:
    """A row as TRL's trainer takes it."""
    old = np.zeros(len(row.ids), dtype=np.float32)
    old[[p for p in range(1, len(row.ids)) if row.mask[p]]] = scores.cpu().numpy()
    ids, mask = np.array(row.ids), np.array(row.mask)
    return RolloutSample([], [], ids, mask, old, row.advantage, 0, row.group, {"reward": 0.0})
