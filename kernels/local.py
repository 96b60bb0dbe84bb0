"""The method's step in two launches, without an FFT: ``ddfm_fast.naive``'s loop body, faster.

(I + ∇ᵀ∇)⁻¹ is local: its Green's function falls by 0.38 per pixel, and the part of it beyond 16
pixels sums to 2e-7. So each program solves for k on its own region, INNER pixels and HALO more on
each side (wrapped around the image, which is periodic), mirrored at its edges, and keeps the
inside, where the edges have no influence left:

    step.rectify_rhs_kernel   x_t, ε, v, y, k → right-hand side, sums of p and q tile by tile
    rectify_local_kernel      right-hand side → k; x_t, ε, v, y, k → x_{t-1} in place

Twin: ``ddfm_fast.step.ReverseStep``, with ``ddfm_fast.rectify.KSolver`` for k.

The mirrored problem is diagonal under the cosine transform of type 2, here a product with a dense
matrix of REGION modes. A matrix product on tensor cores takes 11 bits of each factor, so each
factor is a sum of two float16 numbers, and each product is three: high·high + high·low + low·high,
added up in float32. For float16 to hold the numbers, the region's mean is subtracted first (a
constant is its own solution) and the rest is scaled by a power of two; both are undone exactly. So
the error is relative to the region's largest deviation, 5e-7 of it, like that of cuFFT. A mode is
even or odd, so only half of the columns are multiplied: the sums, then the differences, of mirrored
columns.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddfm_fast.runtime.profiling import span

from .checks import on_device
from .pixel import begin_update, update
from .step import SIZES, TritonStep, aligned

REGION, HALO = 64, 16
INNER = REGION - 2 * HALO
ROWS = 16
"""rows updated at a time: four elements per thread, with registers for three blocks"""
LEARNED_ROWS = 8
"""the same with learned noise, which needs more registers for an element"""
WARPS = 4
_EXPONENT = tl.constexpr(0x7F800000)
_LEAST = tl.constexpr(0x08000000)
"""the bits of 2⁻¹¹¹: smaller deviations are scaled like it"""
_UNSCALE = tl.constexpr(0x06000000)
"""12 in the exponent's place: a region is scaled to 2⁷ … 2⁸, and its weights have a factor 2⁵"""


@triton.jit
def _wrapped(index, size, HALO: tl.constexpr):
    """Compute ``index`` modulo ``size``, not negative, for an index of at least −HALO."""
    return (index + HALO * size) % size


@triton.jit
def _split(x):
    """Split x into high + low, both float16, to within 2⁻²² of it and 2⁻²⁵."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _add_product(a_high, a_low, b_high, b_low, total):
    """Compute total + a·b, small products first: a tensor core truncates sums, not rounds them."""
    total = tl.dot(a_low, b_high, total)
    total = tl.dot(a_high, b_low, total)
    return tl.dot(a_high, b_high, total)


@triton.jit
def _load_pair(pair_ptr, at, LOW: tl.constexpr):
    """Load the high and the low half of a matrix of the table."""
    return tl.load(pair_ptr + at), tl.load(pair_ptr + LOW + at)


@triton.jit
def _scaled_halves(
    rhs_ptr, top, left, height, width, REGION: tl.constexpr, HALO: tl.constexpr
):  # fmt: skip
    """Load a region's columns from the left, and backwards from the right: [REGION, REGION / 2].

    Returns:
        Both less the region's mean and scaled to below 2⁸, the mean, and the scale's inverse.
    """
    rows, half = tl.arange(0, REGION), tl.arange(0, REGION // 2)
    row_ptr = rhs_ptr + _wrapped(top - HALO + rows, height, HALO)[:, None] * width
    left_half = tl.load(row_ptr + _wrapped(left - HALO + half, width, HALO)[None, :])
    last = left + (REGION - HALO - 1)
    right_half = tl.load(row_ptr + _wrapped(last - half, width, HALO)[None, :])
    mean = tl.sum(left_half + right_half) * (1.0 / (REGION * REGION))
    left_half -= mean
    right_half -= mean
    most = tl.max(tl.maximum(tl.abs(left_half), tl.abs(right_half)))
    exponent = tl.maximum(most.to(tl.int32, bitcast=True) & _EXPONENT, _LEAST)
    inverse = (exponent - _UNSCALE).to(tl.float32, bitcast=True)
    scale = tl.div_rn(1.0 / 32, inverse)
    return left_half * scale, right_half * scale, mean, inverse


@triton.jit
def _transform(c_high, c_low, x, REGION: tl.constexpr):
    """Compute C · x of float32 x [REGION, REGION / 2], of columns folded by parity."""
    high, low = _split(x)
    zero = tl.zeros([REGION, REGION // 2], tl.float32)
    return _add_product(c_high, c_low, high, low, zero)


@triton.jit
def _solve_modes(
    part, basis_ptr, weight_ptr, back, ODD: tl.constexpr,
    REGION: tl.constexpr, HALO: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Transform the other axis to its even or odd modes, divide by 1 + λ, and transform back.

    Returns:
        ``back`` [REGION, INNER] plus (w · (part Cᵀ)) C, with C of these modes only.
    """
    LOW: tl.constexpr = REGION * REGION
    HALF: tl.constexpr = REGION // 2
    mode, half, inner = tl.arange(0, REGION), tl.arange(0, HALF), tl.arange(0, INNER)
    parity_ptr = basis_ptr + ODD * HALF * REGION
    c_high, c_low = _load_pair(parity_ptr, half[None, :] * REGION + half[:, None], LOW)
    high, low = _split(part)
    part = _add_product(high, low, c_high, c_low, tl.zeros([REGION, HALF], tl.float32))
    part *= tl.load(weight_ptr + mode[:, None] * REGION + ODD * HALF + half[None, :])
    c_high, c_low = _load_pair(parity_ptr + HALO, half[:, None] * REGION + inner[None, :], LOW)
    high, low = _split(part)
    return _add_product(high, low, c_high, c_low, back)


