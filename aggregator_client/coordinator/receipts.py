"""Keeps, for each message of a hospital that counted, what proves later that this hospital signed it.

They stand in runs/<digest>/receipts.jsonl. The sealed bytes themselves are dropped once a round is closed; a receipt is a few
hundred bytes, appended and synced before the update it belongs to is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aggregator_client.errors import StateError
from aggregator_client.messages import peek
from aggregator_client.sealing import receipt_of

NAME = "receipts.jsonl"


def keep(folder: Path, message: bytes) -> None:
    """Append the receipt of a proven message, as it travelled: its SHA-256 stands in the hospital's audit log too.

    Raises StateError when it cannot be written.
    """
    context, box = peek(message)
    receipt = receipt_of(io.BytesIO(box), len(box), context)
    facts = {**asdict(receipt), "bytes": len(message), "sha256": hashlib.sha256(message).hexdigest()}
    line = json.dumps(facts, sort_keys=True, ensure_ascii=True).encode() + b"\n"
    file = folder / NAME
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a line that a power cut left half written
            os.write(descriptor, (b"\n" if torn else b"") + line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StateError(f"{file} cannot be written ({error.strerror}): free some space and resume.") from None


def read(folder: Path) -> list[dict[str, Any]]:
    """Every whole receipt, the last one of each (round, sender, kind), in that order."""
    file = folder / NAME
    if not file.exists():
        return []
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    for line in file.read_bytes().splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # torn by a power cut; what it was for was not used
        context = facts["context"]
        found[int(context["round"]), str(context["sender"]), str(context["kind"])] = facts
    return [found[key] for key in sorted(found)]
