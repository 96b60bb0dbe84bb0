"""Images onto a GPU and back: a faster version of ``ddfm_fast.images.pixels.Pixels``.

    read_kernel       integers of any layout → luma, and RGB where its chroma is needed
    chroma_kernel     RGB → Cb and Cr, whose noise is estimated
    give_back_kernel  fused luma, stretch limits and chroma → values in the layout that came in

Every rounding is that of the plain code, operation by operation: divisions round to nearest, and
products and sums are fused only where PyTorch fuses them, in luma. Sizes and strides are not
specialized, so that a new size compiles nothing. Image offsets are 64-bit. The kernels agree with
their twins in Triton's interpreter; they have not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddfm_fast.images.color import OF_BLUE, OF_RED
from ddfm_fast.images.containers import INTEGER_MAX
from ddfm_fast.images.planes import ImageSpec, check_fits
from ddfm_fast.images.stretch import FLAT, Fused

from .checks import check_device, check_dtype, check_plane, jit_once, on_device

TWIN = "ddfm_fast.images.pixels.Pixels"
BLOCK = 1024
"""pixels per program"""
EXACT = 2**24
"""bound below which whole numbers are exact in float32"""
MOST_IMAGES = 65535
_RED, _BLUE = tl.constexpr(0.299), tl.constexpr(0.114)
_OF_BLUE, _OF_RED = tl.constexpr(OF_BLUE), tl.constexpr(OF_RED)
_FLAT, _TINY, _DARKEST = tl.constexpr(FLAT), tl.constexpr(1e-12), tl.constexpr(1 / 255)
_NAN = tl.constexpr(tl.PropagateNan.ALL)
_OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _clip(x, low, high):
    return tl.clamp(x, low, high, propagate_nan=_NAN)


@triton.jit
def _luma(red, green, blue):
    return tl.fma(blue - green, _BLUE, tl.fma(red - green, _RED, green))


@triton.jit
def _unit(x_ptr, at, inside, white, low, RANGE: tl.constexpr):
    """Load integers as [0, 1]; ``white``: of the dtype, or the span of a range from ``low``."""
    x = tl.load(x_ptr + at, inside, other=0).to(tl.float32)
    if RANGE:
        return _clip(tl.div_rn(x - low, white), 0.0, 1.0)
    return tl.div_rn(x, white)


@jit_once
def read_kernel(
    x_ptr,  # uint8 or uint16 [N, C, H, W] by its strides
    luma_ptr,  # out: float32 [N, 1, H, W]
    rgb_ptr,  # out: float32 [N, 3, H, W], or None
    height,  # H
    width,  # W
    white,
    low,
    n_stride,
    c_stride,
    h_stride,
    w_stride,
    COLOR: tl.constexpr,
    RANGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convert integers to luma and RGB in [0, 1]. Grid: (H W / BLOCK, N)."""
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width
    inside = at < pixels
    x_ptr += n * n_stride
    x_at = at // width * h_stride + at % width * w_stride
    if COLOR:
        red = _unit(x_ptr, x_at, inside, white, low, RANGE)
        green = _unit(x_ptr + c_stride, x_at, inside, white, low, RANGE)
        blue = _unit(x_ptr + 2 * c_stride, x_at, inside, white, low, RANGE)
        luma = _luma(red, green, blue)
        if rgb_ptr is not None:
            rgb_ptr += n * 3 * pixels
            tl.store(rgb_ptr + at, red, inside)
            tl.store(rgb_ptr + pixels + at, green, inside)
            tl.store(rgb_ptr + 2 * pixels + at, blue, inside)
    else:
        luma = _unit(x_ptr, x_at, inside, white, low, RANGE)
    tl.store(luma_ptr + n * pixels + at, luma, inside)


@triton.jit
def _store(out_ptr, at, inside, x, white, low, high, RANGE: tl.constexpr, ROUND: tl.constexpr):
    """Store [0, 1] as values of a range, rounded half up for integers."""
    x = _clip(x, 0.0, 1.0)
    if RANGE:
        x = _clip(x * (high - low) + low, low, high)
    if ROUND:
        x = _clip(tl.floor(x + 0.5), 0.0, white).to(tl.int32)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), inside)


