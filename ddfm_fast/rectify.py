"""The EM iteration of every variant, in plain PyTorch: a faster version of ``naive.paper``.

This is the path of the CPU and the oracle of every kernel. With x = f̃₀ − v and y = i − v
(luma planes in [−1, 1]) one EM iteration of the paper's hierarchical Bayesian model is

    E-step    m̄ = √(2/γ) / |y − x|,  n̄ = √(2/ρ) / |x|
    scales    γ ← mean(|y − x| √(γ/2) + γ/2),  ρ ← mean(|x| √(ρ/2) + ρ/2)
    k-step    (I + ∇ᵀ∇) k = x + ∇ᵀu,  u = η / (2ψ + η) · ∇k of the iteration before
    x-step    x = (2 m̄ y + η k) / (2 m̄ + 2 n̄ + η)

and f̂₀ = x + v. The variant ``gradient`` goes beyond the paper inside the same frame:

    weights   m̄ = n̄ = √(2/γ) / (|y| / 2) with γ = 1: the E-step where f is midway between the
              sources, so that no source gains weight by being copied; exact where they agree
    target    ψ ‖u − q‖² in place of ψ ‖u‖², hence u = (2ψ q + η ∇k) / (2ψ + η), with
              q = ¾ ∇(i − v) where the gradient of i is the stronger and ¼ ∇(i − v) elsewhere:
              halfway from the gradient of the mean to the stronger gradient of the two

of which only the constant plane ∇ᵀq is new to a step.

The code works with p = 1/m̄ and q = 1/n̄, which stay finite where the paper's weights do not, and
multiplies the x-step through by p·q. The carried state of an image is the plane k and the two
scalars γ and ρ. Images are taken one at a time: a batch gives every image the bytes it gets
alone, and the planes of one image stay in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import torch
from torch import Tensor

from .runtime.profiling import span

OFFICIAL_EPS = 1e-6
"""the constant that the authors' code adds to y − x and to x²"""
PAPER_FLOOR = 1e-6
"""least |y − x| and |x| of the paper's E-step: below float32's resolution in [−1, 1]"""


@dataclass(frozen=True)
class Variant:
    """One reading of the method; ``rectify_plane`` says where they differ."""

    name: str
    summary: str
    luma_weights: tuple[float, float, float]
    luma_offset: float
    writeback: float
    """adding writeback · (Y_new − Y_old) to R, G and B replaces Y and keeps the chroma"""


_BT601 = (0.299, 0.587, 0.114)
_STUDIO = (65.481 / 255, 128.553 / 255, 24.966 / 255)

VARIANTS = {
    v.name: v
    for v in (
        Variant(
            "official",
            "the authors' code, quirk for quirk: balanced, a little flat",
            _STUDIO,
            16 / 255,
            255 / 219,
        ),
        Variant(
            "paper",
            "the equations of the paper: sharp, but drifts toward one source",
            _BT601,
            0.0,
            1.0,
        ),
        Variant(
            "printed",
            "the paper with its E-step as printed (weights grow with distance): for study",
            _BT601,
            0.0,
            1.0,
        ),
        Variant(
            "gradient",
            "the mean of the sources with the stronger gradient of the two brought out",
            _BT601,
            0.0,
            1.0,
        ),
        Variant(
            "saliency",
            "the paper's equations around a target that chooses by salience, scale and conflict",
            _BT601,
            0.0,
            1.0,
        ),
    )
}


def get_variant(name: str) -> Variant:
    """Return the variant of that name; ValueError with the list of names otherwise."""
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}; expected one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


