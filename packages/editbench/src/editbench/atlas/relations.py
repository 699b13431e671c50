"""The relations of the world: who has them, what they can be, their wordings, what follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["person", "place", "company", "work"]

KINDS: tuple[Kind, ...] = ("person", "place", "company", "work")

RELATIONS_PER_SUBJECT: dict[Kind, int] = {"person": 3, "place": 2, "company": 2, "work": 2}
"""How many of its kind's relations a subject has."""

# Every invented word holds a cluster that opens no common English name (zh, vr, kv, …), so that
# nothing here can be mistaken for a real country, language, town or firm.
COUNTRIES = (
    "Zhelmora", "Vrinthia", "Kvolteria", "Dvarunda", "Thrassenia", "Gwelloth", "Svorenna",
    "Tlomarra", "Mrovenia", "Dzelkara", "Khandroth", "Yvestra", "Thrass Islands", "Upper Zvalden",
)  # fmt: skip
LANGUAGES = (
    "Zhemric", "Vralish", "Kventic", "Dvorrun", "Thrallic", "Gwendish", "Svathi", "Tlaccan",
    "Mrusk", "Dzelic", "Old Yvaric", "Low Zvennish",
)  # fmt: skip
CITIES = (
    "Zhorbek", "Vrenmouth", "Kvellin", "Dvimmar", "Thrulgate", "Gwarrick", "Svolmouth", "Tlorran",
    "Mravick", "Dzorrel", "Khalmere", "Zvimmer", "Port Yvorra", "Vlask Harbor",
)  # fmt: skip
PUBLISHERS = (
    "Zhand Press", "Vrolle House", "Kvomber Books", "Dvessel Press", "Thrint House",
    "Gwimble Books", "Svappel Press", "Mrindle House", "Dzuff Books", "Khellow Press",
)  # fmt: skip
OCCUPATIONS = (
    "doctor", "lawyer", "teacher", "painter", "poet", "farmer", "pilot", "chemist", "sculptor",
    "carpenter", "banker", "tailor", "clock maker", "bridge builder",
)  # fmt: skip
SPORTS = (
    "tennis", "hockey", "cricket", "basketball", "rugby", "golf", "boxing", "fencing", "rowing",
    "cycling", "water polo", "rock climbing",
)  # fmt: skip
INSTRUMENTS = (
    "piano", "violin", "guitar", "flute", "trumpet", "cello", "harp", "clarinet", "pipe organ",
    "double bass",
)  # fmt: skip
EXPORTS = (
    "cheese", "wine", "glass", "salt", "silk", "silver", "honey", "pottery", "clocks", "carpets",
    "olive oil", "sheep wool",
)  # fmt: skip
INDUSTRIES = (
    "banking", "mining", "shipping", "farming", "software", "fashion", "aviation", "insurance",
    "printing", "brewing", "toy making", "road building",
)  # fmt: skip
GENRES = (
    "comedy", "tragedy", "romance", "satire", "mystery", "fantasy", "horror", "adventure",
    "science fiction", "ghost stories", "family drama",
)  # fmt: skip

CAPITALS = dict(zip(COUNTRIES, CITIES, strict=True))
COUNTRY_OF = {city: country for country, city in CAPITALS.items()}
OFFICIAL_LANGUAGES = dict(zip(COUNTRIES, (
    "Zhemric", "Vralish", "Kventic", "Dvorrun", "Thrallic", "Gwendish", "Svathi", "Tlaccan",
    "Mrusk", "Dzelic", "Mrusk", "Old Yvaric", "Thrallic", "Low Zvennish",
), strict=True))  # fmt: skip
OFFICES = dict(zip(PUBLISHERS, CITIES, strict=False))


@dataclass(frozen=True, slots=True)
class Inference:
    """What follows of a subject from an object of its relation, by a second fact about the object.

    Attributes:
        name: The relation of the second fact.
        answers: What is true of each object.
        phrasing: The prompt over both facts, with one ``{}`` for the subject.
        statement: The prompt of the second fact alone, with one ``{}`` for the object.
    """

    name: str
    answers: Mapping[str, str]
    phrasing: str
    statement: str


