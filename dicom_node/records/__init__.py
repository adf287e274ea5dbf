"""The catalogue of de-identified studies: the only part of dicom_node that the trainer may import."""

from dicom_node.records.catalogue import Catalogue
from dicom_node.records.cohort import PARTITIONS, select, split, split_of
from dicom_node.records.model import Cohort, CohortEntry, CohortRule, InstanceRecord, LabelRecord, LeftOut, StudyRecord
from dicom_node.records.schema import migrations

__all__ = [
    "PARTITIONS",
    "Catalogue",
    "Cohort",
    "CohortEntry",
    "CohortRule",
    "InstanceRecord",
    "LabelRecord",
    "LeftOut",
    "StudyRecord",
    "migrations",
    "select",
    "split",
    "split_of",
]
