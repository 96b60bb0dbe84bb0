"""Everything between the prior's ε and x_{t-1} on a GPU: two fused kernels around the k-solve.

Twin: ``ddfm_fast.rectify``, whose module docstring has the equations. A step is

    _rectify_rhs_kernel      x_t, ε, v, y, k → right-hand side, sums of p and q tile by tile
    ksolve.solve_k_          right-hand side → k
    _rectify_update_kernel   x_t, ε, v, y, k → x_{t-1} in place, and f̂₀ where it is kept
    _finish_step_kernel      the tiles' sums, in their order → γ and ρ; the step counter moves on

What is pointwise is computed twice, so that between the two kernels only the right-hand side
and k go through memory. The coefficients lie in a table on the device, and a counter there says
which row is next: the host passes nothing that changes from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddfm_fast.rectify import (
    OFFICIAL_EPS,
    PAPER_FLOOR,
    Rectifier,
    Variant,
    get_variant,
    gradient_target,
)
from ddfm_fast.schedule import StepRow

from .ksolve import check_tensor, on_device, solve_k_

EPS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_H, BLOCK_W = 4, 128
"""the tile of a program: four neighbouring elements a thread, one 128-bit load each plane"""
FINISH_BLOCK = 1024

_OFFICIAL_EPS = tl.constexpr(OFFICIAL_EPS)
_PAPER_FLOOR = tl.constexpr(PAPER_FLOOR)
_BALANCED = tl.constexpr(math.sqrt(0.5))
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _inverse_weights(x, y, gamma, rho, VARIANT: tl.constexpr):
    """p = 1/m̄ and q = 1/n̄; twins: ``e_step`` and ``balanced_weights``."""
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
def _fused_luma(x, v, y, k, gamma, rho, eta, VARIANT: tl.constexpr):
    """f̂₀'s luma from x = f̃₀ − v and the solved k; twins: ``x_step``, ``x_step_printed``."""
    p, q = _inverse_weights(x, y, gamma, rho, VARIANT)
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
    """The five-point Laplacian of k, periodic; twin: ``add_divergence_`` (which has the sign).

    In the official code nothing wraps into the last row and column; their own first elements
    come again in the first row and column instead.
    """
    centre = tl.load(k_ptr + row * width + col, inside)
    above = tl.load(k_ptr + tl.where(row > 0, row - 1, height - 1) * width + col, inside)
    left = tl.load(k_ptr + row * width + tl.where(col > 0, col - 1, width - 1), inside)
    if VARIANT == "official":
        below = tl.load(k_ptr + (row + 1) * width + col, inside & (row + 1 < height), other=0.0)
        right = tl.load(k_ptr + row * width + col + 1, inside & (col + 1 < width), other=0.0)
        below += tl.where(row == 0, centre, 0.0)
        right += tl.where(col == 0, centre, 0.0)
    else:
        below = tl.load(k_ptr + tl.where(row + 1 < height, row + 1, 0) * width + col, inside)
        right = tl.load(k_ptr + row * width + tl.where(col + 1 < width, col + 1, 0), inside)
    return left + right + below + above - 4 * centre


@triton.jit
def _predicted(x_t, eps, recip, recipm1):
    """f̃₀ = clamp(recip · x_t − recipm1 · ε, −1, 1) of one channel; NaN stays NaN."""
    x0 = x_t * recip - eps.to(tl.float32) * recipm1
    return tl.clamp(x0, -1.0, 1.0, propagate_nan=_NAN)


@triton.jit
def _luma(r, g, b, LUMA: tl.constexpr):
    """The variant's luma of one pixel; LUMA: three weights, the offset, the write-back factor."""
    return r * LUMA[0] + g * LUMA[1] + b * LUMA[2] + LUMA[3]


