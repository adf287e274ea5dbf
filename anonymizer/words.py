"""Folds text for comparison and knows which words are clinical, which are people's names, and which honour a discoverer."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

from anonymizer.tables import DATA

VENDORS = frozenset(
    [
        "agfa",
        "bayer",
        "canon",
        "carestream",
        "elekta",
        "esaote",
        "fuji",
        "fujifilm",
        "ge",
        "hitachi",
        "hologic",
        "konica",
        "medtronic",
        "mindray",
        "minolta",
        "neusoft",
        "philips",
        "samsung",
        "sectra",
        "shimadzu",
        "siemens",
        "toshiba",
        "varian",
        "ziehm",
    ]
)  # makers whose names are no secret where a maker is to stand, whoever else bears them
EPONYM_HEADS = (
    "disease|syndrome|sign|level|lymphoma|cyst|palsy|fracture|tumou?r|sarcoma|phenomenon|contracture|hernia|node|nodes|deformity|"
    "malformation|test|manoeuvre|maneuver|score|scale|classification|grade|type|angle|line|lines|point|space|pouch|ligament|"
    "fascia|duct|gland|glands|catheter|drain|tube|procedure|operation|repair|chorea|dementia|dystrophy|encephalopathy|ataxia|"
    "thyroiditis|esophagus|oesophagus|diverticulum|anomaly|tetralogy|circle|ulcer|nodule|nodes|hump|effect|transform|filter|"
    "method|technique|sequence|criteria|unit|units|cells?|bodies|body|loop|area|artefact|artifact|neuroma|arthritis|purpura|"
    "abscess|traction|tongs|clamp|splint|frame|table|valve|valves|stent|stents|shunt|plate|plates|rod|nail|screw|view|views|projection|position|"
    "cleft|nail|prosthesis|implant|wire|brace|collar|bandage|hook|incision|flap|graft|osteotomy|arthroplasty|index|ratio|formula|equation|stain|"
    "hemangioma|haemangioma|infraction|coxarthrosis|apophysitis|osteochondritis|necrosis|gangrene|angina|aneurysm|vein|veins|artery|muscle|"
    "tubercle|foramen|fissure|cave|recess|membrane|valvule|sinus|ring|web|stroke|paralysis|plexus|nerve|ganglion|reflex|maneuvre|"
    "units|fat|water|in|opp|imaging|lesion|defect|stage|neuropathy|triad|law|canal|tendon"
)


_PLAIN = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "æ": "ae", "œ": "oe", "ё": "е"}


def fold_char(char: str) -> str:
    """A character in lower case without accents, half and full width made equal, digits of any script as 0 to 9."""
    if unicodedata.category(char) in ("Cf", "Mc", "Mn"):
        return (
            ""  # a soft hyphen, or a blank without width, inside a name; a vowel sign, which is no letter of its word
        )
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    plain = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c)).casefold()
    plain = unicodedata.normalize("NFC", plain)  # a Hangul syllable is one character again
    return _PLAIN.get(plain, plain)


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
_CYRILLIC = {
    "а": "a", "б": "b", "в": "v", "г": "g", "д": "d", "е": "e", "ё": "e", "ж": "zh", "з": "z", "и": "i", "й": "y", "к": "k",
    "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t", "у": "u", "ф": "f", "х": "kh", "ц": "ts",
    "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "", "э": "e", "ю": "yu", "я": "ya", "і": "i", "ї": "yi",
    "є": "ye", "ґ": "g",
}  # fmt: skip
_GREEK = {
    "α": "a", "β": "v", "γ": "g", "δ": "d", "ε": "e", "ζ": "z", "η": "i", "θ": "th", "ι": "i", "κ": "k", "λ": "l", "μ": "m",
    "ν": "n", "ξ": "x", "ο": "o", "π": "p", "ρ": "r", "σ": "s", "ς": "s", "τ": "t", "υ": "y", "φ": "f", "χ": "ch", "ψ": "ps",
    "ω": "o",
}  # fmt: skip
# other usual renderings of the same letters (ISO 9, passports, German and French use), each as a pair to exchange
_RENDERINGS = (
    ("kh", "h"), ("kh", "ch"), ("ts", "c"), ("zh", "j"), ("yu", "iu"), ("ya", "ia"), ("yu", "ju"), ("ya", "ja"),
    ("y", "i"), ("y", "j"), ("shch", "sch"), ("v", "w"), ("ks", "x"), ("sh", "sch"), ("ch", "tsch"), ("iy", "y"),
    ("v", "b"), ("f", "ph"), ("i", "h"),
)  # fmt: skip


def spellings(word: str) -> set[str]:
    """The folded word, also with umlauts written out or drawn together, in Latin letters, and in the other kana."""
    composed = unicodedata.normalize("NFC", word)
    found = {fold(composed)[0].strip(), fold(composed.translate(_UMLAUTS))[0].strip()}
    plain = fold(composed)[0].strip()
    if re.search("[ao]e|ue", plain):
        found.add(re.sub("([aou])e", r"\1", plain))
    if any("\u0370" <= char <= "\u04ff" for char in plain):
        found |= _latin(plain) | _latin(composed.lower())
    return found - {""}


def _latin(word: str) -> set[str]:
    """Usual Latin renderings of a Cyrillic or Greek word."""
    base = "".join(_CYRILLIC.get(char, _GREEK.get(char, char)) for char in word)
    found = {base, base.replace("ou", "u")}
    for old, new in _RENDERINGS:
        found |= {one.replace(old, new) for one in found if len(found) < 200}
    return {one for one in found if one.isascii() and len(one) >= 4}


def other_kana(word: str) -> str:
    """Hiragana for katakana and the reverse."""
    turned = []
    for char in word:
        code = ord(char)
        turned.append(
            chr(code + 0x60) if 0x3041 <= code <= 0x3096 else chr(code - 0x60) if 0x30A1 <= code <= 0x30F6 else char
        )
    return "".join(turned)


def _listed(name: str) -> frozenset[str]:
    return frozenset((DATA / name).read_text(encoding="utf-8").split())


@cache
def eponyms() -> frozenset[str]:
    """Discoverers whose names are medicine's words."""
    return _listed("eponyms.txt")


