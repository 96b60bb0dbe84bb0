"""The ICC profile of sRGB, for color and for gray, made from its numbers.

It is made here so that its bytes are the same on every machine: Pillow's profile contains the date.
"""

from __future__ import annotations

import struct
from functools import cache

_D50 = 0.9642, 1.0, 0.8249
_PRIMARIES = (
    (0.4360747, 0.2225045, 0.0139322),
    (0.3850649, 0.7168786, 0.0971045),
    (0.1430804, 0.0606169, 0.7141733),
)
"""X, Y and Z of red, green and blue, adapted to D50"""
_ADAPTATION = (
    1.0478112, 0.0228866, -0.0501270,
    0.0295424, 0.9904844, -0.0170491,
    -0.0092345, 0.0150436, 0.7521316,
)  # fmt: skip
"""Bradford's adaptation from D65"""
_CURVE = 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
"""a, b, c, d, e: y = (b x + c)^a from e on, and d x below"""


@cache
def profile(*, gray: bool) -> bytes:
    """Make an ICC profile of version 4 for displays; for gray it has only the curve and white."""
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(_CURVE)
    tags = {b"desc": _text("sRGB gray" if gray else "sRGB"), b"cprt": _text("Public domain")}
    tags[b"wtpt"] = _xyz(_D50)
    tags[b"chad"] = b"sf32" + bytes(4) + _fixed(_ADAPTATION)
    if gray:
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rgb"[n : n + 1] + b"XYZ": _xyz(_PRIMARIES[n]) for n in range(3)}
        tags |= {b"rgb"[n : n + 1] + b"TRC": curve for n in range(3)}
    table, data = struct.pack(">I", len(tags)), b""
    places: dict[bytes, int] = {}
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        if value not in places:
            places[value] = start + len(data)
            data += value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", places[value], len(value))
    return _header(128 + len(table) + len(data), b"GRAY" if gray else b"RGB ") + table + data


def _header(size: int, space: bytes) -> bytes:
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    return (
        struct.pack(">I4xI", size, 0x04300000) + b"mntr" + space + b"XYZ " + date + b"acsp"
        + bytes(28) + _fixed(_D50) + bytes(48)
    )  # fmt: skip


def _fixed(values: tuple[float, ...]) -> bytes:
    """Encode numbers with 16 bits after the point."""
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _text(value: str) -> bytes:
    data = value.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(data), 28) + data
