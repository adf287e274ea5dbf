"""Which abstract and transfer syntaxes the receiver accepts, taken from the standard's registries (PS3.4, PS3.6)."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence

from pydicom.uid import UID_dictionary
from pynetdicom import sop_class

from dicom_node.spool.header import valid_uid

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = str(sop_class.StorageCommitmentPushModel)
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"

MPPS = "1.2.840.10008.3.1.2.3.3"  # Modality Performed Procedure Step
INSTANCE_AVAILABILITY = "1.2.840.10008.5.1.4.33"  # Instance Availability Notification
NOTICES = (MPPS, INSTANCE_AVAILABILITY)
SERVICES = (VERIFICATION, STORAGE_COMMITMENT, *NOTICES)

IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNCOMPRESSED = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE)
GE_IMPLICIT_LE = "1.2.840.113619.5.2"

# Sent as a transfer syntax but never of a data set that is stored: live video, and one that the standard retired as a format.
_NOT_STORED = frozenset(
    {
        "1.2.840.10008.1.2.7.1",
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
        "1.2.840.10008.1.20",
        "1.2.840.10008.1.2.6.1",
    }
)


def _storage_classes() -> frozenset[str]:
    current = {*sop_class._STORAGE_CLASSES.values(), *sop_class._NON_PATIENT_OBJECT_CLASSES.values()}
    registered = {
        uid
        for uid, entry in UID_dictionary.items()
        if entry[1] == "SOP Class" and "Storage" in entry[0] and uid.startswith("1.2.840.10008.5.1.")
    }
    return frozenset(str(uid) for uid in current | registered)


STORAGE_CLASSES = _storage_classes()
# The names of classes that are younger than pydicom's dictionary.
_KEYWORDS = {
    str(uid): keyword
    for table in (sop_class._STORAGE_CLASSES, sop_class._NON_PATIENT_OBJECT_CLASSES)
    for keyword, uid in table.items()
}
TRANSFER_SYNTAXES = frozenset(
    uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax" and uid not in _NOT_STORED
) | {GE_IMPLICIT_LE}

ACCEPTANCE, NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = 0, 3, 4


ANY = "*"  # in the list of private classes: whatever the standard does not know is taken for a storage class


def is_storage(abstract: str, private: Container[str]) -> bool:
    """Whether objects of this SOP class are stored."""
    unknown = ANY in private and abstract not in UID_dictionary and valid_uid(abstract)
    return abstract in STORAGE_CLASSES or abstract in private or unknown


def negotiate(abstract: str, proposed: Sequence[str], private: Container[str] = ()) -> tuple[int, str]:
    """The result of one presentation context (PS3.8 section 9.3.3.2) and the transfer syntax it is accepted with.

    The first acceptable proposal wins: senders put first the one their object is stored in, so nothing is transcoded.
    """
    if is_storage(abstract, private):
        good: Iterable[str] = (t for t in proposed if t in TRANSFER_SYNTAXES)
    elif abstract in SERVICES:
        good = (t for t in proposed if t in UNCOMPRESSED)
    else:
        return NO_ABSTRACT_SYNTAX, proposed[0] if proposed else IMPLICIT_LE
    chosen = next(iter(good), None)
    return (
        (ACCEPTANCE, chosen) if chosen is not None else (NO_TRANSFER_SYNTAX, proposed[0] if proposed else IMPLICIT_LE)
    )


def name_of(uid: str) -> str:
    """The registered name of a UID, or the UID itself."""
    entry: Mapping[int, str] | None = UID_dictionary.get(uid)
    return entry[0] if entry else _spelt(_KEYWORDS.get(uid, uid))


def _spelt(keyword: str) -> str:
    """A keyword as words; abbreviations stay whole."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", keyword) if keyword.isalnum() else keyword
