"""Ctrl-C while a program loads and reads its command line.

Imports little, and that first: until the handler is there, Ctrl-C is a traceback.
"""

import gc
import os
import signal
import sys

INTERRUPTED = 130
"""what shells give a program after Ctrl-C"""

_PROGRAMS = ("ddfm-fast", "ddfm-fast.exe", "ddfm-fast-script.py")


def is_the_command() -> bool:
    """Return whether this process is ``ddfm-fast`` or is loading ``python -m ddfm_fast``."""
    name = os.path.basename(sys.argv[0] if sys.argv else "")
    if name != "-m":  # which Python puts there until it has found the module
        return name in _PROGRAMS
    words = sys.orig_argv
    return words[words.index("-m") + 1 :][:1] == ["ddfm_fast"] if "-m" in words else False


def end_at_once() -> None:
    """From here on, until `by_exception`, Ctrl-C ends the process: nothing needs a clean-up yet.

    As an exception it would be swallowed, or become another, in libraries that it meets in C.
    What the user has set, such as to ignore it, stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def by_exception() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again.

    Garbage so far stays: classes that were made to read the command line would be collected later,
    and Python drops a KeyboardInterrupt that it meets in the callback of a weak reference.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        gc.freeze()
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ending_at_once:  # noqa: N801  (contextlib takes as long to load as all of this)
    """`end_at_once` inside, and `by_exception` after it."""

    def __enter__(self) -> None:
        end_at_once()

    def __exit__(self, *_: object) -> None:
        by_exception()


def _end(*_: object) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
