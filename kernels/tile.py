"""The method's step in one launch: a faster version of the loop body of ``ddfm_fast.naive``.

(I + ∇ᵀ∇)⁻¹ is local: its Green's function falls by 0.38 per pixel, and the part of it beyond 16
pixels sums to 2e-7. So a program solves k without an FFT on its own region, INNER pixels and HALO
more on each side (wrapped around the image, which is periodic), with two small dense cosine
transforms, and keeps the inside; whatever the region's edges do has died out there.

Twin: ``ddfm_fast.step.ReverseStep``, to 2e-6 of k's largest value and not to rounding.

Neighboring programs read each other's pixels, so nothing that is read may be written in the same
launch: x_t, k, the scales, their partial sums and the step counter are all held twice and change
places at every step. x_t and ε are read about four times, mostly from the L2 cache; 13 planes go
through memory. Every program adds up all tiles' sums of the step before, which is little up to
some Mpixel and grows with the square of the tiles' number.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_plane, on_device
from .pixel import next_scale, predict_rgb, rgb_luma, right_hand_side, store_sums, update
from .step import TritonStep

REGION, HALO = 64, 16
INNER = REGION - 2 * HALO
CHUNK = 16
"""rows, then columns, of a region that are in registers at once"""
PRECISION = "ieee"
"""of the transforms: float32 throughout; "tf32x3", three products on tensor cores, has to be
measured against it on a GPU"""
WARPS = 8


@triton.jit
def _wrapped(index, size):
    """Compute ``index`` modulo ``size``, not negative."""
    return ((index % size) + size) % size


@triton.jit
def _inside_of_solution(
    spectrum, basis_ptr, eigen_ptr,
    REGION: tl.constexpr, HALO: tl.constexpr, INNER: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Solve for k [INNER, INNER] from C · rhs [REGION, REGION].

    With C the orthonormal cosine transform of type 2, which diagonalizes ∇ᵀ∇ between mirrors, and
    λ its eigenvalues: k = Cᵀ (C rhs Cᵀ / (1 + λ + λᵀ)) C, CHUNK columns of the middle at a time.
    """
    mode, inner = tl.arange(0, REGION), tl.arange(0, INNER)
    eigen = tl.load(eigen_ptr + mode)
    columns = tl.zeros([REGION, INNER], tl.float32)
    for start in range(0, REGION, CHUNK):
        some = start + tl.arange(0, CHUNK)
        transform = tl.load(basis_ptr + some[None, :] * REGION + mode[:, None])
        part = tl.dot(spectrum, transform, input_precision=PRECISION)
        part = tl.div_rn(part, 1 + eigen[:, None] + tl.load(eigen_ptr + some)[None, :])
        back = tl.load(basis_ptr + some[:, None] * REGION + HALO + inner[None, :])
        columns = tl.dot(part, back, columns, input_precision=PRECISION)
    back = tl.load(basis_ptr + mode[None, :] * REGION + HALO + inner[:, None])
    return tl.dot(back, columns, input_precision=PRECISION)