class KSolver:
    """(I + ∇ᵀ∇)⁻¹ on a periodic [H, W] grid: one real FFT, a real scale, one inverse.

    ∇ holds forward differences, whose spectrum gives ∇ᵀ∇ = 4 − 2cos(2πr/H) − 2cos(2πs/W).
    """

    def __init__(self, height: int, width: int, dtype: torch.dtype, device: torch.device):
        self.size = (height, width)
        rows = 2 * torch.cos(2 * math.pi * torch.arange(height, dtype=torch.float64) / height)
        cols = torch.arange(width // 2 + 1, dtype=torch.float64)
        cols = 2 * torch.cos(2 * math.pi * cols / width)
        self.inverse = (1 / (5 - rows[:, None] - cols)).to(device=device, dtype=dtype)

    def __call__(self, rhs: Tensor) -> Tensor:
        """Return k for the right-hand side ``rhs`` [..., H, W], float32 or float64; same shape."""
        with span("solve"):
            return torch.fft.irfft2(torch.fft.rfft2(rhs).mul_(self.inverse), s=self.size)


@lru_cache(maxsize=16)
def get_solver(height: int, width: int, dtype: torch.dtype, device: torch.device) -> KSolver:
    return KSolver(height, width, dtype, device)


def add_divergence_(rhs: Tensor, k: Tensor, ratio: float, official: bool) -> Tensor:
    """Add ∇ᵀu for u = ratio · ∇k to rhs, in place; both are [..., H, W].

    The paper's ∇ is periodic, so ∇ᵀ∇k is minus the five-point Laplacian. The official ∇ has the
    opposite sign and ends in k itself, while its adjoint is periodic: plus the Laplacian, with
    the first row and column in place of what wraps into the last.
    """
    r = ratio if official else -ratio
    rhs.add_(k, alpha=-4 * r)
    rhs[..., 1:].add_(k[..., :-1], alpha=r)
    rhs[..., :-1].add_(k[..., 1:], alpha=r)
    rhs[..., 1:, :].add_(k[..., :-1, :], alpha=r)
    rhs[..., :-1, :].add_(k[..., 1:, :], alpha=r)
    rhs[..., 0].add_(k[..., -1], alpha=r)
    rhs[..., 0, :].add_(k[..., -1, :], alpha=r)
    col, row = (0, 0) if official else (-1, -1)
    rhs[..., col].add_(k[..., 0], alpha=r)
    rhs[..., row, :].add_(k[..., 0, :], alpha=r)
    return rhs


def e_step(x: Tensor, y: Tensor, gamma: Tensor, rho: Tensor, official: bool):
    """Compute inverse weights p = 1/m̄, q = 1/n̄ of Proposition 1, guarded; [..., H, W] each.

    E[m] is p + γ/2 and E[n] is q + ρ/2. The official code caps n̄ at 2 m̄, that is q ≥ p/2.
    """
    if official:
        p = torch.sub(y, x).add_(OFFICIAL_EPS).abs_().mul_((gamma / 2).sqrt())
        q = torch.square(x).add_(OFFICIAL_EPS).mul_(rho / 2).sqrt_()
        return p, torch.maximum(q, p / 2, out=q)
    p = torch.sub(y, x).abs_().clamp_(min=PAPER_FLOOR).mul_((gamma / 2).sqrt())
    q = torch.abs(x).clamp_(min=PAPER_FLOOR).mul_((rho / 2).sqrt())
    return p, q


def balanced_weights(y: Tensor) -> Tensor:
    """p = q = 1/m̄ of the variant ``gradient``: the E-step at |x| = |y − x| = |y|/2 with γ = 1."""
    return y.abs().mul_(0.5).clamp_(min=PAPER_FLOOR).mul_(math.sqrt(0.5))


def gradient_target(i: Tensor, v: Tensor) -> Tensor:
    """∇ᵀq [..., H, W] of the variant ``gradient``, from luma planes i and v of that shape.

    q = ¾ ∇(i − v) where |∇i| > |∇v|, else ¼ ∇(i − v); periodic forward differences. With q =
    ∇(i − v) and 0, the whole way to the stronger gradient, Qabf is higher and the worse source's
    scores fall below those of the variant ``official``.
    """
    di, dv = (torch.stack([plane.roll(-1, axis) - plane for axis in (-1, -2)]) for plane in (i, v))
    stronger = di.square().sum(0) > dv.square().sum(0)
    qx, qy = (di - dv).mul_(torch.where(stronger, 0.75, 0.25))
    return qx.roll(1, -1) - qx + qy.roll(1, -2) - qy


def mean_inverse(p: Tensor, official: bool) -> Tensor:
    """mean(1/m̄) of p = 1/m̄, 0-dim; the official code has 1/(m̄ + 1e-10).

    m̄ is above 0.3, so float32 cannot tell the two apart and only float64 pays for the division.
    """
    if official and p.dtype == torch.float64:
        p = p / (1 + 1e-10 * p)
    return p.mean()


def x_step(y: Tensor, k: Tensor, p: Tensor, q: Tensor, eta: float, official: bool) -> Tensor:
    """x = (2 m̄ y + η k) / (2 m̄ + 2 n̄ + η), through p·q; the official code has y − k for k."""
    e = torch.mul(p, q).mul_(eta)
    if official:
        weight = torch.add(e, q, alpha=2)
        x = torch.mul(weight, y).addcmul_(e, k, value=-1)
    else:
        weight = torch.mul(q, 2)
        x = torch.mul(weight, y).addcmul_(e, k)
        weight.add_(e)
    return x.div_(weight.add_(p, alpha=2))


def x_step_printed(y, k, p, q, gamma, rho, eta: float) -> Tensor:
    """Return the x-step with m̄ = √(2(y − x)²/γ) = 2p/γ and n̄ = 2q/ρ, as the paper prints them."""
    weight = p * (4 / gamma)
    x = torch.mul(weight, y).add_(k, alpha=eta)
    return x.div_(weight.add_(q * (4 / rho)).add_(eta))


class EMSettings(TypedDict):
    """What an EM iteration needs to know of a ``FuseConfig``."""

    variant: str
    psi: float
    eta: float
    update_scales: bool


@dataclass
class EMState:
    """What an image carries from one step to the next: k [H, W] and the 0-dim scales γ, ρ."""

    k: Tensor
    gamma: Tensor
    rho: Tensor


def rectify_plane(
    f: Tensor,
    v: Tensor,
    y: Tensor,
    state: EMState,
    solve: KSolver,
    *,
    variant: str = "official",
    psi: float = 0.5,
    eta: float = 0.001,
    update_scales: bool = True,
    target: Tensor | None = None,
) -> Tensor:
    """Return one EM iteration for one image: f̃₀'s luma in, f̂₀'s luma out; ``state`` is replaced.

    f, v, y = i − v: [H, W], in [−1, 1] (y in [−2, 2]). The official code solves k from y − x,
    and returns i − x where the paper has x + v. ``target``: ∇ᵀq of ``gradient_target``, for the
    variant ``gradient``, whose scales stay at 1.
    """
    official, balanced = variant == "official", variant == "gradient"
    x = f - v
    if balanced:
        p = q = balanced_weights(y)
    else:
        p, q = e_step(x, y, state.gamma, state.rho, official)
    gamma, rho = state.gamma, state.rho
    if update_scales and not balanced:
        state.gamma = mean_inverse(p, official) + gamma / 2
        state.rho = mean_inverse(q, official) + rho / 2
    rhs = torch.sub(y, x, out=x) if official else x
    if balanced and target is not None:
        rhs.add_(target, alpha=2 * psi / (2 * psi + eta))
    state.k = solve(add_divergence_(rhs, state.k, eta / (2 * psi + eta), official))
    if variant == "printed":
        x = x_step_printed(y, state.k, p, q, gamma, rho, eta)
    else:
        x = x_step(y, state.k, p, q, eta, official)
    if official:
        return torch.sub(y, x, out=x).add_(v)
    return x.add_(v)
