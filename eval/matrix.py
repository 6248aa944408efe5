"""The cells of an evaluation: one suite, one setting, one mode, one model each.

The idea: a cell is nothing but a verifiers env config with a name. Mode and scaffold are set together, here
and only here, so that `llm`, `rlm` and `rlm_tips` differ in what they are meant to differ in; the draw of
tasks is given by `num_tasks` and `seed`, which no mode, model or setting can change.

Invariant: `cell.fingerprint` holds everything that an episode's result depends on except the weights and the
server behind the model's name; two runs may share rows exactly if their fingerprints are equal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import verifiers.v1 as vf
from pydantic import ValidationError
from verifiers.v1.configs.env import EnvConfig
from verifiers.v1.utils.loaders import harness_config_type, taskset_config_type

from eval.config import EvalConfig, Mode, SettingConfig, SuiteConfig, Table, explain

HARNESS_ID = "rlm-env"
BASE_SETTING = "default"


class MatrixError(ValueError):
    """A cell that cannot be built; the message names the key of the config file and the cure."""


@dataclass(frozen=True)
class Cell:
    """One combination, ready to run."""

    suite: str
    family: str
    """Module name of the taskset: `oolong` for every suite that is made of it."""
    setting: str
    mode: Mode
    model: str
    model_name: str
    rollouts: int
    num_tasks: int | None
    seed: int
    draws: bool
    """Whether the taskset itself draws `num_tasks` by `seed`; otherwise `Taskset.select` does."""
    env: EnvConfig
    sampling: vf.SamplingConfig
    varied: Mapping[str, Any]
    """Dotted key -> value of what the suite and its setting set, and of every key that the suite sweeps,
    also where a setting leaves it at its default: the labels of the plots."""
    published: str | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What its rows have in common: the head of their `eval.rows.key_of`."""
        return (self.suite, self.setting, self.mode, self.model)

    @property
    def id(self) -> str:
        """Folder name: `<suite>__<setting>__<mode>__<model>`."""
        return "__".join(self.key).replace("/", "-")

    @property
    def fingerprint(self) -> Table:
        return {
            "env": self.env.model_dump(mode="json", exclude={"retries"}),
            "sampling": self.sampling.model_dump(mode="json"),
            "model_name": self.model_name,
            "num_tasks": self.num_tasks,
            "seed": self.seed,
        }

    @property
    def identity(self) -> Table:
        """The identity columns of its rows."""
        return {
            "suite": self.suite,
            "family": self.family,
            "setting": self.setting,
            "mode": self.mode,
            "model": self.model,
            "model_name": self.model_name,
        }

    def taskset(self) -> vf.Taskset:
        """Its tasks: `num_tasks` of them, drawn by `seed`."""
        taskset = vf.load_taskset(self.env.taskset)
        if self.draws:
            return taskset
        return taskset.select(vf.SelectConfig(shuffle=True, seed=self.seed, limit=self.num_tasks))


@dataclass(frozen=True)
class Calls:
    """Model calls of a cell, judges and retries left out."""

    likely: int
    most: int | None
    """What its limits allow; None without a limit on sub-calls."""


def expand(config: EvalConfig) -> list[Cell]:
    """All cells, models outermost (a checkpoint's server then starts once), modes innermost.

    Raises MatrixError with every broken cell's first problem.
    """
    cells: list[Cell] = []
    problems: list[str] = []
    for model in config.models:
        for suite_name, suite in config.suites.items():
            for setting_name, setting in settings_of(suite_name, suite):
                for mode in setting.modes or suite.modes or config.modes:
                    try:
                        cells.append(_cell(config, model, suite_name, setting_name, setting, mode))
                    except MatrixError as error:
                        if str(error) not in problems:
                            problems.append(str(error))
    if problems:
        raise MatrixError("\n".join(problems))
    seen: set[str] = set()
    for cell in cells:
        if cell.id in seen:
            raise MatrixError(
                f"two cells have the name {cell.id!r}: rename a setting, or drop a repeated mode"
            )
        seen.add(cell.id)
    return cells


def settings_of(name: str, suite: SuiteConfig) -> Iterator[tuple[str, SettingConfig]]:
    """(name, setting) of a suite: the base, the named ones, then the sweeps one key at a time."""
    if suite.base:
        yield BASE_SETTING, SettingConfig()
    for setting_name, setting in suite.settings.items():
        if setting_name == BASE_SETTING or "__" in setting_name or "/" in setting_name:
            raise MatrixError(
                f"suites.{name}.settings.{setting_name}: choose another name "
                f"({BASE_SETTING!r} is the suite as it stands; '__' and '/' do not fit a file name)"
            )
        yield setting_name, setting
    for key, values in suite.sweep.items():
        table, *rest = key.split(".")
        for value in values:
            nested: Any = value
            for part in reversed(rest):
                nested = {part: nested}
            yield f"{rest[-1]}={_label(value)}", SettingConfig.model_validate({table: nested})


def _label(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in text)


