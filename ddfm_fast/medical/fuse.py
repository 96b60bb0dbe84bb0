"""Two volumes fused slice by slice, with one range, one noise level and one scale for all.

A picture's own range, noise and stretch make slices of a volume differ in brightness where the
patient does not. Here each is found once: ranges over all slices, noise as the median over some of
them, and the stretch of the preset over all fused slices, which wait in a temporary file for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import require_bool, require_choice
from ..images.color import luma, with_luma
from ..images.doubts import warn
from ..images.kind import is_functional
from ..images.planes import MIN_SIZE
from ..images.ranges import by_source, nearest_valid
from ..images.stretch import Fused, limits_between, outside
from ..restore.noise_level import estimate
from ..runtime.apart import apart
from .colormap import Colors, color_map
from .resample import OnGrid, on_one_grid
from .volume import Array, Volume, oriented, picked, shown, some_slices
from .window import source_range, without

if TYPE_CHECKING:
    from ..api import Fuser

SOURCES = ("ir", "vis")
FUNCTIONAL = ("PT", "NM")
"""modalities whose values carry meaning: PET, and nuclear medicine, which includes SPECT"""
JUDGED = 16
"""slices from which the noise is found"""
_FLAT = 1.0
"""gray levels by which a slice must vary to count"""
_BINS, _LOW, _HIGH = 1 << 16, -1.0, 2.0
"""bins and ends of the histogram of fused luma; a bin is a hundredth of a gray level of 255"""


@dataclass(frozen=True)
class FusedVolume:
    """The fusion of two volumes, and how it was made."""

    volume: Volume
    """array [Z, H, W] uint16 (0 to 65535 for black to white), or [Z, H, W, 3] uint8"""
    sources: dict[str, Volume]
    """the original volumes, by "ir" and "vis" """
    grid: str
    """the source whose grid the result is on"""
    ranges: dict[str, tuple[float, float]]
    """black and white of each source, in its units"""
    sigma: dict[str, float]
    """noise that was removed from each, gray levels of 255; 0 for a clean one"""
    limits: tuple[float, float]
    """values of fused luma that became black and white"""
    functional: bool
    """whether a source was taken for a map, such as PET"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        z, height, width = self.volume.shape
        return {
            "slices": z,
            "height": height,
            "width": width,
            "grid": self.grid,
            "affine": self.volume.affine.tolist(),
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
            "sigma": self.sigma,
            "limits": list(self.limits),
            "images": "functional" if self.functional else "photographic",
        }


class _Slice(NamedTuple):
    """A slice of both sources as it goes into the fusion, [1, C, H, W] on the device."""

    lumas: dict[str, Tensor]
    rgb: dict[str, Tensor]
    """of sources with color"""
    holes: dict[str, Tensor]
    """bool [1, 1, H, W], where a source lacks data"""


class _Source:
    """A source on the grid, in [0, 1]."""

    def __init__(self, placed: OnGrid, limits: tuple[float, float], colors: Colors | None):
        self.placed, self.limits, self.colors = placed, limits, colors
        self.colored = placed.volume.colored or colors is not None

    def plane(self, z: int) -> tuple[Array, Array]:
        """Return values [C, H, W] float32 in [0, 1], filled where missing, and that mask."""
        values = self.placed.plane(z)
        hole: Array = np.isnan(values if values.ndim == 2 else values.sum(2))
        if hole.all():
            values = np.zeros_like(values)
        elif hole.any():
            nearest = nearest_valid(hole)
            values = values.reshape(-1, *values.shape[2:])[nearest.ravel()].reshape(values.shape)
        low, high = self.limits
        unit = ((values - np.float32(low)) / np.float32(high - low)).clip(0, 1)
        if self.colors is not None:
            unit = self.colors(unit)
        planes = unit[None] if unit.ndim == 2 else np.moveaxis(unit, 2, 0)
        return np.ascontiguousarray(planes, np.float32), hole


