"""Locks that are open in a forked process, where the threads that held them do not exist."""

from __future__ import annotations

import _thread
import os
import weakref

_all: weakref.WeakSet[ForkLock] = weakref.WeakSet()


class ForkLock(_thread.RLock):  # type: ignore[misc]  # which CPython lets
    """A lock for ``with``, which the thread that holds it may take again.

    Otherwise a process that is forked while another thread holds it would wait for that thread
    forever. The interpreter itself takes and releases it, with no line of Python in between at
    which Ctrl-C could leave it closed.
    """

    def __init__(self) -> None:
        _all.add(self)

    def __reduce__(self) -> tuple[type[ForkLock], tuple[()]]:
        """Arrive open in another process."""
        return ForkLock, ()

    def renew(self) -> None:
        """Open it in a process that was just forked, unless this thread holds it."""
        if self.acquire(blocking=False):
            self.release()
        else:
            self._at_fork_reinit()  # type: ignore[attr-defined]


def _renew_all() -> None:
    for lock in list(_all):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
