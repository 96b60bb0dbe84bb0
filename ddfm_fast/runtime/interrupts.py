"""Ctrl-C while a program loads and reads its command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""what shells give a program after Ctrl-C"""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, until `by_exception`, Ctrl-C ends the process: there is nothing to clean up yet.

    As an exception it would be swallowed, or become another, in libraries that it meets in C.
    What the user has set, such as to ignore it, stays.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def by_exception() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
