"""Folds text for comparison and knows which words are clinical, which are people's names, and which honour a discoverer."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from anonymizer.tables import DATA

EPONYMS = frozenset(
    [
        "achilles",
        "addison",
        "alzheimer",
        "allen",
        "apert",
        "arnold",
        "asherman",
        "baker",
        "bankart",
        "barrett",
        "bartholin",
        "bartter",
        "basedow",
        "bechterew",
        "behcet",
        "bell",
        "bennett",
        "berger",
        "binswanger",
        "blalock",
        "bochdalek",
        "boerhaave",
        "bosniak",
        "bouchard",
        "bowen",
        "bowman",
        "broca",
        "broden",
        "brodmann",
        "brugada",
        "buerger",
        "burkitt",
        "butterworth",
        "caroli",
        "castleman",
        "chagas",
        "charcot",
        "chiari",
        "child",
        "chilaiditi",
        "cobb",
        "colles",
        "conn",
        "cooper",
        "couinaud",
        "creutzfeldt",
        "crohn",
        "cushing",
        "dandy",
        "darier",
        "debakey",
        "denonvilliers",
        "dixon",
        "doppler",
        "douglas",
        "down",
        "dressler",
        "duchenne",
        "dupuytren",
        "ebstein",
        "ehlers",
        "ernst",
        "erdheim",
        "ewing",
        "fabry",
        "fallopian",
        "fallot",
        "fanconi",
        "felty",
        "fleischner",
        "foley",
        "fontaine",
        "fourier",
        "frei",
        "freiberg",
        "gallot",
        "galeazzi",
        "galen",
        "garden",
        "gardner",
        "gaucher",
        "gerota",
        "ghon",
        "gibbs",
        "gilbert",
        "gleason",
        "glisson",
        "goodpasture",
        "gorham",
        "grave",
        "graves",
        "grawitz",
        "guillain",
        "guyon",
        "hampton",
        "hamming",
        "hann",
        "hanning",
        "hartmann",
        "hashimoto",
        "heberden",
        "henle",
        "henoch",
        "hess",
        "hickman",
        "hill",
        "hirschsprung",
        "hodgkin",
        "hounsfield",
        "huntington",
        "jefferson",
        "jones",
        "kaposi",
        "kartagener",
        "kawasaki",
        "kellgren",
        "kerley",
        "kienbock",
        "klatskin",
        "klinefelter",
        "klippel",
        "kohler",
        "kupffer",
        "larmor",
        "langerhans",
        "lauge",
        "le",
        "legg",
        "leriche",
        "lennox",
        "lewy",
        "lisfranc",
        "littre",
        "lynch",
        "magendie",
        "maisonneuve",
        "mallory",
        "marfan",
        "meckel",
        "meigs",
        "meniere",
        "merkel",
        "mirizzi",
        "monro",
        "monteggia",
        "morgagni",
        "morison",
        "morton",
        "mueller",
        "muller",
        "munchausen",
        "murphy",
        "ollier",
        "oddi",
        "osgood",
        "osler",
        "paget",
        "pancoast",
        "parkinson",
        "perthes",
        "peyer",
        "peyronie",
        "peutz",
        "pfannenstiel",
        "pick",
        "poland",
        "pott",
        "pugh",
        "purkinje",
        "ramsay",
        "rathke",
        "raynaud",
        "reiter",
        "rett",
        "rendu",
        "riedel",
        "riemann",
        "rolandic",
        "rosai",
        "rutherford",
        "salter",
        "sachs",
        "scheuermann",
        "schatzki",
        "schlatter",
        "schmorl",
        "segond",
        "sheehan",
        "shepp",
        "simpson",
        "sjogren",
        "smith",
        "stanford",
        "stener",
        "stevens",
        "still",
        "sturge",
        "sudeck",
        "swan",
        "swyer",
        "sylvian",
        "takayasu",
        "tarlov",
        "teichholz",
        "thomas",
        "tietze",
        "tourette",
        "treitz",
        "turner",
        "vater",
        "virchow",
        "virchow",
        "volkmann",
        "waldenstrom",
        "warthin",
        "weber",
        "wegener",
        "werner",
        "wernicke",
        "westermark",
        "whipple",
        "willebrand",
        "willis",
        "wilms",
        "wilson",
        "wirsung",
        "wolff",
        "wolfe",
        "zenker",
        "zollinger",
        "hawkins",
        "gartland",
        "mason",
        "neer",
        "danis",
        "jones",
        "schatzker",
        "denis",
        "kummell",
        "romberg",
        "rinne",
        "trendelenburg",
        "non-hodgkin",
        "fisher",
        "hunt",
    ]
)
# Words of the trade that no dictionary has
_TRADE = frozenset(
    [
        "mprage",
        "vibe",
        "haste",
        "trufi",
        "fiesta",
        "lava",
        "propeller",
        "blade",
        "space",
        "cube",
        "grase",
        "syngo",
        "axials",
        "sagittals",
        "coronals",
        "tomosynthesis",
        "tomosynth",
        "gadovist",
        "dotarem",
        "magnevist",
        "omnipaque",
        "ultravist",
        "visipaque",
        "isovue",
        "iohexol",
        "iopamidol",
        "gadolinium",
        "fdg",
        "psma",
        "dotatate",
        "radiologist",
        "radiologists",
        "technologist",
        "technologists",
        "sonographer",
        "oncologist",
        "cardiologist",
        "neurologist",
        "surgeon",
        "physician",
        "resident",
        "attending",
        "recon",
        "recons",
        "hypodense",
        "hyperdense",
        "hypointense",
        "hyperintense",
        "isointense",
        "ground-glass",
        "reticulonodular",
        "unremarkable",
        "atelectasis",
        "atelectatic",
        "infiltrate",
        "infiltrates",
        "opacification",
        "osteophytes",
        "spondylosis",
        "listhesis",
        "cholelithiasis",
        "nephrolithiasis",
        "diverticulosis",
        "angiogram",
        "venogram",
        "arthrogram",
        "mammogram",
        "sonogram",
        "echocardiogram",
        "homograft",
        "xenograft",
        "anastomosis",
        "stenotic",
        "aneurysmal",
        "ectatic",
        "tortuous",
        "calcified",
        "noncontrast",
        "non-contrast",
    ]
)
EPONYM_HEADS = (
    "disease|syndrome|sign|lymphoma|cyst|palsy|fracture|tumou?r|sarcoma|phenomenon|contracture|hernia|node|nodes|deformity|"
    "malformation|test|manoeuvre|maneuver|score|scale|classification|grade|type|angle|line|lines|point|space|pouch|ligament|"
    "fascia|duct|gland|glands|catheter|drain|tube|procedure|operation|repair|chorea|dementia|dystrophy|encephalopathy|ataxia|"
    "thyroiditis|esophagus|oesophagus|diverticulum|anomaly|tetralogy|circle|ulcer|nodule|nodes|hump|effect|transform|filter|"
    "method|technique|sequence|criteria|unit|units|cells?|bodies|body|loop|area|artefact|artifact|neuroma|arthritis|purpura|"
    "units|fat|water|in|opp|imaging|lesion|defect|stage|neuropathy|triad|law|canal|tendon"
)


def fold_char(char: str) -> str:
    """A character in lower case without accents, half and full width made equal."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c)).casefold()
    return {"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "ё": "е"}.get(plain, plain)


def fold(text: str) -> tuple[str, list[int] | None]:
    """(folded text, index of each folded character's origin; None when it is the identity)."""
    if text.isascii():
        return text.lower().replace("_", " "), None
    folded: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        for piece in fold_char(char):
            folded.append(" " if piece == "_" else piece)
            origin.append(index)
    return "".join(folded), origin


_UMLAUTS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"}
)


