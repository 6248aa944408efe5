"""What the generated texts are made of. A template belongs to one label, which its wording makes plain."""

from __future__ import annotations


def _items(text: str) -> list[str]:
    return text.split(",")


SLOTS: dict[str, list[str]] = {
    "person": _items("Maria,Jonas,Ayesha,Tom,Ingrid,Pavel,Chloe,Samuel,Noor,Felix,Wanda,Hugo"),
    "surname": _items("Okafor,Lindqvist,Brandt,Moreau,Castillo,Tanaka,Whitlow,Petrov,Alvarez,Donnelly"),
    "place": _items("the station,the library,the harbour cafe,the gym,my place,the office,the market"),
    "city": _items("Lisbon,Oslo,Nairobi,Quito,Hanoi,Turin,Adelaide,Leeds,Cork,Graz,Halifax,Sapporo"),
    "country": _items("Peru,Norway,Kenya,Vietnam,Portugal,Canada,Chile,Austria,Ghana,Japan,Morocco"),
    "time": _items("at six,at noon,after work,around eight,on Sunday,tomorrow morning,in an hour"),
    "thing": _items("your umbrella,the spare key,my charger,the tickets,grandma's recipe,that book"),
    "food": _items("soup,pancakes,a curry,fresh bread,dumplings,lentils,a big salad"),
    "prize": _items("a free cruise,a gift card worth 500,a new phone,a luxury weekend,2000 in cash"),
    "word": _items("WIN,CLAIM,YES,PRIZE,LUCKY,GO,BONUS,CASH"),
    "team": _items("Rovers,the Falcons,United,the Harriers,City,the Comets,Athletic"),
    "sport": _items("football,rugby,hockey,basketball,handball,volleyball"),
    "company": _items("Norvane,Belltide,Quorum Foods,Astrel Motors,Pinehurst Bank,Tessel Air"),
    "device": _items("battery,telescope,chip,vaccine,rocket engine,search engine,solar cell"),
    "animal": _items("otters,pelicans,reindeer,bees,salmon,bats,tortoises"),
    "invention": _items("the zip,dynamite,the barometer,the steam turbine,the typewriter,radar"),
    "acronym": _items("NASA,GPS,RADAR,UNICEF,LED,ATM,SCUBA,ISBN,PDF,HTTP"),
    "idea": _items("inflation,photosynthesis,irony,a leap year,plate tectonics,osmosis,entropy"),
    "kind": _items("instrument,flower,cheese,gemstone,dance,card game,fabric"),
}

MESSAGES = {
    "ham": [
        "Are we still meeting {time} at {place}?",
        "I made {food}, come over if you like",
        "Can you bring {thing} {time}? Thanks",
        "Sorry I am late, still on the bus to {place}",
        "{person} says hi, we talked about the trip to {city}",
        "Don't forget {thing}, I left it at {place}",
    ],
    "spam": [
        "Congratulations! You have won {prize}. Text {word} to {number} now",
        "FINAL NOTICE: {prize} is waiting for you, call {number} to collect",
        "Cheap loans approved in minutes, no questions asked! Reply {word} to {number}",
        "You were selected for {prize}!! Send {word} to {number}, offer ends today",
        "Hot singles in {city} want to chat, dial {number}",
    ],
}
QUESTIONS = {
    "abbreviation": ["What does {acronym} stand for ?", "What is the full form of {acronym} ?"],
    "description and abstract concept": [
        "What is {idea} ?",
        "How would you explain {idea} to a child ?",
        "Why do {animal} migrate ?",
    ],
    "entity": [
        "What {kind} is {country} best known for ?",
        "Which {kind} is named after {city} ?",
        "What do {animal} eat in winter ?",
    ],
    "human being": [
        "Who invented {invention} ?",
        "Who was the first mayor of {city} ?",
        "Which actor played {person} {surname} on stage ?",
    ],
    "location": [
        "Where is {city} ?",
        "What is the capital of {country} ?",
        "In which country do most {animal} live ?",
    ],
    "numeric value": [
        "How many people live in {city} ?",
        "When did {person} {surname} invent {invention} ?",
        "How far is it from {city} to the coast ?",
    ],
}
NEWS = {
    "Business": [
        "{company} shares fall after the group cuts its profit forecast",
        "{company} agrees to buy {surname} Holdings in an all-stock deal",
        "Interest rates in {country} rise as lenders such as {company} raise fees",
    ],
    "Sci/Tech": [
        "Researchers in {city} present a {device} that lasts twice as long",
        "Scientists track {animal} by satellite to learn how they navigate",
        "New {device} passes its laboratory tests, says engineer {person} {surname}",
    ],
    "Sports": [
        "{team} beat {city} in extra time to reach the {sport} final",
        "{sport} coach {person} {surname} leaves {team} after a losing streak",
        "Injury rules {surname} out of the {sport} season, {team} confirm",
    ],
    "World": [
        "Election in {country} goes to a second round, observers report",
        "Foreign ministers meet in {city} for talks on the border of {country}",
        "Thousands march in {city} as the government of {country} resigns",
    ],
}

PLAYERS = {
    "Renata": "Brindle",
    "Oskar": "Thessaly",
    "Dmitri": "Old Marrow",
    "Fumiko": "Sparrowhawk",
    "Leila": "Ashgrove",
}
"""Player -> character."""
MASTER = "Gideon"
SKILLS = _items(
    "perception,stealth,athletics,arcana,persuasion,investigation,insight,acrobatics,deception,survival"
)
SPELLS = _items(
    "Frost Lantern,Hollow Step,Cinder Veil,Mirror Thorns,Gentle Rain,Iron Whisper,Star Hook,Moth Swarm,"
    "Second Breath,Salt Ward,Thunder Knot,Silver Door"
)
FOES = _items("cultist,ogre,wight,bandit captain,giant crab,gargoyle,swamp hag,automaton")
CHATTER = [
    "Wait, who has the rope?",
    "We should rest before the bridge, I think.",
    "I look at the map again. Is the tower north of the mill?",
    "That was far too close.",
    "Can I tell if the {foe} has noticed us?",
    "I do not trust the innkeeper. Nobody sells ale that cheap.",
    "Should I roll for that, or is it obvious?",
    "I could cast {spell}, but I will save it.",
    "What would I need for {skill}? A 15?",
    "Remember when {character} fell into the well?",
    "I hand the lantern to {character}.",
    "If the {foe} comes back, I am running.",
]
NARRATION = [
    "The corridor bends to the left, and you smell smoke.",
    "The {foe} does not move. It only looks at {character}.",
    "Rain starts to fall as you reach the old mill.",
    "You hear {character}'s name, whispered, from behind the door.",
    "The merchant shakes her head and counts the coins again.",
    "Nothing there but dust, and a single fresh footprint.",
]
