"""Locks that a forked process finds open: the threads that held them are not forked along."""

from __future__ import annotations

import os
import threading
import weakref

_all: weakref.WeakSet[ForkLock] = weakref.WeakSet()


class ForkLock:
    """A lock for ``with``, which the thread that holds it may take again.

    A process that is forked while another thread holds it would wait for that thread for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[ForkLock], tuple[()]]:
        """Arrive open in another process."""
        return ForkLock, ()

    def renew(self) -> None:
        """Open it, unless this thread holds it: in a process that was just forked."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


def _renew_all() -> None:
    for lock in list(_all):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
