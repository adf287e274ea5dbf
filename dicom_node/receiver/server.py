"""The event loop of one receiver process: sockets in, groups committed, answers out.

Everything that is ready is read first, then all objects that became whole are committed together (one fdatasync, one
transaction), then all of them are answered: the busier the node, the larger the groups. While a group is being synced the
kernel goes on receiving into the sockets' buffers. Several such processes share one port (SO_REUSEPORT).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import ssl
import time
from pathlib import Path
from types import FrameType

from dicom_node.errors import ConfigError, StorageError
from dicom_node.receiver import dimse
from dicom_node.receiver.association import Association, State
from dicom_node.receiver.service import Service, log
from dicom_node.receiver.settings import Settings
from dicom_node.receiver.tls import server_context
from dicom_node.receiver.transfer import STATUS_OF, Refusal, Transfer

_TICK_SECONDS = 0.5
_REST_SECONDS, _SLICE_SECONDS = 0.1, 0.005  # so long nothing came: SHA-256 sums are computed, a slice at a time
_CLOSING_SECONDS = 5.0
_BACKLOG = 1024
PDU_STALLS = 4  # a PDU may take this many stall time-outs in all, however steadily its bytes trickle in
_READ, _WRITE = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Server:
    """One receiver process. `port` is the port it listens on (of use when the settings say 0)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        if settings.run is not None:
            settings.run.mkdir(parents=True, exist_ok=True)
            clear_stale_status(settings.run)
        self.service = Service(settings)
        self.tls: ssl.SSLContext | None = server_context(settings)
        self.listener = _listen(settings)
        self.port: int = self.listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self.listener, select.EPOLLIN)
        self._associations: dict[int, Association] = {}
        self._again: set[int] = set()
        self._writing: set[int] = set()
        self._stopping = self._resting = False
        self._next_tick = 0.0
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake_r, select.EPOLLIN)

    # -- life ---------------------------------------------------------------------------------------------------------

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Finish: no new associations, those that are open are aborted between two groups."""
        self._stopping = True
        try:
            os.write(self._wake_w, b"x")
        except BlockingIOError:
            pass

    def serve(self) -> None:
        """Run until `stop`."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        try:
            while not self._stopping:
                self._round()
            self._farewell()
        finally:
            self.listener.close()
            for association in list(self._associations.values()):
                association.close("closed")
            self.service.close()
            self._poll.close()
            if self.settings.run is not None:
                status_path(self.settings.run).unlink(missing_ok=True)

    def _farewell(self) -> None:
        for association in list(self._associations.values()):
            if association.state is State.ESTABLISHED:
                association.abort(0, "the node stops", source=0)

    def _round(self) -> None:
        service = self.service
        events = self._poll.poll(self._patience())
        service.now = time.monotonic()
        again, self._again = self._again, set()
        for fd, event in events:
            again.discard(fd)
            association = self._associations.get(fd)
            if association is not None:
                if event & select.EPOLLOUT:
                    association.on_writable()
                if event & ~select.EPOLLOUT:
                    self._read(association)
                self._settle(association)
            elif fd == self.listener.fileno():
                self._accept()
        for fd in again:
            if (association := self._associations.get(fd)) is not None:
                self._read(association)
                self._settle(association)
        while service.ready:
            self._commit()
        self._resting = not events and not again
        if self._resting and service.ingest.unhashed:
            service.catch_up(_SLICE_SECONDS)
        if service.now >= self._next_tick:
            self._tick()

    def _patience(self) -> float:
        """Seconds to wait for something to do."""
        if self._again:
            return 0.0
        if self.service.ingest.unhashed:
            return 0.0 if self._resting else _REST_SECONDS
        return _TICK_SECONDS

    def _read(self, association: Association) -> None:
        if association.on_readable():
            self._again.add(association.fd)

    def _settle(self, association: Association) -> None:
        """Keep epoll's interest in step with what the association wants; forget it when it is closed."""
        fd = association.fd
        if association.state is State.CLOSED:
            self._associations.pop(fd, None)  # closing the socket took it out of epoll
            self._writing.discard(fd)
        elif association.unsent and fd not in self._writing:
            self._writing.add(fd)
            self._poll.modify(fd, _WRITE)
        elif not association.unsent and fd in self._writing:
            self._writing.discard(fd)
            self._poll.modify(fd, _READ)
            if association.state is State.CLOSING:
                association.finish_sending()

    # -- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connection, address = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._drop_oldest_half_open()
                return
            self._admit(connection, str(address[0]))

    def _admit(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        if len(self._associations) - self.service.established >= self.settings.max_half_open:
            self._drop_oldest_half_open()
        association = Association(self.service, connection, address)
        self._associations[association.fd] = association
        self._poll.register(association.fd, _READ)

    def _drop_oldest_half_open(self) -> None:
        """A flood of connections that ask for nothing pushes out its own oldest, never an association."""
        for association in self._associations.values():  # in the order in which they came
            if association.state is not State.ESTABLISHED:
                association.close("too many connections without an association")
                self._settle(association)
                return

    # -- committing ---------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Make the group durable, answer it, and go on with what its associations sent meanwhile."""
        service = self.service
        group, service.ready = service.ready, []
        items = [transfer.incoming for _, transfer in group if transfer.incoming is not None]
        try:
            outcomes = service.ingest.commit(items)
        except StorageError as error:
            log.error("receiver.commit", error=str(error), instances=len(group))
            self._refuse(group)
        else:
            for (association, transfer), outcome in zip(group, outcomes, strict=True):
                transfer.release()
                association.busy = False
                association.reply(transfer.context_id, transfer.command, STATUS_OF[outcome])
        for association, _ in group:
            association.process()
            self._settle(association)

    def _refuse(self, group: list[tuple[Association, Transfer]]) -> None:
        for association, transfer in group:
            transfer.abandon()
            transfer.refusal = Refusal(dimse.OUT_OF_RESOURCES, "the spool cannot keep it")
            association.busy = False
            association.refuse(transfer)

    # -- timers -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        service, settings = self.service, self.settings
        self._next_tick = service.now + _TICK_SECONDS
        for association in list(self._associations.values()):
            self._expire(association)
            self._settle(association)
        service.disk_is_full()
        service.flush_counts()
        if settings.run is not None:
            self._write_status(settings)

    def _expire(self, association: Association) -> None:
        now, settings = self.service.now, self.settings
        silent = now - association.last_byte
        if association.state in (State.HANDSHAKE, State.AWAIT_REQUEST):
            if now - association.opened_at > settings.artim_timeout_s:
                association.close("no A-ASSOCIATE-RQ in time")
        elif association.state is State.CLOSING:
            if silent > _CLOSING_SECONDS or now - association.pdu_started > settings.artim_timeout_s:
                association.close("closed")
        elif association.in_message:
            if (
                silent > settings.stall_timeout_s
                or now - association.pdu_started > PDU_STALLS * settings.stall_timeout_s
            ):
                association.abort(0, "stalled in the middle of a message")
        elif silent > settings.idle_timeout_s:
            association.abort(0, "idle for too long")

    def _write_status(self, settings: Settings) -> None:
        assert settings.run is not None
        status = {
            "pid": os.getpid(),
            "at": time.time(),
            "port": self.port,
            "associations": self.service.established,
            "connections": len(self._associations),
            "refusing": self.service.refusing,
        }
        path = status_path(settings.run)
        try:
            path.with_suffix(".new").write_text(json.dumps(status))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            log.warning("receiver.status", error=error.strerror)


def status_path(run: Path) -> Path:
    """Where this receiver process tells how it is doing, about twice a second."""
    return run / f"receiver-{os.getpid()}.json"


def clear_stale_status(run: Path) -> None:
    """Remove what killed receivers left."""
    for path in run.glob("receiver-*.json"):
        if not Path(f"/proc/{path.stem.removeprefix('receiver-')}").exists():
            path.unlink(missing_ok=True)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The receiver cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            "set [dicom] host and port to ones that are free."
        ) from error
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener
