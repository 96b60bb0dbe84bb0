"""Planes, slices and grids: where voxels are, compared with independently computed positions."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import CENTER, RADII, affine, center_of, ellipsoid

from ddfm_fast import DDFMWarning
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.medical.resample import OnGrid, on_one_grid
from ddfm_fast.medical.volume import Volume, oriented, parse_slices, picked

pytest.importorskip("scipy", reason="needs ddfm_fast[medical]")

FINE = affine((-1.5, -1.5, 3.0), (60.0, 50.0, -30.0))
COARSE = affine((2.5, 2.2, 4.0), (-50.0, -55.0, -35.0))
SHAPES = {"fine": (24, 72, 80), "coarse": (20, 50, 44)}


def volume(kind: str, at: np.ndarray, **more) -> Volume:
    return Volume(ellipsoid(SHAPES[kind], at), at, name=kind, **more)


def turned(at: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the grid about the ellipsoid's center, by R, then by S."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array(
        [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    )
    found = np.eye(4)
    found[:3, :3] = turn @ at[:3, :3]
    found[:3, 3] = turn @ (at[:3, 3] - CENTER) + CENTER
    return found


@pytest.mark.parametrize("degrees", [0, 11, -25])
def test_the_same_phantom_on_other_grids_lines_up(degrees):
    """Within half a voxel at its edge, and in its center within a tenth of one."""
    grid = volume("fine", FINE)
    other = OnGrid(volume("coarse", turned(COARSE, degrees)), grid)
    found = np.stack([other.plane(z) for z in range(grid.shape[0])])
    seen = ~np.isnan(found)
    assert seen.mean() > 0.5
    away = center_of(np.where(seen, found, 0), FINE) - center_of(grid.array, FINE)
    assert np.abs(away).max() < 0.1 * 1.5
    z, y, x = np.nonzero(seen & ((found > 500) != (grid.array > 500)))
    world = np.stack([x, y, z], -1) @ FINE[:3, :3].T + FINE[:3, 3]
    off = np.abs(np.linalg.norm((world - CENTER) / RADII, axis=1) - 1) * RADII.max()
    assert len(off) > 0 and off.max() < 2.5 / 2, "mm between the edges, at most"


def test_a_wrong_axis_shows():
    """The check above fails for a phantom that is mirrored or moved by a voxel."""
    grid, other = volume("fine", FINE), volume("coarse", COARSE)
    moved = COARSE.copy()
    moved[0, 3] += 2.5
    for wrong in (np.diag([-1.0, 1, 1, 1]) @ COARSE, moved):
        found = OnGrid(Volume(other.array, wrong), grid)
        planes = np.stack([found.plane(z) for z in range(grid.shape[0])])
        away = center_of(planes, FINE) - center_of(grid.array, FINE)
        assert np.abs(away).max() > 1


def test_interpolated_values_are_linear():
    """A ramp of R + 10 A + 100 S has these values at every place of another grid."""
    z, y, x = np.indices(SHAPES["coarse"])
    world = np.stack([x, y, z], -1) @ COARSE[:3, :3].T + COARSE[:3, 3]
    source = Volume((world @ [1, 10, 100]).astype(np.float32), COARSE)
    grid = volume("fine", turned(FINE, 17))
    found = OnGrid(source, grid)
    for n in (3, 12, 20):
        y, x = np.indices(grid.shape[1:])
        at = np.stack([x, y, np.full_like(x, n)], -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        values, expected = found.plane(n), at @ [1, 10, 100]
        index = (at - COARSE[:3, 3]) @ np.linalg.inv(COARSE[:3, :3]).T
        last = np.array(SHAPES["coarse"])[::-1] - 1
        inside = ((index >= -0.5) & (index <= last + 0.5)).all(-1)
        np.testing.assert_array_equal(np.isnan(values), ~inside)
        within = ((index >= 0) & (index <= last)).all(-1)
        np.testing.assert_allclose(values[within], expected[within], rtol=1e-4, atol=0.02)


def test_holes_do_not_spread():
    source = volume("coarse", COARSE)
    source.array[:, 20, 20] = np.nan
    grid = volume("fine", FINE)
    found = OnGrid(source, grid)
    clean = OnGrid(volume("coarse", COARSE), grid)
    for z in (5, 12):
        a, b = found.plane(z), clean.plane(z)
        lost = np.isnan(a) & ~np.isnan(b)
        assert 0 < lost.sum() < 12, "about a voxel of the other grid, 2.5×2.2 mm of 1.5×1.5"
        both = ~np.isnan(a)
        assert np.abs(a - b)[both].max() < 700 and np.nanmax(a) <= 1000 + 1e-3


def test_one_grid_is_left_alone():
    near = FINE.copy()
    near[:3] += 1e-6
    a, b = volume("fine", FINE), volume("fine", near)
    found = on_one_grid({"ir": a, "vis": b}, "ir", a)["vis"]
    assert found.same
    np.testing.assert_array_equal(found.plane(4), b.array[4])


def test_no_overlap_is_an_error_and_a_coarse_grid_a_sentence():
    fine, coarse = volume("fine", FINE), volume("coarse", COARSE)
    far = Volume(coarse.array, affine((2.5, 2.2, 4.0), (500.0, 0.0, 0.0)), name="far")
    with pytest.raises(ImageFileError, match=r"fine and far do not overlap.*-59\.\.61"):
        on_one_grid({"ir": fine, "vis": far}, "ir", fine)
    huge = Volume(
        np.zeros((20, 20, 20), np.float32), affine((5.0, 5.0, 5.0), (-50.0, -50.0, -50.0))
    )
    with pytest.warns(DDFMWarning, match="3.3 times as coarse as that of vis.*--grid vis"):
        on_one_grid({"ir": huge, "vis": fine}, "ir", huge)


def test_files_without_a_place():
    a, b = volume("fine", FINE, placed=False), volume("fine", COARSE)
    with pytest.warns(DDFMWarning, match="fine: where the volume lies is not known"):
        found = on_one_grid({"ir": a, "vis": b}, "ir", a)
    assert found["vis"].same
    with pytest.raises(ImageFileError, match="24×72×80 and 20×50×44 differ"):
        on_one_grid({"ir": a, "vis": volume("coarse", COARSE)}, "ir", a)


@pytest.mark.parametrize("plane, along", [("axial", 2), ("coronal", 1), ("sagittal", 0)])
@pytest.mark.parametrize(
    "kind, at", [("fine", FINE), ("coarse", COARSE), ("fine", turned(FINE, 20))]
)
def test_planes(plane, along, kind, at):
    """Slices follow the axis, rows go down (or to the back), columns to the left (or the back)."""
    whole = volume(kind, at)
    found = oriented(whole, plane)
    nearest = np.abs(found.affine[:3, :3] / np.linalg.norm(found.affine[:3, :3], axis=0)).argmax(0)
    assert nearest[2] == along
    right, front, up = 0, 1, 2
    expected = {"axial": (right, front), "coronal": (right, up), "sagittal": (front, up)}[plane]
    assert tuple(nearest[:2]) == expected
    assert all(found.affine[world, axis] < 0 for axis, world in enumerate(expected))
    np.testing.assert_allclose(
        center_of(found.array, found.affine), center_of(whole.array, at), atol=1e-3
    )
    z, y, x = 7, 30, 20
    place = found.affine @ [x, y % found.shape[1], z, 1]
    index = np.rint(np.linalg.inv(at) @ place).astype(int)
    assert found.array[z, y % found.shape[1], x] == whole.array[index[2], index[1], index[0]]


def test_slices():
    whole = volume("fine", FINE)
    for text, expected in (
        ("10:20:2", range(10, 20, 2)), ("5", [5]), ("-3:", [21, 22, 23]),
        ("::-1", range(23, -1, -1)), (":4", range(4)), ("-1", [23]),
    ):  # fmt: skip
        found = picked(whole, parse_slices(text))
        np.testing.assert_array_equal(found.array, whole.array[list(expected)])
        for n, z in enumerate(expected):
            np.testing.assert_allclose(found.affine @ [3, 4, n, 1], FINE @ [3, 4, z, 1])
    with pytest.raises(ValueError, match="slices is 30:40, which leaves none of the 24 slices"):
        picked(whole, parse_slices("30:40"))
    for text in ("a", "1:2:0", "1:2:3:4", "1.5", ":x"):
        with pytest.raises(ValueError, match="expected START:STOP:STEP"):
            parse_slices(text)


def test_what_is_no_volume():
    for array in (np.zeros((4, 4)), np.zeros((2, 3, 4, 2)), np.zeros((0, 4, 4))):
        with pytest.raises(ValueError, match="expected \\[Z, H, W\\]"):
            Volume(array, np.eye(4))
    flat = np.diag([1.0, 1, 0, 1])
    for at in (np.eye(3), flat, np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="affine"):
            Volume(np.zeros((2, 3, 4)), at)
