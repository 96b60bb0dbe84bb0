"""Which code runs a step, and the marks for profilers."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from ddfm_fast.api import Fuser, fuse
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.runtime import dispatch, profiling
from ddfm_fast.runtime.dispatch import Backend, resolve_backend, resolve_graph

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
PLAIN, KERNELS = Backend("torch", "torch", ""), Backend("triton", "torch", "")


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with an H100, Triton and no CuPy; nothing can run there, only be chosen."""
    from ddfm_fast import kernels

    found = {"triton": {"version": "3.6.0", "reason": None}}
    missing = {"version": None, "reason": "not installed"}
    monkeypatch.setattr(kernels, "module_status", lambda name: found.get(name, missing))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_trial", lambda index: None)
    monkeypatch.setattr(dispatch, "_warned", set())
    return found


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    for name in ("BACKEND", "SOLVER", "GRAPH"):
        monkeypatch.delenv(f"DDFM_FAST_{name}", raising=False)


def test_the_cpu_gets_plain_pytorch():
    assert resolve_backend(CPU) == Backend("torch", "torch", "the device is the CPU")
    assert resolve_backend("cpu", "torch").name == "torch"
    assert resolve_graph(None, CPU, PLAIN) == "off"


def test_a_gpu_gets_the_kernels_and_a_graph_of_the_loop(gpu):
    backend = resolve_backend(GPU)
    assert backend[:2] == ("triton", "local") and "triton imports" in backend.reason
    assert resolve_backend(GPU, solver="torch").solver == "torch"
    assert resolve_backend(GPU, "torch")[:2] == ("torch", "torch")
    assert resolve_graph(None, GPU, backend) == "auto"
    assert resolve_graph("loop", GPU, backend) == "loop"
    assert resolve_graph("step", GPU, backend) == "step"
    assert resolve_graph("off", GPU, backend) == "off"


def test_a_gpu_without_the_tensor_cores_gets_ffts(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_backend(GPU)[:2] == ("triton", "torch")
    assert resolve_backend(GPU, solver="local").solver == "local"


def test_an_old_gpu_or_none_of_triton_means_plain_pytorch(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.warns(DDFMWarning, match="capability 6.1, below 7.0"):
        backend = resolve_backend(GPU)
    assert backend.name == "torch" and "capability 6.1, below 7.0" in backend.reason
    gpu.clear()
    assert resolve_backend(GPU).reason == "triton: not installed"
    with pytest.raises(ValueError, match="backend is 'triton', but triton: not installed"):
        resolve_backend(GPU, "triton")


def test_rocm_gets_plain_pytorch_and_the_kernels_by_name(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    backend = resolve_backend(GPU)
    assert backend.name == "torch" and "compile for ROCm and have never run" in backend.reason
    with pytest.warns(DDFMWarning, match="'triton', but the kernels .* ROCm.* backend='torch'$"):
        assert resolve_backend(GPU, "triton")[:2] == ("triton", "torch")
    assert resolve_backend(GPU, "triton", "local").solver == "local"
    gpu["triton"]["version"] = "3.4.0"
    with pytest.raises(ValueError, match="triton 3.4.0 is older"):
        resolve_backend(GPU, "triton")


def test_versions_below_the_floor_are_named(gpu, monkeypatch):
    gpu["triton"]["version"] = "3.4.0"
    with pytest.warns(DDFMWarning, match=r'triton 3.4.0 is older than 3.5.*install -U "triton>=3'):
        assert resolve_backend(GPU).name == "torch"
    gpu["triton"]["version"] = "3.10.0"
    assert resolve_backend(GPU).name == "triton"
    monkeypatch.setattr(torch, "__version__", "2.8.1+cu128")
    with pytest.warns(DDFMWarning, match="torch 2.8.1.cu128 is older than 2.9"):
        assert resolve_backend(GPU).name == "torch"
    with pytest.raises(ValueError, match="backend is 'triton', but torch 2.8.1"):
        resolve_backend(GPU, "triton")


def test_every_extra_has_the_floors_that_are_checked():
    from ddfm_fast.kernels import LEAST

    text = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    for name, floor in LEAST.items():
        version = ".".join(map(str, floor))
        assert re.findall(rf'"{name}>=([^"{{]+)', text) == [version]
    assert text.count("TRITON") == 4, "defined, for cuda12, for cuda13, and for the tests"


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "apt install gcc"),
        (subprocess.CalledProcessError(1, ["gcc", "x.c"]), "gcc, exit 1.*apt install python3-dev"),
        (PermissionError(13, "Permission denied", "/root/.triton"), "TRITON_CACHE_DIR"),
        (OSError(30, "Read-only file system"), "TRITON_CACHE_DIR"),
        (ValueError("\nunknown target sm_300"), "unknown target sm_300.*pip install -U triton"),
    ],
)
def test_kernels_that_cannot_be_compiled_mean_plain_pytorch_and_one_warning(
    gpu, monkeypatch, error, words
):
    from ddfm_fast import kernels

    monkeypatch.setattr(kernels, "_trial", lambda index: kernels._explained(error))
    with pytest.warns(DDFMWarning, match=words) as told:
        backends = [resolve_backend(GPU) for _ in range(3)]
    assert {backend.name for backend in backends} == {"torch"} and len(told) == 1
    assert re.search(words, backends[0].reason)