def fuse_volumes(
    ir: Volume,
    vis: Volume,
    fuser: Fuser,
    *,
    value_range: Any = None,
    nodata: Any = None,
    colormap: Any = None,
    grid: str = "ir",
    plane: str | None = None,
    slices: slice | None = None,
    progress: bool = False,
) -> FusedVolume:
    """Fuse two volumes of one patient, registered to each other, slice by slice.

    Memory holds both volumes and the result; the fused luma waits in a temporary file.

    Args:
        ir: First volume, such as MRI.
        vis: Second volume, such as CT or PET, whose color the result takes if it has any.
        fuser: Its preset, prior, seed and color; "auto" of ``denoise`` and ``images`` is decided
            once for the volume. Stripes and dead pixels are left as they are, and so is chroma.
        value_range: (low, high) in the units of a volume, "auto" (the file's window, or a robust
            one) or "data" (a robust one); for both or by source.
        nodata: The value of missing voxels, for both or by source.
        colormap: An OpenCV color map, such as "hot", for ``vis``, or a dict by source.
        grid: "ir" or "vis", the source whose grid the result has; the other is interpolated.
        plane: "axial", "coronal" or "sagittal"; None for the slices as that source has them.
        slices: Which of these, as Python counts them.
        progress: Whether to show a bar.

    Raises:
        ValueError: An argument is wrong, or the volumes do not overlap; the message names them.
        ImportError: SciPy is missing and a volume has to be interpolated.
    """
    require_choice("grid", grid, SOURCES)
    require_bool("progress", progress)
    volumes = {"ir": ir, "vis": vis}
    _check_sources(volumes, maps := _maps(colormap))
    nothing = by_source(nodata, "nodata")
    volumes = {name: without(volume, nothing[name]) for name, volume in volumes.items()}
    target = picked(oriented(volumes[grid], plane), slices)
    _check_target(target, fuser, plane, slices)
    placed = on_one_grid(volumes, grid, target)
    wanted = by_source(value_range)
    ranges = {name: source_range(volumes[name], wanted[name], name) for name in SOURCES}
    sources = {
        name: _Source(placed[name], ranges[name], color_map(maps.get(name))) for name in SOURCES
    }
    run = _Run(sources, target.shape, fuser, _functional(volumes, maps, fuser), progress)
    array, limits = run()
    volume = Volume(array, target.affine, name="fused", placed=target.placed)
    return FusedVolume(volume, volumes, grid, ranges, run.sigma, limits, run.functional)


