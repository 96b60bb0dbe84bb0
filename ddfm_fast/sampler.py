"""The reverse loop: Algorithm 1 of the paper with the sampler's row of coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .config import FuseConfig
from .rectify import Rectifier
from .schedule import StepRow, make_schedule, step_rows

if TYPE_CHECKING:
    from .priors import Prior


class StepInfo(NamedTuple):
    """What a callback sees after each reverse step. The tensors are live: copy, do not write."""

    step: int
    """1 .. steps"""
    steps: int
    timestep: int
    """t of the original process that the prior was asked for"""
    x_t: Tensor
    """the sample after the step, [N, 3, H, W]"""
    x0: Tensor
    """the rectified prediction f̂₀ of the step, [N, 3, H, W]"""


class Sampled(NamedTuple):
    x0: Tensor
    """the final sample, RGB [N, 3, H, W], about [−1, 1] in the variant's own luma scale"""
    luma: Tensor
    """its luma in the scale of i and v, [N, 1, H, W]"""


def sample(
    prior: Prior,
    i: Tensor,
    v: Tensor,
    config: FuseConfig,
    *,
    seed: int = 3407,
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    x_start: Tensor | None = None,
) -> Sampled:
    """Draw the fused image of each pair.

    The loop starts from pure noise, or with ``config.start`` from the mean of the sources noised
    to that timestep (what is below it in the schedule is all that is sampled).

    i, v: luma planes [N, 1, H, W] float32 in [−1, 1] on the prior's device, H and W multiples of
    ``prior.multiple``. x_T (``x_start`` unless given) and every z come from one CPU generator
    seeded with ``seed``, one image's worth, given to each image: the same on every device and in
    every batch. ``callback`` may raise to stop. ValueError if the prior yields NaN or inf.
    """
    rows = prior_rows(prior, config)
    learned = uses_learned_variance(prior, config)
    generator = torch.Generator().manual_seed(seed)
    noise_shape = (1, 3, *i.shape[-2:])
    with torch.inference_mode():
        rectifier = make_rectifier(i, v, config)
        if x_start is None:
            x_start = torch.randn(noise_shape, generator=generator).to(i.device, i.dtype)
            if config.start is not None:
                x_start = noised(rectifier.grey((i + v) / 2), x_start, rows[0])
        x_t = x_start.repeat(len(i) // len(x_start), 1, 1, 1)
        conditioning = prior.conditioning(torch.tensor([row.timestep for row in rows]))
        for s, row in enumerate(_progress(rows, progress)):
            eps = prior.eps(x_t, conditioning[s], variance=learned)
            z = None
            if row.sigma:
                z = torch.randn(noise_shape, generator=generator).to(x_t.device, x_t.dtype)
                z = z * (_learned_sigma(eps[:, 3:], row) if learned else row.sigma)
            rectifier.step_(x_t, eps[:, :3], row, z)
            if callback is not None:
                callback(StepInfo(s + 1, len(rows), row.timestep, x_t, rectifier.x0))
        luma = torch.stack([rectifier.luma(x) for x in x_t])[:, None]
    if not bool(torch.isfinite(luma).all()):
        raise ValueError(
            f"prior {prior.name!r} gave NaN or inf during sampling; "
            "expected finite eps(x, t): check the checkpoint, or use a wider dtype"
        )
    return Sampled(x_t, luma)


def noised(x0: Tensor, z: Tensor, row: StepRow) -> Tensor:
    """A sample of q(x_t | x_0): √ᾱ · x0 + √(1 − ᾱ) · z at the step's noise level."""
    return (x0 + row.recipm1 * z) / row.recip


def make_rectifier(i: Tensor, v: Tensor, config: FuseConfig) -> Rectifier:
    """The rectifier that ``config`` asks for."""
    return Rectifier(
        i,
        v,
        variant=config.variant,
        psi=config.psi,
        eta=config.eta,
        update_scales=config.update_scales,
    )


def prior_rows(prior: Prior, config: FuseConfig) -> list[StepRow]:
    """The coefficient rows for this prior's training schedule, in sampling order."""
    schedule = make_schedule(
        config.steps,
        noise_schedule=prior.noise_schedule,
        num_train_timesteps=prior.num_train_timesteps,
        start=config.start,
        spacing=config.spacing,
    )
    return step_rows(schedule, config.sampler, config.ddim_eta)


def uses_learned_variance(prior: Prior, config: FuseConfig) -> bool:
    """Whether σ comes from the prior's variance half; ValueError if asked for and absent."""
    if config.sampler != "ddpm" or config.variance == "fixed_small":
        return False
    if config.variance == "learned_range" and not prior.has_variance:
        raise ValueError(
            f"variance is 'learned_range', but prior {prior.name!r} has no variance output; "
            "expected 'auto' or 'fixed_small' for this prior"
        )
    return prior.has_variance


def _learned_sigma(w: Tensor, row: StepRow) -> Tensor:
    """σ of improved DDPM (Nichol 2021, equation 15): log σ² between the posterior's and β's."""
    half = (row.log_var_max - row.log_var_min) / 4
    return torch.exp(w * half + (row.log_var_max + row.log_var_min) / 4)


def _progress(rows: list[StepRow], progress: bool):
    if not progress:
        return rows
    from tqdm.auto import tqdm

    return tqdm(rows, desc="fusing", unit="step", leave=False)
