"""Ensembles: models stay home, only approved reference studies are answered, and the combination is what it says."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from aggregator_client.approvals import invitation_of
from aggregator_client.coordinator import reference, settings
from aggregator_client.coordinator.ensembles import combine, uncertainty
from aggregator_client.coordinator.server import Run
from aggregator_client.coordinator.state import RunState
from aggregator_client.coordinator.strategies import Update, choose
from aggregator_client.errors import MessageError, ProjectError, StateError
from aggregator_client.executor import Executor
from aggregator_client.keys import node_keys
from aggregator_client.ledger import Ledger
from aggregator_client.messages import Message
from aggregator_client.project import ReferenceSettings
from aggregator_client.trainer_process import TrainerProcess
from aggregator_client.transport import LocalHub
from dicom_node.audit import AuditLog
from tests.aggregator_client import federation, hospital
from tests.aggregator_client.test_executor import Desk, refused
from trainer import weights
from trainer.outputs.segmentation import Algorithm, write_segmentation
from trainer.spec import TaskSpec
from trainer.volumes import read_header, read_volume

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))
from side import CLASSES, disc, dx

HIPPOCAMPUS = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "mr-hippocampus-dicom" / "hippocampus_019" / "mr"
)


# -- the combination --------------------------------------------------------------------------------------------------


def test_mean_vote_and_weights_by_hand():
    a, b, c = (np.array([row]) for row in ([0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.1, 0.0, 0.9]))
    assert np.allclose(combine([a, b, c]), [[0.4, 0.7 / 3, 1.1 / 3]])
    assert np.allclose(combine([a, b, c], "vote"), [[2 / 3, 0, 1 / 3]])
    assert np.allclose(combine([a, b, c], scores=[1, 0, 3]), 0.25 * a + 0.75 * c)
    assert np.allclose(combine([a, b, c], "vote", [1, 0, 3]), [[0.25, 0, 0.75]])


def test_uncertainty_is_none_when_sure_and_whole_when_all_classes_are_alike():
    sure, unsure, between = [1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]
    assert np.allclose(uncertainty(np.array([sure, unsure, between])), [0, 1, 0.5])


@pytest.mark.parametrize("bad", [[[0.5, 0.6]], [[np.nan, 1.0]], [[1.5, -0.5]], [0.5, 0.5], [[1.0]]])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(MessageError):
        combine([np.array(bad)])


def test_a_site_of_an_ensemble_may_not_send_its_model():
    strategy = choose("ensemble", {})
    model = {"w": np.ones(2, np.float32)}
    with pytest.raises(MessageError, match="holds a model"):
        strategy.check(Update("a", model, 3), model)
    strategy.begin(model)
    with pytest.raises(MessageError, match="No site"):
        strategy.finish()
    strategy.add(Update("a", {}, 3))
    assert strategy.finish() is model
    with pytest.raises(ProjectError):
        choose("ensemble", {"combine": "guess"})


# -- a hospital -------------------------------------------------------------------------------------------------------


def studies(folder: Path, count: int = 3) -> list[Path]:
    """Reference radiographs, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    made = []
    for n in range(count):
        made.append(folder / f"reference-{n}.dcm")
        dx(disc(n % 3, random), f"2.25.99{n}1", f"2.25.99{n}0").save_as(made[-1], enforce_file_format=True)
    return made


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with closing(TrainerProcess(tmp_path_factory.mktemp("trainer") / "trainer.log")) as made:
            yield made


