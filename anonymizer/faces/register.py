"""Lays the mean head onto a volume (affine, mutual information) and says how far the result is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anonymizer.faces.template import template
from anonymizer.faces.tissue import AIR, BONE
from anonymizer.faces.volume import Grid

Array = NDArray[Any]
_SEED = 7
_ANCHOR = np.array([0.0, 0.0, 5.0])  # the middle of the template's brain, mm


@dataclass(frozen=True)
class Match:
    """``matrix`` (3 x 3) and ``offset`` take a patient point (mm, LPS) to the template; ``overlap`` is the Dice of the heads."""

    matrix: Array
    offset: Array
    overlap: float
    similarity: float

    @property
    def stretch(self) -> Array:
        """The three scale factors of the affine map."""
        return np.asarray(np.linalg.svd(self.matrix, compute_uv=False))

    def to_template(self, grid: Grid) -> tuple[Array, Array, Array]:
        """Template coordinates (x, y, z) of every voxel of a grid."""
        x, y, z = grid.points()
        points = [
            self.matrix[a, 0] * x + self.matrix[a, 1] * y + self.matrix[a, 2] * z + self.offset[a] for a in range(3)
        ]
        return points[0], points[1], points[2]

    def warped(self, mask: Array, grid: Grid, beyond: bool = False) -> Array:
        """A mask of the template as it lies on a grid; ``beyond``: the template's border values go on outside it."""
        source = template().grid
        inverse_spacing = 1 / source.spacing
        # index (z, y, x) on the grid -> index on the template
        matrix = (self.matrix * grid.spacing * inverse_spacing)[::-1, ::-1]
        offset = ((self.matrix @ grid.origin + self.offset - source.origin) * inverse_spacing)[::-1]
        out = ndimage.affine_transform(
            mask.astype(np.uint8),
            matrix,
            offset,
            output_shape=grid.values.shape,
            order=0,
            mode="nearest" if beyond else "constant",
        )
        return np.asarray(out, dtype=bool)


def register(grid: Grid, head: Array, ct: bool) -> Match:
    """The best of several starts (where the head may lie, how far it is bent), each refined; deterministic."""
    import SimpleITK as sitk

    fixed, mask = _images(grid, head, ct, 4.0)
    moving = sitk.SmoothingRecursiveGaussian(_image(template().grid.values, template().grid), 2.0)
    tried: list[tuple[float, int, Any]] = []

    def attempt(centre: Array, bend: float) -> None:
        transform = sitk.Euler3DTransform()
        transform.SetCenter([float(v) for v in centre])
        transform.SetTranslation([float(v) for v in _ANCHOR - centre])
        transform.SetRotation(bend, 0.0, 0.0)
        rigid, value = _run(fixed, mask, moving, transform, {2: 0.5}, 40, 4.0)
        tried.append((value, len(tried), rigid))

    starts = _starts(grid, head)
    for centre in starts:
        attempt(centre, 0.0)
    centre = starts[min(tried)[1]]
    for bend in (-0.3, 0.3):
        attempt(centre, bend)
    best = min(tried)[2]
    affine = sitk.AffineTransform(3)
    affine.SetCenter(best.GetCenter())
    affine.SetMatrix(best.GetMatrix())
    affine.SetTranslation(best.GetTranslation())
    affine, value = _run(fixed, mask, moving, affine, {2: 0.5, 1: 0.2}, 60, 1.0)
    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    centre = np.array(affine.GetCenter())
    offset = centre + np.array(affine.GetTranslation()) - matrix @ centre
    match = Match(matrix, offset, 0.0, -value)
    return Match(matrix, offset, _overlap(match, grid, head), -value)


def _run(
    fixed: Any, mask: Any, moving: Any, transform: Any, levels: dict[int, float], steps: int, stride: float
) -> tuple[Any, float]:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel(list(levels.values()), _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    # no step may move a point by more than ``stride`` mm: a longer one leaves the head's basin
    method.SetOptimizerAsGradientDescent(1.0, steps, 1e-5, 8, method.EachIteration, stride)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(levels))
    method.SetSmoothingSigmasPerLevel([2.0 * s - 2.0 for s in levels])
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # too few points overlap: as bad as can be
        return transform, 0.0
    return transform, float(method.GetMetricValue())


def _starts(grid: Grid, head: Array) -> list[Array]:
    """Where the middle of the brain may lie (mm): below the top of the head, in the middle of the scan, or higher."""
    z, y, x = np.nonzero(head)
    highest = grid.origin[2] + grid.spacing * np.percentile(z, 99.9)
    upper = grid.origin[2] + grid.spacing * z > highest - 130
    middle = grid.origin[:2] + grid.spacing * np.array([x[upper].mean(), y[upper].mean()])
    heights = [highest - 75, highest - 40]
    mean = grid.origin[2] + grid.spacing * float(z.mean())
    if abs(heights[0] - mean) > 15:
        heights.append(mean)
    return [np.array([*middle, height]) for height in heights]


def _images(grid: Grid, head: Array, ct: bool, spacing: float) -> tuple[Any, Any]:
    """The volume in T1-like order of gray values, and where it counts: within 12 mm of the head, as far as it was scanned."""
    import SimpleITK as sitk

    values = grid.values
    if ct:
        values = np.clip((values - AIR) / 4, 0, 120)
        values = np.where(grid.values > BONE, 15.0, values)
    else:
        top = np.percentile(values[grid.valid], 99.5)
        values = np.clip(values, None, top)
    near = ndimage.binary_dilation(head, iterations=6) & grid.valid
    step = round(spacing / grid.spacing)
    smooth = ndimage.gaussian_filter(values.astype(np.float32), step / 2)
    thin = Grid(smooth[::step, ::step, ::step], grid.valid[::step, ::step, ::step], grid.origin, spacing)
    return _image(thin.values, thin), sitk.Cast(
        _image(near[::step, ::step, ::step].astype(np.uint8), thin), sitk.sitkUInt8
    )


def _image(values: Array, grid: Grid) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.SetSpacing([grid.spacing] * 3)
    image.SetOrigin([float(v) for v in grid.origin])
    return image


def _overlap(match: Match, grid: Grid, head: Array) -> float:
    """Dice of the volume's head and the template's, where both were scanned and above the template's lower edge."""
    mean = template()
    seen = match.warped(np.ones_like(mean.head), grid) & grid.valid
    theirs = match.warped(mean.head, grid) & seen
    ours = head & seen
    total = int(theirs.sum()) + int(ours.sum())
    return 2 * int((theirs & ours).sum()) / total if total else 0.0