class _Run:
    """A volume on its way through the fusion."""

    def __init__(
        self,
        sources: dict[str, _Source],
        shape: tuple[int, int, int],
        fuser: Fuser,
        functional: bool | None,
        progress: bool,
    ):
        self.sources, self.shape, self.progress = sources, shape, progress
        self.device, self.seed = fuser.device, fuser.seed
        self.color_from = _color_from(sources, fuser.color if fuser.config.color else False)
        self.sigma = self._noise(fuser.config.noise_levels)
        self.functional = self._looks_functional() if functional is None else functional
        denoise = {name: level or "off" for name, level in self.sigma.items()}
        self.fuser = fuser.with_options(progress=False)
        self.fuser.config = fuser.config.with_overrides(denoise=denoise)
        self.shown = _Histogram()
        self.ends: tuple[float, float] = (np.inf, -np.inf)

    def __call__(self) -> tuple[Array, tuple[float, float]]:
        """Fuse all slices, then stretch all of them equally."""
        count, height, width = self.shape
        with tempfile.TemporaryFile() as file, apart(self.device), torch.inference_mode():
            y = np.memmap(file, np.float32, "w+", shape=self.shape)
            for z in self._bar(range(count), "fuse"):
                y[z] = self._fused(z)
            limits = self._limits()
            tail, kind = ((3,), np.uint8) if self.color_from else ((), np.uint16)
            array = np.empty((count, height, width, *tail), kind)
            for z in self._bar(range(count), "stretch"):
                array[z] = self._given(self._read(z), torch.from_numpy(np.array(y[z])), limits)
            del y
        if limits is None:
            return array, (0.0, 1.0)
        return array, (float(limits[0]), float(limits[1]))

    def _bar(self, slices: Any, what: str) -> Iterator[int]:
        if not self.progress:
            return iter(slices)
        from tqdm import tqdm

        return iter(tqdm(slices, desc=what, unit="slice"))

    def _read(self, z: int) -> _Slice:
        found = _Slice({}, {}, {})
        for name, source in self.sources.items():
            planes, hole = source.plane(z)
            tensor = torch.from_numpy(planes)[None].to(self.device)
            found.lumas[name] = luma(tensor)
            found.holes[name] = torch.from_numpy(hole)[None, None].to(self.device)
            if source.colored:
                found.rgb[name] = tensor
        return found

    def _fused(self, z: int) -> Array:
        """Return the fused luma of a slice, [H, W]; of one source alone, that one's."""
        one = self._read(z)
        ir, vis = one.lumas["ir"], one.lumas["vis"]
        holes = one.holes["ir"], one.holes["vis"]
        if any(bool(hole.all()) for hole in holes):
            return vis.cpu().numpy()[0, 0] if bool(holes[0].all()) else ir.cpu().numpy()[0, 0]
        restored = self.fuser.sources(ir, vis, seed=self.seed)
        y = self.fuser.method(
            restored.ir, restored.vis, seed=self.seed, functional=[self.functional]
        )
        both = ~(holes[0] | holes[1])
        if bool(both.any()):
            self.shown.add(y[both])
            seen = torch.cat((restored.ir[both], restored.vis[both]))
            self.ends = min(self.ends[0], float(seen.min())), max(self.ends[1], float(seen.max()))
        return y.cpu().numpy()[0, 0]

    def _limits(self) -> Tensor | None:
        """Find black and white of all slices, by the preset's stretch: [2, 1, 1, 1, 1]."""
        stretch = self.fuser.config.stretch
        if stretch == "none" or not self.shown.total:
            return None
        low, high = self.shown.ends if stretch == "minmax" else self.shown.percentiles()
        if stretch != "sources":
            return torch.tensor([low, high], dtype=torch.float32).view(2, 1, 1, 1, 1)
        values = (torch.full((1, 1, 1, 1), value) for value in (low, high, *self.ends))
        return limits_between(*values)

    def _given(self, one: _Slice, y: Tensor, limits: Tensor | None) -> Array:
        """Return a slice of the result."""
        fused = Fused(
            y[None, None].to(self.device), None if limits is None else limits.to(self.device)
        )
        for name, other in (("ir", "vis"), ("vis", "ir")):
            fused = fused.showing(one.lumas[other], one.holes[name])
        bright = fused.stretched()
        nothing = one.holes["ir"] & one.holes["vis"]
        bright = bright.masked_fill(nothing, 0)
        if self.color_from is None:
            return np.rint(bright.cpu().numpy()[0, 0] * 65535).astype(np.uint16)
        rgb = torch.where(one.holes[self.color_from], bright, one.rgb[self.color_from])
        shown = with_luma(bright, rgb, dims=self.fuser.config.dims_chroma)
        return np.rint(shown.cpu().numpy()[0].transpose(1, 2, 0) * 255).astype(np.uint8)

    def _noise(self, wanted: dict[str, Any]) -> dict[str, float]:
        """Return σ of each source in gray levels; the median of some slices if it is sought."""
        return {
            name: self._found_noise(self.sources[name]) if level == "auto" else float(
                0 if level == "off" else level
            )
            for name, level in wanted.items()
        }  # fmt: skip

    def _found_noise(self, source: _Source) -> float:
        found = []
        for z in some_slices(self.shape[0], JUDGED):
            planes, hole = source.plane(z)
            plane = luma(torch.from_numpy(planes)[None])
            if not hole.all() and float(plane.std()) * 255 >= _FLAT:
                found.append(estimate(plane).sigma)
        return round(float(np.median(found)), 2) if found else 0.0

    def _looks_functional(self) -> bool:
        """Return whether most of some slices of a source are maps in false color."""
        for source in self.sources.values():
            if source.colored:
                some = some_slices(self.shape[0], JUDGED)
                votes = [is_functional(torch.from_numpy(source.plane(z)[0])[None])[0] for z in some]
                if sum(votes) * 2 > len(votes):
                    return True
        return False


