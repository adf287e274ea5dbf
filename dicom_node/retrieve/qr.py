"""C-FIND, C-MOVE and C-GET as SCU (PS3.4 annex C, Study Root): ask a PACS, have it send, and take what it sends byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydicom import Dataset
from pynetdicom import build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_node.errors import InputError, NodeError, RefusedError, UnreachableError
from dicom_node.receiver.sop_classes import TRANSFER_SYNTAXES
from dicom_node.retrieve.plan import Found
from dicom_node.retrieve.selection import Selection, halves
from dicom_node.scu.peer import Peer, associate
from dicom_node.spool import Spool

FIND = str(StudyRootQueryRetrieveInformationModelFind)
MOVE = str(StudyRootQueryRetrieveInformationModelMove)
GET = str(StudyRootQueryRetrieveInformationModelGet)
_LITTLE = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_PENDING = (0xFF00, 0xFF01)
_TOO_MANY = 0xA700
_MOST_CONTEXTS = 128
_FIRST_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90",
                   "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.91",
                   "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.81")  # fmt: skip


class TooManyError(Exception):
    """The PACS limits its answers."""


def find(peer: Peer, selection: Selection, calling: str, timeout: float) -> Iterator[Found]:
    """The studies of a selection, each once. Raises UnreachableError, RefusedError."""
    seen: set[str] = set()
    with associate(peer, [(FIND, _LITTLE)], calling, timeout) as association:
        waiting = list(selection.queries())
        while waiting:
            query = waiting.pop(0)
            try:
                answers = _ask(peer, association, query)
            except TooManyError:
                if not (parts := halves(query)):
                    raise RefusedError(
                        f"{peer} limits its answers: narrow the selection, for example by --from and --to."
                    ) from None
                waiting += parts
                continue
            for answer in answers:
                uid = str(answer.get("StudyInstanceUID", ""))
                if uid and uid not in seen:
                    seen.add(uid)
                    yield _found(answer, uid)


def _found(answer: Dataset, uid: str) -> Found:
    modalities = answer.get("ModalitiesInStudy") or ""
    several = [modalities] if isinstance(modalities, str) else list(modalities)
    try:
        count = int(answer.get("NumberOfStudyRelatedInstances") or 0)
    except (TypeError, ValueError):
        count = 0
    return Found(uid, str(answer.get("PatientID", "")), tuple(str(one) for one in several if one), count)


def instances(peer: Peer, study_uid: str, calling: str, timeout: float) -> dict[str, str]:
    """{SOP Instance UID: SOP Class UID} of a study, series by series; a class is "" where the PACS does not tell."""
    found: dict[str, str] = {}
    with associate(peer, [(FIND, _LITTLE)], calling, timeout) as association:
        for series in _ask(peer, association, level("SERIES", study_uid, SeriesInstanceUID="")):
            query = level(
                "IMAGE", study_uid, SeriesInstanceUID=series.SeriesInstanceUID, SOPInstanceUID="", SOPClassUID=""
            )
            for image in _ask(peer, association, query):
                found[str(image.SOPInstanceUID)] = str(image.get("SOPClassUID", ""))
    return found


def level(name: str, study_uid: str, **keys: Any) -> Dataset:
    """A C-FIND identifier for one study at a level (PS3.4 C.6.2)."""
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = name, study_uid
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def ask(peer: Peer, query: Dataset, calling: str, timeout: float) -> list[Dataset]:
    """What a PACS answers to one C-FIND. Raises UnreachableError, RefusedError."""
    with associate(peer, [(FIND, _LITTLE)], calling, timeout) as association:
        try:
            return _ask(peer, association, query)
        except TooManyError:
            raise RefusedError(f"{peer} limits its answers to a C-FIND: let it answer this node in full.") from None


def _ask(peer: Peer, association: Any, query: Dataset) -> list[Dataset]:
    answers = []
    for status, identifier in association.send_c_find(query, FIND):
        if not status:
            raise UnreachableError(f"{peer} did not answer a C-FIND: try again later.")
        if status.Status in _PENDING:
            answers.append(identifier)
        elif status.Status == _TOO_MANY:
            raise TooManyError
        elif status.Status != 0:
            raise RefusedError(f"{peer} answered a C-FIND with status 0x{status.Status:04X}: look at its log.")
    return answers


def move(peer: Peer, study_uid: str, destination: str, calling: str, timeout: float) -> None:
    """Have the PACS send a study to `destination`, an AE title it must know. Raises RefusedError, UnreachableError."""
    with associate(peer, [(MOVE, _LITTLE)], calling, timeout) as association:
        answers = association.send_c_move(level("STUDY", study_uid), destination, MOVE)
        _check(peer, [status for status, _ in answers], "C-MOVE", destination)


def get(
    peer: Peer, study_uid: str, classes: set[str], spool: Spool, calling: str, timeout: float, tell: Callable[[], None]
) -> None:
    """Take a study on this association; each instance is durable before its C-STORE is answered."""
    contexts = _contexts(classes)
    roles = [build_role(sop_class, scp_role=True) for sop_class in sorted(classes)]
    with associate(peer, [(GET, _LITTLE), *contexts], calling, timeout, roles) as association:

        def keep(event: evt.Event) -> int:
            try:
                spool.add_file(event.encoded_dataset(), source=peer.ae_title)
            except InputError:
                return 0xC000
            except NodeError:
                return 0xA700
            tell()
            return 0x0000

        association.bind(evt.EVT_C_STORE, keep)
        _check(peer, [status for status, _ in association.send_c_get(level("STUDY", study_uid), GET)], "C-GET", "")


def _contexts(classes: set[str]) -> list[tuple[str, list[str]]]:
    """One context a class and transfer syntax, so that the PACS sends each object as it keeps it."""
    rest = sorted(TRANSFER_SYNTAXES - set(_FIRST_SYNTAXES))
    room = (_MOST_CONTEXTS - 1) // max(1, len(classes))
    if room == 0:
        raise RefusedError("The study holds more SOP classes than one association can name: use --via move.")
    return [(sop_class, [syntax]) for sop_class in sorted(classes) for syntax in [*_FIRST_SYNTAXES, *rest][:room]]


def _check(peer: Peer, statuses: list[Dataset], operation: str, destination: str) -> None:
    last = statuses[-1] if statuses else None
    if not last:
        raise UnreachableError(f"{peer} did not answer a {operation}: try again later.")
    code = int(last.Status)
    if code == 0xA801:
        raise RefusedError(
            f"{peer} does not know the destination {destination}: register this node's AE title, host and port there."
        )
    if code & 0xF000 == 0xB000:
        failed = last.get("NumberOfFailedSuboperations", "some")
        raise RefusedError(f"{peer} could not send {failed} instances of a study ({operation} status 0x{code:04X}).")
    if code != 0:
        known = f", and whether it knows {destination} with this node's host and port" if destination else ""
        raise RefusedError(f"{peer} answered a {operation} with status 0x{code:04X}: look at its log{known}.")
