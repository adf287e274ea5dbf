"""What a pull needs of a PACS, however it is reached, and the PACS reached by C-FIND with C-GET or C-MOVE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from dicom_node.errors import InputError
from dicom_node.retrieve import qr
from dicom_node.retrieve.plan import Found
from dicom_node.retrieve.selection import Selection
from dicom_node.scu.peer import Peer
from dicom_node.spool import Spool

_STORAGE = "1.2.840.10008.5.1.4.1.1."
USUAL = frozenset(
    _STORAGE + suffix
    for suffix in ("1", "1.1", "1.1.1", "1.2", "2", "2.1", "3.1", "4", "4.1", "6.1", "7", "7.2", "7.3", "7.4", "12.1", "12.2",
                   "20", "66.4", "88.22", "88.33", "104.1", "128", "130", "481.3")
)  # fmt: skip
"""Storage classes offered for C-GET to a PACS that does not tell which it has (dcmqrscp does not): CR, DX, MG, CT, MR, US, SC,
XA, RF, NM, SEG, SR, PDF, PET and RTSTRUCT. What it has beside these does not come, and the pull says how many are missing."""


class Source(Protocol):
    """A PACS. Every method raises UnreachableError (try again later) or RefusedError."""

    arrives_later: bool
    """Whether instances come by another way than `fetch`, and may be under way when it returns."""

    @property
    def name(self) -> str:
        """The PACS in messages and in the plan's name."""

    def find(self, selection: Selection) -> Iterator[Found]:
        """The studies of a selection, each once."""

    def instances(self, study_uid: str) -> dict[str, str]:
        """{SOP Instance UID: SOP Class UID, "" where the PACS does not tell} of a study."""

    def fetch(self, study_uid: str, missing: Mapping[str, str], spool: Spool, tell: Callable[[], None]) -> None:
        """Bring these instances of a study, byte for byte as the PACS gives them; `tell` after each that is durable."""


@dataclass
class Dimse:
    """A PACS reached by C-FIND, and C-GET (via "get") or C-MOVE to this node's own AE (via "move")."""

    peer: Peer
    via: str
    calling: str
    timeout: float

    def __post_init__(self) -> None:
        if self.via not in ("move", "get"):
            raise InputError(f"--via {self.via!r} is none of get, move and web: choose one.")
        self.arrives_later = self.via == "move"

    @property
    def name(self) -> str:
        return str(self.peer)

    def find(self, selection: Selection) -> Iterator[Found]:
        return qr.find(self.peer, selection, self.calling, self.timeout)

    def instances(self, study_uid: str) -> dict[str, str]:
        return qr.instances(self.peer, study_uid, self.calling, self.timeout)

    def fetch(self, study_uid: str, missing: Mapping[str, str], spool: Spool, tell: Callable[[], None]) -> None:
        if self.via == "move":
            qr.move(self.peer, study_uid, self.calling, self.calling, self.timeout)
            return
        classes = set(missing.values())
        if "" in classes:
            classes = (classes - {""}) | USUAL
        qr.get(self.peer, study_uid, classes, spool, self.calling, self.timeout, tell)
