"""A reverse step after the prior's ε: predict f̃₀, rectify it, and the sampler's update.

A faster version of the loop body of ``ddfm_fast.naive``.

``Step`` is the interface that the loop uses. :class:`ReverseStep` is the plain implementation: the
path of the CPU, and the twin of ``TritonStep`` and ``LocalStep`` in ``ddfm_fast.kernels``.
``ddfm_fast.runtime.dispatch`` chooses which one runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .config import FuseConfig
from .noise import normals
from .rectify import EMSettings, EMState, get_solver, get_variant, gradient_target, rectify_plane
from .schedule import StepRow


class Step(Protocol):
    """The reverse steps of a batch of pairs, with the state that EM carries between them."""

    @property
    def x0(self) -> Tensor | None:
        """f̂₀ of the last step, [N, 3, H, W], or None if it is not kept."""
        ...

    @property
    def next_step(self) -> Tensor:
        """int32 or int64 [1] on the device: the row of the next step."""
        ...

    def load_(self, i: Tensor, v: Tensor, seeds: Tensor | None = None) -> None:
        """Take the luma planes i, v [N, 1, H, W] and go back to before the first row."""
        ...

    def step_(self, x_t: Tensor, out: Tensor) -> Tensor:
        """Take x_t to x_{t−1} in place by the next row and return it; ``out``: prior's output."""
        ...

    @property
    def k(self) -> Tensor:
        """The k that the previous step solved for, [N, H, W]."""
        ...

    @property
    def scales(self) -> Tensor:
        """γ and ρ [N, 2] that the next step starts from."""
        ...

    def resume_(self, step: int, k: Tensor, scales: Tensor, x0: Tensor | None = None) -> None:
        """Resume from such a state at row ``step``; f̂₀ is needed if a row has c ≠ 0."""
        ...

    def luma(self, image: Tensor) -> Tensor:
        """The variant's luma [H, W] of an RGB image [3, H, W]."""
        ...

    def gray(self, luma: Tensor) -> Tensor:
        """The gray RGB images [N, 3, H, W] whose ``luma`` is the given [N, 1, H, W]."""
        ...


def em_settings(config: FuseConfig) -> EMSettings:
    """Return what a step needs to know of ``config`` besides the schedule."""
    return EMSettings(
        variant=config.variant,
        psi=config.psi,
        eta=config.eta,
        update_scales=config.update_scales,
    )


def plain_em(i: Tensor, v: Tensor, config: FuseConfig) -> ReverseStep:
    """Return the plain step without rows: for EM iterations (``rectify_``) without the prior."""
    return ReverseStep(i, v, **em_settings(config))


NOISES = ("none", "fixed", "learned")
"""source of σ: no noise, the row's own, or learned, between the row's two variances"""


def check_noise(noise: str) -> str:
    """Return ``noise`` if it is one of NOISES, else raise ValueError."""
    if noise not in NOISES:
        raise ValueError(f"noise is {noise!r}; expected one of {', '.join(NOISES)}")
    return noise


def learned_sigma(w: Tensor, row: StepRow) -> Tensor:
    """σ of improved DDPM (Nichol 2021, equation 15) for the prior's variance half w in [−1, 1].

    log σ² lies between the logarithms of the posterior's variance (w = −1) and of β (w = 1).
    """
    half = (row.log_var_max - row.log_var_min) / 4
    return torch.exp(w * half + (row.log_var_max + row.log_var_min) / 4)


