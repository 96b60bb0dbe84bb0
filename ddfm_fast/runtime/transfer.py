"""Transfer images between the host and a CUDA device, during the computation.

Both directions go through page-locked memory, without which a copy waits for the device and runs at
half the speed. It comes from PyTorch, which reuses a block for any thread once the copy from or to
it is done: the first image of a size pays for it, later ones do not. Results are copied
out of it, so that what a caller keeps is ordinary memory. Has not run on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 256
"""bytes: PyTorch's own alignment, so that kernels find all images aligned alike"""


class Transfer:
    """Copies to and from ``device``; safe for any threads.

    Uploads are queued on the current stream, or with ``aside`` on one of their own; downloads are
    always aside, so that the next call's work does not wait for them.
    """

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self._up, self._down = torch.cuda.Stream(), torch.cuda.Stream()

    def upload(self, *images: Tensor, aside: bool = False) -> Upload:
        """Send CPU tensors of any dtypes and strides in one copy; dense ones keep their strides.

        The tensors may be changed as soon as this returns.
        """
        dense = [_dense(image) for image in images]
        starts = [0]
        for image, _ in dense:
            starts.append(starts[-1] + math.ceil(image.nbytes / _ALIGNED) * _ALIGNED)
        host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
        for (image, _), start in zip(dense, starts, strict=False):
            np.copyto(_typed(host, start, image).numpy(), image.numpy())
        stream = self._up if aside else torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            there = host.to(self.device, non_blocking=True)
            event = stream.record_event() if aside else None
        sent = [
            _typed(there, start, image).permute(back)
            for (image, back), start in zip(dense, starts, strict=False)
        ]
        return Upload(there, sent, event)

    def download(self, values: Tensor) -> Download:
        """Fetch a contiguous tensor once the current stream's work is done."""
        with torch.cuda.device(self.device):
            self._down.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._down):
                host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                host.copy_(values, non_blocking=True)
                values.record_stream(self._down)
                return Download(host, self._down.record_event())


class Upload(NamedTuple):
    """Tensors on their way to a device."""

    memory: Tensor
    """holds all of them"""
    sent: Sequence[Tensor]
    event: Any
    """marks their arrival, or None if the stream's own order ensures it"""

    def tensors(self) -> Sequence[Tensor]:
        """Return the tensors, for work queued on the current stream from now on."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.memory.device)
            stream.wait_event(self.event)
            self.memory.record_stream(stream)  # keeps it from being reused before that work is done
        return self.sent


class Download(NamedTuple):
    """A tensor on its way to the host."""

    host: Tensor
    event: Any

    def tensor(self) -> Tensor:
        """Return the tensor in ordinary memory, after waiting for it."""
        self.event.synchronize()
        return torch.from_numpy(self.host.numpy().copy())


class Answer(NamedTuple):
    """A boolean on its way to the host; reading it waits."""

    host: Tensor
    event: Any

    @classmethod
    def of(cls, flag: Tensor) -> Answer:
        """Fetch a single boolean once the current stream's work is done."""
        if not flag.is_cuda:
            return cls(flag.clone(), None)
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        return cls(host, torch.cuda.current_stream(flag.device).record_event())

    def __bool__(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.host)


def stacked(*tensors: Tensor) -> Tensor | None:
    """View two like tensors as one if the second follows the first in one storage; else None.

    Then one copy suffices for both.
    """
    if len(tensors) != 2:
        return None
    a, b = tensors
    alike = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    if not alike or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return None
    between = b.storage_offset() - a.storage_offset()
    return a.as_strided((2, *a.shape), (between, *a.stride())) if between >= 0 else None


def copy_each_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others: two of them at once where they are :func:`stacked`."""
    target, source = stacked(*targets), stacked(*sources)
    if target is not None and source is not None:
        target.copy_(source)
        return
    for own, x in zip(targets, sources, strict=True):
        own.copy_(x)


def fetched(*tensors: Tensor) -> list[Tensor]:
    """Return tensors on the host, after waiting for all of them at once; CPU tensors as they are.

    Use what was fetched only briefly: it lies in page-locked memory.
    """
    together = stacked(*tensors)
    if together is not None and together.is_cuda:
        return list(fetched(together)[0].unbind())
    found = [
        torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
        if t.is_cuda
        else t
        for t in tensors
    ]
    for device in {t.device for t in tensors if t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found


def _dense(image: Tensor) -> tuple[Tensor, list[int]]:
    """Return the image contiguous, with its axes in the order of memory, and the order back."""
    strides = image.stride()
    order = sorted(range(image.ndim), key=lambda axis: -strides[axis])
    back = sorted(range(image.ndim), key=order.__getitem__)
    return image.permute(order).contiguous(), back


def _typed(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """Return the part of some bytes that holds a tensor like another, contiguous."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
