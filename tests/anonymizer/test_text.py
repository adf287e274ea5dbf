"""The text cleaner as a function: what it leaves alone, long texts, and time that no text can stretch."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.identity import Identity, Source, identity
from anonymizer.persons import Page
from anonymizer.places import places
from anonymizer.text import LONGEST, PIECE, clean_text, clean_tokens
from anonymizer.words import other_kana, spellings

WHO = identity(
    frozenset([
        Source("name", "Quennell^Tabitha^Rose"), Source("id", "MRN-7730418"), Source("place", "St. Brannoc Infirmary"),
        Source("date", "19511203"),
    ])
)  # fmt: skip
NOBODY = identity(frozenset())


def test_a_clean_text_comes_back_as_the_same_object() -> None:
    text = "AX T2 FLAIR FS, Hodgkin lymphoma, 3/4 view"
    assert clean_text(text, WHO, -1) is text


@settings(deadline=None)
@given(st.text(max_size=80))
def test_cleaning_twice_is_cleaning_once_as_far_as_names_go(text: str) -> None:
    once = clean_text(f"{text} Quennell", WHO, None)
    assert "quennell" not in once.casefold()


def test_a_long_report_is_cleaned_line_by_line_and_keeps_its_order() -> None:
    lines = [f"{n}. Nodule of 8 mm in segment {n}, seen by Dr. Abernathy for Quennell" for n in range(400)]
    report = "\n".join(lines)
    assert len(report) > 10 * PIECE
    cleaned = clean_text(report, WHO, -1).splitlines()
    assert len(cleaned) == 400
    assert all(line.startswith(f"{n}. Nodule of 8 mm in segment {n}") for n, line in enumerate(cleaned))
    assert "Abernathy" not in "".join(cleaned) and "Quennell" not in "".join(cleaned)


def test_a_text_longer_than_any_note_is_emptied() -> None:
    assert clean_text("word " * (LONGEST // 5 + 1), WHO, -1) == ""


@pytest.mark.parametrize(
    "unit", ["1.", "a.", "A b ", "12-", "dr ", "a^", "aa:", "9 ", "St. ", "at ", "John ", "a", "0", "Ab"]
)
def test_no_text_takes_long(unit: str) -> None:
    started = time.process_time()
    for turn in range(4):
        clean_text(str(turn) + unit * (PIECE // len(unit)), WHO, -1)
    assert time.process_time() - started < 8


def test_terms_lose_the_objects_own_tokens_only() -> None:
    assert clean_tokens("Scanner of Dr Abernathy", WHO) == "Scanner of Dr Abernathy"
    assert clean_tokens("Scanner QUENNELL 7", WHO) == "Scanner 7"


@pytest.mark.parametrize(
    ("slip", "taken"),
    [("Quennel", True), ("Qeunnell", True), ("Quennelll", True), ("Quennels", True), ("Quenching", False)],
)
def test_a_slip_of_the_pen_is_known(slip: str, taken: bool) -> None:
    assert (clean_text(f"{slip} seen", WHO, -1) == "seen") is taken


def test_spellings() -> None:
    assert {"muller", "mueller"} <= spellings("Müller")
    assert {"shcherbakov", "scherbakov"} <= spellings("Щербаков")
    assert other_kana("やまざき") == "ヤマザキ" and other_kana("ヤマザキ") == "やまざき"


def spans(text: str, found: object) -> list[str]:
    return [text[a:b] for a, b in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("MR Brain and DR Chest", set()),
        ("Mr Brain called", {"Brain"}),
        ("Dr White: white matter", {"White"}),
        ("by Okonkwo with Doppler", {"Okonkwo"}),
        ("Swan-Ganz catheter, Hodgkin disease", set()),
    ],
)
def test_people_are_told_from_words(text: str, names: set[str]) -> None:
    capital = [char.isupper() for char in text]
    found = Page(text.lower(), capital).spans()
    assert set(spans(text, found)) == names


def test_places_need_a_name_of_their_own() -> None:
    text = "outside hospital, Larkmoor Medical Centre, cardiac imaging"
    assert spans(text, places(text.lower(), [c.isupper() for c in text])) == ["Larkmoor Medical Centre"]


def test_a_zone_or_a_measure_is_no_identifier() -> None:
    who = identity(frozenset([Source("id", "+0200"), Source("id", "1.000"), Source("id", "K-4471")]))
    assert who.verify == ("k-4471",)


def test_nobody_has_no_pattern() -> None:
    assert isinstance(NOBODY, Identity) and NOBODY.spans("anything") == []


@pytest.mark.parametrize(
    ("number", "text", "cleaned"),
    [
        ("QX-0", "id QX-0 rpt scan", "rpt scan"),
        ("QX-0", "ABD QX-0 portal", "ABD portal"),
        ("AI9", "add-on to series 4/AI9 pelvis", "add-on to series 4/ pelvis"),
        ("L5", "disc L5, S1", "disc L5, S1"),  # a vertebra, whoever has it as a number
        ("CT1", "from CT1 scanner", "from CT1 scanner"),
        ("T2", "AX T2 FLAIR", "AX T2 FLAIR"),
    ],
)
def test_a_short_patient_number_of_letters_and_digits_goes_unless_findings_use_it(
    number: str, text: str, cleaned: str
) -> None:
    assert clean_text(text, identity(frozenset([Source("id", number)])), -1) == cleaned


def test_the_city_of_the_institution_goes_though_a_scale_is_named_after_it() -> None:
    address = identity(frozenset([Source("place", "Dorpsstraat 4, 9712 AB Groningen")]))
    assert clean_text("Groningen trauma series", address, -1) == "trauma series"
    assert clean_text("Groningen frailty 4", NOBODY, -1) == "Groningen frailty 4"