class _Histogram:
    """How often fused luma has each value, over a volume."""

    def __init__(self):
        self.counts = np.zeros(_BINS, np.int64)
        self.ends = (np.inf, -np.inf)

    @property
    def total(self) -> int:
        """Pixels that were counted."""
        return int(self.counts.sum())

    def add(self, y: Tensor) -> None:
        """Count the pixels of a slice."""
        values = y.detach().cpu().numpy().ravel()
        self.ends = min(self.ends[0], float(values.min())), max(self.ends[1], float(values.max()))
        index = (values.astype(np.float64) - _LOW) * (_BINS / (_HIGH - _LOW))
        self.counts += np.bincount(index.clip(0, _BINS - 1).astype(np.int64), minlength=_BINS)

    def percentiles(self) -> tuple[float, float]:
        """Return the values that the share of ``images.stretch`` leaves out at either end."""
        below = self.counts.cumsum()
        rank = outside(self.total)
        width = (_HIGH - _LOW) / _BINS
        low = _LOW + (int(np.searchsorted(below, rank + 1)) + 0.5) * width
        high = _LOW + (int(np.searchsorted(below, self.total - rank)) + 0.5) * width
        return max(low, self.ends[0]), min(high, self.ends[1])


def _maps(colormap: Any) -> dict[str, str]:
    """Return the color maps by source; a single one is for the second."""
    if colormap is None or isinstance(colormap, str):
        return {} if colormap is None else {"vis": colormap}
    found = by_source(colormap, "colormap")
    return {name: value for name, value in found.items() if value is not None}


def _check_sources(volumes: dict[str, Volume], maps: dict[str, str]) -> None:
    """Refuse what is not a volume, and warn if two are not of the same patient or place."""
    for name, volume in volumes.items():
        if not isinstance(volume, Volume):
            raise TypeError(f"{name} is a {type(volume).__name__}; expected a Volume")
        if name in maps and volume.colored:
            raise ValueError(f"colormap is given for {name}, which has color; expected a gray one")
    if np.array_equal(volumes["ir"].array, volumes["vis"].array, equal_nan=True):
        warn("ir and vis are the same volume; give two different sources")
    headers = [v.origin.header for v in volumes.values() if v.origin is not None]
    if len(headers) < 2:
        return
    for word, what, then in (
        ("PatientID", "patients", "check the files"),
        ("FrameOfReferenceUID", "frames of reference", "register one to the other first"),
    ):
        a, b = (str(header.get(word, "") or "") for header in headers)
        if a and b and a != b:
            warn(
                f"ir and vis are of different {what}, so what lies at one place may differ; {then}"
            )


def _check_target(target: Volume, fuser: Fuser, plane: str | None, slices: slice | None) -> None:
    _, height, width = target.shape
    if min(height, width) < MIN_SIZE:
        what = "" if plane is None else f" in plane {plane}"
        what += "" if slices is None else f", slices {shown(slices)}"
        raise ValueError(
            f"{target.name}: slices{what} have {height}×{width} pixels; expected at least "
            f"{MIN_SIZE}×{MIN_SIZE}: choose another plane or grid"
        )
    if fuser.config.crop_multiple > 1:
        raise ValueError(
            f"preset crops slices to multiples of {fuser.config.crop_multiple}, which a volume's "
            'affine does not follow; expected another preset, such as "official"'
        )


def _functional(volumes: dict[str, Volume], maps: dict[str, str], fuser: Fuser) -> bool | None:
    """Return whether a source is a map; None if that depends on the slices."""
    wanted = fuser.config.images
    if wanted != "auto":
        return wanted == "functional"
    if maps or any(volume.modality in FUNCTIONAL for volume in volumes.values()):
        return True
    return None


def _color_from(sources: dict[str, _Source], color: bool | str) -> str | None:
    """Return the source that the result takes its color from, or None for gray."""
    if color is False:
        return None
    if isinstance(color, str):
        return color if sources[color].colored else None
    return next((name for name in ("vis", "ir") if sources[name].colored), None)
