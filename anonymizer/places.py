"""Finds institutions and places of residence in running text by their form (PS3.15 E.3.6)."""

# ruff: noqa: E501 - patterns and word lists read better whole
from __future__ import annotations

import re
from collections.abc import Iterator

from anonymizer.forms import STATES
from anonymizer.words import common_words, eponyms, last_names, vocabulary

_HEADS = (
    r"hospital|hosp|clinic|klinik|klinikum|krankenhaus|(?:regional |general |university )?medical (?:cent(?:er|re)|group|school)|university|universitat|universitatsklinikum|infirmary|"
    r"health(?:care)? (?:system|cent(?:er|re)|services|trust|network|partners)|healthcare|imaging(?: cent(?:er|re)| associates| services)?|(?:cancer|heart|eye|spine|breast|surgery|surgical|trauma|outpatient|diagnostic|radiology|stroke|women's) (?:cent(?:er|re)|institute|associates)|"
    r"(?:imaging|mri|oncology|emergency|pathology) (?:dept|department)|radiology(?: associates| partners| group| consultants| dept| department)|orthopa?edics|oncology associates|institute|hospice|nursing home|foundation(?: trust)?|trust|memorial|(?:elementary |primary |middle |high |secondary |grammar |boarding )?school|(?:community )?college|academy|kindergarten|monastery|barracks|(?:state |federal |county )?prison|penitentiary|general|szpital|[^\W\d_]*sjukhus(?:et)?|sykehus|ziekenhuis|umc|manor|lodge|(?:care|rest|retirement) home|care cent(?:er|re)"
)
_PLACE = re.compile(
    rf"(?:[^\W\d_][^\W\d_.'’\-]*(?:['’\-][^\W\d_]+)*[.]?[\s\-]+){{1,4}}?(?P<head>{_HEADS})(?![^\W_])(?:\s+of\s+[^\W\d_]+(?:\s[^\W\d_]+)?)?"
)
_NAMED_AFTER = re.compile(
    r"(?<![^\W_])(?:hospital|clinic|klinikum|klinik|krankenhaus|university|univ\.?|universitat|universitatsklinikum|universitatsklinik|hopital|ospedale|policlinico|clinica|institute|chu|chru|centre hospitalier|szpital|kaiser(?: permanente)?|uniklinik|umc|azienda (?:ospedaliera|sanitaria)(?: universitaria)?|ausl|asl|presidio ospedaliero|casa di cura|clinique|lasarettet|lasarett|sykehuset|sygehuset|kantonsspital|centro medico|centro de salud|instituto|praxis|gemeinschaftspraxis|nursing home|care home|nhs|universitatsspital|uz|aou|asst|irccs|va(?!\s(?:hosp|med|clinic))|vamc)\s+(?P<link>of |uniwersytecki |wojewodzki |miejski |kliniczny |de la |de |di |du |del |general |universitario |universitaire |am |im |the |st\.? |saint |san |santa |la |las |los |el |le |dr\.? )*"
    r"(?P<own>[^\W\d_][\w'’\-]+)"
    r"|(?<![^\W_])(?:[^\W\d_]+\s)?(?:больниц|поликлиник|госпитал|клиник|диспансер)[^\W\d_]*(?:\s(?:№\s?\d+|no?\s?\d+|им\.?\s[^\W\d_]+(?:\s[^\W\d_]+)?))+"
)
_FAR_EAST = re.compile(
    r"[\u3400-\u9fff\u30a0-\u30ff]{1,8}(?:病院|医院|大学|医療センター|診療所|クリニック|医科|卫生院|诊所)|[\uac00-\ud7af]{1,8}(?:병원|의료원|대학교|의원)"
)
_ONE_WORD = re.compile(
    r"(?<![^\W_])(?!(?:kinder|universit|kanton|akut|moder|general|pri?vat)[^\W\d_]*)[^\W\d_]{3,}"
    r"(?:hospitalet|sykehus(?:et)?|sjukhus(?:et)?|sygehus|ziekenhuis|spital|klinikum|krankenhaus)(?![^\W_])"
)
_SAINT = re.compile(
    r"(?<![^\W_])st\.?\s(?P<own>[^\W\d_]{4,}(?:['’]s)?)(?=\s(?:ed|er|icu|hosp|campus|ward|parish|church)(?![^\W_]))"
)
_RESIDENCE = re.compile(
    r"(?<![^\W_])(?:lives? (?:in|at|near)|living (?:in|at)|resident of|resid(?:ing|es|ed) (?:in|at)|hometown:?|born in|native of|travell?ed (?:from|to)|visiting from|works (?:at|for|in)|employed (?:at|by)|flown in from|transferred from|(?:moved|came|emigrated|immigrated|returned|arrived|relocated|flew)(?: here| back| in)? from|grew up in|(?:practice|clinic|office|surgery|hospital|plant|factory|mine|shipyard|farm|school|home|prison|camp|warehouse|base) in|originally from|city|town|address|addr|wohnhaft in|wohnt in|из города|г\.)[:\s]+"
    r"(?P<own>[^\W\d_][^\W\d_'’\-]*(?:[\s\-][^\W\d_]+)?)"
)
# a place that only its capital and its preposition tell: "from Ballarat", "at Grantham & District", "Monklands ward 14"
_PROPER = re.compile(
    r"(?<![^\W_])(?:at|in) (?P<e>[^\W\d_]{4,}) (?P<house>court|house|gardens|village|villas?|grange|heights|towers|manor|lodge|terrace|estate)(?![^\W_])"
    r"|(?<![^\W_])(?:from|at|near) (?P<a>[^\W\d_]{4,}(?:-[^\W\d_]+)*)(?:\s(?:&|and)\s(?P<b>[^\W\d_]{4,}))?(?![^\W_])(?!\s?v?\d)"
    r"|(?<![^\W_])(?P<c>[^\W\d_]{5,}) (?:ward|theatre|bay|campus|er|icu|ed|ambulance|police|constabulary|borough|district)(?![^\W_])"
    r"|(?<![^\W_])(?P<bad>bad) (?P<d>[^\W\d_]{4,})(?![^\W_])"
)
_EMPLOYER = re.compile(
    r"(?<![^\W_])(?:employer|employed by|workplace|arbeitgeber|employeur)[:\s]+(?P<own>[^,;.\n]{3,40})"
)
_GENERIC = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "our",
        "outside",
        "local",
        "of",
        "at",
        "in",
        "from",
        "to",
        "with",
        "and",
        "or",
        "patient",
        "teaching",
        "academic",
        "university",
        "hospital",
        "clinic",
        "general",
        "by",
        "for",
        "same",
        "another",
        "other",
        "previous",
        "prior",
        "referring",
        "transferred",
        "admitted",
        "day",
        "night",
        "is",
        "was",
        "no",
        "children",
        "childrens",
        "children's",
        "women",
        "women's",
        "eye",
        "dental",
        "outpatient",
        "inpatient",
        "pain",
        "breast",
        "heart",
        "cancer",
        "veterans",
        "va",
    ]
)
_KINDS = frozenset(
    [
        "hosp",
        "klinik",
        "klinikum",
        "krankenhaus",
        "medical",
        "center",
        "centre",
        "infirmary",
        "health",
        "healthcare",
        "system",
        "institute",
        "trust",
        "foundation",
        "imaging",
        "services",
        "radiology",
        "associates",
        "nursing",
        "home",
        "hospice",
        "regional",
        "community",
        "memorial",
        "national",
        "county",
    ]
)
_PLACE_WORDS = frozenset(
    [
        "st",
        "saint",
        "mount",
        "valley",
        "lake",
        "river",
        "hill",
        "hills",
        "park",
        "green",
        "north",
        "south",
        "east",
        "west",
        "central",
        "cross",
        "royal",
        "queen",
        "king",
        "bay",
        "beach",
        "city",
        "grace",
        "mercy",
        "forest",
        "wood",
        "field",
        "church",
        "bridge",
        "new",
        "old",
        "red",
        "white",
        "black",
        "grand",
        "spring",
        "springs",
        "creek",
        "island",
        "harbor",
        "harbour",
        "ridge",
        "sacred",
        "holy",
        "heart",
        "good",
        "samaritan",
        "trinity",
        "providence",
        "street",
        "road",
        "avenue",
        "lane",
        "square",
        "cottage",
    ]
)
_STOP = frozenset(
    [
        "by",
        "with",
        "for",
        "at",
        "in",
        "on",
        "of",
        "and",
        "or",
        "to",
        "from",
        "the",
        "is",
        "was",
        "has",
        "had",
        "no",
        "not",
        "per",
        "via",
        "into",
        "after",
        "before",
        "during",
        "as",
        "w",
    ]
)
_HOLY = frozenset(
    ["st", "saint", "holy", "sacred", "grace", "mercy", "good", "samaritan", "trinity", "providence", "mount", "royal"]
)
_HOLY_HEADS = frozenset(["general", "memorial", "healthcare"])
# kinds that are ordinary words: only a word nobody knows makes them an institution's name
_WEAK = re.compile(
    r"(?:imaging|general|memorial|(?:elementary |primary |middle |high |secondary |grammar |boarding )?school|(?:community )?college|academy|kindergarten|monastery|barracks|(?:state |federal |county )?prison|penitentiary|(?:imaging|mri|oncology|emergency|pathology|radiology) (?:dept|department)|trust|foundation|institute|orthopa?edics|healthcare|manor|lodge|(?:care|rest|retirement) home|care cent(?:er|re)|(?:cancer|heart|eye|spine|breast|surgery|surgical|trauma|outpatient|diagnostic|radiology|stroke) cent(?:er|re))$"
)


