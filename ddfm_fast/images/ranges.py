"""Which values of a source mean black and white, and which mean nothing.

    (low, high)   these; values outside are an error
    "dtype"       the dtype's own: 0 and 255, 0 and 65535, 0 and 1 of floats
    "data"        the window that the picture uses
    "auto"        the dtype's own if the picture plausibly uses it, else the window, with a warning

Every source has a range of its own: ``value_range`` is one of these for both, or a dict by source.
``nodata`` likewise names the value of missing data. Everything that reads a pair gets its ranges
here: arrays by :func:`.planes.read_raw`, files by ``files.depth``, and streams by :mod:`.steady`,
which follows what their frames span.

The window is what the values span, without outliers: those farther away than half of what 99.8 % of
the pixels span (in a large picture, of some 16,000 of them). So one dead pixel, or a camera's mark
for none, does not move it. If there is only one value, it is black. When a picture is windowed, a
value that more pixels share is also left out if it lies farther below all others than they span, or
ten times as far above, where targets may be: -9999 or 0 around a field that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from .containers import as_tensor
from .doubts import warn

SOURCES = ("ir", "vis")
NAMES = ("auto", "dtype", "data")
SHARE = 0.001
"""share of the pixels left out at either end when the spread is judged"""
REACH = 0.5
"""share of this spread by which the window may go past it, up to the actual values"""
NARROW = 0.1
"""share of the dtype's range: a picture that spans less does not use that range"""
LEAST_16 = 1 << 14
"""level that some pixels of 16 bits must reach: below it are 12 and 14 bits"""
SLACK = 0.1
"""by how much floats in [0, 1] may overshoot, as they do after resizing"""
ROUNDING = 1e-4
"""by how much they may overshoot without a warning"""
_FEW = 256
"""pixels of the smallest picture; if ``nodata`` leaves fewer, all count"""
_DEAD = 4
"""most pixels apart from all others that count as dead; more are a target on a plain ground"""
_SHADES = 16
"""a picture with a mark has more different values than this"""
_ABOVE = 10
"""how many times farther a mark must lie above the others than below: hot targets may saturate"""
_SAMPLES = 64
"""rows and columns of a first look"""
_RANKED = 1 << 14
"""pixels of a large picture from which the spread is judged"""

Array = np.ndarray[Any, np.dtype[Any]]


class Window(tuple):
    """A range (low, high) that was found from values; values outside are clipped."""


class Ignored(NamedTuple):
    """The value of missing data; NaN or infinity stands for all that is not finite."""

    value: float

    def where(self, values: Any) -> Any:
        """Return where an array or a tensor has this value.

        NaN and infinity count as the same: either means that no number was measured.
        """
        if math.isfinite(self.value):
            return values == self.value
        return ~(abs(values) < math.inf) if _is_float(values.dtype) else values != values


def _is_float(dtype: Any) -> bool:
    return dtype.is_floating_point if isinstance(dtype, torch.dtype) else dtype.kind == "f"


def by_source(setting: Any, name: str = "value_range") -> dict[str, Any]:
    """Split a setting for both sources, or a dict by source; ValueError for other keys."""
    if not isinstance(setting, Mapping):
        return dict.fromkeys(SOURCES, setting)
    if unknown := [key for key in setting if key not in SOURCES]:
        what = "range" if name == "value_range" else "value"
        raise ValueError(
            f"{name}: got a {what} for {unknown[0]!r}, expected the keys 'ir' and 'vis'"
        )
    return {source: setting.get(source) for source in SOURCES}


def ignored(setting: Any) -> Ignored | None:
    """Return the source's value of ``nodata``, or None; TypeError if it is not a number."""
    if setting is None or isinstance(setting, Ignored):
        return setting
    if isinstance(setting, (bool, str)):
        raise TypeError(f"nodata: got {setting!r}, expected a number or NaN, or a dict by source")
    try:
        return Ignored(float(setting))
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"nodata: got {setting!r}, expected a number or NaN, or a dict by source"
        ) from None


def is_signed(image: Any) -> bool:
    """Return whether integers are read as floats, as signed and 32-bit ones are."""
    kind = str(getattr(image, "dtype", "")).removeprefix("torch.")
    return kind.lstrip("<>=|") in ("int8", "int16", "int32", "int64", "uint32")


class Span(NamedTuple):
    """What the values of a picture span."""

    low: float
    """the window's, like ``high``"""
    high: float
    least: float
    """the least of all values that count; ``most`` is the greatest"""
    most: float
    marked: bool = False
    """whether one end consists of many equal values, apart from all others"""

    @property
    def window(self) -> Window:
        """The window; if there is only one value, it is black."""
        flat = self.low == self.high
        return Window((self.low, self.low + max(1.0, abs(self.low)) if flat else self.high))

    def uses(self, white: float) -> bool:
        """Return whether it spans over a tenth of white, or is one value (reported elsewhere)."""
        return self.low == self.high or self.high - self.low >= NARROW * white


