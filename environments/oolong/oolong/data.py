"""The rows: the real data from Hugging Face, or the generated mini split.

Each comes as a `datasets.Dataset` with the columns of the real data, and everything after `table` is the same
for all. Texts are up to 4 million tokens long and every text is repeated for each of its questions, so
they are left in the (memory-mapped) table: an index of the rows without them is filtered and drawn from, and
`read_context` fetches one when its episode begins.

Columns (https://huggingface.co/datasets/oolongbench/oolong-synth, .../oolong-real):

    synth  id context_len dataset context_window_id num_labels context_window_text
           context_window_text_with_labels question answer task_group task answer_type input_subset
    real   id context_window_id context_window_text question answer question_type episodes campaign
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import pyarrow.compute
from pydantic import BaseModel, ConfigDict

from oolong import mini

if TYPE_CHECKING:
    from datasets import Dataset

Subset = Literal["synth", "synth_with_labels", "real"]
SUBSETS: tuple[Subset, ...] = ("synth", "synth_with_labels", "real")
MINI = "mini"
CHARS_PER_TOKEN = 4
"""For the length of real texts, whose data does not give it in tokens."""

_TEXT_COLUMNS = ("context_window_text", "context_window_text_with_labels")
_NEEDED = {
    "synth": {"id", "context_len", "dataset", "question", "answer", "answer_type", *_TEXT_COLUMNS},
    "real": {"id", "question", "answer", "question_type", _TEXT_COLUMNS[0]},
}


class Source(BaseModel):
    """Where rows are. It travels in a task's data, so that any process that has it finds the text."""

    model_config = ConfigDict(frozen=True)

    subset: Subset
    dataset: str
    """Name on Hugging Face; `mini` for the generated rows."""
    config: str
    """`default` for the synth data, `dnd` or `toy_dnd` for the real data."""
    split: str
    revision: str | None = None

    @property
    def kind(self) -> Literal["synth", "real"]:
        return "real" if self.subset == "real" else "synth"

    @property
    def column(self) -> str:
        """The column with the text."""
        return _TEXT_COLUMNS[self.subset == "synth_with_labels"]

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.config}/{self.split}/{self.subset}"


@dataclass(frozen=True)
class Row:
    source: Source
    index: int
    """Position in the split."""
    id: str
    question: str
    answer: str
    """As in the data: a Python list as text (synth), or plain text (real)."""
    dataset: str
    """synth: the classification set. real: the campaign."""
    context_len: int | None
    """Tokens, as the synth data gives them. real: None until measured, then characters / 4."""
    context_chars: int | None = None
    """None until measured."""
    window: str = ""
    """Id of the text; rows that share it ask about the same text."""
    task_group: str = ""
    """synth: `counting`, `user` or `timeline`. real: the question type."""
    task: str = ""
    """synth: for example `TASK_TYPE.MOST_FREQ`. real: the question type."""
    answer_type: str = ""
    """synth: for example `ANSWER_TYPE.NUMERIC`. real: empty; the answer itself tells."""


@lru_cache(maxsize=8)
def _table(kind: str, name: str, config: str, split: str, revision: str | None) -> Dataset:
    import datasets  # takes seconds

    if name == MINI:
        return datasets.Dataset.from_list(mini.rows(config if kind == "real" else "synth"))
    try:
        loaded = datasets.load_dataset(
            name, None if config == "default" else config, split=split, revision=revision
        )
    except Exception as error:
        raise RuntimeError(
            f"could not load {name} ({config}, {split}): {error}. Check the network, the split (the data has "
            f'test and validation) and the free disk (synth takes about 12 GB), or set split = "mini" for '
            "generated rows of the same schema"
        ) from error
    missing = _NEEDED[kind] - set(loaded.column_names)
    if missing:
        raise ValueError(
            f"{name} ({config}) has no column {sorted(missing)}; it has {sorted(loaded.column_names)}. Set "
            f"{kind}_dataset to data with the columns of oolongbench/oolong-{kind}"
        )
    return loaded


def table(source: Source) -> Dataset:
    """All columns of a source, opened once a process; both synth subsets share one."""
    return _table(source.kind, source.dataset, source.config, source.split, source.revision)


def read_context(source: Source, index: int) -> str:
    """The text of one row, with labels or without."""
    return str(table(source).data.column(source.column)[index].as_py())


def read_rows(source: Source) -> list[Row]:
    """The index of a source: its rows without texts."""
    whole = table(source)
    light = whole.select_columns([name for name in whole.column_names if name not in _TEXT_COLUMNS])
    return [
        Row(
            source=source,
            index=index,
            id=str(row["id"]),
            question=row["question"],
            answer=str(row["answer"]),
            dataset=str(row.get("campaign", "real") if source.kind == "real" else row["dataset"]),
            context_len=None if source.kind == "real" else int(row["context_len"]),
            window=str(row.get("context_window_id", "")),
            task_group=str(row.get("question_type" if source.kind == "real" else "task_group", "")),
            task=str(row.get("question_type" if source.kind == "real" else "task", "")),
            answer_type=str(row.get("answer_type", "")),
        )
        for index, row in enumerate(light)
    ]


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows with their texts' length in characters, and in tokens where the data does not say."""
    result = []
    for row in rows:
        text = table(row.source).data.column(row.source.column)[row.index]
        chars = int(pyarrow.compute.utf8_length(text).as_py())
        tokens = row.context_len if row.context_len is not None else -(-chars // CHARS_PER_TOKEN)
        result.append(replace(row, context_chars=chars, context_len=tokens))
    return result


def select(
    rows: Sequence[Row],
    *,
    datasets: Sequence[str] | None,
    context_lens: Sequence[int] | None,
    min_context_len: int | None,
    max_context_len: int | None,
) -> list[Row]:
    """The rows of the named sets and lengths (tokens, bounds inclusive); None does not filter.

    Raises:
        ValueError: a set that no row is of.
    """
    kept = list(rows)
    if datasets is not None:
        known = sorted({row.dataset for row in rows})
        unknown = sorted(set(datasets) - set(known))
        if unknown:
            raise ValueError(f"datasets = {list(datasets)}: no rows of {unknown}; there are {known}")
        kept = [row for row in kept if row.dataset in datasets]
    if context_lens is None and min_context_len is None and max_context_len is None:
        return kept
    # Measuring reads a text: of the real data each, of the synth data none.
    lengths = [row.context_len or measured([row])[0].context_len or 0 for row in kept]
    return [
        row
        for row, length in zip(kept, lengths, strict=True)
        if (context_lens is None or length in context_lens)
        and (min_context_len is None or length >= min_context_len)
        and (max_context_len is None or length <= max_context_len)
    ]


def draw(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """`count` rows uniformly at random: the first ones of a seeded shuffle, so that a larger draw with the
    same seed contains a smaller one. (The data is sorted by size: its first rows are its shortest.) None
    gives all of them, in the shuffle's order.

    Raises:
        ValueError: fewer rows than asked for.
    """
    if count is not None and count > len(rows):
        raise ValueError(
            f"num_tasks = {count}, but only {len(rows)} questions are left by subset, split, datasets and "
            "the context lengths: lower num_tasks or widen those"
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order[:count]]
