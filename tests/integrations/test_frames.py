"""Frames of hosts whose settings are text."""

from __future__ import annotations

import numpy as np
import pytest

from ddfm_fast import Fuser
from ddfm_fast.integrations.frames import FrameFusion

ROWS, COLUMNS = np.mgrid[:48, :64]
VISIBLE = (4 * ROWS).astype(np.uint8)


@pytest.mark.parametrize("video_preset", ["none", "realtime"])
def test_a_camera_that_changes_its_gain_stays_in_sight(video_preset):
    """Counts of another level have a range of their own, as in a video, and are not all white."""
    fusion = FrameFusion({"preset": "instant", "video_preset": video_preset, "device": "cpu"})
    counts = (7000 + 6 * COLUMNS + ROWS).astype(np.uint16)
    first = fusion(counts, VISIBLE)
    later = [fusion(counts + np.uint16(20000), VISIBLE) for _ in range(2)]
    expected = Fuser(preset="instant", device="cpu")(counts, VISIBLE)
    np.testing.assert_array_equal(first, expected)
    assert np.abs(later[-1].astype(int) - expected).mean() < 3