class ReverseStep:
    """The EM state of a batch of pairs and the reverse steps that follow the prior.

    i, v: luma planes [N, 1, H, W] in [−1, 1], float32 or float64, on one device; i is the
    infrared (or first) source. ``rows``: the steps, in sampling order. ``noise``: the source of σ,
    one of NOISES. ``seeds``: int64 [N], the seed of each image's noise, on that device (default 0).
    ψ and η are the paper's; images share nothing. ``channels``: of the samples, 3, or 1 for a
    prior of gray images.

    Implements :class:`Step`; float64 too, for tests.
    """

    counts_on_device = False
    """whether a captured step may be replayed for the next row: here the row is frozen into it"""

    def __init__(
        self,
        i: Tensor,
        v: Tensor,
        *,
        rows: Sequence[StepRow] = (),
        noise: str = "none",
        seeds: Tensor | None = None,
        variant: str = "official",
        psi: float = 0.5,
        eta: float = 0.001,
        update_scales: bool = True,
        channels: int = 3,
    ):
        if i.shape != v.shape or i.ndim != 4 or i.shape[1] != 1:
            raise ValueError(
                f"i has shape {tuple(i.shape)} and v {tuple(v.shape)}; "
                "expected the same [N, 1, H, W] for both"
            )
        self.variant = get_variant(variant)
        self.settings = EMSettings(variant=variant, psi=psi, eta=eta, update_scales=update_scales)
        self.rows, self.noise = list(rows), check_noise(noise)
        self.seeds = torch.zeros(len(v), dtype=torch.int64, device=v.device)
        weights = list(self.variant.luma_weights)
        if channels == 1:  # of a gray image: R = G = B
            weights = [sum(weights)]
        self.luma_weights = torch.tensor(weights, dtype=v.dtype, device=v.device)
        self.channels = channels
        self.solver = get_solver(*v.shape[-2:], v.dtype, v.device)
        self.v, self.y = torch.empty_like(v[:, 0]), torch.empty_like(v[:, 0])
        self.targets = torch.empty_like(self.v) if variant == "gradient" else None
        self.x0 = torch.empty(len(v), channels, *v.shape[-2:], dtype=v.dtype, device=v.device)
        self.load_(i, v, seeds)

    def load_(self, i: Tensor, v: Tensor, seeds: Tensor | None = None) -> None:
        """Take other images of the same shape, in place, and ``reset``."""
        self.v.copy_(v[:, 0])
        torch.sub(i[:, 0], v[:, 0], out=self.y)
        if self.targets is not None:
            self.targets.copy_(gradient_target(i, v)[:, 0])
        if seeds is not None:
            self.seeds.copy_(seeds)
        self.reset()

    def reset(self) -> None:
        """Go back to the state before the first step: k = 0, γ = ρ = 1, the first row next."""
        one = torch.ones((), dtype=self.v.dtype, device=self.v.device)
        self.states = [EMState(torch.zeros_like(v), one, one) for v in self.v]
        self.step = 0

    def resume_(self, step: int, k: Tensor, scales: Tensor, x0: Tensor | None = None) -> None:
        """Take another step's state: row ``step`` next, k [N, H, W], γ and ρ [N, 2], f̂₀."""
        self.step = step
        self.states = [EMState(a, *pair) for a, pair in zip(k, scales, strict=True)]
        if x0 is not None:
            self.x0.copy_(x0)

    @property
    def k(self) -> Tensor:
        """The k that the previous step solved for, [N, H, W]."""
        return torch.stack([state.k for state in self.states])

    @property
    def scales(self) -> Tensor:
        """γ and ρ [N, 2] that the next step starts from."""
        return torch.stack([torch.stack((s.gamma, s.rho)) for s in self.states])

    @property
    def next_step(self) -> Tensor:
        """int64 [1] on the device: the row of the next step, as the host knows it now."""
        return torch.tensor([self.step], device=self.v.device)

    def step_(self, x_t: Tensor, out: Tensor) -> Tensor:
        """Take x_t to x_{t-1} in place by the next row: predict, rectify, and the sampler's update.

        x_t [N, 3, H, W] contiguous; ``out`` is the prior's output [N, 3, H, W], ε, or
        [N, 6, H, W], with the variance half that noise "learned" needs, in any memory format and
        floating dtype. ``self.x0`` holds f̂₀ afterwards. After the last row comes the first.
        """
        row = self.rows[self.step]
        for n, x in enumerate(x_t):
            x0 = self.x0[n]
            previous = x0.clone() if row.c else None
            torch.mul(x, row.recip, out=x0).sub_(out[n, : self.channels], alpha=row.recipm1).clamp_(
                -1, 1
            )
            self._rectify_image_(n, x0)
            x.mul_(row.a).add_(x0, alpha=row.b)
            if previous is not None:
                x.add_(previous, alpha=row.c)
        if self.noise != "none" and row.sigma:
            x_t.add_(self._noise(out, row))
        self.step = (self.step + 1) % len(self.rows)
        return x_t

    def _noise(self, out: Tensor, row: StepRow) -> Tensor:
        """Compute σ·z of the step, [N, 3, H, W]."""
        height, width = self.v.shape[-2:]
        z = normals(self.seeds, self.step, height, width, self.v.dtype)[:, : self.channels]
        if self.noise == "fixed":
            return z.mul_(row.sigma)
        return z.mul_(learned_sigma(out[:, self.channels :].to(z.dtype), row))

    def rectify_(self, x0: Tensor) -> Tensor:
        """Rectify f̃₀ to f̂₀ in place, RGB [N, 3, H, W] contiguous in [−1, 1]."""
        for n, image in enumerate(x0):
            self._rectify_image_(n, image)
        return x0

    def _rectify_image_(self, n: int, image: Tensor) -> None:
        f = self.luma(image)
        fused = rectify_plane(
            f,
            self.v[n],
            self.y[n],
            self.states[n],
            self.solver,
            target=None if self.targets is None else self.targets[n],
            **self.settings,
        )
        image.add_(fused.sub_(f), alpha=self.variant.writeback)

    def gray(self, luma: Tensor) -> Tensor:
        """Return the gray RGB images [N, 3, H, W] whose ``luma`` is the given [N, 1, H, W]."""
        level = (luma - self.variant.luma_offset) * self.variant.writeback
        return level.repeat(1, self.channels, 1, 1)

    def luma(self, image: Tensor) -> Tensor:
        """Compute the variant's luma [H, W] of RGB [3, H, W]: what is compared with i and v."""
        flat = torch.mv(image.reshape(self.channels, -1).t(), self.luma_weights)
        return flat.add_(self.variant.luma_offset).view(image.shape[-2:])
