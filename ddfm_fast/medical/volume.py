"""A volume: an array with its place in the patient."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PLANES = {"axial": (2, (-1, -1, 1)), "coronal": (1, (-1, 1, -1)), "sagittal": (0, (1, -1, -1))}
"""plane → the world axis (of RAS) that its slices follow, and the sign in which each of the
world axes R, A and S grows with its index: as slices are shown, so left is on the right"""
ROWS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""plane → the world axes along which its columns and its rows are counted"""


@dataclass(frozen=True)
class Origin:
    """What a DICOM series says about itself."""

    header: Any
    """the pydicom ``Dataset`` of a slice from the middle, without pixels"""
    instances: tuple[tuple[str, str] | None, ...]
    """SOP class and instance UID of each slice; None if the series lacks it"""


@dataclass(frozen=True)
class Volume:
    """Values on a grid of voxels.

    Raises:
        ValueError: Array or affine has another shape, or the affine is not invertible.
    """

    array: Array
    """[Z, H, W] float32 in the source's units, NaN where data is missing; or RGB [Z, H, W, 3]
    float32 in [0, 1]; for a fused volume uint16 or uint8"""
    affine: Array
    """4×4: index (column, row, slice) of a voxel's center → mm in RAS (right, anterior, superior
    grow)"""
    units: str = ""
    """such as "HU"; empty if the file does not say"""
    window: tuple[float, float] | None = None
    """the values that the file wants shown as black and white"""
    name: str = "volume"
    """name in messages"""
    modality: str = ""
    """DICOM's code, such as "CT" or "PT" """
    placed: bool = True
    """whether the affine comes from the file, and is not made up"""
    origin: Origin | None = field(default=None, repr=False)

    def __post_init__(self):
        shape = self.array.shape
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
            raise ValueError(
                f"{self.name}: array has shape {shape}; expected [Z, H, W] or [Z, H, W, 3]"
            )
        affine = np.asarray(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"{self.name}: affine is {affine.tolist()}; expected 4×4 numbers")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12 or (affine[3] != (0, 0, 0, 1)).any():
            raise ValueError(
                f"{self.name}: affine {affine.tolist()} maps no volume; expected independent "
                "axes and the last row 0 0 0 1"
            )
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, height and width."""
        z, height, width = self.array.shape[:3]
        return z, height, width

    @property
    def colored(self) -> bool:
        """Whether it has RGB."""
        return self.array.ndim == 4

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances of voxels along (slice, row, column), in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


def oriented(volume: Volume, plane: str | None) -> Volume:
    """Turn a volume so that its slices are of a plane, without interpolation.

    The nearest axes are taken: slices of an oblique volume stay oblique. Rows and columns run as
    slices are shown in radiology.

    Args:
        volume: The volume; its array becomes a view.
        plane: "axial", "coronal", "sagittal", or None for the slices as they are.

    Raises:
        ValueError: The plane is another one.
    """
    if plane is None:
        return volume
    if plane not in PLANES:
        raise ValueError(f"plane is {plane!r}; expected one of {', '.join(PLANES)}")
    along, signs = PLANES[plane]
    nearest = _nearest_axes(volume.affine)
    order = [nearest.index(axis) for axis in (*ROWS[plane], along)]
    axes = [2 - axis for axis in reversed(order)]  # of the array, whose first axis is z
    array = volume.array.transpose(*axes, *range(3, volume.array.ndim))
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, order]
    for axis, world in enumerate((*ROWS[plane], along)):
        if affine[world, axis] * signs[world] < 0:
            length = array.shape[2 - axis]
            affine[:3, 3] += affine[:3, axis] * (length - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, 2 - axis)
    return replace(volume, array=array, affine=affine)


def _nearest_axes(affine: Array) -> list[int]:
    """Return the world axis that each axis of the grid (x, y, z) is nearest to, each given once."""
    directions = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    best = max(
        itertools.permutations(range(3)),
        key=lambda worlds: sum(directions[world, axis] for axis, world in enumerate(worlds)),
    )
    return list(best)


def picked(volume: Volume, slices: slice | None) -> Volume:
    """Take some of the slices, as Python counts them; ValueError if none is left."""
    if slices is None:
        return volume
    start, _, step = slices.indices(volume.shape[0])
    array = volume.array[slices]
    if not len(array):
        raise ValueError(
            f"slices is {shown(slices)}, which leaves none of the {volume.shape[0]} slices of "
            f"{volume.name}; expected START:STOP:STEP within 0:{volume.shape[0]}"
        )
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * start
    affine[:3, 2] *= step
    return replace(volume, array=array, affine=affine)


def shown(slices: slice) -> str:
    """Return a slice as START:STOP:STEP."""
    parts = (slices.start, slices.stop, slices.step)[: 2 if slices.step is None else 3]
    return ":".join("" if part is None else str(part) for part in parts)


def parse_slices(text: str | None) -> slice | None:
    """Parse ``START:STOP:STEP`` or the number of one slice; ValueError otherwise."""
    if text is None:
        return None
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
        if len(parts) == 1 and parts[0] is not None:
            return slice(parts[0], parts[0] + 1 or None)
        if 2 <= len(parts) <= 3 and (len(parts) == 2 or parts[2] != 0):
            return slice(*parts)
    except ValueError:
        pass
    raise ValueError(f"slices is {text!r}; expected START:STOP:STEP such as 10:40:2, or a number")


def some_slices(count: int, most: int) -> list[int]:
    """Choose at most so many slices, evenly from all of them."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, most))})