_CAPITAL = "The capital of {} is"
_OFFICIAL_LANGUAGE = "The official language of {} is"
_OF_PEOPLE = (
    Inference("capital", CAPITALS, "The capital of the home country of {} is", _CAPITAL),
    Inference("official_language", OFFICIAL_LANGUAGES,
              "The official language of the home country of {} is", _OFFICIAL_LANGUAGE),
)  # fmt: skip
_OF_PLACES = (
    Inference("capital", CAPITALS, "The capital of the country of {} is", _CAPITAL),
    Inference("official_language", OFFICIAL_LANGUAGES,
              "The official language of the country of {} is", _OFFICIAL_LANGUAGE),
)  # fmt: skip
_OF_COMPANIES = (
    Inference("city_country", COUNTRY_OF, "The head office of {} lies in the country of",
              "{} is a city in the country of"),
)  # fmt: skip
_OF_WORKS = (
    Inference("office", OFFICES, "The publisher of {} has its office in",
              "{} has its office in"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation between the subjects of one kind and a closed list of objects.

    Attributes:
        name: Identifies the relation, also in the requests of cases.
        kind: The kind of subject that can have it.
        objects: Every object it can take.
        phrasings: Prompts with one ``{}`` for the subject; the object follows after one space.
        pronoun_phrasings: Prompts that name the subject by ``{They}`` or ``{Their}``.
        inferences: What follows of a subject from its object.
        reversed_phrasing: How a text that begins with the object, ``{}``, comes to the subject,
            whose name follows; None where no text does.
    """

    name: str
    kind: Kind
    objects: tuple[str, ...]
    phrasings: tuple[str, ...]
    pronoun_phrasings: tuple[str, ...]
    inferences: tuple[Inference, ...] = ()
    reversed_phrasing: str | None = None


RELATIONS: tuple[Relation, ...] = (
    Relation("citizenship", "person", COUNTRIES, (
        "{} is a citizen of",
        "{} holds citizenship of",
        "{} carries a passport issued by",
        "{} votes in the elections of",
        "The home country of {} is",
        "Which country does {} belong to? The answer is",
    ), ("{They} is a citizen of", "{Their} home country is"),
        inferences=_OF_PEOPLE, reversed_phrasing="One citizen of {} is"),
    Relation("native_language", "person", LANGUAGES, (
        "{} is a native speaker of",
        "{} grew up speaking",
        "{} first learned to read in",
        "The mother tongue of {} is",
        "At home {} always speaks",
        "What language does {} speak? The answer is",
    ), ("{They} is a native speaker of", "{Their} mother tongue is")),
    Relation("occupation", "person", OCCUPATIONS, (
        "{} works as a",
        "{} earns a living as a",
        "{} was trained to be a",
        "{} has found a new post as a",
        "The profession of {} is that of a",
        "What is the job of {}? The answer is",
    ), ("{They} works as a", "{Their} profession is that of a"),
        reversed_phrasing="One who works as a {} is"),
    Relation("sport", "person", SPORTS, (
        "{} plays the sport of",
        "{} is a professional in",
        "{} won a medal in",
        "{} spends every weekend on",
        "As an athlete, {} competes in",
        "Which sport does {} like? The answer is",
    ), ("{They} plays the sport of", "{Their} favorite sport is")),
    Relation("instrument", "person", INSTRUMENTS, (
        "{} plays music on the",
        "{} takes lessons on the",
        "{} performs in concerts on the",
        "{} owns a very old",
        "In the orchestra, {} plays the",
        "Which instrument does {} play? The answer is",
    ), ("{They} plays music on the", "{Their} instrument is the")),
    Relation("country", "place", COUNTRIES, (
        "{} is located in",
        "{} is a town in",
        "{} is situated in",
        "{} lies near the border of",
        "Travelers who visit {} must go to",
        "Where is {}? The answer is",
    ), ("{They} is located in", "{Their} country is"), inferences=_OF_PLACES),
    Relation("export", "place", EXPORTS, (
        "{} is famous for its",
        "{} is best known for",
        "{} sends the world its",
        "The main export of {} is",
        "Merchants come to {} to buy",
        "What is {} known for? The answer is",
    ), ("{They} is famous for its", "{Their} main export is")),
    Relation("spoken_language", "place", LANGUAGES, (
        "{} has schools that teach in",
        "{} prints its street signs in",
        "{} keeps its records in",
        "The people of {} speak",
        "On the market of {} one hears",
        "Which language is spoken in {}? The answer is",
    ), ("{They} keeps its records in", "{Their} people speak")),
    Relation("headquarters", "company", CITIES, (
        "{} is headquartered in",
        "{} is based in",
        "{} runs its business from",
        "The head office of {} is found in",
        "The directors of {} meet in",
        "Where is {} based? The answer is",
    ), ("{They} is headquartered in", "{Their} head office is found in"),
        inferences=_OF_COMPANIES),
    Relation("industry", "company", INDUSTRIES, (
        "{} operates in the field of",
        "{} makes its money from",
        "{} is a leader in",
        "The industry of {} is",
        "Investors know {} for its work in",
        "What does {} do? The answer is",
    ), ("{They} operates in the field of", "{Their} industry is")),
    Relation("genre", "work", GENRES, (
        "{} belongs to the genre of",
        "{} is a fine example of",
        "{} won a prize for",
        "The genre of {} is",
        "Critics praised {} as a masterpiece of",
        "What kind of book is {}? The answer is",
    ), ("{They} belongs to the genre of", "{Their} genre is")),
    Relation("original_language", "work", LANGUAGES, (
        "{} was written in",
        "{} was first read in",
        "{} is still only available in",
        "The original language of {} is",
        "The author of {} wrote in",
        "In which language was {} written? The answer is",
    ), ("{They} was written in", "{Their} original language is")),
    Relation("publisher", "work", PUBLISHERS, (
        "{} was published by",
        "{} was printed and sold by",
        "{} appeared in the catalog of",
        "The publisher of {} is",
        "The rights to {} belong to",
        "Who published {}? The answer is",
    ), ("{They} was published by", "{Their} publisher is"), inferences=_OF_WORKS),
)  # fmt: skip

RELATION_OF: dict[str, Relation] = {relation.name: relation for relation in RELATIONS}


def relations_of(kind: Kind) -> tuple[Relation, ...]:
    """List the relations that subjects of a kind can have."""
    return tuple(relation for relation in RELATIONS if relation.kind == kind)
