"""Example predictions for the data manager: the model as trained here last, on held-out studies, drawn over their images.

The prediction itself is the installed command `fedpacs model predict`, started as a process of its own, because nothing of this
room may import the trainer. Only de-identified files are read, and everything stays in federation/examples.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from pydantic import ValidationError
from pydicom import dcmread

from dicom_node.comparison import grey_levels
from dicom_node.config import NodeConfig
from dicom_node.errors import InputError, NodeError, RefusedError
from dicom_node.projects import Projects
from dicom_node.records import Catalogue, CohortEntry, CohortRule

MOST = 4
_COMMAND = (sys.executable, "-c", "from dicom_node.cli import main; main()", "model", "predict")
_SECONDS = 600.0
_DONE = (0, 10)  # 10: some series set aside
_WIDTH = 320
# Okabe and Ito's colours, told apart by colour-blind people too
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


def folder(config: NodeConfig, digest: str) -> Path:
    """Where a project's examples lie: N.png and examples.json."""
    return config.storage.federation / "examples" / digest[:16]


def model_folder(config: NodeConfig, digest: str) -> Path:
    """The model as trained here last (aggregator_client.training_log)."""
    return config.storage.federation / "models" / digest[:16]


def known(config: NodeConfig, digest: str) -> list[dict[str, Any]]:
    """The examples drawn last: {"study", "said", "truth"}; picture N belongs to the Nth."""
    try:
        return list(json.loads((folder(config, digest) / "examples.json").read_text()))
    except (OSError, ValueError):
        return []


def require_model(config: NodeConfig, digest: str) -> None:
    """Raises RefusedError before the first round was trained here, InputError for an unknown project."""
    with closing(Projects(config.storage.catalogue, readonly=True)) as projects:
        if projects.get(digest) is None:
            raise InputError("No project with this digest is known here: see the page of projects.")
    if not model_folder(config, digest).exists():
        raise RefusedError("No model of this project was trained here yet: wait for its first round.")


def draw(config: NodeConfig, digest: str) -> int:
    """Predict and draw up to MOST held-out studies; -> how many. Blocks for as long as the model takes. Raises NodeError."""
    require_model(config, digest)
    chosen = held_out(config, digest)
    home = folder(config, digest)
    part = home.with_name(f"{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    told: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=part) as work:
        for entry in chosen:
            out = Path(work) / str(len(told))
            image, said = _predicted(config, model_folder(config, digest), entry, out)
            image.save(part / f"{len(told)}.png", "PNG", optimize=True)
            told.append({"study": entry.study.study_uid, "said": said, "truth": entry.label or ""})
    (part / "examples.json").write_text(json.dumps(told))
    shutil.rmtree(home, ignore_errors=True)
    part.rename(home)
    return len(told)


def held_out(config: NodeConfig, digest: str) -> list[CohortEntry]:
    """Studies of the project's cohort whose patients it does not train on, one a patient. Raises RefusedError without any."""
    with closing(Projects(config.storage.catalogue, readonly=True)) as projects:
        record = projects.get(digest)
    try:
        document = json.loads(record.document if record else b"")["project"]
        task, split = document.get("task", {}), document.get("split", {})
        wanted = CohortRule.model_validate({**document.get("cohort", {}), "min_patients": 1, **_label(task)})
    except (ValueError, KeyError, TypeError, ValidationError):
        raise InputError("The project's document cannot be read: offer its file again.") from None
    with closing(Catalogue(config.storage.catalogue, config.storage.dataset, readonly=True)) as catalogue:
        parts = catalogue.cohort(wanted).split(str(split.get("salt", "")))
    by_patient = {entry.study.patient: entry for entry in (*parts["test"], *parts["validation"])}
    if not by_patient:
        raise RefusedError("No held-out study fits this project here: there is nothing to show an example on.")
    return list(by_patient.values())[:MOST]


def _label(task: Mapping[str, Any]) -> dict[str, Any]:
    """What the task asks of a study's label; a segmentation's classes are the masks' and no label of the study."""
    if task.get("name") == "segmentation":
        return {"label": "", "classes": ()}
    return {"label": task.get("label", ""), "classes": () if task.get("multilabel") else task.get("classes", ())}


def _predicted(config: NodeConfig, model: Path, entry: CohortEntry, out: Path) -> tuple[Image.Image, str]:
    """The picture with the prediction over it, and what the model said in words."""
    files = {one.sop_uid: config.storage.dataset / one.path for one in entry.instances}
    argv = [*_COMMAND, *map(str, files.values()), "--out", str(out), "--model", str(model), "--json"]
    argv += ["--device", "cpu"]  # the card belongs to training
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NodeError(f"An example took longer than {_SECONDS:.0f} s to predict; try again later.") from None
    if done.returncode not in _DONE:
        said = [line.removeprefix("fedpacs: ") for line in done.stderr.splitlines() if line.startswith("fedpacs: ")]
        raise NodeError(f"An example could not be predicted: {said[-1] if said else 'the model command failed'}")
    outputs = json.loads(done.stdout)["outputs"]
    masks = [out / str(one["output"]) for one in outputs if "output" in one]
    if masks:
        return _over(files, masks[0]), _volumes(outputs[0])
    shares: dict[str, float] = outputs[0]["probabilities"]
    shown = files.get(str(outputs[0].get("sop_instance_uid", "")), next(iter(files.values())))
    best = sorted(shares.items(), key=lambda item: -item[1])[:3]
    return _scaled(_grey(dcmread(shown))), ", ".join(f"{name} {share:.0%}" for name, share in best)


def _volumes(output: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {ml:g} ml" for name, ml in dict(output.get("ml", {})).items()) or "nothing found"


def _over(files: Mapping[str, Path], segmentation: Path) -> Image.Image:
    """The instance with the largest mask, its outline and a tint in the segment's colour over it."""
    import highdicom as hd

    seg = hd.seg.segread(segmentation)
    shown = [str(uid) for _, _, uid in seg.get_source_image_uids() if str(uid) in files]
    masks = seg.get_pixels_by_source_instance(
        shown, combine_segments=True, skip_overlap_checks=True, assert_missing_frames_are_empty=True
    )
    best = int(np.argmax([(mask > 0).sum() for mask in masks]))
    return overlay(_grey(dcmread(files[shown[best]])), masks[best])


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """`image` in colour with every class of `mask` ([rows, columns], 0 = background) tinted and outlined."""
    picture = _scaled(image).convert("RGB")
    for number in sorted(set(np.unique(mask).tolist()) - {0}):
        area = Image.fromarray(((mask == number) * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
        colour = Image.new("RGB", picture.size, _COLOURS[(int(number) - 1) % len(_COLOURS)])
        edge = np.asarray(area.filter(ImageFilter.MaxFilter(5))) > np.asarray(area.filter(ImageFilter.MinFilter(3)))
        picture = Image.composite(Image.blend(picture, colour, 0.3), picture, area)
        picture.paste(colour, mask=Image.fromarray((edge * 255).astype(np.uint8)))
    return picture


def _grey(data: Any) -> Image.Image:
    return Image.fromarray(grey_levels(data)).convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    if image.width >= _WIDTH:
        return image
    size = (_WIDTH, max(1, image.height * _WIDTH // image.width))
    return image.resize(size, Image.Resampling.BILINEAR)
