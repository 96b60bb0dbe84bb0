"""Combs that nothing marks are reported; noise, motion and fine stripes are not taken for them."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from clips import pan, texture, write_clip

from ddfm_fast import DDFMWarning
from ddfm_fast.video.combs import CombFinder
from ddfm_fast.video.frames import Intake
from ddfm_fast.video.sources import open_source

SIZE, FRAMES = 96, 24


def fields(moments: list[np.ndarray], *, top_first: bool = True) -> list[np.ndarray]:
    """Weave frames of two moments each."""
    woven = []
    for first, second in zip(moments[::2], moments[1::2], strict=False):
        frame = first.copy()
        frame[1 if top_first else 0 :: 2] = second[1 if top_first else 0 :: 2]
        woven.append(frame)
    return woven


def moving(dx: float, dy: float, frames: int, seed: int = 1, detail: float = 1.5) -> list:
    """Draw a texture that moves by so many pixels per moment."""
    rng = np.random.default_rng(seed)
    whole = cv2.GaussianBlur(rng.random((400, 400)).astype(np.float32), (0, 0), detail)
    whole = (whole - whole.min()) / np.ptp(whole) * 255
    shifts = (np.float32([[1, 0, -100 - n * dx], [0, 1, -100 - n * dy]]) for n in range(frames))
    moved = (cv2.warpAffine(whole, shift, (SIZE, SIZE)) for shift in shifts)
    return [np.rint(m).astype(np.uint8) for m in moved]


def found(frames: list[np.ndarray]) -> str | None:
    finder = CombFinder()
    for frame in frames:
        if not finder.done:
            finder(frame)
    return finder.found


def noisy(frames: list[np.ndarray], sigma: float) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [
        np.clip(f + rng.normal(0, sigma, f.shape), 0, 255).round().astype(np.uint8) for f in frames
    ]


@pytest.mark.parametrize("top_first", [True, False])
@pytest.mark.parametrize("step", [(1, 0), (3, 0), (1.5, 1), (0, 2)])
def test_combs_and_their_order_are_found(step, top_first):
    frames = fields(moving(*step, 2 * FRAMES), top_first=top_first)
    assert found(frames) == ("tff" if top_first else "bff")
    assert found(noisy(frames, 4)) == ("tff" if top_first else "bff")


def stripes(period: float, dx: float, dy: float, angle: float = 0.0) -> list[np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    phase = [
        2 * np.pi / period * ((y - n * dy) * np.cos(angle) + (x - n * dx) * np.sin(angle))
        for n in range(FRAMES)
    ]
    return [np.rint(127.5 + 120 * np.cos(p + 0.3)).astype(np.uint8) for p in phase]


PROGRESSIVE = {
    "still": [texture(SIZE, SIZE, 1)] * FRAMES,
    "noise alone": noisy([np.full((SIZE, SIZE), 100, np.uint8)] * FRAMES, 20),
    "a noisy still": noisy([texture(SIZE, SIZE, 1)] * FRAMES, 12),
    "lines of two": stripes(2, 0, 0),
    "lines of two that move down": stripes(2, 0, 1),
    "lines of two that move slowly": stripes(2, 0, 0.3),
    "lines of three that move": stripes(3, 0, 0.7),
    "lines of four that move": stripes(4, 0, 1),
    "lines that lie aslant and move": stripes(2.6, 2, 0.5, 0.4),
    "noisy lines": noisy(stripes(2.2, 1, 0.4, 0.1), 10),
    **{
        f"motion by {dx}, {dy}": moving(dx, dy, FRAMES, detail=detail)
        for dx, dy in ((0.5, 0), (3, 0), (7, 0), (0, 1), (0, 2), (0, -0.5), (2, 1.5), (-4, 3))
        for detail in (0.6, 2)
    },
    "noisy motion": noisy(moving(2, 1, FRAMES), 10),
    "flashes": [np.full((SIZE, SIZE), 60 + 100 * (n % 3 == 0), np.uint8) for n in range(FRAMES)],
    "pictures that share nothing": [texture(SIZE, SIZE, n) for n in range(FRAMES)],
    "every frame twice": [f for f in moving(3, 1, FRAMES // 2) for _ in range(2)],
}  # fmt: skip


@pytest.mark.parametrize("kind", PROGRESSIVE)
def test_progressive_frames_have_no_combs(kind):
    assert found(PROGRESSIVE[kind]) is None


def read(path, **intake):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DDFMWarning)
        source = open_source(path, "vis", intake=Intake(**intake))
        frames = [frame.image for frame in source.frames()]
        source.close()
    return frames, [str(w.message) for w in said]


def test_a_clip_that_no_frame_marks_is_told_of_once_and_can_be_mended(tmp_path):
    moments = moving(2, 0, 2 * FRAMES)
    path = write_clip(tmp_path / "c.mkv", fields(moments), codec="ffv1", pix_fmt="gray")
    frames, said = read(path)
    (sentence,) = said
    assert str(path) in sentence and "--deinterlace tff removes them" in sentence
    for frame, woven in zip(frames, fields(moments), strict=True):
        np.testing.assert_array_equal(frame, woven)
    assert read(path, deinterlace="off")[1] == []
    mended, said = read(path, deinterlace="tff")
    assert said == [] and len(mended) == FRAMES
    inner = slice(8, -8), slice(8, -8)
    wrong = [
        [np.abs(f.astype(int) - m)[inner].mean() for f, m in zip(some, moments[::2], strict=True)]
        for some in (mended, frames)
    ]
    assert np.mean(wrong[0][1:-1]) < np.mean(wrong[1][1:-1]) / 2


def test_progressive_clips_are_read_in_silence(tmp_path):
    for n, images in enumerate((pan(12, 1), moving(3, 1, 12), PROGRESSIVE["noisy lines"])):
        for codec, pix_fmt in (("ffv1", "gray"), ("libx264", "yuv420p")):
            path = write_clip(tmp_path / f"{n}{codec}.mkv", images, codec=codec, pix_fmt=pix_fmt)
            assert read(path)[1] == []


@pytest.mark.parametrize("name", ["testsrc2", "testsrc"])
def test_the_test_pictures_of_ffmpeg_have_no_combs(name):
    """Crisp figures that move by fractions of a line, which every engineer tries first."""
    av = pytest.importorskip("av")
    try:
        clip = av.open(f"{name}=size=160x120:rate=25:duration=2", format="lavfi")
    except (ValueError, av.error.FFmpegError):
        pytest.skip("this PyAV makes no test pictures")
    with clip:
        frames = [frame.to_ndarray(format="gray") for frame in clip.decode(video=0)]
    assert len(frames) == 50 and found(frames) is None