@triton.jit
def solve_inside(
    rhs_ptr, basis_ptr, weight_ptr, top, left, height, width,
    REGION: tl.constexpr, HALO: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Solve for k [INNER, INNER] from row ``top`` and column ``left`` of an image's rhs.

    With C the cosine transform, its modes by parity, and w the weights of a mode:
    k = Cᵀ (w · (C rhs Cᵀ)) C, of which each factor is split into float16. Twin: ``KSolver``.
    """
    LOW: tl.constexpr = REGION * REGION
    mode, inner = tl.arange(0, REGION), tl.arange(0, INNER)
    left_half, right_half, mean, inverse = _scaled_halves(
        rhs_ptr, top, left, height, width, REGION, HALO
    )
    c_high, c_low = _load_pair(basis_ptr, mode[:, None] * REGION + mode[None, :], LOW)
    even = _transform(c_high, c_low, left_half + right_half, REGION)
    odd = _transform(c_high, c_low, left_half - right_half, REGION)
    back = tl.zeros([REGION, INNER], tl.float32)
    back = _solve_modes(even, basis_ptr, weight_ptr, back, 0, REGION, HALO, INNER)
    back = _solve_modes(odd, basis_ptr, weight_ptr, back, 1, REGION, HALO, INNER)
    high, low = _split(back)
    c_high, c_low = _load_pair(basis_ptr + HALO, mode[None, :] * REGION + inner[:, None], LOW)
    k = _add_product(c_high, c_low, high, low, tl.zeros([INNER, INNER], tl.float32))
    return k * inverse + mean


@triton.jit(do_not_specialize=SIZES)
def rectify_local_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous, in place
    eps_ptr,  # float32, bfloat16 or float16 [N, 3 or 6, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    rhs_ptr,  # of this step
    k_ptr,  # out: of this step
    partial_ptr,  # float32 [N, 2, tiles], this step's sums of p and q
    scales_ptr,  # float32 [2, N, 2]: γ and ρ, next (out) and current (in)
    table_ptr,  # float32 [S, 8]: the columns TABLE_COLUMNS
    step_ptr,  # int32 [2]: the row of this step, next (out) and current (in)
    seeds_ptr,  # int64 [N]
    x0_ptr,  # f̂₀ [N, 3, H, W]: the previous step's in, this one's out; or None
    basis_ptr,  # float16 [2, REGION, REGION]: C, a mode a row, even modes first; high, low
    weight_ptr,  # float32 [REGION, REGION]: 1 / (1 + λ + λᵀ) and what makes CᵀC the identity
    height,  # H
    width,  # W
    tiles,  # of the partial sums
    steps,  # S
    eps_n_stride,
    eps_c_stride,
    eps_h_stride,
    eps_w_stride,
    eta,  # η
    VARIANT: tl.constexpr,
    LUMA: tl.constexpr,
    NOISE: tl.constexpr,
    UPDATE_SCALES: tl.constexpr,
    KEEP_X0: tl.constexpr,
    MULTISTEP: tl.constexpr,
    ALIGNED: tl.constexpr,
    EPS_ALIGNED: tl.constexpr,
    REGION: tl.constexpr,
    HALO: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    """Solve for k inside one region, and update x_t there: x_{t-1} = a x_t + b f̂₀ + c f̂₀' + σz.

    Grid: (regions of one image, N); nothing here depends on N.
    """
    region, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    width = aligned(width, ALIGNED)
    plane = height * width
    step, gamma, rho = begin_update(
        partial_ptr, scales_ptr, step_ptr, tiles, plane, steps, UPDATE_SCALES, SUM_BLOCK
    )
    across = tl.cdiv(width, INNER)
    top, left = (region // across) * INNER, (region % across) * INNER
    image = n * plane
    k = solve_inside(
        rhs_ptr + image, basis_ptr, weight_ptr, top, left, height, width, REGION, HALO, INNER
    )
    rows, col = (top + tl.arange(0, INNER))[:, None], (left + tl.arange(0, INNER))[None, :]
    tl.store(k_ptr + image + rows * width + col, k, (rows < height) & (col < width))
    tl.debug_barrier()  # k is read again by other threads
    if EPS_ALIGNED:
        eps_w_stride = 1
    eps_ptr += n * aligned(eps_n_stride, EPS_ALIGNED)
    eps_c_stride = aligned(eps_c_stride, EPS_ALIGNED)
    eps_h_stride = aligned(eps_h_stride, EPS_ALIGNED)
    for start in range(0, INNER, ROWS):
        row = (top + start + tl.arange(0, ROWS))[:, None]
        inside = (row < height) & (col < width)
        at = row * width + col
        update(
            x_t_ptr, x_t_ptr, eps_ptr, x0_ptr, table_ptr + step * 8, tl.load(seeds_ptr + n), step,
            tl.load(v_ptr + image + at, inside), tl.load(y_ptr + image + at, inside),
            tl.load(k_ptr + image + at, inside), gamma, rho, eta, at,
            row * eps_h_stride + col * eps_w_stride, 3 * image, plane, eps_c_stride, inside,
            VARIANT, LUMA, NOISE, KEEP_X0, MULTISTEP,
        )  # fmt: skip


def cosine_tables(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Make the tables of ``rectify_local_kernel``, computed in float64.

    Returns:
        basis: float16 [2, REGION, REGION], C[p, n] = cos(π p (n + ½) / REGION) as high and low
            half, even p first, so that half a region of even or of odd modes is one block.
        weights: float32 [REGION, REGION], of modes in that order: 32 n_p n_q / (1 + λ_p + λ_q),
            with n = 2 / REGION, of mode 0 half of that, and λ = 4 sin²(π p / 2 REGION).
    """
    pixel = torch.arange(REGION, dtype=torch.float64)
    mode = torch.cat((pixel[0::2], pixel[1::2]))
    basis = torch.cos(math.pi / REGION * mode[:, None] * (pixel + 0.5))
    high = basis.half()
    eigen = 4 * torch.sin(math.pi / (2 * REGION) * mode) ** 2
    norm = torch.where(mode == 0, 1.0, 2.0) / REGION
    weights = 32 * norm[:, None] * norm / (1 + eigen[:, None] + eigen)
    basis = torch.stack((high, (basis - high).half()))
    return basis.to(device), weights.float().to(device)


class LocalStep(TritonStep):
    """``TritonStep`` in two launches per step, which solves for k region by region.

    Takes the arguments of ``TritonStep`` except ``solver``. Agrees with the FFT to 1e-6.
    """

    def allocate(self, count: int, height: int, width: int) -> None:
        """Allocate what a step carries over, what it needs in between, and the tables."""
        self.allocate_state(count, height, width)
        self.regions = triton.cdiv(height, INNER) * triton.cdiv(width, INNER)
        self.basis, self.weights = cosine_tables(self.v.device)

    def step_(self, x_t: Tensor, out: Tensor) -> Tensor:
        """Take x_t to x_{t-1} in place by the next row, as ``TritonStep.step_`` does."""
        self.check_step(x_t, out)
        with span("rhs"):
            self.rhs_(x_t, out)
        rows = LEARNED_ROWS if self.noise == "learned" else ROWS
        with span("solve"), on_device(x_t):
            rectify_local_kernel[self.regions, len(self.v)](
                x_t, out, self.v, self.y, self.rhs, self.k, self.partial, self.scale_pair,
                self.table, self.step_pair, self.seeds, self.x0, self.basis, self.weights,
                *self.v.shape[1:], self.partial.shape[2], len(self.table), *out.stride(), self.eta,
                **self.update_constants(), **self.alignment(out), REGION=REGION, HALO=HALO,
                INNER=INNER, ROWS=rows, num_warps=WARPS, num_stages=1,
            )  # fmt: skip
        return x_t
