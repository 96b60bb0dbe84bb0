"""Check the tensors of a launcher: dtype, shape, layout, and a device that runs kernels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""of activations and of a prior's output, which are read without conversion"""
STEP_TWIN = "ddfm_fast.step.ReverseStep"
PRIOR_TWIN = "ddfm_fast.priors.ops.plain.PlainOps"
"""what to use if no kernel can run"""


@triton.jit
def _nothing():
    """Do nothing: the type of this function says what ``triton.jit`` makes of the others."""


INTERPRETED = not isinstance(_nothing, triton.JITFunction)
"""whether this process interprets its kernels on the CPU (TRITON_INTERPRET=1 before the import)"""


def try_out(index: int) -> None:
    """Compile and launch a kernel on the CUDA device of that index; let any failure through."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 has the kernels interpreted on the CPU")
    with torch.cuda.device(index):
        _nothing[(1,)]()


def jit_once(function: Callable) -> Any:
    """Apply ``triton.jit`` so that it compiles once for all sizes, strides and addresses.

    Names of pointers end in ``_ptr`` and constants are in capitals; every other argument is a
    number of which nothing is assumed.
    """
    names = list(inspect.signature(function).parameters)
    pointers = [name for name in names if name.endswith("_ptr")]
    numbers = [name for name in names if name.islower() and name not in pointers]
    decorate = triton.jit(do_not_specialize=numbers, do_not_specialize_on_alignment=pointers)
    return decorate(function)


def check_dtype(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless the dtype of ``tensor`` is one of ``dtypes``."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} is {tensor.dtype}; expected {expected}: convert it with .to()")


def check_device(name: str, tensor: Tensor, device: torch.device | None, twin: str) -> None:
    """Raise ValueError unless ``tensor`` is where kernels run, and on ``device`` if that is given.

    Args:
        name: The argument, as the error names it.
        tensor: The given tensor.
        device: Where the other arguments are, or None.
        twin: What works without a GPU, for the error.
    """
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; expected {device}, as the others: move it")
    if tensor.device.type != ("cpu" if INTERPRETED else "cuda"):
        raise ValueError(
            f"{name} is on {tensor.device}; expected a CUDA device, or the CPU with "
            f"TRITON_INTERPRET=1 set before triton is imported; without either use {twin}"
        )


def check_plane(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: Sequence[torch.dtype],
    *,
    device: torch.device | None = None,
    dense: bool = True,
) -> None:
    """Raise unless ``tensor`` may be passed to a kernel of the method's step.

    One image's offsets must fit int32; the batch's are 64-bit.

    Args:
        name: The argument, as the error names it.
        tensor: The given tensor.
        shape: The expected shape, with no side of 0.
        dtypes: The expected dtypes, one of which it must have.
        device: Where the other arguments are, or None.
        dense: Whether it must be contiguous.

    Raises:
        TypeError: The dtype is wrong.
        ValueError: Shape, strides, size or device are wrong.
    """
    check_dtype(name, tensor, dtypes)
    if tuple(tensor.shape) != tuple(shape) or 0 in shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, no side of it 0"
        )
    if dense and not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {tensor.stride()}; expected a contiguous tensor: "
            "call .contiguous() once, outside the loop"
        )
    reach = sum((n - 1) * s for n, s in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
    if reach >= 2**31:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} spans {reach + 1} elements per image; "
            "expected at most 2**31: fuse the image in parts"
        )
    check_device(name, tensor, device, STEP_TWIN)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Make a context in which kernels run on the tensor's own GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
