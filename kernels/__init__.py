"""All device code (Triton, C++): each module is a faster version of a plain twin that it names.

``ddfm_fast`` calls launchers and nothing else.

Import it as ``ddfm_fast.kernels``, never as ``kernels``. Importing this module needs no GPU, no
Triton and no CuPy: what needs Triton is loaded on first use.

    pixel       the method's step at one pixel, as device functions
    step        ``TritonStep``: two fused kernels around the k-solve
    ksolve      the k-solve by cuFFT, through PyTorch or CuPy, and the kernel for its scale
    local       ``LocalStep``: the step in two launches, without an FFT
    images      ``read``, ``give_back``: integers to lumas, and fused lumas back to integers
    limits      ``stretch_limits``: exact order statistics by counting
    group_norm  ``moments``, ``join_``, ``normalize``: the prior's norms and residuals
    conv        ``layer``: a convolution with norm, resampling, residual and moments in one launch
    operators   launchers of the prior as operators of PyTorch, for compiled and exported graphs
    checks      what launchers require of their tensors
    cpu         the prior's layers and attention on a CPU: C++, compiled when first used

The Triton kernels agree with their twins in Triton's interpreter and compile ahead of time for
sm_80, sm_90, sm_100 and sm_120, and for AMD's gfx942 and gfx1100. None of them has run on a GPU
yet.
"""

from __future__ import annotations

import functools
import re
import subprocess
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = [
    "LocalStep",
    "Obstacle",
    "TritonStep",
    "available",
    "choose_planes",
    "module_status",
    "obstacle",
]

LEAST = {"torch": (2, 9), "triton": (3, 5)}
"""least versions: Triton before 3.5 cannot compile the kernels, and PyTorch before 2.9 brings
one"""
LEAST_CAPABILITY = (7, 0)
"""least capability of a GPU that Triton compiles for"""

_LAZY = {"TritonStep": "step", "LocalStep": "local", "choose_planes": "saliency"}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_LAZY[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ImportError(
            f"ddfm_fast.kernels.{name} needs triton, which is not installed; install "
            "ddfm_fast[cuda12] or ddfm_fast[cuda13] (Linux), or use ddfm_fast.step.ReverseStep"
        ) from error
    return getattr(module, name)


def available() -> dict[str, dict[str, str | None]]:
    """Report what the device code could use on this machine.

    Returns:
        For each of ``"triton"``, ``"cupy"`` and ``"cuda"`` a dictionary with ``"version"``
        (``None`` when it cannot be used; for ``"cuda"`` the name and compute capability of the
        first device) and ``"reason"`` (why not, else ``None``).
    """
    return {"triton": module_status("triton"), "cupy": module_status("cupy"), "cuda": _cuda()}


def module_status(name: str) -> dict[str, str | None]:
    """Report ``"version"`` and ``"reason"`` of a package, as :func:`available` does."""
    try:
        version = str(import_module(name).__version__)
    except ModuleNotFoundError:
        return {"version": None, "reason": "not installed"}
    except Exception as error:  # a broken driver or ABI shows up as any kind of exception
        return {"version": None, "reason": f"import fails: {type(error).__name__}: {error}"}
    return {"version": version, "reason": None}


class Obstacle(NamedTuple):
    """Why the Triton kernels cannot run on a device."""

    reason: str
    remedy: str
    """what to install or set; empty if nothing helps or nothing is wrong"""
    untried: bool = False
    """whether they compile but have never been seen to run; they may still be requested by name"""

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def obstacle(device: torch.device) -> Obstacle | None:
    """Return why the Triton kernels cannot run on a CUDA device, or None if they can.

    The first call for a device compiles and launches a one-line kernel there.
    """
    import torch

    triton = module_status("triton")
    if triton["version"] is None:
        return Obstacle(f"triton: {triton['reason']}", "")
    for name, version in (("torch", torch.__version__), ("triton", triton["version"])):
        if _numbers(str(version)) < LEAST[name]:
            least = ".".join(map(str, LEAST[name]))
            return Obstacle(
                f"{name} {version} is older than {least}, which the kernels need",
                f'pip install -U "{name}>={least}"',
            )
    capability = torch.cuda.get_device_capability(device)
    rocm = torch.version.hip is not None
    if capability < LEAST_CAPABILITY and not rocm:
        has, least = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return Obstacle(
            f"the GPU has compute capability {has}, below {least}",
            'backend="torch" says that this is meant, a newer GPU ends it',
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    found = _trial(index)
    if found is None and rocm:
        return Obstacle("the kernels compile for ROCm and have never run there", "", untried=True)
    return found


@functools.cache
def _trial(index: int) -> Obstacle | None:
    """Compile and launch the smallest kernel, once per process and device."""
    try:
        import_module(".checks", __name__).try_out(index)
    except Exception as error:  # compilers, drivers and file systems fail in every way
        return _explained(error)
    return None


def _explained(error: Exception) -> Obstacle:
    text = str(error).strip() or type(error).__name__
    words = text.splitlines()[-1][:200]
    if "C compiler" in text:
        return Obstacle(
            "Triton finds no C compiler, which it needs to launch kernels",
            "install one (Debian, Ubuntu: apt install gcc) or set CC",
        )
    if isinstance(error, subprocess.CalledProcessError):
        return Obstacle(
            f"Triton's C compiler fails, see above ({error.cmd[0]}, exit {error.returncode})",
            "install Python's headers (Debian, Ubuntu: apt install python3-dev)",
        )
    if isinstance(error, OSError):
        return Obstacle(
            f"Triton cannot write its cache of kernels ({words})",
            "set TRITON_CACHE_DIR to a folder that can be written and has room",
        )
    return Obstacle(
        f"Triton cannot compile here ({type(error).__name__}: {words})",
        "pip install -U triton, in the version that PyTorch names",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _cuda() -> dict[str, str | None]:
    try:
        import torch
    except Exception as error:
        return {"version": None, "reason": f"torch does not import: {error}"}
    if torch.version.cuda is None:
        return {"version": None, "reason": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {"version": None, "reason": "torch finds no CUDA device or driver"}
    major, minor = torch.cuda.get_device_capability(0)
    return {"version": f"{torch.cuda.get_device_name(0)} (sm_{major}{minor})", "reason": None}
