"""What answers requests that are fused together: threads of this process, or of others.

One thread fuses: every fuser has the same prior, and a prior takes all cores or the whole GPU
anyway. Decoding and encoding of other batches continue meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..runtime.memory import is_out_of_memory
from .bodies import Call
from .fusers import Fusers, Result
from .limits import Clock, Limits, Refused
from .logs import hearing
from .pictures import Pictures, check_format, decode

BATCHES = 3
"""at once: one is decoded, one fused, one encoded"""
EXPECTED = (ValueError, TypeError, ImportError)
"""errors that the library raises about input, in sentences"""


class Unwanted(Exception):
    """Nobody waits for the result any more."""


@dataclass(eq=False)
class Item:
    """A request in the queue."""

    call: Call
    format: str
    sizes: tuple[tuple[int, ...], ...]
    """of its pictures, by their headers"""
    clock: Clock
    done: asyncio.Future[Answer]
    gone: bool = False
    """nobody waits for it"""
    pictures: Pictures | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def key(self) -> Hashable:
        """What requests that are fused together have in common."""
        if () in self.sizes:
            return id(self)  # it will be refused, alone
        return self.sizes, self.call.settings, repr(self.call.reading), self.call.resize

    @property
    def wanted(self) -> bool:
        """Whether somebody waits and there is time left."""
        return not self.gone and self.clock.left > 0


@dataclass
class Answer:
    """What a request gets."""

    data: bytes
    size: tuple[int, ...]
    dtype: str
    report: dict[str, Any]
    warnings: list[str]
    batch: int
    waited: float
    """seconds from the request to its fusion"""


class Fusion(NamedTuple):
    """What fusing a batch took, for the counters."""

    seconds: float
    requests: int
    evaluations: int
    """of the prior, summed over pictures"""


Tell = Callable[[Fusion], None]


class Engine(Protocol):
    """What answers items; its methods belong to the event loop."""

    most: int
    """requests that are fused together"""
    slots: int
    """batches at once"""

    async def start(self, tell: Tell) -> None:
        """Get ready; tell of each fusion from now on."""

    async def stop(self) -> None:
        """End, with nothing in progress."""

    async def work(self, batch: list[Item]) -> None:
        """Answer items of one key; an error answers those that it concerns."""


class Here:
    """An engine of threads of this process."""

    slots = BATCHES

    def __init__(self, fusers: Fusers, limits: Limits):
        self.fusers, self.limits = fusers, limits
        self.most = limits.max_batch or fusers.own.batch_size
        self.files = ThreadPoolExecutor(BATCHES, "ddfm-files")
        self.fusion = ThreadPoolExecutor(1, "ddfm-fusion")
        self.tell: Tell = lambda _: None

    async def start(self, tell: Tell) -> None:
        """Do the work of a first call."""
        self.tell = tell
        await in_thread(self.fusion, self.fusers.warm_up)

    async def stop(self) -> None:
        """End the threads."""
        self.fusion.shutdown(wait=True, cancel_futures=True)
        self.files.shutdown(wait=True, cancel_futures=True)

    async def work(self, batch: list[Item]) -> None:
        """Decode, fuse and encode, each in its threads."""
        try:
            await asyncio.gather(*(self._decode(item) for item in batch))
            ready = [item for item in batch if item.pictures is not None and not item.done.done()]
            fused = await in_thread(self.fusion, self._fuse, ready)
            await asyncio.gather(*(self._encode(*one) for one in fused))
        finally:
            for item in batch:
                item.pictures = None

    async def _decode(self, item: Item) -> None:
        def work() -> None:
            with hearing() as item.warnings:
                if item.wanted:
                    pictures = decode(item.call, self.limits.max_pixels)
                    check_format(pictures, item.format)
                    item.pictures = pictures

        try:
            await in_thread(self.files, work)
        except Exception as error:  # of this item alone
            settle(item, error)

    def _fuse(self, items: list[Item]) -> list[tuple[Item, Result | Exception, int, float]]:
        """Fuse, in the thread for it, all items together or, if that fails, each alone."""
        items = [item for item in items if item.wanted]
        if not items:
            return []
        waited = [item.clock.passed for item in items]
        try:
            results = self._fused(items)
        except Unwanted:
            return []
        except Exception as error:  # by one of them, or no memory: fusing each alone shows
            if len(items) == 1:
                return [(items[0], error, 1, waited[0])]
            return [one for item in items for one in self._fuse([item])]
        return [
            (item, result, len(items), seconds)
            for item, result, seconds in zip(items, results, waited, strict=True)
        ]

    def _fused(self, items: list[Item]) -> list[Result]:
        def callback(_: Any) -> None:
            if not any(item.wanted for item in items):
                raise Unwanted

        started = time.monotonic()
        call = items[0].call
        pairs = [item.pictures for item in items if item.pictures is not None]
        results = self.fusers.fuse(call.options, call.run, pairs, callback)
        evaluations = sum(result.evaluations for result in results)
        self.tell(Fusion(time.monotonic() - started, len(items), evaluations))
        return results

    async def _encode(
        self, item: Item, result: Result | Exception, batch: int, waited: float
    ) -> None:
        def work() -> Answer:
            assert isinstance(result, Result)
            assert item.pictures is not None
            color = item.call.run.get("color", True)
            data, picture = item.pictures.encoded(result.picture, item.format, color)
            return Answer(
                data, picture.shape, str(picture.dtype), result.report,
                [*item.warnings, *result.warnings], batch, waited,
            )  # fmt: skip

        if isinstance(result, Exception):
            settle(item, result)
            return
        try:
            settle(item, await in_thread(self.files, work))
        except Exception as error:  # of this item alone
            settle(item, error)


async def in_thread(pool: ThreadPoolExecutor, work: Callable[..., Any], *given: Any) -> Any:
    """Run a function in a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, work, *given)


def settle(item: Item, found: Answer | Exception) -> None:
    """Answer an item, unless nobody waits."""
    if item.done.done():
        return
    if not isinstance(found, Exception):
        item.done.set_result(found)
    elif isinstance(found, Refused):
        item.done.set_exception(found)
    elif isinstance(found, EXPECTED):
        item.done.set_exception(Refused(400, str(found) or type(found).__name__))
    elif is_out_of_memory(found):
        item.done.set_exception(
            Refused(503, "memory ran out; send smaller pictures, or try again", Retry_After="5")
        )
    else:
        item.done.set_exception(found)
