"""The loop between lumas, which graphs hold whole, beside the loop between planes."""

import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance
from recorder import RecordingCapture

from ddfm_fast.config import PRESETS, FuseConfig
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.lumas import LumaLoop, fuse_lumas
from ddfm_fast.method import on_padded_planes
from ddfm_fast.priors.load import load_prior
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.sampler import sample

PLAIN = Backend("torch", "torch", "")
CONFIGS = {
    "official": FuseConfig(steps=3),
    "script": PRESETS["official-script"].with_overrides(steps=3),
    "start": FuseConfig(steps=3, variant="gradient", start=100, psi=5.0, eta=10.0),
    "ddpm": FuseConfig(steps=3, sampler="ddpm", variant="paper", eta=0.1),
}
SIZES = [(48, 40), (33, 40), (48, 35), (48, 40), (37, 36)]


def lumas(seed=0, size=(33, 35), count=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 1, *size, generator=generator)


def prior_of(function=tanh_prior, multiple=16):
    return load_prior(lambda x, t: function(x, t), config={"multiple": multiple})


def loops(mode="off"):
    return GraphCache(mode, PLAIN, capture=RecordingCapture)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(48, 32), (33, 35), (37, 50)])
def test_it_is_the_loop_between_planes(config, size):
    """They are equal bit for bit, with crop, rounding, order and margin by the plain functions."""
    prior, (ir, vis) = prior_of(), lumas(3, size, 2)
    got = fuse_lumas(prior, ir, vis, config, loops=loops().loop, seed=5)

    def sampled(i, v):
        return sample(prior, i, v, config, seed=5, backend=PLAIN).luma

    assert torch.equal(got, on_padded_planes(sampled, ir, vis, config, prior.multiple))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_one_graph_serves_all_sizes_that_pad_to_its_shape_and_all_seeds(config):
    prior, cache = prior_of(tanh_prior_with_variance), loops("loop")
    multiple = config.crop_multiple
    shape = 1, 48 - 48 % multiple, 48 - 48 % multiple
    cache.warm_up(prior, config, shape, False, LumaLoop)
    kept = []
    for call, size in enumerate(SIZES):
        ir, vis = lumas(call, size)
        got = fuse_lumas(prior, ir, vis, config, loops=cache.loop, seed=call // 2)
        wanted = fuse_lumas(prior, ir, vis, config, loops=loops().loop, seed=call // 2)
        assert torch.equal(got, wanted)
        kept.append((got, wanted))
    assert all(torch.equal(*pair) for pair in kept), "results are the caller's own"
    assert [summary["shape"] for summary in cache.summary()] == [shape]


@pytest.mark.parametrize("mode", ["off", "loop"])
def test_nan_is_told(mode):
    prior, cache = prior_of(lambda x, t: tanh_prior(x, t) * float("nan")), loops(mode)
    for _ in range(2):
        with pytest.raises(ValueError, match="gave NaN or inf during sampling"):
            fuse_lumas(prior, *lumas(), CONFIGS["official"], loops=cache.loop, seed=1)


def test_x_t_is_its_own():
    loop = loops().loop(prior_of(), CONFIGS["official"], (1, 48, 48), False, LumaLoop)
    with pytest.raises(ValueError, match="x_start is given"):
        loop.load(*lumas(), 1, torch.zeros(1, 3, 48, 48))
