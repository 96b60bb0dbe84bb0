"""Measures of a prior by itself: each is held against a prior whose answer is known."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.training import evaluate as ev
from ddfm_fast.priors.training import measures
from ddfm_fast.priors.training.diffusion import alphas_cumprod


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 7, 7, 3), dtype=np.uint8)
    return [cv2.resize(c, (70, 66), interpolation=cv2.INTER_CUBIC) for c in coarse]


def zero_prior():
    return load_prior(lambda x, _t: torch.zeros_like(x), {"multiple": 16})


def test_center_crops_to_the_multiple_and_the_side(images):
    assert measures.center(images[0], 16).shape == (1, 3, 64, 64)
    tile = measures.center(images[0], 16, side=40)
    assert tile.shape == (1, 3, 32, 32) and tile.min() >= -1 and tile.max() <= 1


def test_eps_loss_of_zero_is_the_noise_power(images):
    tiles = [measures.center(i, 16) for i in images]
    assert measures.eps_losses(zero_prior(), tiles, (5, 500)) == pytest.approx([1, 1], abs=0.05)


def test_noise_is_the_same_for_every_prior(images):
    x0 = measures.center(images[0], 16)
    for t in (5, 900):
        first, again = measures.noisy(x0, t, 1), measures.noisy(x0, t, 1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[1], measures.noisy(x0, t, 2)[1])


def test_x0_of_the_true_noise_is_the_image(images):
    x0 = measures.center(images[0], 16)
    x_t, noise = measures.noisy(x0, 300)
    assert (measures.to_x0(x_t, noise, 300) - x0).abs().max() < 1e-5


def test_wiener_filter_is_the_best_linear_guess_for_white_images():
    """Of white images of variance s the best linear eps has the error a s / (a s + 1 - a)."""
    x0 = 0.5 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    for t in (50, 300, 800):
        a, s = alphas_cumprod()[t].item(), 0.25
        assert measures.wiener_losses([x0], (t,))[0] == pytest.approx(
            a * s / (a * s + 1 - a), rel=0.03
        )


def test_wiener_filter_beats_the_pointwise_guess_on_smooth_images(images):
    tiles = [measures.center(i, 16) for i in images]
    for t in (100, 500):
        a = alphas_cumprod()[t].item()
        s = float(np.mean([tile.var().item() for tile in tiles]))
        assert measures.wiener_losses(tiles, (t,))[0] < 0.5 * a * s / (a * s + 1 - a)


def test_lattice_finds_a_pattern_of_its_period(images):
    tiles = [measures.center(i, 16) for i in images]
    a = alphas_cumprod()[300].item()
    pattern = torch.zeros(1, 1, 64, 64)
    pattern[..., ::2, ::2] = 0.08

    def answer(add):
        """Return an eps: each tile's true noise in turn, off by what puts the pattern into x0."""
        numbers = iter(range(len(tiles)))

        def eps(_x, _t):
            noise = measures.noisy(tiles[number := next(numbers)], 300, number)[1]
            return noise - add * math.sqrt(a / (1 - a))

        return load_prior(eps, {"multiple": 16})

    clean, marked = (measures.lattice(answer(add), tiles, 300) for add in (0 * pattern, pattern))
    assert clean < 0.02
    assert marked == pytest.approx(127.5 * 0.08 * math.sqrt(3) / 4, rel=0.15)


def test_scale_losses_tell_border_from_inside(images):
    def eps(x, _t):
        out = torch.zeros_like(x)
        out[..., 16:-16, 16:-16] = 3
        return out

    prior = load_prior(eps, {"multiple": 16})
    (row,) = measures.scale_losses(prior, images[0], 300, sizes=((64, 96),))
    assert row["height"] == 64 and row["width"] == 96
    assert row["inside"] == pytest.approx(10, rel=0.1) and row["border"] == pytest.approx(
        1, rel=0.1
    )


def test_samples_of_a_gaussian_prior_have_its_mean():
    """The exact eps of images that are all 0.5 leads to 0.5 from any noise."""

    def eps(x, t):
        a = alphas_cumprod()[int(t[0])].float()
        return (x - a.sqrt() * 0.5) / (1 - a).sqrt()

    samples = measures.sample(load_prior(eps, {"multiple": 16}), count=2, size=32, steps=10)
    assert samples.shape == (2, 3, 32, 32)
    assert (samples - 0.5).abs().max() < 1e-3


def test_command_line_writes_numbers_and_pictures(tmp_path, images, monkeypatch):
    pytest.importorskip("skimage")
    folder, out = tmp_path / "infrared", tmp_path / "looks"
    folder.mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number}.png"), image[..., 0])
    arguments = ["embedded", "--against", "embedded", "--out", str(out), "--samples", "0"]
    monkeypatch.setattr(ev, "SIZES", ((64, 64),))
    monkeypatch.setattr(ev, "TIMESTEPS", (50, 500))
    found = CliRunner().invoke(ev.app, [*arguments, "--images", f"infrared={folder}"])
    assert found.exit_code == 0, found.output
    result = json.loads((out / "losses.json").read_text())
    for label in ("photographs", "infrared"):
        rows = result[f"eps {label}"]
        assert rows["prior"] == rows["against"] and len(rows["wiener"]) == 2
    assert cv2.imread(str(out / "denoising.png")).shape == (20 + 4 * 96, 11 * 96, 3)
    assert not (out / "samples.png").exists()
    assert "| wiener |" in found.stdout


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--images", "nothing"], "--images is 'nothing'; expected NAME=FOLDER"),
        (["--images", "a=absent"], "--images is 'a=absent'; expected NAME=FOLDER"),
        (["--against", "absent.pt"], "there is no file or folder 'absent.pt'"),
    ],
)
def test_command_line_errors(tmp_path, extra, message):
    pytest.importorskip("skimage")
    found = CliRunner().invoke(ev.app, ["embedded", "--out", str(tmp_path / "looks"), *extra])
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "looks").exists()
