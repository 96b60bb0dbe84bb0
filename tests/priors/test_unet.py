"""The network against the official outputs, and its fast path against its plain one."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from conftest import shared
from networks import SMALL, option_grid, option_id, random_unet
from safetensors.torch import load_file

from ddfm_fast.priors.timesteps import StepCondition, mix_at, timestep_embedding
from ddfm_fast.priors.unet import ResBlock, UNet
from ddfm_fast.priors.unet_config import UNetConfig


@pytest.mark.parametrize("case", ["b1", "b2_rect"])
@pytest.mark.parametrize("grad", [False, True])
def test_matches_official_outputs(case, grad):
    golden = np.load(shared("golden/adm_small_io.npz"))
    weights = load_file(shared("golden/adm_small.safetensors"))
    unet = UNet(UNetConfig.from_dict(json.loads(str(golden["config_json"]))))
    unet.load_state_dict({k: v.float() for k, v in weights.items()})
    x, t, out = (torch.from_numpy(golden[f"{case}/{k}"]) for k in ("x", "t", "out"))
    with torch.set_grad_enabled(grad):
        assert (unet(x, t) - out).abs().max() < 1e-4


def test_official_outputs_through_the_shared_conditioning():
    golden = np.load(shared("golden/adm_small_io.npz"))
    weights = load_file(shared("golden/adm_small.safetensors"))
    unet = UNet(UNetConfig.from_dict(json.loads(str(golden["config_json"]))))
    unet.load_state_dict({k: v.float() for k, v in weights.items()})
    x, t, out = (torch.from_numpy(golden[f"b2_rect/{k}"]) for k in ("x", "t", "out"))
    with torch.inference_mode():
        for i, step in enumerate(unet.conditioning(t)):
            assert (unet.run(x[i : i + 1], step) - out[i]).abs().max() < 1e-4
            assert (unet.run(x[i : i + 1], step, 3) - out[i, :3]).abs().max() < 1e-4


@pytest.mark.parametrize("config", option_grid(), ids=option_id)
def test_shared_conditioning_equals_per_sample_forward(config):
    unet = random_unet(config)
    x, t = torch.randn(3, 3, 16, 32), torch.tensor([0, 431, 999])
    plain = unet(x, t)
    assert plain.std() > 0.1
    for i, step in enumerate(unet.conditioning(t)):
        torch.testing.assert_close(unet.run(x, step)[i], plain[i], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(unet.run(x, step, 3)[i], plain[i, :3], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_equals_softmax_written_out(new_order):
    unet = random_unet({**SMALL, "num_heads": 4, "use_new_attention_order": new_order})
    block, x = unet.middle_block["1"], torch.randn(2, 64, 4, 6)
    norm = torch.nn.functional.group_norm(x, 32, block.norm.weight, block.norm.bias)
    qkv = block.qkv(norm.flatten(2))
    if new_order:
        q, k, v = qkv.view(2, 3, 4, 16, 24).unbind(1)  # q k v, head, channel, position
    else:
        q, k, v = qkv.view(2, 4, 3, 16, 24).unbind(2)  # head, q k v, channel, position
    weights = torch.softmax(torch.einsum("nhct,nhcs->nhts", q, k) / 4, dim=-1)
    h = torch.einsum("nhts,nhcs->nhct", weights, v).reshape(2, 64, 24)
    expected = x + block.proj_out(h).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", ["", "up", "down"])
def test_residual_block_equals_its_layers_in_order(scale_shift, resample):
    config = UNetConfig.from_dict({**SMALL, "use_scale_shift_norm": scale_shift})
    block = ResBlock(32, 64, config, resample).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_(0, 0.2)
    block.index = 0
    x, emb = torch.randn(2, 32, 6, 10), torch.randn(2, 128)
    change = {
        "": lambda a: a,
        "down": lambda a: torch.nn.functional.avg_pool2d(a, 2),
        "up": lambda a: a.repeat_interleave(2, 2).repeat_interleave(2, 3),
    }[resample]
    norm, silu, conv = block.in_layers
    h = conv(change(silu(norm(x))))
    extra = block.emb_layers(emb)[..., None, None]
    if scale_shift:
        scale, shift = extra.chunk(2, dim=1)
        h = block.out_layers[1:](block.out_layers[0](h) * (1 + scale) + shift)
    else:
        h = block.out_layers(h + extra)
    expected = block.skip_connection(change(x)) + h
    condition = block.condition(torch.nn.functional.silu(emb))
    torch.testing.assert_close(
        block(x, StepCondition([condition], None)), expected, rtol=1e-4, atol=1e-5
    )


def test_input_is_not_changed():
    unet = random_unet(SMALL)
    x = torch.randn(1, 3, 16, 16)
    before = x.clone()
    unet.run(x, unet.conditioning(torch.tensor([7]))[0])
    assert torch.equal(x, before)


def test_gradients_agree_with_finite_differences():
    unet = random_unet({**SMALL, "use_scale_shift_norm": True}).double().requires_grad_(True)
    x, t = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.tensor([3])
    weight = unet.input_blocks[1][0].out_layers[3].weight
    unet(x, t).square().sum().backward()
    with torch.no_grad():
        slope = weight.grad[0, 0, 1, 1].item()
        results = []
        for delta in (1e-4, -2e-4):
            weight[0, 0, 1, 1] += delta
            results.append(unet(x, t).square().sum().item())
    assert slope == pytest.approx((results[0] - results[1]) / 2e-4, rel=1e-3)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_weights_stay_near_float32(dtype, bound):
    unet = random_unet({**SMALL, "attention_resolutions": [2], "use_scale_shift_norm": True})
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([500])
    exact = unet(x, t)
    half = unet.to(dtype)(x.to(dtype), t).float()
    assert 0 < (half - exact).square().mean().sqrt() / exact.square().mean().sqrt() < bound


def test_timestep_embedding_formula():
    t = torch.tensor([0.0, 1.0, 999.0])
    expected = np.array(
        [
            [np.cos(v / 10000 ** (i / 16)) for i in range(16)]
            + [np.sin(v / 10000 ** (i / 16)) for i in range(16)]
            + [0.0]
            for v in t.tolist()
        ]
    )
    np.testing.assert_allclose(timestep_embedding(t, 33), expected, atol=2e-4)


def test_fresh_network_predicts_zero():
    unet = UNet(UNetConfig.from_dict(SMALL))
    assert not unet(torch.randn(1, 3, 16, 16), torch.tensor([5])).any()


@pytest.mark.parametrize("sigma_data", [0.5, 1, 3])
def test_preconditioning_is_exact_for_gaussian_images(sigma_data):
    """For images of deviation d, skip x_t is the best guess of eps, and out is the rest's size."""
    t = torch.tensor([3, 300, 900])
    alpha_bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t]
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    mix = mix_at(t, sigma_data)
    for a, skip, out in zip(alpha_bar, mix.skip, mix.out, strict=True):
        x_t = a.sqrt() * sigma_data * x0 + (1 - a).sqrt() * eps
        rest = eps - skip.item() * x_t
        assert abs((rest * x_t).mean()) < 5e-3 * x_t.std()
        assert rest.std().item() == pytest.approx(out.item(), rel=0.01)


