"""Seconds a round costs beside local training: ours (TLS, node keys, sealed and signed, durable) against bare Flower FedAvg.

    python benchmarks/overhead.py --json [--clients 10] [--rounds 4]

Both move the same 77 thousand parameters to and from 10 client processes that train nothing; rounds are timed at the coordinator
and the first, which pays for starting up, is left out. Bare Flower is the stock flower-superlink, flower-supernode and `flwr run`
without TLS or authentication. Ours is the coordinator's own run over its SuperLink, with stand-in sites that open, answer and
seal. The figure is the ratio of median rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {"name": "small_resnet", "args": {"in_channels": 1, "classes": 3, "widths": [16, 32, 64], "norm": "batch"}}
PARAMETERS = 77_000
POLL_SECONDS = 1.0  # node.toml's default
APP = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "bare"
version = "1.0.0"
description = "FedAvg with clients that train nothing."
license = "Apache-2.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "bare.server:app"
clientapp = "bare.client:app"
[tool.flwr.app.config]
rounds = 3
clients = 10
size = 77000
times = ""
""",
    "bare/__init__.py": "",
    "bare/client.py": """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 10})}
    return Message(content=RecordDict(content), reply_to=message)
""",
    "bare/server.py": """
import time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
@app.main()
def main(grid, context):
    config = context.run_config
    def note():
        with open(config["times"], "a") as file:
            file.write(f"{time.time()}\\n")
    class Timed(FedAvg):
        def aggregate_train(self, server_round, replies):
            found = super().aggregate_train(server_round, replies)
            note()
            return found
    clients = int(config["clients"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    start = ArrayRecord({"w": Array(np.zeros(int(config["size"]), np.float32))})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=int(config["rounds"]))
""",
}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Processes:
    """Children that are ended together."""

    def __init__(self, log: Path) -> None:
        self.log, self.all = log, list[subprocess.Popen[bytes]]()

    def start(self, argv: list[str], environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.all.append(subprocess.Popen(argv, stdout=log, stderr=log, env=environment, start_new_session=True))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.all):
            process.terminate()
        for process in self.all:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def bare(clients: int, rounds: int) -> list[float]:
    """Seconds of each round but the first, stock Flower."""
    bin_ = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="fedpacs-bare-") as name, Processes(Path(name) / "log") as children:
        folder, times = Path(name), Path(name) / "times"
        for path, text in APP.items():
            (folder / "app" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "app" / path).write_text(text)
        port, *others = free_ports(clients + 1)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "b"\n[superlink.b]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1",
                       "FLWR_DISABLE_UPDATE_CHECK": "1", "PATH": f"{bin_}:{os.environ['PATH']}"}  # fmt: skip
        link = [str(bin_ / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        children.start([*link, "--disable-runtime-dependency-installation"], environment)
        _until(lambda: _listens(port), 60)
        for other in others:
            node = [
                str(bin_ / "flower-supernode"),
                "--insecure",
                "--superlink",
                f"127.0.0.1:{port}",
                "--port",
                str(other),
            ]
            children.start(node, environment)
        settings = f"times='{times}' rounds={rounds} clients={clients} size={PARAMETERS}"
        argv = [str(bin_ / "flwr"), "run", ".", "b", "--run-config", settings]
        subprocess.run(argv, cwd=folder / "app", env=environment, check=True, capture_output=True, timeout=120)
        _until(lambda: times.exists() and len(times.read_text().splitlines()) >= rounds, 120 * rounds)
        marks = [float(line) for line in times.read_text().splitlines()]
        return [after - before for before, after in itertools.pairwise(marks)]


def ours(clients: int, rounds: int) -> list[float]:
    """Seconds of each round but the first, over our hub with sealed messages."""
    from aggregator_client.coordinator.flower_hub import FlowerHub
    from aggregator_client.coordinator.server import Run
    from aggregator_client.coordinator.state import RunState
    from tests.aggregator_client import federation
    from tests.aggregator_client.wires import self_signed

    with tempfile.TemporaryDirectory(prefix="fedpacs-ours-") as name, Processes(Path(name) / "log") as children:
        folder, names = Path(name), [f"site-{i:03d}" for i in range(clients)]
        coordinator, keys = federation.keys_of(folder, *names)
        tls = self_signed(folder / "tls")
        hub, state = FlowerHub(folder / "hub", tls, "127.0.0.1"), RunState(folder / "run")
        project = federation.project(coordinator, network=NETWORK, rounds=rounds, min_sites=clients, deadline_s=120.0)
        for site in names:
            hub.register(site, keys[site].flower_public)
            children.start([sys.executable, __file__, "--site", f"{folder}|{site}|{hub.port}"], dict(os.environ))
        _until(lambda: sum(info.online for info in hub.sites()) == clients, 120)
        marks: list[float] = []

        def tell(facts: object) -> None:
            if isinstance(facts, dict) and facts["event"] == "checkpoint":
                marks.append(time.time())

        try:
            Run(project, [federation.member(n, keys[n]) for n in names], coordinator, hub, state, tell).go()
        finally:
            state.close()
            hub.close()
        return [after - before for before, after in itertools.pairwise(marks)]


def site(folder: Path, name: str, port: int) -> None:
    """A stand-in hospital: opens each request, answers it and seals, and trains nothing."""
    from aggregator_client.flower_site import FlowerLink, load_node_key
    from tests.aggregator_client import federation

    coordinator, keys = federation.keys_of(folder, name)
    authority = (folder / "tls" / "cert.pem").read_bytes()
    link = FlowerLink(
        f"127.0.0.1:{port}", authority, load_node_key(keys[name].flower_file.read_bytes()), folder / f"f-{name}"
    )
    stand_in = federation.Site(name, keys[name], coordinator, link)
    while True:
        delivery = link.next(POLL_SECONDS)
        if delivery is not None and (reply := stand_in.handle(delivery.payload)) is not None:
            link.reply(delivery, reply)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if callable(condition) and condition():
            return
        time.sleep(0.1)
    raise TimeoutError("overhead: a federation did not get ready in time")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--site", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.site:
        folder, name, port = given.site.split("|")
        site(Path(folder), name, int(port))
        return 0
    figures = {"bare_flower_s": bare(given.clients, given.rounds), "ours_s": ours(given.clients, given.rounds)}
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    ratio = round(medians["ours_s"] / medians["bare_flower_s"], 3)
    result = {"clients": given.clients, "ratio_round_overhead": ratio, "median": medians, "rounds": figures}
    print(
        json.dumps(result)
        if given.json
        else f"ours {medians['ours_s']} s, bare {medians['bare_flower_s']} s: {ratio} ×"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
