"""Takes audit records to an audit repository: DICOM audit messages over syslog with TLS (RFC 5424, RFC 5425), or into a folder.

Syslog has no receipt. A batch counts as delivered when the receiver has answered our close of the TLS stream with its own, which
it does after it has read everything before; only then is the position moved on, durably. A batch that broke is sent again from
its beginning, so that nothing is lost; what the receiver had read of it comes twice then, under the same number and hash.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from dicom_node.audit import GENESIS, AuditLog, AuditRecord
from dicom_node.audit_message import audit_message
from dicom_node.errors import InputError, IntegrityError, StorageError, UnreachableError

BATCH = 500
PRIORITY = 10 * 8 + 5
"""Facility authpriv, severity notice (PS3.15 A.6)."""
MSGID = "DICOM+RFC3881"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Position:
    """The last record that was delivered."""

    seq: int = 0
    hash: str = GENESIS


class PositionFile:
    """How far one destination has come; a file for each, so that several repositories are fed independently."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self, log: AuditLog) -> Position:
        """Raises IntegrityError when the log does not hold the record that was delivered last."""
        try:
            facts = json.loads(self.file.read_text())
            found = Position(int(facts["seq"]), str(facts["hash"]))
        except FileNotFoundError:
            return Position()
        except (OSError, ValueError, KeyError, TypeError):
            raise StorageError(f"{self.file} is damaged: delete it to send everything again.") from None
        record = next(log.records(since=found.seq - 1), None) if found.seq else None
        if found.seq and (record is None or (record.seq, record.hash) != (found.seq, found.hash)):
            raise IntegrityError(
                f"The audit log does not hold record {found.seq} as it was delivered before: `fedpacs audit verify`, and"
                " compare with the repository."
            )
        return found

    def write(self, position: Position) -> None:
        write_whole(self.file, json.dumps({"seq": position.seq, "hash": position.hash}).encode())


def batches(log: AuditLog, after: int, size: int = BATCH) -> Iterator[list[AuditRecord]]:
    records = log.records(since=after)
    while found := list(islice(records, size)):
        yield found


def to_folder(log: AuditLog, folder: Path, node: str) -> int:
    """Write each record that is not there yet as its own file, 000000001.xml and on. -> how many were new."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): choose another folder.") from None
    new = 0
    for record in log.records():
        file = folder / f"{record.seq:09d}.xml"
        if not file.exists():
            write_whole(file, audit_message(record, node))
            new += 1
    return new


def to_syslog(log: AuditLog, receiver: Receiver, position: PositionFile, node: str) -> int:
    """Send what was not delivered yet, batch by batch. -> how many. Raises UnreachableError; what was delivered stays so."""
    sent = 0
    for batch in batches(log, position.read(log).seq):
        receiver.deliver([frame(record, node) for record in batch])
        position.write(Position(batch[-1].seq, batch[-1].hash))
        sent += len(batch)
    return sent


def frame(record: AuditRecord, node: str) -> bytes:
    """One syslog message (RFC 5424 section 6) in its frame (RFC 5425 section 4.3: length, space, message)."""
    at = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = "".join(c if 33 <= ord(c) <= 126 else "-" for c in socket.gethostname())[:255] or "-"
    head = f"<{PRIORITY}>1 {at} {host} fedpacs {os.getpid()} {MSGID} - "
    message = head.encode("ascii") + b"\xef\xbb\xbf" + audit_message(record, node)
    return f"{len(message)} ".encode() + message


@dataclass(frozen=True)
class Receiver:
    """A syslog receiver. `authority`: PEM of who signed its certificate; `certificate`, `key`: ours, where it asks for one."""

    host: str
    port: int
    authority: Path
    certificate: Path | None = None
    key: Path | None = None

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Send frames; returns once the receiver has read them all. Raises UnreachableError, InputError."""
        context = self._context()
        try:
            with (
                socket.create_connection((self.host, self.port), TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as stream,
            ):
                for one in frames:
                    stream.sendall(one)
                stream.unwrap()
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(
                f"The syslog receiver {self.host}:{self.port} is not who --tls-ca vouches for ({error.verify_message}): check"
                " both."
            ) from None
        except (OSError, ValueError) as error:
            raise UnreachableError(
                f"The syslog receiver {self.host}:{self.port} did not take the records ({type(error).__name__}): they are sent"
                " again next time."
            ) from None

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.authority))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"The TLS files cannot be used ({error}): check --tls-ca, --tls-cert and --tls-key."
            ) from None
        return context


def write_whole(file: Path, data: bytes) -> None:
    """Write whole or not at all, synced. Raises StorageError."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(file)
    except OSError as error:
        raise StorageError(
            f"{file} cannot be written ({error.strerror}): free some space, or choose another."
        ) from None
