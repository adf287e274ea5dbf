"""Finds and reads text in a picture, offline, with the PP-OCRv4 models that the `rapidocr-onnxruntime` wheel ships.

Only the models are taken from the wheel; they run in onnxruntime directly, so that no OpenCV (and no libGL) is loaded.

Detector: DBNet (Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", AAAI 2020): a probability
map per pixel, thresholded, each component grown back by the Vatti offset ``area * ratio / perimeter``.
Reader: SVTR with CTC (Du et al., IJCAI 2022), greedy decoding.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anonymizer.errors import PixelError

Gray = NDArray[np.uint8]

PROBABILITY = 0.3  # a pixel belongs to text above this
COMPONENT = 0.5  # mean probability a component needs to count as text
UNCLIP = 2.0  # the detector learned shrunken boxes; grow them back, further than its authors' 1.6: covering is the aim
SMALLEST_SIDE = 3  # detector pixels; smaller components are noise
DETECTOR_LIMIT = 2048  # longest side given to the detector, in pixels
READER_HEIGHT = 48


@dataclass(frozen=True)
class TextRegion:
    """One run of text.

    ``rows`` and ``columns`` bound it in the picture's pixels; ``mask`` (bool, that shape) says which pixels are covered;
    ``text`` is what was read (never to be logged: it may be a name) and ``confidence`` how surely, 0..1;
    ``elongation`` is the ratio of its principal axes: a line of text is long and thin, a rib end or a clip is not.
    """

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]
    score: float
    elongation: float
    text: str = ""
    confidence: float = 0.0

    @property
    def thickness(self) -> float:
        """How thick the run is across its direction, in pixels of the picture."""
        if self.mask.all():
            return float(min(self.mask.shape))
        return float(self.mask.sum() / np.hypot(*self.mask.shape))


@cache
def _session(name: str) -> Any:
    """The onnxruntime session of one shipped model; one thread, since the workers are many."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise PixelError("The text detector is not installed: run `pip install rapidocr-onnxruntime`.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("FEDPACS_OCR_THREADS", "1"))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def find_text(picture: Gray, scale: int = 2, read: bool = True) -> list[TextRegion]:
    """Every run of text in ``picture`` (uint8 [rows, columns] or [rows, columns, 3]).

    ``scale`` enlarges the picture before detection: burned-in text is often ten pixels high, and at 2x every region of
    our test pictures was found. With ``read`` false the regions come back unread (text "").
    """
    gray = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    probability, factor = _probability(gray, scale)
    regions = []
    labels, count = ndimage.label(probability > PROBABILITY, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    for index in range(count):
        region = _region(labels, probability, boxes[index], index + 1, factor, gray.shape[:2])
        if region is not None:
            regions.append(region)
    return [read_region(gray, region) for region in regions] if read else regions


def _probability(gray: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Detector output [h, w] and the factors (vertical, horizontal) from picture to detector pixels."""
    rows, columns = gray.shape[:2]
    fit = min(float(scale), DETECTOR_LIMIT / max(rows, columns))
    height = max(32, int(np.ceil(rows * fit / 32)) * 32)
    width = max(32, int(np.ceil(columns * fit / 32)) * 32)
    image = Image.fromarray(gray).resize((width, height), Image.Resampling.BICUBIC)
    tensor = (np.asarray(image, dtype=np.float32) / 255.0 - 0.5) / 0.5
    output = _session("ch_PP-OCRv4_det_infer.onnx").run(None, {"x": tensor.transpose(2, 0, 1)[None]})[0][0, 0]
    return np.asarray(output, dtype=np.float32), (height / rows, width / columns)


def _region(
    labels: NDArray[np.int32],
    probability: NDArray[np.float32],
    box: tuple[slice, slice],
    label: int,
    factor: tuple[float, float],
    shape: tuple[int, int],
) -> TextRegion | None:
    component = labels[box] == label
    height, width = component.shape
    if min(height, width) < SMALLEST_SIDE:
        return None
    score = float(probability[box][component].mean())
    if score < COMPONENT:
        return None
    grow = component.sum() * UNCLIP / (2.0 * (height + width)) + 1.0
    rows = _scaled(box[0], grow, factor[0], shape[0])
    columns = _scaled(box[1], grow, factor[1], shape[1])
    mask = np.ones((rows.stop - rows.start, columns.stop - columns.start), dtype=bool)
    if component.mean() < 0.5:  # slanted text: cover the component, not its whole bounding box
        mask = _slanted_mask(labels, label, grow, rows, columns, factor)
    return TextRegion(rows, columns, mask, score, _elongation(component))


def _elongation(component: NDArray[np.bool_]) -> float:
    """Square root of the ratio of the component's principal second moments, >= 1."""
    points = np.argwhere(component).astype(np.float64)
    small, large = np.linalg.eigvalsh(np.cov(points.T) + np.eye(2) / 12.0)
    return float(np.sqrt(large / small))


def _scaled(side: slice, grow: float, factor: float, limit: int) -> slice:
    return slice(max(0, int((side.start - grow) / factor)), min(limit, int(np.ceil((side.stop + grow) / factor))))


def _slanted_mask(
    labels: NDArray[np.int32], label: int, grow: float, rows: slice, columns: slice, factor: tuple[float, float]
) -> NDArray[np.bool_]:
    y = np.clip((np.arange(rows.start, rows.stop) + 0.5) * factor[0], 0, labels.shape[0] - 1).astype(int)
    x = np.clip((np.arange(columns.start, columns.stop) + 0.5) * factor[1], 0, labels.shape[1] - 1).astype(int)
    covered = labels[np.ix_(y, x)] == label
    distance = ndimage.distance_transform_edt(~covered)
    return np.asarray(distance <= grow / min(factor) + 1.0)


def read_region(picture: Gray, region: TextRegion) -> TextRegion:
    """The region with its text; upright runs are tried turned both ways, slanted ones are laid level first."""
    gray = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    crop = gray[region.rows, region.columns]
    if not region.mask.all():
        crop = _levelled(crop, region.mask)
    turns = (0,) if crop.shape[1] * 1.2 >= crop.shape[0] else (1, 3)
    best = max((_recognise(np.rot90(crop, turn)) for turn in turns), key=lambda pair: pair[1])
    if best[1] < 0.6:  # upside down?
        best = max(best, _recognise(np.rot90(crop, turns[0] + 2)), key=lambda pair: pair[1])
    return replace(region, text=best[0], confidence=best[1])


def _levelled(crop: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The part under a slanted mask, turned so that its long axis lies level."""
    points = np.argwhere(mask).astype(np.float64)
    _, axes = np.linalg.eigh(np.cov(points.T) + np.eye(2) / 12.0)
    down, right = axes[:, 1] if axes[1, 1] >= 0 else -axes[:, 1]
    degrees = float(np.degrees(np.arctan2(down, right)))
    around = tuple(int(v) for v in np.median(crop.reshape(-1, 3), axis=0))
    turned = Image.fromarray(np.ascontiguousarray(crop)).rotate(
        degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=around
    )
    covered = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).rotate(degrees, expand=True)) > 127
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not rows.size or not columns.size:
        return crop
    return np.asarray(turned)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _recognise(crop: NDArray[np.uint8]) -> tuple[str, float]:
    rows, columns = crop.shape[:2]
    width = int(np.clip(np.ceil(READER_HEIGHT * columns / max(rows, 1)), 16, 3200))
    image = Image.fromarray(np.ascontiguousarray(crop)).resize((width, READER_HEIGHT), Image.Resampling.BICUBIC)
    tensor = (np.asarray(image, dtype=np.float32) / 255.0 - 0.5) / 0.5
    session = _session("ch_PP-OCRv4_rec_infer.onnx")
    output = session.run(None, {"x": tensor.transpose(2, 0, 1)[None]})[0][0]
    best = output.argmax(axis=1)
    keep = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
    alphabet = _alphabet()
    text = "".join(alphabet[i] for i in best[keep])
    confidence = float(output.max(axis=1)[keep].mean()) if keep.any() else 0.0
    return text.strip(), confidence


@cache
def _alphabet() -> tuple[str, ...]:
    characters = _session("ch_PP-OCRv4_rec_infer.onnx").get_modelmeta().custom_metadata_map["character"].splitlines()
    return ("", *characters, " ")