# endings and beginnings of medicine's Greek and Latin, which no surname has; in English, German, and the Romance tongues
_CLINICAL_FORM = re.compile(
    r"[a-z]{3,}(?:itis|itides|itide|ektomie|ectom(?:y|ies|ia|ie)|[oe]stom(?:y|ie|ia)|otom(?:y|ie|ia)|plast(?:y|ie|ik|ia)|scop(?:y|ie|ia|ic)|skopie|"
    r"gra(?:phy|phie|fia|fie)|pathy|pathie|patia|algi(?:a|e)|emia|amie|aemia|uria|urie|odem|oedem|oedema|ödem|cele|zele|lithiasis|litiaza|iasis|"
    r"sclerosis|sklerose|stenose|stenosis|fibrose|nekrose|karzinom|carcinoma|sarkom|blastom(?:a)?|adenom(?:a)?|myom(?:a)?|angiom(?:a)?|lymphom|melanom|"
    r"trophy|trophie|plasia|plasie|penia|penie|rrhag(?:e|ia|ie)|rrh(?:ea|oea|o)|megaly|megalie|ptosis|ectasis|ektasie|ectasia|embolie|fraktur(?:en)?|"
    r"thorax|pnoea|pnea|cardia|kardie|lysis|lyse|desis|genic|genous|pleural|cranial|thoracic|lumbar|cervical|tomographie|therapie|therapy|"
    r"schmerz(?:en)?|vorfall|erguss|entzundung|verdacht|zyste|tumoren?)$"
    r"|(?:neuro|kardio|cardio|gastro|hepato|nephro|pneumo|broncho|osteo|arthro|chondro|myelo|angio|cholangio|choledoch|laparo|thorako|thoraco|spondylo|"
    r"radio|hyper|hypo|peri|retro|intra|supra|infra|para|endo|trans|sub|mikro|makro|micro|macro)[a-z]{5,}(?:s|al|ar|ic|us|is|er|en|e|a|y|ed|isch|ell)$"
    r"|(?:neuro|onko|kardio|gastro|nephro|pulmo|uro|gyn|derma|ortho|trauma|rheuma)$"
)


class _Vocabulary(frozenset[str]):
    """Words as listed, and those that medicine forms as it goes."""

    def __contains__(self, word: object) -> bool:
        return frozenset.__contains__(self, word) or clinical_form(str(word))


@lru_cache(maxsize=65536)
def clinical_form(word: str) -> bool:
    """Whether a folded word that no list knows is built like medicine's own ("Lungenödem", "sphincterotomy")."""
    return _CLINICAL_FORM.match(word) is not None and word not in last_names() and word not in first_names()


@cache
def vocabulary() -> frozenset[str]:
    """Clinical and everyday words in lower case: what is in here is not taken for a name unless a cue says so."""
    return _Vocabulary(_listed("english.txt") | common_words() | eponyms() | _listed("trade.txt"))


@cache
def common_words() -> frozenset[str]:
    """Words too common to identify anybody on their own."""
    return _listed("vocabulary.txt")


@cache
def first_names() -> frozenset[str]:
    return frozenset(fold(w)[0] for w in _listed("first_names.txt"))


@cache
def last_names() -> frozenset[str]:
    return frozenset(fold(w)[0] for w in _listed("last_names.txt"))


EPONYM_USE = re.compile(rf"(?:'s|’s|s')?[\s-]+(?:[a-z]+[\s-]+)?(?:{EPONYM_HEADS})\b")


def used_as_eponym(folded: str, end: int) -> bool:
    """Whether the word ending at ``end`` of a folded text names a disease, a sign, a device or a method."""
    return EPONYM_USE.match(folded, end) is not None
