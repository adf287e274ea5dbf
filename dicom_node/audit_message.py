"""One audit record as a DICOM audit message (PS3.15 A.5), the form in which hospitals' audit repositories (IHE ATNA) take them.

Each message carries, beside what A.5 asks for, the number, hash and facts of the record as details of a participating object, so
that the repository can tell a record it has already and prove the chain. No patient is in it: pseudonyms, new UIDs, digests.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from dicom_node.audit import AuditRecord

OWN = "99FEDPACS"
"""Coding scheme of this program's own codes: the kinds of audit records, and what they are about."""


@dataclass(frozen=True)
class Event:
    """EventID (CID 400), EventTypeCode (CID 401 to 403) or None, EventActionCode, EventOutcomeIndicator."""

    code: str
    meaning: str
    kind: tuple[str, str] | None = None
    action: str = "E"
    outcome: str = "0"


_SECURITY = ("110113", "Security Alert", ("110129", "Security Configuration"))
_ACTIVITY = ("110100", "Application Activity")
EVENTS: dict[str, Event] = {
    "node.started": Event(*_ACTIVITY, ("110120", "Application Start")),
    "node.stopped": Event(*_ACTIVITY, ("110121", "Application Stop")),
    "node.backup": Event("110106", "Export", action="R"),
    "node.restored": Event("110107", "Import", action="C"),
    "node.": Event(*_SECURITY),
    "study.quarantined": Event("110103", "DICOM Instances Accessed", action="R", outcome="4"),
    "study.deidentified": Event("110103", "DICOM Instances Accessed", action="U"),
    "study.": Event("110103", "DICOM Instances Accessed", action="R"),
    "examples.": Event("110103", "DICOM Instances Accessed", action="R"),
    "inference.": Event("110103", "DICOM Instances Accessed", action="R"),
    "round.": Event("110103", "DICOM Instances Accessed", action="R"),
    "patient.rounds_asked": Event("110112", "Query", action="E"),
    "instance.": Event("110104", "DICOM Instances Transferred", action="C"),
    "result.": Event("110104", "DICOM Instances Transferred", action="C"),
    "identified.erased": Event("110105", "DICOM Study Deleted", action="D"),
    "quarantine.": Event("110105", "DICOM Study Deleted", action="D"),
    "egress": Event("110106", "Export", action="R"),
    "evidence.": Event("110106", "Export", action="R"),
    "model.": Event("110107", "Import", action="C"),
    "ensemble.": Event("110107", "Import", action="C"),
    "labels.": Event("110107", "Import", action="C"),
    "patient.reidentified": Event("110113", "Security Alert", ("110132", "Use of Restricted Function"), "R"),
    "patient.": Event("110110", "Patient Record", action="U"),
    "login.refused": Event("110114", "User Authentication", ("110122", "Login"), "E", "4"),
    "login.": Event("110114", "User Authentication", ("110122", "Login")),
    "audit.": Event("110101", "Audit Log Used", action="R"),
    "project.": Event(*_SECURITY),
    "keys.": Event(*_SECURITY),
    "federation.": Event(*_SECURITY),
    "roster.": Event(*_SECURITY),
    "member.": Event(*_SECURITY),
    "account.": Event("110113", "Security Alert", ("110137", "User Security Attributes Changed")),
}
"""By kind, or by the beginning of a kind that ends in a dot; the longest that fits counts."""


def event_of(kind: str) -> Event:
    """The event a kind of record is told as; Application Activity for one that has none of its own."""
    fits = [name for name in EVENTS if name == kind or (name.endswith(".") and kind.startswith(name))]
    return EVENTS[max(fits, key=len)] if fits else Event(*_ACTIVITY)


