"""Results in a real Orthanc, several Orthancs and nodes, a unix socket, what is offered, and who may do what."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_node import cli
from dicom_node.audit import AuditLog
from tests.dicom_node.test_results import report, segmentation
from tests.interop.node_process import RunningNode, wait_for
from tests.interop.orthanc_process import MISSING, PASSWORD, USER, Orthanc, free_port
from tests.interop.studies import ct_instance, planted

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent the intended person name"),
]
CHANGE = {"X-Fedpacs": "1"}
BOB = ("bob", "bob-password")


class World:
    """Orthancs and nodes of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.orthancs, self.nodes = folder, [], []  # type: ignore[var-annotated]
        (folder / "password").write_text(PASSWORD)

    def node(self, ports: list[int], **settings: str) -> RunningNode:
        """A node that follows the Orthancs on these ports."""
        first, *more = [f"http://127.0.0.1:{port}" for port in ports]
        known = f'username = "{USER}", password_file = "{self.folder / "password"}"'
        node = RunningNode(
            self.folder / f"node{len(self.nodes)}",
            url=f'"{first}"',
            username=f'"{USER}"',
            password_file=f'"{self.folder / "password"}"',
            poll_seconds="0.3",
            more="[" + ", ".join(f'{{ url = "{url}", {known} }}' for url in more) + "]",
            **settings,
        )
        self.nodes.append(node)
        return node

    def orthanc(self, port: int, fedpacs: dict[str, Any] | None = None) -> Orthanc:
        settings = {"RegisteredUsers": {USER: PASSWORD, BOB[0]: BOB[1]}, "Fedpacs": fedpacs or {}}
        folder = self.folder / f"orthanc{len(self.orthancs)}"
        one = Orthanc(folder, settings, http_port=port, **({} if fedpacs else {"script": None}))
        self.orthancs.append(one)
        return one.start()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path)
    yield one
    for each in (*one.orthancs, *one.nodes):
        each.kill()


def plugin_of(node: RunningNode, **more: Any) -> dict[str, Any]:
    return {"Url": f"http://127.0.0.1:{node.config.web.port}", "TokenFile": str(node.token_file), **more}


def store(pacs: Orthanc, study: int, *numbers: int, modality: str = "CT") -> str:
    with pacs.client() as client:
        for number in numbers:
            answer = client.post("/instances", content=ct_instance(planted(study), number, modality=modality))
            found = str(answer.raise_for_status().json()["ParentStudy"])
    return found


def eligible(node: RunningNode) -> list[str]:
    catalogue = node.catalogue()
    try:
        return [study.study_uid for study in catalogue.studies("eligible")]
    finally:
        catalogue.close()


def ask(pacs: Orthanc, path: str, **kwargs: Any) -> dict[str, Any]:
    with pacs.client(**kwargs) as client:
        return dict(client.get(path).json())


def test_results_come_back_once_and_show_at_their_study(world: World, tmp_path: Path) -> None:
    port = free_port()
    node = world.node([port], unix_socket='"run/console.sock"')
    node.start()
    socket = f"unix://{node.config.web.unix_socket}"
    pacs = world.orthanc(port, {**plugin_of(node), "Url": socket})
    study = store(pacs, 7, 1, 2, 3)
    wait_for(lambda: eligible(node), 60)
    made = tmp_path / "made"
    made.mkdir()
    (made / "seg.dcm").write_bytes(segmentation(node.config))
    (made / "sr.dcm").write_bytes(report(node.config))
    for _ in range(2):  # given twice, in the PACS once
        assert cli.run(["node", "results", "give", str(made), "--config", str(node.config.path), "--json"]) == 0
    wait_for(
        lambda: [r["state"] for r in ask(pacs, f"/fedpacs/studies/{study}").get("results", [])] == ["stored"] * 2, 60
    )
    with pacs.client() as client:
        series = client.get(f"/studies/{study}/series?expand").json()
        assert sorted(s["MainDicomTags"]["Modality"] for s in series) == ["CT", "SEG", "SR"]
        assert len(client.get("/studies").json()) == 1, "under the original study"
        page = client.get(f"/fedpacs/page?study={study}").text
        for result in ask(pacs, f"/fedpacs/studies/{study}")["results"]:
            assert f"#instance?uuid={result['orthanc_id']}" in page, "linked from the study's page"
            assert client.get(f"/instances/{result['orthanc_id']}/file").status_code == 200
        seen = client.get(
            f"/instances/{ask(pacs, f'/fedpacs/studies/{study}')['results'][0]['orthanc_id']}/file"
        ).content
    (tmp_path / "back.dcm").write_bytes(seen)
    assert dcmread(tmp_path / "back.dcm").PatientID == planted(7).patient_id
    # Orthanc calls the study stable once more; what we stored there is not taken for new images
    ledger_status = lambda: ask(pacs, "/fedpacs/status")["orthanc"]  # noqa: E731
    wait_for(lambda: ask(pacs, f"/studies/{study}")["IsStable"] and ledger_status()["waiting"] == 0, 60)
    assert ledger_status()["instances"] == 3
    assert node.catalogue().studies()[0].instances == 3
    audit = AuditLog(node.config.storage.audit)
    assert [len(list(audit.records(k))) for k in ("result.reidentified", "result.returned")] == [2, 2]
    assert not [t for t in planted(7).tokens() if t in pacs.log]
    assert store(pacs, 7, 4) == study
    wait_for(lambda: node.catalogue().studies()[0].instances == 4, 60)


