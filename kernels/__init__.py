"""All device code (Triton, CUDA) lives here; ``ddfm_fast`` calls launchers and nothing else.

Import it as ``ddfm_fast.kernels``, never as ``kernels``. This version holds no kernels yet: on a
GPU the plain PyTorch path runs. Importing this module needs no GPU, no Triton and no CuPy.
"""

from __future__ import annotations

from importlib import import_module

__all__ = ["available"]


def available() -> dict[str, dict[str, str | None]]:
    """What the device code could use on this machine.

    Returns:
        For each of ``"triton"``, ``"cupy"`` and ``"cuda"`` a dictionary with ``"version"``
        (``None`` when it cannot be used; for ``"cuda"`` the name and compute capability of the
        first device) and ``"reason"`` (why not, else ``None``).
    """
    return {"triton": _module("triton"), "cupy": _module("cupy"), "cuda": _cuda()}


def _module(name: str) -> dict[str, str | None]:
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
