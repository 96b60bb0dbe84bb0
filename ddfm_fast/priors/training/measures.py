"""The quality of a prior by itself, in numbers.

Its eps error by noise level on images it never saw, beside a Wiener filter's, and two measures of
what should not be there: a fixed lattice of the pixel-unshuffle's period and a larger error near
the borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...schedule import make_schedule, step_rows
from ..prior import Prior
from .diffusion import alphas_cumprod, diffuse

BORDER = 16
"""pixels from the edge that count as border"""


def center(image: np.ndarray, multiple: int, side: int = 256) -> Tensor:
    """Cut out an image's middle: [1, 3, H, W] in [-1, 1], of multiples, at most ``side``."""
    height, width = (min(n, side) // multiple * multiple for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    tile = image[top : top + height, left : left + width]
    return torch.from_numpy(tile.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def noisy(x0: Tensor, t: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw x_t and its noise from (seed, t), so the same for every prior."""
    generator = torch.Generator().manual_seed(1000 * seed + t)
    noise = torch.randn(x0.shape, generator=generator)
    return diffuse(x0, noise, alphas_cumprod()[t].expand(len(x0))), noise


def to_x0(x_t: Tensor, eps: Tensor, t: int) -> Tensor:
    """Compute (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), clamped to [-1, 1]."""
    a = alphas_cumprod()[t].item()
    return ((x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)


@torch.inference_mode()
def eps_losses(prior: Prior, images: Sequence[Tensor], timesteps: Sequence[int]) -> list[float]:
    """Measure the squared error of eps by timestep, over images [1, 3, H, W] in [-1, 1]."""
    losses = []
    for t, step in zip(timesteps, prior.conditioning(torch.tensor(timesteps)), strict=True):
        errors = []
        for number, x0 in enumerate(images):
            x_t, noise = noisy(x0, t, number)
            errors.append((prior.eps(x_t, step).float() - noise).square().mean().item())
        losses.append(float(np.mean(errors)))
    return losses


def wiener_losses(images: Sequence[Tensor], timesteps: Sequence[int]) -> list[float]:
    """Measure the same of a Wiener filter, the best linear denoiser of a known spectrum.

    It is given what no denoiser knows: the clean image's mean, its principal color axes and the
    radially averaged power spectrum along each. So it bounds what linear filtering can do.
    """
    losses = []
    for t in timesteps:
        errors = []
        for number, x0 in enumerate(images):
            x_t, noise = noisy(x0, t, number)
            errors.append((wiener_eps(x0[0], x_t[0], t) - noise[0]).square().mean().item())
        losses.append(float(np.mean(errors)))
    return losses


def wiener_eps(x0: Tensor, x_t: Tensor, t: int) -> Tensor:
    """Predict eps by the Wiener filter of the clean x0's statistics; all [3, H, W]."""
    a = alphas_cumprod()[t].item()
    mean = x0.mean((1, 2), keepdim=True)
    flat = (x0 - mean).flatten(1)
    axes = torch.linalg.eigh(flat @ flat.t() / flat.shape[1])[1]
    clean = torch.einsum("cd,chw->dhw", axes, x0 - mean)
    observed = torch.einsum("cd,chw->dhw", axes, x_t - math.sqrt(a) * mean)
    power = _radial_power(clean)
    gain = (1 - a) / (a * power + (1 - a))  # of the noise: one minus the signal's
    residual = torch.fft.ifft2(torch.fft.fft2(observed) * gain).real / math.sqrt(1 - a)
    return torch.einsum("cd,dhw->chw", axes, residual)


def _radial_power(planes: Tensor) -> Tensor:
    """Average power spectra [C, H, W] over rings of equal spatial frequency."""
    height, width = planes.shape[-2:]
    power = torch.fft.fft2(planes).abs().square() / (height * width)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * min(height, width)).round().long().flatten()
    count = torch.bincount(ring).clamp(min=1)
    rings = torch.stack([torch.bincount(ring, p.flatten()) / count for p in power])
    return rings[:, ring].view_as(power)


@torch.inference_mode()
def lattice(prior: Prior, images: Sequence[Tensor], t: int, period: int = 4) -> float:
    """Measure a fixed pattern with that period in predicted x0, in gray levels of 255.

    It is the standard deviation, over the period x period places, of the mean of the prediction
    minus its local mean: 0 if no place differs from another. The clean image's own pattern is
    subtracted.
    """
    step = prior.conditioning(torch.tensor([t]))[0]
    found = []
    for number, x0 in enumerate(images):
        x_t, _ = noisy(x0, t, number)
        predicted = to_x0(x_t, prior.eps(x_t, step).float(), t)
        difference = _places(predicted, period) - _places(x0, period)
        found.append(difference.std(dim=(-1, -2), correction=0).mean().item())
    return 127.5 * float(np.mean(found))


def _places(x: Tensor, period: int) -> Tensor:
    detail = x - torch.nn.functional.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
    height, width = (n // period * period for n in x.shape[-2:])
    detail = detail[..., :height, :width]
    return detail.unflatten(-1, (-1, period)).unflatten(-3, (-1, period)).mean((0, -4, -2))


@torch.inference_mode()
def scale_losses(
    prior: Prior, image: np.ndarray, t: int, sizes: Sequence[tuple[int, int]]
) -> list[dict[str, float]]:
    """Measure eps' error inside and at the border of a photograph resized to each size (H, W)."""
    step = prior.conditioning(torch.tensor([t]))[0]
    rows = []
    for height, width in sizes:
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        x0 = center(resized, prior.multiple, side=max(height, width))
        x_t, noise = noisy(x0, t)
        error = (prior.eps(x_t, step).float() - noise).square().mean((0, 1))
        inside = error[BORDER:-BORDER, BORDER:-BORDER]
        border = (error.sum() - inside.sum()) / (error.numel() - inside.numel())
        rows.append(
            {
                "height": height,
                "width": width,
                "inside": round(inside.mean().item(), 5),
                "border": round(border.item(), 5),
            }
        )
    return rows


@torch.inference_mode()
def sample(
    prior: Prior,
    count: int = 4,
    size: int = 256,
    steps: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Draw unconditional samples [count, C, size, size] in [-1, 1] by DDIM, eta 0."""
    schedule = make_schedule(steps)
    conditioning = prior.conditioning(torch.as_tensor(schedule.timesteps[::-1].copy()))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, prior.channels, size, size, generator=generator)
    rows = step_rows(schedule, "ddim")
    pairs = zip(rows, conditioning, strict=True)
    for row, step in tqdm(pairs, total=steps, desc="sample", disable=not progress):
        eps = prior.eps(x, step).float()
        x0 = (row.recip * x - row.recipm1 * eps).clamp_(-1, 1)
        x = row.a * x + row.b * x0
    return x.clamp(-1, 1)
