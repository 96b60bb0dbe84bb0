"""Keep the program's autocast, default device, captures and forks out of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from . import machine, threads

Function = TypeVar("Function", bound=Callable[..., Any])


def refuse_where_impossible(device: torch.device) -> None:
    """Raise RuntimeError if no call on a CUDA device is possible now.

    It is called before anything that would spoil the capture.
    """
    if device.type != "cuda":
        return
    if machine.forked_from_cuda():
        raise RuntimeError(
            "this process was forked from one that uses CUDA, which then works only in the parent; "
            'expected device="cpu", or processes of multiprocessing\'s method "spawn"'
        )
    if torch.cuda.is_initialized():
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the current CUDA stream captures a graph, and a fusion reads images and "
                    "results on the host; expected a call outside of torch.cuda.graph: fusers "
                    "capture graphs of their own"
                )


@contextmanager
def on_the_host() -> Iterator[None]:
    """Create new tensors on the CPU inside, whatever the program's default device is.

    A tensor whose device is named goes there. Works as a decorator, too.
    """
    if torch.get_default_device().type == "cpu":  # the other branch sees every operation
        yield
    else:
        with torch.device("cpu"):
            yield


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Turn autocast off and make the CPU the default; see :func:`refuse_where_impossible`."""
    refuse_where_impossible(device)
    with ExitStack() as stack:
        stack.enter_context(on_the_host())
        for kind in {"cpu", device.type} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def runs_apart(method: Function) -> Function:
    """Run a method :func:`apart` from the program, on the device of its object.

    If threads do not change its results, PyTorch's are not used while the machine is busy.
    """

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with apart(self.device), threads.where_busy(self.reproducible):
            return method(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]
