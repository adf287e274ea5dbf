"""The reference studies of an ensemble: what the coordinator sends, what sites say about them, and what becomes of that.

COORDINATOR/reference/<sha256>.dcm           the studies, named by digest; the signed project lists the digests
runs/<digest>/ensemble/probabilities.jsonl   classification: one line an instance, with the ensemble's uncertainty
runs/<digest>/ensemble/*.dcm                 segmentation: per series a fractional SEG, a binary one to look at, and the
                                             uncertainty map as a fractional SEG
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aggregator_client.coordinator.distilling import train_student
from aggregator_client.coordinator.ensembles import check_probabilities, combine, uncertainty
from aggregator_client.coordinator.strategies.ensemble import Ensemble
from aggregator_client.errors import MessageError, ProjectError, StateError
from aggregator_client.messages import Message
from aggregator_client.project import ProjectDocument
from trainer import weights
from trainer.modelcard import ModelCard
from trainer.outputs.segmentation import Algorithm, write_segmentation
from trainer.pixels.prepare import Preparation, prepare_frame
from trainer.pixels.read import read_frames
from trainer.predict import find_series
from trainer.volumes import read_header, read_volume

Outputs = dict[str, np.ndarray]
"""By SOP Instance UID [1, classes], or by Series Instance UID [slices, classes, H, W]: class probabilities."""


def adopt(folder: Path, sources: Sequence[Path]) -> list[str]:
    """Copy DICOM files into the coordinator's reference folder; returns their digests. ProjectError when there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = []
    for source in sources:
        for file in sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]:
            data = file.read_bytes()
            if data[128:132] != b"DICM":
                raise ProjectError(f"{file} is not a DICOM file: name de-identified reference studies only.")
            digest = hashlib.sha256(data).hexdigest()
            (folder / f"{digest}.dcm").write_bytes(data)
            digests.append(digest)
    if not digests:
        raise ProjectError("No reference study was named: an ensemble needs some to answer for.")
    return sorted(set(digests))


def load(folder: Path, document: ProjectDocument) -> dict[str, Path]:
    """The files of the project's reference studies by digest. Raises StateError naming one that is missing or changed."""
    files = {digest: folder / f"{digest}.dcm" for digest in document.reference.digests}
    for digest, file in files.items():
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise StateError(f"The reference study {file} is missing or was changed: put it back, then resume.")
    return files


