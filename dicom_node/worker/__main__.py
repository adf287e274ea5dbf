"""`python -m dicom_node.worker --config F`: one de-identification worker of a node."""

from __future__ import annotations

from anonymizer import Deidentifier, load_profile
from anonymizer.pixelstep import default_pixel_step
from dicom_node import logs
from dicom_node.config import NodeConfig
from dicom_node.errors import StorageError
from dicom_node.service import Stop, main, process_name, up
from dicom_node.spool import Spool
from dicom_node.status import write_last_error
from dicom_node.vault import Vault
from dicom_node.worker.loop import Worker
from dicom_node.worker.pipeline import Pipeline

_POLL_SECONDS = 0.25


def open_pipeline(config: NodeConfig) -> Pipeline:
    """The pipeline of a node with its profile and its vault's key. Raises NodeError."""
    vault = Vault.open(config)
    profile = load_profile(config.deid.profile)
    step = default_pixel_step() if profile.pixels == "clean" else None
    deid = Deidentifier(profile, key=vault.pseudonym_key, uid_root=config.deid.uid_root, pixel_step=step, series=True)
    return Pipeline(config, deid, vault, Spool(config.storage.spool))


def work(config: NodeConfig, stop: Stop) -> None:
    name = process_name("worker-1")
    logs.configure(config.storage.logs, name)
    worker = Worker(open_pipeline(config), name)
    worker.start()
    up(config, name)
    while not stop():
        try:
            busy = worker.step(stop)
        except StorageError as error:  # a full disk may be freed: say it, wait, go on
            write_last_error(config.storage.run, name, str(error))
            stop.wait(5.0)
            continue
        if not busy:
            stop.wait(_POLL_SECONDS)


if __name__ == "__main__":
    main(__doc__ or "", work)
