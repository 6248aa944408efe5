"""A served policy on held-out tasks, with the run's own harness, sampled as in training.

    python -m training.evaluate @ configs/train/quickstart_cpu.toml --model.path outputs/run/checkpoint-40

The idea: the numbers before and after training come from the code path that training uses (renderer, client,
harness, REPL), so that they differ by the policy alone. An episode that failed for reasons of infrastructure
is tried again, then left out of the mean and counted; it is never a 0.

The invariant of `held out`: no evaluated task has the identity (`Task.key`) or the prompt and context of a
training task; a finite training set is checked before the first episode, an endless one cannot be and relies
on its seed.

Not covered: comparing scaffolds and models (`eval`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from pydantic import Field
from verifiers.v1.task import task_key
from verifiers.v1.utils.loaders import load_environment, resolve_env_config

from training.callbacks import write_json
from training.config import TrainConfig, load_config
from training.rollout_episode import Outcome, episode_reward, run_slot
from training.rollout_loop import renew_renderer_lock, train_client
from training.trace_store import TRACES_FILE, TraceStore

MAX_CHECKED_TASKS = 20_000
"""Larger training sets are not compared task by task with the evaluated ones."""


class NotHeldOutError(ValueError):
    """Evaluation tasks are among the training tasks."""


class EvaluationFailed(RuntimeError):
    """No episode of an evaluation counts."""


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode."""

    task: str
    """`Task.key`."""
    rollout: int
    """Number of the episode among those of its task."""
    reward: float | None
    """None when it was left out."""
    seconds: float
    stop: str | None
    """What ended it."""
    parts: dict[str, float] = field(default_factory=dict)
    """Reward by part, weighted."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What harness and task measured."""
    errors: tuple[str, ...] = ()
    """Types of the errors of failed attempts."""


@dataclass(frozen=True)
class EvalResult:
    """An evaluation."""

    mean_reward: float
    """Over the episodes that count."""
    n: int
    """Episodes that count."""
    left_out: int
    """Episodes left out for infrastructure failures."""
    seconds: float
    rows: tuple[EpisodeRow, ...]

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, with means of the metrics."""
        names = sorted({name for row in self.rows for name in row.metrics})
        means = {}
        for name in names:
            values = [row.metrics[name] for row in self.rows if name in row.metrics]
            means[name] = sum(values) / len(values)
        errors = Counter(error for row in self.rows for error in row.errors)
        return {
            "mean_reward": self.mean_reward,
            "n": self.n,
            "left_out": self.left_out,
            "seconds": self.seconds,
            "errors": dict(errors),
            "metrics": means,
        }


def eval_environment(config: TrainConfig) -> vf.EnvConfig:
    """The run's environment with `eval.taskset` laid over its taskset."""
    data = config.env.model_dump(mode="json")
    data["taskset"] = {**data["taskset"], **config.eval.taskset}
    return resolve_env_config(data)


def _content(task: vf.Task) -> str:
    """Identity by what the model gets to see, whatever numbers and names the task carries."""
    data = task.data.model_dump(
        mode="json", include={"prompt", "context", "context_files"}, exclude_none=True
    )
    return task_key(data)


def check_held_out(train: vf.Taskset, tasks: list[vf.Task]) -> bool:
    """Compares evaluated tasks with a finite training set; False when that could not be done.

    Raises:
        NotHeldOutError: some are the same.
    """
    if not train.bounded:
        return False
    keys: set[str] = set()
    contents: set[str] = set()
    for number, task in enumerate(train):
        if number >= MAX_CHECKED_TASKS:
            return False
        keys.add(task.key)
        contents.add(_content(task))
    same = [task.key for task in tasks if task.key in keys or _content(task) in contents]
    if same:
        raise NotHeldOutError(
            f"{len(same)} of {len(tasks)} evaluation tasks are training tasks (the first: {same[0]}): give "
            "eval.taskset another seed or split, or eval.select / select disjoint parts"
        )
    return True


