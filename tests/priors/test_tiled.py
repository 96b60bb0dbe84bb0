"""Priors in tiles: against blends written out here, whole evaluations, and counted sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic import tanh_prior, tanh_prior_with_variance
from networks import SMALL, random_unet

from ddfm_fast import FuseConfig, Fuser, fuse
from ddfm_fast.datasets.demo import asset
from ddfm_fast.priors import tiled as home
from ddfm_fast.priors.load import denoiser_of, load_prior
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.prior import Prior
from ddfm_fast.priors.reuse import Kept
from ddfm_fast.priors.tiled import TiledPrior, overlap_of, starts_of, tiled, weights_of
from ddfm_fast.priors.wrapped import wrap

LAYOUTS = [(256, 64, 1), (250, 64, 1), (65, 64, 1), (96, 64, 32), (3840, 512, 32), (608, 256, 16),
           (64, 64, 16), (192, 96, 32)]  # fmt: skip


def at(prior: Prior, timestep: int = 300):
    return prior.conditioning(torch.tensor([timestep]))[0]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("length, side, multiple", LAYOUTS)
def test_weights_sum_to_one_and_leave_borders_out(length, side, multiple):
    overlap = overlap_of(side, multiple)
    starts = starts_of(length, side, overlap, multiple)
    assert starts[0] == 0 and starts[-1] + side == length
    assert all(start % multiple == 0 for start in starts) and overlap % multiple == 0
    gaps = np.diff(starts)
    assert (gaps > 0).all() and (gaps <= side - overlap).all()
    total, weights = np.zeros(length), weights_of(starts, side).numpy()
    for k, (start, row) in enumerate(zip(starts, weights, strict=True)):
        assert (row >= 0).all()
        total[start : start + side] += row
        margin = overlap // 4
        assert k == 0 or not row[:margin].any()
        assert k == len(starts) - 1 or not row[side - margin :].any()
    assert np.allclose(total, 1, rtol=0, atol=1e-12)
    steepest = max((np.abs(np.diff(row)).max() for row in weights), default=0)
    assert steepest <= 1.5 / (overlap / 2), "of u² (3 − 2u) over half of the overlap"


def blurred(x, t):
    """Blur with a reach of 4 pixels: less than a quarter of an overlap of 16."""
    del t
    return F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)


blurred.multiple = 1


@pytest.mark.parametrize("size", [(64, 64), (65, 67), (150, 97), (300, 40)])
def test_what_looks_near_is_answered_as_whole(size):
    whole = load_prior(blurred)
    x = noise(2, 3, *size)
    got = TiledPrior(whole, 64).eps(x, at(whole))
    assert got.shape == x.shape and got.dtype == torch.float32
    assert (got - whole.eps(x, at(whole))).abs().max() <= 2e-6, "roundings of the blend"


def test_what_looks_at_everything_has_no_seams():
    """A callable like global attention: every tile is off by what depends on its own picture."""
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))

    def attends(x, t):
        del t
        tokens = x.flatten(2)
        weights = torch.softmax(tokens.sum(1, keepdim=True) / 2, -1)
        seen = (tokens * weights).sum(-1, keepdim=True)
        return torch.tanh(x) + torch.einsum("oc,ncx->nox", mixing, seen)[..., None]

    attends.multiple = 1
    whole = load_prior(attends)
    ramp = torch.linspace(-1, 1, 768).expand(1, 3, 512, -1)
    x = ramp + 0.2 * noise(1, 3, 512, 768)
    away = (TiledPrior(whole, 128).eps(x, at(whole)) - whole.eps(x, at(whole)))[0]
    steps = [away.diff(dim=dim).abs().max() for dim in (-1, -2)]
    swing = away.max() - away.min()
    assert swing > 0.5, "tiles differ a lot"
    assert max(steps) <= 1.5 / 16 * swing + 1e-6, "yet no pixel by more than the ramp's slope"


def blended(prior: Prior, x: torch.Tensor, side: int, variance: bool) -> np.ndarray:
    """Blend in float64: an over-operator of tiles, row by row of the layout."""

    def starts(length):
        step = side - side // 4 // prior.multiple * prior.multiple
        count = 1 + max(0, math.ceil((length - side) / step))
        whole = (length - side) / max(count - 1, 1)
        return [math.floor(k * whole / prior.multiple + 1e-9) * prior.multiple
                for k in range(count)]  # fmt: skip

    def ramp(place, before, start):
        if before is None:
            return 1.0
        overlap = before + side - start
        u = min(max((place + 0.5 - start - overlap / 4) / (overlap / 2), 0), 1)
        return u * u * (3 - 2 * u)

    lines = []
    for top in (rows := starts(x.shape[2])):
        line = 0.0
        for before, left in zip([None, *starts(x.shape[3])], starts(x.shape[3]), strict=False):
            part = x[..., top : top + side, left : left + side].clone()
            eps = prior.eps(part, at(prior), variance=variance).double().numpy()
            wide = np.zeros((*eps.shape[:3], x.shape[3]))
            wide[..., left : left + side] = eps
            r = np.array([ramp(c, before, left) if left <= c < left + side else float(c >= left)
                          for c in range(x.shape[3])])  # fmt: skip
            line = (1 - r) * line + r * wide
        lines.append(line)
    total = np.zeros((*lines[0].shape[:2], *x.shape[2:]))
    for before, top, line in zip([None, *rows], rows, lines, strict=False):
        tall = np.zeros_like(total)
        tall[:, :, top : top + side] = line
        r = np.array([ramp(c, before, top) if top <= c < top + side else float(c >= top)
                      for c in range(x.shape[2])])  # fmt: skip
        total = (1 - r[:, None]) * total + r[:, None] * tall
    return total


def families() -> dict[str, Prior]:
    return {
        "network": load_prior(random_unet(SMALL)),
        "attention": load_prior(random_unet({**SMALL, "attention_resolutions": [2]})),
        "gray": load_prior(random_unet({**SMALL, "in_channels": 1, "out_channels": 1})),
        "low": load_prior(random_unet(SMALL), dtype="bfloat16"),
        "callable": load_prior(tanh_prior_with_variance),
        "wrapped": wrap(tanh_prior, "v", multiple=16),
        "wrapped gray": wrap(tanh_prior, "x0", multiple=4, channels=1),
    }


@pytest.mark.filterwarnings("ignore:dtype")
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.thorough if f == "low" else ()) for f in families()],
)
def test_every_family_is_blended(family):
    prior = families()[family]
    together = TiledPrior(prior, 64)
    x = noise(2, prior.channels, 160, 112)
    for variance in {False, prior.has_variance}:
        got = together.eps(x, at(together), variance=variance)
        assert np.abs(got.numpy() - blended(prior, x, 64, variance)).max() <= 2e-5
    for name in ("name", "multiple", "channels", "device", "dtype", "has_variance", "fingerprint",
                 "precision", "reproducible", "foreign", "noise_schedule", "alphas"):  # fmt: skip
        assert getattr(together, name) is getattr(prior, name) or (
            getattr(together, name) == getattr(prior, name)
        ), name
    assert torch.equal(together.noise_levels, prior.noise_levels)
    assert torch.equal(together.to("cpu").eps(x, at(prior)), together.eps(x, at(prior)))
    assert together(x, 300).shape[1] == (prior.channels * (2 if prior.has_variance else 1))


@pytest.mark.parametrize("family", ["network", "callable", "wrapped gray"])
def test_a_tile_as_large_as_the_picture_changes_no_byte(family):
    prior = families()[family]
    x = noise(1, prior.channels, 64, 48)
    for side in (64, 65, 512):
        assert torch.equal(TiledPrior(prior, side).eps(x, at(prior)), prior.eps(x, at(prior)))


def test_sides_are_rounded_up_to_what_the_prior_takes():
    prior = load_prior(lambda x, t: x)  # it takes multiples of 32
    sides = [TiledPrior(prior, n).tile_at(2000, 1000) for n in (64, 65, 256, 500)]
    assert sides == [64, 96, 256, 512]
    assert TiledPrior(prior, 256).tile_at(256, 250) == 0 == TiledPrior(prior, 256).tile_at(9, 225)
    assert TiledPrior(prior, 256).tile_at(257, 10) == 256
    other = load_prior(lambda x, t: x, {"multiple": 64})
    assert TiledPrior(other, 64).tile_at(500, 500) == 128, "two multiples, to overlap by one"


def test_no_tensor_larger_than_a_tile_is_asked_of_the_prior():
    asked = []

    def watched(x, t):
        asked.append(tuple(x.shape))
        return tanh_prior(x, t)

    watched.multiple = 16
    prior = TiledPrior(load_prior(watched), 128)
    prior.eps(noise(1, 3, 512, 768), at(prior))
    assert set(asked) == {(1, 3, 128, 128)} and len(asked) == 5 * 8

    asked.clear()
    prior.eps(noise(1, 3, 64, 768), at(prior))
    assert set(asked) == {(1, 3, 64, 128)}


class Free:
    """A prior whose memory the test decides."""

    def __init__(self, monkeypatch):
        self.bytes: int | None = 0
        monkeypatch.setattr(home, "free_host_bytes", lambda: self.bytes)


def test_auto_tiles_what_does_not_fit(monkeypatch):
    free, size = Free(monkeypatch), (1536, 2048)
    planes = 40 * 4 * size[0] * size[1]

    def chosen(share: float, size=size) -> int:
        prior = load_prior(random_unet(SMALL))
        free.bytes = int(share * 2 * (prior.activation_bytes(1, *size) + planes))
        return tiled(prior, "auto").tile_at(*size)

    assert chosen(1.01) == 0 and chosen(0.99) == 1024
    assert chosen(0.001) == 256, "the least, though it does not fit either"
    assert chosen(0.001, (512, 512)) == 0, "small ones are never tiled"
    prior = load_prior(random_unet(SMALL))
    needs = [prior.activation_bytes(1, n, n) + planes for n in (512, 1024)]
    free.bytes = sum(needs)  # half of it lies between the two
    auto = tiled(prior, "auto")
    assert auto.tile_at(*size) == 512
    need, whole = auto.activation_bytes(1, *size), prior.activation_bytes(1, *size)
    assert need == prior.activation_bytes(1, 512, 512) + 4 * 6 * size[0] * size[1] < whole / 4
    free.bytes = 2**50
    assert auto.tile_at(*size) == 512, "the choice stays"
    assert tiled(prior, "auto") == auto and hash(tiled(prior, "auto")) == hash(auto)
    free.bytes = None
    assert tiled(load_prior(random_unet(SMALL)), "auto").tile_at(*size) == 0, "unknown here"


def seam(away: np.ndarray, side: int, multiple: int) -> tuple[float, float]:
    """Return the largest step of means over strips of 8 pixels: at the blends, and elsewhere."""
    within, elsewhere = [0.0], [0.0]
    for axis, length in enumerate(away.shape):
        strips = away.mean(1 - axis)[: length // 8 * 8].reshape(-1, 8).mean(1)
        places = 8 * np.arange(1, len(strips))
        blended = np.zeros(len(places), bool)
        starts = starts_of(length, side, overlap_of(side, multiple), multiple)
        for before, start in zip(starts, starts[1:], strict=False):
            overlap = before + side - start
            blended |= (places >= start + overlap / 4) & (places <= start + 3 * overlap / 4)
        steps = np.abs(np.diff(strips))
        within.append(float(steps[blended].max()))
        elsewhere.append(float(steps[~blended].max()))
    return max(within), max(elsewhere)


@pytest.mark.parametrize("start", [None, 200])
@pytest.mark.parametrize("name", ["embedded", "embedded-gray"])
def test_seams_of_three_steps(name, start):
    """Below half a gray level from t = 200; from pure noise, no more than the picture's own."""
    infrared, visible = (asset(f"dune_{n}.png") for n in ("infrared", "visible"))
    ir, vis = (_large(x.mean(-1) if x.ndim == 3 else x) for x in (infrared, visible))
    config = FuseConfig(steps=3, start=start, stretch="none")
    whole, cut = (
        255 * Fuser(prior=name, preset=config, device="cpu", tile=tile)(ir, vis).astype(float)
        for tile in ("off", 256)
    )
    within, elsewhere = seam(cut - whole, 256, load_prior(name).multiple)
    assert 0 < within < (0.5 if start else min(1.0, elsewhere))


