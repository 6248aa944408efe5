"""Entities written down: HTML pages in the styles of several sites, and reports as PDF.

A page states each fact twice, in a table and in prose with links, among sentences that carry no facts.
"""

from __future__ import annotations

import html
import random
import zlib
from dataclasses import dataclass

from deepdive.mini.world import Entity, World

_SENTENCES: dict[tuple[str, str], tuple[str, ...]] = {
    ("town", "Region"): ("{t} lies in the {v}.", "The town belongs to the {v}."),
    ("town", "River"): ("It stands on the {v}.", "The {v} runs through the town."),
    ("town", "Chartered"): ("Its charter dates from {v}.",),
    ("town", "Patron craft"): ("For centuries it was known for {v}.",),
    ("river", "Mouth at"): ("It reaches the sea at {v}.",),
    ("river", "Region"): ("Its springs are in the {v}.",),
    ("region", "Seat of government"): ("The region is governed from {v}.",),
    ("feature", "Named after"): ("The name honours {v}.", "It is named after {v}."),
    ("person", "Birthplace"): ("{t} was born in {v}.", "{v} was the birthplace of {t}."),
    ("person", "Profession"): ("By profession {t} was a {v}.",),
    ("person", "Studied under"): ("{v} was the teacher who mattered most.", "{t} studied under {v}."),
    ("person", "Worked at"): ("Most of the working life was spent at the {v}.",),
    ("person", "First command"): ("The first command was the {v}.",),
    ("person", "First book"): ("The first book to appear was {v}.",),
    ("ship", "Maiden expedition"): ("Her first voyage to the north was the {v}.",),
    ("ship", "Built at"): ("The {t} was built at {v}.", "She came from the yard at {v}."),
    ("ship", "Designer"): ("Her lines were drawn by {v}.",),
    ("ship", "Launched"): ("She was launched in {v}.",),
    ("expedition", "Leader"): ("It was led by {v}.", "Command was given to {v}."),
    ("expedition", "Ship"): ("The party sailed in the {v}.",),
    ("expedition", "Destination"): ("Its aim was {v}.", "The course was set for {v}."),
    ("expedition", "Naturalist"): ("{v} went along as naturalist.",),
    ("expedition", "Sponsor"): ("The {v} paid for it.",),
    ("expedition", "Home port"): ("The ship left from {v}.",),
    ("expedition", "Official report"): ("The figures are in the {v} (PDF).",),
    ("species", "First collected by"): ("The first specimens were brought home by the {v}.",),
    ("species", "Described by"): ("It was described by {v}.",),
    ("species", "Specimen kept at"): ("The type specimen is kept at the {v}.",),
    ("work", "Author"): ("The book was written by {v}.",),
    ("work", "Dedicated to"): ("It carries a dedication to {v}.",),
    ("work", "Printed at"): ("The first edition was printed at {v}.",),
    ("institute", "Seat"): ("The house is in {v}.",),
    ("institute", "Founder"): ("It goes back to {v}.",),
    ("museum", "Chronometer from"): ("Its pride is the chronometer of the {v}.",),
    ("museum", "First curator"): ("{v} was the first curator.",),
    ("prize", "Endowed by"): ("The capital was given by {v}.",),
    ("prize", "Awarded by"): ("The winner is chosen by the {v}.",),
}
_FILLER = (
    "Little else is recorded in the surviving papers, and what there is has been copied many times.",
    "Visitors of the time praised the light in the early morning and complained about the harbour dues.",
    "The older literature contains several errors that later editors have put right.",
    "A longer account was planned but never printed.",
    "Opinions on this differed widely at the time, and the newspapers took sides.",
    "The archives hold two boxes of letters that have not been read in full.",
    "It has been the subject of a small exhibition and of many school essays.",
    "Weather tables from these years are complete except for one winter.",
    "Much of this is known from a diary that turned up in an attic a century later.",
    "The accounts were kept in three currencies, which has not made matters easier.",
    "A bronze tablet recalls the event, although the date on it is hard to read.",
    "Local tradition adds a white dog to the story, for which there is no evidence.",
)
_LABELS = {
    "region": "region", "town": "town", "river": "river", "feature": "place in the north", "person": "person",
    "ship": "ship", "expedition": "expedition", "species": "species", "work": "book",
    "institute": "learned body", "museum": "museum", "prize": "prize",
}  # fmt: skip
_LATIN1_SITES = ("work",)
"""Served in windows-1252 with only the page itself saying so, as old catalogues are."""


@dataclass(frozen=True)
class Document:
    url: str
    title: str
    content_type: str
    body: bytes


