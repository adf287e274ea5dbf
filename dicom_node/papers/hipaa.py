"""The HIPAA statement: what the node's profile does with each of the 18 identifiers of 45 CFR 164.514(b)(2)(i)."""

from __future__ import annotations

from anonymizer.profile import Profile
from dicom_node.papers.document import Paper, Section, blank
from dicom_node.papers.facts import Facts

WORDS = {
    "K": "kept",
    "X": "removed",
    "Z": "emptied",
    "D": "replaced by a dummy",
    "C": "cleaned",
    "U": "replaced by new UIDs",
}
GONE = frozenset("XZDU")
IDENTIFIERS: tuple[tuple[str, str, tuple[tuple[int, str], ...]], ...] = (
    (
        "A",
        "Names",
        ((0x00100010, "PatientName"), (0x00080090, "ReferringPhysicianName"), (0x00081070, "OperatorsName")),
    ),
    (
        "B",
        "Geographic subdivisions smaller than a state",
        ((0x00101040, "PatientAddress"), (0x00080081, "InstitutionAddress")),
    ),
    (
        "C",
        "Dates directly related to an individual, and ages over 89",
        (
            (0x00100030, "PatientBirthDate"),
            (0x00080020, "StudyDate"),
            (0x00380020, "AdmittingDate"),
            (0x00101010, "PatientAge"),
        ),
    ),
    ("D", "Telephone numbers", ((0x00102154, "PatientTelephoneNumbers"),)),
    ("E", "Fax numbers", ()),
    ("F", "Electronic mail addresses", ((0x00102155, "PatientTelecomInformation"),)),
    ("G", "Social security numbers", ((0x00101000, "OtherPatientIDs"), (0x00101002, "OtherPatientIDsSequence"))),
    ("H", "Medical record numbers", ((0x00100020, "PatientID"), (0x00101090, "MedicalRecordLocator"))),
    ("I", "Health plan beneficiary numbers", ((0x00101050, "InsurancePlanIdentification"),)),
    ("J", "Account numbers", ((0x00080050, "AccessionNumber"), (0x00380010, "AdmissionID"))),
    ("K", "Certificate and license numbers", ()),
    ("L", "Vehicle identifiers", ()),
    ("M", "Device identifiers and serial numbers", ((0x00181000, "DeviceSerialNumber"), (0x00181002, "DeviceUID"))),
    ("N", "Web URLs", ((0x00081190, "RetrieveURL"),)),
    ("O", "IP addresses", ()),
    ("P", "Biometric identifiers", ()),
    ("Q", "Full-face photographs and comparable images", ()),
    (
        "R",
        "Any other unique identifying number or code",
        ((0x0020000D, "StudyInstanceUID"), (0x00080018, "SOPInstanceUID")),
    ),
)


def statement(facts: Facts) -> Paper:
    """The table of identifiers and what follows from it. It names the method and does not certify it."""
    kept = [f"({letter}) {name}" for letter, name, attributes in IDENTIFIERS if _kept(facts.profile, attributes)]
    if kept:
        method = (
            "This profile keeps, cleans or shifts values in "
            + "; ".join(kept)
            + ". The removal of all 18 identifiers (Safe"
            " Harbor, 164.514(b)(2)) is not claimed: use Expert Determination (164.514(b)(1)), a limited data set with a data"
            " use agreement (164.514(e)), or another profile."
        )
    else:
        method = "Every listed attribute of the 18 identifiers is removed or replaced by this profile."
    pixels = {
        "clean": "text found in pixels is blanked; where it cannot be, the object is quarantined",
        "withhold": "objects that may have text burned into their pixels are quarantined",
        "trust": "pixels are passed on as they are",
    }[facts.profile.pixels]
    faces = "faces" in facts.profile.options
    return Paper(
        "De-identification under HIPAA (45 CFR 164.514)",
        facts.made,
        [
            Section(
                "Method", [method, f"Covered entity: {blank('name')}", f"Expert, if any: {blank('name, date, report')}"]
            ),
            Section(
                "The 18 identifiers and what this node does with them",
                (),
                [
                    ["", "identifier", f"attributes and what profile {facts.profile.name} does"],
                    *(
                        [letter, name, _told(facts.profile, letter, attributes, pixels, faces)]
                        for letter, name, attributes in IDENTIFIERS
                    ),
                ],
            ),
            Section(
                "Beyond the listed attributes",
                [
                    (
                        "Every other attribute follows Table E.1-1 of PS3.15"
                        f" ({facts.profile.edition}): {', '.join(facts.options) or 'Basic Profile alone'}."
                    ),
                    f"Private attributes: {facts.profile.private} list of safe ones, all others removed.",
                    f"Pixels: {pixels}.",
                    "Text that stays is searched for the names, numbers and dates of the same header.",
                    "Re-identification codes (164.514(c)): pseudonyms are keyed hashes; the key stays in the hospital's vault.",
                    f"Actual knowledge (164.514(b)(2)(ii)): {blank('the covered entity knows of no way to identify, or which')}",
                ],
            ),
        ],
    )


def _kept(profile: Profile, attributes: tuple[tuple[int, str], ...]) -> bool:
    """Whether an attribute of these is not simply removed or replaced."""
    rules = [profile.rule(tag) for tag, _ in attributes]
    return any(rule is None or rule.action not in GONE for rule in rules)


def _told(profile: Profile, letter: str, attributes: tuple[tuple[int, str], ...], pixels: str, faces: bool) -> str:
    if letter == "Q":
        done = (
            "faces in head volumes are changed (Clean Recognizable Visual Features)"
            if faces
            else "faces are not changed"
        )
        return f"{done}; {pixels}; photographs: {blank('whether such objects are sent to this node')}"
    if not attributes:
        return "no attribute of its own in DICOM; found in text by the cleaning of text only"
    told = []
    for tag, keyword in attributes:
        rule = profile.rule(tag)
        told.append(f"{keyword}: {WORDS[rule.action] if rule else 'kept, its text cleaned'}")
    if letter == "C" and "dates_modified" in profile.options:
        told.append(
            "dates that stay are shifted by a number of days of each patient's own; ages over 89: see PatientAge"
        )
    return "; ".join(told)
