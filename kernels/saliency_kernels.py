"""Device code of ``saliency``, which describes and launches the kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from ddfm_fast.target.choose import BLACK_MARGIN
from ddfm_fast.target.terms import (
    CENTER,
    COLD_LUMA,
    COLD_SKY,
    CONFLICT_SLOPE,
    CORRELATION_FLOOR,
    GUIDE_EPS,
    SKY_LUMA,
    SKY_SLOPE,
    SKY_STD,
)

_NAN = tl.constexpr(tl.PropagateNan.ALL)
_TO_INTEGER = tl.constexpr(1.5 * 2**23)
"""adding and subtracting it rounds a small float32, halves to even, as ``torch.round`` does"""
_FLOOR = tl.constexpr(CORRELATION_FLOOR**2)
_CONFLICT_SLOPE = tl.constexpr(CONFLICT_SLOPE)
_GUIDE_EPS = tl.constexpr(GUIDE_EPS)
_SKY_LUMA, _SKY_SLOPE = tl.constexpr(SKY_LUMA), tl.constexpr(SKY_SLOPE)
_COLD_LUMA, _COLD_SKY = tl.constexpr(COLD_LUMA), tl.constexpr(COLD_SKY)
_CENTER = tl.constexpr(CENTER)
_SKY_VAR = tl.constexpr(SKY_STD**2)
_BLACK_MARGIN = tl.constexpr(BLACK_MARGIN)
_TINY_SHARE = tl.constexpr(1e-8)
"""``_TINY`` of ``terms``"""
_TINY_ENERGY = tl.constexpr(1e-12)
"""``_TINY`` of ``choose``"""

WEIGHT, SKY, CONFLICT, PICK = range(4)
"""planes of a level's maps, which are computed at levels 2, 1, 2 and 3"""
_WEIGHT, _SKY, _CONFLICT, _PICK = (tl.constexpr(plane) for plane in (WEIGHT, SKY, CONFLICT, PICK))


