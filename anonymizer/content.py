"""Tells which SR content items identify by their concept name (PS3.15 E.3.4, Table E.3.4-1: Clean Structured Content)."""

from __future__ import annotations

from anonymizer.walk import Element, Items

CONTENT_SEQUENCE, CONCEPT_NAME, CODE_VALUE = 0x0040A730, 0x0040A043, 0x00080100
_OF = 1 << 32  # above every tag: an item of this sequence whose concept names what the value is
NAME, ID, BIRTH, AGE = (CONTENT_SEQUENCE | n * _OF for n in (1, 2, 3, 4))
DUMMIED = 5 * _OF  # inside a sequence that is replaced by a dummy, whatever its tag
DUMMY_SEQUENCES = frozenset([CONTENT_SEQUENCE, 0x0040B020, 0x00700001])  # SR content, waveform and graphic annotations
SOURCES = {NAME: "name", ID: "id", BIRTH: "date"}
VALUES = frozenset([0x0040A160, 0x0040A123, 0x0040A120, 0x0040A121, 0x0040A122])  # TEXT, PNAME, DATETIME, DATE, TIME
NUMERIC_VALUE, MEASURED_VALUE = 0x0040A30A, 0x0040A300
_CONCEPTS = {
    NAME: "121008 121029 121036 128774 113870",  # observer, subject, mother of fetus, login, person
    ID: "121009 121013 121016 121017 121022 121030 113871 113872 113873 113877 113880 121191",
    BIRTH: "121031",
    AGE: "121033",
}
_KINDS = {code.encode(): kind for kind, codes in _CONCEPTS.items() for code in codes.split()}


def place_of(parent: int, elements: list[Element], data: memoryview) -> int:
    """The place of an item in a sequence: the sequence's tag, or more exactly what an SR item's concept says it holds."""
    if parent != CONTENT_SEQUENCE:
        return parent  # also DUMMIED, which goes for everything inside
    for tag, _, _, _, _, items in elements:
        if tag == CONCEPT_NAME and isinstance(items, Items) and items.items:
            for inner, _, _, start, stop, _ in items.items[0].elements:
                if inner == CODE_VALUE:
                    return _KINDS.get(bytes(data[start:stop]).strip(b" \0"), parent)
    return parent
