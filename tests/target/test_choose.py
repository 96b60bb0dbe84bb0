"""The closed form of the variant ``saliency``: its parts, its limits and its invariants."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import ddfm_fast
from ddfm_fast.datasets.demo import asset
from ddfm_fast.target import pyramid
from ddfm_fast.target.choose import PHOTOGRAPHIC, choose
from ddfm_fast.target.terms import conflict, salience, sky

SIDES = [(3, 5), (16, 16), (17, 33), (63, 101)]
SIZES = [(16, 16), (17, 33), (63, 101), (96, 64), (30, 200)]


def scene(height: int, width: int, seed: int = 0, count: int = 1) -> Tensor:
    """Draw smooth random pictures with edges, [N, 1, H, W] in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    planes = [
        0.5
        + 0.3 * np.sin(rng.uniform(4, 20) * rows + rng.uniform(4, 20) * columns)
        + 0.2 * (rows > columns * rng.uniform(0.5, 2))
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(planes)[:, None]).float().clamp(0, 1)


@pytest.mark.parametrize("size", SIDES)
def test_opencv_and_the_plain_filters_agree(size, monkeypatch):
    x = torch.rand(size)
    half = pyramid.down(x)
    fast = pyramid.smooth(x), half, pyramid.up(half, *size)
    monkeypatch.setattr(pyramid, "_by_opencv", lambda _x: False)
    plain = pyramid.smooth(x), pyramid.down(x), pyramid.up(half, *size)
    for got, wanted in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_bands_add_up():
    x = torch.rand(61, 83)
    *fine, out = pyramid.bands(pyramid.down_times(x, 3))
    for band in reversed(fine):
        out = pyramid.up(out, *band.shape) + band
    torch.testing.assert_close(out, x, rtol=0, atol=1e-6)


def test_smoothing_has_the_deviation_of_one_pixel():
    x = torch.zeros(41, 41)
    x[20, 20] = 1
    places = torch.arange(41.0) - 20
    assert pyramid.smooth(x).sum(0) @ places.square() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_finite_in_range_and_alone_as_in_a_batch(size, functional):
    ir, vis = scene(*size, 1, 3), scene(*size, 2, 3)
    fused = choose(ir, vis, [functional] * 3)
    assert fused.shape == ir.shape and fused.min() >= 0 and fused.max() <= 1
    for n in range(3):
        alone = choose(ir[n : n + 1], vis[n : n + 1], [functional])
        assert torch.equal(alone[0], fused[n])
    assert torch.equal(choose(ir, vis, [functional] * 3), fused)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_source_is_finite_and_the_other_is_kept(value):
    vis = scene(64, 80, 3)
    flat = torch.full_like(vis, value)
    for fused in (choose(flat, vis), choose(vis, flat)):
        assert torch.isfinite(fused).all()
        assert np.corrcoef(fused.flatten(), vis.flatten())[0, 1] > 0.9
    assert torch.isfinite(choose(flat, flat)).all()


def test_black_in_both_stays_black():
    ir, vis = scene(64, 64, 1), scene(64, 64, 2)
    ir[..., :20, :] = vis[..., :20, :] = 0
    assert choose(ir, vis)[..., :20, :].max() == 0


def test_a_hot_target_stays_white_and_a_lane_line_stays():
    vis = torch.full((1, 1, 128, 160), 0.45)
    vis[..., 90:96, 20:140] = 0.8
    ir = torch.full_like(vis, 0.3)
    ir[..., 40:60, 70:78] = 1.0
    fused = choose(ir, vis)[0, 0]
    assert fused[45:55, 72:76].min() > fused[20:30, 20:60].mean() + 0.3
    assert fused[92:94, 40:120].mean() > fused[100:110, 40:120].mean() + 0.1


