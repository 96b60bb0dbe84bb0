"""Denoising by the prior, and the source model in front of the fusion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import shared
from torch import Tensor

import ddfm_fast
from ddfm_fast import FuseConfig, Fuser
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.doubts import about
from ddfm_fast.metrics import to_luma
from ddfm_fast.priors.load import denoiser_of, load_prior
from ddfm_fast.restore.denoise import channel_level, denoise, timestep_of, unclip
from ddfm_fast.restore.sources import SourceModel, SourceReport
from ddfm_fast.video.running import RunningNoise

PRIORS = ("embedded", "embedded-gray")


def scene(height: int = 96, width: int = 112) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    plane = 0.45 + 0.25 * np.sin(9 * rows) * np.cos(7 * columns) + 0.2 * (rows > columns)
    return plane.astype(np.float32)


def noisy(plane: np.ndarray, sigma: float, seed: int = 0) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal(plane.shape) * sigma / 255
    levels = np.round(np.clip(plane + noise, 0, 1) * 255) / 255
    return torch.from_numpy(levels.astype(np.float32))[None, None]


def psnr(a: Tensor, b: np.ndarray) -> float:
    return -10 * math.log10(float((a[0, 0] - torch.from_numpy(b)).square().mean()))


@pytest.mark.parametrize("name", PRIORS)
def test_the_timestep_matches_the_noise(name):
    prior = load_prior(name)
    assert prior.channels == (1 if "gray" in name else 3)
    if prior.channels == 3:
        found = [timestep_of(prior, channel_level(prior, sigma)) for sigma in (5, 10, 25, 50)]
        assert found == pytest.approx([17, 38, 100, 190], abs=2)
    else:
        assert channel_level(prior, 127.5) == 1


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("sigma, gain", [(10, 6.5), (25, 9.5)])
def test_one_evaluation_gains(name, sigma, gain):
    clean = scene()
    spoiled = noisy(clean, sigma)
    done = denoise(load_prior(name), spoiled, sigma, seed=3)
    assert psnr(done, clean) > psnr(spoiled, clean) + gain
    assert done.shape == spoiled.shape


def test_gains_on_infrared():
    """The gray network gains enough on average over all pictures, and more than the color one."""
    files = sorted(shared("data/ivf/ir").iterdir())
    totals = {(name, sigma): 0.0 for name in PRIORS for sigma in (10, 25)}
    for number, file in enumerate(files):
        luma = to_luma(read_image(file)).numpy()
        top, left = (luma.shape[0] - 96) // 2, (luma.shape[1] - 128) // 2
        clean = (luma[top : top + 96, left : left + 128] / 255).astype(np.float32)
        for name, sigma in totals:
            spoiled = noisy(clean, sigma, number)
            done = denoise(load_prior(name), spoiled, sigma, seed=0)
            totals[name, sigma] += (psnr(done, clean) - psnr(spoiled, clean)) / len(files)
    assert totals["embedded-gray", 10] > 7.5 and totals["embedded-gray", 25] > 11
    assert all(totals["embedded-gray", s] > totals["embedded", s] for s in (10, 25))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (96, 112)])
@pytest.mark.parametrize("draws", [1, 4])
def test_any_size_deterministic_and_finite(size, draws):
    plane = noisy(scene(*size), 20)
    for name in PRIORS:
        first, again = (denoise(load_prior(name), plane, 20, seed=7, draws=draws) for _ in range(2))
        assert torch.equal(first, again) and torch.isfinite(first).all()
        assert first.min() >= 0 and first.max() <= 1


def test_clipped_noise_leaves_no_bias():
    dark = np.full((96, 96), 0.0, np.float32)
    dark[40:56, 40:56] = 0.5
    spoiled = noisy(dark, 25)
    done = denoise(load_prior("embedded-gray"), spoiled, 25, seed=0)
    assert done[0, 0, :30].mean() < 0.7 * spoiled[0, 0, :30].mean()
    plane = torch.linspace(0.3, 0.7, 4096).view(64, 64)
    assert unclip(plane, plane, 0.1) is plane  # no value is at an end of the range


def test_what_is_clean_comes_back_as_it_is():
    plane = torch.from_numpy(scene())[None, None]
    model = SourceModel(load_prior("embedded"), FuseConfig(denoise="auto"))
    ir, vis, reports = model(plane, plane * 0.5, seed=0)
    assert ir is plane and torch.equal(vis, plane * 0.5)
    assert reports == [{"ir": SourceReport(), "vis": SourceReport()}]


def test_each_source_by_its_own_rule():
    plane = torch.from_numpy(scene())[None, None]
    config = FuseConfig(denoise={"ir": 12, "vis": "off"}, draws=2)
    ir, vis, (report,) = SourceModel(load_prior("embedded"), config)(plane, plane, seed=0)
    assert report["ir"].sigma == 12 and report["ir"].evaluations == 2
    assert report["vis"] == SourceReport() and vis is plane and not torch.equal(ir, plane)


def test_a_batch_gives_what_each_image_gives_alone():
    ir = torch.cat([noisy(scene(), sigma, n) for n, sigma in enumerate((0, 15, 30))])
    model = SourceModel(load_prior("embedded-gray"), FuseConfig(denoise="auto"))
    together = model(ir, ir, seed=0)
    for n in range(3):
        alone = model(ir[n : n + 1], ir[n : n + 1], seed=0)
        assert torch.equal(alone.ir[0], together.ir[n])
        assert alone.reports[0] == together.reports[n]


def test_the_gray_network_stands_in_for_the_embedded_one_only():
    embedded = load_prior("embedded")
    assert denoiser_of(embedded).name == "embedded-gray"
    own = load_prior(lambda x, t: torch.zeros_like(x))
    assert denoiser_of(own) is own
    ddfm_fast.fuse(scene(), 1 - scene(), prior="embedded-gray", preset="fast", device="cpu")


def test_reports_say_what_was_done():
    clean = scene()
    spoiled = noisy(clean, 20)[0, 0].numpy()
    found: list = []
    fuser = Fuser(preset="balanced", device="cpu")
    fuser([clean, spoiled], [clean.T.copy().T * 0.5, clean * 0.5], report=found)
    assert [r.evaluations for r in found] == [0, 2] and [r.steps for r in found] == [0, 0]
    assert found[1].ir.sigma == pytest.approx(20, rel=0.1) and found[1].vis.sigma == 0
    assert found[1].to_dict()["ir"]["evaluations"] == 2
    assert found[0].images == "photographic"


BAD = [
    ({"denoise": -1}, 'denoise is -1; expected "auto", "off", or σ from 0 to 100'),
    ({"denoise": float("nan")}, "denoise is nan"),
    ({"denoise": 101}, "denoise is 101"),
    ({"denoise": "strong"}, "denoise is 'strong'"),
    ({"denoise": True}, "denoise is True"),
    ({"denoise": {"infrared": 3}}, "expected the keys 'ir', 'vis' or both"),
    ({"denoise": {}}, "denoise is {}; expected the keys"),
    ({"denoise": {"ir": -3}}, r"denoise\['ir'\] is -3"),
    ({"images": "x"}, "images is 'x'; expected one of auto, photographic, functional"),
]


@pytest.mark.parametrize("options, text", BAD)
def test_bad_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Fuser(device="cpu", **options)


def test_zero_is_off():
    assert FuseConfig(denoise=0).denoise == "off"
    assert FuseConfig(denoise={"ir": 0}).noise_levels == {"ir": "off", "vis": "off"}
    hash(FuseConfig(denoise={"ir": "auto"}))


@pytest.mark.parametrize(
    "ir, text",
    [(np.zeros((40, 40), np.uint8), "ir is black everywhere"), (None, "are the same picture")],
)
def test_what_is_surely_not_meant_gets_a_sentence(ir, text):
    vis = (scene(40, 40) * 255).astype(np.uint8)
    with pytest.warns(UserWarning, match=text):
        fused = ddfm_fast.fuse(vis if ir is None else ir, vis, device="cpu")
    assert fused.std() > 10


@pytest.mark.parametrize("value", [0, 255])
def test_saturated_noise_and_black_are_finite(value):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (48, 56), np.uint8)
    flat = np.full_like(noise, value)
    with pytest.warns(UserWarning, match="everywhere"):
        assert ddfm_fast.fuse(noise, flat, device="cpu").shape == noise.shape
    assert ddfm_fast.fuse(noise, noise[::-1].copy(), device="cpu").shape == noise.shape


def test_a_source_of_noise_alone_gets_a_sentence():
    rng = np.random.default_rng(0)
    vis = (scene(120, 140) * 255).astype(np.uint8)
    for noise in (
        rng.integers(0, 256, vis.shape, np.uint8),
        np.clip(128 + 8 * rng.standard_normal(vis.shape), 0, 255).round().astype(np.uint8),
    ):
        with pytest.warns(UserWarning, match="ir is almost only noise.*pass denoise"):
            assert ddfm_fast.fuse(noise, vis, device="cpu").std() > 20


def test_a_faint_picture_in_noise_gets_none(recwarn):
    faint = noisy(0.4 + 0.2 * scene(120, 140), 25)[0, 0].numpy()
    ddfm_fast.fuse(faint, scene(120, 140)[::-1].copy(), device="cpu")
    assert not recwarn.list


def test_a_callback_is_told_about_the_sources():
    seen = []
    fuser = Fuser(
        preset=FuseConfig(steps=2, start=20, variant="gradient", psi=5.0, denoise="auto"),
        device="cpu",
    )
    fuser(noisy(scene(), 20)[0, 0].numpy(), scene() * 0.5, callback=seen.append)
    assert [info.reports[0].ir.evaluations for info in seen] == [1, 1]
    assert seen[0].reports[0].steps == 2 and seen[0].reports[0].vis == SourceReport()


def test_a_videos_estimate_is_steady():
    running = RunningNoise()
    levels = [running(noisy(scene(), 20, n)) for n in range(24)]
    sigmas = [level.sigma for level in levels]
    assert all(abs(s - 20) < 2 for s in sigmas) and np.ptp(sigmas[8:]) < 0.5
    flickering = RunningNoise()
    found = [flickering(noisy(scene(), 20 if n == 5 else 0, n)).sigma for n in range(12)]
    assert not any(found)


@pytest.mark.parametrize("before, after", [(0, 25), (25, 0), (10, 40)])
def test_a_jump_of_the_noise_is_followed_within_a_dozen_frames(before, after):
    running = RunningNoise()
    for n in range(24):
        running(noisy(scene(), before, n))
    found = [running(noisy(scene(), after, 100 + n)).sigma for n in range(12)]
    assert found[-1] == pytest.approx(after, rel=0.1)


def test_a_warning_names_the_picture_and_the_callers_line():
    vis = (scene(40, 40) * 255).astype(np.uint8)
    fuser = Fuser(preset="instant", device="cpu")
    sentence = r"^a, b: ir\[1\] is black everywhere"
    with pytest.warns(ddfm_fast.DDFMWarning, match=sentence) as found, about(["a", "b"]):
        fuser(np.stack([vis[::-1], vis * 0]), np.stack([vis, vis]))
    assert found[0].filename == __file__


def test_steps_that_are_skipped_get_a_sentence():
    with pytest.warns(ddfm_fast.DDFMWarning, match="steps is 7, .* are skipped"):
        Fuser(preset="balanced", steps=7, device="cpu")
