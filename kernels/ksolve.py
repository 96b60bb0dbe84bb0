"""The k-solve by cuFFT: a faster version of ``ddfm_fast.naive.solve``.

One real FFT, one scale from the closed form, one inverse. Twin: ``ddfm_fast.rectify.KSolver``.

Two solvers share one interface: ``solve(rhs, k)`` returns the tensor that holds k, which is ``k``
itself or a new one. Images are transformed one at a time: FFT libraries choose their algorithm by
the batch size, and an image in a batch must get what it gets alone.

    TorchSolver   torch.fft; its inverse copies the spectrum first, since cuFFT overwrites it
    CupySolver    CuPy's plans, made once: no copy, and the result in ``k``

They are alternatives to ``local``, the default, which needs no FFT. No GPU has run any of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_plane, on_device
from .pixel import quarter_sine

BLOCK_H, BLOCK_W = 4, 128


@triton.jit
def _squared_sine(index, size):
    """Compute sin²(π·index/size) to float32 accuracy; 0 ≤ index < size."""
    folded = tl.maximum(tl.minimum(index, size - index), 0)  # 0: masked lanes
    sine = quarter_sine(folded.to(tl.float32) * 3.14159265358979 / size)
    return sine * sine


@triton.jit(do_not_specialize=("height", "width"))
def spectral_scale_kernel(
    spectrum_ptr,  # float32 [N, H, W // 2 + 1, 2]: real and imaginary parts, scaled in place
    height,  # H
    width,  # W of the planes, not of the spectrum
    scale,  # factor of every element: 1 / (H W) for an unnormalized inverse
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Multiply by scale / (5 − 2cos(2πr/H) − 2cos(2πs/W)), r and s the frequencies.

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


def spectral_scale_(spectrum: Tensor, height: int, width: int, scale: float = 1.0) -> Tensor:
    """Multiply a spectrum by scale / (5 − 2cos(2πr/H) − 2cos(2πs/W)), in place.

    Args:
        spectrum: complex64 [N, H, W // 2 + 1] contiguous, from ``torch.fft.rfft2`` of [N, H, W].
        height: H.
        width: W.
        scale: Factor of every element.

    Returns:
        ``spectrum``.

    Raises:
        TypeError: The dtype is wrong.
        ValueError: Shape, strides or device are wrong.
    """
    shape = (spectrum.shape[0], height, width // 2 + 1)
    check_plane("spectrum", spectrum, shape, [torch.complex64])
    floats = 2 * shape[2]
    grid = (triton.cdiv(height, BLOCK_H) * triton.cdiv(floats, BLOCK_W), shape[0])
    with on_device(spectrum):
        spectral_scale_kernel[grid](
            torch.view_as_real(spectrum), height, width, scale, BLOCK_H=BLOCK_H, BLOCK_W=BLOCK_W
        )
    return spectrum


class TorchSolver:
    """k = (I + ∇ᵀ∇)⁻¹ rhs on a periodic grid through ``torch.fft``; plans are PyTorch's own.

    Args:
        shape: (N, H, W) of the float32 planes.
        device: Where they are.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device):  # noqa: ARG002
        self.shape = shape

    def __call__(self, rhs: Tensor, k: Tensor) -> Tensor:
        """Solve for k [N, H, W]: a new tensor for one image, ``k`` itself for several."""
        if len(rhs) == 1:
            return self._solved(rhs)
        for one, target in zip(rhs.split(1), k.split(1), strict=True):
            target.copy_(self._solved(one))
        return k

    def _solved(self, rhs: Tensor) -> Tensor:
        height, width = self.shape[1:]
        spectrum = spectral_scale_(torch.fft.rfft2(rhs), height, width, 1 / (height * width))
        # norm="forward" leaves the division by H W to the scale above, which saves a pass over the
        # plane
        return torch.fft.irfft2(spectrum, s=(height, width), norm="forward")


