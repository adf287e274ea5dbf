"""The receiver processes of the receiver's own tests."""

from tests.dicom_node.receiver.conftest import receiver

__all__ = ["receiver"]