@pytest.mark.parametrize(
    "wish, words",
    [
        (dict(backend="cuda"), "backend is 'cuda'; expected one of auto, triton, torch"),
        (dict(backend="triton"), "but the device is the CPU; expected backend='torch'"),
        (dict(solver="fft"), "solver is 'fft'; expected one of auto, local, torch, cupy"),
        (dict(solver="local"), "solver is 'local', which the Triton kernels need, and the device"),
        (dict(graph="always"), "graph is 'always'; expected one of auto, loop, step, off"),
        (dict(graph="loop"), "graph is 'loop', but the device is cpu; CUDA graphs need"),
    ],
)
def test_what_cannot_run_here_is_refused(wish, words):
    with pytest.raises(ValueError, match=words):
        Fuser(prior=lambda x, t: x, device="cpu", **wish)


def test_what_cannot_run_on_a_gpu_is_refused(gpu):
    with pytest.raises(ImportError, match="solver is 'cupy', but CuPy: not installed; install"):
        resolve_backend(GPU, solver="cupy")
    with pytest.raises(ValueError, match="solver is 'local'.*backend is 'torch'"):
        resolve_backend(GPU, "torch", "local")
    with pytest.raises(ValueError, match="graph is 'step' with backend 'torch'"):
        resolve_graph("step", GPU, PLAIN)


def test_the_environment_has_a_say_and_arguments_have_the_last(gpu, monkeypatch):
    monkeypatch.setenv("DDFM_FAST_BACKEND", "torch")
    monkeypatch.setenv("DDFM_FAST_GRAPH", "off")
    assert resolve_backend(GPU).name == "torch"
    assert resolve_backend(GPU, "triton").name == "triton"
    assert resolve_graph(None, GPU, KERNELS) == "off"
    assert resolve_graph("auto", GPU, KERNELS) == "auto"
    monkeypatch.setenv("DDFM_FAST_BACKEND", "")
    monkeypatch.setenv("DDFM_FAST_SOLVER", "torch")
    assert resolve_backend(GPU)[:2] == ("triton", "torch")
    monkeypatch.setenv("DDFM_FAST_GRAPH", "on")
    with pytest.raises(ValueError, match="environment variable DDFM_FAST_GRAPH is 'on'; expected"):
        resolve_graph(None, GPU, KERNELS)


class FakeNvtx(types.ModuleType):
    def __init__(self):
        super().__init__("nvtx")
        self.names, self.depth = [], 0

    def annotate(self, message, domain):
        assert domain == "ddfm_fast"
        outer = self

        class Range:
            def __enter__(self):
                outer.names.append((message, outer.depth))
                outer.depth += 1

            def __exit__(self, *error):
                outer.depth -= 1

        return Range()


@pytest.fixture
def nvtx(monkeypatch):
    module = FakeNvtx()
    monkeypatch.setitem(sys.modules, "nvtx", module)
    yield module
    profiling.disable()


def test_ranges_follow_the_loop(nvtx, ramp):
    profiling.enable()
    assert profiling.enabled()
    fuse(*ramp, prior=lambda x, t: x, steps=2, device="cpu")
    step = [("prior", 0), ("update", 0), ("solve", 1)]
    assert nvtx.names == [("load", 0), *step, *step, ("store", 0)]


def test_nothing_is_marked_when_off(nvtx, ramp):
    assert not profiling.enabled()
    assert profiling.span("prior") is profiling.span("load")
    fuse(*ramp, prior=lambda x, t: x, steps=2, device="cpu")
    assert not nvtx.names


def test_ranges_need_a_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ImportError, match="pip install nvtx"):
        profiling.enable()
    assert not profiling.enabled()


@pytest.fixture
def ramp():
    plane = torch.linspace(0, 1, 32 * 32).view(32, 32)
    return plane, plane.T.contiguous()


def test_lists_of_choices_agree_with_the_kernels():
    pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)
    from ddfm_fast.kernels.ksolve import SOLVERS

    assert {"auto", "local", *SOLVERS} == set(dispatch.SOLVERS)
