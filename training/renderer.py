"""Messages to tokens and back: the tiny policy's renderer, and the choice of a renderer for any model.

The invariant a training run needs: **a conversation is one token sequence that only ever grows**. Turn
n+1's prompt is turn n's prompt, then the sampled ids exactly as the server returned them, then the new
messages. The renderer's `bridge_to_next_turn` gives that; a renderer without it re-renders the history from
text, and as soon as a completion was cut at its token limit or was sampled in a non-canonical tokenisation,
the history differs by some token and the conversation falls apart into two or three training rows. So a run
asks `renderer_config_for`, which proves on a small conversation that the renderer bridges, and refuses the
model when it does not.

`PlainChatMLRenderer` renders `training.tiny_policy.CHAT_TEMPLATE`. It is exact because in that tokenizer a
line break is always a token of its own, so the parts may be tokenised one by one.

Limits: text that spells a special token (`<|im_end|>`) becomes that token, as in the chat template itself
and in every renderer of the `renderers` package. No tools, no images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter
from renderers import (
    CustomRendererConfig,
    DefaultRendererConfig,
    Message,
    ParsedResponse,
    RenderedTokens,
    Renderer,
    RendererConfig,
    ToolSpec,
    create_renderer,
)
from renderers.base import (
    MODEL_RENDERER_MAP,
    Tokenizer,
    extract_message_tool_names,
    load_tokenizer,
    reject_assistant_in_extension,
    trim_to_turn_close,
)
from renderers.configs import BaseRendererConfig

from training.tiny_policy import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_CHATML_IMPORT_PATH = "training.renderer.PlainChatMLRenderer"

_FAMILY_BY_MODEL_TYPE = {
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3",
    "qwen3_5": "qwen3.5",
    "qwen3_5_moe": "qwen3.5",
    "glm4_moe": "glm-4.5",
    "gpt_oss": "gpt-oss",
    "llama": "llama-3",
    "deepseek_v3": "deepseek-v3",
    "minimax_m2": "minimax-m2",
    "kimi_k2": "kimi-k2",
}
"""`model_type` of config.json -> renderer name, for checkpoints whose name the `renderers` package does not
know (fine-tunes, local directories). A guess: `renderer_config_for` checks it against the model's chat
template."""


class SplitConversationError(ValueError):
    """The renderer at hand would split conversations into several training rows."""


class PlainChatMLRendererConfig(BaseRendererConfig):
    """Config of `PlainChatMLRenderer`; it has no fields of its own."""

    name: Literal["plain-chatml"] = "plain-chatml"
    """Discriminator, as every renderer config has one."""


class PlainChatMLRenderer:
    """ChatML without thinking and tools, token for token as `training.tiny_policy.CHAT_TEMPLATE`."""

    config_class = PlainChatMLRendererConfig
    supports_tools = False
    effective_thinking_retention = "all"

    def __init__(self, tokenizer: Tokenizer, config: PlainChatMLRendererConfig | None = None) -> None:
        self._tokenizer = tokenizer
        self.config = config or PlainChatMLRendererConfig()
        self._turn_start = self._special(TURN_START)
        self._turn_end = self._special(TURN_END)
        self._end_of_text = self._special(END_OF_TEXT)
        self._line_break = self._encode("\n")
        if len(self._line_break) != 1 or self._encode("user\n\nx")[-2:] != self._line_break + self._encode(
            "x"
        ):
            raise ValueError(
                "PlainChatMLRenderer needs a tokenizer in which a line break is a token of its own "
                "(training.tiny_policy.train_tokenizer makes one); "
                f"{getattr(tokenizer, 'name_or_path', 'this one')!r} merges it with its neighbours."
            )

    def _special(self, token: str) -> int:
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        if not isinstance(token_id, int) or token_id == self._tokenizer.unk_token_id:
            raise ValueError(f"PlainChatMLRenderer needs the special token {token!r} in the tokenizer.")
        return token_id

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    @property
    def is_prefix_stable(self) -> bool:
        """True: no rule of the template looks beyond its own message."""
        return True

    def _message_tokens(self, message: Message) -> tuple[list[int], list[int], bool]:
        """(opening scaffold, body, whether the model sampled the body and its closing token)."""
        role = message["role"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(
                f'The tiny policy\'s chat template has no role {role!r}: use code_channel = "fence", '
                "which sends observations as user messages."
            )
        opening = [self._turn_start, *self._encode(role), *self._line_break]
        return opening, self._encode(_text(message.get("content"))), role == "assistant"

    def _extend(self, out: RenderedTokens, messages: list[Message]) -> None:
        """Appends `messages` in full, with attribution relative to the list given."""
        for index, message in enumerate(messages):
            opening, body, sampled = self._message_tokens(message)
            out.token_ids += [*opening, *body, self._turn_end, *self._line_break]
            size = len(opening) + len(body) + 2
            out.message_indices += [index] * size
            # The closing token is the model's own; the line break after it is the template's.
            out.sampled_mask += [False] * len(opening) + [sampled] * (len(body) + 1) + [False]
            out.is_content += [False] * len(opening) + [True] * len(body) + [sampled, False]
        out.message_roles = [message["role"] for message in messages]
        out.message_tool_names = extract_message_tool_names(messages)

    def _append_scaffold(self, out: RenderedTokens, token_ids: list[int]) -> None:
        out.token_ids += token_ids
        out.message_indices += [-1] * len(token_ids)
        out.sampled_mask += [False] * len(token_ids)
        out.is_content += [False] * len(token_ids)

    def _generation_prompt(self) -> list[int]:
        return [self._turn_start, *self._encode("assistant"), *self._line_break]

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedTokens:
        """The whole conversation from text; equal to the tokenizer's `apply_chat_template`."""
        self._refuse_tools(tools)
        if not messages:
            raise ValueError("No messages to render.")
        out = RenderedTokens()
        self._extend(out, messages)
        if add_generation_prompt:
            self._append_scaffold(out, self._generation_prompt())
        return out

    def render_ids(
        self,
        messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """`render` without the attribution."""
        return self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids

    def parse_response(
        self,
        token_ids: list[int],
        *,
        tools: list[ToolSpec] | None = None,
        prompt_ids: list[int] | None = None,
    ) -> ParsedResponse:
        """The reply's text: the sampled ids up to the first token that closes the turn, decoded."""
        body = list(token_ids)
        stops = set(self.get_stop_token_ids())
        for position, token_id in enumerate(body):
            if token_id in stops:
                body = body[:position]
                break
        return ParsedResponse(content=self._tokenizer.decode(body, skip_special_tokens=False))

    def get_stop_token_ids(self) -> list[int]:
        """Tokens that end a turn."""
        return [self._turn_end, self._end_of_text]

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
    ) -> RenderedTokens | None:
        """The next turn's prompt: what was sampled stays as it is, the new messages follow.

        A completion that was cut at its token limit has no closing token; one is added as scaffold, so it
        is in the prompt of the next turn but carries no loss. Returns None (and so a full re-render) only
        for an extension that is no extension: no new messages, or an assistant message among them."""
        self._refuse_tools(tools)
        if not previous_prompt_ids or not new_messages or reject_assistant_in_extension(new_messages):
            return None
        previous = trim_to_turn_close(
            previous_prompt_ids,
            previous_completion_ids,
            set(self.get_stop_token_ids()),
            synthesize_close=self._turn_end,
        )
        assert previous is not None  # a close is synthesised where there is none
        out = RenderedTokens()
        self._append_scaffold(out, [*previous, *self._line_break])
        self._extend(out, new_messages)
        self._append_scaffold(out, self._generation_prompt())
        return out

    def _refuse_tools(self, tools: list[ToolSpec] | None) -> None:
        if tools:
            raise ValueError('The tiny policy has no tools in its chat template: use code_channel = "fence".')


