"""In which arithmetic the prior runs; the rectification is float32 always."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
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
        "measured: bfloat16 takes 1.2 to 2.4 times as long on a CPU without products in it "
        "(bench/results/dtype.md); no CPU with them (AMX) has been measured",
    ),
    "cuda": Auto(
        "GPU of capability 7.0 or more", "float16",
        "on paper: as fast as bfloat16, and 20 dB truer (bench/results/precision.md); not measured",
    ),
    "old": Auto("older GPU", "float32", "it has no matrix units; not measured"),
}  # fmt: skip
"""what ``dtype="auto"`` takes: what was measured to be fastest there and costs less than 0.02 dB"""


def check_precision(dtype: str | torch.dtype | None) -> str | None:
    """Give the name of a precision, or None; ValueError for anything else."""
    if dtype is None or isinstance(dtype, str) and dtype in PRECISIONS:
        return dtype
    names = [n for n, d in PRECISIONS.items() if n != "tf32" and d is dtype]
    if not names:
        raise ValueError(
            f"dtype: {dtype!r} is not one of {', '.join(PRECISIONS)}, auto or their torch.dtype"
        )
    return names[0]


def cpu_has(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies in a dtype itself; else PyTorch converts, slower than float32."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    if dtype == torch.bfloat16 and platform.machine() in ("x86_64", "AMD64"):
        # the question above is answered "yes" on any AVX-512, which has no products in bfloat16
        facts = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if not any(getattr(torch.cpu, fact, bool)() for fact in facts):
            return False
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


def default_precision(device: torch.device) -> str:
    """Resolve ``dtype="auto"`` on a device by ``AUTO``.

    What float16 cannot hold ends in an error of the sampler, not in a wrong picture.
    """
    if device.type != "cuda":
        return AUTO["cpu"].dtype
    return AUTO["cuda" if torch.cuda.get_device_capability(device)[0] >= 7 else "old"].dtype


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Inside, CUDA's float32 matrix products and convolutions run in TF32, or truly in float32.

    PyTorch's own defaults round convolutions to TF32 and leave products alone; whatever they are
    set to comes back afterwards. The settings are the process's: another thread sees them too.
    """
    matmul, conv = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    holders: tuple[Any, Any] = (matmul, conv)
    name = "fp32_precision"
    value: str | bool = "tf32" if tf32 else "ieee"
    if not all(hasattr(holder, name) for holder in holders):  # PyTorch before 2.9
        holders, name, value = (matmul, torch.backends.cudnn), "allow_tf32", tf32
    before = [getattr(holder, name) for holder in holders]
    try:
        for holder in holders:
            setattr(holder, name, value)
        yield
    finally:
        for holder, setting in zip(holders, before, strict=True):
            setattr(holder, name, setting)