def merge(*tables: Mapping[str, Any]) -> Table:
    """Tables merged deeply, later ones over earlier ones."""
    merged: Table = {}
    for table in tables:
        for key, value in table.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of a nested table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cell(
    config: EvalConfig, model: str, suite_name: str, setting_name: str, setting: SettingConfig, mode: Mode
) -> Cell:
    suite = config.suites[suite_name]
    where = f"suites.{suite_name}" + ("" if setting_name == BASE_SETTING else f" (setting {setting_name})")
    taskset = merge(suite.taskset, setting.taskset)
    fields = _taskset_fields(where, taskset["id"])
    num_tasks = setting.num_tasks or suite.num_tasks or config.num_tasks
    for key in ("mode", "num_tasks", "seed"):
        if key in taskset:
            raise MatrixError(
                f"{where}.taskset.{key} is set by the evaluation, for all modes alike: drop it there and use "
                f"{'modes' if key == 'mode' else key} of the {'evaluation' if key == 'seed' else 'suite'}"
            )
    if "mode" in fields:
        taskset["mode"] = mode
    elif mode == "rlm_tips":
        raise MatrixError(
            f"{where}: taskset {taskset['id']!r} has no tips (no `mode` in its config); "
            f'set modes = ["llm", "rlm"] for this suite'
        )
    draws = {"num_tasks", "seed"} <= fields.keys()
    if draws:
        taskset |= {"num_tasks": num_tasks, "seed": config.seed}
    harness = merge(
        config.harness,
        suite.harness,
        suite.harness_llm if mode == "llm" else suite.harness_rlm,
        setting.harness,
    )
    for key in ("id", "scaffold"):
        if key in harness:
            raise MatrixError(
                f"{where}: harness.{key} follows from the mode: drop it, and choose modes instead"
            )
    raw = {
        "taskset": taskset,
        "agent": merge(
            {"runtime": config.runtime},
            suite.agent,
            setting.agent,
            {"harness": {**harness, "id": HARNESS_ID, "scaffold": "llm" if mode == "llm" else "rlm"}},
        ),
        "retries": config.retries.model_dump(),
    }
    try:
        env = vf.resolve_env_config(raw)
    except ValidationError as error:
        narrowed = {
            "taskset": taskset_config_type(taskset["id"]),
            "agent.harness": harness_config_type(HARNESS_ID),
        }
        detail = explain(error, vf.SingleAgentEnvConfig, narrowed=narrowed).replace(
            "agent.harness.", "harness."
        )
        raise MatrixError("\n".join(f"{where}: {line}" for line in detail.splitlines())) from error
    model_config = config.models[model]
    return Cell(
        suite=suite_name,
        family=module_of(taskset["id"]),
        setting=setting_name,
        mode=mode,
        model=model,
        model_name=model_config.name or model,
        rollouts=suite.rollouts or config.rollouts,
        num_tasks=num_tasks,
        seed=config.seed,
        draws=draws,
        env=env,
        sampling=vf.SamplingConfig.model_validate(
            {**config.sampling.model_dump(), **model_config.sampling.model_dump(exclude_unset=True)}
        ),
        varied={key: _value_of(env, key) for key in suite.sweep}
        | dict(
            flatten(
                merge(
                    {"taskset": suite.taskset, "harness": suite.harness, "agent": suite.agent},
                    {"taskset": setting.taskset, "harness": setting.harness, "agent": setting.agent},
                )
            )
        ),
        published=suite.published,
    )


def _value_of(env: EnvConfig, key: str) -> Any:
    """What a cell's env has at a dotted `taskset.`, `harness.` or `agent.` key; None for a key that stands in
    a free-form table and is not set."""
    table, *rest = key.split(".")
    value: Any = env.taskset if table == "taskset" else env.agent  # type: ignore[attr-defined]
    for part in (["harness"] if table == "harness" else []) + rest:
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _taskset_fields(where: str, taskset_id: str) -> Mapping[str, Any]:
    try:
        return taskset_config_type(taskset_id).model_fields
    except ModuleNotFoundError as error:
        missing = getattr(error.__cause__, "name", None) or taskset_id
        raise MatrixError(
            f"{where}.taskset.id: the suite {taskset_id!r} cannot be imported (no module {missing!r}): "
            f"install it, those of this repository with `pip install -e environments/{module_of(taskset_id)}`"
        ) from error
    except (TypeError, AttributeError, ValueError) as error:
        raise MatrixError(f"{where}.taskset.id: {error}") from error


def module_of(taskset_id: str) -> str:
    """`verbatim-copy` and `owner/verbatim-copy@1` -> `verbatim_copy`, as verifiers imports it."""
    return taskset_id.rsplit("/", 1)[-1].split("@", 1)[0].replace("-", "_").lower()


def tasks_of(cell: Cell) -> list[tuple[str, vf.Task]]:
    """(task id, task) in the order of the draw. The id is what pairs modes, so it must not depend on the
    prompt: the task's own key where its class defines one, else the data's id, else the position in the
    draw."""
    tasks = list(cell.taskset())
    if not tasks:
        raise MatrixError(f"{cell.id}: the taskset has no tasks; check its split, filters and num_tasks")
    own_key = type(tasks[0]).key is not vf.Task.key
    ids = [task.key if own_key else task.data.id or f"draw-{position}" for position, task in enumerate(tasks)]
    seen: dict[str, int] = {}
    unique = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return list(zip(unique, tasks, strict=True))


def calls_of(cell: Cell, episodes: int, *, per_episode: float) -> Calls:
    """The model calls of `episodes` episodes, given what one is likely to make."""
    harness: Any = cell.env.agent.harness  # type: ignore[attr-defined]
    limits = harness.limits
    likely = round(episodes * min(per_episode, limits.max_turns if cell.mode == "llm" else math.inf))
    if cell.mode == "llm" or harness.max_depth == 0:
        return Calls(likely, episodes * limits.max_turns)
    if limits.max_sub_calls is None:
        return Calls(likely, None)
    per_sub_call = max(harness.sub_tool_turns + 1, limits.child_max_turns if harness.max_depth > 1 else 1)
    return Calls(likely, episodes * (limits.max_turns + limits.max_sub_calls * per_sub_call))
