"""The oolong taskset: real or mini questions, the prompt of each mode, and the reward.

The reference answer is in the task's data, which stays on the host. A text is in the prompt in mode `llm`;
otherwise it is put into `trace.state.context` when the episode begins, which is handed to the REPL and never
serialised: traces and task records do not grow with it.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import verifiers.v1 as vf
from pydantic import Field, model_validator

from oolong import scoring
from oolong.data import MINI, SUBSETS, Row, Source, draw, measured, read_context, read_rows, select
from oolong.judge import SHOWN_CHARS, OolongJudge, OolongJudgeConfig
from oolong.prompts import prompt


class OolongState(vf.State):
    context: str | None = None
    """The text, in modes with a REPL."""


class OolongData(vf.TaskData):
    question: str
    """The question alone."""
    answer: str
    """The reference as the data writes it. The host keeps it for scoring."""
    subset: Literal["synth", "synth_with_labels", "real"]
    dataset: str
    """synth: the classification set. real: the campaign."""
    context_len: int
    """Length of the text in tokens as the synth data gives it; real: characters / 4."""
    context_chars: int
    """Its length in characters."""
    window: str
    """Id of the text; tasks that share it ask about the same text."""
    task_group: str
    """synth: `counting`, `user` or `timeline`. real: the question type."""
    task: str
    """synth: for example `TASK_TYPE.MOST_FREQ`. real: the question type."""
    answer_type: str
    """synth: for example `ANSWER_TYPE.NUMERIC`. real: empty."""
    source: Source | None = None
    """Where the text is; None in mode `llm`, where it is in the prompt."""
    index: int
    """Row of the source."""


class OolongTaskConfig(vf.TaskConfig):
    hardened: bool = False
    """Reward by the hardened rules (F1 for lists, no box needed, any of tied answers; see `oolong.scoring`)
    instead of the official ones. For training; off when numbers are compared with published ones. Both scores
    are metrics either way."""
    judge: OolongJudgeConfig | None = None
    """A model that decides where the rules give less than 1: its yes is a 1, its no leaves the rules' score.
    Unset, the rules have the last word. Set `--env.taskset.task.judge.model NAME` and
    `--env.taskset.task.judge.base-url URL`."""


class OolongTask(vf.Task[OolongData, OolongState, OolongTaskConfig]):
    @property
    def key(self) -> str:
        assert self.data.id is not None
        return self.data.id

    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        if self.data.source is not None:
            # The first text opens the table (mini: generates it), which takes seconds.
            trace.state.context = await asyncio.to_thread(read_context, self.data.source, self.data.index)

    @vf.reward
    async def answer_score(self, trace: vf.Trace) -> float:
        """The score of the reply, in [0, 1]; partial for near numbers and lists."""
        data, reply = self.data, scored_reply(trace)
        if data.subset == "real":
            official = scoring.real_score(data.answer, reply)
            hardened = scoring.hardened_real_score(data.answer, reply)
            formed = scoring.boxed(reply) is not None
        else:
            official = scoring.synth_score(data.answer, data.answer_type, reply)
            hardened = scoring.hardened_synth_score(data.answer, data.answer_type, reply)
            formed = ":" in reply
        score = hardened if self.config.hardened else official
        # Recorded before the judge is asked, so that a judge that fails does not lose them.
        trace.record_metrics(
            {
                "official_score": official,
                "hardened_score": hardened,
                "exact": float(score == 1.0),
                "in_asked_form": float(formed),
            }
        )
        if score == 1.0 or self.config.judge is None:
            return score
        result = await OolongJudge(self.config.judge).evaluate(
            trace=trace, question=data.question, answer=data.answer, response=reply[-SHOWN_CHARS:]
        )
        trace.record_metric("judge", float(bool(result.parsed)))
        return 1.0 if result.parsed else score


def scored_reply(trace: vf.Trace) -> str:
    r"""The reply, with LaTeX commands restored that went through a Python string which was not raw.

    An RLM writes its answer in code: "\boxed{\text{Hex}}" becomes a backspace, `oxed{`, a tab and `ext{...}`.
    A plain model's reply has no such characters before these words.
    """
    return trace.last_reply.replace("\boxed{", "\\boxed{").replace("{\text{", "{\\text{")


class OolongConfig(vf.TasksetConfig):
    mode: Literal["llm", "rlm", "rlm_tips"] = "rlm"
    """What the prompt is written for: a plain model, which has the text in its prompt; an RLM, which has it
    in its REPL; or an RLM that gets a strategy hint in <env_tips>."""
    subset: Literal["synth", "synth_with_labels", "real", "all"] = "synth"
    """`synth`: labels have to be found out. `synth_with_labels`: the same questions with labels in the text.
    `real`: transcripts of role-playing sessions. `all`: all three, drawn from together."""
    split: Literal["test", "validation", "mini"] = "test"
    """Split of the real data (the classification sets of synth are other ones in test and validation), or
    `mini`: generated rows of the same schema, offline."""
    real_config: Literal["dnd", "toy_dnd"] = "dnd"
    """Configuration of the real subset."""
    synth_dataset: str = "oolongbench/oolong-synth"
    """Hugging Face dataset of the synth subsets."""
    real_dataset: str = "oolongbench/oolong-real"
    """Hugging Face dataset of the real subset."""
    revision: str | None = None
    """Git revision of the dataset, for one subset at a time; unset takes the newest."""
    datasets: list[str] | None = None
    """Keep these classification sets only, for example ["trec_coarse"] (real: these campaigns)."""
    context_lens: list[int] | None = None
    """Keep these lengths only, in tokens; synth has powers of two from 1,024 to 4,194,304, mini from 256."""
    min_context_len: int | None = Field(None, ge=0)
    """Leave out shorter texts; tokens, inclusive."""
    max_context_len: int | None = Field(None, ge=1)
    """Leave out longer texts; tokens, inclusive."""
    num_tasks: int | None = Field(50, ge=1)
    """How many questions, drawn uniformly at random; None takes all, in the order of the draw, so that
    `vf-eval -n` takes a uniform draw too."""
    seed: int = 42
    """Seed of the draw; the same for every mode, so that modes are compared on the same questions."""
    task: OolongTaskConfig = OolongTaskConfig()
    """How a reply is scored."""

    @model_validator(mode="after")
    def _check(self) -> OolongConfig:
        low, high = self.min_context_len, self.max_context_len
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_context_len = {low} is above max_context_len = {high}")
        if self.revision is not None and self.subset == "all" and self.split != MINI:
            raise ValueError(
                "revision is of one dataset, and subset = 'all' reads two: set subset, or leave out revision"
            )
        return self

    def sources(self) -> list[Source]:
        subsets = SUBSETS if self.subset == "all" else (self.subset,)
        return [
            Source(
                subset=subset,
                dataset=self._dataset(subset),
                config=self.real_config if subset == "real" else "default",
                split=self.split,
                revision=self.revision if self.split != MINI else None,
            )
            for subset in subsets
        ]

    def _dataset(self, subset: str) -> str:
        if self.split == MINI:
            return MINI
        return self.real_dataset if subset == "real" else self.synth_dataset


class OolongTaskset(vf.Taskset[OolongTask, OolongConfig]):
    def load(self) -> list[OolongTask]:
        config = self.config
        rows = select(
            [row for source in config.sources() for row in read_rows(source)],
            datasets=config.datasets,
            context_lens=config.context_lens,
            min_context_len=config.min_context_len,
            max_context_len=config.max_context_len,
        )
        return [self._task(row) for row in measured(draw(rows, config.num_tasks, config.seed))]

    def _task(self, row: Row) -> OolongTask:
        config, subset = self.config, row.source.subset
        in_prompt = config.mode == "llm"
        assert row.context_len is not None
        assert row.context_chars is not None
        data = OolongData(
            id=f"oolong/{row.source.key}/{row.index}",
            name=f"{subset}-{row.id}",
            prompt=prompt(
                row.question,
                config.mode,
                subset,
                read_context(row.source, row.index) if in_prompt else None,
            ),
            question=row.question,
            answer=row.answer,
            subset=subset,
            dataset=row.dataset,
            context_len=row.context_len,
            context_chars=row.context_chars,
            window=row.window,
            task_group=row.task_group,
            task=row.task,
            answer_type=row.answer_type,
            source=None if in_prompt else row.source,
            index=row.index,
        )
        return OolongTask(data, config.task)
