"""Work on the next items of a run, while this one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


def prefetch(pool: ThreadPoolExecutor, function, items: Iterable, ahead: int) -> Iterator:
    """Yield ``function(item)`` for each item in order, at most ``ahead`` of them in background."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
