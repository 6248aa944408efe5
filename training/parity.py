"""Do the server and the trainer compute the same policy?

GRPO weighs each sampled token by trainer probability / server probability. Anything that makes the two
disagree (a tensor that the server did not take, another temperature, another dtype, a template of the wrong
model) does not crash: it biases every gradient. So the server samples a few tokens through the very endpoint
that the rollouts use, the trainer scores them through its own packed forward and fused head, and the largest
difference is compared with a tolerance.

Invariant: the check can fail. Right after start-up server and trainer have read the same checkpoint, and a
sync that does nothing would pass; so the first comparison is made with **scrambled** weights. Every trained
tensor is rolled by one row in place, sent, compared and rolled back, which is exact to the bit and needs no
second copy of the model. The second comparison is with the real weights.

The scores come from every rank (a sharded forward is collective); the server is asked by the main process
only.
"""

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pydantic_config import BaseConfig

from training.vllm_admin import Sampled, VLLMAdmin

if TYPE_CHECKING:
    import torch

    from training.trl_seams import PolicyTrainer

logger = logging.getLogger(__name__)

DEFAULT_TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""Largest difference, in nats, that the dtype of the forward explains. Measured 4e-6 in float32; half
precision has rare large outliers at improbable tokens, while a stale `lm_head` is off by 1 and more on
most."""


LEFT_OUT = (
    "the weight sync leaves a tensor as it was. With tied embeddings it is lm_head.weight, which must be "
    "sent "
    "under its own name"
)


class ParityError(RuntimeError):
    """Server and trainer disagree; the message names where, by how much and why that may be."""


class ParityConfig(BaseConfig):
    """The comparison of server and trainer after the first weight sync."""

    enabled: bool = True
    """Whether to compare at all."""

    tolerance: float | None = Field(None, gt=0)
    """Largest difference of a token's log-probability, in nats; None is 1e-3 for a float32 forward, 0.1 for
    float16 and 0.5 for bfloat16. A server of lower precision than the trainer needs its own dtype's tolerance
    here."""

    scramble: bool = True
    """Also compare with scrambled weights, which shows that the sync reaches every tensor. One more sync at
    the start. Left out, with a warning, for LoRA."""

    prompts: int = Field(4, ge=1)
    """Prompts of random tokens; they share a prefix, so that packing is part of what is compared."""

    prompt_tokens: int = Field(16, ge=2)
    """Tokens a prompt."""

    new_tokens: int = Field(32, ge=1)
    """Tokens sampled after each prompt."""

    seconds: float = Field(120.0, gt=0)
    """Limit on the server's answer to one prompt; it may compile first."""

    def tolerance_for(self, dtype: "torch.dtype") -> float:
        """The tolerance for a forward in `dtype`."""
        if self.tolerance is not None:
            return self.tolerance
        return DEFAULT_TOLERANCE.get(str(dtype).removeprefix("torch."), 1e-3)


@dataclass(frozen=True)
class Comparison:
    """One comparison; the place is that of the largest difference."""

    tokens: int
    """Sampled tokens compared."""

    max_abs_diff: float
    """Largest absolute difference of a log-probability, nats."""

    mean_abs_diff: float
    """Mean absolute difference, nats."""

    prompt: int
    """Index of the prompt."""

    position: int
    """Index among the tokens sampled after it."""

    token_id: int
    """The token there."""

    server_logprob: float
    """What the server said."""

    trainer_logprob: float
    """What the trainer computed."""

    max_abs_diff_untempered: float | None = None
    """`max_abs_diff` had the trainer scored at temperature 1; None when it does."""

    def within(self, tolerance: float) -> bool:
        """False for NaN too."""
        return self.max_abs_diff <= tolerance

    def __str__(self) -> str:
        return (
            f"largest difference {self.max_abs_diff:.3g} nats (mean {self.mean_abs_diff:.3g} over "
            f"{self.tokens} tokens) at sampled token {self.position} of prompt {self.prompt}, id "
            f"{self.token_id}: "
            f"server {self.server_logprob:.6f}, trainer {self.trainer_logprob:.6f}"
        )


