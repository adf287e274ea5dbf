"""`python -m dicom_node.orthanc_reader --config F`: the process that follows every Orthanc of a node."""

from __future__ import annotations

import threading
from pathlib import Path
from zoneinfo import ZoneInfo

from dicom_node import logs
from dicom_node.config import NodeConfig, OrthancSource
from dicom_node.errors import NodeError
from dicom_node.results import Results
from dicom_node.service import Stop, main, process_name, up
from dicom_node.spool import Spool

from .connect import open_client, wake_file
from .ledger import Ledger, ledger_path
from .reader import Reader


def follow_all(config: NodeConfig, stop: Stop) -> None:
    """One thread an Orthanc, so that one that does not answer holds up no other."""
    name = process_name("orthanc-reader")
    logs.configure(config.storage.logs, name)
    failed: list[BaseException] = []

    def follow_one(source: OrthancSource) -> None:
        try:
            follow(config, source, stop)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread, which ends the process
            failed.append(error)
            stop.set()  # the daemon starts the process again

    threads = [threading.Thread(target=follow_one, args=(source,)) for source in config.orthanc.sources]
    for thread in threads:
        thread.start()
    up(config, name)
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def follow(config: NodeConfig, source: OrthancSource, stop: Stop) -> None:
    """Poll until told to stop; a hint of the plugin (run/orthanc.wake) cuts the pause short."""
    client = open_client(config, source)
    ledger, results = Ledger(ledger_path(config.storage.spool), client.url), Results(config)
    reader = Reader(
        client,
        ledger,
        Spool(config.storage.spool),
        quiet_seconds=config.study.quiet_seconds,
        ours=results.ours,
        timezone=ZoneInfo(config.node.timezone),
    )
    wake = wake_file(config.storage.run)
    failures = 0
    while not stop():
        before = _stamp(wake)
        try:
            reader.step(stop)
            if not config.results.pacs:
                results.deliver(client, client.url)
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
    main(__doc__ or "", follow_all)
