"""Where every trace of a results folder lies.

The idea: read each file once, keep a small row and a byte range per trace, and read a trace's line again
only when somebody opens it. ``refresh`` continues where it stopped, so a run that is still writing shows up
as it goes; a file that was replaced (a resumed run rewrites its own) starts a new ``generation``, upon which
a page reloads its list.

Invariant: ``rows`` only grows within a generation, and ``rows[i]`` never changes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from eval.viewer import summary
from eval.viewer.jsonl import BadLineError, finished_lines, parse
from eval.viewer.shapes import mapping, records, text

MAX_PROBLEMS = 50
"""Broken lines kept to be shown; the rest is only counted."""


class NoTracesError(Exception):
    """The folder cannot be shown; the message says what to do."""


class MovedError(Exception):
    """The trace is no longer where it was: its file was rewritten or removed."""


@dataclass(frozen=True, slots=True)
class Place:
    """A trace's line in its file, and its position in that line when the line is an episode of several."""

    path: Path
    offset: int
    length: int
    position: int | None
    trace_id: str


@dataclass
class _File:
    path: Path
    relative: PurePosixPath
    identity: tuple[int, int] = (0, 0)
    read: int = 0
    """Bytes read so far, always at the start of a line."""
    lines: int = 0
    foreign: bool = False
    """Its first line is no trace: another kind of JSONL, left alone until it is replaced."""
    keys: list[str] = field(default_factory=list)


