"""`python -m dicom_node.returner --config F`: stores results in the PACS of `[results]`, each once, until the PACS has it."""

from __future__ import annotations

from dicom_node import logs
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, NodeError
from dicom_node.results import Results
from dicom_node.results.pacs import open_pacs
from dicom_node.service import Stop, main, process_name, up
from dicom_node.status import write_last_error

POLL_SECONDS = 2.0
MOST_SECONDS = 60.0


def serve(config: NodeConfig, stop: Stop) -> None:
    """Deliver until told to stop; while the PACS is away, ever more calmly."""
    name = process_name("returner")
    logs.configure(config.storage.logs, name)
    pacs, results, failures = open_pacs(config), Results(config), 0
    if pacs is None:
        raise ConfigError(f"{config.path}: results.pacs is empty: name the PACS that results go to.")
    up(config, name)
    try:
        while not stop():
            try:
                results.deliver(pacs, config.results.pacs)
                if failures:
                    write_last_error(config.storage.run, name, "")
                failures = 0
            except NodeError as error:
                failures += 1
                write_last_error(config.storage.run, name, str(error))
            stop.wait(min(MOST_SECONDS, POLL_SECONDS * 2 ** min(failures, 5)))
    finally:
        results.close()


if __name__ == "__main__":
    main(__doc__ or "", serve)
