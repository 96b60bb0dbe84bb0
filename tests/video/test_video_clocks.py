"""Two live streams whose clocks drift apart."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from fusing import run

from ddfm_fast.video import clocks
from ddfm_fast.video.clocks import Clocks
from ddfm_fast.video.frames import Frame, Source
from ddfm_fast.video.pairing import Timeline


@pytest.mark.parametrize("ppm", [-150, 0, 80])
def test_drift_is_found_under_jitter(ppm):
    """Half an hour at 25/s; delays of 20 ms and more; the infrared clock is ppm slower."""
    rng = np.random.default_rng(1)
    found = Clocks()
    taken = np.arange(1800 * 25) / 25
    for clock, slow in ((found.ir, ppm * 1e-6), (found.vis, 0.0)):
        arrivals = taken + 0.02 + rng.exponential(0.01, taken.size)
        arrivals[0] = taken[0] + 0.02
        for real, arrived in zip(taken, arrivals, strict=True):
            clock.add(real * (1 - slow), 1000 + arrived)
    start, slope = found.difference()
    assert slope * 1e6 == pytest.approx(ppm, abs=3) and abs(start) < 0.003
    report = found.found(Fraction(1, 2))
    assert report["drift_ppm"] == pytest.approx(ppm, abs=3)
    assert report["offset"] == pytest.approx(0.5, abs=0.003)


def test_a_first_frame_that_came_late_is_found():
    """A server that sends a second of backlog at once: the first frame is a second old."""
    found = Clocks()
    for n in range(500):
        found.vis.add(n / 25, n / 25)
        found.ir.add(n / 25, max(0.0, n / 25 - 1.0))
    start, slope = found.difference()
    assert start == pytest.approx(-1, abs=0.15) and abs(slope) < 0.02


def test_nothing_is_said_too_early():
    found = Clocks()
    for n in range(50):
        found.ir.add(n / 25, n / 20)
        found.vis.add(n / 25, n / 25)
    assert found.difference() is None
    assert found.found(Fraction(0)) == {"offset": 0.0, "drift_ppm": 0.0}
    frames = [Frame(None, Fraction(n, 25), n) for n in range(3)]
    assert list(found.corrected(frames)) == frames


class Camera(Source):
    """Frames whose gray level says when they were taken, with times of a clock of its own."""

    live = True

    def __init__(self, seconds: float, slow: float):
        super().__init__()
        self.name, self.size, self.rate = f"camera {slow}", (32, 32), Fraction(50)
        self._seconds, self._slow, self.arrived = seconds, slow, time.monotonic()

    def frames(self, start=Fraction(0)):
        begun = time.monotonic()
        for n in range(int(self._seconds * 50)):
            time.sleep(max(0.0, begun + n / 50 - time.monotonic()))
            image = np.full((32, 32), n % 250, np.uint8)
            yield Frame(image, Fraction(n, 50) * Fraction(1 - self._slow).limit_denominator(999), n)


def test_frames_of_one_moment_stay_together(monkeypatch, tmp_path):
    monkeypatch.setattr(clocks, "WINDOW", 0.2)
    ir, vis = Camera(4.5, 0.05), Camera(4.5, 0.0)
    pairs = list(Timeline.of(ir, vis, offset=0, start=0, end=None).pairs())
    apart = [pair.vis.number - pair.ir.number for pair in pairs if pair.vis.number > 160]
    # without a correction 5 % of 4 s are ten frames
    assert len(apart) > 20 and abs(np.median(apart)) <= 3
    ir, vis = Camera(3, 0.05), Camera(3, 0.0)
    report = run(ir, vis, tmp_path / "o")
    assert report.clocks["drift_ppm"] == pytest.approx(50_000, rel=0.4)