async def evaluate(
    config: TrainConfig,
    *,
    base_url: str,
    model_name: str,
    renderer: dict[str, Any] | None,
    output: Path | None = None,
) -> EvalResult:
    """Evaluates the policy that `base_url` serves, on the tasks of `[eval]`.

    Args:
        config: the run's configuration.
        base_url: the server, ending in /v1.
        model_name: the name it serves the policy under.
        renderer: as in training.
        output: directory for `summary.json`, `episodes.jsonl` and `traces.jsonl`; None writes nothing.

    Raises:
        NotHeldOutError: evaluation tasks are training tasks.
        EvaluationFailed: no episode counts.
    """
    renew_renderer_lock()
    env = load_environment(eval_environment(config))
    tasks = list(env.taskset.select(config.eval.select))
    if not tasks:
        raise ValueError("there is nothing to evaluate: check eval.taskset and eval.select")
    check_held_out(load_environment(config.env).taskset.select(config.select), tasks)
    temperature = config.eval.temperature
    sampling = config.sampling.to_verifiers()
    if temperature is not None:
        sampling = sampling.model_copy(update={"temperature": temperature})
    context = vf.ModelContext(
        model=model_name, client=train_client(base_url, renderer, config.model.path), sampling=sampling
    )
    slots = asyncio.Semaphore(config.eval.max_concurrent or config.rollout.max_concurrent)

    async def one(task: vf.Task) -> Outcome:
        async with slots:
            return await run_slot(
                lambda: env.run_episode(task, context),
                version=lambda: 0,
                seconds=config.rollout.episode_seconds,
                retries=config.rollout.episode_retries,
                on_start=lambda version: None,
                on_failure=lambda failure: None,
            )

    began = time.monotonic()
    slots_of = [(task, number) for task in tasks for number in range(config.eval.rollouts)]
    async with env.serving():
        outcomes = await asyncio.gather(*(one(task) for task, _ in slots_of))
    rows = tuple(
        _row(task, number, outcome) for (task, number), outcome in zip(slots_of, outcomes, strict=True)
    )
    rewards = [row.reward for row in rows if row.reward is not None]
    if not rewards:
        raise EvaluationFailed(
            f"all {len(rows)} episodes failed: {dict(Counter(error for row in rows for error in row.errors))}"
        )
    result = EvalResult(
        sum(rewards) / len(rewards), len(rewards), len(rows) - len(rewards), time.monotonic() - began, rows
    )
    if output is not None:
        _write(output, result, [outcome.episode for outcome in outcomes if outcome.episode is not None])
    return result


def _row(task: vf.Task, number: int, outcome: Outcome) -> EpisodeRow:
    episode = outcome.episode
    if episode is None:
        return EpisodeRow(task.key, number, None, outcome.seconds, None, errors=tuple(outcome.errors))
    trace = episode.traces[-1]
    return EpisodeRow(
        task.key,
        number,
        episode_reward(episode),
        outcome.seconds,
        trace.stop_condition,
        {name: part.value for name, part in trace.rewards.items() if part is not None},
        {name: value for name, value in trace.metrics.items() if value is not None},
        tuple(outcome.errors),
    )


def _write(output: Path, result: EvalResult, episodes: list[vf.Episode]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(row)) + "\n" for row in result.rows]
    (output / "episodes.jsonl").write_text("".join(lines), encoding="utf-8")
    (output / TRACES_FILE).unlink(missing_ok=True)
    TraceStore.write(output / TRACES_FILE, episodes)
    write_json(output / "summary.json", result.summary())


class EvaluateConfig(TrainConfig):
    """`TrainConfig` and where the evaluation goes."""

    output: Path | None = Field(None)
    """Directory of the results; None takes `<run directory>/eval`."""


def main(argv: list[str] | None = None) -> None:
    """Command line: starts or attaches the server of `[vllm]`, evaluates, prints the summary."""
    from training.policy_server import serve_policy

    config = load_config(argv, EvaluateConfig)
    output = config.output or config.run.directory / "eval"
    with serve_policy(config) as served:
        result = asyncio.run(
            evaluate(
                config,
                base_url=served.base_url,
                model_name=served.model_name,
                renderer=served.renderer,
                output=output,
            )
        )
    print(json.dumps(result.summary(), indent=2))
    print(f"results in {output}")


if __name__ == "__main__":
    main()
