"""What an evaluation's TOML file may say, and errors that name the nearest right key.

The idea: an evaluation is four tables (suites, modes, models, settings) and their product. Tables of a
taskset, a harness or an agent are kept as they are written and are validated by the plugin's own config
class, so a new field of a suite needs nothing here."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any, Literal

import verifiers.v1 as vf
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_config import BaseConfig

from eval.published import FIGURES

Mode = Literal["llm", "rlm", "rlm_tips"]
MODES: tuple[Mode, ...] = ("llm", "rlm", "rlm_tips")

Table = dict[str, Any]


class ModelConfig(BaseConfig):
    """One model: an endpoint by `base_url` and `name`, a `checkpoint` to serve, or the `scripted`
    stand-in."""

    name: str | None = None
    """The model's name at its endpoint. Defaults to the table's name."""
    base_url: str | None = None
    """An OpenAI-compatible endpoint, with its /v1."""
    api_key_var: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key. Not needed on this machine's own addresses."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Extra HTTP headers of every request."""
    headers_from_env: dict[str, str] = Field(default_factory=dict)
    """Header name -> environment variable that holds its value."""
    checkpoint: Path | None = None
    """A model directory: vLLM is started on it for this model's episodes and stopped afterwards."""
    server: Table = Field(default_factory=dict)
    """Settings of that vLLM server (`training.server.ServerConfig`), for example {max_model_len = 32768}."""
    scripted: bool = False
    """Serve the scripted stand-in of `eval/scripted.py`: no model, for demonstrations and tests offline."""
    window: int | None = Field(None, ge=1)
    """Context window of the scripted stand-in in tokens (four characters each); longer prompts are
    refused."""
    sampling: vf.SamplingConfig = vf.SamplingConfig()
    """Sampling of this model, merged over the run's."""
    max_concurrent: int | None = Field(None, ge=1)
    """Episodes of this model in flight at once, if fewer than the run's limit."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        given = [
            name
            for name in ("base_url", "checkpoint", "scripted")
            if getattr(self, name) not in (None, False)
        ]
        if len(given) != 1:
            raise ValueError(
                "a model needs exactly one of base_url (an endpoint), checkpoint (a directory that vLLM "
                "serves) "
                f"and scripted = true (the stand-in); this one has {', '.join(given) or 'none'}"
            )
        if self.server and self.checkpoint is None:
            raise ValueError(
                "server = {...} belongs to a checkpoint: an endpoint by base_url is not started here"
            )
        if self.window is not None and not self.scripted:
            raise ValueError(
                "window belongs to scripted = true: an endpoint's window is the server's own "
                "(for a checkpoint set server = {max_model_len = ...})"
            )
        return self


class SettingConfig(BaseConfig):
    """One variation of a suite: tables merged over the suite's own."""

    taskset: Table = Field(default_factory=dict)
    """Merged over the suite's `taskset`."""
    harness: Table = Field(default_factory=dict)
    """Merged over the suite's `harness`."""
    agent: Table = Field(default_factory=dict)
    """Merged over the suite's `agent`."""
    num_tasks: int | None = Field(None, ge=1)
    """Tasks of this setting, if other than the suite's."""
    modes: list[Mode] | None = None
    """Modes of this setting, if other than the suite's."""


