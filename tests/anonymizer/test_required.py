"""No IOD loses an attribute it requires: Type 1 stays with a value, Type 2 stays (PS3.15 E.1.1, PS3.5 7.4)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import highdicom
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag

from anonymizer import Deidentifier, load_profile
from tests.anonymizer.corpus.generate import base, encoded
from tests.anonymizer.corpus.people import PEOPLE

pytestmark = pytest.mark.filterwarnings("ignore")
STANDARD = Path(highdicom.__file__).parent / "_standard"
EXAMPLE = {
    "AE": "AETITLE", "AS": "045Y", "CS": "VALUE", "DA": "20190315", "DS": "1.5", "DT": "20190315101500", "IS": "3", "LO": "text",
    "LT": "text", "PN": "Somebody^Else",
    "SH": "text", "ST": "text", "TM": "101500", "UC": "text", "UI": "1.2.3.4.5.6.7.8", "UT": "text",
    "US": 1, "SS": 1, "UL": 1, "SL": 1, "FL": 1.0, "FD": 1.0, "OB": b"\0\0", "OW": b"\0\0",
}  # fmt: skip
# The table itself removes these although IODs require them
BY_TABLE = {"PresentationCreationDate", "PresentationCreationTime", "TimezoneOffsetFromUTC"}
WITHHELD = ("1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.44.1")


def required(
    iod: str, uses: dict[str, list[dict[str, str]]], modules: dict[str, list[dict[str, object]]]
) -> dict[int, str]:
    """{tag: "1" or "2"} of the mandatory modules' top-level attributes."""
    found: dict[int, str] = {}
    for use in uses[iod]:
        for attribute in modules.get(use["key"], []) if use["usage"] == "M" else []:
            tag, kind = keyword_dict.get(str(attribute["keyword"])), str(attribute["type"])
            if tag and not attribute["path"] and kind in ("1", "2") and dictionary_VR(tag)[:2] in EXAMPLE:
                found[tag] = min(kind, found.get(tag, kind))
    return found


@pytest.mark.parametrize("profile", ["basic", "federated-default"])
def test_every_iod_keeps_what_it_requires(profile: str) -> None:
    read = lambda name: json.loads((STANDARD / f"{name}.json").read_text())  # noqa: E731
    modules, uses, classes = read("module_attribute_map"), read("iod_module_map"), read("sop_class_iod_map")
    deid, judged = Deidentifier(load_profile(profile), bytes(range(32))), 0
    for uid, iod in classes.items():
        if uid in WITHHELD or ".104." in uid:
            continue
        ds, needed = base(PEOPLE[0], 1, sop_class=uid, pixels=False), required(iod, uses, modules)
        for tag in needed:
            if tag not in ds and tag != 0x7FE00010:
                ds.add_new(tag, dictionary_VR(tag)[:2], EXAMPLE[dictionary_VR(tag)[:2]])
        outcome = deid.deidentify(encoded(ds))
        assert outcome.output is not None, (uid, outcome.reason)
        after = pydicom.dcmread(io.BytesIO(outcome.output))
        for tag, kind in needed.items():
            if tag in ds and keyword_for_tag(tag) not in BY_TABLE:
                assert tag in after, (iod, keyword_for_tag(tag))
                assert kind == "2" or after[tag].value not in (None, "", b""), (iod, keyword_for_tag(tag))
        judged += 1
    assert judged > 160