def write(world: World) -> list[Document]:
    """Every page of the world's web, in a fixed order."""
    rng = random.Random(world.rng.random())
    mentions: dict[int, list[Entity]] = {}
    for entity in world.entities:
        for value in entity.facts.values():
            if isinstance(value, Entity) and entity.kind != "report":
                mentions.setdefault(id(value), []).append(entity)
    documents = [
        _pdf(entity, rng) if entity.kind == "report" else _html(entity, mentions.get(id(entity), []), rng)
        for entity in world.entities
    ]
    return documents + _indexes(world)


def _link(entity: Entity) -> str:
    return f'<a href="{entity.url}">{html.escape(entity.title)}</a>'


def _show(value: str | Entity) -> str:
    return html.escape(value) if isinstance(value, str) else _link(value)


def _prose(entity: Entity, rng: random.Random) -> list[str]:
    sentences = []
    for label, value in entity.facts.items():
        choices = _SENTENCES.get((entity.kind, label))
        if choices:
            shown = _show(value)
            sentence = rng.choice(choices).replace("{t}", html.escape(entity.title)).replace("{v}", shown)
            sentences.append(sentence)
    rng.shuffle(sentences)
    for filler in rng.sample(_FILLER, 5):
        sentences.insert(rng.randrange(len(sentences) + 1), filler)
    half = (len(sentences) + 1) // 2
    return [" ".join(sentences[:half]), " ".join(sentences[half:])]


def _html(entity: Entity, mentioned_by: list[Entity], rng: random.Random) -> Document:
    title = html.escape(entity.title)
    rows = "\n".join(
        f"<tr><th>{html.escape(label)}</th><td>{_show(value)}</td></tr>"
        for label, value in entity.facts.items()
    )
    paragraphs = "\n".join(f"<p>{text}</p>" for text in _prose(entity, rng))
    related = rng.sample(mentioned_by, min(6, len(mentioned_by)))
    see_also = ""
    if related:
        items = "\n".join(f"<li>{_link(other)} ({_LABELS[other.kind]})</li>" for other in related)
        see_also = f"<h2>Mentioned in</h2>\n<ul>\n{items}\n</ul>"
    charset = "windows-1252" if entity.kind in _LATIN1_SITES else "utf-8"
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="{charset}"><title>{title} ({_LABELS[entity.kind]})</title></head>
<body><nav><a href="/">Home</a> <a href="/about">About this site</a></nav>
<main><article><h1>{title}</h1>
<table class="facts"><caption>{title}</caption>
{rows}
</table>
{paragraphs}
{see_also}
</article></main>
<footer><p>Every word of this site is invented.</p></footer></body></html>
"""
    # Old sites say nothing in the header, so that a reader has to look into the page.
    content_type = "text/html" if entity.kind in _LATIN1_SITES else "text/html; charset=utf-8"
    body = text.encode("cp1252" if entity.kind in _LATIN1_SITES else "utf-8", "xmlcharrefreplace")
    return Document(entity.url, entity.title, content_type, body)


def _indexes(world: World) -> list[Document]:
    """Lists of everything of a kind: the way in for whoever does not search."""
    documents = []
    for kind, label in _LABELS.items():
        listed = sorted(world.of(kind), key=lambda entity: entity.title)
        items = "\n".join(f"<li>{_link(entity)}</li>" for entity in listed)
        title = f"List of entries: {label}"
        text = (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
            f"<body><main><h1>{title}</h1>\n<p>All {len(listed)} entries of this kind, by name.</p>\n"
            f"<ul>\n{items}\n</ul></main></body></html>\n"
        )
        url = f"https://encyclopaedia.orrery.example/index/{kind}"
        documents.append(Document(url, title, "text/html; charset=utf-8", text.encode()))
    return documents


def _pdf(entity: Entity, rng: random.Random) -> Document:
    lines = [entity.title, "Printed for the Northern Society", ""]
    for label, value in entity.facts.items():
        lines.append(f"{label}: {value if isinstance(value, str) else value.title}")
    lines += ["", *rng.sample(_FILLER, 4)]
    second = ["Appendix", "", *rng.sample(_FILLER, 3), "The tables of soundings are not printed here."]
    return Document(entity.url, entity.title, "application/pdf", pdf([lines, second], entity.title))


def pdf(pages: list[list[str]], title: str) -> bytes:
    """A PDF 1.4 file with one text page for each list of lines (Helvetica, windows-1252)."""

    def text(value: str) -> bytes:
        raw = value.encode("cp1252", "replace")
        return b"(" + raw.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b")"

    objects: list[bytes] = [
        b"",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    kids = []
    for lines in pages:
        stream = (
            b"BT /F1 11 Tf 14 TL 60 780 Td " + b" ".join(text(line) + b" Tj T*" for line in lines) + b" ET"
        )
        packed = zlib.compress(stream, 9)
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)
        )
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    objects.append(b"<< /Title %s >>" % text(title))
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n" % (len(objects) + 1, len(objects))
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)
