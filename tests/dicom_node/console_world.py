"""A node with everything its console can show: studies in every state, projects, rounds really trained, messages that left."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn

from aggregator_client import approvals
from aggregator_client.trainer_process import TrainerProcess
from dicom_node.accounts import Account, Accounts
from dicom_node.config import NodeConfig
from dicom_node.optout import opt_out
from dicom_node.web.app import create_app
from tests.aggregator_client import hospital
from tests.aggregator_client.test_executor import Desk
from tests.dicom_node.test_worker import Bench
from tests.interop.studies import planted

PEOPLE = {"viewer": "Vera", "data-manager": "Dan", "admin": "Ada"}
PASSWORD = "correct horse battery"
IDENTITIES = (1, 2, 3, 4)


class World:
    """`rounds` are trained by the real trainer, which takes a second each."""

    def __init__(self, root: Path, rounds: int = 3) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with closing(TrainerProcess(root / "trainer.log")) as trainer:
            self.desk = Desk(root, trainer)
            self.config: NodeConfig = self._with_ports()
            self.desk.hospital.approve(self.desk.project)
            model = None
            for number in range(1, rounds + 1):
                answer = self.desk.ask(number, model=model)
                assert answer.header["kind"] == "update", answer.header
                model = answer.parts["model"]
        self.digest = self.desk.project.digest
        asks = {"purpose": "Find pneumothorax. <script>alert(1)</script>", "name": "pneumothorax", "version": "2"}
        self.offered = hospital.project(self.desk.coordinator, **asks)
        approvals.offer(self.config, self.offered)
        self.bench = Bench(self.config.root)
        self._studies()
        self._people()

    def _with_ports(self) -> NodeConfig:
        file = self.desk.config.path
        self.listener = socket.create_server(("127.0.0.1", 0))  # held from now on, so that nobody else takes the port
        port = self.listener.getsockname()[1]
        text = file.read_text().replace("port = 8080", f"port = {port}", 1)
        file.write_text(text)
        from dicom_node.config import load_config

        return load_config(file)

    def _studies(self) -> None:
        self.bench.send(1, 1, 2)
        self.bench.send(2, 1)
        self.bench.run()
        self.bench.deid.quarantine = {7}
        self.bench.send(3, 7)
        self.bench.run()
        self.bench.send(4, 1)  # waits: no worker runs any more
        opt_out(self.config, planted(2).patient_id, "console:Dan")

    def _people(self) -> None:
        with closing(Accounts(self.config.storage.accounts)) as accounts:
            for role in ("admin", "data-manager", "viewer"):
                accounts.add(PEOPLE[role], role, PASSWORD, "setup")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.web.port}"

    def session(self, role: str) -> dict[str, str]:
        """{cookie: value} of somebody logged in."""
        with closing(Accounts(self.config.storage.accounts)) as accounts:
            token = accounts.open_session(Account(PEOPLE[role], role))
        return {f"fedpacs_session_{self.config.web.port}": token}

    def pages(self, role: str) -> list[str]:
        """Every page somebody in this role can open from the menus."""
        study = next(s.study_uid for s in self.bench.catalogue.studies("eligible") if s.modality == "CT")
        paths = ["/", "/pages/studies", f"/pages/studies/{study}", "/pages/projects", f"/pages/projects/{self.digest}"]
        paths += [f"/pages/projects/{self.offered.digest}", "/pages/training", "/pages/left"]
        if role != "viewer":
            paths += ["/pages/quarantine", "/pages/optouts", f"/pages/studies/{study}?instance=0"]
        return paths + (["/pages/accounts"] if role == "admin" else [])

    def close(self) -> None:
        self.listener.close()
        self.desk.close()


@contextmanager
def served(world: World) -> Iterator[None]:
    """The console on its port, in a thread."""
    app = create_app(world.config)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [world.listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the console does not start"
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)
