"""Start a training from the weights of another prior."""

from __future__ import annotations

import torch
from torch import Tensor

from ..unet import UNet


@torch.no_grad()
def start_from(model: UNet, other: UNet) -> None:
    """Copy the weights of a network; from one of color to one of gray, gray in and gray out.

    A gray picture is one whose three channels are equal: the first convolution's weights are summed
    over the channels, those of the last averaged. ValueError if the networks differ otherwise.
    """
    weights = dict(other.state_dict())
    if (model.config.in_channels, other.config.in_channels) == (1, 3):
        weights = _gray(weights, other.config.pixel_unshuffle**2)
    ours = model.state_dict()
    if differing := [k for k, v in ours.items() if k not in weights or weights[k].shape != v.shape]:
        raise ValueError(
            f"--start: the networks differ in {differing[0]!r} and {len(differing) - 1} more; "
            "start from a prior of the same --arch"
        )
    model.load_state_dict({k: weights[k].to(v.dtype) for k, v in ours.items()})


def _gray(weights: dict[str, Tensor], area: int) -> dict[str, Tensor]:
    first, last, bias = "input_blocks.0.0.weight", "out.2.weight", "out.2.bias"
    return {
        **weights,
        first: weights[first].unflatten(1, (3, area)).sum(1),
        last: weights[last][: 3 * area].unflatten(0, (3, area)).mean(0),
        bias: weights[bias][: 3 * area].unflatten(0, (3, area)).mean(0),
    }