def _large(x: np.ndarray) -> np.ndarray:
    """Return a picture of 384x512 in [0, 1], mirrored where it is smaller."""
    more = [(0, max(0, n - m)) for m, n in zip(x.shape, (384, 512), strict=True)]
    return (np.pad(x, more, "symmetric")[:384, :512] / 255).astype(np.float32)


def test_auto_counts_what_reuse_keeps(monkeypatch):
    """Of 64 channels at the full size, a picture of 1536x2048 keeps 805 MB in float32."""
    free, size = Free(monkeypatch), (1536, 2048)
    planes = 40 * 4 * size[0] * size[1]

    def prior():
        return load_prior(random_unet({**SMALL, "out_channels": 3}))

    step, kept = at(prior()), Kept(2)
    prior().eps(noise(1, 3, 96, 64), step, kept=kept.at(0))
    channels = SMALL["model_channels"] * SMALL["channel_mult"][1]
    (feature,) = kept._given
    assert feature.data.numel() == channels * 96 * 64
    assert prior().kept_bytes(1, 96, 64) == 4 * channels * 96 * 64
    need = prior().activation_bytes(1, *size) + planes
    keeps = prior().kept_bytes(1, *size)
    assert keeps == 4 * channels * size[0] * size[1]
    for more, plain, reusing in ((1.01, 0, 0), (0.5, 0, 1024), (-0.01, 1024, 1024)):
        free.bytes = int(2 * (need + more * keeps))
        assert tiled(prior(), "auto").tile_at(*size) == plain
        assert tiled(prior(), "auto", keeps=True).tile_at(*size) == reusing
    one = prior()
    assert tiled(one, "auto", True) != tiled(one, "auto")
    in_tiles = tiled(one, 512).kept_bytes(1, *size)
    assert in_tiles == 4 * 5 * one.kept_bytes(1, 512, 512), "at strides of at most 384"
    free.bytes = 0
    least = tiled(prior(), "auto", keeps=True)
    assert least.tile_at(*size) in (256, 512)
    wrapped = load_prior(random_unet({**SMALL, "out_channels": 3}), {"prediction": "v"})
    assert wrapped.kept_bytes(2, 96, 64) == 2 * 4 * channels * 96 * 64
    assert load_prior(tanh_prior).kept_bytes(1, 96, 64) == 0


