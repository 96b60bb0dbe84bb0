"""Small networks with random weights, over every option that a network can have."""

from __future__ import annotations

import itertools

import torch

from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

SMALL = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "out_channels": 6}


def random_unet(config: dict, seed: int = 0) -> UNet:
    """Make every weight random: a fresh network would hide its zero residual branches."""
    unet = UNet(UNetConfig.from_dict(config)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.normal_(0, fan_in**-0.5, generator=generator)
    return unet


def option_grid() -> list[dict]:
    flags = itertools.product((False, True), repeat=4)
    grid = [
        {
            **SMALL,
            "attention_resolutions": [2],
            "num_head_channels": 32,
            "use_scale_shift_norm": a,
            "resblock_updown": b,
            "conv_resample": c,
            "use_new_attention_order": d,
        }
        for a, b, c, d in flags
    ]
    return grid + [
        {**SMALL, "attention_resolutions": [1, 2], "num_heads": 2, "num_heads_upsample": 4},
        {**SMALL, "model_channels": 64, "channel_mult": (0.5, 1, 1.5), "num_heads": 2},
        {
            **SMALL,
            "middle_attention": False,
            "pixel_unshuffle": 2,
            "out_channels": 3,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        },
        {**SMALL, "channel_mult": (1,), "num_res_blocks": 2},
        {**SMALL, "out_channels": 3, "pixel_unshuffle": 2, "sigma_data": 3},
    ]


def option_id(config: dict) -> str:
    return ",".join(f"{k}={v}" for k, v in config.items() if k not in SMALL or SMALL[k] != v)


def channels_last(unet: UNet) -> UNet:
    return unet.to(memory_format=torch.channels_last)