class Reference:
    """The reference studies, read once, with what is needed to understand a site's answer about them."""

    def __init__(self, document: ProjectDocument, files: Mapping[str, Path]) -> None:
        self.document, self.classes = document, document.task.classes
        self.series, unread = find_series(sorted(files.values()))
        if unread or not self.series:
            raise StateError("A reference study cannot be read as DICOM images: sign the project again with others.")
        self.digests = {str(read_header(path).SOPInstanceUID): digest for digest, path in files.items()}

    def outputs(self, site: str, message: Message) -> Outputs:
        """A site's answer, whole and about these studies only. Raises MessageError otherwise."""
        try:
            found = self._masks(message) if self.document.task.name == "segmentation" else self._scores(message)
        except MessageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a foreign file makes the DICOM reader raise is that site's answer
            raise MessageError(
                f"The outputs of {site} cannot be read ({type(error).__name__}): they are not used."
            ) from None
        wanted = set(self.series) if self.document.task.name == "segmentation" else set(self.digests)
        if found.keys() != wanted:
            raise MessageError(
                f"The outputs of {site} are for {len(found)} of {len(wanted)} reference studies: not used."
            )
        for output in found.values():
            check_probabilities(output)
        return found

    def _scores(self, message: Message) -> Outputs:
        rows = [json.loads(line) for line in message.parts["predictions.jsonl"].splitlines()]
        return {
            str(row["sop_instance_uid"]): np.array([[float(row["probabilities"][name]) for name in self.classes]])
            for row in rows
        }

    def _masks(self, message: Message) -> Outputs:
        import highdicom as hd

        found: Outputs = {}
        for data in message.parts.values():
            seg = hd.seg.segread(io.BytesIO(data))
            uids = {uid for _, _, uid in seg.get_source_image_uids()}
            series = next(uid for uid, files in self.series.items() if uids <= {_uid(file) for file in files})
            planes = read_volume(self.series[series]).stack.planes
            values = seg.get_pixels_by_source_instance(
                [plane.sop_uid for plane in planes], rescale_fractional=True, assert_missing_frames_are_empty=True
            )
            labels = [seg.get_segment_description(n).segment_label for n in seg.segment_numbers]
            if labels != self.classes[1:]:
                raise MessageError("A segmentation holds other segments than the project's classes: it is not used.")
            front = np.moveaxis(np.asarray(values, np.float64), -1, 1)  # [slices, classes - 1, H, W]
            rest = np.clip(1 - front.sum(1, keepdims=True), 0, 1)
            whole = np.concatenate([rest, front], 1)
            found[series] = whole / whole.sum(1, keepdims=True)
        return found

    def write(self, folder: Path, said: Mapping[str, Outputs], how: str, scores: Mapping[str, float]) -> list[Path]:
        """Combine the sites' outputs and write the ensemble's into `folder`; returns the files that go back to the sites."""
        folder.mkdir(parents=True, exist_ok=True)
        sites, merged = sorted(said), self.merge(said, how, scores)
        if self.document.task.name != "segmentation":
            return [self._write_scores(folder, merged, len(sites))]
        return [file for series, one in merged.items() for file in self._write_masks(folder, series, one)]

    def merge(self, said: Mapping[str, Outputs], how: str, scores: Mapping[str, float]) -> Outputs:
        """The combined probabilities of every study; "weighted" by the sites' validation metrics."""
        sites = sorted(said)
        weighted = [scores.get(site, 0.0) for site in sites] if how == "weighted" else None
        keys = sorted(next(iter(said.values())))
        return {k: combine([said[s][k] for s in sites], "vote" if how == "vote" else "mean", weighted) for k in keys}

    def distil(
        self, folder: Path, said: Mapping[str, Outputs], strategy: Ensemble, scores: Mapping[str, float]
    ) -> None:
        """Train a student on the combined outputs and write it as student.safetensors with its card, student.json."""
        document, merged = self.document, self.merge(said, strategy.combine, scores)
        files = {_uid(file): file for found in self.series.values() for file in found}
        images = []
        for uid in merged:
            frames = read_frames(files[uid], uid).values
            images.append(prepare_frame(frames[len(frames) // 2], Preparation.of(document.task)))
        targets = np.concatenate([merged[uid] for uid in merged])
        student = train_student(
            document.network, np.stack(images), targets, document.local, strategy.distil, document.seed
        )
        digest = weights.save(folder / "student.safetensors", student)
        card = ModelCard(
            name=f"{document.name} student"[:60], network=document.network, task=document.task, sha256=digest
        )
        (folder / "student.json").write_text(card.model_dump_json(indent=1), encoding="utf-8")

    def _write_scores(self, folder: Path, merged: Outputs, sites: int) -> Path:
        file = folder / "probabilities.jsonl"
        lines = []
        for uid, one in merged.items():
            named = {name: round(float(p), 6) for name, p in zip(self.classes, one[0], strict=True)}
            facts = {"sop_instance_uid": uid, "sha256": self.digests[uid], "probabilities": named, "sites": sites}
            lines.append(json.dumps({**facts, "uncertainty": round(float(uncertainty(one)[0]), 6)}) + "\n")
        file.write_text("".join(lines), encoding="utf-8")
        return file

    def _write_masks(self, folder: Path, series: str, merged: np.ndarray) -> list[Path]:
        """[slices, classes, H, W] → fractional and binary SEG and the uncertainty map."""
        files, name = self.series[series], f"{self.document.name} ensemble"[:60]
        volume = read_volume(files)
        used = {plane.sop_uid for plane in volume.stack.planes}
        probabilities = np.moveaxis(merged, 1, 0).astype(np.float32)
        unsure = uncertainty(merged).astype(np.float32)
        written = []
        for kind, what, values, classes in (
            ("fractional", "mask", probabilities, self.classes),
            ("binary", "mask", probabilities, self.classes),
            ("fractional", "uncertainty", np.stack([1 - unsure, unsure]), ["sure", "uncertainty"]),
        ):
            made = hashlib.sha256(f"{what}/".encode() + merged.tobytes()).hexdigest()
            sources = [ds for ds in map(read_header, files) if str(ds.SOPInstanceUID) in used]
            algorithm = Algorithm(name, self.document.version[:16], made)
            written.append(write_segmentation(folder, sources, volume.stack, values, classes, algorithm, kind))
        return written


def _uid(file: Path) -> str:
    return str(read_header(file).SOPInstanceUID)
