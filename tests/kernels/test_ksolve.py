"""The k-solve in Triton's interpreter, on the CPU, against its plain twin.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_ksolve.py
"""

import contextlib
import ctypes
import sys
import types

import numpy as np
import pytest
import torch
from kernel_steps import INTERPRETED, SIZES, enlarge_tiles, guarded

from ddfm_fast.rectify import KSolver

if INTERPRETED:
    from ddfm_fast.kernels import checks, ksolve

CPU = torch.device("cpu")


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_ksolve.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


@pytest.fixture
def one_tile(monkeypatch):
    enlarge_tiles(monkeypatch)


@pytest.mark.parametrize("size", SIZES)
class TestSolve:
    __test__ = INTERPRETED

    @pytest.mark.usefixtures("one_tile")
    def test_spectral_scale(self, size):
        n, height, width = size
        spectrum, intact = guarded(n, height, width // 2 + 1, dtype=torch.complex64)
        spectrum.copy_(torch.randn(spectrum.shape, dtype=torch.complex64))
        exact = spectrum.to(torch.complex128) * KSolver(height, width, torch.float64, CPU).inverse
        ksolve.spectral_scale_(spectrum, height, width)
        assert float(((spectrum - exact).abs() / exact.abs()).max()) < 4e-7
        assert intact()

    @pytest.mark.usefixtures("one_tile")
    def test_solve(self, size):
        rhs = torch.randn(size, generator=torch.Generator().manual_seed(1))
        before, k = rhs.clone(), torch.full(size, float("nan"))
        k = ksolve.TorchSolver(size, CPU)(rhs, k)
        exact = KSolver(*size[1:], torch.float64, CPU)(rhs.double())
        assert float((k - exact).abs().max() / exact.abs().max()) < 1e-6
        assert torch.equal(rhs, before)


def fake_cupy():
    """Make the modules cupy, cupy.cuda and cupyx.scipy.fft, as far as ``CupySolver`` uses them."""
    cupy, cuda, fft = types.ModuleType("cupy"), types.ModuleType("cupy.cuda"), types.ModuleType("f")

    def unowned(pointer, size, owner, device):
        return (ctypes.c_char * size).from_address(pointer)

    def ndarray(shape, dtype, pointer):
        return np.frombuffer(pointer, dtype).reshape(shape)

    class Plan:
        def __init__(self, kind, shape):
            self.kind, self.shape = kind, shape

        def fft(self, a, out, direction):
            assert direction == {"R2C": -1, "C2R": 1}[self.kind]
            for plane in (a, out):
                assert plane.ctypes.data % 8 == 0, "CUFFT_INVALID_VALUE"
            if self.kind == "R2C":
                out[:] = np.fft.rfft2(a)
            else:
                out[:] = np.fft.irfft2(a, s=self.shape, norm="forward")
                a[:] = np.nan  # cuFFT may overwrite the input of this transform

    def get_fft_plan(a, shape=None, axes=None, value_type="C2C"):
        assert axes == (1, 2) and a.ndim == 3
        return Plan(value_type, shape)

    cuda.UnownedMemory, cuda.MemoryPointer = unowned, lambda memory, offset: memory
    cuda.PythonFunctionAllocator = lambda malloc, free: types.SimpleNamespace(malloc=malloc)
    cuda.using_allocator = lambda allocator: contextlib.nullcontext()
    cuda.cufft = types.SimpleNamespace(CUFFT_FORWARD=-1, CUFFT_INVERSE=1)
    cupy.cuda, cupy.ndarray, fft.get_fft_plan = cuda, ndarray, get_fft_plan
    return {"cupy": cupy, "cupy.cuda": cuda, "cupyx": types.ModuleType("cupyx"),
            "cupyx.scipy": types.ModuleType("cupyx.scipy"), "cupyx.scipy.fft": fft}  # fmt: skip


class TestCupy:
    __test__ = INTERPRETED

    @pytest.fixture(autouse=True)
    def stand_in(self, monkeypatch, request):
        """CuPy needs a GPU even to make a plan; a stand-in of NumPy takes the same calls."""
        request.getfixturevalue("one_tile")
        for name, module in fake_cupy().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(ksolve.CupySolver, "context", lambda self: contextlib.nullcontext())

    @pytest.mark.parametrize("size", [(1, 17, 31), (2, 17, 31), (3, 17, 31), (3, 7, 6), (2, 4, 9)])
    def test_plans_are_asked_the_right_things(self, size):
        """In a batch of odd planes, the second one begins at an address that cuFFT refuses."""
        rhs = torch.randn(size, generator=torch.Generator().manual_seed(1))
        before, k = rhs.clone(), torch.full(rhs.shape, float("nan"))
        address = k.data_ptr()
        solve = ksolve.CupySolver(size, CPU)
        exact = KSolver(*size[1:], torch.float64, CPU)(rhs.double())
        for _ in range(2):
            assert solve(rhs, k) is k and k.data_ptr() == address and torch.equal(rhs, before)
            assert float((k - exact).abs().max() / exact.abs().max()) < 1e-6
            alone = ksolve.CupySolver((1, *size[1:]), CPU)
            for image, solved in zip(rhs, k, strict=True):
                assert torch.equal(alone(image[None].clone(), torch.empty(1, *size[1:]))[0], solved)

    @pytest.mark.parametrize("offset", [1, 2, 3])
    def test_any_address(self, offset):
        """A single plane anywhere, solved in its place."""
        memory = torch.randn(6 * 9 + offset, generator=torch.Generator().manual_seed(1))
        plane = memory[offset:].view(1, 6, 9)
        assert plane.data_ptr() % 16
        exact = KSolver(6, 9, torch.float64, CPU)(plane.double())
        solve = ksolve.CupySolver((1, 6, 9), CPU)
        assert float((solve(plane, plane) - exact).abs().max() / exact.abs().max()) < 1e-6

    def test_what_does_not_fit_is_refused(self):
        solve, right = ksolve.CupySolver((2, 6, 9), CPU), torch.zeros(2, 6, 9)
        for wrong in (torch.zeros(3, 6, 9), torch.zeros(2, 9, 6).mT, right.to("meta")):
            with pytest.raises(ValueError, match="rhs "):
                solve(wrong, right)
            with pytest.raises(ValueError, match="k "):
                solve(right, wrong)
        with pytest.raises(TypeError, match="k is torch.float64"):
            solve(right, right.double())


class TestErrors:
    __test__ = INTERPRETED

    def test_spectrum(self):
        rhs = torch.zeros(1, 4, 6)
        with pytest.raises(TypeError, match="spectrum is torch.float32; expected complex64"):
            ksolve.spectral_scale_(rhs, 4, 6)
        with pytest.raises(ValueError, match="spans .* elements per image"):
            wide = torch.empty(1, 2, 2**31 + 1, device="meta")[..., :2]
            checks.check_plane("eps", wide, (1, 2, 2), [torch.float32], dense=False)
