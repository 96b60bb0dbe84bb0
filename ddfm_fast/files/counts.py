"""Tables of temperatures as cameras' programs export them, and bare counts (Y16)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..images.doubts import warn
from .guards import Array, check_pixels, damaged, plain_integers
from .paths import ImageFileError
from .texts import decoded, encoding

TABLES = (".csv", ".tsv", ".txt", ".asc")
"""suffixes of tables, which are read as text"""
_FORMS = ((";", ","), (";", "."), ("\t", ","), ("\t", "."), (",", "."), (None, "."), (None, ","))
"""separators of cells (None: blanks) and of fractions, the likelier ones first"""
_LEAST = 4
"""least rows and columns of a picture"""
_CELL = 40
"""most bytes of a number"""
_UNIT = re.compile(r"\s*(?:°\s*)?[CKF]$|°$")
_SAMPLED = 400
"""lines from which the form is found"""
_CLEARER = 4
"""how many times less neighbors must differ for a byte order to count as clearly right"""


def decode_table(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Decode a table of numbers, with anything else around it: float64, or its integers.

    Cells are separated by ``;``, tabs, commas or blanks; fractions follow a point or a comma;
    units after a number are dropped. An empty cell is NaN. A first row and column that count from 0
    or 1 are left out, with a warning.

    Raises:
        ImageFileError: There is no table of at least 4x4 numbers in it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > _CELL * max_pixels:
        raise ImageFileError(
            f"{path}: {size} bytes, more than {max_pixels} numbers take; raise max_pixels= "
            "(command line: --max-pixels)"
        )
    lines = [line.rstrip() for line in _text(file.read(), path).splitlines()]
    form = max(_FORMS, key=lambda form: _area(lines, form))
    rows = [_cells(line, form) for line in lines]
    best, count = _longest(rows)
    if min(len(best), len(best[0]) if best else 0) < _LEAST:
        raise ImageFileError(
            f"{path}: holds no table of numbers; expected an image, or in a text file rows of "
            "temperatures separated by ';', tabs or commas, one number per pixel"
        )
    if count > 1:
        warn(f"{path}: holds {count} tables of {len(best)} rows; the first is used")
    wide = sum(row is not None and len(row) == len(best[0]) for row in rows)
    if wide > count * len(best):
        warn(
            f"{path}: {wide - count * len(best)} rows that are as long as those of its table are "
            "left out, because rows of other lengths or of words stand between them and the table"
        )
    check_pixels(path, len(best[0]), len(best), max_pixels)
    return _without_counters(np.array(best, np.float64), path)


def decode_raw(file: BinaryIO, path: Path, size: tuple[int, int], max_pixels: int) -> Array:
    """Decode bare counts: 16 bits each, the low byte first, or 8 bits.

    Args:
        file: The file, whose first frame is read.
        path: Its name, for errors.
        size: (width, height).
        max_pixels: The limit.

    Raises:
        ImageFileError: The file has another size.
    """
    width, height = size
    check_pixels(path, width, height, max_pixels)
    length, pixels = file.seek(0, os.SEEK_END), width * height
    file.seek(0)
    if length == pixels:
        return np.frombuffer(file.read(pixels), np.uint8).reshape(height, width)
    frames, rest = divmod(length, 2 * pixels)
    if rest or not frames:
        raise ImageFileError(
            f"{path}: {length} bytes, expected {2 * pixels} for {width}x{height} numbers of 16 "
            "bits; check raw_size= (command line: --raw-size)"
        )
    if frames > 1:
        warn(f"{path}: holds {frames} pictures; the first is used")
    values = np.frombuffer(file.read(2 * pixels), "<u2").reshape(height, width).astype(np.uint16)
    if is_swapped(values):
        warn(f"{path}: its numbers are read high byte first, judging by neighboring pixels")
        return values.byteswap()
    return values


def is_swapped(values: Array) -> bool:
    """Return whether the bytes of counts are clearly swapped: neighbors differ far more."""
    sample = values[:: max(1, len(values) // 64)]
    steps = [
        float(np.abs(np.diff(order.astype(np.int32), axis=1)).mean() if order.shape[1] > 1 else 0)
        for order in (sample, sample.byteswap())
    ]
    return steps[0] > _CLEARER * steps[1] > 0


def _text(data: bytes, path: Path) -> str:
    if encoding(data) == "utf-16":
        return decoded(data)
    if b"\0" in data:
        raise damaged(path, "it has zero bytes where text is expected")
    try:
        return decoded(data)
    except UnicodeDecodeError:  # from older programs; only digits and signs matter
        return data.decode("latin-1")


def _area(lines: list[str], form: tuple[str | None, str]) -> int:
    """Count the numbers in the largest table of the first lines, read in this form."""
    best, _ = _longest([_cells(line, form) for line in lines[:_SAMPLED]])
    return len(best) * len(best[0]) if best else 0


def _longest(rows: list[list[float] | None]) -> tuple[list[list[float]], int]:
    """Return the largest run of rows of equal length, and how many of that size there are."""
    runs: list[list[list[float]]] = []
    previous = None
    for row in rows:
        if row is not None:
            if previous is not None and len(previous) == len(row):
                runs[-1].append(row)
            else:
                runs.append([row])
        previous = row
    if not runs:
        return [], 0
    best = max(runs, key=lambda run: len(run) * len(run[0]))
    same = [run for run in runs if (len(run), len(run[0])) == (len(best), len(best[0]))]
    return best, len(same)


def _cells(line: str, form: tuple[str | None, str]) -> list[float] | None:
    """Return the two or more numbers of a line; None if it holds anything else."""
    between, point = form
    cells = [cell.strip().strip('"').strip() for cell in line.split(between)]
    if len(cells) > 1 and not cells[-1]:  # a separator at the end
        del cells[-1]
    try:
        found = [_number(cell, point) for cell in cells]
    except ValueError:
        return None
    return found if len(found) > 1 and not all(np.isnan(found)) else None


def _number(cell: str, point: str) -> float:
    if not cell:
        return float("nan")
    if "_" in cell or (point == "," and "." in cell):
        raise ValueError(cell)
    return float(_UNIT.sub("", cell).replace(point, "."))


def _without_counters(values: Array, path: Path) -> Array:
    """Leave out a first row or column that only counts, and return whole numbers as integers."""
    for axis, name in ((0, "row"), (1, "column")):
        first = values.take(0, axis)
        if _counts_up(first) or (axis == 0 and _counts_up(first[1:])):  # a corner of any kind
            warn(f"{path}: its first {name} only numbers the others and is left out")
            values = np.delete(values, 0, axis)
    whole = np.isfinite(values).all() and (values == np.rint(values)).all()
    if whole and np.abs(values).max() < 1 << 53:
        return plain_integers(values.astype(np.int64))
    return values


def _counts_up(values: Array) -> bool:
    return any(np.array_equal(values, np.arange(n, n + values.size)) for n in (0, 1))
