"""Queue a bounded number of requests, fusing those of one size and set of options together.

One thread fuses: every fuser has the same prior, and a prior takes all cores or the whole GPU
anyway. Other batches are decoded and encoded meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..runtime.memory import is_out_of_memory
from .bodies import Call
from .fusers import Fusers, Result
from .limits import Clock, Limits, Refused, retry_after
from .logs import hearing
from .metrics import Metrics
from .pictures import Pictures, check_format, decode

BATCHES = 3
"""at once: one is decoded, one fused, one encoded"""
EXPECTED = (ValueError, TypeError, ImportError)
"""what the library raises of input, in sentences"""


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


class Queue:
    """Takes items, answers their futures. All methods belong to the event loop."""

    def __init__(self, fusers: Fusers, limits: Limits, metrics: Metrics):
        self.fusers, self.limits, self.metrics = fusers, limits, metrics
        self.most = limits.max_batch or fusers.own.batch_size
        self.waiting: list[Item] = []
        self.working = 0
        self.seconds = 0.1
        """of a request, lately"""
        self.files = ThreadPoolExecutor(BATCHES, "ddfm-files")
        self.fusion = ThreadPoolExecutor(1, "ddfm-fusion")
        self.came = asyncio.Event()
        self.slots = asyncio.Semaphore(BATCHES)
        self.batches: set[asyncio.Task[None]] = set()
        self.task: asyncio.Task[None] | None = None
        metrics.watch_queue(lambda: len(self))

    def __len__(self) -> int:
        return len(self.waiting) + self.working

    def check(self) -> None:
        """Refuse a request where the queue is full."""
        if len(self) >= self.limits.max_queue:
            raise Refused(
                429,
                f"{len(self)} requests are already waiting; try again later",
                Retry_After=retry_after(len(self) * self.seconds),
            )

    async def start(self) -> None:
        """Begin to work, with what the first call needs."""
        await self.thread(self.fusion, self.fusers.warm_up)
        self.task = asyncio.create_task(self._dispatch())

    async def stop(self) -> None:
        """Give up what is left, and end the threads."""
        for item in self.waiting:
            item.gone = True
        tasks = [*self.batches, *([self.task] if self.task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.fusion.shutdown(wait=True, cancel_futures=True)
        self.files.shutdown(wait=True, cancel_futures=True)

    async def thread(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *given: Any) -> Any:
        """Run a function in a pool."""
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)

    async def answer(self, item: Item) -> Answer:
        """Put an item into the queue and wait for its answer.

        Raises:
            Refused: The queue is full, time ran out, or the library refuses the input.
        """
        self.check()
        self.waiting.append(item)
        self.came.set()
        try:
            return await asyncio.wait_for(item.done, item.clock.left)
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(
                504,
                f"no result after {item.clock.seconds:g} seconds; ask for fewer steps or a smaller "
                "picture, or start the service with a higher --timeout",
            ) from None
        finally:
            item.gone = True
            with contextlib.suppress(ValueError):
                self.waiting.remove(item)

    async def _dispatch(self) -> None:
        while True:
            await self.slots.acquire()
            batch = await self._next()
            self.working += len(batch)
            task = asyncio.create_task(self._work(batch))
            self.batches.add(task)
            task.add_done_callback(self.batches.discard)

    async def _next(self) -> list[Item]:
        """Return the oldest item and those like it, for which it waits a moment."""
        while not self.waiting:
            self.came.clear()
            await self.came.wait()
        first, end = self.waiting[0], time.monotonic() + self.limits.wait
        while True:
            same = [item for item in self.waiting if item.key == first.key][: self.most]
            left = end - time.monotonic()
            if len(same) == self.most or left <= 0:
                break
            self.came.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self.came.wait(), left)
        self.waiting = [item for item in self.waiting if item not in same]
        return same

    async def _work(self, batch: list[Item]) -> None:
        started = time.monotonic()
        try:
            await asyncio.gather(*(self._decode(item) for item in batch))
            ready = [item for item in batch if item.pictures is not None and not item.done.done()]
            fused = await self.thread(self.fusion, self._fuse, ready)
            await asyncio.gather(*(self._encode(*one) for one in fused))
        finally:
            self.slots.release()
            self.working -= len(batch)
            for item in batch:
                item.pictures = None
            lately = (time.monotonic() - started) / max(1, len(batch))
            self.seconds += (lately - self.seconds) / 8

    async def _decode(self, item: Item) -> None:
        def work() -> None:
            with hearing() as item.warnings:
                if item.wanted:
                    pictures = decode(item.call, self.limits.max_pixels)
                    check_format(pictures, item.format)
                    item.pictures = pictures

        try:
            await self.thread(self.files, work)
        except Exception as error:  # of this item alone
            _settle(item, error)

    def _fuse(self, items: list[Item]) -> list[tuple[Item, Result | Exception, int, float]]:
        """In the thread of fusion: all together, or each alone if that fails."""
        items = [item for item in items if item.wanted]
        if not items:
            return []
        waited = [item.clock.passed for item in items]
        try:
            results = self._fused(items)
        except Unwanted:
            return []
        except Exception as error:  # of one of them, or for lack of memory: alone each shows
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
        self.metrics.fusion.observe(time.monotonic() - started)
        self.metrics.batches.observe(len(items))
        self.metrics.evaluations.inc(sum(result.evaluations for result in results))
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
            _settle(item, result)
            return
        try:
            _settle(item, await self.thread(self.files, work))
        except Exception as error:  # of this item alone
            _settle(item, error)


def _settle(item: Item, found: Answer | Exception) -> None:
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
