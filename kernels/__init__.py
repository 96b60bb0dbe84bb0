"""All device code (Triton, C++): each module is a faster version of a plain twin that it names.

``ddfm_fast`` calls launchers and nothing else.

Import it as ``ddfm_fast.kernels``, never as ``kernels``. Importing this module needs no GPU, no
Triton and no CuPy: what needs Triton is loaded on first use.

    pixel       the method's step at one pixel, as device functions
    step        ``TritonStep``: two fused kernels around the k-solve
    ksolve      the k-solve by cuFFT, through PyTorch or CuPy, and the kernel for its scale
    local       ``LocalStep``: the step in two launches, without an FFT
    group_norm  ``moments``, ``join_``, ``scale_shift``, ``apply``: the prior's norms and residuals
    thin_conv   ``thin_conv``: convolutions with few channels on one side; opt-in, not measured yet
    checks      what launchers ask of their tensors
    cpu         the prior's layers and attention on a CPU: C++, compiled when first used

The Triton kernels agree with their twins in Triton's interpreter and compile ahead of time for
sm_80, sm_90, sm_100 and sm_120. None of them has run on a GPU yet.
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["LocalStep", "TritonStep", "available", "choose_planes", "module_status"]

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