@dataclass(frozen=True)
class ParityReport:
    """Both comparisons."""

    plain: Comparison
    """With the real weights."""

    scrambled: Comparison | None
    """With scrambled weights; None when that was left out."""

    @property
    def max_abs_diff(self) -> float:
        """The larger of the two largest differences, nats: the figure for the run's summary."""
        parts = [self.plain.max_abs_diff] + ([self.scrambled.max_abs_diff] if self.scrambled else [])
        return float(np.max(parts))  # np.max hands on a NaN, max() may not

    def judge(self, tolerance: float) -> None:
        """Raise `ParityError` unless both comparisons are within `tolerance` nats."""
        if not self.plain.within(tolerance):
            causes = [
                "the server runs in a lower precision than the trainer (compare vllm.dtype with the "
                "trainer's)",
                "the server serves another checkpoint or architecture than the one being trained",
                "a sampling default of the server is in force (start it with --generation-config vllm)",
            ]
            untempered = self.plain.max_abs_diff_untempered
            if untempered is not None and untempered <= tolerance:
                causes = [
                    "the server reports log-probabilities before the temperature: the difference is gone "
                    "when "
                    "the trainer scores at temperature 1. Start it with --logprobs-mode processed_logprobs"
                ]
            elif self.scrambled is not None and self.scrambled.within(tolerance):
                causes = [
                    "the last weight sync did not take, while the one before it did; see the server's log"
                ]
            elif self.scrambled is not None:
                causes.insert(0, LEFT_OUT)
            raise ParityError(self._message("the real weights", self.plain, tolerance, causes))
        if self.scrambled is not None and not self.scrambled.within(tolerance):
            raise ParityError(
                self._message(
                    "scrambled weights",
                    self.scrambled,
                    tolerance,
                    [
                        LEFT_OUT,
                        "the server caches processed weights (quantisation) and does not rebuild them",
                        "parameters are frozen in the trainer and so never sent",
                        "in half precision, noise: compare with the difference for the real weights, "
                        f"{self.plain.max_abs_diff:.3g}; if it is noise, raise parity.tolerance",
                    ],
                )
            )

    @staticmethod
    def _message(what: str, comparison: Comparison, tolerance: float, causes: list[str]) -> str:
        return (
            f"server and trainer disagree on the same tokens with {what}: {comparison}; tolerance "
            f"{tolerance:g}. "
            f"Likely causes: {'; '.join(f'({i}) {cause}' for i, cause in enumerate(causes, 1))}"
        )

    def __str__(self) -> str:
        scrambled = f"; with scrambled weights {self.scrambled.max_abs_diff:.3g}" if self.scrambled else ""
        return f"parity of server and trainer: {self.plain}{scrambled}"


def probe_prompts(config: ParityConfig, vocabulary: int) -> list[list[int]]:
    """Random prompts, the same in every run: the first half is common to all, the rest differs."""
    rng = random.Random(0)
    common = [rng.randrange(vocabulary) for _ in range(config.prompt_tokens // 2)]
    rest = config.prompt_tokens - len(common)
    return [common + [rng.randrange(vocabulary) for _ in range(rest)] for _ in range(config.prompts)]


def compare(
    samples: Sequence[Sampled],
    scores: Sequence[Sequence[float]],
    untempered: Sequence[Sequence[float]] | None = None,
) -> Comparison:
    """The server's log-probabilities against the trainer's, token by token."""
    served = np.concatenate([np.asarray(sample.logprobs, dtype=np.float64) for sample in samples])
    scored = np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])
    difference = np.abs(served - scored)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    prompt, position = 0, worst
    while position >= len(samples[prompt].logprobs):
        position -= len(samples[prompt].logprobs)
        prompt += 1
    raw = None
    if untempered is not None:
        raw = float(np.abs(served - np.concatenate([np.asarray(row) for row in untempered])).max())
    return Comparison(
        tokens=len(difference),
        max_abs_diff=float(difference[worst]),
        mean_abs_diff=float(difference.mean()),
        prompt=prompt,
        position=position,
        token_id=samples[prompt].token_ids[position],
        server_logprob=float(served[worst]),
        trainer_logprob=float(scored[worst]),
        max_abs_diff_untempered=raw,
    )


