"""The tiny policy: a lossless tokenizer, and a checkpoint that loads as any Qwen3 does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from training.tiny_policy import (
    TinyPolicyConfig,
    build_model,
    parameter_count,
    save_policy,
    train_tokenizer,
)

CORPUS = [
    'Copy `context` into answer["content"].',
    '```python\nanswer["content"] = context\nanswer["ready"] = True\n```',
    "Output (0.03 s):\n120 characters\n",
] * 4

TOKENIZER = train_tokenizer(CORPUS, vocab_size=420)


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER.encode(text, split_special_tokens=True)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.text(alphabet="ab \n\t1", max_size=30), st.text(alphabet="ab \n\t1", max_size=30))
@settings(max_examples=150, deadline=None)
def test_no_token_crosses_a_line_break(left, right):
    assert TOKENIZER.encode(f"{left}\n{right}") == [
        *TOKENIZER.encode(left),
        *TOKENIZER.encode("\n"),
        *TOKENIZER.encode(right),
    ]


def test_digits_are_single_tokens_and_frequent_words_merge():
    assert TOKENIZER.decode(TOKENIZER.encode("2048")) == "2048"
    assert len(TOKENIZER.encode("2048")) == 4
    assert len(TOKENIZER.encode("context")) == 1


def test_the_corpus_decides_the_merges_and_nothing_else():
    again = train_tokenizer(iter(CORPUS), vocab_size=420)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert train_tokenizer(["zzz yyy"] * 9, vocab_size=420).get_vocab() != TOKENIZER.get_vocab()


def test_size_is_what_the_docs_say():
    model = build_model(TinyPolicyConfig(), train_tokenizer(CORPUS), seed=0)
    assert 1_000_000 < parameter_count(model) < 3_000_000


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    config = TinyPolicyConfig(hidden_size=32, layers=1, heads=1, kv_heads=1, intermediate_size=32)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (build_model(config, TOKENIZER, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    weights = [model.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("tied", [False, True])
def test_checkpoint_round_trip(tmp_path, tied):
    config = TinyPolicyConfig(
        hidden_size=32, layers=1, heads=1, kv_heads=1, intermediate_size=32, tie_embeddings=tied
    )
    model = build_model(config, TOKENIZER, seed=0)
    directory = save_policy(tmp_path / "policy", model, TOKENIZER)
    save_policy(directory, model, TOKENIZER)  # writing over an old checkpoint leaves one, complete
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]

    loaded = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert loaded.config.tie_word_embeddings is tied
    assert tokenizer.chat_template == TOKENIZER.chat_template
    text = 'answer["content"] = context\n\n  1234 naïve'
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    ids = torch.tensor([tokenizer.encode(text)])
    weights, written = loaded.state_dict(), model.state_dict()
    assert weights.keys() == written.keys()
    assert all(torch.equal(weights[name], written[name]) for name in written)
    # Where a tensor lies in memory may decide the order of a sum.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)

    sampling = GenerationConfig.from_pretrained(directory)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert tokenizer.convert_ids_to_tokens(sampling.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]


def test_head_counts_that_do_not_fit_are_named():
    with pytest.raises(ValidationError, match="kv_heads=3 must divide heads=7"):
        TinyPolicyConfig(kv_heads=3)


def test_the_chat_template_refuses_what_it_cannot_say():
    with pytest.raises(Exception, match="no role tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(Exception, match="no tools"):
        TOKENIZER.apply_chat_template([{"role": "user", "content": "x"}], tools=[{"type": "function"}])
