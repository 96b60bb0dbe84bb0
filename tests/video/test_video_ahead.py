"""Iterators that run ahead in a thread."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from ddfm_fast.video.ahead import Ahead


def test_ahead_is_bounded_ordered_and_passes_errors_on():
    made = []

    def items():
        for n in range(10):
            made.append(n)
            yield n
        raise KeyError("the end")

    ahead = Ahead(items(), 2)
    time.sleep(0.1)
    assert len(made) == 3  # two in the queue, one in hand
    taken = []
    with pytest.raises(KeyError):
        for item in ahead:
            taken.append(item)
    assert taken == list(range(10))
    ahead.close()


def test_ahead_drops_the_oldest_and_hands_on_what_must_not_be_lost():
    go = threading.Event()

    def items():
        yield from ([n] for n in range(10))
        go.set()

    ahead = Ahead(items(), 2, merge=lambda dropped, following: dropped + following)
    assert go.wait(5)
    assert list(ahead) == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9]] and ahead.dropped == 8


def test_closing_ends_the_threads():
    closed = threading.Event()

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    first = Ahead(items(), 1)
    second = Ahead((n for n in first), 1)
    next(second)
    second.close()
    first.close()
    assert closed.wait(5)
    assert not first.running and not second.running
