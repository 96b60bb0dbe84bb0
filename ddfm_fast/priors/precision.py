"""The arithmetic of the prior; the rectification is always float32."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""``dtype=`` → dtype of weights and activations; "tf32" rounds only inside matrix products"""


class Auto(NamedTuple):
    """A row of the table that ``dtype="auto"`` is read from."""

    device: str
    dtype: str
    why: str


AUTO = {
    "cpu": Auto(
        "CPU", "float32",
        "keeps the bytes of every preset; bfloat16 takes 4 to 8 times as long on a CPU without "
        "products in it (bench/results/dtype.md); with AVX512_BF16 it takes 0.6 to 0.7 of the "
        "time, but changes pictures by 0.10 to 0.19 gray levels "
        "(bench/results/bfloat16-2026-11-29.md); none with AMX has been measured",
    ),
    "cuda": Auto(
        "GPU of capability 7.0 or more", "float16",
        "on paper: as fast as bfloat16, 20 dB more exact (bench/results/precision.md); unmeasured",
    ),
    "old": Auto("older GPU", "float32", "it has no matrix units; not measured"),
}  # fmt: skip
"""what ``dtype="auto"`` means: the fastest dtype by measurement that costs less than 0.02 dB and
changes pictures by less than 0.1 gray levels on average"""


def check_precision(dtype: str | torch.dtype | None) -> str | None:
    """Return the name of a precision, or None; ValueError for anything else."""
    if dtype is None or isinstance(dtype, str) and dtype in PRECISIONS:
        return dtype
    names = [n for n, d in PRECISIONS.items() if n != "tf32" and d is dtype]
    if not names:
        raise ValueError(
            f"dtype: {dtype!r} is not one of {', '.join(PRECISIONS)}, auto or their torch.dtype"
        )
    return names[0]


def cpu_has(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies in a dtype; else PyTorch converts, which is slower."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    if dtype == torch.bfloat16 and platform.machine() in ("x86_64", "AMD64"):
        # the check above says yes on any AVX-512, which has no products in bfloat16
        facts = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if not any(getattr(torch.cpu, fact, bool)() for fact in facts):
            return False
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


def default_precision(device: torch.device) -> str:
    """Resolve ``dtype="auto"`` on a device by ``AUTO``.

    If float16 cannot hold a value, the sampler raises an error; the picture is never wrong.
    """
    if device.type != "cuda":
        return AUTO["cpu"].dtype
    return AUTO["cuda" if torch.cuda.get_device_capability(device)[0] >= 7 else "old"].dtype


def chosen_precision(prior: Any, dtype: Any, device: torch.device, exact: bool) -> Any:
    """Return the dtype to pass to ``load_prior``; None leaves a prior as it is, a path in float32.

    A preset that repeats the authors' script to the pixel is ``exact``.
    """
    if not _is_ours(prior, dtype):
        return None if _is_auto(dtype) else dtype
    return None if exact else default_precision(device)


def is_too_low(now: str, prior: Any, dtype: Any, exact: bool) -> bool:
    """Return whether a precision that was chosen here has to be float32 for another preset."""
    return exact and now != "float32" and _is_ours(prior, dtype)


def _is_ours(prior: Any, dtype: Any) -> bool:
    return _is_auto(dtype) and isinstance(prior, str | os.PathLike)


def _is_auto(dtype: Any) -> bool:
    return isinstance(dtype, str) and dtype == "auto"


_turn = threading.RLock()
"""held by the thread for which PyTorch's setting of float32 products on CUDA is changed"""
_convolutions: ContextVar[bool | None] = ContextVar("convolutions", default=None)


def convolutions_in_tf32() -> bool | None:
    """Return whether this thread's float32 convolutions use TF32; None: as PyTorch is set.

    ``ops.base.conv2d`` uses this for each convolution.
    """
    if torch.compiler.is_dynamo_compiling():  # it cannot read context variables
        return None
    return _convolutions.get()


@contextmanager
def float32_products(tf32: bool, *, convolutions: bool = True) -> Iterator[None]:
    """Run CUDA's float32 matrix products and convolutions inside in TF32, or truly in float32.

    PyTorch's own defaults round convolutions to TF32 and leave products alone. Its settings apply
    to the whole process, so threads take turns in here, and what differs is changed for the time
    being. Afterwards a setting is as it was: inherited from ``torch.backends.fp32_precision`` if it
    was, and left alone if another thread of the program set it meanwhile. Code outside sees the
    changed settings.

    Args:
        tf32: Whether to round.
        convolutions: Whether to set convolutions' mode for all code inside; otherwise only
            ``ops.base.conv2d`` follows it.
    """
    settings: Any = torch.backends
    holders = (
        [settings.cuda.matmul, settings.cudnn.conv] if convolutions else [settings.cuda.matmul]
    )
    value = "tf32" if tf32 else "ieee"
    with _turn:
        token = _convolutions.set(None if convolutions else tf32)
        changed = [
            (h, h.fp32_precision, _own_setting(h))
            for h in holders
            if (h.fp32_precision == "tf32") != tf32
        ]
        try:
            for holder, _, _ in changed:
                holder.fp32_precision = value
            yield
        finally:
            for holder, shown, own in changed:
                if holder.fp32_precision == value:
                    holder.fp32_precision = own
                    if holder.fp32_precision != shown:  # a default that others override
                        holder.fp32_precision = shown
            _convolutions.reset(token)


def _own_setting(holder: Any) -> str:
    """Return a setting's own value, "none" if it inherits, which reading it does not show."""
    above: Any = torch.backends
    shown = holder.fp32_precision
    general = above.fp32_precision
    if shown == "none":
        return shown
    for parent in (above, above.cudnn):  # the second, of all of CUDA, may itself inherit
        before = general if parent is above else parent.fp32_precision
        parent.fp32_precision = "ieee" if shown == "tf32" else "tf32"
        follows, passes_on = holder.fp32_precision != shown, above.cudnn.fp32_precision != shown
        parent.fp32_precision = before
        if follows:
            return "none"
        if parent is above and passes_on:
            return shown
    return shown