@contextlib.contextmanager
def scrambled_weights(model: "torch.nn.Module") -> Iterator[None]:
    """Roll every trained tensor by one row in place, and roll it back at the end, exactly.

    Sharded tensors are rolled within each rank's shard: the whole is then scrambled alike for trainer and
    server.
    """

    import torch

    reshard(model)
    # The shards themselves, which the optimizer updates. A forward leaves some of FSDP2's modules with
    # gathered copies for parameters: rolled back there, the shards would stay rolled and the copies be lost.
    shards = [
        parameter.to_local() if hasattr(parameter, "to_local") else parameter.data
        for parameter in model.parameters()  # a tied tensor comes once
        if parameter.requires_grad
    ]

    @torch.no_grad()
    def roll(shift: int) -> None:
        for shard in shards:
            if shard.numel():
                shard.copy_(shard.roll(shift, 0))

    roll(1)
    try:
        yield
    finally:
        reshard(model)
        roll(-1)


def reshard(model: "torch.nn.Module") -> None:
    """Drop what FSDP2 has gathered: it is gathered again, from the shards as they are, when it is needed."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_parity(
    trainer: "PolicyTrainer", server: VLLMAdmin, served_model: str, config: ParityConfig, *, scramble: bool
) -> Comparison | None:
    """Compare server and trainer with the weights as they are, or (`scramble`) with scrambled ones sent for
    it.

    Called by every rank. Returns None where scrambling does not apply. After a scrambled check the server
    still has the scrambled weights; the caller syncs next.

    Raises:
        ParityError: the server did not answer. (A difference is judged by the caller.)
    """
    if not scramble:
        return _compare_now(trainer, server, served_model, config)
    model: Any = trainer.model
    if any("lora_" in name for name, _ in model.named_parameters()):
        logger.warning(
            "parity: LoRA's base weights are not scrambled; the check cannot see a sync that does nothing"
        )
        return None
    with scrambled_weights(trainer.accelerator.unwrap_model(model)):
        trainer.push_weights()
        return _compare_now(trainer, server, served_model, config)


def _compare_now(
    trainer: "PolicyTrainer", server: VLLMAdmin, served_model: str, config: ParityConfig
) -> Comparison:
    import torch
    from accelerate.utils import broadcast_object_list

    from training.packing import score_rows

    accelerator = trainer.accelerator
    policy: Any = trainer.model
    tokenizer: Any = trainer.processing_class
    vocabulary = min(policy.config.get_text_config().vocab_size, len(tokenizer))
    prompts = probe_prompts(config, vocabulary)
    # What the main process got, or the error that it met: raising there alone would leave the others waiting.
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer[0] = [
                server.sample(
                    served_model,
                    prompt,
                    max_tokens=config.new_tokens,
                    temperature=trainer.temperature,
                    seed=number,
                    seconds=config.seconds,
                )
                for number, prompt in enumerate(prompts)
            ]
        except Exception as error:
            answer[0] = f"{type(error).__name__}: {error}"
    broadcast_object_list(answer)
    samples = answer[0]
    if isinstance(samples, str):
        raise ParityError(f"the server did not answer the parity check: {samples}")
    rows = [
        ([*prompt, *sample.token_ids], [0] * len(prompt) + [1] * len(sample.token_ids))
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    model = trainer.model_wrapped
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            scores = score_rows(model, rows, device=accelerator.device)
            untempered = None
            if trainer.temperature != 1.0:
                untempered = score_rows(model, rows, device=accelerator.device, fused=False)
    finally:
        model.train(was_training)
    return compare(
        samples,
        [row.float().tolist() for row in scores],
        None if untempered is None else [row.tolist() for row in untempered],
    )
