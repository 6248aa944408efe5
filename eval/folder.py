"""The results folder: made, claimed by one run, checked and trimmed for a resume.

Invariants: a row is a whole line and its trace is on disk before it; a cell's folder says with which settings
its rows were made, and rows of other settings never join them; one run at a time writes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import tomli_w
from pydantic_core import from_json
from verifiers.v1.utils.trace_store import TRACES_FILE

from eval.config import EvalConfig
from eval.matrix import Cell
from eval.rows import EPISODES_FILE, KEPT, Row, key_of, read_rows, rewrite_lines

CONFIG_FILE = "config.toml"
CELL_FILE = "cell.json"

Key = tuple[str, str, str, str, str, int]


class RunError(RuntimeError):
    """The run cannot go on; the message names the setting and the cure."""


def prepare(config: EvalConfig, cells: Sequence[Cell]) -> dict[Key, Row]:
    """Make the results folder ready and return the rows that are kept.

    A fresh run refuses a folder that has rows; `resume` drops errored rows and torn lines, with the traces
    that belong to no kept row, and refuses cells whose settings have changed, naming them."""
    results = config.results_dir
    if config.clean and results.exists():
        if any(results.iterdir()) and not (results / CONFIG_FILE).exists():
            raise RunError(f"--clean: {results} does not look like a results folder; delete it by hand")
        shutil.rmtree(results)
    existing = read_rows(results / EPISODES_FILE)
    if existing and not config.resume:
        raise RunError(
            f"{results} holds {len(existing)} rows already: add --resume to run what is missing or errored, "
            "--clean to start over, or give another --name"
        )
    results.mkdir(parents=True, exist_ok=True)
    _write_config(config, results)
    for cell in cells:
        _claim(results, cell, resume=config.resume)
    kept = {key_of(row): row for row in existing if row["outcome"] in KEPT}
    if config.resume:
        kept = _drop_rows_without_trace(results, kept)
        rewrite_lines(
            results / EPISODES_FILE,
            (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in kept.values()),
        )
    (results / EPISODES_FILE).touch()
    return kept


LOCK_SECONDS = 5.0
"""How long a folder may be held by what a killed run had just forked, which has the run's lock until it
executes its program."""


@contextlib.contextmanager
def sole_writer(results: Path) -> Iterator[None]:
    """Holds the folder against a second run, which would tear this one's files when it resumes."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with (results.parent / f".{results.name}.lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise RunError(f"another run is writing {results}: wait for it, or give another --name")
            time.sleep(0.05)
        yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cell_dir(results: Path, cell: Cell) -> Path:
    return results / "cells" / cell.id


def _claim(results: Path, cell: Cell, *, resume: bool) -> None:
    """Create a cell's folder, or check that an existing one was made with the same settings."""
    directory = cell_dir(results, cell)
    path = directory / CELL_FILE
    fingerprint = json.loads(json.dumps(cell.fingerprint))
    if resume and path.exists():
        saved = json.loads(path.read_text())
        if saved != fingerprint:
            changed = sorted(_differences(saved, fingerprint))
            raise RunError(
                f"--resume: the settings of {cell.id} have changed ({'; '.join(changed[:4])}): its rows "
                "would not "
                "be comparable. Undo the change, or give another --name"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TRACES_FILE).write_bytes(b"")
    rewrite_lines(path, [json.dumps(fingerprint, indent=2).encode() + b"\n"])


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line
            for key in a.keys() | b.keys()
            for line in _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if a == b else [f"{prefix}: {a!r} -> {b!r}"]


def _drop_rows_without_trace(results: Path, kept: dict[Key, Row]) -> dict[Key, Row]:
    """Rewrite every traces file to the episodes of kept rows; a row whose trace was lost is run again."""
    wanted = {row["episode_id"] for row in kept.values()}
    found: set[str] = set()
    for path in (results / "cells").glob(f"*/{TRACES_FILE}"):
        lines = []
        for line in path.read_bytes().splitlines():
            try:
                episode_id = from_json(line)["id"]
            except (ValueError, KeyError, TypeError):
                continue  # the torn line of a kill
            if episode_id in wanted and episode_id not in found:
                found.add(episode_id)
                lines.append(line + b"\n")
        rewrite_lines(path, lines)
    return {key: row for key, row in kept.items() if row["episode_id"] in found}


def _write_config(config: EvalConfig, results: Path) -> None:
    """The config with its overrides, runnable again with `rlm-eval @ RESULTS/config.toml --resume`."""

    def without_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_none(item) for key, item in value.items() if item is not None}
        if isinstance(value, list):
            return [without_none(item) for item in value]
        return value

    data = without_none(config.model_dump(mode="json", exclude_unset=True) | {"name": config.name})
    if config.num_tasks is None:
        data["num_tasks"] = "None"  # TOML has no null, and unset means 50
    if config.abort_after_errors is None:
        data["abort_after_errors"] = "None"
    (results / CONFIG_FILE).write_text(tomli_w.dumps(data))
