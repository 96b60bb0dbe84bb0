"""What counts as an integer in arguments, in one place."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def as_int(value: Any) -> int | None:
    """Return an integer of Python or NumPy as an int; None for a bool and anything else."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_count(value: Any, low: int, high: int | None = None) -> int | None:
    """Return an integer from ``low`` to ``high`` as an int; None for all else."""
    number = as_int(value)
    if number is None or number < low or (high is not None and number > high):
        return None
    return number
