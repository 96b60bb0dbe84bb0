"""Noisy frames, much of which the previous frame shows: what is reused, and what never is."""

import numpy as np
import pytest
import torch

from ddfm_fast.restore.noise_level import NoiseLevel
from ddfm_fast.video.motion import Motion
from ddfm_fast.video.reuse import BLOCK, REUSES, KeptClean, Part, parts_of

SIGMA = 12.0
LEVEL = NoiseLevel(sigma=SIGMA, plain=SIGMA, gain=0.0, offset=0.0)
STILL = Motion(None, False)
SIZE = 160, 240


def scene(shift=0):
    """Draw a smooth picture [1, 1, H, W] in [0, 1] that moves to the right."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    values = 0.5 + 0.2 * np.sin((x - shift) / 17) + 0.2 * np.cos(y / 11 + (x - shift) / 40)
    return torch.tensor(values, dtype=torch.float32)[None, None]


def noisy(clean, seed, level=LEVEL):
    n = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    variance = level.gain * 255 * clean + (level.offset if level.gain else level.sigma**2)
    return (clean + n * variance.sqrt() / 255).clamp(0, 1)


class Oracle:
    """Takes the noise out by knowing the picture; remembers the sizes of its calls."""

    def __init__(self, frame, clean):
        self.frame, self.clean, self.sizes = frame, clean, []

    def __call__(self, part):
        self.sizes.append(tuple(part.shape[-2:]))
        top, left = self.place(part)
        height, width = part.shape[-2:]
        return self.clean[..., top : top + height, left : left + width]

    def place(self, part):
        height, width = part.shape[-2:]
        found = (self.frame[0, 0] == part[0, 0, 0, 0]).nonzero().tolist()
        for top, left in found:
            piece = self.frame[..., top : top + height, left : left + width]
            if torch.equal(piece, part):
                return top, left
        raise AssertionError("not a part of the frame")


def run(kept, clean, seed, motion=STILL, level=LEVEL):
    """Pass a frame through ``kept``; return the picture and the sizes that were denoised."""
    frame = noisy(clean, seed, level)
    oracle = Oracle(frame, clean)
    found, calls = kept(motion, frame, level, oracle)
    assert calls == len(oracle.sizes)
    return found, oracle.sizes


def test_a_still_scene_is_denoised_once_in_so_many_frames():
    kept = KeptClean()
    wholes = [run(kept, scene(), seed)[1] for seed in range(2 * (REUSES + 1))]
    cycle = [[SIZE]] + [[]] * REUSES
    assert wholes == 2 * cycle


def test_what_appears_is_denoised_at_once_and_alone():
    kept, clean = KeptClean(), scene()
    run(kept, clean, 0)
    changed = clean.clone()
    changed[..., 60:84, 100:130] += 0.25
    found, sizes = run(kept, changed, 1)
    assert len(sizes) == 1 and sizes[0] != SIZE
    assert float((found - changed).abs().max()) * 255 < 1
    gone, sizes = run(kept, clean, 2)
    assert len(sizes) == 1
    assert float((gone - clean).abs().max()) * 255 < 1, "no ghost"


def test_a_dim_change_of_a_wide_part_is_found():
    """0.65 of the noise's standard deviation, over 48 x 48 pixels."""
    kept, clean = KeptClean(), scene()
    run(kept, clean, 0)
    changed = clean.clone()
    changed[..., 48:96, 80:128] += 0.65 * SIGMA / 255
    found, sizes = run(kept, changed, 1)
    assert sizes
    middle = (..., slice(56, 88), slice(88, 120))
    assert float((found[middle] - changed[middle]).abs().max()) * 255 < 1


def test_what_moves_is_carried_along_the_flow():
    kept = KeptClean()
    run(kept, scene(), 0)
    flow = np.zeros((*SIZE, 2), np.float32)
    flow[..., 0] = -5.0
    found, sizes = run(kept, scene(5), 1, Motion(flow, False))
    assert all(size != SIZE for size in sizes)
    error = (found - scene(5)).abs() * 255
    assert float(error[..., 32:-32].max()) < 1 and float(error.max()) < SIGMA


def test_a_wrong_flow_is_not_believed():
    kept = KeptClean()
    run(kept, scene(), 0)
    flow = np.full((*SIZE, 2), 9.0, np.float32)
    found, sizes = run(kept, scene(), 1, Motion(flow, False))
    assert sizes == [] and torch.equal(found, scene())


@pytest.mark.parametrize(
    "second",
    [
        pytest.param((scene(), Motion(None, True)), id="cut"),
        pytest.param((1 - scene(), STILL), id="another picture"),
    ],
)
def test_after_a_cut_or_in_another_picture_all_is_denoised(second):
    kept = KeptClean()
    run(kept, scene(), 0)
    clean, motion = second
    assert run(kept, clean, 1, motion)[1] == [SIZE]


def test_a_frame_of_another_size_starts_anew():
    kept = KeptClean()
    run(kept, scene(), 0)
    smaller = scene()[..., :100, :90]
    assert run(kept, smaller, 1)[1] == [(100, 90)]


@pytest.mark.parametrize("dark", [0.0, 0.02])
def test_noise_that_black_cuts_off_is_no_change(dark):
    clean = scene()
    clean[..., :80, :] = dark
    kept = KeptClean()
    run(kept, clean, 0)
    assert run(kept, clean, 1)[1] == []


def test_noise_that_grows_with_brightness_is_no_change():
    level = NoiseLevel(sigma=12.0, plain=12.0, gain=1.2, offset=4.0)
    kept = KeptClean()
    run(kept, scene(), 0, level=level)
    assert run(kept, scene(), 1, level=level)[1] == []


def test_an_estimate_far_too_low_reuses_nothing():
    """Noise three times as strong as believed: all is denoised, as without any reuse."""
    low, kept = LEVEL._replace(sigma=SIGMA / 3), KeptClean()
    for seed in range(3):
        frame = noisy(scene(), seed)
        oracle = Oracle(frame, scene())
        kept(STILL, frame, low, oracle)
        assert oracle.sizes == [SIZE]


def test_parts_cover_what_changed_and_do_not_meet():
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = np.zeros((30, 40), bool)
        for _ in range(rng.integers(1, 5)):
            y, x = rng.integers(0, 28), rng.integers(0, 38)
            changed[y : y + 2, x : x + 3] = True
        parts = parts_of(changed, 30 * BLOCK - 3, 40 * BLOCK - 5)
        if parts is None:
            continue
        covered = np.zeros((30 * BLOCK - 3, 40 * BLOCK - 5), int)
        for part in parts:
            assert min(part.bottom - part.top, part.right - part.left) >= 16
            covered[part.top : part.bottom, part.left : part.right] += 1
        pixels = changed.repeat(BLOCK, 0).repeat(BLOCK, 1)[: len(covered), : covered.shape[1]]
        assert covered.max() == 1 and covered[pixels].min() == 1


def test_nothing_changed_has_no_parts_and_everything_is_the_whole():
    assert parts_of(np.zeros((9, 9), bool), 72, 72) == []
    assert parts_of(np.ones((9, 9), bool), 72, 72) is None
    assert Part(0, 4, 0, 4).meets(Part(3, 5, 3, 5)) and not Part(0, 4, 0, 4).meets(Part(4, 5, 0, 4))
