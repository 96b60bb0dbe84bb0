"""NVTX ranges for Nsight Systems and Nsight Compute: load, prior, update, store.

"update" is everything between the prior's output and x_{t-1}; inside it are "rhs" (the first
kernel) and "solve" (the FFTs), and the rest is the second kernel. Plain PyTorch has no "rhs".
With ``reuse=N`` the steps that evaluate only the layers of the full resolution are "prior, reused".

Off unless ``DDFM_FAST_NVTX=1`` is set or :func:`enable` was called; then ``span``
marks what the host launches. A replayed CUDA graph has the marks of its capture only, so profile
with ``graph="off"`` to see each step. Uses the package ``nvtx`` if it is installed, else PyTorch's
bindings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext

from . import environment

DOMAIN = "ddfm_fast"
_OFF = nullcontext()
_annotate = None


def span(name: str) -> AbstractContextManager:
    """Mark the ``with`` block as a range; one shared do-nothing object when off."""
    return _OFF if _annotate is None else _annotate(name)


def enabled() -> bool:
    """Return whether ranges are marked."""
    return _annotate is not None


def enable() -> None:
    """Mark ranges from now on; ImportError if neither nvtx nor PyTorch's CUDA build is there."""
    global _annotate
    _annotate = _nvtx() or _torch_nvtx()
    if _annotate is None:
        raise ImportError(
            "NVTX ranges need the package nvtx, which is not installed, or a CUDA build of "
            "PyTorch; pip install nvtx, or leave DDFM_FAST_NVTX unset"
        )


def disable() -> None:
    """Mark nothing from now on."""
    global _annotate
    _annotate = None


def _nvtx():
    try:
        import nvtx
    except ImportError:
        return None
    return lambda name: nvtx.annotate(message=name, domain=DOMAIN)


def _torch_nvtx():
    import torch

    if torch.version.cuda is None:
        return None

    @contextmanager
    def annotate(name: str):
        torch.cuda.nvtx.range_push(f"{DOMAIN}:{name}")
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()

    return annotate


if environment.is_on("DDFM_FAST_NVTX"):
    enable()
