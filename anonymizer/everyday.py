"""Tells an everyday word that is the patient's own name ("Price", "White") from the same word in a finding."""

from __future__ import annotations

import re

from anonymizer.words import first_names, last_names

# names that are also words of findings and orders: only their place in a sentence tells which is meant
_WORDS = """
    april art august ball best black bird branch bright brown case chance cross crystal day english french frost gene
    german glass golden good gray green gross hall hill holder hood horn hope hunter iris june key lance lane little long
    major mark max may miles moss noble page pace pearl ray rose rush sharp short small snow stone strong summer sweet van
    violet wall walls ward waters weeks west white will wood young
"""
_ALSO_CLINICAL = frozenset(_WORDS.split())


def short_names(folded: str, capital: list[bool], own: frozenset[str]) -> list[tuple[int, int]]:
    """Where the patient's own name of two letters stands, written Like this: "Ng" is the patient, "NG tube" is none.

    In capitals it is the name beside an initial only ("WU A").
    """
    words = [
        w
        for w in re.finditer(r"(?<![^\W_])([^\W\d_]{2})(?:['’]s)?(?![^\W\d_]|-)", folded)
        if w[1] in own and capital[w.start()]
    ]
    return [
        w.span()
        for w in words
        if not capital[w.start() + 1] or re.match(r",?\s[a-z]\.?(?:,|$)", folded[w.end() : w.end() + 5])
    ]


def everyday_names(folded: str, capital: list[bool], own: frozenset[str]) -> list[tuple[int, int]]:
    """Where the patient's own name, an everyday word ("Price", "White"), is written as a name.

    The whole text is the name; or the word has a capital, and, if findings use it too, stands alone so inside a sentence.
    """
    whole = folded.strip(" ^,.")
    if whole in own:
        return [(0, len(folded))]
    found: list[tuple[int, int]] = []
    words = list(re.finditer(r"[^\W\d_]+", folded))
    title = [capital[w.start()] and not all(capital[w.start() : w.end()]) for w in words]
    for index, word in enumerate(words):
        if word[0] not in own or not capital[word.start()] or not (word[0] in last_names() or word[0] in first_names()):
            continue
        if word[0] not in _ALSO_CLINICAL:
            found.append(word.span())
            continue
        beside = title[max(0, index - 1) : index] + title[index + 1 : index + 2]
        begins = index == 0 or re.search(r"[.!?:;\n]\s*$", folded[: word.start()]) is not None
        if title[index] and not begins and not any(beside):
            found.append(word.span())
    return found
