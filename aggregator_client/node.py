"""What the parts of a site need of the executor they work for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aggregator_client.keys import NodeKeys
from aggregator_client.trainer_process import TrainerProcess
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig


class Node(Protocol):
    """What a job needs of the executor it works for."""

    config: NodeConfig
    audit: AuditLog
    trainer: TrainerProcess
    keys: NodeKeys

    @property
    def report(self) -> Callable[..., None]:
        """Is told of progress."""

    @property
    def site(self) -> str:
        """This site's name."""