def audit_message(record: AuditRecord, node: str) -> bytes:
    """The AuditMessage document of one record, UTF-8. `node` names the node as participant and audit source."""
    event, facts = event_of(record.kind), record.facts
    root = ElementTree.Element("AuditMessage")
    identification = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=event.action,
        EventDateTime=datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=event.outcome,
    )
    _coded(identification, "EventID", event.code, "DCM", event.meaning)
    if event.kind is not None:
        _coded(identification, "EventTypeCode", event.kind[0], "DCM", event.kind[1])
    _coded(identification, "EventTypeCode", record.kind, OWN, record.kind)
    _participants(root, record, node)
    ElementTree.SubElement(root, "AuditSourceIdentification", AuditSourceID=_token(node))
    for name, value, scheme in _objects(facts):
        _object(root, name, value, scheme)
    own = _object(root, f"audit record {record.seq}", record.hash, ("audit-record", OWN, "Audit record"))
    details = {
        "seq": str(record.seq),
        "at": repr(record.at),
        "prev": record.prev,
        "facts": json.dumps(facts, sort_keys=True, ensure_ascii=False),
    }
    for name, text in details.items():
        value = base64.b64encode(text.encode()).decode()
        ElementTree.SubElement(own, "ParticipantObjectDetail", type=name, value=value)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def record_of(message: bytes) -> AuditRecord:
    """The record an audit message of this program was made of: what a repository needs to prove the chain."""
    root = ElementTree.fromstring(message)
    own = root.findall("ParticipantObjectIdentification")[-1]
    detail = {
        one.attrib["type"]: base64.b64decode(one.attrib["value"]).decode()
        for one in own.iter("ParticipantObjectDetail")
    }
    kind = root.findall("EventIdentification/EventTypeCode")[-1].attrib["csd-code"]
    return AuditRecord(
        int(detail["seq"]),
        float(detail["at"]),
        kind,
        json.loads(detail["facts"]),
        detail["prev"],
        own.attrib["ParticipantObjectID"],
    )


def _participants(root: ElementTree.Element, record: AuditRecord, node: str) -> None:
    by, recipient = record.facts.get("by"), record.facts.get("recipient")
    if by:
        ElementTree.SubElement(root, "ActiveParticipant", UserID=_text(by), UserIsRequestor="true")
    role = ("110153", "Source Role ID") if recipient else ("110150", "Application")
    own = ElementTree.SubElement(root, "ActiveParticipant", UserID=_text(node), UserIsRequestor=str(not by).lower())
    _coded(own, "RoleIDCode", role[0], "DCM", role[1])
    if recipient:
        other = ElementTree.SubElement(root, "ActiveParticipant", UserID=_text(recipient), UserIsRequestor="false")
        _coded(other, "RoleIDCode", "110152", "DCM", "Destination Role ID")


def _objects(facts: dict[str, Any]) -> Iterator[tuple[str, str, tuple[str, str, str]]]:
    """(name, identifier, type of identifier) of what the record is about."""
    if facts.get("study"):
        yield "de-identified study", str(facts["study"]), ("110180", "DCM", "Study Instance UID")
    patient = facts.get("patient") or facts.get("pseudonym")
    if patient:
        yield "pseudonym", str(patient), ("2", "RFC-3881", "Patient Number")
    if facts.get("project"):
        yield "project", str(facts["project"]), ("project", OWN, "Digest of a project")


def _object(root: ElementTree.Element, name: str, value: str, scheme: tuple[str, str, str]) -> ElementTree.Element:
    """Type 1 (person) in role 1 (patient), type 2 (system) in role 3 (report) or 13 (security resource)."""
    person, study = scheme[1] == "RFC-3881", scheme[0] == "110180"
    made = ElementTree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=_token(value),
        ParticipantObjectTypeCode="1" if person else "2",
        ParticipantObjectTypeCodeRole="1" if person else "3" if study else "13",
    )
    _coded(made, "ParticipantObjectIDTypeCode", *scheme)
    ElementTree.SubElement(made, "ParticipantObjectName").text = name
    return made


def _coded(parent: ElementTree.Element, name: str, code: str, scheme: str, meaning: str) -> None:
    values = {"csd-code": code, "codeSystemName": scheme, "originalText": meaning}
    ElementTree.SubElement(parent, name, values)


def _text(value: object) -> str:
    """What XML 1.0 can carry of a text."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value)) or "unknown"


def _token(value: object) -> str:
    return " ".join(_text(value).split()) or "unknown"