def test_a_hospital_answers_for_the_approved_reference_studies_and_for_nothing_else(tmp_path, trainer):
    files = studies(tmp_path / "studies")
    data = {hashlib.sha256(f.read_bytes()).hexdigest(): f.read_bytes() for f in files}
    approved = dict(list(data.items())[:2])
    changes = {"algorithm": {"name": "ensemble", "args": {}}, "reference": {"digests": sorted(approved)}}
    with closing(Desk(tmp_path, trainer, **changes)) as desk:
        desk.hospital.approve(desk.project)

        def ask(number, kind, parts):
            request = desk.request(number, kind)
            return desk.read(desk.executor.handle(request if parts is None else remade(desk, number, kind, parts)))

        refused(ask(5, "predict", approved), "no model of its own")
        trained = ask(1, "train", None)
        assert trained.header["kind"] == "update" and not trained.parts  # the model stays at home
        own = desk.config.storage.federation / "kept"
        assert len(list(own.glob("*/*/own.safetensors"))) == 1
        assert ask(4, "evaluate", None).header["kind"] == "metrics"

        refused(ask(5, "predict", data), "none of the reference studies")  # one of the three was not approved
        mine = next(desk.config.storage.dataset.rglob("*.dcm")).read_bytes()
        refused(ask(5, "predict", {hashlib.sha256(mine).hexdigest(): mine}), "none of the reference studies")
        (name,) = list(approved)[:1]
        refused(ask(5, "predict", {name: mine}), "none of the reference studies")  # another file under an approved name
        assert not list(desk.audit.records("reference.answered"))

        said = ask(5, "predict", approved)
        rows = [json.loads(line) for line in said.parts["predictions.jsonl"].splitlines()]
        assert said.header["kind"] == "outputs" and len(rows) == 2
        assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-3 for row in rows)
        (record,) = desk.audit.records("reference.answered")
        assert record.facts["studies"] == 2

        refused(ask(6, "deliver", {"../escape": b"x"}), "a name that is none")
        got = ask(6, "deliver", {"probabilities.jsonl": b"{}\n"})
        assert got.header["received"] == {"probabilities.jsonl": hashlib.sha256(b"{}\n").hexdigest()}
        kept = desk.config.storage.federation / "results" / desk.project.digest[:16] / "probabilities.jsonl"
        assert kept.read_bytes() == b"{}\n" and desk.audit.verify().ok


def remade(desk, number, kind, parts):
    """A request with these parts in place of a model."""
    from aggregator_client import messages
    from aggregator_client.messages import COORDINATOR
    from aggregator_client.sealing import Context

    header = {"v": 1, "kind": kind, "run": "r1", "round": number, "rounds": 3, "deadline_s": 60}
    context = Context(desk.project.digest, number, COORDINATOR, "North", kind)
    signer = desk.coordinator.keys().signing
    return messages.wrap(Message(header, parts), context, recipient_public=desk.keys.sealing_public, signer=signer)


def test_a_project_that_is_no_ensemble_is_asked_about_no_study(tmp_path, trainer):
    with closing(Desk(tmp_path, trainer)) as desk:
        desk.hospital.approve(desk.project)
        refused(desk.read(desk.executor.handle(remade(desk, 5, "predict", {"a": b"b"}))), "none of the 3 rounds")


# -- a whole run ------------------------------------------------------------------------------------------------------


class Member(federation.Site):
    """A hospital with its real executor behind a link of this process."""

    def handle(self, payload):
        return self.executor.handle(payload)


def test_two_hospitals_answer_and_the_ensemble_and_its_student_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    digests = reference.adopt(config.root / "reference", [studies(tmp_path / "studies", 4)[0].parent])
    hospitals = [hospital.hospital(tmp_path / n, n, config, 30, seed) for seed, n in enumerate(("North", "South"))]
    project = hospital.project(
        config,
        rounds=1,
        algorithm={"name": "ensemble", "args": {"combine": "weighted", "distil": 2}},
        reference={"digests": digests},
    )
    hub, members, logs = LocalHub(), [], []
    for one in hospitals:
        one.approve(project)
        hub.register(one.name)
        audit, ledger = AuditLog(one.config.storage.audit), Ledger(one.config.storage.federation)
        keys, trainer = node_keys(one.config.storage.keys), TrainerProcess(tmp_path / f"{one.name}.log")
        member = Member(one.name, keys, config.keys(), hub.link(one.name))
        member.executor = Executor(
            one.config, invitation_of(one.config), keys, audit, ledger, lambda **_: None, trainer
        )
        members.append(member.start())
        logs.append((audit, ledger, trainer))
    state = RunState(tmp_path / "run")
    try:
        run = Run(project, config.members.list(), config.keys(), hub, state, references=config.root / "reference")
        run.go()
        assert state.run().state == "finished"
        cells = {(cell.round, cell.site): cell for cell in state.table()}
        assert {cell.state for cell in cells.values()} == {"accepted"} and {number for number, _ in cells} == {
            1,
            2,
            3,
            4,
        }
        assert all(cells[1, name].bytes_in < 10_000 for name in ("North", "South"))  # no model travelled
        check_combination(state, hospitals, project)
        for one in hospitals:
            results = one.config.storage.federation / "results" / project.digest[:16]
            assert (results / "student.safetensors").read_bytes() == (
                state.folder / "ensemble/student.safetensors"
            ).read_bytes()
        student = weights.load(state.folder / "ensemble" / "student.safetensors")
        assert student.keys() == state.model(0).keys()
        assert weights.to_bytes(student) != weights.to_bytes(state.model(0))
    finally:
        for member in members:
            member.end()
        state.close()
        for pair in logs:
            for log in pair:
                log.close()