@triton.jit
def _rectify_rhs_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous
    eps_ptr,  # float32, bfloat16 or float16 [N, 3, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    k_ptr,  # of the step before
    target_ptr,  # ∇ᵀq of the variant "gradient", else None
    scales_ptr,  # float32 [N, 2]: γ and ρ
    table_ptr,  # float32 [S, 8]: the fields of StepRow from recip on
    step_ptr,  # int32 [1]: the row of this step
    rhs_ptr,  # out
    partial_ptr,  # out: float32 [N, 2, tiles], the sums of p and q
    height,  # H
    width,  # W
    eps_n_stride,
    eps_c_stride,
    eps_h_stride,
    eps_w_stride,
    ratio,  # η / (2ψ + η)
    target_weight,  # 2ψ / (2ψ + η)
    VARIANT: tl.constexpr,
    LUMA: tl.constexpr,
    UPDATE_SCALES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """x + ∇ᵀu with x = f̃₀ − v and u = ratio · ∇k, and the E-step's sums, tile by tile.

    The official code has y − x for x; the variant "gradient" adds target_weight · ∇ᵀq and needs
    no sums. Grid: (tiles of one image, N); nothing here depends on N.
    """
    tile, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(width, BLOCK_W)
    row = (tile // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = (tile % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    inside = (row < height) & (col < width)
    plane = height * width
    at, image = row * width + col, n * plane
    row_ptr = table_ptr + tl.load(step_ptr) * 8
    recip, recipm1 = tl.load(row_ptr), tl.load(row_ptr + 1)

    x_ptr = x_t_ptr + 3 * image
    e_ptr = eps_ptr + n * eps_n_stride
    e_at = row * eps_h_stride + col * eps_w_stride
    r = _predicted(tl.load(x_ptr + at, inside), tl.load(e_ptr + e_at, inside), recip, recipm1)
    x_ptr += plane
    e_ptr += eps_c_stride
    g = _predicted(tl.load(x_ptr + at, inside), tl.load(e_ptr + e_at, inside), recip, recipm1)
    x_ptr += plane
    e_ptr += eps_c_stride
    b = _predicted(tl.load(x_ptr + at, inside), tl.load(e_ptr + e_at, inside), recip, recipm1)

    y = tl.load(y_ptr + image + at, inside)
    x = _luma(r, g, b, LUMA) - tl.load(v_ptr + image + at, inside)
    laplacian = _laplacian(k_ptr + image, row, col, height, width, inside, VARIANT)
    rhs = y - x + ratio * laplacian if VARIANT == "official" else x - ratio * laplacian
    if VARIANT == "gradient":
        rhs += target_weight * tl.load(target_ptr + image + at, inside)
    tl.store(rhs_ptr + image + at, rhs, inside)
    if UPDATE_SCALES:
        p, q = _inverse_weights(
            x, y, tl.load(scales_ptr + 2 * n), tl.load(scales_ptr + 2 * n + 1), VARIANT
        )
        sums_ptr = partial_ptr + 2 * n * tl.num_programs(0) + tile
        tl.store(sums_ptr, tl.sum(tl.where(inside, p, 0.0)))
        tl.store(sums_ptr + tl.num_programs(0), tl.sum(tl.where(inside, q, 0.0)))


@triton.jit
def _finish_step_kernel(
    partial_ptr,  # float32 [N, 2, tiles]
    scales_ptr,  # float32 [N, 2]: γ and ρ, in place
    step_ptr,  # int32 [1]: moves on by one, round to 0 after the last
    tiles,
    pixels,  # H W
    steps,  # S
    UPDATE_SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """γ ← mean(p) + γ/2 and ρ ← mean(q) + ρ/2 from the tiles' sums, added in one fixed order.

    Grid: (N,), or (1,) where the scales stay as they are.
    """
    n = tl.program_id(0)
    if n == 0:
        tl.store(step_ptr, (tl.load(step_ptr) + 1) % steps)
    if UPDATE_SCALES:
        p_ptr = partial_ptr + 2 * n.to(tl.int64) * tiles
        at = tl.arange(0, BLOCK)
        p = tl.zeros([BLOCK], tl.float32)
        q = tl.zeros([BLOCK], tl.float32)
        for start in range(0, tiles, BLOCK):
            p += tl.load(p_ptr + start + at, start + at < tiles, other=0.0)
            q += tl.load(p_ptr + tiles + start + at, start + at < tiles, other=0.0)
        count = pixels.to(tl.float32)
        gamma = tl.div_rn(tl.sum(p), count) + tl.load(scales_ptr + 2 * n) * 0.5
        rho = tl.div_rn(tl.sum(q), count) + tl.load(scales_ptr + 2 * n + 1) * 0.5
        tl.store(scales_ptr + 2 * n, gamma)
        tl.store(scales_ptr + 2 * n + 1, rho)


@triton.jit
def _store_update(
    x_ptr, x_t, x0, x0_ptr, noise_ptr, noise_base, base, at, a, b, c, inside,
    KEEP_X0: tl.constexpr, MULTISTEP: tl.constexpr,
):  # fmt: skip
    """a · x_t + b · f̂₀ + c · f̂₀(previous) + noise of one channel, in place of x_t."""
    new = x_t * a + x0 * b
    if MULTISTEP:
        # before the first step the plane holds anything, NaN too, and c is 0
        new += tl.where(c != 0, c * tl.load(x0_ptr + base + at, inside), 0.0)
    if KEEP_X0:
        tl.store(x0_ptr + base + at, x0, inside)
    if noise_ptr is not None:
        new += tl.load(noise_ptr + noise_base + at, inside)
    tl.store(x_ptr + base + at, new, inside)


@triton.jit
def _rectify_update_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous, in place
    eps_ptr,  # float32, bfloat16 or float16 [N, 3, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    k_ptr,  # of this step
    scales_ptr,  # float32 [N, 2]: γ and ρ from before this step
    table_ptr,  # float32 [S, 8]: the fields of StepRow from recip on
    step_ptr,  # int32 [1]: the row of this step
    noise_ptr,  # σ · z, float32 [N or 1, 3, H, W] contiguous, or None
    x0_ptr,  # f̂₀ [N, 3, H, W]: the step before's in, this one's out; or None
    height,  # H
    width,  # W
    eps_n_stride,
    eps_c_stride,
    eps_h_stride,
    eps_w_stride,
    noise_n_stride,  # 3 H W, or 0 for one noise for all
    eta,  # η
    VARIANT: tl.constexpr,
    LUMA: tl.constexpr,
    KEEP_X0: tl.constexpr,
    MULTISTEP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """f̂₀ = f̃₀ + s · (Y_new − Y_old) on R, G and B, and x_{t-1} = a x_t + b f̂₀ + c f̂₀prev + σz.

    Grid: (tiles of one image, N); nothing here depends on N.
    """
    tile, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(width, BLOCK_W)
    row = (tile // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = (tile % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    inside = (row < height) & (col < width)
    plane = height * width
    at, image = row * width + col, n * plane
    row_ptr = table_ptr + tl.load(step_ptr) * 8
    recip, recipm1 = tl.load(row_ptr), tl.load(row_ptr + 1)
    a, b, c = tl.load(row_ptr + 2), tl.load(row_ptr + 3), tl.load(row_ptr + 4)

    x_ptr = x_t_ptr + 3 * image
    e_ptr = eps_ptr + n * eps_n_stride
    e_at = row * eps_h_stride + col * eps_w_stride
    x_r = tl.load(x_ptr + at, inside)
    r = _predicted(x_r, tl.load(e_ptr + e_at, inside), recip, recipm1)
    x_ptr += plane
    e_ptr += eps_c_stride
    x_g = tl.load(x_ptr + at, inside)
    g = _predicted(x_g, tl.load(e_ptr + e_at, inside), recip, recipm1)
    x_ptr += plane
    e_ptr += eps_c_stride
    x_b = tl.load(x_ptr + at, inside)
    bl = _predicted(x_b, tl.load(e_ptr + e_at, inside), recip, recipm1)

    gamma, rho = tl.load(scales_ptr + 2 * n), tl.load(scales_ptr + 2 * n + 1)
    y, v = tl.load(y_ptr + image + at, inside), tl.load(v_ptr + image + at, inside)
    k = tl.load(k_ptr + image + at, inside)
    luma = _luma(r, g, bl, LUMA)
    fused = _fused_luma(luma - v, v, y, k, gamma, rho, eta, VARIANT)
    change = (fused - luma) * LUMA[4]

    base, noise_base = 3 * image, n * noise_n_stride
    _store_update(
        x_t_ptr, x_r, r + change, x0_ptr, noise_ptr, noise_base, base, at, a, b, c, inside,
        KEEP_X0, MULTISTEP,
    )  # fmt: skip
    base += plane
    noise_base += plane
    _store_update(
        x_t_ptr, x_g, g + change, x0_ptr, noise_ptr, noise_base, base, at, a, b, c, inside,
        KEEP_X0, MULTISTEP,
    )  # fmt: skip
    base += plane
    noise_base += plane
    _store_update(
        x_t_ptr, x_b, bl + change, x0_ptr, noise_ptr, noise_base, base, at, a, b, c, inside,
        KEEP_X0, MULTISTEP,
    )  # fmt: skip


def coefficient_table(rows: Sequence[StepRow], device) -> Tensor:
    """The rows as the kernels read them: float32 [S, 8], the fields of StepRow from recip on."""
    if not rows:
        raise ValueError("rows is empty; expected at least one StepRow, from schedule.step_rows")
    columns = ("recip", "recipm1", "a", "b", "c", "sigma", "log_var_min", "log_var_max")
    values = [[getattr(row, column) for column in columns] for row in rows]
    return torch.tensor(values, dtype=torch.float32, device=device)


def luma_constants(variant: Variant) -> tuple[float, ...]:
    """LUMA of the kernels: three weights, the offset and the write-back factor."""
    return (*variant.luma_weights, variant.luma_offset, variant.writeback)


class TritonRectifier:
    """``ddfm_fast.rectify.Rectifier`` on a GPU, with the state and the schedule on the device.

    i, v: luma planes [N, 1, H, W] float32 in [−1, 1] on one CUDA device; i is the infrared (or
    first) source. ``rows``: the schedule, in sampling order. The other arguments are those of
    ``Rectifier``, from which this differs so:

    - float32 only, and ``step_`` finds its row by a counter on the device;
    - ``x0`` is kept only with ``keep_x0=True``, or where a row has c ≠ 0 (three planes a step);
    - coefficients are rounded to float32 once, and a step's sums are added tile by tile, so that
      results agree with ``Rectifier`` to rounding, not bit for bit.

    ValueError or TypeError where an argument is of another device, dtype, shape or layout.
    """

    luma = Rectifier.luma
    grey = Rectifier.grey

    def __init__(
        self,
        i: Tensor,
        v: Tensor,
        *,
        rows: Sequence[StepRow],
        variant: str = "official",
        psi: float = 0.5,
        eta: float = 0.001,
        update_scales: bool = True,
        keep_x0: bool = False,
    ):
        if v.ndim != 4 or v.shape[1] != 1:
            raise ValueError(f"v has shape {tuple(v.shape)}; expected [N, 1, H, W]")
        check_tensor("v", v, v.shape, torch.float32, dense=False)
        check_tensor("i", i, v.shape, torch.float32, device=v.device, dense=False)
        count, _, height, width = v.shape
        if count > 65535:
            raise ValueError(f"v holds {count} images; expected at most 65535: take fewer a batch")
        self.variant = get_variant(variant)
        self.eta = eta
        self.ratio = eta / (2 * psi + eta)
        self.target_weight = 2 * psi / (2 * psi + eta)
        self.update_scales = update_scales and variant != "gradient"
        self.v, self.y = v[:, 0].contiguous(), (i - v)[:, 0].contiguous()
        self.target = gradient_target(i, v)[:, 0].contiguous() if variant == "gradient" else None
        self.luma_weights = torch.tensor(self.variant.luma_weights, device=v.device)
        self.table = coefficient_table(rows, v.device)
        self.multistep = any(row.c for row in rows)
        self.x0 = None
        if keep_x0 or self.multistep:
            self.x0 = torch.empty(count, 3, height, width, device=v.device)
        tiles = triton.cdiv(height, BLOCK_H) * triton.cdiv(width, BLOCK_W)
        self.k, self.rhs = torch.empty_like(self.v), torch.empty_like(self.v)
        self.scales = torch.empty(count, 2, device=v.device)
        self.partial = torch.empty(count, 2, tiles, device=v.device)
        self.step = torch.empty(1, dtype=torch.int32, device=v.device)
        self.reset()

    def reset(self) -> None:
        """Back to the state before the first step: k = 0, γ = ρ = 1, the first row next."""
        self.k.zero_()
        self.scales.fill_(1)
        self.step.zero_()

    def step_(
        self, x_t: Tensor, eps: Tensor, row: int | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """x_t → x_{t-1} in place: predict, rectify, and the sampler's update.

        x_t float32 [N, 3, H, W] contiguous; eps of that shape in float32, bfloat16 or float16
        with any strides (channels-last, half of a six-channel output); ``noise`` is σ·z, float32
        [N or 1, 3, H, W] contiguous. ``row`` puts the counter there first; None, the way to
        capture a step, goes on from the last (after the last row, with the first).
        """
        self._check(x_t, eps, noise)
        if row is not None:
            self.step.fill_(self._checked_row(row))
        self.rhs_(x_t, eps)
        solve_k_(self.rhs, self.k)
        self.update_(x_t, eps, noise)
        self.finish_()
        return x_t

    def rhs_(self, x_t: Tensor, eps: Tensor) -> None:
        """Launches ``_rectify_rhs_kernel``: fills ``rhs`` and ``partial``."""
        with on_device(x_t):
            _rectify_rhs_kernel[self._grid()](
                x_t, eps, self.v, self.y, self.k, self.target, self.scales, self.table, self.step,
                self.rhs, self.partial, *self.v.shape[1:], *eps.stride(),
                self.ratio, self.target_weight, VARIANT=self.variant.name,
                LUMA=luma_constants(self.variant), UPDATE_SCALES=self.update_scales,
                BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W,
            )  # fmt: skip

    def update_(self, x_t: Tensor, eps: Tensor, noise: Tensor | None = None) -> None:
        """Launches ``_rectify_update_kernel``: x_t in place, and ``x0`` where it is kept."""
        noise_n_stride = noise.stride(0) if noise is not None and len(noise) > 1 else 0
        with on_device(x_t):
            _rectify_update_kernel[self._grid()](
                x_t, eps, self.v, self.y, self.k, self.scales, self.table, self.step,
                noise, self.x0, *self.v.shape[1:], *eps.stride(), noise_n_stride,
                self.eta, VARIANT=self.variant.name, LUMA=luma_constants(self.variant),
                KEEP_X0=self.x0 is not None, MULTISTEP=self.multistep,
                BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W,
            )  # fmt: skip

    def finish_(self) -> None:
        """Launches ``_finish_step_kernel``: ``scales`` of the next step, and the counter."""
        height, width = self.v.shape[1:]
        grid = (len(self.v) if self.update_scales else 1,)
        with on_device(self.v):
            _finish_step_kernel[grid](
                self.partial, self.scales, self.step, self.partial.shape[2], height * width,
                len(self.table), UPDATE_SCALES=self.update_scales, BLOCK=FINISH_BLOCK,
            )  # fmt: skip

    def _grid(self) -> tuple[int, int]:
        return self.partial.shape[2], len(self.v)

    def _checked_row(self, row: int) -> int:
        if isinstance(row, bool) or not isinstance(row, int) or row not in range(len(self.table)):
            raise ValueError(
                f"row is {row!r}; expected an int from 0 to {len(self.table) - 1}, "
                "or None for the next"
            )
        return row

    def _check(self, x_t: Tensor, eps: Tensor, noise: Tensor | None) -> None:
        count, height, width = self.v.shape
        shape, device = (count, 3, height, width), self.v.device
        check_tensor("x_t", x_t, shape, torch.float32, device=device)
        check_tensor("eps", eps, shape, EPS_DTYPES, device=device, dense=False)
        if noise is not None:
            images = 1 if noise.shape[:1] == (1,) else count
            check_tensor("noise", noise, (images, *shape[1:]), torch.float32, device=device)