def span(values: Array, nodata: Ignored | None = None, *, marks: bool = True) -> Span | None:
    """Find what a picture spans; None if nothing counts.

    Args:
        values: Of any shape and real dtype.
        nodata: What does not count; NaN and infinity never do.
        marks: Whether values that many pixels share, apart from all others, count.
    """
    flat = np.ravel(values)
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    if nodata is not None and (nothing := nodata.where(flat)).any():
        flat = flat[~nothing]
    if not flat.size:
        return None
    least, most = _ends(flat)
    if not (math.isfinite(least) and math.isfinite(most)):
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return None
        least, most = _ends(flat)
    ranked = _ranked(flat, values.size // len(values))
    rest = _without_marks(ranked)
    marked = rest.size < ranked.size
    ranked = ranked if marks else rest
    out = math.ceil(SHARE * ranked.size) if ranked.size >= _FEW else 0
    low, high = float(ranked[out]), float(ranked[-1 - out])
    reach = REACH * (high - low)
    low, high = low - reach, high + reach
    if (low <= least and most <= high) or (not reach and (flat != low).sum() > _DEAD):
        return Span(least, most, least, most, marked)
    return Span(*_ends(flat[(flat >= low) & (flat <= high)]), least, most, marked)


def window(values: Array, nodata: Ignored | None = None) -> Window | None:
    """Return the window of :func:`span`; None if a picture has only one value, or none."""
    found = span(values, nodata)
    return None if found is None or found.low == found.high else found.window


def _without_marks(ranked: Array) -> Array:
    """Drop, from sorted values, an end value that many share, far from what the rest spans.

    If only a few share it, the reach of :func:`span` decides; a picture of few values, such as a
    mask, is left as it is.
    """
    for at_end in (False, True):
        mark = ranked[-1 if at_end else 0]
        shared = ranked == mark
        rest = ranked[~shared]
        if not SHARE * ranked.size < ranked.size - rest.size <= ranked.size - _FEW:
            continue
        if np.count_nonzero(np.diff(rest)) < _SHADES:
            continue
        out = math.ceil(SHARE * rest.size)
        low, high = float(rest[out]), float(rest[-1 - out])
        gap = (float(mark) - high) / _ABOVE if at_end else low - float(mark)
        if high - low < gap:
            return _without_marks(rest)
    return ranked


def _ends(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _ranked(flat: Array, row: int) -> Array:
    """Return the values sorted; of many, a sample from all over the picture."""
    step = max(1, flat.size // _RANKED)
    while math.gcd(step, row) > 1:  # else all samples would be from a few columns or one channel
        step += 1
    return np.sort(flat[::step])


def chosen(
    values: Array, setting: Any, name: str, nodata: Ignored | None = None, *, told: bool = True
) -> tuple[float, float] | None:
    """Decide a picture's range.

    Args:
        values: The picture: uint8, uint16, other integers or floats.
        setting: "auto" or None, "data" or "dtype".
        name: The picture's, for the message.
        nodata: What does not count.
        told: Whether to warn if "auto" takes the window.

    Returns:
        The range, or None for the dtype's own.

    Raises:
        ValueError: The setting is none of these, or the dtype has no range.
    """
    if setting not in (None, *NAMES):
        raise ValueError(
            f"value_range: got {setting!r}, expected (lo, hi), {', '.join(NAMES)} or a dict of "
            "these by source"
        )
    own = _own_range(values)
    if setting == "dtype":
        return own
    if setting != "data" and nodata is None and _clearly_uses(values):
        return own
    found = span(values, nodata)
    if found is None:
        return own
    if setting == "data" and found.low < found.high:
        return ((found.marked and span(values, nodata, marks=False)) or found).window
    judged = _judged(values, found, nodata)
    if judged.window is not None and found.marked:  # else the dtype's range keeps all
        found = span(values, nodata, marks=False) or found
        judged = _judged(values, found, nodata)
    if judged.sentence and told and setting != "data":
        source = name.partition("[")[0]
        option = f'value_range={{"{source}": …}} or --{source}-range'
        kind = "narrow" if judged.window is None else "window"
        warn(f"{name}: {judged.sentence}; {option} overrides this", f"{kind} {source}")
    return judged.window or own


def _own_range(values: Array) -> tuple[float, float] | None:
    if values.dtype in (np.uint8, np.uint16) or values.dtype.kind == "f":
        return None
    info = np.iinfo(values.dtype)
    return float(info.min), float(info.max)


class _Judged(NamedTuple):
    window: Window | None
    """None: the dtype's own range"""
    sentence: str = ""


def _judged(values: Array, found: Span, nodata: Ignored | None) -> _Judged:
    """Return the window of a picture that does not use its dtype's range, and what to say."""
    if values.dtype == np.uint8:
        if found.uses(255):
            return _Judged(None)
        return _Judged(
            None,
            f"uses only the gray levels {found.low:g} to {found.high:g} of 0 to 255, and is read "
            "unchanged",
        )
    if values.dtype == np.uint16:
        uses = found.high >= LEAST_16 and found.uses(65535)
        if uses or found.low == found.high or _is_8_bits_deep(values):
            return _Judged(None)
        return _Judged(found.window, _told(values, found, nodata, "0..65535"))
    if values.dtype.kind == "f":
        return _of_floats(values, found, nodata)
    if found.low == found.high:
        return _Judged(found.window)
    return _Judged(found.window, _told(values, found, nodata, f"the range of {values.dtype}"))


def _of_floats(values: Array, found: Span, nodata: Ignored | None) -> _Judged:
    low, high, least, most = found[:4]
    if low >= -SLACK and high <= 1 + SLACK:
        unit = Window((0.0, 1.0))
        if least < -SLACK or most > 1 + SLACK:
            far = _clipped(values, found._replace(low=0, high=1), nodata)
            return _Judged(unit, f"is read as 0 to 1, and {far}")
        if least < -ROUNDING or most > 1 + ROUNDING:
            return _Judged(unit, f"values from {least:.3g} to {most:.3g} are clipped to 0 to 1")
        if found.uses(1):
            return _Judged(None)
        return _Judged(None, f"uses only {low:.3g} to {high:.3g} of 0 to 1, and is read unchanged")
    if low == high:
        return _Judged(found.window)
    if low >= 0 and high <= 255 and found.uses(255) and _is_whole(values):
        return _Judged(
            Window((0.0, 255.0)), "whole numbers up to 255 are taken for gray levels 0 to 255"
        )
    return _Judged(found.window, _told(values, found, nodata, "0..1"))


def _is_whole(values: Array) -> bool:
    seen = _sample(values)
    return bool((seen == np.round(seen)).all()) and bool((values == np.round(values)).all())


def _is_8_bits_deep(values: Array) -> bool:
    """Return whether 16-bit values are just 8-bit ones made deeper."""
    return not (_sample(values) % 257).any() and not (values % 257).any()


def _told(values: Array, found: Span, nodata: Ignored | None, usual: str) -> str:
    more = ""
    if found.least < found.low or found.most > found.high:
        more = f", and {_clipped(values, found, nodata)}"
    return (
        f"values are {found.low:.6g} to {found.high:.6g}, not {usual}: black and white are set "
        f"there{more}"
    )


def _clipped(values: Array, found: Span, nodata: Ignored | None) -> str:
    """Describe the values outside of a window, of which there are some."""
    far = (values < found.low) | (values > found.high)
    if nodata is not None:
        far &= ~nodata.where(values)
    if values.dtype.kind == "f":
        far &= np.isfinite(values)
    count, first = int(far.sum()), exact(values[far].flat[0])
    return (
        f"{count} {'values' if count > 1 else 'value'} such as {first} "
        f"{'are' if count > 1 else 'is'} clipped, which nodata={first} would leave out"
    )


def exact(value: Any) -> str:
    """Return a number of an array as text that reads as that number again."""
    short = f"{value:g}"
    return short if type(value)(float(short)) == value else str(value)


def _clearly_uses(values: Array) -> bool:
    """Return whether a few pixels already show that 8 or 16 bits are used, as is usual."""
    if values.dtype not in (np.uint8, np.uint16):
        return False
    seen = np.sort(_sample(values), axis=None)
    out = seen.size // 50
    low, high = int(seen[out]), int(seen[-1 - out])
    if values.dtype == np.uint8:
        return high - low >= NARROW * 255
    return out > 0 and high >= LEAST_16 and high - low >= NARROW * 65535


def _sample(values: Array) -> Array:
    step = tuple(slice(None, None, max(1, n // _SAMPLES)) for n in values.shape)
    return values[step]


def nearest_valid(hole: Array) -> Array:
    """Return, per pixel of a mask [H, W], the flat index of the nearest False; one must be."""
    nearest = np.arange(hole.size).reshape(hole.shape)
    if not hole.any():
        return nearest
    around = tuple(
        slice(max(0, some[0] - 1), some[-1] + 2)  # its rim is valid, so nothing beyond it is nearer
        for some in (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    )
    part, index = hole[around], nearest[around]
    _, labels = cv2.distanceTransformWithLabels(
        part.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    places = np.zeros(labels.max() + 1, np.int64)
    places[labels[~part]] = index[~part]
    nearest[around] = places[labels]
    return nearest


def ranges_of(
    ir: Any, vis: Any, setting: Any = None, nodata: Any = None, *, told: bool = True
) -> dict[str, Any]:
    """Return each source's range, of images of any container: (low, high), a window, or "dtype"."""
    wanted, nothing = by_source(setting), by_source(nodata, "nodata")
    found = {}
    for name, image in (("ir", ir), ("vis", vis)):
        own = wanted[name]
        if own is None or isinstance(own, str):
            values, ignore = on_host(image, name), ignored(nothing[name])
            own = chosen(values, own, name, ignore, told=told) or "dtype"
        found[name] = own
    return found


def on_host(image: Any, name: str) -> Array:
    """Return the values of an image of any container, on the host."""
    if not isinstance(image, Tensor) and is_signed(image):
        return np.asarray(image)
    tensor = image if is_signed(image) else as_tensor(image, name)[0]
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
