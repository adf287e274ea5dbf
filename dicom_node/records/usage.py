"""What commits a node to the studies a round used: their digest, which stands in the audit log beside their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def usage_digest(study_uids: Iterable[str]) -> str:
    """Hex SHA-256 over the study UIDs, each once, in order. It tells none of them."""
    listed = "\n".join(sorted(set(study_uids)))
    return hashlib.sha256(b"fedpacs used v1\x00" + listed.encode()).hexdigest()