class TraceIndex:
    """The traces under ``root``, a folder or one ``.jsonl`` file. Safe to use from several threads."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.generation = 0
        self.rows: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.problem_count = 0
        self.scanned = False
        """Whether a whole ``refresh`` has been through."""
        self._places: dict[str, tuple[Place, dict[str, Any]]] = {}
        self._files: dict[Path, _File] = {}
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()

    # --- building -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ``NoTracesError``, with the cure, when there is nothing to show and nothing to wait for."""
        if not self.root.exists():
            raise NoTracesError(
                f"{self.root} does not exist. Give the folder that an evaluation wrote (rlm-eval prints it "
                "at its end; vf-eval's is under outputs/), or a .jsonl file of traces."
            )
        paths = self._paths()
        if not paths:
            raise NoTracesError(
                f"no .jsonl file under {self.root}. Traces are written as traces.jsonl in a run's folder: "
                "give that folder or one above it, or make one with `rlm-eval @ configs/eval/offline.toml`."
            )
        # An empty file is a run that has just begun, which is worth waiting for.
        if not any(path.stat().st_size == 0 or _starts_with_trace(path) for path in paths):
            raise NoTracesError(
                f"{len(paths)} .jsonl file(s) under {self.root}, but none holds verifiers traces (the first "
                f"is {paths[0]}). Give the folder with traces.jsonl files."
            )

    def refresh(self) -> None:
        """Read what is new on disk. Rows appear as they are read."""
        with self._refreshing:
            paths = self._paths()
            replaced = [file for file in self._files.values() if _identity(file) != file.identity]
            if replaced or set(self._files) - set(paths):
                with self._lock:
                    self.generation += 1
                    self.rows, self.problems, self.problem_count = [], [], 0
                    self._places, self._files = {}, {}
            for path in paths:
                if path not in self._files:
                    self._files[path] = self._new_file(path)
                self._read(self._files[path])
            self.scanned = True

    def _paths(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        found = [
            Path(folder, name)
            for folder, folders, names in os.walk(self.root)
            for name in names
            if name.endswith(".jsonl")
        ]
        return sorted(path for path in found if path.is_file())

    def _new_file(self, path: Path) -> _File:
        relative = path.name if path == self.root else path.relative_to(self.root).as_posix()
        file = _File(path, PurePosixPath(relative))
        file.identity = _identity(file) or (0, 0)
        return file

    def _read(self, file: _File) -> None:
        if file.foreign:
            return
        try:
            for offset, line in finished_lines(file.path, file.read):
                file.lines += 1
                self._add_line(file, offset, line)
                file.read = offset + len(line) + 1
                if file.foreign:
                    return
        except OSError as error:
            self._problem(f"{file.relative}: {error.strerror or error}")

    def _add_line(self, file: _File, offset: int, line: bytes) -> None:
        try:
            parsed = parse(line)
        except BadLineError as error:
            self._problem(f"{file.relative}, line {file.lines}: not JSON ({error})")
            return
        traces = traces_of(parsed)
        if traces is None:
            if not file.keys:
                file.foreign = True
            else:
                self._problem(f"{file.relative}, line {file.lines}: not a trace")
            return
        stem = hashlib.blake2b(str(file.relative).encode(errors="replace"), digest_size=5).hexdigest()
        for number, (position, record) in enumerate(traces):
            key = f"{stem}-{offset}-{number}"
            place = Place(file.path, offset, len(line), position, text(record, "id"))
            try:
                row = summary.row(record, parsed if position is not None else {}, file.relative, key)
            except Exception as error:  # one record nobody could foresee must not hide the others
                self._problem(f"{file.relative}, line {file.lines}: {type(error).__name__}: {error}")
                continue
            with self._lock:
                self._places[key] = (place, row)
                self.rows.append(row)
            file.keys.append(key)

    def _problem(self, message: str) -> None:
        with self._lock:
            self.problem_count += 1
            if len(self.problems) < MAX_PROBLEMS and message not in self.problems:
                self.problems.append(message)

    # --- reading ------------------------------------------------------------------------------------

    def since(self, generation: int, start: int) -> dict[str, Any]:
        """What a page that holds ``start`` rows of ``generation`` lacks."""
        with self._lock:
            first = start if generation == self.generation and 0 <= start <= len(self.rows) else 0
            return {
                "root": str(self.root),
                "generation": self.generation,
                "from": first,
                "total": len(self.rows),
                "scanned": self.scanned,
                "problems": list(self.problems),
                "problem_count": self.problem_count,
                "rows": self.rows[first:],
            }

    def line(self, key: str) -> bytes:
        """The line, as it is on disk, that holds the trace ``key``.

        Raises ``KeyError`` for a key that is not in the index, ``MovedError`` when the file has changed.
        """
        with self._lock:
            place, _ = self._places[key]
        return _line_at(place)

    def trace(self, key: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """``(trace record, the episode around it, its row)`` for ``key``; the episode is empty for a trace
        that is a line of its own. Raises as ``line``."""
        with self._lock:
            place, row = self._places[key]
        try:
            parsed = parse(_line_at(place))
        except BadLineError:
            raise MovedError(f"{place.path} was rewritten") from None
        traces = traces_of(parsed) or []
        for position, record in traces:
            if position == place.position and text(record, "id") == place.trace_id:
                return record, parsed if position is not None else {}, row
        raise MovedError(f"{place.path} was rewritten")


def traces_of(parsed: dict[str, Any]) -> list[tuple[int | None, dict[str, Any]]] | None:
    """The trace records in one line with their positions: ``[(None, line)]`` for a trace, one for each
    agent's trace of an episode (an episode that failed before any trace gives one bare record, so that its
    error is seen), ``None`` for anything else."""
    if isinstance(parsed.get("nodes"), list) and isinstance(parsed.get("task"), dict):
        return [(None, parsed)]
    if isinstance(parsed.get("traces"), list) and isinstance(parsed.get("task"), dict):
        found = [(i, trace) for i, trace in enumerate(parsed["traces"]) if isinstance(trace, dict)]
        return list(found) or [(-1, _bare_trace(parsed))]
    return None


def _bare_trace(episode: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": text(episode, "id"),
        "task": mapping(episode, "task"),
        "ok": False,
        "is_completed": True,
        "is_timeout": episode.get("is_timeout") is True,
        "errors": records(episode, "errors"),
        "nodes": [],
    }


def _line_at(place: Place) -> bytes:
    try:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            line = file.read(place.length)
    except OSError as error:
        raise MovedError(f"{place.path}: {error.strerror or error}") from None
    if len(line) != place.length:
        raise MovedError(f"{place.path} has become shorter")
    return line


def _identity(file: _File) -> tuple[int, int] | None:
    """What changes when a file is replaced rather than appended to."""
    try:
        status = file.path.stat()
    except OSError:
        return None
    return None if status.st_size < file.read else (status.st_dev, status.st_ino)


def _starts_with_trace(path: Path) -> bool:
    for _, line in finished_lines(path, 0):
        try:
            return traces_of(parse(line)) is not None
        except BadLineError:
            continue
    return True
