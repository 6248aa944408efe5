"""The renderer agrees with the chat template token by token; a conversation is one growing sequence."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers import CustomRendererConfig, DefaultRendererConfig, Qwen3RendererConfig, create_renderer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training.renderer import (
    PLAIN_CHATML_IMPORT_PATH,
    PlainChatMLRenderer,
    SplitConversationError,
    renderer_config_for,
)
from training.tiny_policy import CHAT_TEMPLATE, TinyPolicyConfig, build_model, save_policy, train_tokenizer

TOKENIZER = train_tokenizer(['```python\nanswer["content"] = context\n```', "Output (0.01 s):\n12"] * 4, 400)
RENDERER = PlainChatMLRenderer(TOKENIZER)
IM_START, IM_END = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

# Line breaks and spaces at the seams are where a template and a renderer usually part.
texts = st.text(alphabet="ab1 \n\té", max_size=12)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    min_size=1,
    max_size=6,
)


def template_ids(messages, **options):
    return TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


@given(conversations, st.booleans())
@settings(max_examples=200, deadline=None)
def test_rendering_equals_the_chat_template(messages, add_generation_prompt):
    rendered = RENDERER.render(messages, add_generation_prompt=add_generation_prompt)
    assert rendered.token_ids == template_ids(messages, add_generation_prompt=add_generation_prompt)
    lengths = {len(rendered.message_indices), len(rendered.sampled_mask), len(rendered.is_content)}
    assert lengths == {len(rendered.token_ids)}
    for index, message in enumerate(messages):
        body = [
            token
            for token, owner, content in zip(
                rendered.token_ids, rendered.message_indices, rendered.is_content, strict=True
            )
            if owner == index and content
        ]
        expected = message["content"] + ("<|im_end|>" if message["role"] == "assistant" else "")
        assert TOKENIZER.decode(body, skip_special_tokens=False) == expected


@given(conversations, texts)
@settings(max_examples=100, deadline=None)
def test_full_renders_only_ever_append(messages, more):
    longer = [*messages, {"role": "user", "content": more}]
    shorter_ids = RENDERER.render_ids(messages)
    assert RENDERER.render_ids(longer)[: len(shorter_ids)] == shorter_ids
    assert RENDERER.is_prefix_stable


def test_parts_and_missing_content_render_as_the_template_does():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a\n"}, {"type": "text", "text": "\nb"}]},
        {"role": "assistant", "content": None},
    ]
    assert RENDERER.render_ids(messages) == template_ids(messages)


@given(conversations, texts, texts, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_bridged_turn_equals_the_template_when_the_sample_was_canonical(messages, reply, observation, cut):
    prompt = RENDERER.render_ids(messages, add_generation_prompt=True)
    completion = TOKENIZER.encode(reply) + ([] if cut else [IM_END])
    bridged = RENDERER.bridge_to_next_turn(prompt, completion, [{"role": "user", "content": observation}])
    full = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": observation}]
    assert bridged.token_ids == template_ids(full, add_generation_prompt=True)
    assert not any(bridged.sampled_mask)


def test_a_bridge_keeps_sampled_tokens_that_text_would_not_give_back():
    prompt = RENDERER.render_ids([{"role": "user", "content": "go"}], add_generation_prompt=True)
    spelled = [TOKENIZER.encode(character)[0] for character in "context"]
    assert spelled != TOKENIZER.encode("context")
    bridged = RENDERER.bridge_to_next_turn(prompt, [*spelled, IM_END], [{"role": "user", "content": "seen"}])
    assert bridged.token_ids[: len(prompt) + len(spelled) + 1] == [*prompt, *spelled, IM_END]
    assert bridged.message_token_spans() == [(len(prompt) + len(spelled) + 2, len(bridged.token_ids) - 3)]


def test_a_cut_completion_gets_its_closing_token_as_scaffold_once():
    prompt = RENDERER.render_ids([{"role": "user", "content": "go"}], add_generation_prompt=True)
    new = [{"role": "user", "content": "x"}]
    cut = RENDERER.bridge_to_next_turn(prompt, TOKENIZER.encode("abc"), new).token_ids
    closed = RENDERER.bridge_to_next_turn(prompt, [*TOKENIZER.encode("abc"), IM_END], new).token_ids
    assert cut == closed
    assert closed[len(prompt) :].count(IM_END) == 2  # the reply's and the observation's


def test_a_bridge_refuses_what_would_retokenise_sampled_text():
    prompt = RENDERER.render_ids([{"role": "user", "content": "go"}], add_generation_prompt=True)
    assert RENDERER.bridge_to_next_turn(prompt, [IM_END], [{"role": "assistant", "content": "x"}]) is None
    assert RENDERER.bridge_to_next_turn(prompt, [IM_END], []) is None


def test_parsing_drops_the_closing_token_and_keeps_everything_before_it():
    text = "\n ```python\n1\n``` "
    assert RENDERER.parse_response([*TOKENIZER.encode(text), IM_END]).content == text
    assert RENDERER.parse_response(TOKENIZER.encode(text)).content == text
    assert RENDERER.parse_response([IM_START, IM_END]).content == "<|im_start|>"
    assert set(RENDERER.get_stop_token_ids()) == {IM_END, TOKENIZER.pad_token_id}


def test_tools_and_unknown_roles_are_refused_by_name():
    with pytest.raises(ValueError, match="code_channel"):
        RENDERER.render([{"role": "user", "content": "x"}], tools=[{"name": "python"}])
    with pytest.raises(ValueError, match="no role 'tool'"):
        RENDERER.render([{"role": "tool", "content": "x"}])


def test_a_tokenizer_that_merges_line_breaks_is_refused():
    backend = json.loads(TOKENIZER.backend_tokenizer.to_str())
    backend["pre_tokenizer"] = None  # one unit: merges may now cross line breaks
    vocab = backend["model"]["vocab"]
    vocab["ĊĊ"] = len(vocab)
    backend["model"]["merges"].insert(0, ["Ċ", "Ċ"])
    merging = type(TOKENIZER)(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    with pytest.raises(ValueError, match="line break"):
        PlainChatMLRenderer(merging)


# --- the choice of a renderer


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory):
    config = TinyPolicyConfig(hidden_size=32, layers=1, heads=1, kv_heads=1, intermediate_size=32)
    return save_policy(
        tmp_path_factory.mktemp("model") / "policy", build_model(config, TOKENIZER, seed=0), TOKENIZER
    )


QWEN3_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def qwen3_like(directory, template=QWEN3_TEMPLATE, model_type="qwen3"):
    """A local checkpoint directory with a Qwen3-like tokenizer and a chat template that is not ours."""
    tokenizer = train_tokenizer(["user assistant system"], 300)
    tokenizer.add_special_tokens(
        {
            "extra_special_tokens": [
                "<|im_start|>",
                "<tool_call>",
                "</tool_call>",
                "<tool_response>",
                "</tool_response>",
                "<think>",
                "</think>",
            ]
        }
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def test_the_tiny_policy_gets_our_renderer(tiny_directory):
    config = renderer_config_for(tiny_directory)
    assert config == CustomRendererConfig(import_path=PLAIN_CHATML_IMPORT_PATH)
    renderer = create_renderer(AutoTokenizer.from_pretrained(tiny_directory), config)
    assert isinstance(renderer, PlainChatMLRenderer)


def test_a_qwen3_checkpoint_gets_the_bridging_qwen3_renderer(tmp_path):
    assert renderer_config_for(qwen3_like(tmp_path)) == Qwen3RendererConfig(thinking_retention="all")


def test_a_fine_tune_with_a_template_of_its_own_is_refused(tmp_path):
    directory = qwen3_like(tmp_path, template=QWEN3_TEMPLATE.replace("assistant\\n'", "assistant\\n\\n'"))
    with pytest.raises(SplitConversationError, match="own chat template give different tokens"):
        renderer_config_for(directory)


def test_an_unknown_model_is_refused_until_told_otherwise(tmp_path):
    directory = qwen3_like(tmp_path, model_type="my_new_arch")
    with pytest.raises(SplitConversationError, match=r"`renderer` setting.*allow_split_conversations = true"):
        renderer_config_for(directory)
    assert renderer_config_for(directory, allow_split_conversations=True) == DefaultRendererConfig()


def test_the_marker_of_our_renderer_is_the_template_itself(tiny_directory):
    assert AutoTokenizer.from_pretrained(tiny_directory).chat_template == CHAT_TEMPLATE
