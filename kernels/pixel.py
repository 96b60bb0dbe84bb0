"""The method's step at one pixel: a faster version of the loop body of ``ddfm_fast.naive``.

The kernels of ``step`` (two around an FFT) and ``local`` (one that solves, no FFT) are built from
these device functions. Twins: ``ddfm_fast.rectify``, whose module docstring has the equations, and
``ddfm_fast.noise``. A variant is a name that is known when a kernel is compiled: its weights are a
branch of ``inverse_weights``, and its target gradient is a plane that the step's constructor
computes.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ddfm_fast.noise import ROUNDS
from ddfm_fast.rectify import OFFICIAL_EPS, PAPER_FLOOR

_OFFICIAL_EPS = tl.constexpr(OFFICIAL_EPS)
_PAPER_FLOOR = tl.constexpr(PAPER_FLOOR)
_BALANCED = tl.constexpr(math.sqrt(0.5))
_NAN = tl.constexpr(tl.PropagateNan.ALL)
_QUARTER_TURN = tl.constexpr(math.pi / 2)
_CELL = tl.constexpr(2.0**-23)
_ROUNDS = tl.constexpr(ROUNDS)

TABLE_COLUMNS = ("recip", "recipm1", "a", "b", "c", "sigma", "log_var_min", "log_var_max")
"""fields of a StepRow, in the order of a row of the coefficient table"""


@triton.jit
def inverse_weights(x, y, gamma, rho, VARIANT: tl.constexpr):
    """Compute p = 1/m̄ and q = 1/n̄; twins: ``e_step`` and ``balanced_weights``."""
    if VARIANT == "gradient":
        p = tl.maximum(tl.abs(y) * 0.5, _PAPER_FLOOR, propagate_nan=_NAN) * _BALANCED
        q = p
    elif VARIANT == "official":
        p = tl.abs(y - x + _OFFICIAL_EPS) * tl.sqrt_rn(gamma * 0.5)
        q = tl.sqrt_rn((x * x + _OFFICIAL_EPS) * (rho * 0.5))
        q = tl.maximum(q, p * 0.5, propagate_nan=_NAN)
    else:
        p = tl.maximum(tl.abs(y - x), _PAPER_FLOOR, propagate_nan=_NAN) * tl.sqrt_rn(gamma * 0.5)
        q = tl.maximum(tl.abs(x), _PAPER_FLOOR, propagate_nan=_NAN) * tl.sqrt_rn(rho * 0.5)
    return p, q


@triton.jit
def _fused_luma(v, y, k, p, q, gamma, rho, eta, VARIANT: tl.constexpr):
    """Compute the luma of f̂₀ from p, q and the solved k; twins: ``x_step``, ``x_step_printed``."""
    e = p * q * eta
    if VARIANT == "official":
        weight = e + 2 * q
        fused = y - tl.div_rn(weight * y - e * k, weight + 2 * p) + v
    elif VARIANT == "printed":
        weight = p * tl.div_rn(4.0, gamma)
        total = weight + q * tl.div_rn(4.0, rho) + eta
        fused = tl.div_rn(weight * y + eta * k, total) + v
    else:
        fused = tl.div_rn(2 * q * y + e * k, 2 * q + e + 2 * p) + v
    return fused


@triton.jit
def _laplacian(k_ptr, row, col, height, width, inside, VARIANT: tl.constexpr):
    """Apply the periodic five-point Laplacian to k; twin: ``add_divergence_`` (which has the sign).

    In the official code nothing wraps into the last row and column; instead, their own first
    elements appear again in the first row and column.
    """
    center = tl.load(k_ptr + row * width + col, inside)
    above = tl.load(k_ptr + tl.where(row > 0, row - 1, height - 1) * width + col, inside)
    left = tl.load(k_ptr + row * width + tl.where(col > 0, col - 1, width - 1), inside)
    if VARIANT == "official":
        below = tl.load(k_ptr + (row + 1) * width + col, inside & (row + 1 < height), other=0.0)
        right = tl.load(k_ptr + row * width + col + 1, inside & (col + 1 < width), other=0.0)
        below += tl.where(row == 0, center, 0.0)
        right += tl.where(col == 0, center, 0.0)
    else:
        below = tl.load(k_ptr + tl.where(row + 1 < height, row + 1, 0) * width + col, inside)
        right = tl.load(k_ptr + row * width + tl.where(col + 1 < width, col + 1, 0), inside)
    return left + right + below + above - 4 * center


@triton.jit
def right_hand_side(
    x, y, k_ptr, target_ptr, row, col, height, width, inside, ratio, target_weight,
    VARIANT: tl.constexpr,
):  # fmt: skip
    """Compute x + ∇ᵀu with u = ratio · ∇k of the previous step; the official code has y − x for x.

    A target plane ∇ᵀq adds target_weight · ∇ᵀq.
    """
    laplacian = _laplacian(k_ptr, row, col, height, width, inside, VARIANT)
    rhs = y - x + ratio * laplacian if VARIANT == "official" else x - ratio * laplacian
    if target_ptr is not None:
        rhs += target_weight * tl.load(target_ptr + row * width + col, inside)
    return rhs


@triton.jit
def _predict(x_ptr, eps_ptr, at, eps_at, recip, recipm1, inside):
    """Load x_t and predict f̃₀ = clamp(recip · x_t − recipm1 · ε, −1, 1) of a channel; NaN stays."""
    x_t = tl.load(x_ptr + at, inside)
    x0 = x_t * recip - tl.load(eps_ptr + eps_at, inside).to(tl.float32) * recipm1
    return x_t, tl.clamp(x0, -1.0, 1.0, propagate_nan=_NAN)


@triton.jit
def predict_rgb(x_ptr, eps_ptr, at, eps_at, plane, eps_c_stride, recip, recipm1, inside):
    """Load x_t and predict f̃₀ of the three channels; return r, g, b of x_t, then of f̃₀."""
    x_r, r = _predict(x_ptr, eps_ptr, at, eps_at, recip, recipm1, inside)
    x_ptr += plane
    eps_ptr += eps_c_stride
    x_g, g = _predict(x_ptr, eps_ptr, at, eps_at, recip, recipm1, inside)
    x_ptr += plane
    eps_ptr += eps_c_stride
    x_b, b = _predict(x_ptr, eps_ptr, at, eps_at, recip, recipm1, inside)
    return x_r, x_g, x_b, r, g, b


@triton.jit
def rgb_luma(r, g, b, LUMA: tl.constexpr):
    """Compute the variant's luma; LUMA: three weights, the offset, the write-back factor."""
    return r * LUMA[0] + g * LUMA[1] + b * LUMA[2] + LUMA[3]


