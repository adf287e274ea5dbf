"""The node: one supervisor that starts the receiver, workers, web, Orthanc reader and federation, and watches them.

`run(config)` returns the exit code of `fedpacs node run`. State for people and tools is in run/status.json, written
atomically about once a second; run/node.lock is held while the node runs, so that one folder has one node.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicom_node.audit import AuditLog
from dicom_node.audit_checkpoint import sign_checkpoint
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, RefusedError, StorageError
from dicom_node.service import up_file
from dicom_node.status import write_json
from dicom_node.storage_encryption import require_as_configured
from dicom_node.supervise import Child, ProcessSpec, Supervisor

READY_SECONDS = 60.0
# A child that ends with one of these before the node is ready says something that a restart does not mend.
_FINAL_CODES = {2, 3, 5, 7, 8}


def process_specs(config: NodeConfig) -> list[ProcessSpec]:
    """What this configuration makes the node run, in the order of docs/architecture.md."""
    storage = config.storage
    file = str(config.path)

    def spec(name: str, module: str, identified: bool) -> ProcessSpec:
        # a traceback of a process left of the wall may quote an identified value: it stays left of the wall
        folder = storage.spool / "crash" if identified else storage.logs
        argv = (sys.executable, "-m", module, "--config", file)
        return ProcessSpec(name, argv, folder / f"{name}.stderr", _environment(name, identified))

    specs = [spec(f"receiver-{n}", "dicom_node.receiver", True) for n in range(1, config.dicom.processes + 1)]
    specs += [spec(f"worker-{n}", "dicom_node.worker", True) for n in range(1, config.study.workers + 1)]
    specs.append(spec("web", "dicom_node.web", True))
    if config.orthanc.sources:
        specs.append(spec("orthanc-reader", "dicom_node.orthanc_reader", True))
    if config.dicom.peers:
        specs.append(spec("reporter", "dicom_node.reporter", True))
    if config.results.pacs:
        specs.append(spec("returner", "dicom_node.returner", True))
    if config.inference.models:
        specs.append(spec("inference", "aggregator_client.inference", False))
    if config.federation.coordinator:
        specs.append(spec("federation", "aggregator_client.site", False))
    return specs


def _environment(name: str, identified: bool) -> dict[str, str]:
    environment = {**os.environ, "FEDPACS_PROCESS": name}
    if identified:
        # these are many small processes: threads of numerical libraries would only fight over the cores
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return environment


class Node:
    """One run of the node: supervisor, readiness, status file."""

    def __init__(self, config: NodeConfig, announce: Callable[[str], None]) -> None:
        self.config, self.announce = config, announce
        self.supervisor = Supervisor(process_specs(config), on_exit=self._exited)
        self.started, self.ready_at, self.exit_code = time.time(), 0.0, 0
        self._written: object = None
        self._written_at = 0.0

    def run(self) -> int:
        self.supervisor.run(self._tick, interval=0.25)
        return self.exit_code

    def _tick(self) -> None:
        if not self.ready_at:
            if self._ready():
                self.ready_at = time.time()
                self.announce(ready_line(self.config))
            elif time.time() - self.started > READY_SECONDS:
                self._give_up(1, f"the node was not ready after {READY_SECONDS:.0f} s; see `fedpacs doctor`")
        state = (self.ready_at, *((c.process and c.process.pid, c.restarts) for c in self.supervisor.children.values()))
        if state != self._written or time.time() - self._written_at >= 1.0:
            self._written, self._written_at = state, time.time()
            write_json(self.config.storage.run / "status.json", self._status())

    def _ready(self) -> bool:
        """Workers and reader say that they are up; web and receiver are up when they listen."""
        names = self.supervisor.children
        if not all(self._is_up(name) for name in names if name.startswith(("worker", "orthanc"))):
            return False
        dicom, web = self.config.dicom, self.config.web
        receiving = any(child.running for name, child in names.items() if name.startswith("receiver"))
        return names["web"].running and receiving and _listens(web.host, web.port) and _listens(dicom.host, dicom.port)

    def _is_up(self, name: str) -> bool:
        process = self.supervisor.children[name].process
        try:
            told = json.loads(up_file(self.config, name).read_text())
        except (OSError, ValueError):
            return False
        return process is not None and told == {"pid": process.pid}

    def _exited(self, child: Child, code: int) -> None:
        if not self.ready_at and code in _FINAL_CODES:
            self._give_up(code, _last_words(child.spec.stderr) or f"{child.spec.name} ended with code {code}")

    def _give_up(self, code: int, sentence: str) -> None:
        self.exit_code = code
        print(f"fedpacs: {sentence}", file=sys.stderr)
        self.supervisor.stopping = True

    def _status(self) -> dict[str, Any]:
        return {
            "name": self.config.node.name,
            "pid": os.getpid(),
            "started_at": self.started,
            "ready": bool(self.ready_at) and not self.supervisor.stopping,
            "at": time.time(),
            "processes": self.supervisor.status(),
        }


def run(config: NodeConfig, announce: Callable[[str], None] | None = None) -> int:
    """Run the node until SIGTERM or Ctrl-C; -> exit code. Raises RefusedError when this folder's node runs already."""
    prepare_folders(config)
    with _only_one(config.storage.run):
        require_free_ports(config)
        require_as_configured(config)
        audit = AuditLog(config.storage.audit)
        audit.append("node.started", name=config.node.name, ae_title=config.dicom.ae_title, pid=os.getpid())
        sign_checkpoint(audit, config.storage.keys)
        node = Node(config, announce or _say)
        try:
            return node.run()
        finally:
            audit.append("node.stopped", name=config.node.name, seconds=round(time.time() - node.started))
            sign_checkpoint(audit, config.storage.keys)
            status = {**node._status(), "ready": False, "stopped": True}
            write_json(config.storage.run / "status.json", status)


