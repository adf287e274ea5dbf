"""The trainer process: spec.json in, result.json and safetensors out; nothing left of the wall is needed or opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from side import CLASSES, Side, build, disc, spec, write_spec

from dicom_node.records import Catalogue
from trainer import job, weights
from trainer.errors import CohortError, SpecError, WeightsError
from trainer.spec import JobSpec, load_spec

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def run(side: Side, out: Path, **changes: object) -> dict[str, object]:
    return job.run(JobSpec.model_validate(spec(side, out, **changes)))


def start(spec_file: Path, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer.job", str(spec_file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, **more)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    return build(tmp_path_factory.mktemp("side"))


def test_a_process_trains_and_tells(side: Side, tmp_path: Path) -> None:
    process = start(write_spec(tmp_path / "spec.json", spec(side, tmp_path / "out")))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    events = lines(out)
    assert [events[0]["event"], events[-1]["event"]] == ["start", "done"] and any(e["event"] == "step" for e in events)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["samples"] == 36 and result["class_counts"] == [12, 12, 12] and len(result["studies"]) == 36
    assert result["metrics"]["cases"] == 12 and result["metrics"]["auc"] > 0.9
    assert set(result["metrics"]["per_class"]) == set(CLASSES)
    assert result["subgroups"]["sex"] == {"F": {"cases": None, "metric": None}, "M": {"cases": None, "metric": None}}
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert result["sha256"] == __import__("hashlib").sha256(data).hexdigest()
    assert weights.from_bytes(data)["norm.num_batches_tracked"].dtype == np.int64
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_the_same_spec_gives_the_same_bytes_and_another_seed_others(side: Side, tmp_path: Path) -> None:
    first, again = (run(side, tmp_path / name, local={"epochs": 1}) for name in ("a", "b"))
    other = run(side, tmp_path / "c", local={"epochs": 1}, seed=4)
    assert first["sha256"] == again["sha256"] != other["sha256"]


def test_other_pseudonyms_of_the_same_patients_give_the_same_model(side: Side, tmp_path: Path) -> None:
    renamed = build(tmp_path / "renamed", first=997, step=-7)
    first, again = (
        run(one, tmp_path / name, local={"epochs": 2}) for one, name in ((side, "mine"), (renamed, "renamed"))
    )
    assert first["studies"] != again["studies"] and first["sha256"] == again["sha256"]
    assert first["metrics"] == again["metrics"] and first["subgroups"] == again["subgroups"]


def test_evaluate_and_scores_of_given_weights(side: Side, tmp_path: Path) -> None:
    trained = run(side, tmp_path / "t")
    model = tmp_path / "t" / "model.safetensors"
    seen = run(side, tmp_path / "e", kind="evaluate", weights_in=str(model))
    assert seen["metrics"] == trained["metrics"] and "weights" not in seen and seen["samples"] == 12
    scores = run(side, tmp_path / "s", kind="scores", weights_in=str(model))
    arrays = weights.load(tmp_path / "s" / "scores.safetensors")
    assert arrays["probabilities"].shape == (12, 3) and np.allclose(arrays["probabilities"].sum(1), 1, atol=1e-5)
    assert np.bincount(arrays["labels"]).tolist() == [4, 4, 4] and scores["metrics"] == seen["metrics"]


def test_evaluating_first_measures_the_given_weights_and_changes_nothing_else(side: Side, tmp_path: Path) -> None:
    run(side, tmp_path / "given")
    given = str(tmp_path / "given" / "model.safetensors")
    seen = run(side, tmp_path / "seen", kind="evaluate", weights_in=given)
    after = run(side, tmp_path / "after", weights_in=given)
    first = run(side, tmp_path / "first", weights_in=given, evaluate_first=True)
    assert first["metrics"] == seen["metrics"] != after["metrics"]
    assert first["sha256"] == after["sha256"] and first["loss"] == after["loss"]


def test_fedbn_keeps_the_sites_norm_layers(side: Side, tmp_path: Path) -> None:
    local = {"epochs": 1, "algorithm": "fedbn"}
    first = run(side, tmp_path / "a", local=local)
    kept = weights.load(tmp_path / "a" / str(first["state"]))
    assert all("norm" in name for name in kept) and "norm.running_mean" in kept
    whole = weights.load(tmp_path / "a" / "model.safetensors")
    other = {name: np.zeros_like(value) if name in kept else value for name, value in whole.items()}
    weights.save(tmp_path / "global.safetensors", other)
    given = {"weights_in": str(tmp_path / "global.safetensors"), "local": local, "kind": "evaluate"}
    spoiled = run(side, tmp_path / "b", **given)
    restored = run(side, tmp_path / "c", state_in=str(tmp_path / "a" / "state.safetensors"), **given)
    assert restored["metrics"] == first["metrics"] != spoiled["metrics"]
    weights.save(tmp_path / "wrong.safetensors", {"head.bias": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match="start FedBN afresh"):
        run(side, tmp_path / "d", state_in=str(tmp_path / "wrong.safetensors"), **given)


def test_scaffold_gives_its_state_and_takes_it_back(side: Side, tmp_path: Path) -> None:
    local = {"epochs": 1, "algorithm": "scaffold", "optimizer": "sgd", "lr": 0.05}
    first = run(side, tmp_path / "a", local=local)
    state = weights.load(tmp_path / "a" / str(first["state"]))
    assert {name.split(".")[0] for name in state} == {"local", "delta"} and np.abs(state["delta.head.weight"]).max() > 0
    control = {n: w for n, w in state.items() if n.startswith("local.")}
    control |= {n.replace("local.", "global.", 1): np.zeros_like(w) for n, w in control.items()}
    weights.save(tmp_path / "control.safetensors", control)
    plain, moved = (
        run(side, tmp_path / name, local=local, **more)
        for name, more in (("b", {}), ("c", {"state_in": str(tmp_path / "control.safetensors")}))
    )
    assert plain["sha256"] == first["sha256"] != moved["sha256"]


def test_pooled_sides_are_one_cohort(side: Side, tmp_path: Path) -> None:
    second = build(tmp_path / "second", 30, seed=5, first=1000)
    pooled = [{"catalogue": str(second.catalogue), "dataset": str(second.dataset)}]
    result = run(side, tmp_path / "out", pooled=pooled, local={"epochs": 1})
    assert result["samples"] == 36 + 18 and result["metrics"]["cases"] == 12 + 6


def test_a_training_killed_with_sigkill_resumes_to_the_same_result(side: Side, tmp_path: Path) -> None:
    facts = spec(side, tmp_path / "killed", local={"epochs": 24}, checkpoint_seconds=0)
    process = start(write_spec(tmp_path / "spec.json", facts))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step", 0) and (tmp_path / "killed" / "checkpoint.safetensors").exists():
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "result.json").exists()
    kept = json.loads(bytes(weights.load(tmp_path / "killed" / "checkpoint.safetensors")["facts"]))
    assert 0 < kept["step"] < 72
    process = start(tmp_path / "spec.json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert next(e["step"] for e in lines(out) if e["event"] == "step") > kept["step"]
    whole = run(side, tmp_path / "whole", local={"epochs": 24}, checkpoint_seconds=1000)
    assert json.loads((tmp_path / "killed" / "result.json").read_text())["sha256"] == whole["sha256"]


def test_an_image_that_cannot_be_decoded_is_set_aside(tmp_path: Path) -> None:
    side = build(tmp_path / "side", 30)
    victim = next(side.dataset.glob("*/*.dcm"))
    victim.write_bytes(victim.read_bytes()[:-100])
    result = run(side, tmp_path / "out", local={"epochs": 1})
    assert list(result["set_aside"]) == [victim.stem] and "cannot be decoded" in result["set_aside"][victim.stem]
    assert result["failures"] == {"pixel data cannot be decoded": 1}


def test_a_withdrawn_patient_leaves_the_cohort_and_the_cache(tmp_path: Path) -> None:
    side = build(tmp_path / "side", 30)
    before = run(side, tmp_path / "a", local={"epochs": 1})
    data = next((side.root / "cache").glob("*/images.f16"))
    size = data.stat().st_size
    catalogue = Catalogue(side.catalogue)
    catalogue.withdraw_patient("patient1")
    catalogue.close()
    after = run(side, tmp_path / "b", local={"epochs": 1})
    assert before["samples"] - after["samples"] == 1
    rows = np.frombuffer(data.read_bytes(), np.float16).reshape(30, -1)
    assert (np.abs(rows).sum(1) == 0).sum() == 1 and data.stat().st_size == size


def test_an_unknown_class_sets_the_study_aside_with_its_reason(tmp_path: Path) -> None:
    side = build(tmp_path / "side", 30)
    catalogue = Catalogue(side.catalogue)
    side.add(catalogue, 900, disc(0, np.random.default_rng(0)), "covid")
    side.add(catalogue, 901, disc(0, np.random.default_rng(0)), None)
    catalogue.close()
    result = run(side, tmp_path / "out", local={"epochs": 1}, cohort={})
    assert sorted(result["failures"].values()) == [1, 1]
    assert any("not one of normal, bacterial, viral" in reason for reason in result["failures"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cohort": {"modalities": ["CT"]}}, "the cohort has 0 patients where the project needs 1"),
        ({"cohort": {"min_patients": 500}}, "the cohort has 60 patients where the project needs 500"),
        ({"catalogue": "/nowhere/catalogue.db"}, "the catalogue catalogue.db does not exist"),
        ({"cohort": {"modality": ["DX"]}}, "the cohort rule's modality is wrong"),
        ({"device": "cuda:9"}, "device 'cuda:9' is not on this machine"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
    ],
)
def test_bad_jobs_are_told_in_a_sentence(side: Side, tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises((CohortError, SpecError)) as caught:
        run(side, tmp_path / "out", **changes)
    assert str(caught.value).startswith(sentence)
    assert not (tmp_path / "out" / "result.json").exists()


def test_specifications_are_strict(tmp_path: Path, side: Side) -> None:
    for facts, word in (
        (spec(side, tmp_path) | {"exec": "rm"}, "exec"),
        (spec(side, tmp_path, local={"lr": -1}), "local.lr"),
        (spec(side, tmp_path) | {"task": {"classes": ["a", "a"]}}, "task.classes"),
    ):
        with pytest.raises(SpecError, match=word):
            load_spec(write_spec(tmp_path / "s.json", facts))
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(SpecError, match="is not JSON"):
        load_spec(tmp_path / "s.json")


def test_the_process_ends_with_the_errors_exit_code_and_no_traceback(side: Side, tmp_path: Path) -> None:
    process = start(write_spec(tmp_path / "spec.json", spec(side, tmp_path / "out", cohort={"modalities": ["CT"]})))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 9 and "Traceback" not in err and err.startswith("trainer: the cohort has 0 patients")
    assert lines(out)[-1]["event"] == "error" and lines(out)[-1]["exit_code"] == 9


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another uid can reach (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="fedpacs-trainer-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# Root ignores file modes, so as root the child becomes somebody else who owns the de-identified side only. It does a first
# job before that, which imports everything from folders that the other user may not be able to reach.
CHILD = """
import os, pathlib, sys
from trainer.job import main
secret, first, second = sys.argv[1:]
assert main([first]) == 0
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    pathlib.Path(secret).read_text()
except PermissionError:
    print("blocked", file=sys.stderr)
