"""Deep layers that are reused between steps: against the plain network's layers, called here."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from networks import SMALL, option_grid, option_id, random_unet

from ddfm_fast import Fuser, fuse
from ddfm_fast.config import FuseConfig
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.priors.cost import engine_cost
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.ops.onednn import OneDnnOps
from ddfm_fast.priors.ops.plain import PlainOps
from ddfm_fast.priors.reuse import Kept
from ddfm_fast.priors.tiled import TiledPrior
from ddfm_fast.priors.unet_config import UNetConfig
from ddfm_fast.priors.wrapped import wrap
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.sampler import sample

PLAIN = Backend("torch", "torch", "")
PAIR = [np.random.default_rng(n).integers(0, 256, (40, 56), np.uint8) for n in (1, 2)]
OFFICIAL = {"preset": "official", "stretch": "none"}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def planes(n: int = 1, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(2, n, 1, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1


def at(prior, t):
    return prior.conditioning(torch.tensor([t]))[0]


def by_hand(unet, x_deep, t_deep, x, t):
    """Compute ε of x at t by the plain network's modules, with deep layers from another x and t."""
    top = unet.config.num_res_blocks
    area = unet.config.pixel_unshuffle

    def downward(x, step):
        h = torch.nn.functional.pixel_unshuffle(x, area) if area > 1 else x
        skips = []
        for stage in unet.input_blocks:
            h = stage(h, step)
            skips.append(h)
        return h, skips

    step = unet.conditioning(torch.tensor([t_deep]))[0]
    h, skips = downward(x_deep, step)
    for layer in unet.middle_block.values():
        h = layer(h, step) if not hasattr(layer, "qkv") else layer(h)
    for stage in unet.output_blocks[: -top - 1]:
        h = stage(torch.cat([h, skips.pop()], 1), step)
    step = unet.conditioning(torch.tensor([t]))[0]
    skips = downward(x, step)[1][: top + 1]
    for stage in unet.output_blocks[-top - 1 :]:
        h = stage(torch.cat([h, skips.pop()], 1), step)
    h = torch.nn.functional.silu(torch.nn.functional.group_norm(
        h, 32, unet.output_norm.weight, unet.output_norm.bias))  # fmt: skip
    h = unet.output_conv(h)
    return torch.nn.functional.pixel_shuffle(h, area) if area > 1 else h


def operations():
    found = [PlainOps()]
    if OneDnnOps.available(torch.float32):
        found.append(OneDnnOps())
    return found + ([NativeOps()] if NativeOps.available() else [])


GRID = [c for c in option_grid() if len(c["channel_mult"]) > 1 and not c.get("sigma_data")]


@pytest.mark.parametrize("config", GRID, ids=option_id)
@torch.inference_mode()
def test_a_step_in_between_is_the_plain_network_on_older_deep_layers(config):
    unet = random_unet(config)
    size = 16 * unet.config.pixel_unshuffle
    older, x = noise(1, 3, size, size), noise(1, 3, size, size + 32)[..., :size]
    wanted = by_hand(unet, older, 700, x, 640)
    for ops in operations():
        engine, kept = Engine(unet, ops), Kept(2)
        whole = engine(older, unet.conditioning(torch.tensor([700]))[0], None, kept.at(0))
        step = unet.conditioning(torch.tensor([640]))[0]
        got = engine(x, step, None, kept.at(1))
        again = engine(x, step, None, kept.at(1))
        assert torch.equal(got, again), "what is kept is not written"
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)
        assert not torch.equal(got, engine(x, step)) and not torch.equal(got, whole)


def test_one_level_has_only_a_middle_to_reuse():
    unet = random_unet({**SMALL, "channel_mult": (1,), "num_res_blocks": 2})
    engine, kept, x = Engine(unet, PlainOps()), Kept(3), noise(1, 3, 16, 16)
    step = unet.conditioning(torch.tensor([5]))[0]
    whole = engine(x, step, None, kept.at(0))
    assert torch.equal(whole, engine(x, step))
    assert torch.equal(whole, engine(x, step, None, kept.at(1))), "the same x and t"


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_one_is_the_loop_as_it_was(sampler):
    """The bytes are equal, also for a loop that keeps deep layers and renews them at every step."""
    config = FuseConfig(steps=4, sampler=sampler)
    prior, (i, v) = load_prior(random_unet(SMALL)), planes()
    plain = sample(prior, i, v, config, backend=PLAIN)
    assert torch.equal(
        plain.x0, sample(prior, i, v, config.with_overrides(reuse=1), backend=PLAIN).x0
    )
    renewed = Renewing(prior)
    kept = sample(renewed, i, v, config.with_overrides(reuse=2), backend=PLAIN)
    assert torch.equal(plain.x0, kept.x0) and renewed.asked == 4