def test_a_fuser_that_reuses_tiles_by_it(monkeypatch):
    Free(monkeypatch).bytes = None
    made = Fuser(preset="official", steps=4, reuse=np.int64(2), device="cpu")
    assert made.config.reuse == 2 and type(made.config.reuse) is int
    assert made.tiled.keeps and not Fuser(preset="official", steps=4, device="cpu").tiled.keeps


def test_auto_takes_callables_whole_and_networks_in_wrappers_not(monkeypatch):
    Free(monkeypatch)
    assert tiled(load_prior(tanh_prior), "auto").tile_at(2048, 2048) == 0
    network = load_prior(random_unet({**SMALL, "out_channels": 3}), {"prediction": "v"})
    assert tiled(network, "auto").tile_at(2048, 2048) == 256


@pytest.mark.parametrize("tile", [0, 63, -256, 70000, 256.0, True, None, "", "on", "25x", [], "16"])
def test_other_tiles_are_refused(tile):
    with pytest.raises(ValueError, match='tile is .*; expected "auto", "off" or the side'):
        Fuser(preset="instant", device="cpu", tile=tile)


def test_words_and_numbers():
    prior = load_prior(tanh_prior)
    assert tiled(prior, "off") is prior and tiled(prior, "128") == tiled(prior, np.int64(128))
    assert tiled(made := TiledPrior(prior, 64), "auto") is made
    assert tiled(prior, 64) != tiled(prior, 128) and tiled(prior, 64) != prior