@triton.jit
def _tile(width, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Find rows [BLOCK_H, 1] and columns [1, BLOCK_W] of this program's tile."""
    tile, tiles = tl.program_id(0), tl.cdiv(width, BLOCK_W)
    row = (tile // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = (tile % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    return row, col


@triton.jit
def _offset(plane, height, width):
    """Find where this program's image starts in a plane of a stack [P, N, H, W]; 64 bits."""
    image = tl.program_id(1).to(tl.int64) + plane * tl.num_programs(1).to(tl.int64)
    return image * (height * width)


@triton.jit
def _mean(x_ptr, y_ptr, row, col, height, width, inside, TAPS: tl.constexpr, center=0.0):
    """Filter (x − center)(y − center), or x without y_ptr, by the binomial filter or twice it.

    TAPS: 5 for once, 9 for twice. Along rows and columns the weights are binomial coefficients,
    here in integers. Places outside are mirrored at the borders: |(place + 5 p) mod 2p − p| with
    p = size − 1, from −4 on.
    """
    last_row, last_col = height - 1, width - 1
    turn_row, turn_col = 2 * last_row, 2 * last_col
    row += 5 * last_row - TAPS // 2
    col += 5 * last_col - TAPS // 2
    total = (row + col) * 0.0
    weight_row = 1
    for k in range(TAPS):
        start = tl.abs((row + k) % turn_row - last_row) * width
        line = (row + col) * 0.0
        weight = 1
        for m in tl.static_range(TAPS):
            at = start + tl.abs((col + m) % turn_col - last_col)
            x = tl.load(x_ptr + at, inside)
            if y_ptr is not None:
                x = (x - center) * (tl.load(y_ptr + at, inside) - center)
            line += x * weight
            weight = weight * (TAPS - 1 - m) // (m + 1)
        total += line * weight_row
        weight_row = weight_row * (TAPS - 1 - k) // (k + 1)
    return total * (1 / 4 ** (TAPS - 1))


@triton.jit
def _doubled(x_ptr, row, col, height, width, inside):
    """Double the plane of ceil(H/2) × ceil(W/2) to the places of H × W; twin: ``pyramid.up``.

    Along rows and columns by (1, 6, 1) / 8 at even places and (0, 1, 1) / 2 at odd ones.
    """
    last_row, last_col = (height - 1) // 2, (width - 1) // 2
    even_row, even_col = row % 2 == 0, col % 2 == 0
    total = (row + col) * 0.0
    for k in tl.static_range(3):
        start = tl.minimum(tl.abs(row // 2 + (k - 1)), last_row) * (last_col + 1)
        line = (row + col) * 0.0
        for m in tl.static_range(3):
            at = start + tl.minimum(tl.abs(col // 2 + (m - 1)), last_col)
            line += tl.load(x_ptr + at, inside) * tl.where(even_col, 1 + 5 * (m % 2), 4 * (m > 0))
        total += line * tl.where(even_row, 1 + 5 * (k % 2), 4 * (k > 0))
    return total * (1 / 64)


@triton.jit
def down_kernel(
    x_ptr,  # float32 [·, N, H, W] contiguous
    out_ptr,  # out: float32 [·, N, ceil(H/2), ceil(W/2)]
    height,  # H
    width,  # W
    FIRST: tl.constexpr,
    PRODUCTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Smooth the planes from FIRST on and keep every second row and column.

    PRODUCTS: of two planes a, b, what is filtered is a, b, b², ab, a², the last three of
    a − ½ and b − ½. Grid: (tiles, N, P).
    """
    plane = FIRST + tl.program_id(2)
    height_out, width_out = (height + 1) // 2, (width + 1) // 2
    row, col = _tile(width_out, BLOCK_H, BLOCK_W)
    inside = (row < height_out) & (col < width_out)
    at = _offset(plane, height_out, width_out) + row * width_out + col
    if PRODUCTS and plane >= 2:
        a_ptr = x_ptr + _offset((plane == 2).to(tl.int32), height, width)
        b_ptr = x_ptr + _offset((plane < 4).to(tl.int32), height, width)
        total = _mean(a_ptr, b_ptr, 2 * row, 2 * col, height, width, inside, 5, _CENTER)
    else:
        x_ptr += _offset(plane, height, width)
        total = _mean(x_ptr, None, 2 * row, 2 * col, height, width, inside, 5)
    tl.store(out_ptr + at, total, inside)


@triton.jit
def up_kernel(
    x_ptr,  # float32 [·, N, ceil(H/2), ceil(W/2)] contiguous
    fine_ptr,  # float32 [·, N, H, W], or None
    out_ptr,  # out: float32 [·, N, H, W]
    height,  # H
    width,  # W
    FIRST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Double the planes from FIRST on, or subtract that from the fine planes: their bands.

    Grid: (tiles, N, P).
    """
    plane = FIRST + tl.program_id(2)
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    at = _offset(plane, height, width) + row * width + col
    x_ptr += _offset(plane, (height + 1) // 2, (width + 1) // 2)
    out = _doubled(x_ptr, row, col, height, width, inside)
    if fine_ptr is not None:
        out = tl.load(fine_ptr + at, inside, other=0.0) - out
    tl.store(out_ptr + at, out, inside)


@triton.jit
def _nine(x_ptr, row, col, height, width, inside, A: tl.constexpr, B: tl.constexpr):
    """Filter plane A of a stack, times plane B unless that is None, by nine taps."""
    a_ptr, b_ptr = x_ptr + _offset(A, height, width), None
    if B is not None:
        b_ptr = x_ptr + _offset(B, height, width)
    return _mean(a_ptr, b_ptr, row, col, height, width, inside, 9)


@triton.jit
def map_kernel(
    x_ptr,  # float32 [·, N, H, W] contiguous: what STAGE needs
    guide_ptr,  # float32 [2, N, H, W]: of "guided" plane 1 is the guide, of "pick" i, v; else None
    out_ptr,  # out: float32 [·, N, H, W], planes FIRST and on
    var_ptr,  # out of "conflict": float32 [2, N, H, W], the sources' variances times C; else None
    most,  # most share that "conflict" takes, see ``choose``
    height,  # H
    width,  # W
    STAGE: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Compute a map from local means by the filter of nine taps; twins: ``terms``.

    sky: of mean and variance of v (planes 1 and 2 are v and v²). conflict: of i, v, v², iv, i².
    pick: of two variances. fit: slope and offset of the weight (plane 0) over the guide (plane 1),
    from which "guided" makes the smooth weight. Grid: (tiles, N).
    """
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    at, first = row * width + col, _offset(FIRST, height, width)
    if STAGE == "sky":
        mean = _nine(x_ptr, row, col, height, width, inside, 1, None)
        centered = mean - _CENTER
        var = _nine(x_ptr, row, col, height, width, inside, 2, None) - centered * centered
        flat = tl.exp(-tl.maximum(var, 0.0, propagate_nan=_NAN) / _SKY_VAR)
        out = tl.sigmoid((mean - _SKY_LUMA) * _SKY_SLOPE) * flat
    elif STAGE == "conflict":
        i = _nine(x_ptr, row, col, height, width, inside, 0, None) - _CENTER
        v = _nine(x_ptr, row, col, height, width, inside, 1, None) - _CENTER
        var_v = _nine(x_ptr, row, col, height, width, inside, 2, None) - v * v
        both = _nine(x_ptr, row, col, height, width, inside, 3, None) - i * v
        var_i = _nine(x_ptr, row, col, height, width, inside, 4, None) - i * i
        var_i = tl.maximum(var_i, 0.0, propagate_nan=_NAN)
        var_v = tl.maximum(var_v, 0.0, propagate_nan=_NAN)
        correlation = both / tl.sqrt_rn((var_i + _FLOOR) * (var_v + _FLOOR))
        out = tl.clamp(correlation * -_CONFLICT_SLOPE, 0.0, 1.0, propagate_nan=_NAN)
        tl.store(var_ptr + _offset(0, height, width) + at, out * var_i, inside)
        tl.store(var_ptr + _offset(1, height, width) + at, out * var_v, inside)
        out *= most
    elif STAGE == "pick":
        i = _nine(x_ptr, row, col, height, width, inside, 0, None) + _TINY_SHARE
        v = _nine(x_ptr, row, col, height, width, inside, 1, None) + _TINY_SHARE
        out = tl.sigmoid((i / (i + v) - 0.5) * 12)
        i = tl.load(guide_ptr + _offset(0, height, width) + at, inside, other=0.0)
        v = tl.load(guide_ptr + _offset(1, height, width) + at, inside, other=0.0)
        cold = tl.sigmoid((i - _COLD_LUMA) * -_SKY_SLOPE)
        out *= 1 - cold * tl.sigmoid((v - _SKY_LUMA) * _SKY_SLOPE) * _COLD_SKY
    elif STAGE == "fit":
        w = _nine(x_ptr, row, col, height, width, inside, 0, None)
        g = _nine(x_ptr, row, col, height, width, inside, 1, None)
        both = _nine(x_ptr, row, col, height, width, inside, 0, 1) - g * w
        out = both / (_nine(x_ptr, row, col, height, width, inside, 1, 1) - g * g + _GUIDE_EPS)
        tl.store(out_ptr + _offset(FIRST + 1, height, width) + at, w - out * g, inside)
    else:
        guide = tl.load(guide_ptr + _offset(1, height, width) + at, inside, other=0.0)
        out = _nine(x_ptr, row, col, height, width, inside, 0, None) * guide
        out += _nine(x_ptr, row, col, height, width, inside, 1, None)
        out = tl.clamp(out, 0.0, 1.0, propagate_nan=_NAN)
    tl.store(out_ptr + first + at, out, inside)


@triton.jit
def _gray(x):
    """Round x in [0, 1] to one of 256 grays."""
    gray = (x * 255 + _TO_INTEGER) - _TO_INTEGER
    return tl.minimum(tl.maximum(gray.to(tl.int32), 0), 255)


@triton.jit
def salience_kernel(
    x_ptr,  # float32 [·, N, H, W] contiguous: i and v
    table_ptr,  # out: float32 [2, N, 256]
    pixels,  # H · W
    BLOCK: tl.constexpr,
):
    """Compute Σ_b count(b) |a − b|, scaled to 0..1 over the grays that occur; whole numbers first.

    = a (2 C_a − C) − (2 M_a − M), with C_a, M_a the sums of count(b), b count(b) over b ≤ a and
    C, M over all. Twin: ``terms.salience``. Grid: (1, N, 2).
    """
    image = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    gray, lane = tl.arange(0, 512), tl.arange(0, BLOCK)  # what lies outside counts as gray 256
    counts = gray * 0
    for start in range(0, pixels, BLOCK):
        inside = start + lane < pixels
        x = tl.load(x_ptr + image * pixels + start + lane, inside, other=0.0)
        counts += tl.histogram(tl.where(inside, _gray(x), 256), 512)
    counts = tl.where(gray < 256, counts, 0).to(tl.int64)
    moments = counts * gray
    sums = gray * (2 * tl.cumsum(counts) - tl.sum(counts))
    sums += tl.sum(moments) - 2 * tl.cumsum(moments)
    low = tl.min(tl.where(counts > 0, sums, 2**62))
    high = tl.max(tl.where(counts > 0, sums, 0))
    scaled = (sums - low).to(tl.float32) / tl.maximum(high - low, 1).to(tl.float32)
    tl.store(table_ptr + image * 256 + gray, scaled, gray < 256)


@triton.jit
def weight_kernel(
    x_ptr,  # float32 [·, N, H, W]: i, v
    table_ptr,  # float32 [2, N, 256]
    out_ptr,  # out: float32 [2, N, H, W], weight and guide
    salient,
    bright,
    slope,
    height,  # H
    width,  # W
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Weigh the infrared by salience and brightness; twin: ``terms.base_weight``."""
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    at = row * width + col
    i = tl.load(x_ptr + _offset(0, height, width) + at, inside, other=0.0)
    v = tl.load(x_ptr + _offset(1, height, width) + at, inside, other=0.0)
    salience_i = tl.load(table_ptr + _offset(0, 1, 256) + _gray(i))
    salience_v = tl.load(table_ptr + _offset(1, 1, 256) + _gray(v))
    weight = (salience_i - salience_v) * (salient * 0.5) + 0.5
    weight += (tl.sigmoid((i - v) * slope) - 0.5) * bright
    tl.store(out_ptr + _offset(0, height, width) + at, weight, inside)
    tl.store(out_ptr + _offset(1, height, width) + at, (i + v) * 0.5, inside)


@triton.jit
def _base(x_ptr, maps_ptr, at, pixels, inside, sky_base):
    """Load i and v, and mix them by the weight: the pick where they conflict, less of i in sky."""
    i = tl.load(x_ptr + _offset(0, 1, pixels) + at, inside, other=0.0)
    v = tl.load(x_ptr + _offset(1, 1, pixels) + at, inside, other=0.0)
    if maps_ptr is None:
        weight = i * 0 + 0.5
    else:
        weight = tl.load(maps_ptr + _offset(_WEIGHT, 1, pixels) + at, inside, other=0.0)
        conflict = tl.load(maps_ptr + _offset(_CONFLICT, 1, pixels) + at, inside, other=0.0)
        pick = tl.load(maps_ptr + _offset(_PICK, 1, pixels) + at, inside, other=0.0)
        sky = tl.load(maps_ptr + _offset(_SKY, 1, pixels) + at, inside, other=0.0)
        weight += (pick - weight) * conflict
        weight *= 1 - sky_base * sky
    return i, v, v + (i - v) * weight


@triton.jit
def base_kernel(
    x_ptr,  # float32 [·, N, H, W]: i, v
    maps_ptr,  # float32 [4, N, H, W] or None
    out_ptr,  # out: float32 [N, H, W]
    pixels,  # H · W
    sky_base,
    contrast,
    most_contrast,
    STRETCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mix the coarsest level, and bring its contrast up to the sources'. Grid: (1, N).

    Computes means first, then the deviations from them.
    """
    lane = tl.arange(0, BLOCK)
    mean, factor = 0.0, 1.0
    if STRETCH:
        total_i, total_v, total = lane * 0.0, lane * 0.0, lane * 0.0
        for start in range(0, pixels, BLOCK):
            i, v, out = _base(
                x_ptr, maps_ptr, start + lane, pixels, start + lane < pixels, sky_base
            )
            total_i, total_v, total = total_i + i, total_v + v, total + out
        mean_i, mean_v = tl.sum(total_i) / pixels, tl.sum(total_v) / pixels
        mean = tl.sum(total) / pixels
        total_both, total = lane * 0.0, lane * 0.0
        for start in range(0, pixels, BLOCK):
            inside = start + lane < pixels
            i, v, out = _base(x_ptr, maps_ptr, start + lane, pixels, inside, sky_base)
            both = (i - mean_i) * (i - mean_i) + (v - mean_v) * (v - mean_v)
            total_both += tl.where(inside, both, 0.0)
            total += tl.where(inside, (out - mean) * (out - mean), 0.0)
        wanted = tl.sqrt_rn(tl.sum(total_both) / pixels / 2)
        own = tl.maximum(tl.sqrt_rn(tl.sum(total) / pixels), 1e-4, propagate_nan=_NAN)
        factor = tl.clamp(wanted * contrast / own, 1.0, most_contrast, propagate_nan=_NAN)
    for start in range(0, pixels, BLOCK):
        inside = start + lane < pixels
        _, _, out = _base(x_ptr, maps_ptr, start + lane, pixels, inside, sky_base)
        if STRETCH:
            out = (out - mean) * factor + mean
        tl.store(out_ptr + _offset(0, 1, pixels) + start + lane, out, inside)


@triton.jit
def band_kernel(
    detail_ptr,  # float32 [2, N, H, W]: the bands of i and v
    coarse_ptr,  # float32 [N, ceil(H/2), ceil(W/2)]: the result of the next coarser level
    maps_ptr,  # float32 [4, N, H, W] or None
    x_ptr,  # float32 [2, N, H, W]: i and v at the finest level, else None
    out_ptr,  # out: float32 [N, H, W]
    share,
    gain,
    coring,  # in 0..1, like the next
    sky_coring,
    sky_share,
    height,  # H
    width,  # W
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Fuse the bands by their energies and the maps, on top of the coarser result.

    Twin: ``choose``, whose module docstring has the equations. Grid: (tiles, N).
    """
    row, col = _tile(width, BLOCK_H, BLOCK_W)
    inside = (row < height) & (col < width)
    at, image = row * width + col, _offset(0, height, width)
    a_ptr, b_ptr = detail_ptr + image, detail_ptr + _offset(1, height, width)
    energy_a = _mean(a_ptr, a_ptr, row, col, height, width, inside, 5)
    energy_b = _mean(b_ptr, b_ptr, row, col, height, width, inside, 5)
    square_a, square_b = energy_a * energy_a + _TINY_ENERGY, energy_b * energy_b
    s = (square_a / (square_b + square_a + _TINY_ENERGY) - 0.5) * share + 0.5
    core_a = coring * coring + _TINY_ENERGY
    core_b = core_a
    if maps_ptr is not None:
        sky = tl.load(maps_ptr + _offset(_SKY, height, width) + at, inside)
        conflict = tl.load(maps_ptr + _offset(_CONFLICT, height, width) + at, inside)
        pick = tl.load(maps_ptr + _offset(_PICK, height, width) + at, inside)
        s *= 1 - sky_share * sky
        core_a = coring + sky_coring * sky
        core_a = core_a * core_a + _TINY_ENERGY
        s += (pick - s) * conflict
    a = tl.load(a_ptr + at, inside, other=0.0) * energy_a / (energy_a + core_a)
    b = tl.load(b_ptr + at, inside, other=0.0) * energy_b / (energy_b + core_b)
    coarse_ptr += _offset(0, (height + 1) // 2, (width + 1) // 2)
    out = _doubled(coarse_ptr, row, col, height, width, inside) + (b + (a - b) * s) * gain
    if x_ptr is not None:
        i = tl.load(x_ptr + image + at, inside, other=0.0)
        v = tl.load(x_ptr + _offset(1, height, width) + at, inside, other=0.0)
        highest = tl.minimum(tl.maximum(i, v, propagate_nan=_NAN) * _BLACK_MARGIN, 1.0)
        out = tl.minimum(out, highest, propagate_nan=_NAN)
        out = tl.maximum(out, 0.0, propagate_nan=_NAN)
    tl.store(out_ptr + image + at, out, inside)