def _text(content: Any) -> str:
    """Text of a message's content: a string, None, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise ValueError("The tiny policy reads text only; a message has a part that is not text.")
        texts.append(text)
    return "".join(texts)


def renderer_config_for(
    model: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_split_conversations: bool = False,
) -> RendererConfig:
    """The renderer config under which conversations with `model` are one training row each.

    Args:
        model: checkpoint directory or hub name.
        tokenizer: the model's tokenizer where it is loaded already.
        allow_split_conversations: take what there is when no renderer bridges turns, `DefaultRenderer` in the
            end. Training then sees several rows for one conversation.

    Returns:
        A config for `vf.TrainClientConfig(renderer=...)`, proven to bridge (unless the model was let
        through).

    Raises:
        SplitConversationError: no bridging renderer is known for the model.
    """
    model = str(model)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(model)
    known = tokenizer.chat_template == CHAT_TEMPLATE or model in MODEL_RENDERER_MAP
    config = _candidate(model, tokenizer)
    if config is None:
        reason: str | None = "no renderer that bridges turns is known for it, and DefaultRenderer does not"
    else:
        renderer = create_renderer(tokenizer, config)
        # By its architecture alone, a fine-tune may well have a chat template of its own.
        differs = None if known else _why_not_faithful(renderer, tokenizer)
        reason = differs or _why_not_bridging(renderer, tokenizer)
        if reason is None:
            return config
    if allow_split_conversations:
        return DefaultRendererConfig()
    raise SplitConversationError(
        f"Refusing to train {model!r}: {reason}. Its conversations would be split into several training "
        "rows. Either set the `renderer` setting to a renderer that bridges turns (an own one goes behind "
        '{name = "custom", import_path = "module.Class"}, see training.renderer.PlainChatMLRenderer), or '
        "set `allow_split_conversations = true` to train on split rows all the same."
    )


def _candidate(model: str, tokenizer: PreTrainedTokenizerBase) -> RendererConfig | None:
    """The renderer config to try: history kept whole, which is what lets it bridge over user messages."""
    if tokenizer.chat_template == CHAT_TEMPLATE:
        return CustomRendererConfig(import_path=PLAIN_CHATML_IMPORT_PATH)
    name = MODEL_RENDERER_MAP.get(model) or _family_by_architecture(model)
    if name is None:
        return None
    return TypeAdapter(RendererConfig).validate_python({"name": name, "thinking_retention": "all"})


def _family_by_architecture(model: str) -> str | None:
    config_file = Path(model) / "config.json"
    if not config_file.is_file():
        return None
    model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type", "")
    return _FAMILY_BY_MODEL_TYPE.get(model_type)


_PROBE: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Print 12."},
]


def _why_not_faithful(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Says so when `renderer` and the tokenizer's chat template disagree on a first prompt."""
    template_ids = tokenizer.apply_chat_template(
        [dict(message) for message in _PROBE], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    if renderer.render_ids(_PROBE, add_generation_prompt=True) != list(template_ids):
        return f"{type(renderer).__name__} and the model's own chat template give different tokens"
    return None


def _why_not_bridging(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Says why not when `renderer` does not carry a finished and a cut turn over, token for token."""
    prompt_ids = renderer.render_ids(_PROBE, add_generation_prompt=True)
    cut = tokenizer.encode("print(12)", add_special_tokens=False)
    observation: list[Message] = [{"role": "user", "content": "12"}]
    for completion_ids in (cut, [*cut, renderer.get_stop_token_ids()[0]]):
        bridged = renderer.bridge_to_next_turn(prompt_ids, completion_ids, observation)
        if bridged is None:
            return f"{type(renderer).__name__} does not bridge to a user message"
        history = [*prompt_ids, *completion_ids]
        if bridged.token_ids[: len(history)] != history:
            return f"{type(renderer).__name__} changes tokens of the history when it bridges"
    return None
