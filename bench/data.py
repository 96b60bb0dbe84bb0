"""What is fused and by what in the benchmarks: seeded planes, the demo pair, the networks."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ddfm_fast.datasets.demo import asset
from ddfm_fast.images.color import luma
from ddfm_fast.images.planes import to_planes
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.unet import UNet, UNetConfig

from .reference import ReferenceUNet

SMALL_ADM = dict(
    in_channels=3,
    model_channels=32,
    out_channels=6,
    num_res_blocks=1,
    attention_resolutions=(4, 8),
    channel_mult=(1, 2, 2, 4),
    num_head_channels=32,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
"""the architecture of the small ADM UNet in the test data: attention and a variance half"""
PAIR = "Sentinel-2 demo pair"


def planes(height: int, width: int, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    """i, v [1, 1, H, W] in [−1, 1], x_t [1, 3, H, W] and a prior's output [1, 6, H, W]; seeded.

    The sources are smooth, as pictures are, so that no pixel of the E-step is extreme.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 12, 15, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = torch.randn(1, 3, height, width, generator=generator)
    out = torch.cat([torch.randn(x.shape, generator=generator), 0.1 * x], 1)
    return tuple(t.contiguous().to(device) for t in (fine[:1], fine[1:], x, out))


def pair(side: int) -> tuple[Tensor, Tensor]:
    """The middle of the demo pair, uint8: infrared [side, side], visible [side, side, 3]."""
    ir, vis = asset("sentinel2_nir.png"), asset("sentinel2_visible.png")
    top, left = ((n - side) // 2 for n in ir.shape[:2])
    return ir[top : top + side, left : left + side], vis[top : top + side, left : left + side]


def pair_lumas(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``pair`` as the method's i and v: luma planes [1, 1, side, side] in [−1, 1]."""
    found = (luma(to_planes(image, "pair")[0]) * 2 - 1 for image in pair(side))
    return tuple(plane.to(device) for plane in found)


@lru_cache(maxsize=1)
def small_adm() -> UNet:
    """The small ADM with random (seeded) weights, since only the cost matters."""
    generator = torch.Generator().manual_seed(0)
    unet = UNet(UNetConfig(**SMALL_ADM)).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    return unet


@lru_cache(maxsize=4)
def network(name: str) -> UNet:
    """The network called "embedded" or "small ADM", on the CPU, as it is trained and stored."""
    return small_adm() if name == "small ADM" else load_prior("embedded").unet


def reference_unet(name: str, device: torch.device) -> ReferenceUNet:
    """The authors' form of a network, with the same weights."""
    unet = network(name)
    state = {k: v.detach().contiguous().to(device) for k, v in unet.state_dict().items()}
    head = max(unet.config.num_head_channels, 1)
    return ReferenceUNet(state, head, unet.config.pixel_unshuffle, unet.config.sigma_data)
