"""The rows: the real data from Hugging Face, or the generated mini split that ships with the package.

Both have the schema of `PrimeIntellect/INTELLECT-3-RL`, subset `math`: `question`, `answer`, `info` (JSON
text) and two difficulty columns, each the share of eight attempts that a 4B model got right. Everything after
the load is the same for both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

logger = logging.getLogger(__name__)

DIFFICULTIES = ("avg@8_qwen3_4b_thinking_2507", "avg@8_qwen3_4b_instruct_2507")
Difficulty = Literal["avg@8_qwen3_4b_thinking_2507", "avg@8_qwen3_4b_instruct_2507"]
Part = Literal["all", "train", "test"]


@dataclass(frozen=True)
class Row:
    index: int
    """Position in the source split, before any filter."""
    question: str
    answer: str
    """As in the data, not yet normalised."""
    info: str | None
    solve_rates: dict[str, float | None]
    """By difficulty column; None where the data has none."""


def read_mini() -> Iterator[dict[str, Any]]:
    """The rows of `data/mini.jsonl`, which `scripts/make_mini.py` writes."""
    text = resources.files("math_python").joinpath("data/mini.jsonl").read_text(encoding="utf-8")
    return map(json.loads, text.splitlines())


def read_hub(name: str, subset: str, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a Hugging Face dataset, downloaded once into the `datasets` cache."""
    from datasets import load_dataset  # takes a second, and the mini split does without

    try:
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:
        raise RuntimeError(
            f"could not load {name} ({subset}, {split}): {error}. Check the network, or set "
            f'split = "mini" for the problems that ship with the package'
        ) from error
    missing = {"question", "answer"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{name} ({subset}) has no column {sorted(missing)}; it has {sorted(dataset.column_names)}. "
            "Set dataset and subset to data with the columns question and answer"
        )
    return iter(dataset)


def parse_rows(raw: Iterator[dict[str, Any]]) -> list[Row]:
    """Typed rows; `info` is kept as JSON text, whether the data has it as text or as a structure."""
    rows = []
    for index, row in enumerate(raw):
        info = row.get("info")
        rows.append(
            Row(
                index=index,
                question=row["question"],
                answer=str(row["answer"]),
                info=info if info is None or isinstance(info, str) else json.dumps(info, default=str),
                solve_rates={column: row.get(column) for column in DIFFICULTIES},
            )
        )
    return rows


def in_test_part(question: str, fraction: float) -> bool:
    """Whether a problem belongs to the test part: by a hash of its text, so that the parts stay what they are
    when rows are added or reordered, and equal problems are in one part."""
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def select(
    rows: Sequence[Row],
    *,
    part: Part,
    test_fraction: float,
    difficulty: Difficulty | None,
    min_solve_rate: float,
    max_solve_rate: float,
) -> list[Row]:
    """The rows of one part within the difficulty bounds (inclusive); rows without a rate are left out."""
    kept = [
        row for row in rows if part == "all" or in_test_part(row.question, test_fraction) == (part == "test")
    ]
    if difficulty is None:
        return kept
    if all(row.solve_rates[difficulty] is None for row in rows):
        raise ValueError(f"the data has no column {difficulty!r}: leave out difficulty")
    rated = [row for row in kept if row.solve_rates[difficulty] is not None]
    if len(rated) < len(kept):
        logger.info(
            "%d of %d problems have no %s and are left out", len(kept) - len(rated), len(kept), difficulty
        )
    return [row for row in rated if min_solve_rate <= (row.solve_rates[difficulty] or 0.0) <= max_solve_rate]


def draw(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """`count` rows uniformly at random: the first ones of a seeded shuffle, so that a larger draw with the
    same seed contains a smaller one. None gives all of them, in the shuffle's order.

    Raises:
        ValueError: fewer rows than asked for.
    """
    if count is not None and count > len(rows):
        raise ValueError(
            f"num_tasks = {count}, but only {len(rows)} problems are left by split, part and the solve-rate "
            "bounds: lower num_tasks or widen those"
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order[:count]]
