"""Which operations run a network: the fastest of those that there are."""

from __future__ import annotations

from typing import Any

import torch

from .base import Ops
from .fused import FusedOps
from .native import NativeOps
from .onednn import OneDnnOps
from .onepass import OnePassOps
from .plain import PlainOps


def ops_for(
    device: torch.device, weights: int, dtype: torch.dtype = torch.float32, widest: int = 0
) -> Ops[Any]:
    """Choose the fastest on a device for a network.

    Args:
        device: Where it runs.
        weights: How many it has.
        dtype: Of its weights.
        widest: Channels of its widest level; 0: unknown, so wide.
    """
    if device.type == "cuda":
        from ddfm_fast.kernels import obstacle

        if obstacle(device):
            return PlainOps()
        return OnePassOps() if OnePassOps.suit(widest, dtype) else FusedOps()
    if device.type == "cpu" and NativeOps.fits(weights) and NativeOps.available(dtype):
        return NativeOps()
    small = device.type == "cpu" and weights <= OneDnnOps.MOST_WEIGHTS
    return OneDnnOps() if small and OneDnnOps.available(dtype) else PlainOps()