sys.exit(main([second]))
"""


def test_it_works_with_spool_and_vault_unreadable(open_folder: Path) -> None:
    side = build(open_folder / "node", 30)
    identified = [side.root / name for name in ("spool", "quarantine", "vault")]
    for folder in identified:
        folder.mkdir()
        (folder / "secret").write_text("identified")
        folder.chmod(0o700 if os.geteuid() == 0 else 0)
    first = write_spec(open_folder / "first.json", spec(side, open_folder / "first", local={"epochs": 1}))
    other = spec(side, side.root / "federation", local={"epochs": 1}, cache=str(side.root / "cache2"))
    second = write_spec(open_folder / "second.json", other)
    if os.geteuid() == 0:
        for path in [side.root, *side.root.rglob("*")]:
            if not any(path == f or f in path.parents for f in identified):
                os.chown(path, 65534, 65534)
        (side.root / "catalogue.db-shm").unlink(missing_ok=True)
        (side.root / "catalogue.db-wal").unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, str(identified[0] / "secret"), str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENV, timeout=120)
    for folder in identified:
        folder.chmod(0o700)
    assert done.returncode == 0 and "blocked" in done.stderr, done.stderr
    assert lines(done.stdout)[-1]["event"] == "done"
    assert (side.root / "federation" / "model.safetensors").stat().st_uid == (
        65534 if os.geteuid() == 0 else os.geteuid()
    )


def test_the_second_job_takes_its_images_from_the_cache(side: Side, tmp_path: Path) -> None:
    facts = spec(side, tmp_path / "a", cache=str(tmp_path / "cache"), local={"epochs": 1})
    job.run(JobSpec.model_validate(facts))
    empty = tmp_path / "no-dataset"
    empty.mkdir()
    started = time.monotonic()
    result = job.run(JobSpec.model_validate(facts | {"dataset": str(empty), "out": str(tmp_path / "b")}))
    assert result["samples"] == 36 and not result["set_aside"] and time.monotonic() - started < 30
