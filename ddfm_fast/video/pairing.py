"""Two streams side by side in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from ..config import require_number
from .ahead import Ahead, close_all
from .clocks import Clocks, watched
from .frames import DEFAULT_RATE, Frame, Source

_MOST_SECONDS = 1e9
_AHEAD = 8
"""most frames of a live stream that wait for the other stream's"""


class FramePair(NamedTuple):
    """A visible frame and the infrared frame nearest to it in time."""

    ir: Frame
    vis: Frame


def align(
    ir: Iterable[Frame],
    vis: Iterable[Frame],
    *,
    offset: Fraction = Fraction(0),
    period: Fraction = 1 / DEFAULT_RATE,
) -> Iterator[FramePair]:
    """Pair two streams by time: the visible frames are kept, each with the nearest infrared one.

    If two infrared frames are equally near, the earlier is taken. Infrared frames are used again if
    that stream is slower or has a gap, and left out if it is faster. The output covers the common
    time: visible frames more than ``period`` before the first or after the last infrared frame have
    no partner and are left out. Both streams are read in step, one infrared frame ahead.

    Args:
        ir: Infrared frames in time order.
        vis: Visible frames in time order.
        offset: Seconds by which the infrared stream starts later (negative: earlier); by default
            the first frames of both count as simultaneous.
        period: Seconds of one infrared frame.
    """
    stream = iter(ir)
    before: Frame | None = None
    after = next(stream, None)
    packets: tuple = ()
    for frame in vis:
        packets += frame.packets
        while after is not None and after.time + offset < frame.time:
            before, after = after, next(stream, None)
        choice = _nearest(before, after, frame.time - offset)
        if choice is None:
            return
        if abs(choice.time + offset - frame.time) > period and None in (before, after):
            if after is None:
                return
            continue
        yield FramePair(choice, frame._replace(packets=packets))
        packets = ()


def _nearest(before: Frame | None, after: Frame | None, time: Fraction) -> Frame | None:
    if before is None or after is None:
        return after or before
    return before if time - before.time <= after.time - time else after


@dataclass(frozen=True)
class Timeline:
    """Which part of two streams is fused, and how far apart they start."""

    ir: Source
    vis: Source
    offset: Fraction
    """seconds by which the infrared stream starts later"""
    start: Fraction
    """seconds of the visible stream"""
    end: Fraction | None
    clocks: Clocks | None = None
    """of two live streams"""

    @classmethod
    def of(
        cls, ir: Source, vis: Source, *, offset: float, start: float, end: float | None
    ) -> Timeline:
        """Check the numbers and make them exact; two live streams also start as they arrived.

        Raises:
            ValueError: The start is before 0, or the end not after it; TypeError if not a number.
        """
        require_number("offset", offset, -_MOST_SECONDS, _MOST_SECONDS)
        require_number("start", start, 0, _MOST_SECONDS)
        if end is not None and end != float("inf"):
            require_number("end", end, 0, _MOST_SECONDS)
        if end is not None and not end > start:
            raise ValueError(f"end is {end} and start {start}; expected end after start")
        gap = _exact(ir.arrived - vis.arrived) if ir.live and vis.live else Fraction(0)
        until = None if end is None or end == float("inf") else _exact(end)
        clocks = Clocks() if ir.live and vis.live else None
        return cls(ir, vis, _exact(offset) + gap, _exact(start), until, clocks)

    def pairs(self) -> Iterator[FramePair]:
        """Read both streams and pair their frames."""
        period = 1 / self.ir.rate
        ir_start = max(Fraction(0), self.start - self.offset - 2 * period)
        ir, vis = self.ir.frames(ir_start), self.vis.frames(self.start)
        ahead: list[Ahead[Frame]] = []
        if self.clocks is not None:  # each at its own pace, so that arrival times are its own
            watches = watched(ir, self.clocks.ir), watched(vis, self.clocks.vis)
            ahead = [Ahead(watch, _AHEAD) for watch in watches]
            ir, vis = self.clocks.corrected(ahead[0]), ahead[1]
        try:
            for pair in align(ir, vis, offset=self.offset, period=period):
                if self.end is not None and pair.vis.time >= self.end:
                    return
                yield pair
        finally:
            close_all(ahead)

    def expected(self) -> int | None:
        """Return about how many pairs there will be, None if unknown."""
        ends = [] if self.end is None else [self.end]
        if self.vis.length is not None:
            ends.append(self.vis.length / self.vis.rate)
        if self.ir.length is not None:
            ends.append(self.ir.length / self.ir.rate + self.offset)
        return max(0, round((min(ends) - self.start) * self.vis.rate)) if ends else None


def _exact(seconds: float) -> Fraction:
    """Return the intended decimal: 0.1 as a float is a little later than frame 3 at 30/s."""
    return Fraction(seconds).limit_denominator(1_000_000)