def test_infrared_texture_is_held_back_in_a_flat_bright_sky(monkeypatch):
    texture = torch.from_numpy(np.random.default_rng(0).normal(0, 0.01, (1, 1, 128, 160))).float()
    vis = torch.full_like(texture, 0.9)
    with_sky = choose(0.3 + texture, vis)
    changed = dataclasses.replace(PHOTOGRAPHIC, sky_share=0.0, sky_coring=0.0, sky_base=0.0)
    monkeypatch.setattr("ddfm_fast.target.choose.PHOTOGRAPHIC", changed)
    assert with_sky.std() < 0.7 * choose(0.3 + texture, vis).std()


def test_functional_pairs_stay_near_the_mean():
    ir, vis = scene(96, 96, 5), scene(96, 96, 6)
    mean = (ir + vis) / 2
    near, far = (float((choose(ir, vis, [f]) - mean).abs().mean()) for f in (True, False))
    assert near < 0.02 < far


def test_salience_is_low_for_the_common_gray():
    x = torch.full((32, 32), 0.3)
    x[:4, :4] = 0.9
    s = salience(x)
    assert s[20, 20] == 0 and s[0, 0] == pytest.approx(1)


def test_conflict_is_where_sources_are_opposites():
    columns = torch.linspace(0, 30, 160).sin().mul(0.2).add(0.5).expand(128, 160).contiguous()
    opposed, pick = conflict(columns, 1 - 0.4 * columns)
    assert opposed[8:-8, 8:-8].mean() > 0.9 and pick[4:-4, 4:-4].mean() > 0.9
    agreed, _ = conflict(columns, columns)
    assert agreed.max() == 0


def test_two_contrasts_of_a_brain_keep_gray_and_white_apart():
    """T1 has white matter brighter by 39 gray levels, PD darker by 28: a mean would hide it."""
    t1, pd = (asset(f"brain_mri_{name}.png").squeeze() for name in ("t1", "pd"))
    smooth = cv2.GaussianBlur(t1, (0, 0), 1)
    rows, columns = np.mgrid[:217, :181]
    inside = ((rows - 108) / 75) ** 2 + ((columns - 90) / 60) ** 2 < 1
    white, gray = inside & (smooth > 132) & (smooth < 146), inside & (smooth > 88) & (smooth < 108)

    def contrast(image: np.ndarray) -> float:
        return float(image[white].mean()) - float(image[gray].mean())

    assert contrast(t1) > 38 and contrast(pd) < -28
    assert contrast(ddfm_fast.fuse(t1, pd, preset="instant", device="cpu")) > 0.58 * contrast(t1)


def test_a_days_sky_is_no_hole():
    """Trees hot before a cold sky, dark before a bright one: the sky stays bright between them."""
    columns = np.mgrid[:160, :240][1] % 60
    leaves = np.random.default_rng(0).normal(0.6, 0.25, (160, 240)).clip(0, 1)
    ir, vis = (
        torch.from_numpy(np.where(columns < 24, tree, behind).astype(np.float32))[None, None]
        for tree, behind in ((leaves, 0.08), (0.25, 0.85))
    )
    fused = choose(ir, vis)[0, 0].numpy()
    assert fused[(columns > 30) & (columns < 54)].mean() > 0.7  # without: 0.666


def test_sky_is_bright_and_flat():
    v = torch.full((64, 64), 0.9)
    v[:, 32:] = 0.3
    found = sky(v - 0.5, (v - 0.5).square())
    assert found[32, 8] > 0.95 and found[32, 56] < 0.01


def test_terms_change_what_they_say(monkeypatch):
    """Each number matters: if it is changed, so is the picture."""
    ir, vis = scene(128, 128, 7), 1 - 0.5 * scene(128, 128, 7)
    vis[..., 64:, :] = 0.9
    wanted = choose(ir, vis)
    for name, value in dataclasses.asdict(PHOTOGRAPHIC).items():
        factor = 3.0 if name == "contrast" else 0.5
        changed = dataclasses.replace(PHOTOGRAPHIC, **{name: factor * value})
        monkeypatch.setattr("ddfm_fast.target.choose.PHOTOGRAPHIC", changed)
        assert not torch.equal(choose(ir, vis), wanted), name
