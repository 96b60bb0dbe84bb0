"""Report the outcome of each item of a call, as it happens.

Reports go to the logger ``ddfm_fast.items`` of the standard library, at level INFO: the message is
for people, and ``record.item`` has the facts as JSON types. To follow them, add a handler.
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
    """Report that a picture, pair or video is done, or has failed.

    Args:
        name: Its name for people.
        what: The outcome, in a word or a sentence.
        facts: The same for programs, as JSON types.
    """
    if not _silent.get():
        _LOG.info("%s: %s", name, what, extra={"item": dict(facts)})


@contextmanager
def silently() -> Iterator[None]:
    """Report nothing inside: the caller knows more, and reports it."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)