@triton.jit
def quarter_sine(x):
    """Compute sin x to 7e-10 for x in [0, π/2] by the Taylor polynomial of degree 13.

    The library's sine would include its range reduction, which uses local memory.
    """
    s = x * x
    sine = 1.6059043836821613e-10 * s - 2.505210838544172e-08
    sine = sine * s + 2.755731922398589e-06
    sine = sine * s - 1.984126984126984e-04
    sine = sine * s + 8.333333333333333e-03
    sine = sine * s - 1.6666666666666667e-01
    return x + x * s * sine


@triton.jit
def _box_muller(radial, angular):
    """Make two normal deviates from two words; twin: ``ddfm_fast.noise.box_muller``."""
    r = tl.sqrt_rn(-2.0 * tl.log(((radial >> 9).to(tl.float32) + 0.5) * _CELL))
    turn = (((angular & 0x3FFFFFFF) >> 7).to(tl.float32) + 0.5) * _CELL
    sine, cosine = quarter_sine(turn * _QUARTER_TURN), quarter_sine((1.0 - turn) * _QUARTER_TURN)
    quadrant = angular >> 30
    odd = (quadrant & 1) == 1
    r = tl.where(quadrant > 1, -r, r)
    return r * tl.where(odd, -sine, cosine), r * tl.where(odd, cosine, sine)


@triton.jit
def _normals(seed, step, pixel):
    """Draw z of a pixel's three channels; twin: ``ddfm_fast.noise.normals``."""
    zero = pixel * 0
    w0, w1, w2, w3 = tl.philox(seed, pixel, zero + step, zero, zero, _ROUNDS)
    r, g = _box_muller(w0, w1)
    b, _ = _box_muller(w2, w3)
    return r, g, b


@triton.jit
def _store_update(
    out_ptr, x_t, x0, x0_ptr, base, at, a, b, c, noise, inside,
    KEEP_X0: tl.constexpr, MULTISTEP: tl.constexpr,
):  # fmt: skip
    """Store a · x_t + b · f̂₀ + c · f̂₀(previous) + noise of one channel."""
    new = x_t * a + x0 * b
    if MULTISTEP:
        # before the first step the plane may hold anything, even NaN, and c is 0
        new += tl.where(c != 0, c * tl.load(x0_ptr + base + at, inside), 0.0)
    if KEEP_X0:
        tl.store(x0_ptr + base + at, x0, inside)
    tl.store(out_ptr + base + at, new + noise, inside)


@triton.jit
def _sigma(weight_ptr, eps_at, row_ptr, inside, NOISE: tl.constexpr):
    """Load σ of a channel: the row's, or by the prior's variance half; twin: ``learned_sigma``."""
    sigma = tl.load(row_ptr + 5)
    if NOISE == "learned":
        low, high = tl.load(row_ptr + 6), tl.load(row_ptr + 7)
        weight = tl.load(weight_ptr + eps_at, inside).to(tl.float32)
        learned = tl.exp(weight * ((high - low) * 0.25) + (high + low) * 0.25)
        sigma = tl.where(sigma != 0, learned, 0.0)
    return sigma


