"""Await a fusion: the call of a fuser in a thread, which can be stopped between its steps.

Threads: one fuser may be called from any number of threads at once. Calls that would share the
buffers of a captured graph take turns by its lock; on a CPU every call has buffers of its own.
Results have the same bytes as from calls made one after the other. A fuser's settings have no lock:
assign ``config`` or ``seed`` only while nobody calls it, or make another by ``with_options``. A
callback and a ``report`` list are used by the thread that fuses, and one list belongs to one call.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor
    from typing_extensions import Unpack

    from ..sampler import StepInfo
    from .typed import CallOptions, Kept, OtherPictures, Pictures, Readable


class FusionStopped(Exception):
    """Raised inside a fusion that nobody waits for any more; no caller sees it."""


class Awaited:
    """What makes a fuser awaitable: :meth:`afuse`."""

    @overload
    async def afuse(
        self, ir: NDArray[Kept], vis: NDArray[Kept], **options: Unpack[CallOptions]
    ) -> NDArray[Kept]: ...
    @overload
    async def afuse(
        self, ir: NDArray[Any], vis: NDArray[Any], **options: Unpack[CallOptions]
    ) -> NDArray[Any]: ...
    @overload
    async def afuse(self, ir: Tensor, vis: Tensor, **options: Unpack[CallOptions]) -> Tensor: ...
    @overload
    async def afuse(self, ir: Image, vis: Image, **options: Unpack[CallOptions]) -> Image: ...
    @overload
    async def afuse(
        self,
        ir: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
        vis: list[NDArray[Kept]] | tuple[NDArray[Kept], ...],
        **options: Unpack[CallOptions],
    ) -> list[NDArray[Kept]]: ...
    @overload
    async def afuse(
        self,
        ir: list[NDArray[Any]] | tuple[NDArray[Any], ...],
        vis: list[NDArray[Any]] | tuple[NDArray[Any], ...],
        **options: Unpack[CallOptions],
    ) -> list[NDArray[Any]]: ...
    @overload
    async def afuse(
        self,
        ir: list[Tensor] | tuple[Tensor, ...],
        vis: list[Tensor] | tuple[Tensor, ...],
        **options: Unpack[CallOptions],
    ) -> list[Tensor]: ...
    @overload
    async def afuse(
        self,
        ir: list[Pictures] | tuple[Pictures, ...],
        vis: list[OtherPictures] | tuple[OtherPictures, ...],
        **options: Unpack[CallOptions],
    ) -> list[Image]: ...
    @overload
    async def afuse(
        self,
        ir: list[Any] | tuple[Any, ...],
        vis: list[Any] | tuple[Any, ...],
        **options: Unpack[CallOptions],
    ) -> list[Any]: ...
    @overload
    async def afuse(self, ir: Readable, vis: Readable, **options: Unpack[CallOptions]) -> Any: ...
    async def afuse(self: Any, ir: Any, vis: Any, **options: Any) -> Any:
        """Fuse without blocking the event loop: a call in a thread of asyncio's own pool.

        Canceling the task returns at once and stops the fusion after its current reverse step.
        Work without steps, such as preset="instant" and the denoising of sources, runs to its end
        in its thread, and the result is dropped. Sources must not change meanwhile.

        Args:
            ir: As in the call of the fuser; so is ``vis``.
            vis: See ``ir``.
            **options: Options of the call. ``callback`` runs in the thread; to reach the event
                loop, use ``loop.call_soon_threadsafe``.

        Returns:
            What the call returns, with the same bytes.

        Raises:
            ValueError, TypeError: As in the call.
            asyncio.CancelledError: The task was canceled.

        >>> async def serve(fuser: Fuser) -> tuple[int, ...]:
        ...     return (await asyncio.wait_for(fuser.afuse(infrared, visible), timeout=60)).shape
        >>> asyncio.run(serve(Fuser(preset="instant")))
        (48, 64, 3)
        """
        watch = options.pop("callback", None)
        if inspect.iscoroutinefunction(watch):
            raise TypeError(
                "callback is a coroutine function; expected a plain one, which runs in a thread: "
                "let it call asyncio.run_coroutine_threadsafe(...)"
            )
        if watch is not None and not callable(watch):
            raise TypeError(f"callback is {watch!r}; expected a function that takes a StepInfo")
        stopped = threading.Event()

        def each(info: StepInfo) -> None:
            if stopped.is_set():
                raise FusionStopped
            if watch is not None:
                watch(info)

        try:
            return await asyncio.to_thread(self, ir, vis, callback=each, **options)
        finally:
            stopped.set()
