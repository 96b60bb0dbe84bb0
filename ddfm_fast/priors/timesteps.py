"""What a timestep does to the network: conditions of its blocks, and preconditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..schedule import trained_alphas


class BlockCondition(NamedTuple):
    """What a timestep does to one residual block: [C] for a shared t, [N, C] for one per sample.

    Float32, whatever the dtype of the weights.
    """

    conv_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor


class Mix(NamedTuple):
    """eps = skip · x_t + out · F of a preconditioned network F; [1] for a shared t, else [N, 1].

    Float32, whatever the dtype of the weights.
    """

    skip: Tensor
    out: Tensor


class StepCondition(NamedTuple):
    """What a timestep does to a network: an item of :meth:`UNet.conditioning`."""

    blocks: Sequence[BlockCondition]
    """of each residual block, by its ``index``"""
    mix: Mix | None
    """of preconditioned networks"""

    def rows(self) -> list[Tensor]:
        """List the tensors that have a row [C] per timestep."""
        mix = () if self.mix is None else self.mix
        return [p for part in (*self.blocks, mix) for p in part if p.ndim == 2]

    def with_rows(self, rows: Iterator[Tensor]) -> StepCondition:
        """Put others in the place of :meth:`rows`, in their order."""
        blocks = [
            BlockCondition(*(p if p.ndim == 1 else next(rows) for p in block))
            for block in self.blocks
        ]
        return StepCondition(blocks, None if self.mix is None else Mix(next(rows), next(rows)))


def mix_at(timesteps: Tensor, sigma_data: float) -> Mix:
    """Compute the factors for timesteps [S] from 0 to 999; ᾱ is interpolated between whole ones.

    Karras et al. 2022, table 1, written for eps and x_t with s² = 1 − ᾱ and d = sigma_data:
    skip = s / (s² + ᾱ d²) and out = √ᾱ d / √(s² + ᾱ d²) (their F has the opposite sign). Then F has
    unit power to predict at every t if images have the standard deviation d.
    """
    alphas = torch.from_numpy(trained_alphas()).to(timesteps.device)
    t = timesteps.double().clamp(0, len(alphas) - 1)
    low = t.long().clamp(max=len(alphas) - 2)
    alpha_bar = torch.lerp(alphas[low], alphas[low + 1], t - low)[:, None]
    power = 1 - alpha_bar + alpha_bar * sigma_data**2
    skip, out = (1 - alpha_bar).sqrt() / power, sigma_data * (alpha_bar / power).sqrt()
    return Mix(skip.float(), out.float())


def mixed(x: Tensor, out: Tensor, mix: Mix) -> Tensor:
    """Combine x_t and the network's output to eps; all [N, C, H, W], in the dtype of x_t."""
    of_x, of_out = (factor.to(x.dtype).view(-1, 1, 1, 1) for factor in mix)
    return torch.addcmul(out.to(x.dtype) * of_out, x, of_x)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Embed timesteps [S] in sinusoids [S, dim] float32, cosines first, base 10000."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))
