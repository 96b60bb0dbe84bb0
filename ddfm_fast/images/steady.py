"""The range of each source over a stream: steady, so that a camera's drift does not flicker.

With "auto" and "data", the first frame that shows anything decides, as for a picture
(:mod:`.ranges`), with one warning. From there

    the dtype's own range   stays
    a window                follows what the frames span: a step of 1/50 toward each

It jumps to what a frame spans when a scene begins, and when the two windows share less than half of
the narrower one, as when a camera changes its gain. A frame with only one value, such as from a
thermal camera's closed shutter, changes nothing.
"""

from __future__ import annotations

from typing import Any

from .containers import as_tensor
from .planes import extremes
from .ranges import (
    SLACK,
    SOURCES,
    Array,
    Ignored,
    Window,
    by_source,
    chosen,
    ignored,
    on_host,
    span,
)

FOLLOW = 1 / 50
"""share of the way to a frame's window by which the running one moves"""
SHARED = 0.5
"""of the narrower of two windows: with less in common the running one jumps"""
_UNIT = Window((0.0, 1.0))


class SteadyRanges:
    """The ranges of both sources of one stream, frame by frame.

    Args:
        told: Whether to warn if "auto" takes a window.
    """

    def __init__(self, *, told: bool = True):
        self._told = told
        self._sources: dict[str, _Running] = {}

    def __call__(
        self, ir: Any, vis: Any, setting: Any = None, nodata: Any = None, *, cut: bool = False
    ) -> dict[str, Any]:
        """Take the next frame, with images of any container, into account.

        Args:
            ir: The infrared frame.
            vis: The visible one.
            setting: ``value_range`` as a call takes it; the first frame's is kept.
            nodata: Likewise.
            cut: Whether a scene begins.

        Returns:
            Each source's range: (low, high) as it was given, a ``Window``, or "dtype".
        """
        if not self._sources:
            wanted, nothing = by_source(setting), by_source(nodata, "nodata")
            self._sources = {
                name: _Running(name, wanted[name], ignored(nothing[name]), told=self._told)
                for name in SOURCES
            }
        images = {"ir": ir, "vis": vis}
        return {name: self._sources[name](images[name], cut=cut) for name in SOURCES}


class _Running:
    """The range of one source."""

    def __init__(self, name: str, setting: Any, nodata: Ignored | None, *, told: bool):
        self._name, self._setting, self._nodata, self._told = name, setting, nodata, told
        self._range: Any = None
        """a window, or "dtype"; None until a frame shows anything"""

    def __call__(self, image: Any, *, cut: bool) -> Any:
        if self._setting is not None and not isinstance(self._setting, str):
            return self._setting
        if self._range == _UNIT:
            low, high = extremes(as_tensor(image, self._name)[0])
            if low >= -SLACK and high <= 1 + SLACK:
                return "dtype" if low >= 0 and high <= 1 else _UNIT
        if self._range != "dtype" and not (self._setting == "dtype" and self._range is not None):
            return self._counted(on_host(image, self._name), cut=cut)
        return self._range

    def _counted(self, values: Array, *, cut: bool) -> Any:
        found = chosen(values, self._setting, self._name, self._nodata, told=self._told)
        if self._setting == "dtype":
            self._range = found or "dtype"
            return self._range
        alone = _own(values) if found is None else found
        shown = span(values, self._nodata)
        if shown is None or shown.low == shown.high:
            return alone if self._range is None else self._range
        self._told &= found is None
        # not the dtype's own range, a fiftieth of which one hot spot would add to a window
        target = (shown.low, shown.high) if found is None else found
        if cut or self._range in (None, _UNIT) or _apart(target, self._range):
            self._range = alone
        else:
            pairs = zip(self._range, target, strict=True)
            self._range = Window(old + FOLLOW * (new - old) for old, new in pairs)
        return self._range


def _own(values: Array) -> Any:
    """Return the value that stands for a dtype's own range; floats are clipped to it."""
    return _UNIT if values.dtype.kind == "f" else "dtype"


def _apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Return whether two windows have less than ``SHARED`` of the narrower one in common."""
    common = min(a[1], b[1]) - max(a[0], b[0])
    return common < SHARED * min(a[1] - a[0], b[1] - b[0])
