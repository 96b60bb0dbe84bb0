"""The method's step on a GPU: a faster version of the loop body of ``ddfm_fast.naive``.

Twin: ``ddfm_fast.step.ReverseStep``; ``ddfm_fast.rectify`` has the equations. Everything between
the prior's ε and x_{t-1} is in two fused kernels around the k-solve:

    rectify_rhs_kernel      x_t, ε, v, y, k → right-hand side, sums of p and q tile by tile
    ksolve.TorchSolver      right-hand side → k
    rectify_update_kernel   x_t, ε, v, y, k → x_{t-1} in place, and f̂₀ where it is kept; from
                            the tiles' sums, in their order, γ and ρ of the next step

Pointwise values are computed twice, so that between the two kernels only the right-hand side and k
go through memory. The coefficients lie in a table on the device, and a counter there says which row
is next: the host passes nothing that changes from step to step. Counter and scales are kept twice,
"next" and "current": the first kernel copies next to current, which the second reads while one of
its programs writes next. So no program reads what another program of the same launch writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddfm_fast.rectify import Variant, get_variant, gradient_target
from ddfm_fast.runtime.profiling import span
from ddfm_fast.schedule import StepRow
from ddfm_fast.step import ReverseStep, check_noise

from .checks import DTYPES, check_plane, on_device
from .ksolve import SOLVERS
from .pixel import (
    TABLE_COLUMNS,
    begin_update,
    inverse_weights,
    predict_rgb,
    rgb_luma,
    right_hand_side,
    store_sums,
    update,
)

BLOCK_H, BLOCK_W = 4, 128
"""tile of a program: four neighboring elements per thread, one 128-bit load per plane"""
SUM_BLOCK = 1024
VECTOR = tl.constexpr(4)
"""elements of a load: 128 bits of float32"""
SIZES = (
    *("height", "width", "tiles", "steps"),
    *("eps_n_stride", "eps_c_stride", "eps_h_stride", "eps_w_stride"),
)
"""arguments whose values get no binary of their own: ``alignment`` tells what matters of them"""


@triton.jit
def aligned(size, ALIGNED: tl.constexpr):
    """Return ``size``, marked as a multiple of VECTOR if it is known to be one."""
    return size // VECTOR * VECTOR if ALIGNED else size


@triton.jit
def _tile(width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Find rows [BLOCK_H, 1] and columns [1, BLOCK_W] of this program's tile."""
    tile, tiles = tl.program_id(0), tl.cdiv(width, BLOCK_W)
    row = (tile // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = (tile % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    return row, col


@triton.jit(do_not_specialize=SIZES)
def rectify_rhs_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous
    eps_ptr,  # float32, bfloat16 or float16 [N, 3, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    k_ptr,  # of the previous step
    target_ptr,  # ∇ᵀq of the variant "gradient", else None
    scales_ptr,  # float32 [2, N, 2]: γ and ρ, next (in) and current (out)
    table_ptr,  # float32 [S, 8]: the columns TABLE_COLUMNS
    step_ptr,  # int32 [2]: the row of this step, next (in) and current (out)
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
    ALIGNED: tl.constexpr,
    EPS_ALIGNED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Compute x + ∇ᵀu with x = f̃₀ − v, u = ratio · ∇k, and the E-step's sums tile by tile.

    Grid: (tiles of one image, N); nothing here depends on N.
    """
    tile, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    width = aligned(width, ALIGNED)
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    plane = height * width
    at, image = row * width + col, n * plane
    step = tl.load(step_ptr)
    row_ptr = table_ptr + step * 8
    if EPS_ALIGNED:
        eps_w_stride = 1
    x_r, x_g, x_b, r, g, b = predict_rgb(
        x_t_ptr + 3 * image,
        eps_ptr + n * aligned(eps_n_stride, EPS_ALIGNED),
        at,
        row * aligned(eps_h_stride, EPS_ALIGNED) + col * eps_w_stride,
        plane,
        aligned(eps_c_stride, EPS_ALIGNED),
        tl.load(row_ptr),
        tl.load(row_ptr + 1),
        inside,
    )
    y = tl.load(y_ptr + image + at, inside)
    x = rgb_luma(r, g, b, LUMA) - tl.load(v_ptr + image + at, inside)
    if target_ptr is not None:
        target_ptr += image
    rhs = right_hand_side(
        x, y, k_ptr + image, target_ptr, row, col, height, width, inside, ratio, target_weight,
        VARIANT,
    )  # fmt: skip
    tl.store(rhs_ptr + image + at, rhs, inside)
    if UPDATE_SCALES:
        gamma, rho = tl.load(scales_ptr + 2 * n), tl.load(scales_ptr + 2 * n + 1)
        p, q = inverse_weights(x, y, gamma, rho, VARIANT)
        store_sums(partial_ptr, p, q, inside, n, tile, tl.num_programs(0))
        if tile == 0:
            current_ptr = scales_ptr + 2 * (tl.num_programs(1) + n)
            tl.store(current_ptr, gamma)
            tl.store(current_ptr + 1, rho)
    if tile + tl.program_id(1) == 0:
        tl.store(step_ptr + 1, step)


@triton.jit(do_not_specialize=SIZES)
def rectify_update_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous, in place
    eps_ptr,  # float32, bfloat16 or float16 [N, 3 or 6, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    k_ptr,  # of this step
    k_next_ptr,  # where the next step looks for k, or None if it is already there
    partial_ptr,  # float32 [N, 2, tiles], this step's sums of p and q
    scales_ptr,  # float32 [2, N, 2]: γ and ρ, next (out) and current (in)
    table_ptr,  # float32 [S, 8]: the columns TABLE_COLUMNS
    step_ptr,  # int32 [2]: the row of this step, next (out) and current (in)
    seeds_ptr,  # int64 [N]
    x0_ptr,  # f̂₀ [N, 3, H, W]: the previous step's in, this one's out; or None
    height,  # H
    width,  # W
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
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    """Compute f̂₀ = f̃₀ + s · (Y_new − Y_old) and x_{t-1} = a x_t + b f̂₀ + c f̂₀(previous) + σz.

    The first tile of an image also finishes its γ and ρ; the first of all advances the counter.
    Grid: (tiles of one image, N); nothing here depends on N.
    """
    n, width = tl.program_id(1).to(tl.int64), aligned(width, ALIGNED)
    plane = height * width
    step, gamma, rho = begin_update(
        partial_ptr, scales_ptr, step_ptr, tl.num_programs(0), plane, steps, UPDATE_SCALES,
        SUM_BLOCK,
    )  # fmt: skip
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    at, image = row * width + col, n * plane
    k = tl.load(k_ptr + image + at, inside)
    if k_next_ptr is not None:
        tl.store(k_next_ptr + image + at, k, inside)
    if EPS_ALIGNED:
        eps_w_stride = 1
    eps_at = row * aligned(eps_h_stride, EPS_ALIGNED) + col * eps_w_stride
    update(
        x_t_ptr, x_t_ptr, eps_ptr + n * aligned(eps_n_stride, EPS_ALIGNED), x0_ptr,
        table_ptr + step * 8, tl.load(seeds_ptr + n), step,
        tl.load(v_ptr + image + at, inside), tl.load(y_ptr + image + at, inside), k,
        gamma, rho, eta, at, eps_at, 3 * image, plane, aligned(eps_c_stride, EPS_ALIGNED), inside,
        VARIANT, LUMA, NOISE, KEEP_X0, MULTISTEP,
    )  # fmt: skip


def coefficient_table(rows: Sequence[StepRow], device) -> Tensor:
    """Lay the rows out as the kernels read them: float32 [S, 8], the columns TABLE_COLUMNS."""
    if not rows:
        raise ValueError("rows is empty; expected at least one StepRow, from schedule.step_rows")
    values = [[getattr(row, column) for column in TABLE_COLUMNS] for row in rows]
    return torch.tensor(values, dtype=torch.float32, device=device)


def luma_constants(variant: Variant) -> tuple[float, ...]:
    """Return LUMA of the kernels: three weights, the offset and the write-back factor."""
    return (*variant.luma_weights, variant.luma_offset, variant.writeback)


class TritonStep:
    """``ddfm_fast.step.ReverseStep`` on a GPU, with the state and the schedule on the device.

    It differs from its twin as follows:

    - it is for float32 only, and ``step_`` finds its row by a counter on the device;
    - ``x0`` is kept only with ``keep_x0=True``, or where a row has c ≠ 0 (three planes per step);
    - coefficients are rounded to float32 once, and a step's sums are added tile by tile, so that
      results agree to rounding, not bit for bit.

    Implements ``ddfm_fast.step.Step``.

    Args:
        i, v: Luma planes [N, 1, H, W] float32 in [−1, 1] on one CUDA device; i is the infrared (or
            first) source.
        keep_x0: Whether ``x0`` holds f̂₀ after each step.
        solver: "torch" or "cupy", see ``ksolve``; ``local.LocalStep`` needs none.
        rows, noise, seeds, variant, psi, eta, update_scales: As ``ReverseStep`` takes them.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong device, shape or layout, or an unknown name.
    """

    counts_on_device = True
    channels = 3
    luma = ReverseStep.luma
    gray = ReverseStep.gray

    def __init__(
        self,
        i: Tensor,
        v: Tensor,
        *,
        rows: Sequence[StepRow],
        noise: str = "none",
        seeds: Tensor | None = None,
        variant: str = "official",
        psi: float = 0.5,
        eta: float = 0.001,
        update_scales: bool = True,
        keep_x0: bool = False,
        solver: str = "torch",
    ):
        if v.ndim != 4 or v.shape[1] != 1:
            raise ValueError(f"v has shape {tuple(v.shape)}; expected [N, 1, H, W]")
        self._check_sources(i, v, v.shape, v.device)
        count, _, height, width = v.shape
        if count > 65535:
            raise ValueError(f"v holds {count} images; expected at most 65535: split the batch")
        self.variant = get_variant(variant)
        self.noise = check_noise(noise)
        self.eta = eta
        self.ratio = eta / (2 * psi + eta)
        self.target_weight = 2 * psi / (2 * psi + eta)
        self.update_scales = update_scales and variant != "gradient"
        self.luma_weights = torch.tensor(self.variant.luma_weights, device=v.device)
        self.table = coefficient_table(rows, v.device)
        self.multistep = any(row.c for row in rows)
        self.seeds = torch.zeros(count, dtype=torch.int64, device=v.device)
        self.v, self.y = torch.empty_like(v[:, 0]), torch.empty_like(v[:, 0])
        self.target = torch.empty_like(self.v) if variant == "gradient" else None
        self.x0 = None
        if keep_x0 or self.multistep:
            self.x0 = torch.empty(count, 3, height, width, device=v.device)
        self.solver = solver
        self.allocate(count, height, width)
        self.load_(i, v, seeds)

    def allocate(self, count: int, height: int, width: int) -> None:
        """Allocate what a step carries over, and what it needs in between."""
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; expected one of {', '.join(SOLVERS)}")
        self.solve = SOLVERS[self.solver]((count, height, width), self.v.device)
        self.allocate_state(count, height, width)

    def allocate_state(self, count: int, height: int, width: int) -> None:
        """Allocate what a step carries over, the right-hand side and the sums of its tiles."""
        device = self.v.device
        tiles = triton.cdiv(height, BLOCK_H) * triton.cdiv(width, BLOCK_W)
        self.k_plane, self.rhs = torch.empty_like(self.v), torch.empty_like(self.v)
        self.partial = torch.empty(count, 2, tiles, device=device)
        self.scale_pair = torch.empty(2, count, 2, device=device)
        self.step_pair = torch.empty(2, dtype=torch.int32, device=device)

    @property
    def next_step(self) -> Tensor:
        """int32 [1] on the device: the row of the next step."""
        return self.step_pair[:1]

    @property
    def k(self) -> Tensor:
        """The k that the previous step solved for, [N, H, W]."""
        return self.k_plane

    @property
    def scales(self) -> Tensor:
        """γ and ρ [N, 2] that the next step starts from."""
        return self.scale_pair[0]

    def load_(self, i: Tensor, v: Tensor, seeds: Tensor | None = None) -> None:
        """Take other images of the same shape, in place, and ``reset``."""
        count, height, width = self.v.shape
        self._check_sources(i, v, (count, 1, height, width), self.v.device)
        self.v.copy_(v[:, 0])
        torch.sub(i[:, 0], v[:, 0], out=self.y)
        if self.target is not None:
            self.target.copy_(gradient_target(i, v)[:, 0])
        if seeds is not None:
            check_plane("seeds", seeds, (count,), [torch.int64], device=self.v.device)
            self.seeds.copy_(seeds)
        self.reset()

    def reset(self) -> None:
        """Go back to the state before the first step: k = 0, γ = ρ = 1, the first row next."""
        self.k.zero_()
        self.scale_pair.fill_(1)
        self.step_pair.zero_()

    def resume_(self, step: int, k: Tensor, scales: Tensor, x0: Tensor | None = None) -> None:
        """Take another step's state: row ``step`` next, k [N, H, W], γ and ρ [N, 2], f̂₀."""
        self.k.copy_(k)
        self.scale_pair[0].copy_(scales)
        self.step_pair.fill_(step)
        if x0 is not None and self.x0 is not None:
            self.x0.copy_(x0)

    def step_(self, x_t: Tensor, out: Tensor) -> Tensor:
        """Take x_t to x_{t-1} in place by the next row: predict, rectify, update.

        After the last row comes the first.

        Args:
            x_t: float32 [N, 3, H, W] contiguous.
            out: The prior's output [N, 3, H, W], ε, or [N, 6, H, W], with the variance half that
                noise "learned" needs, in float32, bfloat16 or float16 with any strides
                (channels_last, part of a wider output).

        Returns:
            ``x_t``.
        """
        self.check_step(x_t, out)
        with span("rhs"):
            self.rhs_(x_t, out)
        with span("solve"):
            k = self.solve(self.rhs, self.k)
        self.update_(x_t, out, k)
        return x_t

    def rhs_(self, x_t: Tensor, out: Tensor) -> None:
        """Launch ``rectify_rhs_kernel``: fill ``rhs`` and ``partial``."""
        with on_device(x_t):
            rectify_rhs_kernel[self._grid()](
                x_t, out, self.v, self.y, self.k, self.target, self.scale_pair, self.table,
                self.step_pair, self.rhs, self.partial, *self.v.shape[1:], *out.stride(),
                self.ratio, self.target_weight, VARIANT=self.variant.name,
                LUMA=luma_constants(self.variant), UPDATE_SCALES=self.update_scales,
                **self.alignment(out), BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W,
            )  # fmt: skip

    def update_(self, x_t: Tensor, out: Tensor, k: Tensor) -> None:
        """Launch ``rectify_update_kernel``: x_t in place, ``x0`` if it is kept, the scales.

        ``k`` [N, H, W], this step's, ends up in ``self.k``.
        """
        with on_device(x_t):
            rectify_update_kernel[self._grid()](
                x_t, out, self.v, self.y, k, None if k is self.k else self.k, self.partial,
                self.scale_pair, self.table, self.step_pair, self.seeds, self.x0,
                *self.v.shape[1:], len(self.table), *out.stride(), self.eta,
                **self.update_constants(), **self.alignment(out), BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W,
            )  # fmt: skip

    def update_constants(self) -> dict:
        """Return the constants of the kernel that updates x_t."""
        return dict(
            VARIANT=self.variant.name,
            LUMA=luma_constants(self.variant),
            NOISE=self.noise,
            UPDATE_SCALES=self.update_scales,
            KEEP_X0=self.x0 is not None,
            MULTISTEP=self.multistep,
            SUM_BLOCK=SUM_BLOCK,
        )

    def alignment(self, out: Tensor) -> dict:
        """Return both kernels' constants that depend on sizes: whether rows allow wide loads.

        No other property of a size is compiled in, so a new image size compiles no new binary.
        """
        *strides, across = out.stride()
        eps = across == 1 and all(stride % VECTOR.value == 0 for stride in strides)
        return dict(ALIGNED=self.v.shape[2] % VECTOR.value == 0, EPS_ALIGNED=eps)

    def _grid(self) -> tuple[int, int]:
        return self.partial.shape[2], len(self.v)

    @staticmethod
    def _check_sources(i: Tensor, v: Tensor, shape: tuple, device: torch.device) -> None:
        check_plane("v", v, shape, [torch.float32], device=device, dense=False)
        check_plane("i", i, shape, [torch.float32], device=device, dense=False)

    def check_step(self, x_t: Tensor, out: Tensor) -> None:
        """Raise TypeError or ValueError unless ``step_`` can take x_t and the prior's output."""
        count, height, width = self.v.shape
        shape, device = (count, 3, height, width), self.v.device
        check_plane("x_t", x_t, shape, [torch.float32], device=device)
        if self.noise == "learned" or out.shape[1:2] == (6,):
            shape = (count, 6, height, width)
        check_plane("out", out, shape, DTYPES, device=device, dense=False)