def places(folded: str, capital: list[bool]) -> list[tuple[int, int]]:
    """Spans of institutions' own names and of places somebody lives in; ``capital[i]``: written with a capital."""
    spans = []
    for match in (*_PLACE.finditer(folded), *_NAMED_AFTER.finditer(folded)):
        span = _own_name(match) if match.re is _PLACE else _named_after(match, capital)
        if span:
            spans.append(span)
    spans += [match.span() for match in _ONE_WORD.finditer(folded)]
    for match in _SAINT.finditer(folded):
        if capital[match.start("own")] and not capital[match.start("own") + 1]:
            spans.append(match.span())
    for match in _residences(folded):
        words = list(re.finditer(r"[^\W\d_]+", match["own"]))
        own = [
            w for w in words if w[0] not in vocabulary() or (w is words[0] and w[0] not in common_words() | _GENERIC)
        ]
        own = [w for w in own if capital[match.start("own") + w.start()]]
        if own:
            spans.append((match.start("own") + own[0].start(), match.start("own") + own[-1].end()))
    spans += _proper(folded, capital)
    for match in STATES.finditer(folded):
        if not capital[match.end() - 1] and match.end() - match.start(1) == 2:
            continue  # "In" is a word (or indium), "IN" is Indiana
        before = re.search(r"(?:(?<![^\W_])[^\W\d_]+[\s\-])?[^\W\d_]+$", folded[: match.start()])
        word = before and re.search(r"[^\W\d_]+$", before[0])
        if word and _abbreviation(word[0], capital, match.start()):
            continue  # "COPD, PA view"
        if before and word and word[0] not in vocabulary() and capital[before.start() + word.start()]:
            first = before[0].split()[0]
            own_start = (
                before.start()
                if capital[before.start()] and first not in common_words()
                else before.start() + word.start()
            )
            spans.append((own_start, match.end()))
    if not folded.isascii():
        spans += [m.span() for m in _FAR_EAST.finditer(folded)]
    return spans


