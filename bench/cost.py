"""Operations of a forward, counted by PyTorch on the meta device."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddfm_fast.priors.unet import UNet, UNetConfig


def forward_flops(config: UNetConfig, height: int, width: int, batch: int = 1) -> int:
    with torch.device("meta"):
        unet = UNet(config)
        x, t = torch.empty(batch, 3, height, width), torch.zeros(batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(x, t)
    return counter.get_total_flops()