def check_combination(state, hospitals, project):
    """What was written is the weighted mean of what the two models at home say."""
    weight = state.site_scores()[2]
    said = []
    for one in hospitals:
        file = next((one.config.storage.federation / "work").rglob("outputs/predictions.jsonl"), None)
        assert file is None  # the work of a step is cleared by the next one
        own = weights.load(next((one.config.storage.federation / "kept").rglob("own.safetensors")))
        said.append(own)
    rows = [json.loads(line) for line in (state.folder / "ensemble/probabilities.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and {row["sha256"] for row in rows} == set(project.document.reference.digests)
    import torch

    from trainer import networks
    from trainer.pixels.prepare import Preparation, prepare_frame
    from trainer.pixels.read import read_frames

    network, size = project.document.network, project.document.task.size
    folder = state.folder.parent / "coordinator" / "reference"
    for row in rows:
        file = folder / f"{row['sha256']}.dcm"
        image = prepare_frame(read_frames(file, "x").values[0], Preparation(size=size))
        total = np.zeros(3)
        for own, one in zip(said, hospitals, strict=True):
            model = networks.build(network.name, network.args)
            weights.into_module(model, own)
            with torch.no_grad():
                total += weight[one.name] * torch.softmax(model.eval()(torch.from_numpy(image)[None]), 1)[0].numpy()
        wanted = total / sum(weight.values())
        assert np.allclose([row["probabilities"][name] for name in CLASSES], wanted, atol=1e-4)


# -- segmentations ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HIPPOCAMPUS.exists(), reason="the shared test data is not beside this checkout")
def test_fractional_segmentations_are_averaged_with_an_uncertainty_map(tmp_path):
    import highdicom as hd

    config = settings.create(tmp_path / "coordinator", name="University", host="127.0.0.1", port=9443)
    files = sorted(HIPPOCAMPUS.glob("*.dcm"))
    digests = reference.adopt(config.root / "reference", files)
    names = ["background", "Hippocampus anterior", "Hippocampus posterior"]
    document = hospital.project(config).document.model_copy(
        update={
            "task": TaskSpec(name="segmentation", classes=names, label="x", size=32),
            "reference": ReferenceSettings(digests=tuple(digests)),
        }
    )
    known = reference.Reference(document, reference.load(config.root / "reference", document))
    volume = read_volume(files)
    random, said, raw = np.random.default_rng(0), {}, []
    for site in ("North", "South"):
        probabilities = random.dirichlet([1, 1, 1], volume.values.shape).astype(np.float32)  # [slices, H, W, classes]
        raw.append(np.moveaxis(probabilities, -1, 1))
        sources = [read_header(file) for file in files]
        algorithm = Algorithm(site, "1", hashlib.sha256(site.encode()).hexdigest())
        path = write_segmentation(
            tmp_path / site, sources, volume.stack, np.moveaxis(probabilities, -1, 0), names, algorithm, "fractional"
        )
        said[site] = known.outputs(site, Message({}, {path.name: path.read_bytes()}))
        (found,) = said[site].values()
        assert np.abs(found - raw[-1]).max() < 2 / 255
    written = known.write(tmp_path / "out", said, "mean", {})
    assert len(written) == 3
    fractional, _, unsure = (hd.seg.segread(path) for path in written)
    uids = [plane.sop_uid for plane in volume.stack.planes]

    def pixels(seg):
        return seg.get_pixels_by_source_instance(uids, rescale_fractional=True, assert_missing_frames_are_empty=True)

    mean = (raw[0] + raw[1]) / 2
    assert np.abs(np.moveaxis(pixels(fractional), -1, 1) - mean[:, 1:]).max() < 3 / 255
    assert np.abs(pixels(unsure)[..., 0] - uncertainty(mean)).max() < 0.05
    with pytest.raises(MessageError, match="cannot be read"):
        known.outputs("North", Message({}, {"x.dcm": b"no DICOM"}))
    with pytest.raises(MessageError, match="0 of 1"):
        known.outputs("North", Message({}, {}))
    (config.root / "reference" / f"{digests[0]}.dcm").write_bytes(b"changed")
    with pytest.raises(StateError, match="missing or was changed"):
        reference.load(config.root / "reference", document)
