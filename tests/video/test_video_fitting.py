"""The pictures of a pair at one size and depth."""

from __future__ import annotations

import numpy as np
import pytest
from clips import pan, texture, write_clip
from fusing import run

from ddfm_fast.images.files import read_image
from ddfm_fast.video.fitting import beside
from ddfm_fast.video.frames import VideoError


def test_thermal_counts(tmp_path):
    """A 16-bit thermal picture of 7000 to 9000 counts is nearly flat without a range."""
    counts = [(7000 + f.astype(np.uint16) * 7) for f in pan(2, 1)]
    vis = [np.full((64, 64, 3), 100, np.uint8)] * 2
    stretched = [np.rint((c.astype(float) - 7000) / 2000 * 65535).astype(np.uint16) for c in counts]
    run(counts, vis, tmp_path / "a", ir_range=(7000, 9000))
    run(stretched, vis, tmp_path / "b")
    a, b = (read_image(tmp_path / name / "000001.png").astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 16
    with pytest.raises(ValueError, match="lo < hi"):
        run(counts, vis, tmp_path / "c", ir_range=(9, 7))


def test_resize(tmp_path):
    ir, vis = pan(2, 1, size=32), pan(2, 2, channels=3)
    with pytest.raises(VideoError, match="ir has 32x32 pixels and vis 64x64.*--resize vis"):
        run(
            write_clip(tmp_path / "ir.mp4", ir), write_clip(tmp_path / "v.mp4", vis), tmp_path / "o"
        )
    for resize, size in (("vis", 64), ("ir", 32), ((40, 48), None)):
        out = tmp_path / f"o{size}"
        run(tmp_path / "ir.mp4", tmp_path / "v.mp4", out, resize=resize)
        assert read_image(out / "000001.png").shape[:2] == ((size, size) if size else (40, 48))


def test_beside():
    ir, vis, out = texture(16, 20, 1), texture(16, 20, 2, 3), texture(16, 20, 3, 3)
    whole = beside(ir, vis, out)
    assert whole.shape == (16, 60, 3)
    np.testing.assert_array_equal(whole[:, :20], np.dstack([ir] * 3))
    np.testing.assert_array_equal(whole[:, 40:], out)
    assert beside(ir, ir, ir[..., None]).shape == (16, 60)