def test_two_orthancs_to_one_node_and_one_orthanc_to_two_nodes(world: World) -> None:
    ports = [free_port(), free_port()]
    both, second = world.node(ports), world.node(ports[:1])
    both.start()
    second.start()
    more = [{"Url": f"http://127.0.0.1:{second.config.web.port}", "TokenFile": str(second.token_file)}]
    first = world.orthanc(ports[0], plugin_of(both, MoreNodes=more))
    other = world.orthanc(ports[1])
    shared = store(first, 1, 1, 2)
    assert store(other, 1, 1, 2) == shared, "the same study in both"
    store(first, 2, 1)
    store(other, 3, 1)
    wait_for(lambda: len(eligible(both)) == 3 and len(eligible(second)) == 2, 60)
    assert {s.instances for s in both.catalogue().studies()} == {1, 2}, "what both have is there once"
    status = ask(first, "/fedpacs/status")["orthanc"]
    assert [one["handed_over"] for one in status["each"]] == [2, 2] and status["handed_over"] == 4
    with first.client() as client:
        answer = client.post(f"/fedpacs/studies/{shared}/exclude", json={"reason": "asked"}, headers=CHANGE)
        assert answer.json() == {"studies": 1}
        assert [len(eligible(both)), len(eligible(second))] == [2, 1], "excluded at both nodes"
        second.kill()
        answer = client.post(f"/fedpacs/studies/{shared}/exclude", json={"reason": "asked"}, headers=CHANGE)
        assert answer.status_code == 503, "one node did not hear it: the click says so"
        assert client.get("/fedpacs/health").status_code == 503
    first.kill()  # the other one is still followed
    store(other, 4, 1)
    wait_for(lambda: len(eligible(both)) == 3, 60)


def test_only_what_is_offered_is_taken_and_roles_are_kept(world: World) -> None:
    port = free_port()
    node = world.node([port])
    node.start()
    section = plugin_of(node, Offer={"Modalities": ["CT"], "CallingAets": []}, Roles={USER: "admin", "*": "viewer"})
    pacs = world.orthanc(port, section)
    taken, left = store(pacs, 1, 1), store(pacs, 2, 1, modality="MR")
    wait_for(lambda: len(eligible(node)) == 1, 60)
    wait_for(lambda: ask(pacs, f"/fedpacs/studies/{left}")["state"] == "withheld", 60)
    assert ask(pacs, f"/fedpacs/studies/{left}")["reason"] == "not offered: Fedpacs.Offer.Modalities"
    with pacs.client(auth=BOB) as bob:
        assert bob.get(f"/fedpacs/studies/{taken}").json()["state"] == "eligible"
        answer = bob.post(f"/fedpacs/studies/{taken}/exclude", json={"reason": "x"}, headers=CHANGE)
        assert answer.status_code == 403 and "data-manager" in answer.json()["error"]
        assert "data-post" not in bob.get(f"/fedpacs/page?study={taken}").text
    # wrong rules offer nothing more, and the plugin taken out does not offer what was withheld
    for broken, script in (({"Offer": {"Modalities": "MR"}}, True), ({}, False)):
        pacs.stop()
        pacs.settings["Fedpacs"] = {**section, **broken}
        pacs.script = pacs.script if script else None
        pacs.start()
        store(pacs, 3 + script, 1, modality="MR")
        with node.client() as client:
            wait_for(lambda c=client, n=2 if script else 3: c.get("/status").json()["orthanc"]["withheld"] == n, 60)  # type: ignore[misc]
    assert len(eligible(node)) == 1
    pacs.stop()
    pacs.settings["Fedpacs"], pacs.script = plugin_of(node), Orthanc(world.folder).script
    pacs.start()
    wait_for(lambda: len(eligible(node)) == 4, 60, lambda: json.dumps(node.status()))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is missing")
def test_buttons_stand_on_patient_study_and_series(world: World) -> None:
    port = free_port()
    pacs = world.orthanc(port, {"Url": "http://127.0.0.1:9", "TokenFile": "/nonexistent"})
    study = store(pacs, 1, 1)
    whole = ask(pacs, f"/studies/{study}")
    dom: Callable[[str], str] = lambda place: subprocess.run(  # noqa: E731
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom",
         f"--user-data-dir={world.folder / 'chromium'}", f"http://{USER}:{PASSWORD}@127.0.0.1:{port}/app/explorer.html#{place}"],
        check=True, timeout=90, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for place in (f"patient?uuid={whole['ParentPatient']}", f"study?uuid={study}", f"series?uuid={whole['Series'][0]}"):
        shown = dom(place)
        assert "Exclude patient from federation" in shown and "show in fedpacs" in shown, place
        assert "the node does not answer" in shown, "the state line of a node that is not there"