class SuiteConfig(BaseConfig):
    """One suite: a taskset, how the harness plays it, and its settings."""

    taskset: Table
    """The taskset's config, `id` and all, for example {id = "oolong", split = "mini"}."""
    harness: Table = Field(default_factory=dict)
    """Config of the RLM harness in every mode, for example {limits = {max_turns = 50}}."""
    harness_llm: Table = Field(default_factory=dict)
    """Merged over `harness` in mode llm, for example {python_tool = true}."""
    harness_rlm: Table = Field(default_factory=dict)
    """Merged over `harness` in the modes rlm and rlm_tips."""
    agent: Table = Field(default_factory=dict)
    """Further fields of verifiers' agent config, for example {timeout = {rollout = 3600}}."""
    modes: list[Mode] | None = None
    """Modes of this suite, if other than the run's."""
    num_tasks: int | None = Field(None, ge=1)
    """Tasks drawn, if other than the run's."""
    rollouts: int | None = Field(None, ge=1)
    """Episodes per task, if other than the run's."""
    settings: dict[str, SettingConfig] = Field(default_factory=dict)
    """Named variations, each a further row of cells."""
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key -> values, varied one key at a time, for example
    {"harness.repl.call_seconds" = [120, 300, 600]}. Each value is a setting named `key=value`."""
    base: bool = True
    """Run the suite as it stands too (setting `default`), beside its settings and sweeps."""
    published: str | None = None
    """Row of the published figures to compare with (see `eval/published.py`)."""

    @model_validator(mode="after")
    def _complete(self) -> SuiteConfig:
        if not isinstance(self.taskset.get("id"), str):
            raise ValueError(
                'taskset needs an id: the installed package of the suite, e.g. id = "verbatim-copy"'
            )
        if not self.base and not self.settings and not self.sweep:
            raise ValueError("base = false leaves nothing to run: add settings or a sweep, or drop base")
        if self.published is not None and self.published not in FIGURES:
            raise ValueError(f"published = {self.published!r} is none of {', '.join(FIGURES)}")
        for key in self.sweep:
            if key.split(".")[0] not in ("taskset", "harness", "agent") or "." not in key:
                raise ValueError(
                    f"sweep key {key!r} must start with taskset., harness. or agent., "
                    'for example "taskset.target_length"'
                )
        return self


class ReportConfig(BaseConfig):
    """How the rows are summed up."""

    plots: bool = True
    """Draw the PNG plots."""
    bootstrap: int = Field(10_000, ge=100)
    """Resamples of every interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of the intervals."""
    dpi: int = Field(150, ge=50)
    """Resolution of the plots."""


class WandbConfig(BaseConfig):
    """Log the evaluation to Weights & Biases."""

    project: str = "rlm-eval"
    """Project of the run."""
    entity: str | None = None
    """Team or user; None is the account's default."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes a local run to be synced later, and needs no key."""
    traces: int = Field(20, ge=0)
    """Traces shown in the table of samples, drawn evenly over the cells."""


def _default_retries() -> vf.RetryConfig:
    # The harness retries each call by itself; one more whole episode covers a server that was away for
    # longer.
    return vf.RetryConfig(
        rules=[
            vf.RetryRule(type="ProviderError", status_code=[429, "5xx"], max_retries=1),
            vf.RetryRule(type="SandboxError", max_retries=1),
        ]
    )


