"""`python -m dicom_node.orthanc_reader --config F`: the process that follows Orthanc for a node."""

from __future__ import annotations

from pathlib import Path

from dicom_node import logs
from dicom_node.config import NodeConfig
from dicom_node.errors import NodeError
from dicom_node.service import Stop, main, process_name, up
from dicom_node.spool import Spool

from .connect import open_client, wake_file
from .ledger import Ledger, ledger_path
from .reader import Reader


def follow(config: NodeConfig, stop: Stop) -> None:
    """Poll until told to stop; a hint of the plugin (run/orthanc.wake) cuts the pause short."""
    name = process_name("orthanc-reader")
    logs.configure(config.storage.logs, name)
    client = open_client(config)
    spool = Spool(config.storage.spool)
    ledger = Ledger(ledger_path(config.storage.spool), client.url)
    reader = Reader(client, ledger, spool, quiet_seconds=config.study.quiet_seconds)
    wake = wake_file(config.storage.run)
    failures = 0
    up(config, name)
    while not stop():
        before = _stamp(wake)
        try:
            reader.step(stop)
            if failures:
                ledger.note_error("")
            failures = 0
        except (
            NodeError
        ) as error:  # Orthanc is down, the disk is full, the password is wrong: all may be mended meanwhile
            failures += 1
            ledger.note_error(str(error))
        pause = min(60.0, config.orthanc.poll_seconds * 2 ** min(failures, 5))
        _sleep(stop, wake, before, pause)
    client.close()


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _sleep(stop: Stop, wake: Path, before: int, seconds: float) -> None:
    while seconds > 0 and not stop.wait(min(0.2, seconds)) and _stamp(wake) == before:
        seconds -= 0.2


if __name__ == "__main__":
    main(__doc__ or "", follow)