class CupySolver:
    """The same through cuFFT plans that CuPy makes once, on PyTorch's stream and memory.

    cuFFT refuses planes that do not begin at a multiple of a complex number's eight bytes, and in a
    batch of images with an odd number of pixels some do not. Planes that are not aligned to
    ``ALIGNMENT`` are copied into a plane of the solver's own and back, on the same stream. Whether
    that happens depends only on addresses, which a captured graph keeps.

    Use a solver on one stream at a time.

    Args:
        shape: (N, H, W) of the float32 planes.
        device: Where they are; work areas come from PyTorch's allocator and live as long as this.

    Raises:
        ImportError: CuPy is not installed.
    """

    ALIGNMENT = 16
    """bytes, as the widest loads of a GPU need"""

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        import cupy
        from cupyx.scipy.fft import get_fft_plan

        self.cupy, self.shape, self.device = cupy, shape, device
        height, width = shape[1:]
        self.plane = torch.empty(1, height, width, dtype=torch.float32, device=device)
        self.spectrum = torch.empty(1, height, width // 2 + 1, dtype=torch.complex64, device=device)
        allocator = cupy.cuda.PythonFunctionAllocator(_allocate, _release)
        with self.context(), cupy.cuda.using_allocator(allocator.malloc):
            self.forward = get_fft_plan(self._view(self.plane), axes=(1, 2), value_type="R2C")
            self.inverse = get_fft_plan(
                self._view(self.spectrum), shape=(height, width), axes=(1, 2), value_type="C2R"
            )

    def __call__(self, rhs: Tensor, k: Tensor) -> Tensor:
        """Solve into ``k`` and return it.

        Args:
            rhs: float32 of ``shape``, contiguous, on the solver's device.
            k: The same; may be ``rhs``.

        Returns:
            ``k``.

        Raises:
            TypeError: The dtype is wrong.
            ValueError: Shape, strides or device are wrong.
        """
        for name, tensor in (("rhs", rhs), ("k", k)):
            check_plane(name, tensor, self.shape, [torch.float32], device=self.plane.device)
        with self.context():
            for one, target in zip(rhs.split(1), k.split(1), strict=True):
                self._solve(one, target)
        return k

    def _solve(self, one: Tensor, target: Tensor) -> None:
        """Solve for an image [1, H, W], through ``plane`` where cuFFT cannot take its address."""
        from cupy.cuda import cufft

        height, width = self.shape[1:]
        source = one if self._aligned(one) else self.plane.copy_(one)
        self.forward.fft(self._view(source), self._view(self.spectrum), cufft.CUFFT_FORWARD)
        spectral_scale_(self.spectrum, height, width, 1 / (height * width))
        result = target if self._aligned(target) else self.plane
        self.inverse.fft(self._view(self.spectrum), self._view(result), cufft.CUFFT_INVERSE)
        if result is not target:
            target.copy_(result)

    def _aligned(self, tensor: Tensor) -> bool:
        return tensor.data_ptr() % self.ALIGNMENT == 0

    def context(self):
        """Put CuPy on PyTorch's current stream, which is the captured one during a capture."""
        stream, streams = torch.cuda.current_stream(self.device), self.cupy.cuda
        if hasattr(streams.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
            return streams.Stream.from_external(stream)
        return streams.ExternalStream(stream.cuda_stream, stream.device_index)  # before CuPy 14

    def _view(self, tensor: Tensor):
        """Make a CuPy array of ``tensor``; unlike DLPack's exchange it never waits for a stream."""
        size = tensor.numel() * tensor.element_size()
        memory = self.cupy.cuda.UnownedMemory(tensor.data_ptr(), size, tensor, tensor.device.index)
        dtype = "complex64" if tensor.is_complex() else "float32"
        pointer = self.cupy.cuda.MemoryPointer(memory, 0)
        return self.cupy.ndarray(tuple(tensor.shape), dtype, pointer)


def _allocate(size: int, device: int) -> int:
    return torch.cuda.caching_allocator_alloc(size, device)


def _release(pointer: int, _device: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)


SOLVERS: dict[str, type[TorchSolver | CupySolver]] = {"torch": TorchSolver, "cupy": CupySolver}
