"""A volume on the grid of another, slice by slice, by their affines."""

from __future__ import annotations

import numpy as np

from ..files.paths import ImageFileError
from ..images.doubts import warn
from .needs import need
from .volume import Array, Volume, some_slices

SAME = 1e-3
"""voxels by which corners may differ for two grids to count as one"""
COARSE = 2.0
"""multiple of the other source's voxel size from which a grid loses enough detail for a warning"""
_EDGE = 0.5 + 1e-6
"""voxels from the center of the last one to the end of the field"""
_VALID = 0.5
"""least weight of voxels with data in an interpolated value"""


class OnGrid:
    """A volume on a grid, whose slices are interpolated linearly when they are requested.

    Args:
        volume: The source.
        grid: The volume with the grid; only the shape of its array counts.
    """

    def __init__(self, volume: Volume, grid: Volume):
        self.volume, self.shape = volume, grid.shape
        to_voxel = np.linalg.inv(volume.affine) @ grid.affine
        self._matrix = to_voxel[:3, :3][::-1, ::-1]
        self._offset = to_voxel[:3, 3][::-1]
        self.same = volume.shape == grid.shape and self._corners_meet()
        self._valid: Array | None = None
        if not self.same:
            data = volume.array if not volume.colored else volume.array[..., 0]
            valid = ~np.isnan(data)
            self._valid = None if valid.all() else valid

    def plane(self, z: int) -> Array:
        """Return slice z of the grid, [H, W] or [H, W, 3] float32, NaN outside of the field."""
        if self.same:
            return np.ascontiguousarray(self.volume.array[z])
        return self._interpolated(z)

    def inside(self, z: int) -> Array:
        """Return where slice z of the grid is in the field of the volume, bool [H, W]."""
        _, height, width = self.shape
        rows, columns = np.ogrid[:height, :width]
        found = np.ones((height, width), bool)
        for axis, length in enumerate(self.volume.shape):
            slope = self._matrix[axis]
            at = self._offset[axis] + slope[0] * z + slope[1] * rows + slope[2] * columns
            found &= (at >= -_EDGE) & (at <= length - 1 + _EDGE)
        return found

    def _interpolated(self, z: int) -> Array:
        inside = self.inside(z)
        array = self.volume.array
        if not inside.any():
            return np.full((*inside.shape, *array.shape[3:]), np.nan, np.float32)
        if self._valid is not None:
            weight = self._linear(self._valid, z)
            inside &= weight >= _VALID
        parts = [array] if array.ndim == 3 else [array[..., n] for n in range(3)]
        done = []
        for part in parts:
            if self._valid is None:
                values = self._linear(part, z)
            else:
                values = self._linear(np.nan_to_num(part, nan=0.0), z) / np.maximum(weight, _VALID)
            done.append(np.where(inside, values, np.float32(np.nan)))
        return done[0] if array.ndim == 3 else np.stack(done, -1)

    def _linear(self, array: Array, z: int) -> Array:
        ndimage = need("scipy.ndimage", "bringing two volumes to one grid")
        return ndimage.affine_transform(
            array, self._matrix, self._offset + self._matrix[:, 0] * z,
            output_shape=(1, *self.shape[1:]), output=np.float32, order=1, mode="nearest",
            prefilter=False,
        )[0]  # fmt: skip

    def _corners_meet(self) -> bool:
        corners = np.array(np.meshgrid(*((0, n - 1) for n in self.shape))).reshape(3, -1)
        found = self._matrix @ corners + self._offset[:, None]
        return bool(np.abs(found - corners).max() <= SAME)


def on_one_grid(volumes: dict[str, Volume], grid: str, target: Volume) -> dict[str, OnGrid]:
    """Bring both sources to one grid.

    Args:
        volumes: By source, "ir" and "vis".
        grid: The source whose grid it is.
        target: Its volume, perhaps turned and with fewer slices.

    Raises:
        ImageFileError: The two do not overlap, or their places are unknown and sizes differ.
    """
    other = "vis" if grid == "ir" else "ir"
    mine, theirs = volumes[grid], volumes[other]
    if not (mine.placed and theirs.placed):
        theirs = _as_placed(mine, theirs)
    found = {grid: OnGrid(mine, target), other: OnGrid(theirs, target)}
    if not found[other].same:
        if not _overlap(found[other]):
            raise ImageFileError(
                f"{mine.name} and {theirs.name} do not overlap in space: their fields are "
                f"{_field(target)} and {_field(theirs)} mm (R, A, S); check that they are of one "
                "examination and registered, or choose other slices"
            )
        _warn_of_coarse(target, theirs, grid, other)
    return found


def _as_placed(mine: Volume, theirs: Volume) -> Volume:
    """Return the other volume, on the first one's grid if files do not state their places."""
    nowhere = " and ".join(v.name for v in (mine, theirs) if not v.placed)
    if mine.shape != theirs.shape:
        raise ImageFileError(
            f"{nowhere}: where the volume lies is not known, and the sizes "
            f"{_size(mine)} and {_size(theirs)} differ; expected equal sizes, or files with "
            "positions and orientation"
        )
    warn(f"{nowhere}: where the volume lies is not known; voxels are paired by number")
    return Volume(
        theirs.array, mine.affine, theirs.units, theirs.window, theirs.name, theirs.modality,
        mine.placed, theirs.origin,
    )  # fmt: skip


def _overlap(source: OnGrid) -> bool:
    count = source.shape[0]
    first = some_slices(count, 16)
    return any(source.inside(z).any() for z in (*first, *range(count)))


def _warn_of_coarse(target: Volume, theirs: Volume, grid: str, other: str) -> None:
    times = min(target.spacing[1:]) / min(theirs.spacing)
    if times >= COARSE:
        warn(
            f"the grid of {grid} is {times:.1f} times as coarse as that of {other}, whose detail "
            f"is lost; grid={other!r} or --grid {other} keeps it"
        )


def _size(volume: Volume) -> str:
    return "×".join(str(n) for n in volume.shape)


def _field(volume: Volume) -> str:
    z, y, x = volume.shape
    ends = np.array(np.meshgrid((-0.5, x - 0.5), (-0.5, y - 0.5), (-0.5, z - 0.5))).reshape(3, -1)
    world = volume.affine[:3, :3] @ ends + volume.affine[:3, 3:]
    sides = zip(world.min(1), world.max(1), strict=True)
    return " × ".join(f"{low:.0f}..{high:.0f}" for low, high in sides)
