"""The invented world: the shipped files are the generator's, and the pages alone answer every question."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files

import pytest
import pytest_asyncio
from deepdive.mini import build
from deepdive.mini.corpus import CORPUS, QUESTIONS, Corpus, unpack
from deepdive.mini.questions import Question
from deepdive.web.errors import ToolFailure
from deepdive.web.pages import PageStore
from deepdive.web.readers import ReaderConfig, Readers
from deepdive.web.search import LocalSearch
from deepdive.web.tools import CallReport, ToolLimits, WebTools

DATA = files("deepdive.mini") / "data"


@pytest.fixture(scope="module")
def built() -> tuple[list, list[Question]]:
    return build.build()


def test_shipped_files_are_the_generator_s(built: tuple[list, list[Question]]) -> None:
    documents, questions = built
    assert unpack((DATA / CORPUS).read_bytes()) == documents
    assert (DATA / QUESTIONS).read_text(encoding="utf-8") == build.rows(questions)


def test_size_and_kinds(built: tuple[list, list[Question]]) -> None:
    documents, questions = built
    kinds = Counter(document.content_type.split(";")[0] for document in documents)
    assert kinds["text/html"] >= 300
    assert kinds["application/pdf"] >= 20
    assert len((DATA / CORPUS).read_bytes()) < 2_000_000
    assert len({document.url for document in documents}) == len(documents)
    assert len({re.sub(r"^https://([^/]+)/.*", r"\1", document.url) for document in documents}) >= 5
    assert Counter(len(question.path) for question in questions) == {2: 80, 3: 80, 4: 80}
    assert len({question.question for question in questions}) == len(questions)
    assert sum("Official report" in question.path for question in questions) >= len(questions) // 4, "PDF"


def test_no_question_holds_its_answer(built: tuple[list, list[Question]]) -> None:
    for question in built[1]:
        assert question.answer.casefold() not in question.question.casefold()


def test_questions_have_the_schema_of_the_real_data() -> None:
    rows = [json.loads(line) for line in (DATA / QUESTIONS).read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert list(row) == ["id", "question", "answer", "conversations"]
        assert row["conversations"] == []


# ---- the solver: knows the tools, and nothing of the generator


@dataclass
class Shown:
    """What a page says, read from the text that the tools show of it."""

    url: str
    title: str
    facts: dict[str, list[tuple[str, str | None]]]
    """label -> the values it is given, each with the address it links to."""
    body: str
    """The lines without their numbers."""


_ROW = re.compile(r"\d+: \|\s*([^|]+?)\s*\|\s*(.+?)\s*\|\s*")
_LINE = re.compile(r"\d+: ([A-Z][\w ]+): (.+)")
_LINK = re.compile(r"\[(.+?)\]\((\S+?)\)")


def parse(text: str) -> Shown:
    header, body = text.split("\n\n", 1)
    url = re.search(r"^URL: (.*)$", header, re.MULTILINE)
    title = re.search(r"^Title: (.*)$", header, re.MULTILINE)
    assert url
    assert title
    facts: dict[str, list[tuple[str, str | None]]] = {}
    for line in body.split("\n"):
        match = _ROW.fullmatch(line) or (_LINE.fullmatch(line) if url[1].endswith(".pdf") else None)
        if match and not set(match[1]) <= {"-"}:
            link = _LINK.fullmatch(match[2])
            facts.setdefault(match[1], []).append((link[1], link[2]) if link else (match[2], None))
    plain = re.sub(r"^\d+: ", "", body, flags=re.MULTILINE)
    return Shown(url[1], re.sub(r" \([^()]*\)$", "", title[1]), facts, plain)


@dataclass
class Library:
    tools: WebTools
    pages: dict[str, Shown]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def library() -> AsyncIterator[Library]:
    """Every page, as `open` shows it: through the same fetching, reading and cutting as in an episode."""
    readers = Readers(ReaderConfig(processes=2, seconds=300.0))
    corpus = Corpus.load()
    tools = WebTools(
        LocalSearch(corpus.documents()),
        PageStore(corpus.fetch, readers, None, "mini"),
        readers,
        None,
        ToolLimits(20_000, 10, 20),
    )
    pages = {}
    for url in corpus.pages:
        pages[url] = parse(await tools.open(url, CallReport("open")))
    yield Library(tools, pages)
    await readers.aclose()


def first_pages(library: Library, question: Question) -> list[Shown]:
    """All pages of the web that fit the question's first description."""

    def fits(page: Shown) -> bool:
        return all(
            page.title == value if label == "title" else [v for v, _ in page.facts.get(label, [])] == [value]
            for label, value in question.where
        )

    return [page for page in library.pages.values() if fits(page)]


@pytest.mark.asyncio(loop_scope="module")
async def test_every_question_has_its_one_answer_in_the_pages(
    library: Library, built: tuple[list, list[Question]]
) -> None:
    for question in built[1]:
        fitting = first_pages(library, question)
        assert len(fitting) == 1, (question, [page.url for page in fitting])
        page = fitting[0]
        for step, label in enumerate(question.path):
            values = page.facts.get(label, [])
            assert len(values) == 1, (question, page.url, label)
            value, link = values[0]
            if step < len(question.path) - 1:
                assert link in library.pages, (question, page.url, label)
                page = library.pages[link]
        assert value in (question.answer, f"{question.answer} km"), question


@pytest.mark.asyncio(loop_scope="module")
async def test_first_pages_do_not_give_the_answer_away(
    library: Library, built: tuple[list, list[Question]]
) -> None:
    for question in built[1]:
        (page,) = first_pages(library, question)
        assert question.answer not in page.body, question


@pytest.mark.asyncio(loop_scope="module")
async def test_first_pages_are_found_by_searching(
    library: Library, built: tuple[list, list[Question]]
) -> None:
    """The words of the description lead to its page: what makes the questions answerable by these tools."""
    found = 0
    for question in built[1]:
        (page,) = first_pages(library, question)
        words = " ".join(value for _, value in question.where)
        text = await library.tools.search_web([f"{words}", f"{question.kind} {words}"], 10, CallReport("s"))
        found += page.url in text
    assert found == len(built[1])


@pytest.mark.asyncio(loop_scope="module")
async def test_all_links_lead_to_pages(library: Library) -> None:
    for url, page in library.pages.items():
        for _, link in _LINK.findall(page.body):
            if not link.endswith(("/", "/about")):
                assert link in library.pages, (url, link)


async def test_what_is_not_in_the_web_is_a_404() -> None:
    with pytest.raises(ToolFailure, match="404"):
        await Corpus.load().fetch("https://encyclopaedia.orrery.example/town/nowhere")
