"""Ctrl-C while a program loads and reads its command line.

It imports little and is imported first: until the handler is there, Ctrl-C prints a traceback.
"""

import gc
import os
import signal
import sys

INTERRUPTED = 130
"""exit code that shells report after Ctrl-C"""

_PROGRAMS = ("ddfm-fast", "ddfm-fast.exe", "ddfm-fast-script.py")


def is_the_command() -> bool:
    """Return whether this process is ``ddfm-fast`` or is loading ``python -m ddfm_fast``."""
    name = os.path.basename(sys.argv[0] if sys.argv else "")
    if name != "-m":  # Python puts "-m" there until it has found the module
        return name in _PROGRAMS
    words = sys.orig_argv
    return words[words.index("-m") + 1 :][:1] == ["ddfm_fast"] if "-m" in words else False


OWN_PROCESS = is_the_command()
"""whether it was so when this was imported, while "-m" was still there"""


def end_at_once() -> None:
    """Let Ctrl-C end the process from here on, until `by_exception`: nothing needs cleaning up yet.

    An exception would be swallowed, or become another one, in libraries' C code. What the user has
    set, such as ignoring it, stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def by_exception() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again from here on.

    Existing garbage is never collected: classes made to read the command line would be collected
    later, and Python drops a KeyboardInterrupt that arrives in the callback of a weak reference.
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
