"""The weights that come with the package: those of the model card, and what they answer."""

from __future__ import annotations

import hashlib
import inspect
import re

import pytest
import torch

from ddfm_fast.priors.checkpoint import describe
from ddfm_fast.priors.load import EMBEDDED, load_prior
from ddfm_fast.priors.training.architectures import ARCHITECTURES
from ddfm_fast.priors.training.measures import noisy, to_x0
from ddfm_fast.priors.training.train import command

CARD = EMBEDDED.with_name("MODEL_CARD.md").read_text()
GOLDEN = {
    20: (0.11391, -0.41906, 0.09359, -0.30039),
    300: (0.31790, -0.27093, -0.07113, -0.54521),
    800: (-0.02159, -0.03030, 0.04822, -0.23080),
}
"""predicted x0 at four places of one channel each, in float32"""


def test_hashes_are_the_cards():
    file_hash = hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()
    assert f"| sha256 of the file | `{file_hash}` |" in CARD
    weights = load_prior("embedded").fingerprint
    assert f"| sha256 of the weights (`Prior.fingerprint`) | `{weights}` |" in CARD
    data = describe(EMBEDDED)["training"]["data_sha256"]
    assert data in CARD


def test_it_was_trained_by_the_documented_defaults():
    training = describe(EMBEDDED)["training"]
    options = {k: p.default for k, p in inspect.signature(command).parameters.items()}
    for key in ("steps", "batch", "patch", "lr", "seed", "holdout", "weighting", "precision"):
        assert training[key] == options[key], key
    assert training["steps_done"] == options["steps"] and options["arch"] == "embedded"
    assert training["ema_decay"] == options["ema"]
    assert training["compiled"] is options["compile"]
    assert load_prior("embedded").unet.config == ARCHITECTURES["embedded"]


def test_it_keeps_its_size():
    assert EMBEDDED.stat().st_size < 6e6
    assert re.search(rf"\b{EMBEDDED.stat().st_size:,} bytes\b", CARD)


def pattern() -> torch.Tensor:
    """Draw a smooth picture [1, 3, 48, 64] in [-0.8, 0.8] with an edge, from no file."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    smooth = torch.sin(rows / 7) * torch.cos(columns / 9) / 2
    edge = 0.3 * (columns > rows).float()
    return torch.stack([smooth + edge, smooth - edge, 0.6 * smooth])[None]


@pytest.mark.parametrize("t", GOLDEN)
def test_golden_denoising(t):
    prior = load_prior("embedded")
    x_t, _ = noisy(pattern(), t, seed=7)
    x0 = to_x0(x_t, prior.eps(x_t, prior.conditioning(torch.tensor([t]))[0]), t)
    found = [x0[0, c, i, j].item() for c, i, j in ((0, 0, 0), (1, 20, 33), (2, 47, 63), (0, 31, 8))]
    assert found == pytest.approx(GOLDEN[t], abs=2e-4)


@pytest.mark.parametrize("t", [20, 100, 200, 300])
def test_denoising_beats_every_blur(t):
    """Its x0 is nearer to the picture than any box blur of x_t, smooth as the picture is."""
    prior, clean = load_prior("embedded"), pattern()
    x_t, _ = noisy(clean, t)
    x0 = to_x0(x_t, prior.eps(x_t, prior.conditioning(torch.tensor([t]))[0]), t)
    blurs = (
        torch.nn.functional.avg_pool2d(x_t, k, 1, k // 2, count_include_pad=False)
        for k in (1, 3, 5, 7)
    )
    best = min((blur - clean).square().mean() for blur in blurs)
    assert (x0 - clean).square().mean() < 0.9 * best