def test_preconditioning_with_sigma_data_1_is_v_prediction():
    mix = mix_at(torch.tensor([0.0, 40.0, 40.5, 999.0]), 1)
    torch.testing.assert_close(mix.skip.square() + mix.out.square(), torch.ones(4, 1))
    assert mix.skip[0].item() == pytest.approx(0.01)  # sqrt(1 - alpha_bar) of the first beta, 1e-4
    assert mix.skip[1] < mix.skip[2] < mix.skip[3]


def test_preconditioned_eps_is_near_x_at_high_noise_in_any_precision():
    """The part of float32 x_t is not rounded; the network itself counts for little there."""
    unet = random_unet({**SMALL, "out_channels": 3, "sigma_data": 1.0})
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([990])
    exact = unet(x, t)
    half = copy.deepcopy(unet).to(torch.bfloat16)(x, t)
    assert half.dtype == torch.float32
    assert (exact - x).abs().max() < 0.05
    assert 0 < (half - exact).abs().max() < 2e-4  # bfloat16 itself steps by 4e-3 at 1


def test_config_round_trips_and_drops_what_has_no_effect():
    config = UNetConfig.from_dict(
        {
            **SMALL,
            "image_size": 64,
            "dropout": 0.1,
            "use_checkpoint": True,
            "use_fp16": True,
            "dims": 2,
            "num_classes": None,
            "attention_resolutions": {2, 1},
        }
    )
    assert config.attention_resolutions == (1, 2)
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1000}, "class-conditional"),
        ({"dims": 3}, "dims=3"),
        ({"num_channels": 64}, "unknown keyword 'num_channels'"),
        ({"model_channels": 48}, "multiples of 32"),
        ({"channel_mult": (0.25, 1)}, "multiples of 32"),
        ({"channel_mult": ()}, r"channel_mult=\(\), expected one multiplier"),
        ({"channel_mult": "1,2"}, "list of numbers"),
        ({"attention_resolutions": (16,)}, "downsampling rates"),
        ({"num_res_blocks": 0}, "an integer, 1 to 64"),
        ({"use_scale_shift_norm": "yes"}, "True or False"),
        ({"num_head_channels": 48}, "num_head_channels=48 does not divide"),
        ({"num_heads": 7}, "num_heads=7 does not divide"),
        ({"sigma_data": -1, "out_channels": 3}, "sigma_data=-1, expected a number from 0"),
        ({"sigma_data": "v", "out_channels": 3}, "sigma_data='v', expected a number from 0"),
        ({"sigma_data": 1}, "sigma_data=1 with 6 channels out of 3"),
    ],
)
def test_config_errors_name_the_keyword(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        UNet(UNetConfig.from_dict({**SMALL, **change}))


def test_config_names_missing_keywords():
    with pytest.raises(ValueError, match="model_channels and num_res_blocks missing"):
        UNetConfig.from_dict({})


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_folded_upsampling_is_the_same_function(updown, scale_shift):
    config = {
        **SMALL,
        "channel_mult": (1, 2, 3),
        "resblock_updown": updown,
        "use_scale_shift_norm": scale_shift,
        "middle_attention": False,
    }
    unet = random_unet(config)
    x, t = torch.randn(2, 3, 12, 20), torch.tensor([300])
    step = unet.conditioning(t)[0]
    plain, per_sample = unet.run(x, step), unet(x, t.repeat(2))
    state = unet.state_dict()
    assert sum(m is not None for n, m in unet.fold_upsampling().named_buffers()) == 2
    torch.testing.assert_close(unet.run(x, step), plain, rtol=1e-4, atol=2e-5)
    assert not torch.equal(unet.run(x, step), plain)  # so the folded path did run
    torch.testing.assert_close(unet(x, t.repeat(2)), per_sample, rtol=1e-4, atol=2e-5)
    assert unet.state_dict().keys() == state.keys()
