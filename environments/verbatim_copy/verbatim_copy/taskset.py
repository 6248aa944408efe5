"""The verbatim-copy taskset: generated texts, the prompt of each mode, and the rewards.

A task's identity (`key`) is that of its text: the same in every mode and placement, so that scaffolds can be
compared task by task.
"""

from __future__ import annotations

from typing import Literal

import verifiers.v1 as vf
from pydantic import Field, field_validator, model_validator

from verbatim_copy import scoring
from verbatim_copy.generate import DEFAULT_LENGTHS, ContentType, generate, kind_of
from verbatim_copy.prompts import prompt

PRESETS: dict[str, dict[str, object]] = {
    "published": {"content_type": "all", "target_length": 500, "mean_fragment_length": 20},
}


class VerbatimCopyData(vf.TaskData):
    text: str
    """What to copy. The host keeps it for scoring."""
    kind: str
    """`words`, `json`, `csv`, `codes` or `mixed`."""
    length: int
    """Characters of the text."""
    mean_fragment_length: int | None
    """As configured."""
    context: str | None = None
    """What the REPL's `context` variable holds: the text with placement `repl`, else nothing."""


class VerbatimCopyTaskConfig(vf.TaskConfig):
    ignore_end_whitespace: bool = False
    """Give the reward also when the reply differs from the text by whitespace at its ends. Off, as in the
    published suite; the metric `match_inside` shows what it would give."""


class VerbatimCopyTask(vf.Task[VerbatimCopyData, vf.State, VerbatimCopyTaskConfig]):
    @property
    def key(self) -> str:
        assert self.data.id is not None
        return self.data.id

    @vf.reward
    async def exact_match(self, trace: vf.Trace) -> float:
        compare = scoring.matches_inside if self.config.ignore_end_whitespace else scoring.exact_match
        return compare(self.data.text, reply_of(trace))

    @vf.metric
    async def copy_quality(self, trace: vf.Trace) -> dict[str, float]:
        text, reply = self.data.text, reply_of(trace)
        return {
            "character_accuracy": scoring.character_accuracy(text, reply),
            "levenshtein_similarity": scoring.levenshtein_similarity(text, reply),
            "match_inside": scoring.matches_inside(text, reply),
        }


class VerbatimCopyConfig(vf.TasksetConfig):
    mode: Literal["llm", "rlm", "rlm_tips"] = "rlm"
    """What the prompt is written for: a plain model that replies with the copy, an RLM, or an RLM that gets a
    strategy hint in <env_tips>."""
    placement: Literal["prompt", "repl"] = "prompt"
    """Where an RLM finds the text: in its prompt, so that it has to write it out (the published setting), or
    in the REPL's `context` only. Mode `llm` has no REPL: its text is in the prompt with either value."""
    preset: Literal["published"] | None = None
    """`published` is content_type all, target_length 500, mean_fragment_length 20."""
    content_type: ContentType = "all"
    """Kind of text; `all` mixes 20 % words, 20 % json, 20 % csv, 25 % codes and 15 % mixed."""
    target_length: int | None = Field(None, ge=1)
    """Characters of every text, exactly. None: words 200, json 500, csv 500, codes 300, mixed 600."""
    mean_fragment_length: int | None = Field(None, ge=1)
    """Join texts from random slices of 0.5 to 1.5 times this many characters, which breaks words and so
    tokens in unusual places. None: whole texts."""
    split: Literal["test", "train", "mini"] = "test"
    """Texts of `train` and `test` are different with the same seed. All texts are generated on the spot, so
    `mini` (what suites with downloaded data need offline) is the same as `test`."""
    num_tasks: int = Field(50, ge=1)
    """How many texts. They are drawn independently: the first n are a uniform draw of n."""
    seed: int = 42
    """Seed of the texts."""
    task: VerbatimCopyTaskConfig = VerbatimCopyTaskConfig()
    """How a copy is scored."""

    @field_validator("num_tasks", mode="before")
    @classmethod
    def _check_count(cls, value: object) -> object:
        if value is None:
            raise ValueError(
                "texts are generated without end, so there is no `all`: set num_tasks to a number"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("preset") not in PRESETS:
            return data
        data = dict(data)
        for name, value in PRESETS[data["preset"]].items():
            if name in data and data[name] != value:
                raise ValueError(
                    f"preset = {data['preset']!r} means {name} = {value!r}, but {name} is set to "
                    f"{data[name]!r}: leave out either preset or {name}"
                )
            data[name] = value
        return data


class VerbatimCopyTaskset(vf.Taskset[VerbatimCopyTask, VerbatimCopyConfig]):
    def load(self) -> list[VerbatimCopyTask]:
        return [self._task(index) for index in range(self.config.num_tasks)]

    def _task(self, index: int) -> VerbatimCopyTask:
        config = self.config
        split = "test" if config.split == "mini" else config.split
        root = f"verbatim-copy/1/{split}/{config.seed}"
        kind = kind_of(config.content_type, root, index)
        length = config.target_length or DEFAULT_LENGTHS[kind]
        fragment = config.mean_fragment_length
        # Every setting is in the key: texts of different settings have nothing in common.
        key = f"{root}/{kind}/{length}/{fragment or 'whole'}/{index}"
        text = generate(kind, key, length=length, fragment=fragment)
        data = VerbatimCopyData(
            id=key,
            name=f"{kind}-{index}",
            prompt=prompt(text, config.mode, config.placement),
            text=text,
            kind=kind,
            length=length,
            mean_fragment_length=fragment,
            context=text if config.placement == "repl" and config.mode != "llm" else None,
        )
        return VerbatimCopyTask(data, config.task)


def reply_of(trace: vf.Trace) -> str:
    """The reply as it was given. (`trace.last_reply` strips it, which would hide a difference.)"""
    if trace.root_reply is not None:
        return trace.root_reply
    messages = trace.assistant_messages
    return (messages[-1].content or "") if messages else ""
