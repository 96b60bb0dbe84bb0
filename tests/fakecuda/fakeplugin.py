"""Real host code of PyTorch's CUDA on a fake driver: a plugin of pytest, and a module for scripts.

Import it before the first CUDA tensor. cuDNN is not faked: its convolution is replaced here, and
its attention is off.
"""

from __future__ import annotations

import ctypes
import os
import warnings

import torch

fake = ctypes.CDLL(None)
"""the fake device: ``fake_module_loads()``, ``fake_graph_launches()``, …"""
for _name in ("fake_launch", "fake_violation", "fake_graph_node"):
    getattr(fake, _name).restype = ctypes.c_char_p
    getattr(fake, _name).argtypes = [ctypes.c_long]
for _name in (
    "fake_launch_count", "fake_violation_count", "fake_graph_launches", "fake_kernel_launches",
    "fake_module_loads", "fake_graph_nodes",
):  # fmt: skip
    getattr(fake, _name).restype = ctypes.c_long

CONVS: list[tuple] = []
"""shapes of input and weight, dtype, allow_tf32 and benchmark of each convolution so far"""


def launches() -> list[str]:
    """Return what was enqueued outside of graphs since ``fake_record(1)``: name, grid, stream."""
    return [fake.fake_launch(i).decode() for i in range(fake.fake_launch_count())]


def violations() -> list[str]:
    """Return the rules of CUDA that were broken since ``fake_clear()``."""
    return [fake.fake_violation(i).decode() for i in range(fake.fake_violation_count())]


def graph_nodes() -> list[str]:
    """Return the contents of the last graph that was captured."""
    return [fake.fake_graph_node(i).decode() for i in range(fake.fake_graph_nodes())]


def _is_channels_last(t: torch.Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def cudnn_convolution(
    x, w, padding, stride, dilation, groups, benchmark, deterministic, allow_tf32
):
    sides = zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sides]
    last = _is_channels_last(x) or _is_channels_last(w)
    layout = torch.channels_last if last else torch.contiguous_format
    out = torch.empty(
        [x.shape[0], w.shape[0], *size], dtype=x.dtype, device=x.device, memory_format=layout
    )
    CONVS.append((tuple(x.shape), tuple(w.shape), x.dtype, allow_tf32, benchmark))
    return out.fill_(1e-3)


_truth = torch.Tensor.__bool__


def _yes(t: torch.Tensor) -> bool:
    """Return a tensor's truth value; garbage, which comes from the device, is true."""
    found = _truth(t)
    return found or t.is_cuda or t.is_pinned()


torch.backends.cuda.enable_cudnn_sdp(False)
_library = torch.library.Library("aten", "IMPL")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _library.impl("cudnn_convolution", cudnn_convolution, "CUDA")

if os.environ.get("FAKE_NUMBERS", "0") != "0":
    import fakenumbers

    fakenumbers.install()
else:  # garbage must neither be looked at nor stop the work
    torch.Tensor.__repr__ = lambda t, **_: f"<tensor {tuple(t.shape)} {t.dtype} {t.device}>"
    torch.Tensor.__bool__ = _yes
    torch.equal = lambda a, b: True
