"""Which of its values a DICOM file wants seen: windows and tables (VOI LUT), PS3.3 C.11.2.

A file may name several, of which one is shown at a time. Its first window is taken unless another
view is chosen; if it names no window, its first table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..files.paths import ImageFileError, few
from .volume import Array

TABLE = "lut"
"""the name that chooses the first table"""
_WRAP = 1 << 16


class View(NamedTuple):
    """A window, or a table."""

    name: str
    """as the file explains it, or empty"""
    window: tuple[float, float] | None
    """black and white; None for a table"""
    table: Any = None
    """the item of VOILUTSequence"""


def views(holder: Any) -> list[View]:
    """List the windows and then the tables of a dataset, or of a frame's group."""
    centers, widths = (_many(holder.get(f"Window{word}")) for word in ("Center", "Width"))
    words = _words(holder.get("WindowCenterWidthExplanation"))
    kind = str(holder.get("VOILUTFunction", "LINEAR"))
    found = []
    for n, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if width > 0:
            found.append(View(words[n] if n < len(words) else "", _ends(center, width, kind)))
    for item in holder.get("VOILUTSequence") or []:
        found.append(View(str(item.get("LUTExplanation", "") or ""), None, item))
    return found


def chosen(found: list[View], wanted: str | int | None, name: str) -> View | None:
    """Choose a view.

    Args:
        found: What :func:`views` lists.
        wanted: The number of a window from 0, its explanation, or "lut"; None for the first.
        name: The file, for the error.

    Raises:
        ImageFileError: There is no such view.
    """
    if wanted is None:
        return found[0] if found else None
    text = str(wanted).strip().casefold()
    windows = [view for view in found if view.window is not None]
    tables = [view for view in found if view.window is None]
    if text == TABLE and tables:
        return tables[0]
    if text.isdecimal() and int(text) < len(windows):
        return windows[int(text)]
    named = [view for view in found if view.name.casefold() == text]
    if named:
        return named[0]
    there = [f"{n} ({_told(view)})" for n, view in enumerate(windows)]
    there += [f"{TABLE} ({view.name or 'a table'})" for view in tables[:1]]
    raise ImageFileError(
        f"{name}: has no window {wanted!r}; expected {few(there) if there else 'none'}, or leave "
        "window (--window) out and give a range"
    )


def by_table(values: Array, item: Any, *, signed: bool, name: str) -> tuple[Array, float]:
    """Map values by a table; return the result, and its white (black is 0).

    Args:
        values: In the modality's units, such as Hounsfield units, before any inversion.
        item: The item of VOILUTSequence.
        signed: Whether they may be negative; then the table's start may be, too.
        name: The file, for the error.

    Raises:
        ImageFileError: The table contradicts itself.
    """
    count, first, bits = (int(n) for n in item.LUTDescriptor)
    count = count or _WRAP
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, "<u2" if len(data) >= 2 * count else np.uint8)
    else:
        table = np.asarray(data, np.int64) & (_WRAP - 1)
    if len(table) < count or not 1 <= bits <= 16:
        raise ImageFileError(
            f"{name}: its VOI LUT has {len(table)} entries of {bits} bits and says {count}; choose "
            "a window (--window), or repair the file"
        )
    if signed and first >= _WRAP // 2:
        first -= _WRAP
    at = (np.rint(values).astype(np.int64) - first).clip(0, count - 1)
    return table[at].astype(np.float32), float((1 << bits) - 1)


def _ends(center: float, width: float, kind: str) -> tuple[float, float]:
    """Return black and white of a window, C.11.2.1.2."""
    if kind == "LINEAR" and width > 1:
        return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return center - width / 2, center + width / 2


def _many(value: Any) -> list[float]:
    """Return the numbers of an attribute, one or several; none if they are not numbers."""
    several = hasattr(value, "__len__") and not isinstance(value, str)
    try:
        return [float(one) for one in (value if several else [value])]
    except (TypeError, ValueError):
        return []


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _told(view: View) -> str:
    low, high = view.window or (0.0, 0.0)
    return f"{view.name}, {low:g} to {high:g}" if view.name else f"{low:g} to {high:g}"
