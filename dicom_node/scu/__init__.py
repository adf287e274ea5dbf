"""The node as a service class user: verification and storage towards PACS and other peers."""

from dicom_node.scu.peer import Peer
from dicom_node.scu.store import SendReport, send_files
from dicom_node.scu.verify import EchoReport, echo, takes_commitment

__all__ = ["EchoReport", "Peer", "SendReport", "echo", "send_files", "takes_commitment"]
