"""The temporal engine: steady where the sources are, free of the past where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from clips import pan, quick_fuser, texture
from conftest import shared

from ddfm_fast import FuseConfig, Fuser, metrics
from ddfm_fast.datasets.demo import asset
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.stretch import own_limits
from ddfm_fast.metrics import temporal as steadiness
from ddfm_fast.video import (
    VIDEO_PRESETS,
    TemporalFuser,
    VideoPreset,
    fuse_stream,
    fuse_streams,
    reuse,
)
from ddfm_fast.video.motion import Motion, MotionFinder, correlation, gray8
from ddfm_fast.video.running import RunningScale
from ddfm_fast.video.trust import change, moved

LATE = FuseConfig(
    variant="gradient", steps=3, start=20, spacing=1.5, psi=5.0, eta=10.0, stretch="percentile"
)
LOOPS = (
    VideoPreset("3 late steps per frame", LATE, polish=4, trust=1.5),
    VideoPreset("1 late step per frame", replace(LATE, steps=1), polish=4),
)
"""presets with reverse steps, which start from the previous frame"""
WARM = ("balanced", "realtime", *LOOPS)
CUT = Motion(None, True)


def clip(frames: int, seed: int = 0, **kwargs) -> list[tuple]:
    return list(
        zip(pan(frames, seed, **kwargs), pan(frames, seed + 50, channels=3, **kwargs), strict=True)
    )


def fused(pairs, preset, fuser=None, **reading) -> list[np.ndarray]:
    return list((fuser or quick_fuser()).stream(pairs, preset=preset, **reading))


# A still scene


@pytest.mark.parametrize("preset", WARM)
def test_still_scene_is_constant(preset):
    """100 equal frames with the network that comes with the package: one gray level at most."""
    still = [asset(f"brain_mri_{name}.png")[70:110, 70:110] for name in ("t1", "pd")]
    results = np.stack(fused([tuple(still)] * 100, preset, Fuser(device="cpu"))).astype(int)
    assert np.ptp(results, axis=0).max() <= 1
    assert results.std() > 10  # and it is a picture


def test_still_scene_with_noise_does_not_creep():
    """Sensor noise of 2 gray levels for 100 frames: less of it, and the mean picture stays."""
    rng = np.random.default_rng(0)
    still = [texture(48, 48, seed).astype(float) * 0.8 + 20 for seed in (1, 2)]
    noisy = [
        tuple(np.rint(p + rng.normal(0, 2, p.shape)).clip(0, 255).astype(np.uint8) for p in still)
        for _ in range(100)
    ]
    loop, kept = (kept_lumas(noisy, p, Fuser(device="cpu")) for p in (LOOPS[1], "realtime"))
    contrast = kept[-1].std() / loop[-1].std()
    for lumas, most in ((loop, 0.35), (kept, 0.35 * contrast)):
        assert np.abs(lumas[10:50].mean(0) - lumas[-40:].mean(0)).mean() < most
    no_past = replace(VIDEO_PRESETS["realtime"], trust=1e-3)
    by_frame = kept_lumas(noisy[:30], no_past, Fuser(device="cpu"))
    assert kept[20:].std(0).mean() < 0.85 * by_frame.std(0).mean()


def kept_lumas(pairs, preset, fuser=None) -> np.ndarray:
    """Return the fused luma of every frame before the output scale, in gray levels: [T, H, W]."""
    engine = TemporalFuser(fuser or quick_fuser(), preset)
    stream, find, found = engine.open(), MotionFinder(), []
    for ir, vis in pairs:
        engine.fuse(stream, ir, vis, find(ir, vis))
        found.append(stream.kept.fused.numpy() * 255)
    return np.stack(found)


def _one():
    return replace(LATE, steps=1)


# What moves, appears or was hidden


@pytest.mark.parametrize("preset", WARM)
def test_what_moves_leaves_no_ghost(preset):
    """Where a bright block has been and gone, the picture is that of a scene without it."""
    ir, vis = texture(64, 96, 3) // 4 + 40, texture(64, 96, 4) // 2 + 60
    frames = []
    for n in range(12):
        moving = ir.copy()
        moving[24:40, 4 + 7 * n : 16 + 7 * n] = 250
        frames.append((moving, vis))
    last, alone = (kept_lumas(pairs, preset)[-1] for pairs in (frames, frames[-1:]))
    passed = np.s_[20:44, 4:60]
    assert alone.std() > 10
    assert np.abs(last - alone)[passed].mean() < 0.5
    assert np.abs(last - alone).max() < 4


def test_a_pan_is_as_sharp_as_its_frames_alone():
    pairs = clip(8, step=3)
    warm = kept_lumas(pairs, "realtime")
    alone = kept_lumas(pairs[-1:], "realtime")[0]
    assert np.abs(warm[-1] - alone).mean() < 0.5
    assert np.abs(warm[-1] - warm[-2]).mean() > 5  # the pan does move


@pytest.mark.parametrize("preset, planes", [(LOOPS[0], 3), ("balanced", 2)])
def test_kept_pixels_are_kept_exactly(preset, planes):
    """Sources and, in loops, fused luma; the closed form of kept sources depends on every pixel."""
    engine = TemporalFuser(quick_fuser(), preset)
    stream = engine.open()
    ir, vis = texture(32, 48, 1), texture(32, 48, 2)
    engine.fuse(stream, ir, vis, CUT)
    before = torch.stack(stream.kept)
    changed = ir.copy()
    changed[:, 24:] = 255 - changed[:, 24:]
    engine.fuse(stream, changed, vis, Motion(None, False))
    kept = torch.stack(stream.kept)
    assert torch.equal(kept[:planes, :, :22], before[:planes, :, :22])
    assert not torch.equal(kept[2, :, 26:], before[2, :, 26:])


def test_slow_change_is_followed():
    """A quarter gray level per frame rounds to no change most of the time, and still adds up."""
    ir, vis = texture(32, 32, 1) // 2, texture(32, 32, 2) // 2
    fade = [np.rint(ir + n / 4).astype(np.uint8) for n in range(120)]
    engine = TemporalFuser(quick_fuser(), "realtime")
    stream, find = engine.open(), MotionFinder()
    for frame in fade:
        engine.fuse(stream, frame, vis, find(frame, vis))
    at_once = engine.open()
    engine.fuse(at_once, fade[-1], vis, CUT)
    behind = (stream.kept.fused - at_once.kept.fused).abs().mean() * 255
    assert behind < 1.5


# Scene cuts


def test_cut_starts_cold():
    """After a cut a stream is what it would be from there, bit for bit, scale included."""
    first, second = clip(4, seed=0), clip(4, seed=20)
    for preset in ("exact", *WARM):
        fuser = quick_fuser(steps=4)
        joined = fused(first + second, preset, fuser)
        alone = fused(second, preset, fuser)
        for a, b in zip(joined[4:], alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_cuts_are_found_and_nothing_else():
    first, second = clip(5, seed=0), clip(5, seed=20)
    flash = [(np.minimum(a.astype(int) + 60, 255).astype(np.uint8), b) for a, b in first[-1:]]
    find = MotionFinder()
    cuts = [find(*pair).cut for pair in first + flash + second]
    assert cuts == [True, *[False] * 5, True, *[False] * 4]


def test_cuts_between_real_scenes():
    """Every step of the sequence is one scene, every step between unrelated pairs a cut."""
    folder = shared("data/video/0111_1753")
    names = sorted(p.name for p in (folder / "ir").iterdir())
    find = MotionFinder()
    cuts = [find(*(read_image(folder / s / n) for s in ("ir", "vi"))).cut for n in names]
    assert cuts == [True] + [False] * 19
    pairs = shared("data/ivf")
    find, cuts = MotionFinder(), []
    for path in sorted((pairs / "ir").iterdir()):
        images_ = [read_image(path), read_image(next((pairs / "vi").glob(f"{path.stem}.*")))]
        import cv2

        cuts.append(find(*(cv2.resize(p, (320, 240)) for p in images_)).cut)
    assert sum(cuts) >= len(cuts) - 1


def test_motion_of_a_pan():
    pairs = clip(2, step=3)
    find = MotionFinder()
    assert find(*pairs[0]) == CUT
    flow = find(*pairs[1]).flow
    assert flow.shape == (64, 64, 2) and flow.dtype == np.float32
    inside = flow[16:-16, 16:-16]
    assert abs(np.median(inside[..., 0]) - 3) < 0.3 and abs(np.median(inside[..., 1])) < 0.3
    before, here = (torch.from_numpy(ir / 255)[None].float() for ir, _ in pairs)
    error = (moved(before, torch.from_numpy(flow)) - here).abs()[0, 8:-8, 8:-8].mean() * 255
    assert error < 3 < (before - here).abs().mean() * 255


def test_correlation_and_gray():
    a = texture(40, 60, 1)
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, 255 - a) == pytest.approx(-1, abs=0.01)
    assert correlation(a, a // 2 + 30) > 0.99
    flat = np.full((40, 60), 7, np.uint8)
    assert correlation(flat, flat) == 1 and correlation(flat, a) == 0
    rgb = np.dstack([a] * 3)
    for image in (a, a[..., None], rgb, rgb.astype(np.uint16) * 257, rgb / 255, torch.tensor(a)):
        assert np.abs(gray8(image, "ir").astype(int) - a).max() <= 1


def test_change_is_the_worse_source_in_gray_levels():
    now = torch.zeros(2, 16, 16)
    kept = torch.stack([torch.full((16, 16), 2 / 255), torch.full((16, 16), 5 / 255)])
    found = change(now, torch.cat([kept, kept[:1]]))
    torch.testing.assert_close(found, torch.full((1, 16, 16), 5.0))


# The scale


def test_scale_of_the_first_frame_is_the_image_presets():
    limits = own_limits(torch.rand(1, 1, 40, 50) * 0.5 + 0.2, "percentile")
    assert torch.equal(RunningScale()(limits), limits)
    assert RunningScale()(None) is None


def test_scale_is_a_running_mean():
    scale = RunningScale()
    low, high = torch.tensor([0.0, 0.5]), torch.tensor([0.2, 0.7])
    for _ in range(49):
        scale(low)
    torch.testing.assert_close(scale(high), torch.tensor([0.2 / 50, 0.5 + 0.2 / 50]))
    for _ in range(400):
        scale(high)
    torch.testing.assert_close(scale.limits, high, atol=1e-3, rtol=0)


def test_a_hot_spot_does_not_make_the_rest_flicker():
    """A lamp that goes on and off in the corner leaves the rest of the picture alone."""
    ir, vis = texture(64, 64, 1) // 3 + 60, texture(64, 64, 2) // 3 + 60
    lamp = []
    for n in range(30):
        now = vis.copy()
        now[:8, :8] = 255 if n % 2 else now[:8, :8]
        lamp.append((ir, now))
    rest = np.s_[10:, 24:, 24:]
    steady = np.stack(fused(lamp, "realtime")).astype(float)[rest]
    by_image = np.stack([quick_fuser(preset="fast")(*pair) for pair in lamp]).astype(float)[rest]
    assert np.abs(np.diff(steady, axis=0)).mean() < 0.3 * np.abs(np.diff(by_image, axis=0)).mean()


# Presets, batches, containers


def test_exact_is_the_image_preset_frame_by_frame():
    fuser = quick_fuser(preset="official", steps=5, stretch="none")
    pairs = clip(3)
    for one, pair in zip(fused(pairs, "exact", fuser), pairs, strict=True):
        np.testing.assert_array_equal(one, fuser(*pair))


def test_evaluations_a_frame():
    pairs = clip(6)
    rows = (
        ("exact", 5, 5),
        ("balanced", 0, 0),
        ("realtime", 0, 0),
        (LOOPS[0], 9, 3),
        (LOOPS[1], 3, 1),
    )
    for preset, cold, warm in rows:
        engine = TemporalFuser(quick_fuser(steps=5), preset)
        stream, find = engine.open(), MotionFinder()
        for pair in pairs:
            engine.fuse(stream, *pair, find(*pair))
        assert engine.evaluations == cold + 5 * warm


def test_a_stream_denoises_as_its_fuser_was_told(monkeypatch):
    monkeypatch.setattr(reuse, "REUSES", 0)
    rng = np.random.default_rng(0)
    pairs = [(p + 12 * rng.standard_normal(p.shape), v) for p, v in clip(3)]
    pairs = [(np.clip(p, 0, 255).round().astype(np.uint8), v) for p, v in pairs]
    rows = (({}, 3), ({"denoise": "off"}, 0), ({"denoise": {"vis": 9}}, 3), ({"denoise": 5}, 6))
    for options, evaluations in rows:
        engine = TemporalFuser(Fuser(device="cpu", **options), "balanced")
        stream, find = engine.open(), MotionFinder()
        for pair in pairs:
            engine.fuse(stream, *pair, find(*pair))
        assert engine.evaluations == evaluations
        found = engine.found["ir"].means()
        wanted = {0: 0.0, 6: 5.0}.get(evaluations, 0.0 if "denoise" in options else 12.0)
        assert found["sigma"] == pytest.approx(wanted, rel=0.15)
        assert found["evaluations"] in (0.0, 1.0)


def test_a_stream_follows_a_configuration_too():
    pairs = clip(1)
    told = Fuser(preset=replace(FuseConfig.from_preset("fast"), denoise=7), device="cpu")
    assert TemporalFuser(told).config.noise_levels == {"ir": 7, "vis": 7}
    told = Fuser(device="cpu")
    assert TemporalFuser(told).config.denoise == "auto"
    assert TemporalFuser(told, "realtime").config.denoise == "off"
    told.config = replace(told.config, denoise="off", images="functional")
    engine = TemporalFuser(told)
    assert (engine.config.denoise, engine.config.images) == ("off", "functional")
    assert len(list(told.stream(pairs))) == 1


def test_prior_sees_the_same_noise_in_every_frame():
    seen = []

    def prior(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    prior.multiple = 1
    fuser = Fuser(prior=prior, device="cpu")
    still = clip(1)[0]
    fused([still] * 3, VideoPreset("", _one(), settle=0, trust=1e-6), fuser)
    assert len(seen) >= 3
    assert torch.equal(seen[-1], seen[-2])


def test_streams_come_out_as_they_would_alone():
    streams = [clip(3, seed=0), clip(5, seed=7), clip(4, seed=9, size=48)]
    fuser = quick_fuser(batch_size=2)
    together = list(fuse_streams(fuser, streams, preset="realtime"))
    assert len(together) == 5
    for n, pairs in enumerate(streams):
        column = [row[n] for row in together]
        assert all(image is None for image in column[len(pairs) :])
        alone = list(fuse_stream(fuser, pairs, preset="realtime"))
        for a, b in zip(column[: len(pairs)], alone, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_stream_of_every_container():
    ir, vis = clip(1)[0]
    base = fused([(ir, vis)] * 2, "realtime")[1]
    assert base.shape == vis.shape and base.dtype == np.uint8
    wide = fused([(ir.astype(np.uint16) * 257, vis.astype(np.uint16) * 257)] * 2, "realtime")[1]
    assert wide.dtype == np.uint16 and np.abs(wide / 257 - base).max() < 1
    tensors = (torch.from_numpy(ir), torch.from_numpy(vis))
    out = fused([tensors] * 2, "realtime")[1]
    assert isinstance(out, torch.Tensor) and np.array_equal(out.numpy(), base)
    gray = fused([(ir, vis)], "realtime", color=False)[0]
    assert gray.shape == (*vis.shape[:2], 1)


def test_stream_is_lazy_and_ends_when_closed():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield clip(1)[0]

    results = quick_fuser().stream(endless(), preset="realtime")
    for _ in range(3):
        next(results)
    results.close()
    count = len(taken)
    assert 3 <= count <= 7
    import time

    time.sleep(0.05)
    assert len(taken) == count


def test_errors_name_what_is_wrong():
    fuser = quick_fuser()
    with pytest.raises(ValueError, match="preset is 'fastest'; expected one of exact, balanced"):
        fuser.stream([], preset="fastest")
    ir, vis = clip(1)[0]
    with pytest.raises(ValueError, match="expected images of equal size"):
        list(fuser.stream([(ir[:32], vis)]))
    with pytest.raises(ValueError, match="one frame at a time"):
        list(fuser.stream([(np.stack([ir] * 2), np.stack([vis] * 2))]))

    def broken():
        yield ir, vis
        raise RuntimeError("camera unplugged")

    results = fuser.stream(broken(), preset="realtime")
    next(results)
    with pytest.raises(RuntimeError, match="camera unplugged"):
        next(results)
    for wrong in ({"polish": -1}, {"trust": 0}, {"settle": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(VIDEO_PRESETS["realtime"], **wrong)
    with pytest.raises(ValueError, match="start None"):
        VideoPreset("", FuseConfig())


# How steady it is


def test_flicker_counts_what_no_source_shows():
    ir, vis = np.zeros((2, 48, 48)), np.zeros((2, 48, 48))
    out = np.zeros((2, 48, 48))
    out[1] += 10
    ir[1, :24] += 4
    vis[1, :24] += 3
    scores = steadiness.compute(out, ir, vis)
    assert scores["flicker"].tolist() == [pytest.approx((6 + 10) / 2)]
    same = steadiness.compute(ir, ir, vis)
    assert same["flicker"].tolist() == [0]


def test_warped_error_follows_the_motion():
    frames = [f.astype(np.float64) for f in pan(4, 3, size=96, step=2)]
    exact = steadiness.compute(frames, frames, frames)["warped_error"]
    assert exact.shape == (3,) and float(exact.mean()) < 1.5
    swapped = [frames[n ^ 1] for n in range(4)]
    assert float(steadiness.compute(swapped, frames, frames)["warped_error"].mean()) > 5
    noise = np.random.default_rng(0).normal(0, 4, (4, 96, 96))
    shaky = [np.clip(f + n, 0, 255) for f, n in zip(frames, noise, strict=True)]
    assert float(steadiness.compute(shaky, frames, frames)["warped_error"].mean()) > 3


def test_steadiness_refuses_what_it_cannot_score():
    frames = [texture(32, 32, n) for n in range(3)]
    with pytest.raises(ValueError, match="fewer than 2"):
        steadiness.compute(frames[:1], frames[:1], frames[:1])
    with pytest.raises(ValueError, match="vis: ended after 2 frames"):
        steadiness.compute(frames, frames, frames[:2])
    with pytest.raises(ValueError, match="ir: got shape"):
        steadiness.compute(frames, [f[:16] for f in frames], frames)


def test_warm_start_is_steadier_and_as_good():
    """Measured on six frames of the real sequence at half size, with the real prior."""
    import cv2

    folder = shared("data/video/0111_1753")
    names = sorted(p.name for p in (folder / "ir").iterdir())[:6]
    pairs = [
        tuple(
            cv2.resize(read_image(folder / s / n), (192, 144), interpolation=cv2.INTER_AREA)
            for s in ("ir", "vi")
        )
        for n in names
    ]
    lumas = [[metrics.to_luma(image) for image in source] for source in zip(*pairs, strict=True)]
    fuser = Fuser(preset="fast", color=False, device="cpu")
    per_frame = [fuser(*pair)[..., 0] for pair in pairs]
    warm = [f[..., 0] for f in fused(pairs, "realtime", fuser)]
    before, after = (steadiness.compute(f, *lumas) for f in (per_frame, warm))
    for name in steadiness.NAMES:
        assert float(after[name].mean()) < 0.9 * float(before[name].mean())
    names = ["SCD", "VIF", "Qabf", "SSIM"]
    stacked = [torch.stack(source) for source in lumas]
    before, after = (metrics.compute(np.stack(f), *stacked, names=names) for f in (per_frame, warm))
    for name in names:
        assert float(after[name].mean()) > 0.98 * float(before[name].mean())
