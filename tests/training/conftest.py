"""Fixtures of the training tests: the toy plugin on the path, a tiny checkpoint, a scripted policy server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PLUGINS = str(Path(__file__).parent / "plugins")
if PLUGINS not in sys.path:  # spawned processes inherit it
    sys.path.insert(0, PLUGINS)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A random policy of two small layers with its tokenizer."""
    from training.tiny_policy import TinyPolicyConfig, build_model, save_policy, train_tokenizer

    tokenizer = train_tokenizer(
        ['```python\nanswer["content"] = context\n```', "good bad part answer now"] * 4, 320
    )
    sizes = TinyPolicyConfig(
        hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate_size=96, max_positions=1024
    )
    directory = tmp_path_factory.mktemp("policy") / "tiny"
    return save_policy(directory, build_model(sizes, tokenizer, seed=0), tokenizer)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_checkpoint):
    """The tokenizer of `tiny_checkpoint`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_checkpoint)
