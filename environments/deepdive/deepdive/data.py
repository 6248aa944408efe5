"""Questions, from the Hugging Face dataset or from the package, divided and drawn by seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from deepdive.config import DeepDiveConfig
from deepdive.mini.corpus import QUESTIONS

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT = 0.1


@dataclass(frozen=True)
class Row:
    id: int
    """The dataset's own id."""
    question: str
    answer: str


def load_split(config: DeepDiveConfig) -> Dataset:
    """The whole split, in the dataset's order and schema (id, question, answer, conversations).

    Raises RuntimeError when the dataset cannot be read, with what to do about it.
    """
    from datasets import Dataset, Features, List, Value, load_dataset

    if config.split == "mini":
        text = (files("deepdive.mini") / "data" / QUESTIONS).read_text(encoding="utf-8")
        turn = {"role": Value("string"), "content": Value("string")}
        schema = Features(
            {
                "id": Value("int64"),
                "question": Value("string"),
                "answer": Value("string"),
                "conversations": List(turn),
            }
        )
        return Dataset.from_list([json.loads(line) for line in text.splitlines()], features=schema)
    try:
        return load_dataset(config.dataset, split=config.split, revision=config.dataset_revision)
    except Exception as error:
        raise RuntimeError(
            f"{config.dataset} (split {config.split}) could not be loaded: {type(error).__name__}: {error}. "
            "It needs the Hugging Face hub or its local cache; set taskset.dataset to a folder with a copy, "
            'or taskset.split = "mini" to run offline'
        ) from error


def load_rows(config: DeepDiveConfig) -> list[Row]:
    """The questions of the part that `config` names, in drawn order, `num_tasks` of them.

    The part is `datasets`' own train_test_split (10 %, `split_seed`); the draw is a shuffle with `seed`, so
    that fewer tasks are a prefix of more, and every mode and model gets the same ones.
    """
    rows = load_split(config)
    missing = {"question", "answer"} - set(rows.column_names)
    if missing:
        raise ValueError(f"{config.dataset} has no columns {sorted(missing)}; it has {rows.column_names}")
    if config.resolved_part != "all":
        parts = rows.train_test_split(test_size=HELD_OUT, seed=config.split_seed)
        rows = parts["test" if config.resolved_part == "heldout" else "train"]
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    if config.num_tasks is not None and config.num_tasks > len(order):
        raise ValueError(
            f"taskset.num_tasks = {config.num_tasks}, but split {config.split!r}, part "
            f"{config.resolved_part!r} has {len(order)} questions"
        )
    has_id = "id" in rows.column_names
    drawn = rows.select(order[: config.num_tasks])
    return [
        Row(int(row["id"]) if has_id and row["id"] is not None else index, row["question"], row["answer"])
        for index, row in zip(order, drawn, strict=False)
    ]
