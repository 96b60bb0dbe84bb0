"""What becomes of each thing that a call works on, told as it happens.

Told by the logger ``ddfm_fast.items`` of the standard library, at level INFO: the message is for
people, and ``record.item`` has the facts as JSON types. Who wants to follow adds a handler.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_LOG = logging.getLogger("ddfm_fast.items")
_silent: ContextVar[bool] = ContextVar("silent", default=False)


def reached(name: str, what: str, facts: Mapping[str, Any]) -> None:
    """Tell that a picture, pair or video is done, or has failed.

    Args:
        name: What people call it.
        what: What became of it, in a word or a sentence.
        facts: The same for programs, of JSON types.
    """
    if not _silent.get():
        _LOG.info("%s: %s", name, what, extra={"item": dict(facts)})


@contextmanager
def silently() -> Iterator[None]:
    """Inside nothing is told: who is outside knows more, and tells it."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
