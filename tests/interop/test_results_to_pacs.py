"""Results go to a PACS by C-STORE and by STOW-RS, once, with a returner process that is killed and a PACS that is away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dicom_node.config import NodeConfig, load_config
from dicom_node.daemon import process_specs
from dicom_node.errors import RefusedError, UnreachableError
from dicom_node.results import Results
from dicom_node.results.pacs import open_pacs
from dicom_node.setup import write_default_config
from tests.dicom_node.test_results import WHO, deidentify, report, segmentation
from tests.interop.orthanc_process import MISSING, PASSWORD, USER, Orthanc, free_port
from tests.interop.studies import ct_instance
from tests.interop.test_retrieve import DICOMWEB, needs_dicomweb, until

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent the intended person name"),
]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    if MISSING:
        pytest.skip(MISSING)
    allow = {f"DicomAlwaysAllow{what}": True for what in ("Echo", "Store", "Find")}
    web = {"Plugins": [str(DICOMWEB)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}} if DICOMWEB.exists() else {}
    made = Orthanc(tmp_path / "pacs", {**allow, **web, "OverwriteInstances": True}, script=None)
    made.start()
    yield made
    made.stop()


def node_for(root: Path, orthanc: Orthanc, via: str) -> NodeConfig:
    file = write_default_config(root / "node")
    pacs = f"{orthanc.url}/dicom-web" if via == "web" else f"ORTHANC@127.0.0.1:{orthanc.dicom_port}"
    text = file.read_text().replace('pacs = ""', f'pacs = "{pacs}"', 1)
    file.write_text(text.replace('# password_file = "keys/pacs.password"', 'password_file = "keys/pacs.password"', 1))
    config = load_config(file)
    (config.storage.keys / "pacs.password").write_text(f"{USER}:{PASSWORD}\n")
    deidentify(config)
    return config


def fill(orthanc: Orthanc) -> None:
    with orthanc.client() as client:
        for number in (1, 2, 3):
            client.post("/instances", content=ct_instance(WHO, number)).raise_for_status()


def made_here(orthanc: Orthanc) -> list[str]:
    """Modalities of the instances that are not images, as the PACS has them."""
    with orthanc.client() as client:
        tags = [client.get(f"/instances/{one}/simplified-tags").json() for one in client.get("/instances").json()]
    assert {one["PatientID"] for one in tags} == {WHO.patient_id} and {one["StudyInstanceUID"] for one in tags} == {
        WHO.study_uid
    }
    return sorted(one["Modality"] for one in tags if one["Modality"] != "CT")


@pytest.mark.parametrize("via", ["dicom", pytest.param("web", marks=needs_dicomweb)])
def test_results_arrive_once_by_a_process_that_is_killed(tmp_path: Path, orthanc: Orthanc, via: str) -> None:
    config = node_for(tmp_path, orthanc, via)
    assert "dicom_node.returner" in [spec.argv[2] for spec in process_specs(config)]
    with closing(Results(config)) as results:
        for result in (segmentation(config), report(config)):
            assert results.take(result, "tester")[1]
        argv = [sys.executable, "-m", "dicom_node.returner", "--config", str(config.path)]
        first = subprocess.Popen(argv)
        try:
            until(lambda: all(one.reason == "no followed PACS has the study" for one in results.all()))
            fill(orthanc)
        finally:
            first.kill()
            first.wait()
        # killed between the PACS's answer and the note of it, as the state it leaves behind says
        pacs = open_pacs(config)
        assert pacs is not None
        waiting = sorted(results.folder.glob("*.dcm"))
        pacs.store(waiting[0].read_bytes())
        results._db.execute("UPDATE results SET state = 'sending' WHERE sop_uid = ?", (waiting[0].stem,))
        sent: list[bytes] = []
        keep = pacs.store
        pacs.store = lambda data: sent.append(data) or keep(data)  # type: ignore[method-assign, func-returns-value]
        assert results.deliver(pacs, "pacs") == 2 and len(sent) == 1, "what had arrived is not sent again"
        assert results.deliver(pacs, "pacs") == 0
        assert {one.state for one in results.all()} == {"stored"} and not list(results.folder.glob("*.dcm"))
    assert made_here(orthanc) == ["SEG", "SR"]


@pytest.mark.parametrize("via", ["dicom", pytest.param("web", marks=needs_dicomweb)])
def test_a_pacs_that_is_away_or_refuses_is_told_and_nothing_is_lost(tmp_path: Path, orthanc: Orthanc, via: str) -> None:
    config = node_for(tmp_path, orthanc, via)
    fill(orthanc)
    with closing(Results(config)) as results:
        results.take(segmentation(config), "tester")
        pacs = open_pacs(config)
        assert pacs is not None
        orthanc.stop()
        with pytest.raises(UnreachableError):
            results.deliver(pacs, "pacs")
        orthanc.start()
        real = pacs.store

        def refuse(data: bytes) -> str:
            raise RefusedError("The PACS would not store the result.")

        pacs.store = refuse  # type: ignore[method-assign]
        assert results.deliver(pacs, "pacs") == 0
        (one,) = results.all()
        assert (one.state, one.reason) == ("waiting", "The PACS would not store the result.")
        pacs.store = real  # type: ignore[method-assign]
        assert results.deliver(pacs, "pacs") == 1
    assert made_here(orthanc) == ["SEG"]


@needs_dicomweb
def test_stow_without_the_password_is_refused_in_a_sentence(tmp_path: Path, orthanc: Orthanc) -> None:
    config = node_for(tmp_path, orthanc, "web")
    (config.storage.keys / "pacs.password").write_text("alice:wrong")
    pacs = open_pacs(config)
    assert pacs is not None
    with pytest.raises(RefusedError, match="check the user or token"):
        pacs.store(ct_instance(WHO, 1))
    gone = config.model_copy(
        update={"results": config.results.model_copy(update={"pacs": f"X@127.0.0.1:{free_port()}"})}
    )
    away = open_pacs(gone)
    assert away is not None
    with pytest.raises(UnreachableError):
        away.store(ct_instance(WHO, 1))
