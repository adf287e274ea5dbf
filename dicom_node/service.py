"""What the node's processes have in common: `--config F`, a clean end on SIGTERM, one sentence when they cannot go on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dicom_node.config import NodeConfig, load_config
from dicom_node.errors import NodeError
from dicom_node.status import write_json


class Stop:
    """Set by SIGTERM and SIGINT; also usable by tests."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but end at once when told to stop; -> whether told."""
        return self._event.wait(seconds)

    def set(self) -> None:
        self._event.set()

    def on_signals(self) -> None:
        def asked(signum: int, frame: FrameType | None) -> None:
            self._event.set()

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, asked)


def process_name(default: str) -> str:
    """The name the daemon knows this process by (worker-1, web, ...)."""
    return os.environ.get("FEDPACS_PROCESS", default)


def up(config: NodeConfig, name: str) -> None:
    """Tell the daemon that this process is past its start; it holds for this process id only."""
    write_json(up_file(config, name), {"pid": os.getpid()})


def up_file(config: NodeConfig, name: str) -> Path:
    return config.storage.run / f"{name}.up"


def main(description: str, body: Callable[[NodeConfig, Stop], None]) -> None:
    """Run one process of the node until it is told to stop; ends with the exit code of docs/exit-codes.md.

    An unexpected error leaves its traceback on stderr, which the daemon keeps left of the wall.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="the node's node.toml")
    arguments = parser.parse_args()
    stop = Stop()
    stop.on_signals()
    try:
        body(load_config(arguments.config), stop)
    except NodeError as error:
        print(f"fedpacs: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