@jit_once
def give_back_kernel(
    y_ptr,  # float32 [N, 1, H, W] by its strides
    limits_ptr,  # float32 [2, N], or None
    x_ptr,  # float32 [N, 3, H, W] by its strides: chroma; or None
    out_ptr,  # out: uint8, uint16 or float32 [N, C, H, W] by its strides
    height,  # H
    width,  # W
    white,
    low,
    high,
    y_n_stride,
    y_h_stride,
    y_w_stride,
    n_stride,
    c_stride,
    h_stride,
    w_stride,
    out_n_stride,
    out_c_stride,
    out_h_stride,
    out_w_stride,
    DIMS: tl.constexpr,
    RANGE: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Stretch a luma, add chroma, and store it as values. Grid: (H W / BLOCK, N).

    Twins: ``stretch_between``, ``with_luma`` and ``from_planes``.
    """
    image = tl.program_id(1)
    n = image.to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < height * width
    row, col = at // width, at % width
    y = tl.load(y_ptr + n * y_n_stride + row * y_h_stride + col * y_w_stride, inside, other=0.0)
    if limits_ptr is not None:
        least = tl.load(limits_ptr + image)
        span = tl.load(limits_ptr + tl.num_programs(1) + image) - least
        flat = span <= _FLAT
        y = tl.where(flat, y, tl.div_rn(y - least, tl.where(flat, 1.0, span)))
    y = _clip(y, 0.0, 1.0)
    out_ptr += n * out_n_stride
    out_at = row * out_h_stride + col * out_w_stride
    if x_ptr is None:
        _store(out_ptr, out_at, inside, y, white, low, high, RANGE, ROUND)
    else:
        x_ptr += n * n_stride + row * h_stride + col * w_stride
        red = tl.load(x_ptr, inside, other=0.0)
        green = tl.load(x_ptr + c_stride, inside, other=0.0)
        blue = tl.load(x_ptr + 2 * c_stride, inside, other=0.0)
        own = _luma(red, green, blue)
        red, green, blue = red - own, green - own, blue - own
        if DIMS:
            shade = tl.minimum(tl.div_rn(y, tl.maximum(own, _DARKEST)), 1.0)
            red, green, blue = red * shade, green * shade, blue * shade
        most = tl.maximum(tl.maximum(red, green), blue)
        least = tl.minimum(tl.minimum(red, green), blue)
        above = tl.div_rn(1.0 - y, tl.maximum(most, _TINY))
        below = tl.div_rn(y, tl.maximum(-least, _TINY))
        scale = tl.minimum(tl.minimum(above, below), 1.0)
        red, green, blue = red * scale + y, green * scale + y, blue * scale + y
        _store(out_ptr, out_at, inside, red, white, low, high, RANGE, ROUND)
        out_ptr += out_c_stride
        _store(out_ptr, out_at, inside, green, white, low, high, RANGE, ROUND)
        out_ptr += out_c_stride
        _store(out_ptr, out_at, inside, blue, white, low, high, RANGE, ROUND)


@jit_once
def chroma_kernel(
    x_ptr,  # float32 [N, 3, H, W] by its strides
    out_ptr,  # out: float32 [2, N, 1, H, W]
    height,  # H
    width,  # W
    n_stride,
    c_stride,
    h_stride,
    w_stride,
    BLOCK: tl.constexpr,
):
    """Compute Cb and Cr about ½. Grid: (H W / BLOCK, N)."""
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = height * width
    inside = at < pixels
    x_ptr += n * n_stride + at // width * h_stride + at % width * w_stride
    red = tl.load(x_ptr, inside, other=0.0)
    green = tl.load(x_ptr + c_stride, inside, other=0.0)
    blue = tl.load(x_ptr + 2 * c_stride, inside, other=0.0)
    own = _luma(red, green, blue)
    tl.store(out_ptr + n * pixels + at, (blue - own) * _OF_BLUE + 0.5, inside)
    out_ptr += tl.num_programs(1).to(tl.int64) * pixels
    tl.store(out_ptr + n * pixels + at, (red - own) * _OF_RED + 0.5, inside)


def reads(value_range: tuple[float, float] | None) -> bool:
    """Return whether :func:`read` is exact for a range: one of whole numbers, such as counts."""
    if value_range is None:
        return True
    low, high = value_range
    return all(float(x).is_integer() and abs(x) < EXACT for x in (low, high, high - low))


def read(
    values: Tensor,
    value_range: tuple[float, float] | None = None,
    *,
    rgb: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convert integers to luma in [0, 1], and to RGB.

    Args:
        values: uint8 or uint16 [N, C, H, W] of any strides, C 1 or 3.
        value_range: What black and white are, for which :func:`reads` holds; None for the dtype's.
        rgb: Whether to return RGB; for gray values it is the luma three times.
        out: Where the luma goes, float32 [N, 1, H, W] contiguous; a new tensor by default.

    Returns:
        float32 [N, 1, H, W], and [N, 3, H, W] or None.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device, or the range is not exact.
    """
    _check_image("values", values, tuple(INTEGER_MAX), (1, 3))
    if not reads(value_range):
        raise ValueError(
            f"value_range is {value_range}; expected whole numbers below 2**24: use {TWIN}"
        )
    n, channels, height, width = values.shape
    if out is None:
        out = torch.empty((n, 1, height, width), dtype=torch.float32, device=values.device)
    shape = (n, 1, height, width)
    check_plane("out", out, shape, [torch.float32], device=values.device)
    colors = None
    if rgb and channels == 3:
        colors = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    low, high = value_range or (0.0, INTEGER_MAX[values.dtype])
    with on_device(values):
        read_kernel[triton.cdiv(height * width, BLOCK), n](
            values, out, colors, height, width, float(high - low), float(low), *values.stride(),
            COLOR=channels == 3, RANGE=value_range is not None, BLOCK=BLOCK, **_OPTIONS,
        )  # fmt: skip
    return out, out.expand(-1, 3, -1, -1) if rgb and colors is None else colors


GIVEN = (*INTEGER_MAX, torch.float32)
"""dtypes that :func:`give_back` makes"""


def give_back(
    fused: Fused, spec: ImageSpec, *, chroma: Tensor | None = None, dims: bool = False
) -> Tensor:
    """Make the values of a result, on the device: ``from_planes`` without the container.

    Args:
        fused: Lumas float32 of any strides, limits contiguous.
        spec: The result's; its dtype is one of ``GIVEN``.
        chroma: float32 [N, 3, H, W] of any strides whose chroma the result takes; None for gray.
        dims: As for ``ddfm_fast.images.color.with_luma``.

    Returns:
        Contiguous values in the layout of ``spec``.

    Raises:
        TypeError: An argument has the wrong dtype.
        ValueError: An argument has the wrong shape, layout or device.
    """
    y, limits = fused
    _check_image("fused", y, [torch.float32], (1,))
    n, _, height, width = y.shape
    channels = 1 if chroma is None else 3
    check_fits(n, channels, spec)
    if spec.dtype not in GIVEN:
        raise TypeError(f"spec has {spec.dtype}; expected one of {GIVEN}: use {TWIN}")
    if limits is not None:
        check_plane("limits", limits, (2, n, 1, 1, 1), [torch.float32], device=y.device)
    if chroma is not None:
        shape = (n, 3, height, width)
        check_plane("chroma", chroma, shape, [torch.float32], device=y.device, dense=False)
    sizes = {"N": n, "C": channels, "H": height, "W": width}
    out = torch.empty([sizes[axis] for axis in spec.layout], dtype=spec.dtype, device=y.device)
    strides = dict(zip(spec.layout, out.stride(), strict=True))
    white = INTEGER_MAX.get(spec.dtype)
    low, high = spec.value_range or (0.0, float(white or 1))
    with on_device(y):
        give_back_kernel[triton.cdiv(height * width, BLOCK), n](
            y, limits, chroma, out, height, width, float(white or 1), float(low), float(high),
            y.stride(0), y.stride(2), y.stride(3),
            *((0, 0, 0, 0) if chroma is None else chroma.stride()),
            *(strides.get(axis, 0) for axis in "NCHW"),
            DIMS=dims, RANGE=(low, high) != (0.0, 1.0), ROUND=white is not None, BLOCK=BLOCK,
            **_OPTIONS,
        )  # fmt: skip
    return out


def chroma_planes(rgb: Tensor) -> Tensor:
    """Compute Cb and Cr about ½: ``ddfm_fast.images.color.chroma_planes``.

    Args:
        rgb: float32 [N, 3, H, W] of any strides.

    Returns:
        float32 [2, N, 1, H, W].

    Raises:
        TypeError: rgb has another dtype.
        ValueError: rgb has another shape or device.
    """
    _check_image("rgb", rgb, [torch.float32], (3,))
    n, _, height, width = rgb.shape
    out = torch.empty((2, n, 1, height, width), dtype=torch.float32, device=rgb.device)
    with on_device(rgb):
        chroma_kernel[triton.cdiv(height * width, BLOCK), n](
            rgb, out, height, width, *rgb.stride(), BLOCK=BLOCK, **_OPTIONS
        )
    return out


def _check_image(name: str, x: Tensor, dtypes, channels: tuple[int, ...]) -> None:
    check_dtype(name, x, dtypes)
    if x.ndim != 4 or x.shape[1] not in channels or len(x) > MOST_IMAGES:
        counts = " or ".join(map(str, channels))
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected [N, {counts}, H, W], N at most "
            f"{MOST_IMAGES}"
        )
    check_plane(name, x, x.shape, dtypes, dense=False)
    check_device(name, x, None, TWIN)