def pair(height: int = 150, width: int = 170) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:height, :width] / 40
    ir = 0.5 + 0.4 * np.sin(3 * rows) * np.cos(columns)
    rng = np.random.default_rng(0)
    vis = 0.5 + 0.3 * np.cos(2 * rows + columns) + 0.05 * rng.standard_normal(ir.shape)
    return ir.astype(np.float32).clip(0, 1), vis.astype(np.float32).clip(0, 1)


LOOP = {"preset": "official", "steps": 3, "device": "cpu", "stretch": "none"}


def test_a_fuser_says_what_it_did():
    ir, vis = pair()
    found: list = []
    whole = Fuser(**LOOP, tile="off")
    in_tiles = whole.with_options(tile=64)
    results = [f(ir, vis, report=found) for f in (whole, in_tiles)]
    assert [report.tile for report in found] == [0, 64] and found[1].to_dict()["tile"] == 64
    assert not np.array_equal(*results)
    assert in_tiles.prior is whole.prior, "which is not loaded again"
    assert np.array_equal(fuse(ir, vis, **LOOP, tile=64), results[1])
    assert np.array_equal(fuse(ir, vis, **LOOP), results[0]), "auto has memory enough for these"
    names = {f.digest() for f in (whole, in_tiles, whole.with_options(tile=128))}
    assert len(names) == 3