@triton.jit
def update(
    x_ptr, out_ptr, eps_ptr, x0_ptr, row_ptr, seed, step, v, y, k, gamma, rho, eta,
    at, eps_at, base, plane, eps_c_stride, inside,
    VARIANT: tl.constexpr, LUMA: tl.constexpr, NOISE: tl.constexpr,
    KEEP_X0: tl.constexpr, MULTISTEP: tl.constexpr,
):  # fmt: skip
    """Take the x-step, write the luma back and store x_{t-1} by the row; return p and q.

    f̂₀ = f̃₀ + s · (Y_new − Y_old) on R, G and B, then a x_t + b f̂₀ + c f̂₀(previous) + σ z.
    ``base``: offset of the image in x_t, x_{t-1} and f̂₀; ``eps_ptr``: the image's ε.
    """
    recip, recipm1 = tl.load(row_ptr), tl.load(row_ptr + 1)
    a, b, c = tl.load(row_ptr + 2), tl.load(row_ptr + 3), tl.load(row_ptr + 4)
    x_r, x_g, x_b, r, g, bl = predict_rgb(
        x_ptr + base, eps_ptr, at, eps_at, plane, eps_c_stride, recip, recipm1, inside
    )
    luma = rgb_luma(r, g, bl, LUMA)
    p, q = inverse_weights(luma - v, y, gamma, rho, VARIANT)
    change = (_fused_luma(v, y, k, p, q, gamma, rho, eta, VARIANT) - luma) * LUMA[4]

    z_r, z_g, z_b = 0.0, 0.0, 0.0
    if NOISE != "none":
        z_r, z_g, z_b = _normals(seed, step, at)
        weight_ptr = eps_ptr + 3 * eps_c_stride
        z_r *= _sigma(weight_ptr, eps_at, row_ptr, inside, NOISE)
        weight_ptr += eps_c_stride
        z_g *= _sigma(weight_ptr, eps_at, row_ptr, inside, NOISE)
        weight_ptr += eps_c_stride
        z_b *= _sigma(weight_ptr, eps_at, row_ptr, inside, NOISE)
    _store_update(
        out_ptr, x_r, r + change, x0_ptr, base, at, a, b, c, z_r, inside, KEEP_X0, MULTISTEP
    )
    base += plane
    _store_update(
        out_ptr, x_g, g + change, x0_ptr, base, at, a, b, c, z_g, inside, KEEP_X0, MULTISTEP
    )
    base += plane
    _store_update(
        out_ptr, x_b, bl + change, x0_ptr, base, at, a, b, c, z_b, inside, KEEP_X0, MULTISTEP
    )
    return p, q


@triton.jit
def _summed(sums_ptr, tiles, BLOCK: tl.constexpr):
    """Add up ``tiles`` floats, always in the same order."""
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tiles, BLOCK):
        total += tl.load(sums_ptr + start + at, start + at < tiles, other=0.0)
    return tl.sum(total)


@triton.jit
def next_scale(sums_ptr, tiles, pixels, old, BLOCK: tl.constexpr):
    """Compute γ ← mean(p) + γ/2 (or ρ from q) from the tiles' sums."""
    return tl.div_rn(_summed(sums_ptr, tiles, BLOCK), pixels.to(tl.float32)) + old * 0.5


@triton.jit
def store_sums(partial_ptr, p, q, inside, n, tile, tiles):
    """Store a tile's sums of p and q into partial [N, 2, tiles]."""
    sums_ptr = partial_ptr + 2 * n * tiles + tile
    tl.store(sums_ptr, tl.sum(tl.where(inside, p, 0.0)))
    tl.store(sums_ptr + tiles, tl.sum(tl.where(inside, q, 0.0)))


@triton.jit
def begin_update(
    partial_ptr, scales_ptr, step_ptr, tiles, plane, steps,
    UPDATE_SCALES: tl.constexpr, SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    """Load this step's row, γ and ρ, and let one program write those of the next step.

    The image's first program finishes γ and ρ, from the sums of ``tiles`` tiles; the first program
    of all advances the counter. Grid: (programs of one image, N).
    """
    n = tl.program_id(1).to(tl.int64)
    current_ptr = scales_ptr + 2 * (tl.num_programs(1) + n)
    step = tl.load(step_ptr + 1)
    gamma, rho = tl.load(current_ptr), tl.load(current_ptr + 1)
    if UPDATE_SCALES:  # noqa: SIM102  (known when compiling, unlike the program)
        if tl.program_id(0) == 0:
            sums_ptr, next_ptr = partial_ptr + 2 * n * tiles, scales_ptr + 2 * n
            tl.store(next_ptr, next_scale(sums_ptr, tiles, plane, gamma, SUM_BLOCK))
            tl.store(next_ptr + 1, next_scale(sums_ptr + tiles, tiles, plane, rho, SUM_BLOCK))
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(step_ptr, (step + 1) % steps)
    return step, gamma, rho
