"""The mean head that volumes are registered to, from pydeface 2.1.0 (MIT), and where on it the face is.

``python -m anonymizer.faces.template build PYDEFACE_DATA_FOLDER`` makes anonymizer/data/head.npz: on a 2 mm grid along the
patient's axes (LPS) the mean T1 head, pydeface's face mask, and the head's and the brain's extent found by this package.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anonymizer.faces.volume import Grid

DATA = Path(__file__).parents[1] / "data" / "head.npz"
Array = NDArray[Any]


@dataclass(frozen=True)
class Template:
    """``grid``: the mean head; ``head``, ``brain``, ``deep`` (pydeface's face region): bool [z, y, x] on it."""

    grid: Grid
    head: Array
    brain: Array
    deep: Array


@lru_cache(maxsize=1)
def template() -> Template:
    with np.load(DATA) as data:
        values = data["values"].astype(np.float32)
        grid = Grid(values, np.ones(values.shape, dtype=bool), data["origin"])
        masks = [np.unpackbits(data[name], count=values.size).reshape(values.shape).astype(bool) for name in _MASKS]
    return Template(grid, *masks)


_MASKS = ("head", "brain", "deep")


def in_face_zone(x: Array, y: Array, z: Array) -> Array:
    """Whether points of the template (mm, LPS) lie where skin shows who somebody is: face, jaw, throat, temples and ears.

    The eyes lie at y = -80, z = -32, the tip of the nose at y = -110, z = -60, the ears around y = 15, z = -40.
    """
    face = ((y < -20) & (z < -15)) | ((y < -45) & (z < 15))
    ears = (y < 48) & (z < -12) & (z > -95)
    jaw = (y < 15) & (z <= -95)
    return np.asarray(face | ears | jaw) & (np.abs(x) < 200)


def build(folder: Path) -> None:
    """Write the data file from the two volumes that pydeface's wheel ships."""
    import SimpleITK as sitk

    from anonymizer.faces.tissue import SCALP, brain_of_mr, head_of, shrunk

    size, origin = (96, 128, 125), (-95.0, -127.0, -124.0)
    reference = sitk.Image(size, sitk.sitkFloat32)
    reference.SetSpacing((2.0, 2.0, 2.0))
    reference.SetOrigin(origin)
    mean = sitk.Cast(sitk.ReadImage(str(folder / "mean_reg2mean.nii.gz")), sitk.sitkFloat32)
    keep = sitk.Cast(sitk.ReadImage(str(folder / "facemask.nii.gz")), sitk.sitkFloat32)
    values = sitk.GetArrayFromImage(sitk.Resample(sitk.SmoothingRecursiveGaussian(mean, 0.8), reference))
    values = np.clip(values * (255 / 480), 0, 255).astype(np.uint8)
    deep = sitk.GetArrayFromImage(sitk.Resample(keep, reference, sitk.Transform(), sitk.sitkLinear, 1.0)) < 0.5
    grid = Grid(values.astype(np.float32), np.ones(values.shape, dtype=bool), np.array(origin))
    head = head_of(grid, ct=False)
    x, y, z = grid.points()
    base = np.where(y < -45, -20, np.where(y < -12, -48, -70))  # the floor of the front, middle and back of the skull
    near = ((x / 67) ** 2 + ((y - 3) / 87) ** 2 + ((z - 3) / 72) ** 2 < 1) & (z > base)
    near &= ~((np.abs(x) > 57) & (z < -15))  # the temporal muscles
    brain = brain_of_mr(grid, head, near, near & shrunk(head, SCALP, grid.spacing))
    packed: dict[str, Any] = {name: np.packbits(mask) for name, mask in zip(_MASKS, (head, brain, deep), strict=True)}
    np.savez_compressed(DATA, values=values, origin=np.array(origin), **packed)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "build":
        raise SystemExit("usage: python -m anonymizer.faces.template build PYDEFACE_DATA_FOLDER")
    build(Path(sys.argv[2]))
