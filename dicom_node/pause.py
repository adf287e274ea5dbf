"""Pausing a node: receiving goes on, de-identification and training stop until it is resumed.

The pause is the file run/paused (who, why, when), so that it survives restarts and every process sees it at once;
`[policy] paused = true` in node.toml pauses as well, and only editing that file takes it back.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.errors import RefusedError


def is_paused(config: NodeConfig) -> bool:
    return config.policy.paused or _file(config).exists()


def pause(config: NodeConfig, by: str, reason: str = "") -> bool:
    """Pause the node; False when it was paused already. Audited."""
    if is_paused(config):
        return False
    temporary = _file(config).with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"by": by, "reason": reason, "at": time.time()}))
    temporary.replace(_file(config))
    AuditLog(config.storage.audit).append("node.paused", by=by, reason=reason)
    return True


def resume(config: NodeConfig, by: str) -> bool:
    """Take a pause back; False when there was none. Raises RefusedError when node.toml itself pauses. Audited."""
    if config.policy.paused:
        raise RefusedError(f"{config.path} says [policy] paused = true; set it to false and restart the node.")
    if not _file(config).exists():
        return False
    _file(config).unlink(missing_ok=True)
    AuditLog(config.storage.audit).append("node.resumed", by=by)
    return True


def pause_facts(config: NodeConfig) -> dict[str, Any] | None:
    """{by, reason, at} of a pause, None when the node is not paused."""
    if config.policy.paused:
        return {"by": "node.toml", "reason": "[policy] paused = true", "at": None}
    try:
        return dict(json.loads(_file(config).read_text()))
    except FileNotFoundError:
        return None
    except ValueError:  # the file is what counts; what it says is for people
        return {"by": "", "reason": "", "at": None}


def _file(config: NodeConfig) -> Path:
    return config.storage.run / "paused"
