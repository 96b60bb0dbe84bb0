"""Parse options that are written as text.

The command line has such options, and so do hosts whose settings are text: GStreamer's properties
and ROS's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def parse_steps(text: str | None) -> int | str | None:
    """Parse steps: an int if it is one, else the word, such as ddim50."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def parse_denoise(text: str | None, name: str = "denoise") -> Any:
    """Parse noise: a word, a number, or ir=…,vis=… as a dict; ValueError names the option."""
    if text is None or "=" not in text:
        return _number(text)
    levels: dict[str, Any] = {}
    for part in text.split(","):
        source, _, level = (word.strip() for word in part.partition("="))
        if source in levels or not level:
            raise ValueError(
                f"{name} is {text!r}; expected each source once and its level, such as "
                "ir=12,vis=off"
            )
        levels[source] = _number(level)
    return levels


def parse_range(
    text: str | None, name: str, names: Sequence[str] | None = None
) -> tuple[float, float] | str | None:
    """Parse ``LO,HI``, or a name: ``auto``, ``dtype`` or ``data``; ValueError otherwise."""
    from ..images.ranges import NAMES

    names = NAMES if names is None else names
    if text is None or text in names:
        return text
    try:
        low, high = (float(n) for n in text.split(","))
    except ValueError:
        low = high = 0.0
    if not (low < high and abs(low) < math.inf and abs(high) < math.inf):
        raise ValueError(
            f"{name} is {text!r}; expected LO,HI with LO below HI such as 7000,9000, or one of "
            + ", ".join(names)
        )
    return low, high


def _number(text: str | None) -> Any:
    """Return the number that a text means, or the text itself if it means none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
