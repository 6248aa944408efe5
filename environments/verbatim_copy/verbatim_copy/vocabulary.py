"""The words and names that texts are made of. ASCII only, no `<` or `>`, so no text can close its own tag."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _split(
    """
    able about above across after again air all also always animal answer any apple area arm around art
    ask autumn away back bag ball bank basket beach bear before begin behind believe below best better
    between big bird black blue board boat body book both bottle box branch bread bridge bright bring
    brother brown build burn busy button buy call camp candle capital care carry castle cat catch center
    chair change cheese child choose circle city class clean clear climb clock close cloud coast coat cold
    color come common cook copper corner count country cover cross cup dance dark daughter day deep desk
    dinner door double down draw dream dress drink drive drop dry early earth east easy eat edge egg eight
    empty engine enough evening every exact eye face fall family far farm fast father feather feel fence
    field fill find finger fire first fish five flag flat floor flower fly fold follow food foot forest
    form four fox free fresh friend front fruit full garden gate gather gentle give glass gold good grain
    grass gray great green ground group grow guess half hammer hand happy harbor hard hat hear heart heavy
    hill hold hollow honey horse hot hour house hundred ice idea ink inside island iron job join journey
    jump keep kettle key kind king kitchen know ladder lake lamp language large last late laugh lead leaf
    learn leave left lemon letter level library light line lion list little long look loud low lunch
    machine map march market meadow measure meet middle milk mind minute mirror money month moon morning
    mother mountain mouth move music name narrow near needle never new next night nine north nose notice
    number ocean often oil old one open orange order other outside oval over page paint paper park part
    path peace pencil people picture piece pine place plain plan plant plate play pocket point pond poor
    potato power print public pull pure push quarter question quick quiet rain ranch reach read ready red
    rest rice rich ride right ring river road rock roof room root rope rose round row run sail salt same
    sand save say school sea second see seed send seven shade shape sharp sheep shelf ship shoe shop short
    shoulder show side silver simple sing sister six sky sleep slow small smile smoke snow soft soil some
    song soon south space speak spoon spring square stable stairs stand star start station stay steel step
    stone store storm story street string strong sugar summer sun supper sweet swim table tail take tall
    taste teach ten test thick thin think thousand thread three through thunder tide timber time today
    together tomorrow tooth top touch tower town train travel tree true turn twelve twenty under until
    upon use valley velvet village voice wait walk wall warm wash watch water wave weather week well west
    wheat wheel white whole wide wild win wind window winter wire wise wish wood word work world write
    year yellow yes young zero
    """
)

FIRST_NAMES = _split(
    """
    Ada Alan Amara Anders Anita Arjun Beatriz Boris Carmen Cedric Chloe Dalia Daniel Deepa Diego Elena
    Emil Erika Farid Fatima Felix Freya Gita Grace Hana Henrik Hiro Ibrahim Ines Ivan Jamal Jana Jonas
    Julia Kamal Karin Kenji Laila Lars Leila Linus Lucia Magnus Maya Mei Milan Nadia Nils Noor Olga Omar
    Oscar Paula Pedro Priya Quinn Rafael Rosa Ruth Samir Sara Selma Sofia Tariq Theo Tomas Uma Vera Victor
    Wanda Xavier Yara Yusuf Zoe
    """
)

LAST_NAMES = _split(
    """
    Abara Andersen Bakker Banerjee Becker Castillo Chen Costa Dahl Diaz Dubois Eriksen Farouk Fischer
    Fontana Garcia Haddad Hansen Hoffman Ivanov Jansen Jensen Kaplan Kimura Klein Kovacs Kumar Larsen
    Lindgren Lopez Marino Mbeki Meyer Moreau Nakamura Novak Okafor Olsen Ortiz Park Petrov Quist Ramos
    Rossi Santos Sato Schmidt Silva Singh Sorensen Suzuki Tanaka Torres Ueda Valdez Vargas Weber Wolff
    Yamada Zeller
    """
)

STREETS = _split(
    """
    Alder Birch Cedar Chestnut Elm Hawthorn Hazel Juniper Linden Maple Oak Poplar Rowan Spruce Walnut
    """
)
CITIES = _split(
    """
    Aarhus Bergen Brno Cadiz Cork Dakar Delft Gdansk Ghent Graz Izmir Kyoto Leeds Lima Lyon Malmo Nairobi
    Oslo Porto Pune Quito Riga Seville Tampa Tartu Turin Utrecht Vienna Zagreb
    """
)
DOMAINS = ("example.com", "example.net", "example.org", "mail.example.com", "post.example.net")

PRODUCTS = _split(
    """
    adapter amplifier anvil backpack battery bearing blender bracket cable camera charger compass drill
    fan filter flask gasket gauge hinge jacket keyboard lantern lens magnet monitor motor notebook nozzle
    printer pump relay router sensor speaker stapler switch tablet tent thermostat tripod valve wrench
    """
)
QUALITIES = _split(
    """
    basic compact deluxe digital heavy light mini portable pro slim smart solar solid turbo
    """
)
"""First halves of product names."""

STATUSES = ("backordered", "cancelled", "delivered", "pending", "returned", "shipped")
