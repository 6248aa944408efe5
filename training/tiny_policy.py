"""A policy small enough to learn on two CPU cores, yet an ordinary checkpoint to everything that loads it.

The architecture is Qwen3's (`Qwen3ForCausalLM`), so transformers, vLLM and TRL need no special case; only
the sizes are small. The tokenizer is a byte-level BPE trained by the project on the transcripts that the
policy will see. It is lossless (no normaliser: verbatim copying must be possible at all), digits are single
tokens, and **a line break is always a token of its own**. That last rule is the invariant which everything
downstream leans on: no merge crosses a line break, so the chat template's text, tokenised as one string,
has exactly the ids of its parts tokenised one by one. `training.renderer.PlainChatMLRenderer` renders by
parts and is exact because of it.

Not covered: training (see `training.warmstart` and `training.train`), tools in the chat template (the tiny
policy reaches its REPL by fenced code), and thinking blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field, model_validator
from pydantic_config import BaseConfig
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Qwen3's names. `<|endoftext|>` pads, `<|im_end|>` ends a turn and is the EOS token."""

CHAT_TEMPLATE = """\
{%- if tools %}
{{- raise_exception('This policy has no tools in its chat template: use code_channel = "fence".') }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant'] %}
{{- raise_exception('This policy has no role ' ~ message.role ~ ' in its chat template.') }}
{%- endif %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- elif message.content %}
{%- for part in message.content %}{{- part.text }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""ChatML without a thinking channel: history is never rewritten, so a longer conversation only ever
appends."""


class TinyPolicyConfig(BaseConfig):
    """Sizes of the tiny policy; the defaults give about 1.5 M parameters."""

    vocab_size: int = Field(512, ge=300, le=8192)
    """Tokens in the vocabulary: 3 special ones, the 256 bytes, the rest merges learnt from the corpus."""
    hidden_size: int = Field(224, ge=32)
    """Width of the residual stream."""
    layers: int = Field(2, ge=1)
    """Transformer blocks. Two are what copying needs; on a CPU, wide and shallow learns more in a second than
    narrow and deep (4 layers of 160: a third more time for a loss that is a fifth higher)."""
    heads: int = Field(7, ge=1)
    """Query heads."""
    kv_heads: int = Field(7, ge=1)
    """Key and value heads; must divide `heads`."""
    head_dim: int = Field(32, ge=16)
    """Width of one head; vLLM's CPU attention takes multiples of 32."""
    intermediate_size: int = Field(608, ge=32)
    """Width of the gated feed-forward layer."""
    max_positions: int = Field(4096, ge=256)
    """Longest sequence in tokens."""
    tie_embeddings: bool = False
    """Share the input and output embedding. Untied by default: at this size the second matrix costs 5 % of
    the parameters, and learns faster."""
    init_std: float = Field(0.06, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _kv_heads_divide_heads(self) -> TinyPolicyConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        return self


def train_tokenizer(corpus: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from `corpus`.

    Args:
        corpus: texts as the policy will see them (messages, not chat-template output).
        vocab_size: upper bound of the vocabulary; a small corpus may give fewer merges.

    Returns:
        A tokenizer that encodes any text without loss, with the chat template, EOS and padding set.
    """
    backend = Tokenizer(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The role names of the chat template are part of every conversation, so they are part of the corpus.
    roles = ["system", "user", "assistant"] * 8
    backend.train_from_iterator([*roles, *corpus], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(config: TinyPolicyConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained policy in float32, the same for the same seed; the global random state is left as it
    was."""
    end_of_text, turn_end = tokenizer.vocab[END_OF_TEXT], tokenizer.vocab[TURN_END]
    model_config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.init_std,
        bos_token_id=None,
        eos_token_id=turn_end,
        pad_token_id=end_of_text,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(model_config)
    # Sampling as trained: temperature 1 and the full distribution. vLLM reads its defaults from here.
    model.generation_config = GenerationConfig(
        eos_token_id=[turn_end, end_of_text],
        pad_token_id=end_of_text,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    return model.float()


def save_policy(directory: str | Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Writes model, config and tokenizer as one checkpoint directory; a reader sees all of it or the old
    one."""
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)
    return directory


def parameter_count(model: torch.nn.Module) -> int:
    """Distinct trainable numbers of the model (tied matrices count once)."""
    return sum(parameter.numel() for parameter in model.parameters())
