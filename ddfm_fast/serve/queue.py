"""Queue a bounded number of requests, putting those of one size and set of options together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from .engine import BATCHES, Answer, Engine, Item
from .limits import Limits, Refused, retry_after
from .metrics import Metrics


class Queue:
    """Takes items, answers their futures. All methods belong to the event loop."""

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics):
        self.engine, self.limits, self.metrics = engine, limits, metrics
        self.waiting: list[Item] = []
        self.working = 0
        self.seconds = 0.1
        """that a request took recently"""
        self.files = ThreadPoolExecutor(BATCHES, "ddfm-headers")
        """reads headers of pictures, and JSON"""
        self.came = asyncio.Event()
        self.slots = asyncio.Semaphore(engine.slots)
        self.batches: set[asyncio.Task[None]] = set()
        self.task: asyncio.Task[None] | None = None
        metrics.watch_queue(lambda: len(self))

    def __len__(self) -> int:
        return len(self.waiting) + self.working

    def check(self) -> None:
        """Refuse a request if the queue is full."""
        if len(self) >= self.limits.max_queue:
            raise Refused(
                429,
                f"{len(self)} requests are already waiting; try again later",
                Retry_After=retry_after(len(self) * self.seconds),
            )

    async def start(self) -> None:
        """Begin to work, with what the first call needs."""
        await self.engine.start(self.metrics.fused)
        self.task = asyncio.create_task(self._dispatch())

    async def stop(self) -> None:
        """Give up what is left, and end the threads."""
        for item in self.waiting:
            item.gone = True
        tasks = [*self.batches, *([self.task] if self.task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.stop()
        self.files.shutdown(wait=True, cancel_futures=True)

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
        """Return the oldest item and similar ones, for which it waits a moment."""
        while not self.waiting:
            self.came.clear()
            await self.came.wait()
        first, end = self.waiting[0], time.monotonic() + self.limits.wait
        while True:
            same = [item for item in self.waiting if item.key == first.key][: self.engine.most]
            left = end - time.monotonic()
            if len(same) == self.engine.most or left <= 0:
                break
            self.came.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self.came.wait(), left)
        self.waiting = [item for item in self.waiting if item not in same]
        return same

    async def _work(self, batch: list[Item]) -> None:
        started = time.monotonic()
        try:
            await self.engine.work(batch)
        finally:
            self.slots.release()
            self.working -= len(batch)
            lately = (time.monotonic() - started) / max(1, len(batch))
            self.seconds += (lately - self.seconds) / 8
