"""The node's federation process: `python -m aggregator_client.site --config node.toml`.

It dials out to the coordinator of the invitation, takes one request at a time, has the executor answer it, and sends the
answer back. It needs nothing from the identified side. What it is doing stands in run/federation.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from aggregator_client import hours
from aggregator_client.approvals import invitation_of
from aggregator_client.decentral.rounds import PeerRounds
from aggregator_client.errors import FederationError, SignatureError, UnreachableError
from aggregator_client.executor import Executor
from aggregator_client.invitations import Invitation
from aggregator_client.keys import node_keys
from aggregator_client.ledger import Ledger
from aggregator_client.trainer_process import TrainerProcess
from aggregator_client.transport import SiteLink
from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig, load_config
from dicom_node.logs import configure
from dicom_node.service import process_name, up
from dicom_node.status import write_json, write_last_error
from dicom_node.supervise import die_with_parent

log = structlog.get_logger("fedpacs.federation")
MAX_PAUSE_SECONDS = 15.0
HURRY_SECONDS = 0.02
JOIN_POLL_SECONDS = 2.0


class Status:
    """run/federation.json: what this process is doing, for the console and `fedpacs federation show`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, Any] = {"state": "starting", "pid": os.getpid()}
        self._written = 0.0

    def update(self, **facts: Any) -> None:
        """Write a change of state at once, progress once a second."""
        known = {key: value for key, value in facts.items() if value is not None}
        changed = any(self._facts.get(key) != value for key, value in known.items())
        self._facts |= known | {"at": time.time()}
        if changed and ("state" in known or time.monotonic() - self._written > 1.0):
            self._written = time.monotonic()
            write_json(self._path, self._facts)


def serve(link: SiteLink, executor: Executor, status: Status, poll_seconds: float) -> None:
    """Answer requests until the process is told to stop. A coordinator that is away is tried again, ever more calmly.

    Decentralised projects need no coordinator: they go on between its requests and while it is away.
    """
    pause, peers, again = poll_seconds, PeerRounds(executor), 0.0
    while True:
        moved = peers.step()
        if time.monotonic() < again:
            time.sleep(0.0 if moved else poll_seconds)
            continue
        try:
            hurried = moved or time.monotonic() < executor.eager_until
            delivery = link.next(HURRY_SECONDS if hurried else poll_seconds)
            if delivery is not None:
                status.update(state="working")
                answer = executor.handle(delivery.payload)
                _reply(link, delivery, answer)
            may = hours.allowed(executor.config)
            status.update(state="connected", may_train=may, last_contact=round(time.time()), reason="")
            pause = poll_seconds
        except (UnreachableError, SignatureError) as error:
            log.warning("coordinator away", reason=str(error))
            status.update(state="unreachable", reason=str(error))
            pause = min(MAX_PAUSE_SECONDS, pause * 2)
            again = time.monotonic() + pause


def _reply(link: SiteLink, delivery: Any, answer: bytes) -> None:
    """Send an answer; it stays on disk, so when the coordinator is away the request comes again and is answered from there."""
    link.reply(delivery, answer)
    log.info("answered", bytes=len(answer))


def address_of(config: NodeConfig, invitation: Invitation) -> str:
    """ "host:port" to dial: node.toml's, which may name a relay, or else the invitation's."""
    return (config.federation.coordinator or invitation.address).removeprefix("https://").rstrip("/")


def run(config: NodeConfig) -> None:
    """Join as the invitation says and serve."""
    hours.allowed(config)  # hours that cannot be read are said now, not in the first round
    up(config, process_name("federation"))
    from aggregator_client.flower_site import FlowerLink, load_node_key  # Flower takes seconds to import

    status = Status(config.storage.run / "federation.json")
    invitation = _invited(config, status)
    keys = node_keys(config.storage.keys)
    if config.federation.proxy:
        os.environ["HTTPS_PROXY"] = config.federation.proxy
    address = address_of(config, invitation)
    status.update(state="connecting", coordinator=invitation.coordinator, address=address, site=invitation.site)
    key = load_node_key(keys.flower_file.read_bytes())
    folder = config.storage.federation
    link = FlowerLink(address, invitation.ca_pem.encode(), key, folder / "flower")
    audit, ledger = AuditLog(config.storage.audit), Ledger(folder)
    trainer = TrainerProcess(config.storage.logs / "trainer.log")
    executor = Executor(config, invitation, keys, audit, ledger, _reporter(status), trainer)
    try:
        trainer.warm()
        serve(link, executor, status, config.federation.poll_seconds)
    finally:
        trainer.close()
        link.close()
        ledger.close()
        audit.close()
        status.update(state="stopped")


def _invited(config: NodeConfig, status: Status) -> Invitation:
    """The accepted invitation, waited for: a node may be started before it has joined."""
    while True:
        try:
            return invitation_of(config)
        except FederationError as error:
            log.warning("not joined", reason=str(error))
            status.update(state="not joined", reason=str(error))
        time.sleep(JOIN_POLL_SECONDS)


def _reporter(status: Status) -> Any:
    def report(**facts: Any) -> None:
        if "event" in facts:
            event = str(facts.pop("event"))
            log.info(event, **facts)
            status.update(last_event=event, **facts)
        else:
            status.update(**facts)

    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aggregator_client.site", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the node's node.toml")
    arguments = parser.parse_args(argv)
    die_with_parent()

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        config = load_config(arguments.config)
        configure(config.storage.logs, "federation")
        logging.getLogger("flwr").handlers[:] = []
        run(config)
    except Exception as error:
        if not hasattr(error, "exit_code") or os.environ.get("FEDPACS_TRACE"):
            raise
        print(f"fedpacs: {error}", file=sys.stderr)
        if "config" in locals():
            write_last_error(config.storage.run, "federation", str(error))
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
