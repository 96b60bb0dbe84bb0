"""Alignment of streams of images: one map per stream, which follows changes, and cropped frames."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from test_call import differs, pair, said, shifted  # noqa: F401

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.align import Alignment
from ddfm_fast.align.calibration import Calibration
from ddfm_fast.align.streams import StreamAligner
from ddfm_fast.video.stream import fuse_streams


def streamed(align, frames, **options) -> list:
    field = options.pop("align_field", "visible")
    fuser = Fuser(preset="instant", align=align, align_field=field)
    return list(fuser.stream(frames, preset="realtime", **options))


def moving(pair):  # noqa: F811
    """Return pairs of frames of panning cameras: aligned, and with infrared frames shifted."""
    ir, vis = pair
    views = [(slice(8 + n, -20 + n or None), slice(4, -4)) for n in range(3)]
    aligned = [(ir[view], vis[view]) for view in views]
    return aligned, [(shifted(a), b) for a, b in aligned]


@pytest.mark.parametrize("align", ["shift", "homography"])
def test_a_stream_is_aligned_once(pair, align, monkeypatch):  # noqa: F811
    aligned, apart = moving(pair)
    asked = []
    found = StreamAligner._update
    monkeypatch.setattr(
        StreamAligner, "_update", lambda self, *two: (asked.append(1), found(self, *two))[1]
    )
    got, texts = said(lambda: streamed(align, apart))
    assert texts == [] and len(asked) == 1
    wanted, ghosts = streamed("off", aligned), streamed("off", apart)
    for a, b, c in zip(got, wanted, ghosts, strict=True):
        assert a.shape == b.shape and differs(a, b) < 0.25 * differs(c, b)


def test_a_shifted_stream_gets_one_sentence(pair):  # noqa: F811
    aligned, apart = moving(pair)
    assert said(lambda: streamed("check", aligned))[1] == []
    got, texts = said(lambda: streamed("check", apart))
    assert len(texts) == 1 and "ir seems to be shifted by (+9, -6) pixels" in texts[0]
    for a, b in zip(got, streamed("off", apart), strict=True):
        assert np.array_equal(a, b)


def test_streams_in_step_are_aligned_each_by_its_own_map(pair):  # noqa: F811
    ir, vis = pair
    fuser = Fuser(preset="instant", align="shift")
    first, second = ([(shifted(ir, *by), vis)] * 2 for by in ((9, -6), (-4, 7)))
    both = list(fuse_streams(fuser, [first, second], preset="realtime"))
    for n, frames in enumerate((first, second)):
        alone = list(fuser.stream(frames, preset="realtime"))
        assert all(np.array_equal(one[n], b) for one, b in zip(both, alone, strict=True))
    ghosts = streamed("off", second)[0]  # without alignment, which leaves no border of its own
    assert differs(both[0][0], both[0][1]) < 0.25 * differs(both[0][0], ghosts)


def test_frames_of_other_containers_depths_and_sizes(pair):  # noqa: F811
    ir, vis = pair
    celsius = shifted(ir).astype(np.float32) / 4 - 20
    tensors = [(torch.from_numpy(celsius)[None], torch.from_numpy(vis).permute(2, 0, 1))] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDFMWarning)  # warnings about the range
        got = streamed("shift", tensors)
    assert all(one.shape == (3, 200, 240) and one.dtype == torch.uint8 for one in got)
    wanted = streamed("off", [(ir, vis)] * 2)
    assert differs(got[1].permute(1, 2, 0).numpy(), wanted[1]) < 5
    part = ir[40:160, 60:200].copy()
    got, texts = said(lambda: streamed("affine", [(part, vis)] * 2))
    assert texts == [] and got[0].shape == vis.shape
    assert np.abs(got[0][:20].astype(int) - vis[:20]).mean() < 25


def test_until_a_map_is_found_frames_are_resized_with_a_sentence(pair):  # noqa: F811
    _, vis = pair
    noise = np.random.default_rng(0).integers(0, 256, (100, 120), np.uint8)
    got, texts = said(lambda: streamed("affine", [(noise, vis)] * 2))
    assert len(texts) == 1 and "fused resized until one is found" in texts[0]
    assert got[1].shape == vis.shape


def test_a_crop_needs_a_map_that_stays(pair):  # noqa: F811
    ir, vis = pair
    with pytest.raises(ValueError, match="size of its frames would change; expected a calibration"):
        streamed("shift", [(ir, vis)], align_field="common")
    matrix = np.array([[1, 0, 9], [0, 1, -6], [0, 0, 1.0]])
    known = Calibration(Alignment(matrix, "shift", 9.0), ir.shape, vis.shape[:2])
    moved = np.zeros_like(ir)
    moved[:-6, 9:] = ir[6:, :-9]
    got = streamed(known, [(moved, vis)] * 2, align_field="common")
    # (x, y) of vis lies at (x + 9, y − 6) of ir: columns up to 230 and rows from 6 on are common
    wanted = streamed("off", [(ir[6:, :-9], vis[6:, :-9])] * 2)
    assert got[0].shape == (194, 231, 3)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