def spellings(word: str) -> set[str]:
    """The folded word, also with umlauts written out."""
    composed = unicodedata.normalize("NFC", word)
    return {fold(composed)[0].strip(), fold(composed.translate(_UMLAUTS))[0].strip()} - {""}


@cache
def vocabulary() -> frozenset[str]:
    """Clinical and everyday words in lower case: what is in here is not taken for a name unless a cue says so."""
    english = frozenset((DATA / "english.txt").read_text(encoding="utf-8").split())
    return english | common_words() | EPONYMS | _TRADE


@cache
def common_words() -> frozenset[str]:
    """Words too common to identify anybody on their own."""
    return frozenset((DATA / "vocabulary.txt").read_text(encoding="utf-8").split())


@cache
def first_names() -> frozenset[str]:
    return frozenset(fold(w)[0] for w in (DATA / "first_names.txt").read_text(encoding="utf-8").split())


@cache
def last_names() -> frozenset[str]:
    return frozenset(fold(w)[0] for w in (DATA / "last_names.txt").read_text(encoding="utf-8").split())


EPONYM_USE = re.compile(rf"(?:'s|’s|s')?[\s-]+(?:[a-z]+[\s-]+)?(?:{EPONYM_HEADS})\b")


def used_as_eponym(folded: str, end: int) -> bool:
    """Whether the word ending at ``end`` of a folded text names a disease, a sign, a device or a method."""
    return EPONYM_USE.match(folded, end) is not None