def test_denoising_is_done_in_tiles():
    ir, vis = pair(200, 260)
    options = {"preset": "instant", "device": "cpu", "denoise": {"vis": 15}}
    found: list = []
    whole, in_tiles = (Fuser(**options, tile=t)(ir, vis, report=found) for t in ("off", 128))
    assert [report.tile for report in found] == [0, 128]
    assert 0 < np.abs(whole - in_tiles).mean() < 0.5 / 255
    embedded = load_prior("embedded")
    assert denoiser_of(tiled(embedded, 128)) == tiled(denoiser_of(embedded), 128)
    found.clear()
    Fuser(**{**options, "denoise": "off"}, tile=128)(ir, vis, report=found)
    assert found[0].tile == 0, "nothing was evaluated"


@pytest.mark.skipif(not NativeOps.available(torch.float32), reason="no CPU kernels of ours here")
def test_threads_and_batches_do_not_count():
    before, results = torch.get_num_threads(), []
    pairs = [pair(), tuple(x[::-1].copy() for x in pair())]
    irs, viss = zip(*pairs, strict=True)
    try:
        for threads, batch in ((1, 1), (2, 1), (1, 2), (3, 2)):
            torch.set_num_threads(threads)
            fuser = Fuser(**LOOP, tile=96, batch_size=batch)
            assert fuser.reproducible
            results.append(fuser(list(irs), list(viss)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(np.array_equal, results[0], other))


def test_the_embedded_priors_leave_no_seams():
    """On a picture of 512x768, of which a tile of 256 sees a sixth."""
    ir, vis = pair(512, 768)
    options = {"preset": "instant", "device": "cpu", "denoise": 10, "stretch": "none"}
    whole, in_tiles = (Fuser(**options, tile=t)(ir, vis) for t in ("off", 256))
    away = 255 * np.abs(in_tiles - whole)
    assert 0 < away.mean() < 0.25 and away.max() < 12
    config = FuseConfig(variant="gradient", steps=3, start=200, psi=5, eta=10)
    options = {"preset": config, "device": "cpu"}
    whole, in_tiles = (255 * Fuser(**options, tile=t)(ir, vis) for t in ("off", 256))
    away = in_tiles - whole
    assert np.abs(away).mean() < 0.5
