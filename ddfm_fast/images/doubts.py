"""Warn of input that is legal but surely a mistake: one sentence, a ``DDFMWarning``.

The logger ``ddfm_fast`` reports what was captured and dropped, at INFO.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

logging.getLogger("ddfm_fast").addHandler(logging.NullHandler())
_PACKAGE = str(Path(__file__).resolve().parent.parent)
_picture: ContextVar[str] = ContextVar("picture", default="")
_told: ContextVar[set[str] | None] = ContextVar("told", default=None)
_DECORATORS = ("contextlib.py", "_contextlib.py")
"""files of Python's and PyTorch's context managers, which come between functions of ours"""
_NAMED = 3
"""most pictures of a batch that a sentence names"""


class DDFMWarning(UserWarning):
    """Every warning of this package, so that one filter covers them all.

    >>> warnings.filterwarnings("error", category=DDFMWarning)
    >>> ddfm_fast.fuse(infrared, infrared, preset="instant")
    Traceback (most recent call last):
    ddfm_fast.images.doubts.DDFMWarning: ir and vis are the same picture; give two different sources
    """


def warn(sentence: str, kind: str | None = None) -> None:
    """Warn at the line of the caller that is outside of this package.

    Args:
        sentence: The warning.
        kind: If given, a run over many pictures warns only for the first one, see :func:`about`.
    """
    if kind is not None and (told := _told.get()) is not None:
        if kind in told:
            return
        told.add(kind)
    name = _picture.get()
    level, frame = 1, inspect.currentframe()
    while frame is not None and _inside(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{name}: {sentence}" if name else sentence, DDFMWarning, stacklevel=level)


def _inside(file: str) -> bool:
    return file.startswith(_PACKAGE) or file.endswith(_DECORATORS)


@contextlib.contextmanager
def about(names: Sequence[str], told: set[str] | None = None) -> Iterator[None]:
    """Begin sentences inside with the names of the pictures that are fused together.

    Args:
        names: The pictures' names.
        told: The kinds of warnings that a run has already given, and need not repeat for every
            picture. The run's threads share the set.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    tokens = _picture.set(", ".join(names[:_NAMED]) + more), _told.set(told)
    try:
        yield
    finally:
        _picture.reset(tokens[0])
        _told.reset(tokens[1])
