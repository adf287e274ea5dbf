"""Takes finished results out of the outbox right of the wall, gives them their original identity, and keeps them for the PACS."""

from __future__ import annotations

from contextlib import closing

from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, RefusedError
from dicom_node.logs import get_logger
from dicom_node.results.store import Results, in_order

BY = "automatic inference"


def take_in(config: NodeConfig) -> int:
    """Take every result that waits; how many were taken. One that may not go back is set aside beside them with its reason told.

    A result taken before (a kill came between) is taken once.
    """
    box = config.storage.federation / "outbox"
    files = in_order(box.glob("*.dcm")) if box.exists() else []
    if not files:
        return 0
    from dicom_node.orthanc_reader.connect import open_clients

    clients = open_clients(config)

    def fetch(sop_uid: str) -> bytes | None:
        return next(filter(None, (client.find_file(sop_uid) for client in clients)), None)

    taken = 0
    try:
        with closing(Results(config)) as results:
            for file in files:
                try:
                    results.take(file.read_bytes(), BY, fetch)
                    taken += 1
                except (InputError, RefusedError) as error:
                    aside = box / "refused"
                    aside.mkdir(exist_ok=True, mode=0o700)
                    (aside / file.name).write_bytes(file.read_bytes())
                    get_logger().warning("result.refused", reason=str(error))
                except FileNotFoundError:  # another worker took it
                    continue
                file.unlink(missing_ok=True)
    finally:
        for client in clients:
            client.close()
    return taken
