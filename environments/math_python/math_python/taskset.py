"""The math-python taskset: real or mini problems, the prompt of each mode, and the reward.

The reference answer is in the task's data, which stays on the host; it is in no prompt, context or file. The
Python that the model runs is the harness's: an RLM's REPL, or the `python` tool of a plain model.
"""

from __future__ import annotations

from typing import Literal

import verifiers.v1 as vf
from pydantic import Field, model_validator

from math_python import answers
from math_python.data import Difficulty, Part, draw, parse_rows, read_hub, read_mini, select
from math_python.judge import MathJudge, MathJudgeConfig
from math_python.prompts import prompt
from math_python.verify import MAX_ANSWER_CHARS, Verdict, shared_pool


class MathPythonData(vf.TaskData):
    question: str
    """The problem alone."""
    answer: str
    """The reference, as LaTeX without a box. The host keeps it for scoring."""
    info: str | None = None
    """What the data says about the problem, as JSON text."""
    solve_rate_thinking: float | None = None
    """Share of 8 attempts solved by Qwen3-4B-Thinking-2507."""
    solve_rate_instruct: float | None = None
    """Share of 8 attempts solved by Qwen3-4B-Instruct-2507."""


class MathPythonTaskConfig(vf.TaskConfig):
    verify_seconds: float = Field(5.0, gt=0)
    """CPU seconds for comparing one answer with the reference. The process that overruns is killed, and the
    answer counts as wrong (metric `verify_timeout`)."""
    require_box: bool = True
    """An answer counts only inside `\\boxed{}`. Off: a reply without a box is taken as the answer whole."""
    judge: MathJudgeConfig | None = None
    """A model that decides where math-verify finds the answers different; unset, math-verify has the last
    word. Set `--env.taskset.task.judge.model NAME` and `--env.taskset.task.judge.base-url URL`."""


class MathPythonTask(vf.Task[MathPythonData, vf.State, MathPythonTaskConfig]):
    @property
    def key(self) -> str:
        assert self.data.id is not None
        return self.data.id

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """1 if math-verify, or the judge if there is one, finds the boxed answer equal to the reference."""
        reply = trace.last_reply
        answer = answers.boxed(reply)
        metrics = {"boxed": float(answer is not None), "math_verify": 0.0, "verify_timeout": 0.0}
        if answer is None and not self.config.require_box:
            answer = answers.restore_latex(reply) or None
        if answer is None:
            trace.record_metrics(metrics)
            return 0.0
        verdict = await shared_pool().compare(self.data.answer, answer, seconds=self.config.verify_seconds)
        metrics["math_verify"] = float(verdict is Verdict.EQUAL)
        metrics["verify_timeout"] = float(verdict is Verdict.TIMEOUT)
        trace.info["math_verify"] = {"answer": answer[:MAX_ANSWER_CHARS], "verdict": verdict.value}
        # Recorded before the judge is asked, so that a judge that fails does not lose them.
        trace.record_metrics(metrics)
        judged = self.config.judge is not None and len(answer) <= MAX_ANSWER_CHARS  # else nobody reads it
        if verdict is Verdict.EQUAL or not judged:
            return float(verdict is Verdict.EQUAL)
        result = await MathJudge(self.config.judge).evaluate(
            trace=trace, question=self.data.question, answer=self.data.answer, response=answer
        )
        trace.record_metric("judge", float(bool(result.parsed)))
        return float(bool(result.parsed))


class MathPythonConfig(vf.TasksetConfig):
    mode: Literal["llm", "rlm", "rlm_tips"] = "rlm"
    """What the prompt is written for: a plain model with a `python` tool (harness rlm-env: scaffold = "llm",
    python_tool = true), an RLM, or an RLM that gets a strategy hint in <env_tips>."""
    split: Literal["train", "mini"] = "train"
    """`train`: the real data, which has this one split. `mini`: 120 generated problems in the same schema
    that ship with the package."""
    part: Part = "all"
    """Hold problems out: `train` and `test` divide the split by a hash of the problem's text."""
    test_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of problems in part `test`."""
    dataset: str = "PrimeIntellect/INTELLECT-3-RL"
    """Hugging Face dataset, with columns `question` and `answer`."""
    subset: str = "math"
    """Its configuration."""
    revision: str | None = None
    """Its git revision; unset takes the newest."""
    difficulty: Difficulty | None = None
    """Column of solve rates that the two bounds below apply to."""
    min_solve_rate: float = Field(0.0, ge=0, le=1)
    """Leave out problems that were solved less often. For training, 0.125 drops those never solved."""
    max_solve_rate: float = Field(1.0, ge=0, le=1)
    """Leave out problems that were solved more often."""
    num_tasks: int | None = Field(None, ge=1)
    """How many problems, drawn uniformly at random; unset takes all, in the order of the draw, so that
    `vf-eval -n` takes a uniform draw too."""
    seed: int = 42
    """Seed of the draw; the same for every mode, so that modes are compared on the same problems."""
    packages: list[str] = Field(default_factory=lambda: ["numpy", "scipy", "sympy"])
    """Packages that the model is told it can import. The runtime has to have them."""
    task: MathPythonTaskConfig = MathPythonTaskConfig()
    """How an answer is scored."""

    @model_validator(mode="after")
    def _check_bounds(self) -> MathPythonConfig:
        if self.min_solve_rate > self.max_solve_rate:
            raise ValueError(
                f"min_solve_rate = {self.min_solve_rate} is above max_solve_rate = {self.max_solve_rate}"
            )
        if self.difficulty is None and (self.min_solve_rate > 0 or self.max_solve_rate < 1):
            raise ValueError(
                "min_solve_rate and max_solve_rate need to know whose solve rate: set difficulty to "
                "avg@8_qwen3_4b_thinking_2507 or avg@8_qwen3_4b_instruct_2507"
            )
        return self


class MathPythonTaskset(vf.Taskset[MathPythonTask, MathPythonConfig]):
    def load(self) -> list[MathPythonTask]:
        config = self.config
        if config.split == "mini":
            source, raw = "mini", read_mini()
        else:
            source = f"{config.dataset}/{config.subset}"
            raw = read_hub(config.dataset, config.subset, config.split, config.revision)
        rows = select(
            parse_rows(raw),
            part=config.part,
            test_fraction=config.test_fraction,
            difficulty=config.difficulty,
            min_solve_rate=config.min_solve_rate,
            max_solve_rate=config.max_solve_rate,
        )
        return [
            MathPythonTask(
                MathPythonData(
                    id=f"math-python/{source}/{row.index}",
                    name=f"math-{row.index}",
                    prompt=prompt(row.question, config.mode, config.packages),
                    question=row.question,
                    answer=answers.reference(row.answer),
                    info=row.info,
                    solve_rate_thinking=row.solve_rates["avg@8_qwen3_4b_thinking_2507"],
                    solve_rate_instruct=row.solve_rates["avg@8_qwen3_4b_instruct_2507"],
                ),
                config.task,
            )
            for row in draw(rows, config.num_tasks, config.seed)
        ]
