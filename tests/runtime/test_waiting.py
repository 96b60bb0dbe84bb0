"""``Fuser.afuse``: the call's result, an event loop that stays free, tasks that are canceled."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from ddfm_fast import Fuser, StepInfo

WAIT = 30.0
"""seconds after which a test has failed"""


def sources(seed: int = 0) -> list[np.ndarray]:
    rows, columns = np.mgrid[:48, :64]
    return [(4 * columns + seed).astype(np.uint8), np.stack([5 * rows] * 3, -1).astype(np.uint8)]


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(steps=4, device="cpu")


def until(condition, what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_it_is_the_call(fuser):
    ir, vis = sources()
    seen: list[int] = []
    report: list = []

    async def run():
        options = {"callback": lambda info: seen.append(info.step), "report": report}
        return await fuser.afuse(ir, vis, seed=5, **options)

    np.testing.assert_array_equal(asyncio.run(run()), fuser(ir, vis, seed=5))
    assert seen == [1, 2, 3, 4] and len(report) == 1


def test_several_at_once_and_a_free_loop(fuser):
    """Eight fusions of one fuser in threads give the bytes of eight calls; the loop ticks."""
    pairs = [sources(n) for n in range(8)]
    ticks = 0

    async def run():
        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*(fuser.afuse(*pair) for pair in pairs))
        ticking.cancel()
        return found

    for found, pair in zip(asyncio.run(run()), pairs, strict=True):
        np.testing.assert_array_equal(found, fuser(*pair))
    assert ticks > 10


def test_canceled_between_steps(fuser):
    """The task ends while a step is held; the fusion makes no step after the one it is in."""
    held, go, steps = threading.Event(), threading.Event(), []

    def callback(info: StepInfo) -> None:
        steps.append(info.step)
        held.set()
        assert go.wait(WAIT)

    async def run() -> float:
        task = asyncio.create_task(fuser.afuse(*sources(), callback=callback))
        while not held.is_set():
            await asyncio.sleep(0.01)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waited = time.monotonic() - start
        go.set()
        return waited

    before = threading.active_count()
    assert asyncio.run(run()) < WAIT / 2
    until(lambda: threading.active_count() <= before, "the thread of the fusion has ended")
    assert steps == [1]
    ir, vis = sources()
    np.testing.assert_array_equal(fuser(ir, vis), Fuser(steps=4, device="cpu")(ir, vis))


def test_a_timeout(fuser):
    slow = fuser.with_options(steps=1000)
    count: list[int] = []

    async def run() -> None:
        await asyncio.wait_for(slow.afuse(*sources(), callback=lambda i: count.append(i.step)), 0.3)

    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        asyncio.run(run())
    assert len(count) < 1000


def test_errors_come_through(fuser):
    ir, vis = sources()

    def fails(info: StepInfo) -> None:
        raise RuntimeError("mine")

    async def later(info: StepInfo) -> None: ...

    with pytest.raises(RuntimeError, match="mine"):
        asyncio.run(fuser.afuse(ir, vis, callback=fails))
    with pytest.raises(TypeError, match="callback is a coroutine function; expected a plain one"):
        asyncio.run(fuser.afuse(ir, vis, callback=later))
    with pytest.raises(TypeError, match="callback is 3"):
        asyncio.run(fuser.afuse(ir, vis, callback=3))
    with pytest.raises(ValueError, match="equal size"):
        asyncio.run(fuser.afuse(ir, vis[:-1]))
    with pytest.raises(TypeError, match="'steps' is not an option of a call"):
        asyncio.run(fuser.afuse(ir, vis, steps=3))
