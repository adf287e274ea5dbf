"""A modality: a DICOM Storage SCU that sends the studies of a folder to a node, as a process of its own.

    python -m aggregator_client.demo.modality FOLDER HOST PORT CALLED_AE CALLING_AE

It verifies the peer with C-ECHO first, sends every `*.dcm` below FOLDER in name order, sends again what was not
acknowledged, and reports on stdout, one JSON object a line: {"sent": n, "total": n} and at the end {"sent", "total",
"failed", "seconds"}. Exit codes: 0 all acknowledged, 4 nothing to send, 6 peer not reachable, 10 some not acknowledged.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from dicom_node.scu.answers import keep_answers

ATTEMPTS = 4


@dataclass(frozen=True)
class Peer:
    host: str
    port: int
    called: str
    calling: str


def contexts(files: Iterable[Path]) -> set[tuple[UID, UID]]:
    """The (SOP class, transfer syntax) pairs of the files, read from their File Meta Information."""
    pairs = set()
    for file in files:
        meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
        pairs.add((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID))
    return pairs


def associate(peer: Peer, pairs: set[tuple[UID, UID]], patience: float) -> Association | None:
    """An established association that has answered a C-ECHO, or None when the peer stays silent for `patience` s."""
    entity = AE(ae_title=peer.calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    entity.connection_timeout = 5
    entity.add_requested_context(Verification)
    for sop_class, transfer_syntax in sorted(pairs):
        entity.add_requested_context(sop_class, transfer_syntax)
    deadline = time.monotonic() + patience
    while True:
        association = keep_answers(entity.associate(peer.host, peer.port, ae_title=peer.called))
        if association.is_established:
            if association.send_c_echo().get("Status") == 0x0000:
                return association
            association.abort()
        if time.monotonic() > deadline:
            return None
        time.sleep(0.3)


def send(folder: Path, peer: Peer, patience: float = 60.0) -> int:
    """Send the folder; returns the exit code told in the module's docstring."""
    files = sorted(folder.rglob("*.dcm"))
    if not files:
        print(f"modality: no DICOM file below {folder}", file=sys.stderr)
        return 4
    pairs, waiting, started = contexts(files), files, time.monotonic()
    for attempt in range(ATTEMPTS):
        association = associate(peer, pairs, patience)
        if association is None:
            print(f"modality: {peer.called} at {peer.host}:{peer.port} does not answer C-ECHO", file=sys.stderr)
            return 6
        waiting = _send_files(association, waiting, len(files))
        if not waiting or attempt == ATTEMPTS - 1:
            break
        time.sleep(0.3 * 2**attempt)
    sent = len(files) - len(waiting)
    _say(sent=sent, total=len(files), failed=len(waiting), seconds=round(time.monotonic() - started, 2))
    return 10 if waiting else 0


def _send_files(association: Association, files: list[Path], total: int) -> list[Path]:
    """Send over one association; the files that were not acknowledged come back, in order."""
    failed: list[Path] = []
    done = total - len(files)
    for index, file in enumerate(files):
        if not association.is_established:
            return failed + files[index:]
        status = association.send_c_store(dcmread(file))
        if status.get("Status", -1) == 0x0000 or 0xB000 <= status.get("Status", -1) <= 0xBFFF:
            done += 1
            if done % 20 == 0:
                _say(sent=done, total=total)
        else:
            failed.append(file)
    association.release()
    return failed


def _say(**facts: float) -> None:
    print(json.dumps(facts), flush=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 5:
        print("usage: python -m aggregator_client.demo.modality FOLDER HOST PORT CALLED_AE CALLING_AE", file=sys.stderr)
        return 2
    folder, host, port, called, calling = arguments
    return send(Path(folder), Peer(host, int(port), called, calling))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