def _abbreviation(word: str, capital: list[bool], end: int) -> bool:
    """Whether a short word that ends at ``end`` is written in capitals in a text that is not."""
    return len(word) <= 5 and all(capital[end - len(word) : end]) and sum(capital) < 0.7 * len(capital) - 4


def _residences(folded: str) -> Iterator[re.Match[str]]:
    """Every cue of a residence with what follows it; the next cue may lie in what follows."""
    pos = 0
    while (match := _RESIDENCE.search(folded, pos)) is not None:
        yield match
        pos = match.start("own")


def _proper(folded: str, capital: list[bool]) -> list[tuple[int, int]]:
    """Places known by a capital and the words around them alone: words of the trade and eponyms are none."""

    def named(start: int, end: int) -> bool:
        parts = re.split("-", folded[start:end])
        known = vocabulary() | eponyms()
        return capital[start] and not any(capital[start + 1 : start + len(parts[0])]) and not set(parts) & known

    spans = []
    for match in _PROPER.finditer(folded):
        group = next(name for name in "acde" if match[name] is not None)
        if group == "e":  # "at Foxglove Court": both with a capital, whatever the first word means
            titles = [capital[at] and not capital[at + 1] for at in (match.start("e"), match.start("house"))]
            spans += [(match.start("e"), match.end("house"))] if all(titles) else []
            continue
        begin = match.start("bad") if match["bad"] else match.start(group)
        if named(*match.span(group)) and capital[begin]:
            spans.append((begin, match.end("b") if match["b"] and capital[match.start("b")] else match.end(group)))
    for match in _EMPLOYER.finditer(folded):
        if any(
            named(w.start() + match.start("own"), w.end() + match.start("own")) for w in _WORDS.finditer(match["own"])
        ):
            spans.append(match.span("own"))
    return spans


