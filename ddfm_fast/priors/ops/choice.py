"""Which operations run a network: the fastest that are available."""

from __future__ import annotations

from typing import Any

import torch

from ..unet_config import UNetConfig
from .base import Ops
from .fused import FusedOps
from .native import NativeOps
from .onednn import OneDnnOps
from .onepass import OnePassOps
from .plain import PlainOps


def ops_for(
    device: torch.device,
    weights: int,
    dtype: torch.dtype = torch.float32,
    config: UNetConfig | None = None,
) -> Ops[Any]:
    """Choose the fastest on a device for a network.

    Args:
        device: Where it runs.
        weights: The number of its weights.
        dtype: Their dtype.
        config: The network's; None: unknown, so it is assumed to have many channels.
    """
    if device.type == "cuda":
        from ddfm_fast.kernels import obstacle

        if obstacle(device):
            return PlainOps()
        narrow = config is not None and OnePassOps.suit(config, dtype)
        return OnePassOps() if narrow else FusedOps()
    if device.type == "cpu" and NativeOps.fits(weights) and NativeOps.available(dtype):
        return NativeOps()
    small = device.type == "cpu" and weights <= OneDnnOps.MOST_WEIGHTS
    return OneDnnOps() if small and OneDnnOps.available(dtype) else PlainOps()
