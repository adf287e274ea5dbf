"""Slice order, gaps, duplicates, tilt and orientation, on made-up planes and on real vendor series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import PixelError
from trainer.geometry import Plane, from_canonical, stack, to_canonical
from trainer.volumes import planes_of, read_header, read_volume

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def plane(z: float, uid: str = "", **changes: object) -> Plane:
    facts: dict[str, object] = {
        "sop_uid": uid or f"2.25.{int(z * 10)}", "frame": 1, "position": (0.0, 0.0, z), "orientation": AXIAL,
        "spacing": (1.0, 1.0), "shape": (4, 4), "number": 1,
    }  # fmt: skip
    return Plane(**(facts | changes))


def test_slices_are_sorted_by_place_not_by_name_or_number() -> None:
    places = [9.0, 0.0, 6.0, 3.0]
    got = stack([plane(z, number=n) for n, z in enumerate(places)])
    assert [p.position[2] for p in got.planes] == [0, 3, 6, 9] and got.step == 3 and got.issues == []
    assert np.allclose(got.affine @ [2, 0, 0, 1], [0, 0, 6, 1])


def test_missing_and_repeated_slices_are_reported() -> None:
    got = stack([plane(z) for z in (0, 2, 4, 8, 10)])
    assert got.issues == ["1 slices are missing"]
    got = stack([plane(0, "2.25.1", number=2), plane(0, "2.25.2", number=1), plane(1, "2.25.3"), plane(2, "2.25.4")])
    assert [p.sop_uid for p in got.planes] == ["2.25.2", "2.25.3", "2.25.4"] and "time series" in got.issues[0]
    got = stack([plane(z) for z in (0, 2, 4.4, 6)])
    assert "varies from 1.60 to 2.40 mm" in got.issues[0]


def test_gantry_tilt_is_reported_and_kept_in_the_affine() -> None:
    got = stack([plane(z, position=(0.0, 0.2 * z, z)) for z in (0.0, 1.0, 2.0)])
    assert "sheared by 11.3 degrees" in got.issues[0]
    assert np.allclose(got.affine @ [2, 0, 0, 1], [0, 0.4, 2, 1])


@pytest.mark.parametrize("changes", [{"shape": (5, 4)}, {"spacing": (1.0, 2.0)}, {"orientation": (0, 1, 0, 0, 0, -1)}])
def test_planes_of_different_kinds_are_not_stacked(changes: dict[str, object]) -> None:
    with pytest.raises(PixelError, match="split the series"):
        stack([plane(0), plane(1), plane(2, **changes)])


@settings(max_examples=60, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3), st.integers(0, 99))
def test_canonical_orientation_keeps_every_voxel_in_its_place_and_is_undone(order, signs, seed) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.array(signs) * random.uniform(0.5, 3, 3)
    affine[:3, :3] = affine[:3, :3] + random.uniform(-0.05, 0.05, (3, 3))
    affine[:3, 3] = random.uniform(-9, 9, 3)
    volume = random.normal(size=(3, 4, 5))
    moved, new = to_canonical(volume, affine)
    for index in np.ndindex(*moved.shape):
        place = new @ [*index, 1]
        back = np.round(np.linalg.solve(affine, place)[:3]).astype(int)
        assert volume[tuple(back)] == moved[index]
    assert np.array_equal(from_canonical(moved, affine), volume)
    dominant = [int(np.abs(new[:3, axis]).argmax()) for axis in range(3)]
    assert all(new[component, axis] > 0 for axis, component in enumerate(dominant))
    assert dominant[1] > dominant[2] and moved.shape[0] == 3


@pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")
@pytest.mark.parametrize(
    ("name", "places", "files", "step"), [("ge_epi_0005", 15, 40, 5.0), ("philips_fmri_201", 9, 27, 8.0)]
)
def test_real_time_series_give_their_first_volume(name: str, places: int, files: int, step: float) -> None:
    paths = sorted((DATA / "mr-vendor-series" / name).glob("*.dcm"))
    volume = read_volume(list(reversed(paths)))
    assert len(paths) == files and volume.values.shape == (places, 64, 64)
    assert any("time series" in issue for issue in volume.stack.issues)
    numbers = {p: read_header(p) for p in paths}
    by_uid = {str(ds.SOPInstanceUID): ds for ds in numbers.values()}
    for p in volume.stack.planes:
        rivals = [
            d for d in by_uid.values() if np.allclose(d.ImagePositionPatient, by_uid[p.sop_uid].ImagePositionPatient)
        ]
        assert int(by_uid[p.sop_uid].InstanceNumber) == min(int(d.InstanceNumber) for d in rivals)
    gaps = np.diff([p.distance for p in volume.stack.planes])
    assert np.isclose(volume.stack.step, gaps.min(), atol=1e-3) or any("missing" in i for i in volume.stack.issues)
    assert volume.stack.step == pytest.approx(step, rel=0.01)


@pytest.mark.skipif(not DATA.exists(), reason="the shared test data is not beside this checkout")
def test_instances_without_a_place_are_told() -> None:
    ds = read_header(sorted((DATA / "mr-vendor-series" / "ge_epi_0005").glob("*.dcm"))[0])
    del ds.ImagePositionPatient
    with pytest.raises(PixelError, match=r"does not say where its image lies|lacks PlanePosition"):
        planes_of(ds)
    with pytest.raises(PixelError, match="not a readable DICOM file"):
        read_header(Path(__file__))
