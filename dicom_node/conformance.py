"""docs/conformance.md, written from the code, so that the DICOM Conformance Statement cannot drift (outline of PS3.2).

python -m dicom_node.conformance > docs/conformance.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import UID_dictionary

from dicom_node.config import DicomSettings, StorageSettings
from dicom_node.receiver import acceptor, commitment, dimse, pdu, server, sop_classes
from dicom_node.receiver.settings import Settings
from dicom_node.receiver.tls import CIPHERS
from dicom_node.spool.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

_STATUSES = (
    (
        dimse.SUCCESS,
        "Success",
        "durable: on disk and synced before this is sent; also for bytes that were here already",
    ),
    (
        dimse.STORED_BUT_QUARANTINED,
        "Warning: data set does not match SOP class",
        "kept byte for byte but in quarantine: no Study or Series Instance UID, or a structure that breaks off",
    ),
    (
        dimse.OUT_OF_RESOURCES,
        "Refused: out of resources",
        "the watermark reached, or the spool cannot be written; send again",
    ),
    (
        dimse.DATA_SET_MISMATCH,
        "Error: data set does not match SOP class",
        "SOP class or instance UID is not that of the command",
    ),
    (
        dimse.CANNOT_UNDERSTAND,
        "Error: cannot understand",
        "no data set, no structure that can be read, or a malformed UID in it",
    ),
    (dimse.INVALID_INSTANCE, "Failure: invalid SOP instance", "the affected SOP Instance UID is not a UID"),
    (
        dimse.CLASS_NOT_SUPPORTED,
        "Failure: SOP class not supported",
        "the command's SOP class is not that of the context",
    ),
    (dimse.UNRECOGNISED_OPERATION, "Failure: unrecognized operation", "any other DIMSE operation"),
)
_REJECTIONS = (
    (acceptor.PERMANENT, acceptor.USER, 2, "application context name not supported"),
    (acceptor.PERMANENT, acceptor.USER, 3, "calling AE title or address is not on the list, or the title is malformed"),
    (
        acceptor.PERMANENT,
        acceptor.USER,
        7,
        "called AE title is empty or malformed, or not this node's where that is required",
    ),
    (acceptor.PERMANENT, acceptor.ACSE, 2, "protocol version not supported"),
    (acceptor.TRANSIENT, acceptor.PRESENTATION, 2, "maximum number of associations reached"),
)
_ABORTS = (
    (pdu.UNRECOGNISED, "unrecognized PDU"),
    (pdu.UNEXPECTED, "a PDU out of order"),
    (pdu.UNEXPECTED_PARAMETER, "a message part out of order"),
    (pdu.INVALID_PARAMETER, "a PDU or item with a wrong length or content, or longer than negotiated"),
)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def statement() -> str:
    """The whole document, in Markdown."""
    parts = [_overview, _storage_scp, _classes, _syntaxes, _statuses, _associations, _limits, _scu, _security, _support]
    return "\n".join(line for part in parts for line in part()).rstrip() + "\n"


def _overview() -> Iterator[str]:
    yield "# DICOM Conformance Statement"
    yield ""
    yield "Written from the code by `python -m dicom_node.conformance`; a test fails when the two differ. It follows PS3.2."
    yield ""
    yield "## 1 Overview"
    yield ""
    yield "A node receives studies, keeps them byte for byte, and hands them to de-identification. It transcodes nothing."
    yield ""
    yield from table(
        ("service", "SCP", "SCU"),
        (
            ("Verification", "yes", "`fedpacs node echo`"),
            (
                "Storage",
                f"yes, {len(sop_classes.STORAGE_CLASSES)} SOP classes",
                "`fedpacs node send`; results, queued until the PACS has them",
            ),
            (
                "Storage Commitment Push Model",
                "yes, reported on the same or a new association",
                "`fedpacs node echo --commitment` asks whether it is offered; nothing is requested",
            ),
            ("Modality Performed Procedure Step", "yes, for how many instances to expect", "no"),
            ("Instance Availability Notification", "yes, for how many instances to expect", "no"),
            ("Query/Retrieve, Study Root", "no", "`fedpacs node pull`: C-FIND, C-MOVE, C-GET"),
            ("DICOMweb (PS3.18) STOW-RS", "no", "results: user agent, one instance a request"),
            (
                "DICOMweb (PS3.18) QIDO-RS, WADO-RS",
                "no",
                "`fedpacs node pull https://...`: user agent; Accept transfer-syntax=*",
            ),
        ),
    )


def _storage_scp() -> Iterator[str]:
    yield "## 2 Storage, Verification and Storage Commitment SCP"
    yield ""
    yield "One AE, several processes on one port. Implementation Class UID `" + IMPLEMENTATION_CLASS_UID + "`,"
    yield f"Implementation Version Name `{IMPLEMENTATION_VERSION}`, application context `{pdu.APPLICATION_CONTEXT}`."
    yield "Level 2 (full) storage; elements, private ones included, are kept as they came, and no element is coerced."
    yield "No asynchronous operations window, no extended negotiation, no user identity is asked for; offers of them are ignored."
    yield "A presentation context is accepted with the first proposed transfer syntax that is on the list below."
    yield ""
    yield "The same SOP Instance UID again: identical bytes are answered with Success and counted; other bytes are kept"
    yield "beside the first, flagged as a conflict and not made part of the study."
    yield ""
    yield "Storage commitment (PS3.4 annex J): every instance of the request is looked up; the N-EVENT-REPORT follows the"
    yield "N-ACTION response on the same association. Where the SCU's address stands in `[dicom] peers`, a report it did not"
    yield "acknowledge there is sent on a new association, in the role of SCP, and retried with back-off. Failure reasons:"
    yield f"`0x{commitment.NO_SUCH_INSTANCE:04X}` no such object instance,"
    yield f"`0x{commitment.CLASS_CONFLICT:04X}` class / instance conflict."
    yield "A commitment to every instance that is here of a study completes the study."
    yield ""
    yield "MPPS (N-CREATE, N-SET) and Instance Availability Notification (N-CREATE): only the number of instances they tell of a"
    yield "study is kept; the study is complete once as many are here, otherwise after `study.quiet_seconds` without a new one."
    yield ""


def _classes() -> Iterator[str]:
    yield "## 3 SOP classes"
    yield ""
    yield "Besides these, private SOP classes named in `[dicom] private_sop_classes` (`*`: any the standard does not know)."
    yield ""
    rows = [(sop_classes.name_of(uid), f"`{uid}`") for uid in sop_classes.SERVICES]
    rows += sorted((sop_classes.name_of(uid), f"`{uid}`") for uid in sop_classes.STORAGE_CLASSES)
    yield from table(("SOP class", "UID"), rows)


def _syntaxes() -> Iterator[str]:
    yield "## 4 Transfer syntaxes"
    yield ""
    yield "For storage all of these; for the other services the three uncompressed ones."
    yield ""
    names = {uid: UID_dictionary[uid][0] for uid in sop_classes.TRANSFER_SYNTAXES if uid in UID_dictionary}
    rows = [(names.get(uid, "GE private implicit VR"), f"`{uid}`") for uid in sorted(sop_classes.TRANSFER_SYNTAXES)]
    yield from table(("transfer syntax", "UID"), rows)


def _statuses() -> Iterator[str]:
    yield "## 5 C-STORE statuses"
    yield ""
    yield from table(("status", "meaning", "when"), ((f"`0x{code:04X}`", name, when) for code, name, when in _STATUSES))


def _associations() -> Iterator[str]:
    yield "## 6 Association rejection and abort"
    yield ""
    yield from table(("result", "source", "reason", "when"), _REJECTIONS)
    yield from table(("A-ABORT reason (source 2)", "when"), _ABORTS)
    yield "A-ABORT with source 0 is sent when a time-out passes and when the node stops."
    yield ""


def _limits() -> Iterator[str]:
    dicom, own = DicomSettings(), Settings
    yield "## 7 Timers and limits"
    yield ""
    yield from table(
        ("what", "default", "node.toml"),
        (
            ("A-ASSOCIATE-RQ after connecting (ARTIM)", f"{own.artim_timeout_s:g} s", "–"),
            ("association without a message", f"{dicom.idle_timeout_s:g} s", "`[dicom] idle_timeout_s`"),
            ("silence in the middle of a message", f"{dicom.stall_timeout_s:g} s", "`[dicom] stall_timeout_s`"),
            ("one PDU, however steadily it trickles in", f"{server.PDU_STALLS} × the time-out above", "–"),
            ("associations of a node", dicom.max_associations, "`[dicom] max_associations`"),
            ("connections without an association, of a process", own.max_half_open, "–"),
            ("maximum PDU length received", dicom.max_pdu, "`[dicom] max_pdu`"),
            ("A-ASSOCIATE-RQ length", pdu.MAX_ASSOCIATE_RQ, "–"),
            ("command set length", dimse.MAX_COMMAND_SET, "–"),
            ("disk watermark", f"{StorageSettings().min_free_mb} MB free", "`[storage] min_free_mb`"),
            ("object size", "the disk's; objects above " + str(own.spill_bytes >> 20) + " MB are streamed to it", "–"),
        ),
    )


def _scu() -> Iterator[str]:
    yield "## 8 Verification and Storage SCU"
    yield ""
    yield "Files are sent byte for byte in the transfer syntax they are stored in, one presentation context for each pair of"
    yield "SOP class and transfer syntax, up to 128 an association. Success and warnings (0xBxxx) count as delivered. Results"
    yield "for a PACS wait on disk until it has them and are retried with growing pauses."
    yield ""


def _security() -> Iterator[str]:
    dicom = DicomSettings()
    yield "## 9 Security"
    yield ""
    yield "Calling AE titles and addresses may be limited to lists (by default any title, and the networks "
    yield ", ".join(f"`{network}`" for network in dicom.allowed_networks) + ")."
    yield (
        "TLS by the BCP 195 profile (PS3.15 annex B): TLS 1.2 or 1.3, ciphers `" + CIPHERS + "` for 1.2; with `tls_ca`"
    )
    yield "peers must prove who they are."
    yield ""


def _support() -> Iterator[str]:
    yield "## 10 Character sets"
    yield ""
    yield "Data sets are kept in whatever character set they come in; identifying text is read as ISO 8859-1 bytes and never"
    yield "converted, so that equal bytes stay equal. AE titles are ISO 646."
    yield ""


if __name__ == "__main__":
    print(statement(), end="")
