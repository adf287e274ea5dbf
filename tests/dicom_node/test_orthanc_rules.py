"""What an Orthanc's administrator offers: each rule by itself, hours over midnight, and answers that are not understood."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from dicom_node.orthanc_reader.client import Traits
from dicom_node.orthanc_reader.rules import NOT_OFFERED, Rules

OFFER: dict[str, Any] = {"Modalities": [], "BodyParts": [], "CallingAets": [], "Labels": [], "Metadata": {}}
OFFER |= {"MinAgeDays": 0, "MaxAgeDays": 0}
STUDY = Traits(
    modalities=frozenset({"CT", "SR"}),
    body_parts=frozenset({"CHEST"}),
    calling_aets=frozenset({"SCANNER"}),
    labels=frozenset({"research"}),
    metadata={"Consent": "yes"},
    study_date="20260101",
)
TODAY = date(2026, 1, 11)


def rules(hours: tuple[str, ...] = (), **offer: Any) -> Rules:
    document = {"problems": [], "offer": {**OFFER, **offer}, "hours": list(hours), "megabytes_per_second": 0}
    return Rules.parse(document)


@pytest.mark.parametrize(
    ("offer", "good"),
    [
        ({}, True),
        ({"Modalities": ["MR", "CT"]}, True),
        ({"Modalities": ["MR"]}, False),
        ({"BodyParts": ["chest"]}, True),
        ({"BodyParts": ["HEAD"]}, False),
        ({"CallingAets": ["SCANNER"]}, True),
        ({"CallingAets": ["OTHER"]}, False),
        ({"Labels": ["research"]}, True),
        ({"Labels": ["teaching"]}, False),
        ({"Metadata": {"Consent": "yes"}}, True),
        ({"Metadata": {"Consent": "no"}}, False),
        ({"MinAgeDays": 10}, True),
        ({"MinAgeDays": 11}, False),
        ({"MaxAgeDays": 10}, True),
        ({"MaxAgeDays": 9}, False),
        ({"Modalities": ["CT"], "BodyParts": ["HEAD"]}, False),
    ],
)
def test_each_rule_withholds_what_it_names(offer: dict[str, Any], good: bool) -> None:
    why = rules(**offer).withheld_because(STUDY, TODAY)
    assert (why == "") is good
    assert good or (why.startswith(NOT_OFFERED) and "SCANNER" not in why and "2026" not in why)
    assert rules(**offer).asks is bool(offer)


def test_a_study_without_a_date_has_no_age() -> None:
    undated = Traits(STUDY.modalities, STUDY.body_parts, STUDY.calling_aets, STUDY.labels, STUDY.metadata, "")
    assert "no date" in rules(MaxAgeDays=5).withheld_because(undated, TODAY)


@pytest.mark.parametrize(
    ("hours", "at", "good"),
    [
        ((), "12:00", True),
        (("19:00-06:00",), "05:59", True),
        (("19:00-06:00",), "06:00", False),
        (("19:00-06:00",), "19:00", True),
        (("08:00-10:00", "12:00-13:00"), "12:30", True),
        (("08:00-10:00", "12:00-13:00"), "11:00", False),
    ],
)
def test_hours(hours: tuple[str, ...], at: str, good: bool) -> None:
    assert rules(hours).open_at(datetime.fromisoformat(f"2026-01-01T{at}")) is good


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"problems": ["Fedpacs.Offer is wrong"]},
        {"problems": [], "offer": {}},
        {"problems": 3},
        {"problems": [], "offer": None},
    ],
)
def test_what_is_not_understood_offers_nothing(document: dict[str, Any]) -> None:
    told = Rules.parse(document)
    assert told.problem and told.asks
    assert told.withheld_because(STUDY, TODAY) == NOT_OFFERED + told.problem


def test_an_orthanc_that_never_gave_rules_offers_everything() -> None:
    assert not Rules.load("").asks