class EvalConfig(BaseConfig):
    """A whole evaluation."""

    name: str
    """Names the results folder: `output_dir/name`."""
    output_dir: Path = Path("outputs/eval")
    """Folder of all results."""
    suites: dict[str, SuiteConfig]
    """What is measured."""
    models: dict[str, ModelConfig]
    """Who is measured."""
    modes: list[Mode] = Field(default_factory=lambda: list(MODES))
    """llm: the plain model with the task's tools; rlm: the scaffold; rlm_tips: the scaffold with the suite's
    strategy hint."""
    num_tasks: int | None = Field(50, ge=1)
    """Tasks of each suite, drawn uniformly at random by `seed`; "None" takes all."""
    seed: int = 42
    """Of the draw of tasks, the same for every mode, model and setting, so that all comparisons are
    paired."""
    rollouts: int = Field(1, ge=1)
    """Episodes per task."""
    harness: Table = Field(default_factory=dict)
    """Config of the RLM harness for all suites."""
    runtime: Table = Field(default_factory=lambda: {"type": "subprocess"})
    """Where REPLs and tools run (verifiers' runtime config): subprocess, docker, ..."""
    sampling: vf.SamplingConfig = vf.SamplingConfig()
    """Sampling of every model call."""
    retries: vf.RetryConfig = Field(default_factory=_default_retries)
    """Whole-episode retries by error (verifiers' retry rules)."""
    max_concurrent: int = Field(32, ge=1)
    """Episodes in flight at once, over all cells."""
    typical_calls: dict[str, float] = Field(
        default_factory=lambda: {"llm": 4.0, "rlm": 20.0, "rlm_tips": 25.0}
    )
    """Model calls per episode that `--dry-run` reckons with, by mode. A guess to be set from experience:
    cells that have rows already are reckoned with the mean of these."""
    abort_after_errors: int | None = Field(20, ge=1)
    """Stop the run when the first so many episodes of a model all failed for want of a working endpoint or
    sandbox: the rest would fail the same way. "None" never stops."""
    report: ReportConfig = ReportConfig()
    """Tables and plots."""
    wandb: WandbConfig | None = None
    """Log the table, the plots and a sample of traces; unset logs nothing."""
    progress: bool = True
    """Show a progress bar."""
    resume: bool = Field(False, exclude=True)
    """Run only what is missing or errored in the results folder."""
    clean: bool = Field(False, exclude=True)
    """Delete an existing results folder first."""
    dry_run: bool = Field(False, exclude=True)
    """List what would run, with an estimate of model calls, and stop."""
    report_only: bool = Field(False, exclude=True)
    """Rebuild summary, report and plots from the rows that exist, and stop."""

    @model_validator(mode="after")
    def _usable(self) -> EvalConfig:
        if not self.suites or not self.models or not self.modes:
            raise ValueError("an evaluation needs at least one of each: suites, models, modes")
        for kind, names in (("suite", self.suites), ("model", self.models), ("evaluation", [self.name])):
            for name in names:
                if not name or not all(c.isalnum() or c in "._=+-" for c in name) or "__" in name:
                    raise ValueError(
                        f"{kind} name {name!r} becomes part of a file name: use letters, digits, '-', '.', "
                        "'=', '+' and single '_'"
                    )
        if missing := [mode for mode in MODES if mode not in self.typical_calls]:
            raise ValueError(f"typical_calls lacks {', '.join(missing)}; it needs every mode")
        if sum((self.resume, self.clean, self.report_only)) > 1:
            raise ValueError("resume, clean and report_only exclude each other: give one")
        return self

    @property
    def results_dir(self) -> Path:
        return self.output_dir / self.name


# ---- errors that name the nearest key


def explain(
    error: ValidationError,
    root: type[BaseModel],
    *,
    prefix: str = "",
    narrowed: dict[str, type] | None = None,
) -> str:
    """One line per problem: the dotted key, what is wrong, and for an unknown key the nearest known ones.

    Args:
        error: from validating `root`.
        prefix: put before each key, where `root` is a part of something larger.
        narrowed: dotted key -> config class of a plugin, where the annotation only names a base class.
    """
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if isinstance(part, str | int)]
        key = ".".join(str(part) for part in ([prefix] if prefix else []) + location)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_nearest(root, location, narrowed or {})}"
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict | list):
            message += f" (got {problem['input']!r})"
        lines.append(f"{key}: {message}" if key else message)
    return "\n".join(lines)


def _nearest(root: type[BaseModel], location: list[str | int], narrowed: dict[str, type]) -> str:
    owner: Any = root
    path: list[str] = []
    for part in location[:-1]:
        path.append(str(part))
        owner = narrowed.get(".".join(path)) or _step(owner, part)
        if owner is None:
            return ""
    fields = getattr(owner, "model_fields", None)
    if not fields:
        return ""
    close = difflib.get_close_matches(str(location[-1]), list(fields), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys: {', '.join(sorted(fields))}"


def _step(owner: Any, part: str | int) -> Any:
    """The type one key further down: a model's field, or the values of a dict or list."""
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        field = owner.model_fields.get(str(part))
        return _unwrap(field.annotation) if field is not None else None
    origin = typing.get_origin(owner)
    if origin is dict:
        return _unwrap(typing.get_args(owner)[1])
    if origin is list:
        return _unwrap(typing.get_args(owner)[0])
    return None


def _unwrap(annotation: Any) -> Any:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if typing.get_origin(annotation) not in (dict, list) and len(options) == 1:
        return options[0]
    return annotation