def ready_line(config: NodeConfig) -> str:
    """The one line on stdout that scripts wait for."""
    dicom, web = config.dicom, config.web
    return f"fedpacs node {config.node.name} ready: AE {dicom.ae_title} port {dicom.port}, console {console_url(web)}"


def console_url(web: Any) -> str:
    host = f"[{web.host}]" if ":" in web.host else web.host
    return f"http://{host}:{web.port}/"


def require_free_ports(config: NodeConfig) -> None:
    """Raise ConfigError when someone listens on one of our ports already.

    The receivers share their port (SO_REUSEPORT), so without this a second node would silently share it too, and take a
    part of the first one's studies.
    """
    for key, host, port in (
        ("[dicom] port", config.dicom.host, config.dicom.port),
        ("[web] port", config.web.host, config.web.port),
    ):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"{config.path}: {key} = {port} on {host} cannot be listened on ({error.strerror});"
                    " stop what uses it, or choose another."
                ) from None


def prepare_folders(config: NodeConfig) -> None:
    """Make the node's folders; those that hold identified values or keys are readable by their owner alone."""
    storage = config.storage
    try:
        for folder, mode in (
            (storage.spool, 0o700),
            (storage.quarantine, 0o700),
            (storage.vault, 0o700),
            (storage.keys, 0o700),
            (storage.dataset, 0o750),
            (storage.federation, 0o750),
            (storage.logs, 0o750),
            (storage.run, 0o750),
        ):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            if mode == 0o700:
                folder.chmod(mode)
    except OSError as error:
        raise StorageError(
            f"The node's folders under {config.root} cannot be made ({error.strerror}); check its owner and the disk."
        ) from error


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "node.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"A node of {folder.parent} is running already; stop it, or use another folder."
            ) from None
        yield


def _listens(host: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _last_words(stderr: Path | None) -> str:
    """The sentence a child ended with (`fedpacs: ...`), without the prefix; never a traceback."""
    if stderr is None or not stderr.exists():
        return ""
    lines = [line for line in stderr.read_text(errors="replace").splitlines() if line.startswith("fedpacs: ")]
    return lines[-1].removeprefix("fedpacs: ") if lines else ""


def _say(line: str) -> None:
    print(line, flush=True)
