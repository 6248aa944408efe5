"""The taskset: DeepDive's questions, the tools' server, and the rewards.

The reference answer is in the task's data, which stays on the host: it is in no prompt, the tool server is
shared and so never handed a task, and nothing goes into the sandbox but what the harness puts there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import verifiers.v1 as vf
from verifiers.v1.configs.client import resolve_api_key

from deepdive.config import DeepDiveConfig, DeepDiveJudgeConfig, DeepDiveTaskConfig, ToolServerConfig
from deepdive.data import load_rows
from deepdive.prompts import prompt
from deepdive.scoring import DeepDiveJudge, duplicate_share, exact_match, final_answer
from deepdive.server import DeepDiveToolset, missing_key
from deepdive.state import TOOLS, DeepDiveState
from deepdive.web.cache import DiskCache, default_cache_dir


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
        return {"duplicate_query_penalty": -weight * self._duplicates(_state(trace))}

    @vf.metric
    async def tool_use(self, trace: vf.Trace) -> Mapping[str, float]:
        """What the tools did in this episode, whoever called them: the root, sub-LLMs or the REPL."""
        state = _state(trace)
        counts = state.counts
        # Kept whole for readers of the trace, and for scoring it again: state itself is not saved.
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


def _state(trace: vf.Trace) -> DeepDiveState:
    """The episode's state, or the record of it in a trace that was saved."""
    if isinstance(trace.state, DeepDiveState) and trace.state.counts:
        return trace.state
    return DeepDiveState.model_validate(trace.info.get("deepdive", {}).get("tools") or {})


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
        """One server for all episodes. Raises ValueError, before anything is spent, for what would fail
        later: no key to search with, no key for the judge, a cache folder that cannot be written."""
        tools = config.tools
        backend: Literal["web", "mini"] = "mini" if config.split == "mini" else "web"
        key = ""
        if config.resolved_scoring == "judge":
            _check_judge(config.task.judge)
        if backend == "web" and not tools.url:
            key = os.environ.get(tools.search.api_key_var, "").strip()
            if not key:
                raise ValueError(missing_key(tools.search.api_key_var))
            if tools.cache and tools.runtime.type == "subprocess":
                DiskCache(tools.cache_dir or default_cache_dir(), tools.cache_days)
        server = ToolServerConfig(**tools.model_dump(), backend=backend, serper_api_key=key)
        return [DeepDiveToolset(server)]


def _check_judge(judge: DeepDiveJudgeConfig) -> None:
    """Raise ValueError for the default endpoint without its key; other endpoints may need none."""
    host = urlsplit(judge.base_url).hostname or ""
    if host.endswith("pinference.ai") and resolve_api_key(judge) == "EMPTY":
        raise ValueError(
            f"the judge at {judge.base_url} needs a key in the environment variable {judge.api_key_var}; "
            "or set taskset.task.judge.base_url (any OpenAI-compatible endpoint), or "
            'taskset.task.scoring = "exact"'
        )
