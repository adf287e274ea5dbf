"""A head series on its way through a node: in the dataset without its face, brain untouched, both sides for the data manager."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from starlette.testclient import TestClient

from anonymizer import Deidentifier, load_profile
from anonymizer.faces import series as faces
from dicom_node.accounts import Account, Accounts
from dicom_node.audit import AuditLog
from dicom_node.vault import Vault
from dicom_node.web.app import create_app
from tests.anonymizer.heads import make, write_classic, write_enhanced
from tests.dicom_node.test_worker import Bench


def taken_in(folder: Path, files: list[Path]) -> Bench:
    bench = Bench(folder)
    key = Vault.open(bench.config).pseudonym_key
    profile = load_profile("federated-default")
    bench.worker.pipeline.deid = Deidentifier(profile, key=key, uid_root=bench.config.deid.uid_root, series=True)
    for path in files:
        bench.spool.add_file(path.read_bytes(), source="TEST")
    bench.run()
    return bench


def data_manager(bench: Bench) -> TestClient:
    client = TestClient(create_app(bench.config), base_url="http://127.0.0.1:8080", follow_redirects=False)
    accounts = Accounts(bench.config.storage.accounts)
    session = accounts.open_session(Account("Dan", "data-manager"))
    accounts.close()
    client.cookies.set(f"fedpacs_session_{bench.config.web.port}", session)
    return client


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_a_head_loses_its_face_in_the_node_and_its_manager_sees_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    head = make("coronal", "MR", seed=8, gap=5.0, pixel=4.0)
    if form == "classic":
        files = write_classic(head, tmp_path / "in")
    else:
        files = [tmp_path / "in.dcm"]
        write_enhanced(head, files[0])
    bench = taken_in(tmp_path / "node", files)
    (study,) = bench.catalogue.studies()
    instances = bench.catalogue.instances(study.study_uid)
    assert len(instances) == len(files)
    after = np.zeros_like(head.values)
    for one in instances:
        ds = pydicom.dcmread(bench.config.storage.dataset / one.path)
        assert ds.RecognizableVisualFeatures == "NO"
        if form == "enhanced":
            after[:] = ds.pixel_array
            continue
        away = np.linalg.norm(np.array(head.positions) - np.array(ds.ImagePositionPatient, dtype=float), axis=1)
        after[int(away.argmin())] = ds.pixel_array
    assert np.array_equal(after[head.brain], head.values[head.brain]) and not np.array_equal(after, head.values)
    monkeypatch.setattr(faces, "deface", lambda *_: pytest.fail("a head was registered in a web request"))
    with data_manager(bench) as client:
        place = f"/pages/studies/{study.study_uid}"
        page = client.get(f"{place}?instance=0")
        assert page.status_code == 200 and 'id="surface"' in page.text and "Kopf" in page.text
        assert client.get(f"{place}/0/after").content.startswith(b"\x89PNG")
        drawn = client.get(f"{place}/0/surface")
        assert drawn.status_code == 200, drawn.text
        before_side, after_side = np.split(np.asarray(Image.open(io.BytesIO(drawn.content))).astype(int), 2)
        assert np.abs(before_side - after_side).mean() > 3
        accounts = Accounts(bench.config.storage.accounts)
        client.cookies.set(f"fedpacs_session_{bench.config.web.port}", accounts.open_session(Account("Vera", "viewer")))
        accounts.close()
        assert client.get(f"{place}/0/surface").status_code == 403
    kinds = [record.facts["what"] for record in AuditLog(bench.config.storage.audit).records("study.compared")]
    assert kinds.count("surface") == 1 and kinds.count("instance") >= 1