_WORDS = re.compile(r"[^\W\d_]{4,}")
_NEXT_WORD = re.compile(r"\s([^\W\d_]{3,})(?![^\W_])")
_ABROAD = re.compile(
    "chu|chru|hopital|ospedale|policlinico|clinica|azienda|casa di cura|clinique|uni(?:versitats)?klinik|klinikum|szpital|centre hospitalier"
)


def _named_after(match: re.Match[str], capital: list[bool]) -> tuple[int, int] | None:
    """A kind and the name behind it ("Klinikum X", "Hospital of X"); None when an ordinary word follows."""
    if match["own"] is None:
        return match.span()
    own = match["own"]
    abroad = match["link"] is not None and _ABROAD.match(match[0]) is not None and not capital[match.start("own") + 1]
    ordinary = not abroad and own in (common_words() if match[0].startswith("va") else vocabulary())
    if ordinary or own in _GENERIC or not (capital[match.start("own")] or not own.isascii()):
        return None
    if match[0].startswith("va") and (not capital[match.start() + 1] or capital[match.start("own") + 1]):
        return None  # "VA Palo Alto", not "VA 20/40" nor "VA SCREEN"
    more = _NEXT_WORD.match(match.string, match.end()) if match[0].startswith(("va", "azienda")) else None
    if more and capital[more.start(1)] and not capital[more.start(1) + 1] and more[1] not in common_words():
        return match.start(), more.end()
    return match.span()


def _own_name(match: re.Match[str]) -> tuple[int, int] | None:
    """The institution's own words before its kind, back to a word such as "from"; None when there are none."""
    words = list(re.finditer(r"[^\W_][\w'’]*", match[0]))
    weak = _WEAK.match(match["head"]) is not None
    head = match.start("head") - match.start()
    start, distinctive = None, False
    for word in reversed([w for w in words if w.start() < head]):
        if match[0][word.end() : word.end() + 1] == "-" and start is not None:
            start = word.start()  # "Ashby-de-la-Zouch"
            continue
        if word[0] in _STOP or (word[0] in _GENERIC and distinctive):
            break
        if word[0] in _GENERIC or word[0] in _KINDS:
            continue
        if (
            weak
            and not distinctive
            and word[0] in vocabulary()
            and not (word[0] in _HOLY and match["head"] in _HOLY_HEADS)
        ):
            break
        if word[0] in common_words() and word[0] not in _PLACE_WORDS and word[0] not in last_names():
            break
        if weak and len(word[0]) < 4:
            break
        if match["head"] == "clinic" and word[0] in vocabulary() and word[0] not in _PLACE_WORDS | _HOLY | last_names():
            continue  # "fracture clinic"
        start, distinctive = word.start(), True
    return None if start is None else (match.start() + start, match.end())