class Renewing(TiledPrior):
    """Renews at every step what it is given to keep."""

    def __init__(self, inner):
        super().__init__(inner, 4096)
        self.asked = 0

    def eps(self, x, cond, *, variance=False, kept=None):
        self.asked += 1
        return super().eps(x, cond, variance=variance, kept=kept.at(0))


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_which_steps_are_whole(steps, every, monkeypatch):
    """The first, and every N-th after it: counted in the engine."""
    deep = []
    inner = Engine._deep
    monkeypatch.setattr(Engine, "_deep", lambda self, *a: (deep.append(1), inner(self, *a))[1])
    prior, (i, v) = load_prior(random_unet(SMALL)), planes(1, 16, 16)
    sample(prior, i, v, FuseConfig(steps=steps, reuse=every), backend=PLAIN)
    assert len(deep) == -(-steps // every)


def test_nothing_is_left_of_a_call_for_the_next():
    """Nor is anything left of a picture, another size, a batch or a call that was broken off."""
    fuser = Fuser(**OFFICIAL, steps=5, reuse=3)
    first = fuser(*PAIR)
    other = [np.rot90(p).copy() for p in PAIR]

    def stop(info):
        if info.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuser(*other, callback=stop)
    turned = fuser(*other)
    np.testing.assert_array_equal(fuser(*PAIR), first)
    np.testing.assert_array_equal(Fuser(**OFFICIAL, steps=5, reuse=3)(*other), turned)
    batch = fuser.with_options(batch_size=2)(np.stack([PAIR[0], other[0].T]),
                                             np.stack([PAIR[1], other[1].T]))  # fmt: skip
    np.testing.assert_array_equal(batch[0], first)
    plain = fuse(*PAIR, **OFFICIAL, steps=5)
    assert np.abs(first.astype(int) - plain).max() > 0


@pytest.mark.parametrize("name", ["plain", "tiled"])
def test_threads_share_a_fuser_and_nothing_else(name):
    prior = load_prior("embedded")
    prior = TiledPrior(prior, 32) if name == "tiled" else prior
    fuser = Fuser(**OFFICIAL, steps=6, reuse=3, prior=prior)
    pairs = [[p[::-1].copy() if n % 2 else p for p in PAIR] for n in range(4)]
    wanted = [fuser(*pair) for pair in pairs]
    got = [None] * 4

    def work(n):
        got[n] = fuser(*pairs[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (wanted[0] != wanted[1]).any()


def test_tiles_keep_their_own():
    """Each tile is what the prior gives of that tile alone, by its own older deep layers."""
    prior = load_prior(random_unet({**SMALL, "out_channels": 3}))
    older, x = noise(1, 3, 64, 112), noise(1, 3, 64, 113)[..., :112]
    tiled, kept = TiledPrior(prior, 64), Kept(2)
    tiled.eps(older, at(prior, 600), kept=kept.at(0))
    got = tiled.eps(x, at(prior, 580), kept=kept.at(1))
    left = Kept(2)
    prior.eps(older[..., :64].contiguous(), at(prior, 600), kept=left.at(0))
    wanted = prior.eps(x[..., :64].contiguous(), at(prior, 580), kept=left.at(1))
    assert torch.equal(got[..., :44], wanted[..., :44]), "where no other tile counts"


def test_networks_of_other_predictions_of_ours():
    unet = random_unet({**SMALL, "out_channels": 3})
    prior = load_prior(unet, {"prediction": "v"})
    assert prior.reuses
    i, v = planes()
    plain, twice = (
        sample(prior, i, v, FuseConfig(steps=4, reuse=n), backend=PLAIN).x0 for n in (1, 2)
    )
    assert torch.isfinite(twice).all() and not torch.equal(plain, twice)
    kept, x, t = Kept(2), noise(1, 3, 32, 32), at(prior, 400)
    assert torch.equal(prior.eps(x, t, kept=kept.at(0)), prior.eps(x, t))
    assert torch.equal(prior.eps(x, t, kept=kept.at(1)), prior.eps(x, t)), "the same x and t"


@pytest.mark.parametrize("prior", [tanh_prior, lambda x, _t: x, torch.nn.Identity()])
def test_code_whose_layers_are_not_known_is_refused(prior):
    prior = load_prior(prior)
    with pytest.raises(ValueError, match=r"reuse is 2, but prior .* whose layers are not known"):
        Fuser(prior=prior, reuse=2, **OFFICIAL)
    with pytest.raises(ValueError, match=r"reuse is 2, but prior"):
        sample(wrap(lambda x, _t: x, "v"), *planes(), FuseConfig(steps=2, reuse=2), backend=PLAIN)
    Fuser(prior=prior, reuse=1, **OFFICIAL)


def test_compiled_networks_are_refused():
    prior = load_prior(random_unet(SMALL))
    prior.compiled, prior.reuses = True, False
    with pytest.raises(ValueError, match="leave out compile"):
        prior.check_reuse(2)


@pytest.mark.parametrize(
    "options", [{"preset": "instant"}, {"preset": "balanced"}, {"preset": "official", "steps": 1}]
)
def test_where_there_is_nothing_to_reuse_a_sentence_says_so(options):
    with pytest.warns(DDFMWarning, match="reuse is 3, but the loop has (no|one) step"):
        reused = Fuser(**options, reuse=3)(*PAIR)
    np.testing.assert_array_equal(reused, fuse(*PAIR, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fuser(**OFFICIAL, steps=2, reuse=3)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", 1001])
def test_bad_values(value):
    with pytest.raises(ValueError, match=r"reuse is .*; expected an int, 1 to 1000"):
        FuseConfig(reuse=value)


def test_its_cost_on_paper():
    """It counts only the layers at full resolution, checked by hand for a network of two levels."""
    config = UNetConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 2))
    whole, reused = (
        engine_cost(config, 1, 16, 16, torch.float32, fused=False, reused=r).flops
        for r in (False, True)
    )

    def conv(ins, outs, side=3):
        return 2 * ins * outs * side**2 * 16 * 16

    up = [conv(c, 32) + conv(32, 32) + conv(c, 32, 1) for c in (96, 64)]
    down = conv(3, 32) + 2 * conv(32, 32)
    assert reused == down + sum(up) + conv(32, 3)
    assert reused < 0.7 * whole


@pytest.mark.extras
class TestDiffusers:
    """UNet2DModel of diffusers."""

    @staticmethod
    def model(**keywords):
        diffusers = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        kinds = {"block_out_channels": (32, 64), "layers_per_block": 2, "norm_num_groups": 8,
                 "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                 "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}  # fmt: skip
        return diffusers.UNet2DModel(sample_size=32, **{**kinds, **keywords}).eval()

    @pytest.mark.parametrize(
        "keywords",
        [
            {},
            {"center_input_sample": True, "layers_per_block": 1},
            {"block_out_channels": (32, 32, 64), "attention_head_dim": 8,
             "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D")},
        ],
    )  # fmt: skip
    def test_whole_steps_are_the_model_by_bytes(self, keywords):
        model = self.model(**keywords)
        prior = load_prior(model)
        assert prior.reuses
        x, other, kept = noise(2, 3, 32, 32), noise(2, 3, 32, 40)[..., :32], Kept(2)
        t = at(prior, 300)
        assert torch.equal(prior.eps(x, t, kept=kept.at(0)), prior.eps(x, t))
        got = prior.eps(other, t, kept=kept.at(1))
        assert torch.equal(got, prior.eps(other, t, kept=kept.at(1)))
        calls = []
        for block in (model.down_blocks[0], model.up_blocks[-1], model.mid_block):
            block.register_forward_hook(lambda m, *_: calls.append(m))
        # what the model gives if all layers between its ends return what they returned for x
        before = model.up_blocks[-2].register_forward_hook(lambda *_: self.deep(model, x, int(t)))
        wanted = prior.eps(other, t)
        before.remove()
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
        calls.clear()
        prior.eps(other, t, kept=kept.at(1))
        assert model.mid_block not in calls and len(calls) == 2

    @staticmethod
    def deep(model, x, t):
        """Return what the last block but one gives for x."""
        found = []
        twin = type(model).from_config(model.config).eval()
        twin.load_state_dict(model.state_dict())
        twin.up_blocks[-2].register_forward_hook(lambda _m, _i, out: found.append(out))
        with torch.no_grad():
            twin(x, torch.tensor([t] * len(x)))
        return found[0]

    def test_in_the_loop(self):
        prior = load_prior(self.model())
        whole, twice = (fuse(*PAIR, **OFFICIAL, steps=4, prior=prior, reuse=n) for n in (1, 2))
        assert whole.shape == twice.shape and (whole != twice).any()

    def test_models_that_are_changed_or_of_one_level_are_refused(self):
        hooked = self.model()
        hooked.register_forward_hook(lambda *_: None)
        single = self.model(block_out_channels=(32,), down_block_types=("DownBlock2D",),
                            up_block_types=("UpBlock2D",))  # fmt: skip
        for model in (hooked, single):
            with pytest.raises(ValueError, match="layers are not known"):
                Fuser(prior=load_prior(model), reuse=2, **OFFICIAL)