@triton.jit
def rectify_tile_kernel(
    x_t_ptr,  # float32 [N, 3, H, W] contiguous
    out_ptr,  # out: x_{t-1}, another tensor of that shape
    eps_ptr,  # float32, bfloat16 or float16 [N, 3 or 6, H, W] by the strides below
    v_ptr,  # float32 [N, H, W], as every plane that follows
    y_ptr,  # i − v
    k_ptr,  # of the step before
    k_next_ptr,  # out: of this step
    target_ptr,  # ∇ᵀq of the variant "gradient", else None
    partial_ptr,  # float32 [N, 2, tiles]: the sums of p and q of the step before
    partial_next_ptr,  # out: of this step
    scales_ptr,  # float32 [N, 2]: γ and ρ of the step before
    scales_next_ptr,  # out: of this step
    table_ptr,  # float32 [S, 8]: the columns TABLE_COLUMNS
    step_ptr,  # int32 [1]: the row of this step
    step_next_ptr,  # out: of the next one
    seeds_ptr,  # int64 [N]
    x0_ptr,  # f̂₀ [N, 3, H, W]: the step before's in, this one's out; or None
    basis_ptr,  # float32 [REGION, REGION]: C, a mode a row
    eigen_ptr,  # float32 [REGION]: λ
    height,  # H
    width,  # W
    steps,  # S
    eps_n_stride,
    eps_c_stride,
    eps_h_stride,
    eps_w_stride,
    ratio,  # η / (2ψ + η)
    target_weight,  # 2ψ / (2ψ + η)
    eta,  # η
    VARIANT: tl.constexpr,
    LUMA: tl.constexpr,
    NOISE: tl.constexpr,
    UPDATE_SCALES: tl.constexpr,
    KEEP_X0: tl.constexpr,
    MULTISTEP: tl.constexpr,
    REGION: tl.constexpr,
    HALO: tl.constexpr,
    INNER: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):
    """Take a whole step of the inside of one region: right-hand side, k, x-step, update, sums.

    Grid: (tiles of one image, N); nothing here depends on N.
    """
    tile, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles, plane = tl.num_programs(0), height * width
    across = tl.cdiv(width, INNER)
    top, left = (tile // across) * INNER, (tile % across) * INNER
    image = n * plane
    step = tl.load(step_ptr)
    row_ptr = table_ptr + step * 8
    gamma, rho = tl.load(scales_ptr + 2 * n), tl.load(scales_ptr + 2 * n + 1)
    if UPDATE_SCALES:
        sums_ptr = partial_ptr + 2 * n * tiles
        gamma = next_scale(sums_ptr, tiles, plane, gamma, SUM_BLOCK)
        rho = next_scale(sums_ptr + tiles, tiles, plane, rho, SUM_BLOCK)
        if tile == 0:
            tl.store(scales_next_ptr + 2 * n, gamma)
            tl.store(scales_next_ptr + 2 * n + 1, rho)
    if tile + tl.program_id(1) == 0:
        tl.store(step_next_ptr, (step + 1) % steps)

    mode = tl.arange(0, REGION)
    col = _wrapped(left - HALO + mode, width)[None, :]
    spectrum = tl.zeros([REGION, REGION], tl.float32)
    if target_ptr is not None:
        target_ptr += image
    for start in range(0, REGION, CHUNK):
        some = start + tl.arange(0, CHUNK)
        row = _wrapped(top - HALO + some, height)[:, None]
        everywhere = (row >= 0) & (col >= 0)
        at = row * width + col
        x_r, x_g, x_b, r, g, b = predict_rgb(
            x_t_ptr + 3 * image,
            eps_ptr + n * eps_n_stride,
            at,
            row * eps_h_stride + col * eps_w_stride,
            plane,
            eps_c_stride,
            tl.load(row_ptr),
            tl.load(row_ptr + 1),
            everywhere,
        )
        x = rgb_luma(r, g, b, LUMA) - tl.load(v_ptr + image + at)
        rhs = right_hand_side(
            x, tl.load(y_ptr + image + at), k_ptr + image, target_ptr, row, col, height, width,
            everywhere, ratio, target_weight, VARIANT,
        )  # fmt: skip
        basis = tl.load(basis_ptr + mode[:, None] * REGION + some[None, :])
        spectrum = tl.dot(basis, rhs, spectrum, input_precision=PRECISION)
    k = _inside_of_solution(spectrum, basis_ptr, eigen_ptr, REGION, HALO, INNER, CHUNK, PRECISION)

    row, col = (top + tl.arange(0, INNER))[:, None], (left + tl.arange(0, INNER))[None, :]
    inside = (row < height) & (col < width)
    at = row * width + col
    tl.store(k_next_ptr + image + at, k, inside)
    p, q = update(
        x_t_ptr, out_ptr, eps_ptr + n * eps_n_stride, x0_ptr, row_ptr, tl.load(seeds_ptr + n),
        step, tl.load(v_ptr + image + at, inside), tl.load(y_ptr + image + at, inside), k,
        gamma, rho, eta, at, row * eps_h_stride + col * eps_w_stride, 3 * image, plane,
        eps_c_stride, inside, VARIANT, LUMA, NOISE, KEEP_X0, MULTISTEP,
    )  # fmt: skip
    if UPDATE_SCALES:
        store_sums(partial_next_ptr, p, q, inside, n, tile, tiles)


def cosine_basis(size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Make C [size, size] of the orthonormal DCT-II, a mode a row, and λ [size] of ∇ᵀ∇; float32."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * n[:, None] * (n + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    eigen = 4 * torch.sin(math.pi * n / (2 * size)) ** 2
    return basis.float().to(device), eigen.float().to(device)


class TileStep(TritonStep):
    """``TritonStep`` in one launch per step: ``step_`` writes x_{t-1} to another tensor.

    Takes the arguments of ``TritonStep`` but ``solver``. Agrees with the FFT to 2e-6. Two tensors
    for x take turns: a step reads one and writes the other, and after ``period`` steps it is as
    before.
    """

    period = 2

    def allocate(self, count: int, height: int, width: int) -> None:
        """Make what a step carries on, twice."""
        device = self.v.device
        tiles = triton.cdiv(height, INNER) * triton.cdiv(width, INNER)
        self.k_pair = torch.empty(2, count, height, width, device=device)
        self.partial_pair = torch.empty(2, count, 2, tiles, device=device)
        self.scale_pair = torch.empty(2, count, 2, device=device)
        self.step_pair = torch.empty(2, dtype=torch.int32, device=device)
        self.basis, self.eigen = cosine_basis(REGION, device)
        self.turn = 0

    @property
    def next_step(self) -> Tensor:
        """int32 [1] on the device: the row of the next step."""
        return self.step_pair[self.turn : self.turn + 1]

    @property
    def k(self) -> Tensor:
        """What the step before solved for, [N, H, W]."""
        return self.k_pair[self.turn]

    @property
    def scales(self) -> Tensor:
        """γ and ρ [N, 2] that the next step starts from."""
        old = self.scale_pair[self.turn]
        if not self.update_scales:
            return old
        return self.partial_pair[self.turn].sum(2) / self.v[0].numel() + old / 2

    def reset(self) -> None:
        """Go back to the state before the first step: k = 0, γ = ρ = 1, the first row next."""
        self.turn = 0
        self.k_pair[0].zero_()
        self.scale_pair.fill_(1)
        self.partial_pair[0].zero_()
        self.partial_pair[0, :, :, 0] = self.v[0].numel() / 2  # a mean of ½: γ = ½ + 1/2 = 1
        self.step_pair.zero_()

    def step_(self, x_t: Tensor, out: Tensor, after: Tensor | None = None) -> Tensor:
        """Take x_t to x_{t-1} by the next row, into another tensor.

        Args:
            x_t: float32 [N, 3, H, W] contiguous.
            out: The prior's output, as ``TritonStep`` takes it.
            after: Like x_t, in other memory; a new tensor by default.

        Returns:
            ``after``.
        """
        after = torch.empty_like(x_t) if after is None else after
        self.check_step(x_t, out)
        check_plane("after", after, tuple(x_t.shape), [torch.float32], device=x_t.device)
        if after.data_ptr() == x_t.data_ptr():
            raise ValueError(
                "after is x_t; expected another tensor: neighboring tiles still read x_t"
            )
        with on_device(x_t):
            self._launch(x_t, out, after)
        self.turn = 1 - self.turn
        return after

    def _launch(self, x_t: Tensor, out: Tensor, after: Tensor) -> None:
        now, then = self.turn, 1 - self.turn
        rectify_tile_kernel[self.partial_pair.shape[3], len(self.v)](
            x_t, after, out, self.v, self.y, self.k_pair[now], self.k_pair[then], self.target,
            self.partial_pair[now], self.partial_pair[then], self.scale_pair[now],
            self.scale_pair[then], self.table, self.step_pair[now:], self.step_pair[then:],
            self.seeds, self.x0, self.basis, self.eigen, *self.v.shape[1:], len(self.table),
            *out.stride(), self.ratio, self.target_weight, self.eta, **self.update_constants(),
            REGION=REGION, HALO=HALO, INNER=INNER, CHUNK=CHUNK, PRECISION=PRECISION,
            num_warps=WARPS, num_stages=1,
        )  # fmt: skip
