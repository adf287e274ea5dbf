"""A large update over a line that loses every twentieth frame each way and is cut twice arrives once, and whole.

Five million parameters, or as many as FEDPACS_TEST_PARAMETERS says (50 million were measured: docs/results.md). Needs root.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from aggregator_client.coordinator import settings
from tests.interop.network import Network

PARAMETERS = int(os.environ.get("FEDPACS_TEST_PARAMETERS", "5000000"))
LIMIT = 120 + PARAMETERS // 100_000  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 (ip) is not installed"),
]

HUB = """
import hashlib, json, sys, time
from pathlib import Path
from aggregator_client.coordinator import settings
from aggregator_client.coordinator.flower_hub import FlowerHub, Tls
root, limit = Path(sys.argv[1]), float(sys.argv[2])
config = settings.load(root / "coordinator")
tls = Tls(config.tls.certificate, config.tls.key, config.tls.authority)
hub = FlowerHub(root / "hub", tls, "0.0.0.0", config.network.port)
hub.register("South", (root / "node.pub").read_bytes())
hub.start_run()
while not any(site.online for site in hub.sites()):
    time.sleep(0.1)
handle = hub.send("South", b"what have you learned?")
asked = time.monotonic()
replies = [r for _, r in hub.collect([handle], time.monotonic() + limit)]
took = time.monotonic() - asked
print(json.dumps([[hashlib.sha256(r).hexdigest() if isinstance(r, bytes) else r.reason for r in replies], took]), flush=True)
hub.close()
"""

SITE = """
import sys
from pathlib import Path
from aggregator_client.errors import UnreachableError
from aggregator_client.flower_site import FlowerLink, load_node_key
root = Path(sys.argv[1])
key, authority = load_node_key((root / "node.pem").read_bytes()), (root / "authority.pem").read_bytes()
link = FlowerLink(sys.argv[2], authority, key, root / "site")
update = (root / "update").read_bytes()
while True:
    try:
        found = link.next(0.2)
        if found is not None:
            print("sending", flush=True)
            link.reply(found, update)
            print("sent", flush=True)
    except UnreachableError as error:
        print("away", flush=True)
"""


def test_a_large_update_over_a_line_with_loss_and_cuts_arrives_once(tmp_path: Path) -> None:
    network = Network(["coordinator", "South"])
    processes: list[subprocess.Popen[str]] = []

    def start(machine: str, code: str, *argv: str) -> subprocess.Popen[str]:
        with (tmp_path / f"{machine}.stderr").open("ab") as log:
            whole = [*network.inside(machine), sys.executable, "-c", code, str(tmp_path), *argv]
            processes.append(subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=log, text=True))
        return processes[-1]

    try:
        try:
            network.up()
            network.worsen(delay_ms=5, jitter_ms=1)
        except OSError as error:
            pytest.skip(f"this machine makes no network namespaces ({error})")
        digest = _prepare(tmp_path, network.address(0))
        hub = start("coordinator", HUB, str(LIMIT))
        site = start("South", SITE, f"{network.address(0)}:9443")
        said = [site.stdout.readline()] if site.stdout else []
        while said[-1] == "away\n" and site.stdout:  # the coordinator is still starting
            said.append(site.stdout.readline())
        assert said[-1] == "sending\n"
        for _ in range(2):
            time.sleep(0.7)
            network.cut("South")
            time.sleep(2.5)
            network.mend("South")
        out, _ = hub.communicate(timeout=LIMIT + 60)
        assert hub.returncode == 0, (tmp_path / "coordinator.stderr").read_text()[-3000:]
        replies, seconds = json.loads(out)
        assert replies == [digest], "the update did not arrive once and whole"
        told = network.carried() if network.lines else {}
        print(f"{PARAMETERS} parameters in {seconds:.0f} s, {told}")
        if told:
            assert 0.02 < told["lost"] / (told["lost"] + told["carried"]) < 0.2, told
            assert told["bytes"] < 1.5 * 4 * PARAMETERS, "pieces that had arrived were sent again"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        network.down()


def _prepare(root: Path, address: str) -> str:
    """The coordinator's folder, the site's key and an update; returns the update's SHA-256."""
    config = settings.create(root / "coordinator", name="University", host=address, port=9443)
    key = ec.generate_private_key(ec.SECP384R1())
    (root / "node.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (root / "node.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (root / "authority.pem").write_bytes(config.tls.authority.read_bytes())
    update = os.urandom(4 * PARAMETERS)
    (root / "update").write_bytes(update)
    return hashlib.sha256(update).hexdigest()
