"""MATLAB files of version 5 to 7, read with distrust: only plain numbers.

A file is a head of 128 bytes, then elements: a type, a count of bytes and the bytes. A matrix is an
element of elements: flags with its class, its dimensions, its name and its numbers, stored in a
type that may be smaller than its class. A compressed element is a matrix within zlib.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .guards import Array, damaged

_HEAD = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
           13: "u8"}  # fmt: skip
"""NumPy's type for each stored type"""
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8",
            15: "u8"}  # fmt: skip
"""NumPy's type for each class of matrix"""
_LOGICAL, _COMPLEX = 0x02, 0x08
_FRONT = 4096
"""bytes of a matrix that include all that comes before its numbers"""
_MOST_VARIABLES, _MOST_DIMENSIONS = 1000, 8


class Variable(NamedTuple):
    """A matrix of real numbers, not yet decoded."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """bool for a logical matrix"""
    place: int
    """offset of its element in the file"""


def variables(file: BinaryIO, path: Path) -> list[Variable]:
    """List the matrices of real numbers; anything else is left out.

    Raises:
        ImageFileError: The file contradicts itself.
    """
    order, found = _order(file, path), []
    for kind, place, size in _elements(file, path, order):
        front = _front(file, place, size, kind, _FRONT)
        if kind == _COMPRESSED:
            if len(front) < 8 or struct.unpack_from(order + "I", front)[0] != _MATRIX:
                continue
            front = front[8:]
        elif kind != _MATRIX:
            continue
        if (known := _described(front, order)) is not None:
            name, shape, dtype, _ = known
            found.append(Variable(name, shape, dtype, place - 8))
    return found


def decode(file: BinaryIO, path: Path, variable: Variable) -> Array:
    """Decode a matrix whose size the caller has checked.

    Raises:
        ImageFileError: Its numbers are damaged, or fewer than stated.
    """
    order = _order(file, path)
    file.seek(variable.place)
    kind, size = struct.unpack(order + "II", file.read(8))
    count = math.prod(variable.shape)
    data = _front(file, variable.place + 8, size, kind, _FRONT + 8 * count)
    data = data[8:] if kind == _COMPRESSED else data
    known = _described(data, order)
    assert known is not None
    at = known[3]
    stored, length, start = _tag(data, at, order)
    dtype = np.dtype(order + _STORED[stored]) if stored in _STORED else None
    if dtype is None or length != count * dtype.itemsize or start + length > len(data):
        raise damaged(path, f"{variable.name} has {length} bytes for {variable.shape} numbers")
    values = np.frombuffer(data, dtype, count, start).reshape(variable.shape, order="F")
    return values.astype(variable.dtype)


def _order(file: BinaryIO, path: Path) -> str:
    file.seek(0)
    head = file.read(_HEAD)
    mark = head[126:128]
    if len(head) < _HEAD or mark not in (b"IM", b"MI"):
        raise damaged(path, "it has no MATLAB header")
    return "<" if mark == b"IM" else ">"


def _elements(file: BinaryIO, path: Path, order: str) -> Iterator[tuple[int, int, int]]:
    """Yield (type, place, size) of each element of the file."""
    length, at = file.seek(0, os.SEEK_END), _HEAD
    for _ in range(_MOST_VARIABLES):
        if at + 8 > length:
            return
        file.seek(at)
        kind, size = struct.unpack(order + "II", file.read(8))
        if at + 8 + size > length:
            raise damaged(path, f"a variable of {size} bytes at byte {at} of {length}")
        yield kind, at + 8, size
        at += 8 + size + (0 if kind == _COMPRESSED else -size % 8)


def _front(file: BinaryIO, place: int, size: int, kind: int, most: int) -> bytes:
    """Return the first bytes of an element, unpacked if it is compressed."""
    file.seek(place)
    if kind == _COMPRESSED:
        return zlib.decompressobj().decompress(file.read(size), most)
    return file.read(min(size, most))


def _described(data: bytes, order: str) -> tuple[str, tuple[int, ...], np.dtype[Any], int] | None:
    """Return name, shape, dtype and place of a matrix's numbers; None for other classes."""
    try:
        _, length, at = _tag(data, 0, order)
        flags = struct.unpack_from(order + "I", data, at)[0]
        at += length + -length % 8
        _, length, start = _tag(data, at, order)
        count = length // 4
        if not 2 <= count <= _MOST_DIMENSIONS:
            return None
        shape = struct.unpack_from(f"{order}{count}i", data, start)
        at = _after(at, length, start)
        _, length, start = _tag(data, at, order)
        if start + length > len(data):
            return None
        name = data[start : start + length].decode("latin-1")
        at = _after(at, length, start)
    except struct.error:
        return None
    kind, bits = flags & 0xFF, flags >> 8 & 0xFF
    if kind not in _CLASSES or bits & _COMPLEX or min(shape) < 0:
        return None
    return name, shape, np.dtype(bool if bits & _LOGICAL else _CLASSES[kind]), at


def _tag(data: bytes, at: int, order: str) -> tuple[int, int, int]:
    """Return (type, size, place) of a part; a small one packs type and size into four bytes."""
    kind = struct.unpack_from(order + "I", data, at)[0]
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, at + 4
    return kind, struct.unpack_from(order + "I", data, at + 4)[0], at + 8


def _after(at: int, length: int, start: int) -> int:
    return at + 8 if start == at + 4 else start + length + -length % 8
