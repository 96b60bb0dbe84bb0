"""The k-solve on a GPU: one real FFT, one scale from the closed form, one inverse.

Twin: ``ddfm_fast.rectify.KSolver``. The FFTs are ``torch.fft``'s (cuFFT on a CUDA device).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_H, BLOCK_W = 4, 128


@triton.jit
def _squared_sine(index, size):
    """sin²(π·index/size) to float32 accuracy; 0 ≤ index < size.

    The angle is folded into [0, π/2], where the Taylor polynomial of degree 13 is off by 7e-10.
    Calling the library's sine instead would bring its range reduction, which uses local memory.
    """
    folded = tl.maximum(tl.minimum(index, size - index), 0)  # 0: masked lanes
    x = folded.to(tl.float32) * 3.14159265358979 / size
    s = x * x
    sine = 1.6059043836821613e-10 * s - 2.505210838544172e-08
    sine = sine * s + 2.755731922398589e-06
    sine = sine * s - 1.984126984126984e-04
    sine = sine * s + 8.333333333333333e-03
    sine = sine * s - 1.6666666666666667e-01
    sine = x + x * s * sine
    return sine * sine


@triton.jit
def _spectral_scale_kernel(
    spectrum_ptr,  # float32 [N, H, W // 2 + 1, 2]: real and imaginary parts, scaled in place
    height,  # H
    width,  # W of the planes, not of the spectrum
    scale,  # what every element is multiplied by besides: 1 / (H W) for an unnormalised inverse
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Multiplies by scale / (5 − 2cos(2πr/H) − 2cos(2πs/W)), r and s the frequencies.

    5 − 2cos(2α) − 2cos(2β) is 1 + 4sin²α + 4sin²β, a sum of positive terms that loses no digits.
    Grid: (tiles of one image, N). A tile's columns count floats, two to a frequency.
    """
    floats = 2 * (width // 2 + 1)
    tiles = tl.cdiv(floats, BLOCK_W)
    row = (tl.program_id(0) // tiles) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    col = (tl.program_id(0) % tiles) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    inside = (row < height) & (col < floats)
    image_ptr = spectrum_ptr + tl.program_id(1).to(tl.int64) * height * floats
    value = tl.load(image_ptr + row * floats + col, inside)
    denominator = 1 + 4 * _squared_sine(row, height) + 4 * _squared_sine(col // 2, width)
    tl.store(image_ptr + row * floats + col, value * tl.div_rn(scale, denominator), inside)


INTERPRETED = not isinstance(_spectral_scale_kernel, triton.JITFunction)
"""whether this process interprets its kernels on the CPU (TRITON_INTERPRET=1 before the import)"""


def spectral_scale_(spectrum: Tensor, height: int, width: int, scale: float = 1.0) -> Tensor:
    """The spectrum times scale / (5 − 2cos(2πr/H) − 2cos(2πs/W)), in place.

    spectrum: complex64 [N, H, W // 2 + 1] contiguous, from ``torch.fft.rfft2`` of [N, H, W].
    ValueError or TypeError where it is anything else.
    """
    shape = (spectrum.shape[0], height, width // 2 + 1)
    check_tensor("spectrum", spectrum, shape, torch.complex64)
    floats = 2 * shape[2]
    grid = (triton.cdiv(height, BLOCK_H) * triton.cdiv(floats, BLOCK_W), shape[0])
    with on_device(spectrum):
        _spectral_scale_kernel[grid](
            torch.view_as_real(spectrum), height, width, scale, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W
        )
    return spectrum


def solve_k_(rhs: Tensor, k: Tensor) -> Tensor:
    """k = (I + ∇ᵀ∇)⁻¹ rhs on a periodic grid, written into ``k``; both float32 [N, H, W].

    ``k`` keeps its address, so that a captured step finds it again. ValueError or TypeError for
    another dtype, shape, device or layout.
    """
    if rhs.ndim != 3:
        raise ValueError(f"rhs has shape {tuple(rhs.shape)}; expected [N, H, W]")
    check_tensor("rhs", rhs, tuple(rhs.shape), torch.float32)
    check_tensor("k", k, tuple(rhs.shape), torch.float32, device=rhs.device)
    height, width = rhs.shape[1:]
    spectrum = spectral_scale_(torch.fft.rfft2(rhs), height, width, 1 / (height * width))
    # norm="forward" leaves the division by H W to the scale above: one pass over the plane less
    return torch.fft.irfft2(spectrum, s=(height, width), norm="forward", out=k)


def check_tensor(name: str, tensor: Tensor, shape: tuple, dtype, *, device=None, dense=True):
    """ValueError or TypeError unless ``tensor`` is what a kernel may be handed.

    ``dtype``: one dtype or a tuple of them; ``device``: where the other arguments are, or None;
    ``dense``: contiguous. One image's offsets must fit int32; the batch's are 64-bit.
    """
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} is {tensor.dtype}; expected {expected}: convert it with .to()")
    if tuple(tensor.shape) != tuple(shape) or 0 in shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, no side of it 0"
        )
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; expected {device}, as the others: move it")
    if dense and not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {tensor.stride()}; expected a contiguous tensor: "
            "call .contiguous() once, outside the loop"
        )
    reach = sum((n - 1) * s for n, s in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
    if reach >= 2**31:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} spans {reach + 1} elements an image; "
            "expected at most 2**31: fuse the image in parts"
        )
    if tensor.device.type != ("cpu" if INTERPRETED else "cuda"):
        raise ValueError(
            f"{name} is on {tensor.device}; expected a CUDA device, or the CPU with "
            "TRITON_INTERPRET=1 set before triton is imported; without either use "
            "ddfm_fast.rectify.Rectifier"
        )


def on_device(tensor: Tensor):
    """A context in which kernels go to the tensor's own GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
