"""A lock that is left open by whatever interrupts its holder."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from ddfm_fast.runtime.locks import ForkLock


class Interrupted(Exception):
    """What the alarm raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_interrupt_at_any_moment_leaves_it_open():
    """Ctrl-C comes like that: a lock whose ``__enter__`` is Python code may stay closed forever."""
    lock, open_ = ForkLock(), []

    def alarm(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, alarm)
    end = time.monotonic() + 1.5
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 30e-6)
                while True:
                    with lock:
                        pass
            except Interrupted:
                continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    thread = threading.Thread(target=lambda: open_.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert open_ == [True]


def test_its_thread_may_take_it_again_and_others_wait():
    lock, seen = ForkLock(), []

    def other():
        with lock:
            seen.append("other")

    with lock, lock:
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.05)
        seen.append("own")
    thread.join()
    assert seen == ["own", "other"]
