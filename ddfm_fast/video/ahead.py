"""A stage of a pipeline: an iterator that runs ahead of its reader in a thread."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

AHEAD = 2
"""items in each queue between two stages"""

T = TypeVar("T")


class Ahead(Iterator[T]):
    """Iterates over ``items`` in a thread, at most ``size`` items ahead; ``close`` ends it.

    An error in ``items`` is raised in place of its item.
    """

    def __init__(
        self,
        items: Iterable[T],
        size: int = AHEAD,
        merge: Callable[[T, T], T] | None = None,
    ):
        """Start the thread.

        Args:
            items: Closed at the end, if it can be.
            size: Most items in the queue.
            merge: If the queue is full, drop its oldest item instead of waiting, and replace the
                next one by merge(dropped, next).
        """
        self.dropped = 0
        self._items, self._size, self._merge = items, size, merge
        self._queue: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = self._done = False
        self._error: BaseException | None = None
        here = contextvars.copy_context()  # in it warnings are caught, and name their picture
        self._thread = threading.Thread(target=here.run, args=(self._run,), daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:  # raised again in the reading thread
            self._error = error
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            while len(self._queue) >= self._size and not self._closed:
                if self._merge is None:
                    self._changed.wait()
                    continue
                oldest = self._queue.popleft()
                self.dropped += 1
                if self._queue:
                    self._queue[0] = self._merge(oldest, self._queue[0])
                else:
                    item = self._merge(oldest, item)
            self._queue.append(item)
            self._changed.notify_all()
            return not self._closed

    def __next__(self) -> T:
        with self._changed:
            while not self._queue and not self._done and not self._closed:
                self._changed.wait()
            if self._queue:
                item = self._queue.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration

    def stop(self) -> None:
        """Ask the thread to end after its current item."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait for the thread, but not for a stalled network."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)


def close_all(stages: Sequence[Ahead]) -> None:
    """Stop all, then wait: a stage may be waiting for the one before it."""
    for stage in stages:
        stage.stop()
    for stage in stages:
        stage.close()
