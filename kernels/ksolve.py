"""The k-solve by cuFFT: one real FFT, one scale from the closed form, one inverse.

Twin: ``ddfm_fast.rectify.KSolver``. Two solvers with one interface: ``solve(rhs, k)`` returns the
tensor that holds k, which is ``k`` itself or a new one. Images are transformed one at a time: FFT
libraries choose their algorithm by the batch, and an image in a batch must get what it gets alone.

    TorchSolver   torch.fft; its inverse copies the spectrum first, since cuFFT overwrites it
    CupySolver    CuPy's plans, made once: no copy, and the result in ``k``

``TorchSolver`` is the default because PyTorch is always there and its allocator sees every byte;
which is faster on a GPU, and by how much, was not measured yet.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pixel import _sine

BLOCK_H, BLOCK_W = 4, 128


@triton.jit
def _squared_sine(index, size):
    """sin²(π·index/size) to float32 accuracy; 0 ≤ index < size."""
    folded = tl.maximum(tl.minimum(index, size - index), 0)  # 0: masked lanes
    sine = _sine(folded.to(tl.float32) * 3.14159265358979 / size)
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


class TorchSolver:
    """k = (I + ∇ᵀ∇)⁻¹ rhs on a periodic grid through ``torch.fft``; plans are PyTorch's own.

    ``shape``: (N, H, W) of the float32 planes.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        self.shape = shape

    def __call__(self, rhs: Tensor, k: Tensor) -> Tensor:
        """k [N, H, W]: a new tensor for one image, ``k`` itself for several; ``rhs`` stays."""
        if len(rhs) == 1:
            return self._solved(rhs)
        for one, target in zip(rhs.split(1), k.split(1), strict=True):
            target.copy_(self._solved(one))
        return k

    def _solved(self, rhs: Tensor) -> Tensor:
        height, width = self.shape[1:]
        spectrum = spectral_scale_(torch.fft.rfft2(rhs), height, width, 1 / (height * width))
        # norm="forward" leaves the division by H W to the scale above: one pass over the plane less
        return torch.fft.irfft2(spectrum, s=(height, width), norm="forward")


class CupySolver:
    """The same through cuFFT plans that CuPy makes once, on PyTorch's stream and memory.

    ``shape``: (N, H, W); the work areas come from PyTorch's allocator and live as long as this.
    ImportError without CuPy. One solver is for one stream at a time.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        import cupy
        from cupyx.scipy.fft import get_fft_plan

        self.cupy, self.shape, self.device = cupy, shape, device
        height, width = shape[1:]
        real = torch.empty(1, height, width, device=device)
        self.spectrum = torch.empty(1, height, width // 2 + 1, dtype=torch.complex64, device=device)
        allocator = cupy.cuda.PythonFunctionAllocator(_allocate, _release)
        with self._context(), cupy.cuda.using_allocator(allocator.malloc):
            self.forward = get_fft_plan(self._view(real), axes=(1, 2), value_type="R2C")
            self.inverse = get_fft_plan(
                self._view(self.spectrum), shape=(height, width), axes=(1, 2), value_type="C2R"
            )

    def __call__(self, rhs: Tensor, k: Tensor) -> Tensor:
        """``k``, which then holds the solution; both float32 of ``shape``, contiguous."""
        from cupy.cuda import cufft

        height, width = self.shape[1:]
        spectrum = self._view(self.spectrum)
        with self._context():
            for one, target in zip(rhs.split(1), k.split(1), strict=True):
                self.forward.fft(self._view(one), spectrum, cufft.CUFFT_FORWARD)
                spectral_scale_(self.spectrum, height, width, 1 / (height * width))
                self.inverse.fft(spectrum, self._view(target), cufft.CUFFT_INVERSE)
        return k

    def _context(self):
        """CuPy on PyTorch's current stream, which a capture makes the captured one."""
        stream, streams = torch.cuda.current_stream(self.device), self.cupy.cuda
        if hasattr(streams.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
            return streams.Stream.from_external(stream)
        return streams.ExternalStream(stream.cuda_stream, stream.device_index)  # before CuPy 14

    def _view(self, tensor: Tensor):
        """``tensor`` as a CuPy array; unlike DLPack's exchange it never waits for a stream."""
        size = tensor.numel() * tensor.element_size()
        memory = self.cupy.cuda.UnownedMemory(tensor.data_ptr(), size, tensor, tensor.device.index)
        dtype = "complex64" if tensor.is_complex() else "float32"
        pointer = self.cupy.cuda.MemoryPointer(memory, 0)
        return self.cupy.ndarray(tuple(tensor.shape), dtype, pointer)


def _allocate(size: int, device: int) -> int:
    return torch.cuda.caching_allocator_alloc(size, device)


def _release(pointer: int, device: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)


SOLVERS = {"torch": TorchSolver, "cupy": CupySolver}


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
            "ddfm_fast.rectify.ReverseStep"
        )


def on_device(tensor: Tensor):
    """A context in which kernels go to the tensor's own GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
