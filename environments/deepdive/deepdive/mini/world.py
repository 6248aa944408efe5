"""The invented world: towns, people, ships, expeditions, species, books, prizes, and how they hang together.

An `Entity` is a page to be: its facts are label and value, and a value is text or another entity. Each label
occurs once on a page, so that a fact has one answer. Dates are coherent (nobody leads an expedition before
being born, no ship sails before its launch).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from deepdive.mini import names
from deepdive.mini.names import Names

HOSTS = {
    "region": "https://encyclopaedia.orrery.example/region",
    "town": "https://encyclopaedia.orrery.example/town",
    "river": "https://encyclopaedia.orrery.example/river",
    "feature": "https://encyclopaedia.orrery.example/geography",
    "person": "https://biography.orrery.example/person",
    "ship": "https://register.harbourmasters.example/ship",
    "expedition": "https://www.northern-society.example/expedition",
    "report": "https://www.northern-society.example/report",
    "species": "https://naturalia.example/species",
    "work": "https://catalogue.city-library.example/work",
    "institute": "https://learned-bodies.example/institute",
    "museum": "https://learned-bodies.example/museum",
    "prize": "https://learned-bodies.example/prize",
    "index": "https://encyclopaedia.orrery.example/index",
}


@dataclass(eq=False)
class Entity:
    kind: str
    title: str
    facts: dict[str, str | Entity] = field(default_factory=dict)
    year: int = 0
    """Birth, founding, launch or departure: what coherence is checked by."""

    @property
    def url(self) -> str:
        return f"{HOSTS[self.kind]}/{names.slug(self.title)}{'.pdf' if self.kind == 'report' else ''}"

    def value(self, label: str) -> str:
        """The fact as text."""
        fact = self.facts[label]
        return fact if isinstance(fact, str) else fact.title


class World:
    """Built in `__init__` from the seed; `entities` in a fixed order."""

    def __init__(self, seed: int = 20) -> None:
        self.rng = random.Random(seed)
        self.names = Names(self.rng)
        self.entities: list[Entity] = []
        self._places()
        self._people()
        self._institutes()
        self._lives()
        self._ships()
        self._features()
        self._expeditions()
        self._species()
        self._works()
        self._prizes()
        self._museums()
        self._firsts()

    def of(self, kind: str) -> list[Entity]:
        return [entity for entity in self.entities if entity.kind == kind]

    def _add(self, kind: str, title: str, year: int = 0) -> Entity:
        entity = Entity(kind, title, year=year)
        self.entities.append(entity)
        return entity

    def _pick(self, candidates: list[Entity], *avoid: Entity) -> Entity:
        return self.rng.choice([item for item in candidates if item not in avoid])

    def _alive(self, year: int, low: int = 24, high: int = 68) -> list[Entity]:
        """People between the two ages in that year."""
        return [p for p in self.of("person") if low <= year - p.year <= high]

    def _places(self) -> None:
        rng = self.rng
        regions = [self._add("region", name) for name in names.REGIONS]
        rivers = []
        for _ in range(12):
            river = self._add("river", f"River {self.names.river()}")
            river.facts["Length"] = f"{rng.randrange(48, 610)} km"
            river.facts["Region"] = rng.choice(regions)
            rivers.append(river)
        for _ in range(46):
            town = self._add("town", self.names.town(), rng.randrange(1080, 1690))
            town.facts["Region"] = rng.choice(regions)
            town.facts["River"] = rng.choice(rivers)
            town.facts["Chartered"] = str(town.year)
            town.facts["Patron craft"] = rng.choice(
                [
                    "rope-making",
                    "glass",
                    "clockmaking",
                    "salt",
                    "shipbuilding",
                    "printing",
                    "herring",
                    "slate",
                ]
            )
        towns = self.of("town")
        for river in rivers:
            river.facts["Mouth at"] = rng.choice(towns)
        for region, capital in zip(regions, rng.sample(towns, len(regions)), strict=True):
            region.facts["Seat of government"] = capital
            capital.facts["Region"] = region
            region.facts["United in"] = str(rng.randrange(1690, 1790))

    def _people(self) -> None:
        rng = self.rng
        for _ in range(112):
            person = self._add("person", self.names.person(), rng.randrange(1770, 1884))
            person.facts["Born"] = str(person.year)
            person.facts["Birthplace"] = rng.choice(self.of("town"))
            person.facts["Profession"] = rng.choice(names.FIELDS)
        for person in self.of("person"):
            older = [p for p in self.of("person") if 18 <= person.year - p.year <= 45]
            if older:
                person.facts["Studied under"] = rng.choice(older)

    def _institutes(self) -> None:
        rng = self.rng
        towns = rng.sample(self.of("town"), 20)
        for index, town in enumerate(towns):
            body = names.INSTITUTES[index % len(names.INSTITUTES)]
            founder = rng.choice([p for p in self.of("person") if p.year < 1845])
            institute = self._add("institute", f"{town.title} {body}", founder.year + rng.randrange(30, 56))
            institute.facts["Seat"] = town
            institute.facts["Founded"] = str(institute.year)
            institute.facts["Founder"] = founder
            institute.facts["Instrument"] = rng.choice(
                ["meridian circle", "tide gauge", "herbarium", "seismograph", "great refractor", "map room"]
            )

    def _lives(self) -> None:
        for person in self.of("person"):
            there = [i for i in self.of("institute") if i.year < person.year + 60] or self.of("institute")
            person.facts["Worked at"] = self.rng.choice(there)
            person.facts["Died"] = str(person.year + self.rng.randrange(58, 90))

    def _ships(self) -> None:
        rng = self.rng
        for title in names.SHIPS:
            ship = self._add("ship", title, rng.randrange(1826, 1902))
            ship.facts["Launched"] = str(ship.year)
            ship.facts["Built at"] = rng.choice(self.of("town"))
            ship.facts["Designer"] = rng.choice(self._alive(ship.year, 28, 75))
            ship.facts["Length"] = f"{rng.randrange(28, 74)} m"
            ship.facts["Rig"] = rng.choice(
                ["barque", "brig", "schooner", "steam barquentine", "topsail ketch"]
            )

    def _features(self) -> None:
        for _ in range(34):
            feature = self._add("feature", self.names.feature())
            feature.facts["Named after"] = self.rng.choice([p for p in self.of("person") if p.year < 1850])
            feature.facts["Latitude"] = f"{self.rng.randrange(61, 84)}°{self.rng.randrange(0, 60):02d}′ N"

    def _expeditions(self) -> None:
        rng = self.rng
        for destination in rng.sample(self.of("feature"), 34):
            ship = rng.choice(self.of("ship"))
            year = ship.year + rng.randrange(1, 22)
            leader = rng.choice(self._alive(year, 27, 62))
            kind = rng.choice(["Expedition", "Voyage", "Survey"])
            title = f"{leader.title.split()[-1]} {kind} of {year}"
            if any(e.title == title for e in self.of("expedition")):
                continue
            expedition = self._add("expedition", title, year)
            expedition.facts["Departed"] = str(year)
            expedition.facts["Leader"] = leader
            expedition.facts["Ship"] = ship
            expedition.facts["Destination"] = destination
            expedition.facts["Naturalist"] = self._pick(self._alive(year, 20, 70), leader)
            expedition.facts["Sponsor"] = rng.choice(self.of("institute"))
            expedition.facts["Home port"] = rng.choice(self.of("town"))
        for expedition in rng.sample(self.of("expedition"), 26):
            report = self._add("report", f"Report of the {expedition.title}", expedition.year + 1)
            report.facts["Expedition"] = expedition
            report.facts["Sledge dogs embarked"] = str(rng.randrange(11, 97))
            report.facts["Days away from port"] = str(rng.randrange(140, 890))
            report.facts["Quartermaster"] = self.names.person()
            report.facts["Winter camp"] = f"Camp {self.names.town()}"
            report.facts["Barrels of lamp oil"] = str(rng.randrange(14, 140))
            expedition.facts["Official report"] = report

    def _species(self) -> None:
        rng = self.rng
        for _ in range(36):
            common, latin = self.names.species()
            expedition = rng.choice(self.of("expedition"))
            year = expedition.year + rng.randrange(1, 11)
            species = self._add("species", common.capitalize(), year)
            species.facts["Latin name"] = latin
            species.facts["First collected by"] = expedition
            species.facts["Described"] = str(year)
            species.facts["Described by"] = self._pick(self._alive(year, 24, 75))
            species.facts["Specimen kept at"] = rng.choice(self.of("institute"))

    def _works(self) -> None:
        rng = self.rng
        for _ in range(46):
            author = rng.choice(self.of("person"))
            work = self._add("work", self.names.work(), author.year + rng.randrange(26, 58))
            work.facts["Author"] = author
            work.facts["Published"] = str(work.year)
            work.facts["Printed at"] = rng.choice(self.of("town"))
            work.facts["Genre"] = rng.choice(names.GENRES)
            work.facts["Dedicated to"] = self._pick(self.of("person"), author)
            work.facts["Pages"] = str(rng.randrange(96, 640))

    def _prizes(self) -> None:
        rng = self.rng
        for title in names.PRIZES:
            first = rng.randrange(1848, 1870)
            prize = self._add("prize", title, first)
            prize.facts["Endowed by"] = rng.choice(self._alive(first, 35, 80))
            prize.facts["Awarded by"] = rng.choice(self.of("institute"))
            for year in range(first, first + 40, 5):
                prize.facts[f"Winner {year}"] = rng.choice(self._alive(year, 28, 78))

    def _museums(self) -> None:
        rng = self.rng
        towns = rng.sample(self.of("town"), 12)
        for town, expedition in zip(towns, rng.sample(self.of("expedition"), 12), strict=True):
            museum = self._add(
                "museum", f"{town.title} Maritime Museum", expedition.year + rng.randrange(8, 30)
            )
            museum.facts["Town"] = town
            museum.facts["Opened"] = str(museum.year)
            museum.facts["Chronometer from"] = expedition
            museum.facts["First curator"] = rng.choice(self._alive(museum.year, 28, 70))

    def _firsts(self) -> None:
        """What came first for a ship or a person: links that run against the others."""
        for label, kind, through in (
            ("Maiden expedition", "expedition", "Ship"),
            ("First command", "expedition", "Leader"),
            ("First book", "work", "Author"),
        ):
            for later in sorted(self.of(kind), key=lambda entity: -entity.year):
                owner = later.facts[through]
                assert isinstance(owner, Entity)
                same_year = [e for e in self.of(kind) if e.facts[through] is owner and e.year == later.year]
                if len(same_year) == 1:
                    owner.facts[label] = later
                else:
                    owner.facts.pop(label, None)
