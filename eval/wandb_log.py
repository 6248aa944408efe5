"""Logs a finished evaluation to Weights & Biases: the rows as a table, the summary, the plots, some
traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from verifiers.v1.utils.trace_store import TRACES_FILE

from eval.config import EvalConfig
from eval.rows import Row
from eval.summary import Summary

_TEXT = 20_000
"""Characters of a conversation in the table of samples."""


def log(config: EvalConfig, rows: Sequence[Row], summary: Summary, plots: dict[str, str]) -> Path | None:
    """Write one W&B run; returns its local directory.

    Raises RuntimeError with the cure when wandb is not installed or not logged in.
    """
    assert config.wandb is not None
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "logging to W&B needs the package wandb: pip install wandb, or drop [wandb] from the config"
        ) from error
    results = config.results_dir
    try:
        run = wandb.init(
            project=config.wandb.project,
            entity=config.wandb.entity,
            mode=config.wandb.mode,
            name=config.name,
            dir=str(results),
            # Headers may hold keys, and a W&B run is read by others.
            config=config.model_dump(mode="json", exclude={"models": {"__all__": {"headers"}}}),
            job_type="eval",
        )
    except wandb.errors.UsageError as error:
        raise RuntimeError(
            f'W&B refused the run ({error}): run `wandb login`, or set wandb.mode = "offline" and sync later'
        ) from error
    with run:
        columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
        run.log(
            {
                "episodes": wandb.Table(
                    columns=columns, data=[[_cell(row.get(str(c))) for c in columns] for row in rows]
                ),
                "traces": wandb.Table(
                    columns=[
                        "suite",
                        "setting",
                        "mode",
                        "model",
                        "task_id",
                        "reward",
                        "outcome",
                        "conversation",
                    ],
                    data=[_sample(results, row) for row in sample(rows, config.wandb.traces)],
                ),
                **{
                    f"plots/{Path(file).stem}": wandb.Image(str(results / "plots" / file), caption=caption)
                    for file, caption in plots.items()
                },
            }
        )
        run.summary.update(_flat(summary))
        return Path(run.dir).parent


def _cell(value: Any) -> Any:
    # A W&B column holds one type; labels of different suites do not.
    return (
        value
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else str(value)
    )


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows, drawn evenly over the cells in their order: first one of each, then a second, ..."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["suite"], row["setting"], row["mode"], row["model"]), []).append(row)
    chosen: list[Row] = []
    for depth in range(max((len(own) for own in cells.values()), default=0)):
        chosen += [own[depth] for own in cells.values() if depth < len(own)]
    return chosen[:count]


def _sample(results: Path, row: Row) -> list[Any]:
    cell = "__".join((row["suite"], row["setting"], row["mode"], row["model"])).replace("/", "-")
    return [
        *(row[name] for name in ("suite", "setting", "mode", "model", "task_id", "reward", "outcome")),
        _conversation(results / "cells" / cell / TRACES_FILE, row["episode_id"]),
    ]


def _conversation(path: Path, episode_id: str) -> str:
    """All messages of an episode in the order of the trace, cut at `_TEXT` characters."""
    marker = f'"{episode_id}"'.encode()
    with path.open("rb") as file:
        for line in file:
            if marker not in line:
                continue
            messages = [node["message"] for trace in from_json(line)["traces"] for node in trace["nodes"]]
            text = "\n\n".join(
                f"[{m['role']}]\n{m.get('content') or m.get('tool_calls') or ''}" for m in messages
            )
            return text if len(text) <= _TEXT else f"{text[:_TEXT]}\n... {len(text) - _TEXT} more characters"
    return ""


def _flat(summary: Summary) -> dict[str, float]:
    """`<suite>/<setting>/<mode>/<model>/<measure>` -> number: what W&B compares between runs."""
    flat: dict[str, float] = {}
    for cell in summary["cells"]:
        prefix = "/".join((cell["suite"], cell["setting"], cell["mode"], cell["model"]))
        for name in ("reward", "reward_overflow_as_zero"):
            if cell[name] is not None:
                flat[f"{prefix}/{name}"] = cell[name]["mean"]
        flat.update({f"{prefix}/{outcome}": count for outcome, count in cell["outcomes"].items()})
        flat.update({f"{prefix}/{name}_mean": cost["mean"] for name, cost in cell["costs"].items()})
    return flat
