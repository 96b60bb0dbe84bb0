"""The pictures of a pair at one size and depth."""

from __future__ import annotations

import numpy as np
import pytest
from clips import pan, quick_fuser, texture, write_clip
from fusing import run

from ddfm_fast.api import Fuser
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.video import fuse_video
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


def test_alignment_brings_streams_of_two_sizes_together(tmp_path):
    """The infrared one is a part of the scene at half the size; no option of sizes is given."""
    scene = pan(2, 2, size=160)
    vis = [np.dstack([f] * 3) for f in scene]
    ir = [f[8:136:2, 16:144:2].copy() for f in scene]
    fuse_video(ir, vis, tmp_path / "o", fuser=Fuser(preset="instant", align="affine"),
               preset="realtime", side_by_side=True)  # fmt: skip
    shown = read_image(tmp_path / "o" / "000001.png").astype(int)
    assert shown.shape == (160, 480, 3)
    inside = slice(20, 120), slice(30, 130)
    assert np.abs(shown[:, :160][inside] - shown[:, 160:320][inside]).mean() < 4
    with pytest.warns(DDFMWarning, match=r"map \(shift\) .* fused resized until one is found"):
        fuse_video([np.full((64, 64), 9, np.uint8)] * 2, vis, tmp_path / "p",
                   fuser=Fuser(preset="instant", align="shift"), preset="realtime")  # fmt: skip
    assert read_image(tmp_path / "p" / "000001.png").shape == (160, 160, 3)


def test_beside():
    ir, vis, out = texture(16, 20, 1), texture(16, 20, 2, 3), texture(16, 20, 3, 3)
    whole = beside(ir, vis, out)
    assert whole.shape == (16, 60, 3)
    np.testing.assert_array_equal(whole[:, :20], np.dstack([ir] * 3))
    np.testing.assert_array_equal(whole[:, 40:], out)
    assert beside(ir, ir, ir[..., None]).shape == (16, 60)


INF = float("inf")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"offset": INF}, "offset is inf; expected -1e.09 to 1e.09"),
        ({"offset": "x"}, "offset is a str; expected a number"),
        ({"start": "x"}, "start is a str"),
        ({"end": float("nan")}, "end is nan"),
        ({"rate": 1e-9}, "rate is 1e-09; expected 0.001 to 10000"),
        ({"ir_range": (0, INF)}, "ir_range is .*finite"),
        ({"ir_range": 5}, "ir_range is 5"),
        ({"resize": (100_000, 100_000)}, "at most 268435456 pixels"),
        ({"crf": "x"}, "crf is 'x'"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused_by_name(options, words, tmp_path):
    frames = list(pan(2, 1)), list(pan(2, 2, channels=3))
    with pytest.raises((ValueError, TypeError), match=words):
        fuse_video(*frames, tmp_path / "o.mp4", fuser=quick_fuser(), **options)
    assert list(tmp_path.iterdir()) == []
