"""Which values of a volume are black and white, and which mean missing data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..images.doubts import warn
from ..images.ranges import ignored, span
from .volume import Volume, some_slices

AIR = -1000.0
"""Hounsfield units: lowest start of a window that is found for CT"""
RANGED = 32
"""slices from which a range is found"""


def without(volume: Volume, nodata: Any) -> Volume:
    """Return a volume with NaN where it has the value of missing data."""
    nothing = ignored(nodata)
    if nothing is None:
        return volume
    lost = nothing.where(volume.array)
    lost = lost.all(3, keepdims=True) if volume.colored else lost
    return replace(volume, array=np.where(lost, np.float32(np.nan), volume.array))


def source_range(volume: Volume, wanted: Any, name: str) -> tuple[float, float]:
    """Find black and white of a source, in its units.

    Args:
        volume: The source.
        wanted: (low, high), "auto" or None for the file's window or a robust one, or "data" for a
            robust one.
        name: "ir" or "vis".

    Raises:
        ValueError: The setting is another one, or the volume has no data.
    """
    if volume.colored:
        if wanted is not None and wanted not in ("auto", "data", "dtype"):
            raise ValueError(f"value_range is given for {name}, which has color; leave it out")
        return 0.0, 1.0
    if wanted is not None and not isinstance(wanted, str):
        try:
            low, high = (float(value) for value in wanted)
        except (TypeError, ValueError):
            low = high = 0.0
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(
                f"value_range of {name} is {wanted!r}; expected (low, high) with low below high"
            )
        return low, high
    if wanted not in (None, "auto", "data"):
        raise ValueError(
            f'value_range of {name} is {wanted!r}; expected (low, high), "auto" or "data": the '
            "values of a volume have no range of their own"
        )
    if wanted != "data" and volume.window is not None:
        return float(volume.window[0]), float(volume.window[1])
    return _robust(volume, name, told=wanted != "data")


def _robust(volume: Volume, name: str, *, told: bool) -> tuple[float, float]:
    some = volume.array[list(some_slices(volume.shape[0], RANGED))].reshape(-1, volume.shape[2])
    found = span(some)
    if found is None:
        raise ValueError(f"{name}: {volume.name} has no data; check the file")
    if found.low == found.high:
        warn(
            f"{name}: {volume.name} is {found.low:.6g} everywhere and shows nothing; check the file"
        )
    low, high = found.window
    told = told and found.low < found.high
    if volume.units == "HU":
        low = min(max(low, AIR), high - 1)
    if told:
        units = f" {volume.units}" if volume.units else ""
        warn(
            f"{name}: the file names no window: black and white are set at {low:.6g} and "
            f"{high:.6g}{units}; value_range or --{name}-range overrides this"
        )
    return low, high
