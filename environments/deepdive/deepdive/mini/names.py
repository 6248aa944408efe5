"""Names that exist nowhere else: the building blocks of the invented world, and a draw without repetition."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Adela Alrik Anselm Arvid Astra Bastian Benedikt Birgit Calla Casimir Cecily Clemens Cornelia Dagny "
    "Darius Edda Edmund Eilif Elspeth Emeric Esme Evander Fabian Felicia Florian Frida Gerda Gideon Greta "
    "Gustav Hanne Hector Hedvig Helmer Ida Ignace Ilse Ingram Isolde Ivo Jonas Josepha Judith Kasper "
    "Klara Konrad Leopold Lidia Linnea Lorenz Ludovic Magda Marius Matilda Maud Mikael Nils Nora Octavia "
    "Olaf Orsola Oskar Otto Paulina Petra Quentin Ragnar Renata Roland Rosamund Rufus Sabina Selma Sigrid "
    "Silvan Sophus Stella Sunniva Tancred Thea Tobias Ulla Ulrik Ursula Valentin Vera Viggo Viola "
    "Walburga Wenzel Wilma Xaver Yngve Ysolde Zacharias Zelda"
)

_SUR_HEAD = _words(
    "Ald Ambr Ask Bel Berg Brack Cald Corv Dahl Dorn Eck Esk Fal Fenn Gal Grim Hal Hart Hess Ild Jar "
    "Karsk Kel Kest Lang Lind Lor Mal Merr Mor Nord Oster Pell Quar Rav Roth Sand Sel Skar Sol Stav Tarn "
    "Thal Tor Ulv Var Vel Vest Wald Wend Wick Yar"
)
_SUR_TAIL = _words(
    "ander berg bäck by dahl e ell en ering eau feldt gaard grave holm horn ik ing lund mark mere mond "
    "nes olt quist ric røn sen skold ström thorne urne vane wald wick worth"
)
_TOWN_TAIL = _words(
    "borg bridge by dale fell ford gate hamn haven holt mouth minster ness port stead vik ware wick"
)
_RIVER_TAIL = _words("ra le na sse va dda mme ske")

REGIONS = (
    "Sable Coast", "Upper Karsk", "Lower Karsk", "Vennish Lakes", "Marrow Hills", "Tessaly Plain",
    "Orm Islands", "Grey Marches",
)  # fmt: skip
FEATURES = _words("Bay Cape Glacier Strait Island Fjord Mount Sound Plateau Inlet")
SHIPS = _words(
    "Amaranth Argent Bellwether Calliope Constance Corsair Daybreak Evensong Falconer Gannet Halcyon "
    "Harrier Kittiwake Lodestar Meridian Nightjar Obelisk Petrel Pilgrim Quicksilver Resolute Sandpiper "
    "Solstice Tempest Undine Vanguard Wayfarer Zephyr"
)
ANIMALS = _words(
    "tern petrel auk lamprey char sculpin limpet whelk urchin starfish moss lichen poppy saxifrage beetle "
    "moth vole hare seal skate krill jellyfish"
)
LOOKS = _words(
    "banded pale crested dusky golden spotted long-tailed silver blue-footed bearded veined slender "
    "horned ringed ashen rust-backed glassy lesser great solitary"
)
GENERA = _words(
    "Alcaris Borealis Cryonema Dorsalia Emberella Frigidia Glaciola Hyperborea Isolaria Kelpina Limosa "
    "Marginella Nivalis Orcula Polaria Ranunca Salvelia Tundrella Ultima Veronema"
)
EPITHETS = _words(
    "albida borealis crispa decora elegans fulva gracilis hirta insularis lata minor nigra obscura parva "
    "rara serena tarda ultima vaga vulgaris"
)
FIELDS = (
    "botanist", "geologist", "astronomer", "oceanographer", "cartographer", "zoologist", "glaciologist",
    "meteorologist", "physician", "engraver", "ethnographer", "naval architect",
)  # fmt: skip
GENRES = ("travel memoir", "natural history", "treatise", "novel", "atlas", "collection of letters")
WORK_HEAD = _words("Notes Letters Reflections Observations Essays Conversations Sketches Inquiries")
WORK_TOPIC = (
    "the Ice Margin", "Northern Light", "the Drowned Valleys", "Magnetic Winters", "the Lives of Seabirds",
    "Tides and Their Causes", "a Winter Ashore", "Salt and Stone", "the Silent Shore", "Uncharted Water",
    "the Colour of Ice", "Slow Rivers", "the Keeper of Instruments", "Moss and Memory", "the Long Night",
)  # fmt: skip
INSTITUTES = (
    "Institute of Hydrography", "Academy of Sciences", "School of Navigation", "Botanical Institute",
    "Observatory", "Geographical Society", "Polar Institute", "College of Medicine",
    "Museum of Natural History", "Institute of Geodesy",
)  # fmt: skip
PRIZES = (
    "Amber Sextant", "Northlight Medal", "Tidewater Prize", "Silver Astrolabe", "Cartographers' Wreath",
    "Hollin Medal", "Winter Prize for Letters", "Sounding Line Award",
)  # fmt: skip


def slug(text: str) -> str:
    """A name as it stands in a URL: ASCII, lower case, words joined by hyphens."""
    text = text.replace("ø", "o").replace("Ø", "O").replace("æ", "ae")
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "-".join("".join(c if c.isalnum() else " " for c in plain.lower()).split())


class Names:
    """Draws from one generator; no name is given twice, nor two with the same slug."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def _fresh(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if slug(name) not in self._used:
                self._used.add(slug(name))
                return name

    def surname(self) -> str:
        return self._rng.choice(_SUR_HEAD) + self._rng.choice(_SUR_TAIL)

    def person(self) -> str:
        return self._fresh(lambda: f"{self._rng.choice(FIRST)} {self.surname()}")

    def town(self) -> str:
        return self._fresh(lambda: self._rng.choice(_SUR_HEAD) + self._rng.choice(_TOWN_TAIL))

    def river(self) -> str:
        return self._fresh(lambda: f"{self._rng.choice(_SUR_HEAD)}{self._rng.choice(_RIVER_TAIL)}")

    def feature(self) -> str:
        def make() -> str:
            kind = self._rng.choice(FEATURES)
            stem = self.surname()
            return f"{kind} {stem}" if kind in ("Cape", "Mount") else f"{stem} {kind}"

        return self._fresh(make)

    def species(self) -> tuple[str, str]:
        """(common name, Latin name)."""
        common = self._fresh(lambda: f"{self._rng.choice(LOOKS)} {self._rng.choice(ANIMALS)}")
        latin = self._fresh(lambda: f"{self._rng.choice(GENERA)} {self._rng.choice(EPITHETS)}")
        return common, latin

    def work(self) -> str:
        joint = {"Letters": "from", "Sketches": "of"}

        def make() -> str:
            head = self._rng.choice(WORK_HEAD)
            return f"{head} {joint.get(head, 'on')} {self._rng.choice(WORK_TOPIC)}"

        return self._fresh(make)
