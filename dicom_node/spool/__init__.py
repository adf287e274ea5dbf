"""The spool: every received instance, byte for byte, durable before anyone is told so. Identified: left of the wall."""

from dicom_node.spool.header import DataSetError, Header, scan, valid_uid
from dicom_node.spool.ingest import Incoming, Ingest, Outcome, study_key
from dicom_node.spool.recover import RecoveryReport, recover, reindex
from dicom_node.spool.store import Spool, SpoolStats, StoredInstance, StudyRow

__all__ = [
    "DataSetError",
    "Header",
    "Incoming",
    "Ingest",
    "Outcome",
    "RecoveryReport",
    "Spool",
    "SpoolStats",
    "StoredInstance",
    "StudyRow",
    "recover",
    "reindex",
    "scan",
    "study_key",
    "valid_uid",
]
