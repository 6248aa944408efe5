"""Make the shipped files from the seed: `python -m deepdive.mini.build [folder]`.

`questions.jsonl` has the columns of the real dataset: id, question, answer, conversations (empty, as in its
question splits).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepdive.mini.corpus import CORPUS, QUESTIONS, pack
from deepdive.mini.pages import Document, write
from deepdive.mini.questions import Question, ask
from deepdive.mini.world import World


def build() -> tuple[list[Document], list[Question]]:
    """The pages and the questions, the same on every machine."""
    world = World()
    documents = write(world)
    return documents, ask(world, {document.url: document.body for document in documents})


def rows(questions: list[Question]) -> str:
    """The questions as JSON lines in the schema of `zai-org/DeepDive`."""
    return "".join(
        json.dumps(
            {"id": number, "question": q.question, "answer": q.answer, "conversations": []},
            ensure_ascii=False,
        )
        + "\n"
        for number, q in enumerate(questions)
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("data")
    documents, questions = build()
    folder.mkdir(parents=True, exist_ok=True)
    archive = pack(documents)
    (folder / CORPUS).write_bytes(archive)
    (folder / QUESTIONS).write_text(rows(questions), encoding="utf-8")
    pdfs = sum(document.content_type == "application/pdf" for document in documents)
    print(
        f"{len(documents)} pages ({pdfs} PDF), {len(archive):,} bytes; {len(questions)} questions in {folder}"
    )


if __name__ == "__main__":
    main()
