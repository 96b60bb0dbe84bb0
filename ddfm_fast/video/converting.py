"""A decoded frame as a picture: deinterlaced if need be, colors by its tags, upright."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from ..images.doubts import warn
from .combs import CombFinder
from .frames import ColorTags, Intake
from .hdr import HLG, PQ, to_sdr

_PARITY = {2: "tff", 4: "tff", 3: "bff", 5: "bff"}
"""FFmpeg's field order of a stream → the field that is shown first"""
_HDR = {PQ: "PQ", HLG: "HLG"}
_BT709, _BT2020, _UNKNOWN = 1, 9, 2


class Converter:
    """Turns the frames of a stream into pictures, and reports once what it does to them.

    Args:
        who: Beginning of sentences about the stream: "vis is clip.mp4".
        intake: See `frames.Intake`.
        tags: The stream's.
    """

    def __init__(self, who: str, intake: Intake, tags: ColorTags):
        self._who, self._said = who, set[str]()
        self._mapped = intake.tone_map == "auto" and tags.transfer in _HDR
        self._transfer, self._wide = tags.transfer, tags.primaries in (_BT2020, _UNKNOWN)
        self.tags = tags
        """the pictures' color tags"""
        if self._mapped:
            self.tags = ColorTags(_BT709, tags.range, _BT709, _BT709)

    def __call__(self, frame: Any) -> np.ndarray:
        """Return [H, W] gray or [H, W, 3] RGB, uint8 or uint16, upright."""
        name = frame.format.name
        components = frame.format.components
        deep = max(c.bits for c in components) > 8
        if name.startswith(("gray", "ya")) or name in ("monow", "monob"):
            target = "gray16le" if deep else "gray"
        else:
            target = "rgb48le" if deep else "rgb24"
        if any(c.is_alpha for c in components):
            self._say("has an alpha channel, which is left out")
        image = frame.to_ndarray(format=target)
        if self._mapped:
            kind = _HDR[self._transfer]
            self._say(
                f"is HDR ({kind}), tone-mapped to BT.709; --tone-map off keeps its code values"
            )
            image = to_sdr(image, self._transfer, wide=self._wide)
        turns = (frame.rotation // 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warn(f"{self._who}: it {what}")


def deinterlaced(
    frames: Iterable[Any], av: Any, who: str, field_order: int, time_base: Fraction, how: str
) -> Iterator[Any]:
    """Deinterlace the frames that are marked as interlaced, by FFmpeg's bwdif.

    Frames before the first of these pass unchanged; from it on, each comes out when the next has
    arrived. Combs in unmarked frames give a warning.

    Args:
        frames: Decoded frames.
        av: PyAV.
        who: Beginning of the message about it.
        field_order: The stream's, as FFmpeg's number; some codecs mark only the stream.
        time_base: The stream's, which the frames keep.
        how: "auto", or "tff" or "bff" for all frames, however they are marked.
    """
    graph: _Bwdif | None = None if how == "auto" else _Bwdif(av, how, time_base)
    finder = CombFinder()
    for frame in frames:
        if graph is None and (frame.interlaced_frame or field_order in _PARITY):
            warn(
                f"{who}: it is interlaced, deinterlaced by bwdif; --deinterlace off keeps its lines"
            )
            graph = _Bwdif(av, _PARITY.get(field_order, "auto"), time_base)
        if graph is not None:
            yield from graph(frame)
            continue
        if not finder.done:
            _look_for_combs(finder, frame, who)
        yield frame
    if graph is not None:
        yield from graph.rest()


def field_order(context: Any) -> int:
    """Return a stream's field order, FFmpeg's number; 0 (unknown) if PyAV does not tell.

    PyAV 17, the last for Python 3.10, does not: only the frames' own marks are known then.
    """
    return getattr(context, "field_order", 0)


def _look_for_combs(finder: CombFinder, frame: Any, who: str) -> None:
    finder(frame.to_ndarray(format="gray"))
    if finder.found is not None:
        warn(
            f"{who}: its lines are of two moments (combs), though no frame is marked as "
            f"interlaced; --deinterlace {finder.found} removes them, off silences this"
        )


class _Bwdif:
    """FFmpeg's filter, set up again when the frames change their shape."""

    def __init__(self, av: Any, order: str, time_base: Fraction):
        """``order``: "tff" or "bff" if frames are not marked; "auto" for marked ones."""
        self._av, self._order, self._time_base = av, order, time_base
        self._graph: Any = None
        self._shape: tuple | None = None

    def __call__(self, frame: Any) -> Iterator[Any]:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            yield from self.rest()
            self._shape = shape
            self._graph = self._made(frame)
        self._graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator[Any]:
        """Yield the frames that the filter still holds."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
            self._graph = None

    def _made(self, frame: Any) -> Any:
        marked = frame.interlaced_frame
        which = "deint=interlaced:parity=auto" if marked else f"parity={self._order}"
        graph = self._av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._time_base,
        )
        bwdif = graph.add("bwdif", f"mode=send_frame:{which}")
        sink = graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        graph.configure()
        return graph

    def _ready(self) -> Iterator[Any]:
        errors = self._av.error
        while True:
            try:
                frame = self._graph.pull()
            except (errors.BlockingIOError, errors.EOFError):
                return
            if frame.pts is not None:
                frame.pts = round(frame.pts * frame.time_base / self._time_base)
            frame.time_base = self._time_base
            yield frame
