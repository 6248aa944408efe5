"""The taskset: DeepDive's questions, the tools' server, and the rewards.

The reference answer is in the task's data, which stays on the host: it is in no prompt, the tool server is
shared and so never handed a task, and nothing goes into the sandbox but what the harness puts there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import verifiers.v1 as vf

from deepdive.config import DeepDiveConfig, DeepDiveTaskConfig, ToolServerConfig
from deepdive.data import load_rows
from deepdive.prompts import prompt
from deepdive.scoring import DeepDiveJudge, duplicate_share, exact_match, final_answer
from deepdive.server import DeepDiveToolset, missing_key
from deepdive.state import TOOLS, DeepDiveState


class DeepDiveData(vf.TaskData):
    question: str
    """The question alone, as the judge sees it."""
    answer: str
    """The reference. Host only."""
    split: str
    scoring: Literal["judge", "exact"]
    """Who decides, with `auto` resolved."""


class DeepDiveTask(vf.Task[DeepDiveData, DeepDiveState, DeepDiveTaskConfig]):
    @property
    def key(self) -> str:
        """The same in every mode, so that modes can be compared question by question."""
        return f"deepdive/{self.data.split}/{self.data.id}"

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """1 when the final answer is right, else 0. Raises when an LLM judge gives no verdict."""
        answer = final_answer(trace.last_reply)
        by_judge = self.data.scoring == "judge"
        judge = self.config.judge
        record: dict[str, Any] = {
            "by": "llm_judge" if by_judge else "exact_match",
            "model": judge.model if by_judge else None,
            "answer": answer[: judge.max_answer_chars],
        }
        trace.info.setdefault("deepdive", {})["scoring"] = record
        trace.record_metric("judged_by_llm", float(by_judge))
        trace.record_metric("answer_given", float(bool(answer)))
        trace.record_metric("exact_match", float(exact_match(answer, self.data.answer)))
        if not by_judge:
            return float(exact_match(answer, self.data.answer))
        if not answer:
            return 0.0  # nothing to judge
        cut = len(answer) > judge.max_answer_chars
        trace.record_metric("answer_cut_for_judge", float(cut))
        verdict = await DeepDiveJudge(judge).correct(
            trace, self.data.question, self.data.answer, answer[-judge.max_answer_chars :]
        )
        return float(verdict)

    @vf.reward
    async def duplicate_queries(self, trace: vf.Trace) -> Mapping[str, float]:
        """The penalty for repeated searches, when there is one."""
        weight = self.config.duplicate_query_penalty
        if not weight:
            return {}
        return {"duplicate_query_penalty": -weight * self._duplicates(trace.state)}

    @vf.metric
    async def tool_use(self, trace: vf.Trace) -> Mapping[str, float]:
        """What the tools did in this episode, whoever called them: the root, sub-LLMs or the REPL."""
        state: DeepDiveState = trace.state
        counts = state.counts
        # Kept whole for readers of the trace; state itself is not saved.
        trace.info.setdefault("deepdive", {})["tools"] = state.model_dump(exclude={"artifacts"})
        metrics = {name: float(counts.get(name, 0)) for name in _COUNTS}
        for tool in TOOLS:
            metrics[f"web_calls/{tool}"] = float(counts.get(f"calls/{tool}", 0))
            metrics[f"web_failed_calls/{tool}"] = float(counts.get(f"failed_calls/{tool}", 0))
        metrics |= {f"web_{name}": float(n) for name, n in counts.items() if name.startswith("failures/")}
        metrics["distinct_pages"] = float(len(set(state.urls)))
        metrics["duplicate_query_share"] = self._duplicates(state)
        metrics["web_seconds"] = sum(state.seconds.values())
        return metrics

    def _duplicates(self, state: DeepDiveState) -> float:
        return duplicate_share(state.queries, self.config.duplicate_query_similarity)


_COUNTS = ("searches", "pages", "failed_searches", "failed_pages", "cache_hits", "cut_results")


class DeepDiveTaskset(vf.Taskset[DeepDiveTask, DeepDiveConfig]):
    def load(self) -> Iterator[DeepDiveTask]:
        config = self.config
        for row in load_rows(config):
            data = DeepDiveData(
                id=str(row.id),
                name=f"{config.split}-{row.id}",
                prompt=prompt(row.question, tips=config.mode == "rlm_tips", mini=config.split == "mini"),
                question=row.question,
                answer=row.answer,
                split=config.split,
                scoring=config.resolved_scoring,
            )
            yield DeepDiveTask(data, config.task)

    @classmethod
    def toolsets(cls, config: DeepDiveConfig) -> list[vf.Toolset]:
        """One server for all episodes. Raises ValueError when the web needs a key that is not there."""
        backend: Literal["web", "mini"] = "mini" if config.split == "mini" else "web"
        key = os.environ.get(config.tools.search.api_key_var, "").strip()
        if backend == "web" and not key and not config.tools.url:
            raise ValueError(missing_key(config.tools.search.api_key_var))
        settings = config.tools.model_dump()
        server = ToolServerConfig(**settings, backend=backend, serper_api_key=key if backend == "web" else "")
        return [DeepDiveToolset(server)]
