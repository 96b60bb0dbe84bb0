"""Remove noise from a luma plane by an evaluation of the diffusion prior.

A plane y = x + σ n is what the prior calls x_t / √ᾱ at the timestep where √((1 − ᾱ)/ᾱ) is σ in
units of [−1, 1], so its predicted x₀ is the denoised plane. A prior of color expects independent
noise in three channels, while gray noise has all of its energy in one of three directions. So y is
taken as the mean of channels whose noise is √3 σ, and the missing chroma noise,
√3 σ (n' − mean over channels of n'), is added. Of ε only the mean over channels is used, in which
the added part cancels out. Priors of one channel take y as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..images.planes import crop, pad_to_multiple
from ..priors.prior import Prior

Evaluate = Callable[[Prior, Tensor, int], Tensor]
"""eps of x [N, C, H, W] at a training timestep"""
GRAY_LEVELS = 127.5
"""gray levels per unit of [−1, 1]"""
CLIPPED = 0.005
"""least share of a noisy plane's pixels at black or white that shows that its noise is clipped"""
_END = 0.5 / 255
_TURNS = ((0, False), (0, True), (2, False), (2, True))
"""quarter turns and mirroring of the draws that are averaged"""


def timestep_of(prior: Prior, level: float) -> int:
    """Find the training timestep whose √((1 − ᾱ)/ᾱ) is nearest to a noise level in [−1, 1]."""
    return int((prior.noise_levels - level).abs().argmin())


def channel_level(prior: Prior, sigma: float) -> float:
    """Return the noise level per channel, in units of [−1, 1], of a gray noise σ in gray levels."""
    return sigma / GRAY_LEVELS * (1.0 if prior.channels == 1 else math.sqrt(3))


def evaluate(prior: Prior, x: Tensor, timestep: int) -> Tensor:
    """Evaluate the prior's ``eps`` of x at a training timestep."""
    return prior.eps(x, prior.conditioning(torch.tensor([timestep]))[0])


def denoise(
    prior: Prior,
    plane: Tensor,
    sigma: float,
    *,
    seed: int,
    draws: int = 1,
    evaluate: Evaluate = evaluate,
) -> Tensor:
    """Remove white noise from an image's luma by ``draws`` evaluations of the prior.

    Args:
        prior: The noise predictor, of color or of one channel.
        plane: [1, 1, H, W] float32 in [0, 1], on the prior's device; any size.
        sigma: Standard deviation of the noise, gray levels of 255, above 0.
        seed: Seed of the chroma noise.
        draws: Number of draws to average, 1 to 4, each mirrored or turned in another way.
        evaluate: What evaluates the prior: ``GraphCache.evaluate`` replays a CUDA graph.

    Returns:
        The denoised plane, of the same shape, in [0, 1].

    Raises:
        ValueError: The prior yields NaN or infinity.
    """
    with torch.inference_mode():
        y = plane * 2 - 1
        total = torch.zeros_like(y)
        for number, (turns, mirror) in enumerate(_TURNS[:draws]):
            eps = _luma_noise(prior, _turned(y, turns, mirror), sigma, seed + number, evaluate)
            total += _turned(eps, -turns, mirror)
        x0 = unclip((y - total / draws).add_(1).div_(2), plane, sigma / 255)
        if not bool(torch.isfinite(x0).all()):
            raise ValueError(
                f"prior {prior.name!r} gave NaN or inf while denoising; expected finite eps(x, t): "
                "check the checkpoint, or use a wider dtype"
            )
        return x0.clamp_(0, 1)


def unclip(x0: Tensor, noisy: Tensor, sigma: float) -> Tensor:
    """Undo the bias of noise that was clipped at black or white.

    A denoiser finds the mean of what it sees, and of a pixel x with clipped noise that is
    m(x) = E[clip(x + σ n, 0, 1)] > x near black. An end is corrected, by the inverse of m, where at
    least ``CLIPPED`` of the noisy pixels lie on it.

    Args:
        x0: Denoised plane, any shape, about [0, 1].
        noisy: The plane before, of that shape.
        sigma: Standard deviation of the noise, in units of [0, 1].
    """
    if float((noisy <= _END).float().mean()) >= CLIPPED:
        x0 = _inverse_of_clipped_mean(x0, sigma)
    if float((noisy >= 1 - _END).float().mean()) >= CLIPPED:
        x0 = 1 - _inverse_of_clipped_mean(1 - x0, sigma)
    return x0


def _inverse_of_clipped_mean(y: Tensor, sigma: float) -> Tensor:
    """Solve m(x) = x Φ(x/σ) + σ φ(x/σ) = y for x in five Newton steps; 0 below m(0)."""
    y = y / sigma
    x = (y - 0.4).clamp_(min=0)
    for _ in range(5):
        density = torch.exp(x * x * -0.5) / math.sqrt(2 * math.pi)
        below = torch.special.ndtr(x)
        x = (x - (x * below + density - y) / below).clamp_(min=0)
    return x * sigma


def _luma_noise(prior: Prior, y: Tensor, sigma: float, seed: int, evaluate: Evaluate) -> Tensor:
    """Return the predicted noise of a luma plane [1, 1, H, W] in [−1, 1], in its units."""
    height, width = y.shape[-2:]
    y = pad_to_multiple(y, prior.multiple)
    wanted = channel_level(prior, sigma)
    t = timestep_of(prior, wanted)
    level = float(prior.noise_levels[t])
    x = y
    if prior.channels == 3:
        generator = torch.Generator().manual_seed(seed)
        n = torch.randn(
            (1, 3, *y.shape[-2:]), generator=generator, dtype=torch.float32, device="cpu"
        )
        n = n.to(y.device)
        x = y + level * (n - n.mean(1, keepdim=True))
    x_t = x / math.sqrt(1 + level**2)  # √ᾱ = 1/√(1 + level²)
    eps = evaluate(prior, x_t.contiguous(), t)
    return crop(eps.float().mean(1, keepdim=True).mul_(level), height, width)


def _turned(plane: Tensor, turns: int, mirror: bool) -> Tensor:
    """Turn by half turns and mirror; its own inverse with ``-turns``."""
    plane = plane.flip(-1) if mirror else plane
    return plane.rot90(turns, (-2, -1)) if turns else plane
