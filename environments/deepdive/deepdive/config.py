"""What can be set, under `taskset.*` (data and tools) and `taskset.task.*` (rewards)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import verifiers.v1 as vf
from pydantic import Field, model_validator
from pydantic_config import BaseConfig

from deepdive.web.fetch import FetchConfig
from deepdive.web.readers import ReaderConfig
from deepdive.web.search import SERPER_URL

Mode = Literal["llm", "rlm", "rlm_tips"]
Split = Literal["qa_rl", "qa_sft", "mini"]
Part = Literal["train", "heldout", "all"]


class SearchConfig(BaseConfig):
    api_key_var: str = "SERPER_API_KEY"
    """Environment variable with the key for serper.dev, read on the host; not used by the mini split."""
    url: str = SERPER_URL
    """Serper's endpoint, or that of a service which speaks its protocol."""
    seconds: float = Field(20.0, gt=0)
    """Limit for one request to the search engine."""
    attempts: int = Field(3, ge=1)
    """Tries at a search that fails in a passing way (connection, time-out, 429, 5xx)."""
    backoff_seconds: float = Field(1.0, ge=0)
    """Wait before the second try; doubled each time, with jitter."""
    max_queries: int = Field(10, ge=1)
    """Queries that one call of search_web may hold."""
    max_results: int = Field(20, ge=1, le=100)
    """Results a query that one call may ask for."""


class ToolsConfig(vf.SharedToolsetConfig):
    """The tool server: one process for all episodes of a run (`runtime`, `url`: see verifiers)."""

    search: SearchConfig = SearchConfig()
    """The search engine; of the mini split only `max_queries` and `max_results`."""
    fetch: FetchConfig = FetchConfig()
    """How pages are fetched from the web, and which are not."""
    reader: ReaderConfig = ReaderConfig()
    """The processes that turn pages into text and match patterns."""
    result_chars: int = Field(20_000, ge=1000)
    """Longest result of a tool, in characters; what is cut is told."""
    cache: bool = True
    """Keep searches and pages on disk. Concurrent processes share the folder."""
    cache_dir: Path | None = None
    """Folder of the cache; None is `$XDG_CACHE_HOME/deepdive`, or `~/.cache/deepdive`."""
    cache_days: float = Field(30.0, gt=0)
    """Age at which a cached search or page is fetched anew."""


class ToolServerConfig(ToolsConfig):
    """What the server process gets: the tools' config and what the taskset knows. Not for config files, and
    never recorded: it holds the key, since verifiers hands no `*API_KEY*` variable to a server."""

    backend: Literal["web", "mini"] = "mini"
    """The live web, or the shipped pages."""
    serper_api_key: str = Field("", repr=False)
    """What the variable named by `search.api_key_var` held."""


class DeepDiveJudgeConfig(vf.JudgeConfig):
    """The judge's endpoint (`base_url`, `api_key_var`, `model`) and how it is asked."""

    sampling: vf.SamplingConfig = vf.SamplingConfig(temperature=0.0)
    """Sampling of the judge. Temperature 0; a model that refuses the parameter needs `{}` here."""
    attempts: int = Field(4, ge=1)
    """Tries at a judge call that fails or gives no verdict. When all fail, the episode is an error."""
    backoff_seconds: float = Field(1.0, ge=0)
    """Wait before the second try; doubled each time, with jitter."""
    seconds: float = Field(120.0, gt=0)
    """Limit for one judge call."""
    max_answer_chars: int = Field(4000, ge=100)
    """Longest answer that is judged; a longer one is judged by its end, and counted in
    `answer_cut_for_judge`."""


class DeepDiveTaskConfig(vf.TaskConfig):
    scoring: Literal["auto", "judge", "exact"] = "auto"
    """Who decides whether an answer is right: an LLM judge, or comparison with the reference after
    normalisation. `auto` is the judge for the real data and exact match for the mini split, whose references
    are made for it. The metric `judged_by_llm` and `trace.info["deepdive"]["scoring"]` tell which it was."""
    judge: DeepDiveJudgeConfig = DeepDiveJudgeConfig()
    """The model that decides, where scoring is by judge."""
    duplicate_query_penalty: float = Field(0.0, ge=0)
    """Subtracted from the reward, times the share of search queries that nearly repeat an earlier one."""
    duplicate_query_similarity: float = Field(0.8, gt=0, le=1)
    """Two queries are near duplicates when this share of their words is common (Jaccard)."""


class DeepDiveConfig(vf.TasksetConfig):
    mode: Mode = "rlm"
    """`llm` and `rlm` have the same prompt (the tools are the difference, and the harness's matter);
    `rlm_tips` appends a strategy hint in `<env_tips>`."""
    split: Split = "qa_rl"
    """`qa_rl` or `qa_sft` of the dataset, or `mini`: questions about an invented world whose web, 400 pages,
    ships with the package. Mini needs no network and no key."""
    part: Part | None = None
    """`heldout` is the 10 % drawn with `split_seed`, `train` the rest. None is `heldout` for the real splits
    and `all` for mini."""
    num_tasks: int | None = Field(None, ge=1)
    """Questions drawn uniformly at random, without replacement; None takes all, in the order of the draw."""
    seed: int = 42
    """Seed of the draw. The same seed gives the same questions in every mode; a smaller `num_tasks` gives the
    first ones of a larger."""
    split_seed: int = 42
    """Seed that divides the split into held-out and train questions."""
    dataset: str = "zai-org/DeepDive"
    """Hugging Face id, or a local copy's folder."""
    dataset_revision: str | None = None
    """Commit or tag of the dataset; None is the newest."""
    tools: ToolsConfig = ToolsConfig()
    """The tool server: limits, cache, where it runs."""
    task: DeepDiveTaskConfig = DeepDiveTaskConfig()
    """How an answer is scored."""

    @model_validator(mode="after")
    def _key_is_not_config(self) -> DeepDiveConfig:
        if "=" in self.tools.search.api_key_var or len(self.tools.search.api_key_var) > 64:
            raise ValueError("taskset.tools.search.api_key_var is the NAME of an environment variable")
        return self

    @property
    def resolved_part(self) -> Part:
        return self.part or ("all" if self.split == "mini" else "heldout")

    @property
    def resolved_scoring(self) -> Literal["judge", "exact"]:
        if self.task.scoring == "auto":
            return "exact" if self.split == "mini" else "judge"
        return self.task.scoring
