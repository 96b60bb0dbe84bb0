"""What the benchmarks fuse, and with what: seeded planes, the demo pair, the networks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ddfm_fast.datasets.demo import asset
from ddfm_fast.images.color import luma
from ddfm_fast.images.planes import to_planes
from ddfm_fast.priors.cost import OFFICIAL
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

from .reference import ReferenceUNet

CPU = torch.device("cpu")
_ADM = dict(num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True)
_PLAIN = dict(middle_attention=False, use_scale_shift_norm=True, resblock_updown=True)
NETWORKS = {
    "small ADM": UNetConfig(32, 1, (4, 8), channel_mult=(1, 2, 2, 4), **_ADM),
    "official": OFFICIAL,
    "ADM 32": UNetConfig(32, 1, channel_mult=(1, 2, 2, 4), **_PLAIN),
    "ADM 128": UNetConfig(128, 1, channel_mult=(1, 2, 2, 4), **_PLAIN),
    "tiny": UNetConfig(32, 1, (2,), channel_mult=(1, 2), **_ADM),
}
"""architectures that get random weights: that of the test data's small ADM (attention and a
variance half), the authors' 256x256 network, two of that shape without attention, and one for
rehearsals"""
PAIR = "Sentinel-2 demo pair"


class Planes(NamedTuple):
    """i, v [1, 1, H, W] in [−1, 1], x_t [1, 3, H, W] and a prior's output [1, 6, H, W]."""

    i: Tensor
    v: Tensor
    x: Tensor
    out: Tensor


def planes(height: int, width: int, device: torch.device, seed: int = 0) -> Planes:
    """Make seeded planes.

    The sources are smooth, as pictures are, so that no pixel of the E-step is extreme.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 1, 12, 15, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = torch.randn(1, 3, height, width, generator=generator)
    out = torch.cat([torch.randn(x.shape, generator=generator), 0.1 * x], 1)
    return Planes(*(t.contiguous().to(device) for t in (fine[:1], fine[1:], x, out)))


def pair(side: int) -> tuple[Tensor, Tensor]:
    """Return the middle of the demo pair, uint8: infrared [side, side], visible [side, side, 3]."""
    ir, vis = asset("sentinel2_nir.png"), asset("sentinel2_visible.png")
    top, left = ((n - side) // 2 for n in ir.shape[:2])
    return ir[top : top + side, left : left + side], vis[top : top + side, left : left + side]


def pair_lumas(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ``pair`` as the method's i and v: luma planes [1, 1, side, side] in [−1, 1]."""
    found = (luma(to_planes(image, "pair")[0]) * 2 - 1 for image in pair(side))
    return tuple(plane.to(device) for plane in found)


def random_unet(config: UNetConfig, device: torch.device) -> UNet:
    """Make a network with random (seeded) weights, finite in float16: only the cost matters."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        unet = UNet(config).eval().requires_grad_(False)
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
    return unet


@lru_cache(maxsize=4)
def network(name: str, device: torch.device = CPU) -> UNet:
    """Return a network of ``NETWORKS`` on a device, or "embedded", which is on the CPU."""
    return load_prior(name).unet if name == "embedded" else random_unet(NETWORKS[name], device)


def config_of(name: str) -> UNetConfig:
    """Return the architecture of the network of that name."""
    return NETWORKS[name] if name in NETWORKS else network(name).config


def reference_unet(name: str, device: torch.device) -> ReferenceUNet:
    """Return the authors' form of a network, with the same weights."""
    unet = network(name, device)
    state = {k: v.detach().contiguous().to(device) for k, v in unet.state_dict().items()}
    head = max(unet.config.num_head_channels, 1)
    return ReferenceUNet(state, head, unet.config.pixel_unshuffle, unet.config.sigma_data)
