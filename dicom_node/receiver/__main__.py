"""`python -m dicom_node.receiver --config node.toml`: one receiver process; the node starts several on one port."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
from pathlib import Path

from dicom_node import logs
from dicom_node.config import load_config
from dicom_node.errors import NodeError
from dicom_node.receiver.server import Server
from dicom_node.receiver.service import log
from dicom_node.receiver.settings import Settings
from dicom_node.spool import recover

_COLLECT_AFTER = (50_000, 20, 50)  # objects: what an instance leaves behind is freed by counting, cycles are rare


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dicom_node.receiver", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the node's node.toml")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        logs.configure(config.storage.logs, "receiver")
        run(Settings.of(config))
    except NodeError as error:
        print(f"fedpacs: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(settings: Settings) -> None:
    """Recover what a crash left, then serve until SIGTERM."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
    report = recover(settings.spool)
    if report.adopted:
        log.warning("spool.recovered", instances=report.adopted, segments=report.segments)
    server = Server(settings)
    gc.collect()
    gc.freeze()  # what was imported never becomes garbage: keep collections short on the hot path
    gc.set_threshold(*_COLLECT_AFTER)
    log.info("receiver.listening", port=server.port, tls=server.tls is not None)
    server.serve()


if __name__ == "__main__":
    raise SystemExit(main())
