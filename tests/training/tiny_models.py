"""Random Qwen3-shaped checkpoints of a few hundred kilobytes, with a byte-level tokenizer, made on the
spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_config(*, tied: bool = False, window: int | None = None, **overrides) -> Qwen3Config:
    """Two layers, four query heads over two key heads; `window` makes the second layer a sliding one.

    head_dim 32 is the smallest that vLLM has a CPU attention kernel for.
    """
    shape = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        # Large enough that logits, and so log-probabilities, are far from uniform.
        "initializer_range": 0.2,
        "bos_token_id": None,
        "pad_token_id": 256,
        "eos_token_id": 258,
        "tie_word_embeddings": tied,
    }
    if window is not None:
        shape |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
        shape |= {"layer_types": ["full_attention", "sliding_attention"]}
    return Qwen3Config(**(shape | overrides))


def tiny_model(seed: int = 0, **config) -> Qwen3ForCausalLM:
    """A float32 model with random weights, in eval mode."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(tiny_config(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # born as ones, which hides a norm that is skipped or not synced
                parameter.uniform_(0.5, 1.5)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and three special tokens."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def save_tiny(path: Path, seed: int = 0, **config) -> Path:
    """Write model and tokenizer to `path`."""
    tiny_model(seed, **config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path
