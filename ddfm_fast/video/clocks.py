"""Two live cameras whose clocks differ: how far apart they are, and how that grows.

A frame arrives some time after it was taken, never before. The least delay in every few seconds is
therefore the network's least delay plus the lag of the camera's clock. A line through these minima
gives the clock's rate against ours, and the difference of two such lines corrects the infrared
timestamps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from time import monotonic

import numpy as np

from .frames import Frame

WINDOW = 1.0
"""seconds of a window; only its least delay counts"""
ENOUGH, MOST = 6, 600
"""windows that are needed for an estimate, and most that are kept"""
_SLEW = 0.1
"""share of the time between two frames by which a correction moves per frame"""


class Clock:
    """Delays of one stream, its first frame's being 0."""

    def __init__(self, window: float | None = None):
        self._window = WINDOW if window is None else window
        self._least: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._now: tuple[int, float, float] | None = None
        self._first: float | None = None

    def add(self, time: float, arrived: float) -> None:
        """Note a frame.

        Args:
            time: Seconds of the stream, 0 at its first frame.
            arrived: Seconds of our clock.
        """
        if self._first is None:
            self._first = arrived - time
        delay = arrived - self._first - time
        number = int(time / self._window)
        if self._now is None or number > self._now[0]:
            if self._now is not None:
                self._least.append(self._now[1:])
            self._now = number, time, delay
        elif delay < self._now[2]:
            self._now = self._now[0], time, delay

    def line(self) -> tuple[float, float] | None:
        """Return (delay at time 0, growth in seconds per second); None until there are enough."""
        if len(self._least) < ENOUGH:
            return None
        times, delays = np.array(tuple(self._least)).T
        slope, start = np.polyfit(times, delays, 1)
        return float(start), float(slope)


class Clocks:
    """Two live streams; the output has the time of the visible one."""

    def __init__(self, window: float | None = None):
        self.ir, self.vis = Clock(window), Clock(window)
        self._applied = 0.0

    def difference(self) -> tuple[float, float] | None:
        """Return (seconds to add to infrared times at 0, growth per second); None while unknown."""
        ir, vis = self.ir.line(), self.vis.line()
        return None if ir is None or vis is None else (ir[0] - vis[0], ir[1] - vis[1])

    def found(self, offset: Fraction) -> dict[str, float]:
        """Return, for the report, how much later infrared started, and its drift in ppm.

        Args:
            offset: The offset that was assumed at the start.
        """
        start, slope = self.difference() or (0.0, 0.0)
        return {"offset": round(float(offset) + start, 4), "drift_ppm": round(slope * 1e6, 1)}

    def corrected(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield infrared frames with times of the visible clock, corrected little by little."""
        last: Fraction | None = None
        for frame in frames:
            wanted = self.difference()
            if wanted is not None:
                step = 0.0 if last is None else float(frame.time - last) * _SLEW
                goal = wanted[0] + wanted[1] * float(frame.time)
                self._applied += min(max(goal - self._applied, -step), step)
            last = frame.time
            shift = Fraction(self._applied).limit_denominator(1_000_000)
            yield frame._replace(time=frame.time + shift)


def watched(frames: Iterable[Frame], clock: Clock) -> Iterator[Frame]:
    """Pass frames on, and note when each arrives."""
    for frame in frames:
        clock.add(float(frame.time), monotonic())
        yield frame
