"""Episodes of training on disk: `rollouts/part_00000/traces.jsonl`, one verifiers episode a line.

Each part is a folder as `vf-eval` writes it, so the viewer and verifiers' own tools open it. A part is closed
when it is full, the oldest parts are deleted; lines are appended whole, so a run that dies leaves readable
files. Not covered: choosing what to save (`training.rollout_loop`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import verifiers.v1 as vf

TRACES_FILE = "traces.jsonl"


class TraceStore:
    """Appends episodes to the newest part of `directory`.

    Args:
        directory: created when needed; a resumed run goes on with a new part.
        part_bytes: a part is closed when it has at least this size.
        max_parts: parts kept.
    """

    def __init__(self, directory: Path, *, part_bytes: int, max_parts: int) -> None:
        self._directory = directory
        self._part_bytes = part_bytes
        self._max_parts = max_parts
        existing = self._parts()
        self._number = int(existing[-1].name.split("_")[1]) + 1 if existing else 0

    def _parts(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("part_*") if path.is_dir())

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._directory / f"part_{self._number:05d}" / TRACES_FILE

    def append(self, episodes: Iterable[vf.Episode]) -> None:
        """Writes the episodes; token ids and log-probabilities included, raw tensors not."""
        if self.path.exists() and self.path.stat().st_size >= self._part_bytes:
            self._number += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.path, episodes)
        for old in self._parts()[: -self._max_parts]:
            shutil.rmtree(old)

    @staticmethod
    def write(path: Path, episodes: Iterable[vf.Episode]) -> None:
        """Appends the episodes to one file, as lines."""
        lines = [json.dumps(episode.to_record(), ensure_ascii=False) + "\n" for episode in episodes]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
