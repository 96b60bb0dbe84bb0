"""What a thermal camera measured, stored beside the picture in its JPEG.

FLIR stores a file of records (FFF) in the APP1 segments: the counts as a PNG, a TIFF or bare
numbers, and the constants of the camera. A count S is converted to Celsius by the publicly
documented model: with W(T) = R1 / (R2 (exp(B / T) − F)) − O, the counts that a black body of T
kelvin gives,

    S = ε τ t τ W(T) + (1 − ε) τ t τ W(T_reflected) + (1 − τ) t τ W(T_air)
        + (1 − t) τ W(T_window) + (1 − τ) W(T_air)

is solved for T: ε is the emissivity, t the share that passes the window, τ the share that passes
half of the air.

DJI stores bare counts in the APP3 segments. Their conversion to Celsius is not public, so they are
returned as counts.
"""

from __future__ import annotations

import io
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from ..images.doubts import warn
from .counts import is_swapped
from .guards import Array, check_pixels, damaged
from .paths import ImageFileError

KELVIN = 273.15
_APP1, _APP3, _SCAN = 0xE1, 0xE3, 0xDA
_FLIR = b"FLIR\0"
_MAKE = 271
_RAW_RECORD, _CAMERA_RECORD = 1, 32
_RAW_HEAD = 32
_CAMERA = {
    "emissivity": 0x20, "distance": 0x24, "reflected": 0x28, "air": 0x2C, "window": 0x30,
    "through_window": 0x34, "humidity": 0x3C, "r1": 0x58, "b": 0x5C, "f": 0x60, "alpha_1": 0x70,
    "alpha_2": 0x74, "beta_1": 0x78, "beta_2": 0x7C, "x": 0x80, "r2": 0x30C,
}  # fmt: skip
"""offsets of the constants in the camera's record: floats, temperatures in kelvin"""
_OFFSET_O = 0x308
"""offset of the constant O, an integer"""
_DJI_SIZES = ((640, 512), (1280, 1024), (640, 480), (320, 256), (336, 256), (160, 120))
_MOST_RECORDS = 4096


class Constants(NamedTuple):
    """Constants that convert counts to temperatures; temperatures in kelvin."""

    r1: float
    r2: float
    b: float
    f: float
    o: float
    emissivity: float
    distance: float
    """in meters"""
    reflected: float
    air: float
    window: float
    through_window: float
    """share of the radiation that passes the window"""
    humidity: float
    """relative, in [0, 1]"""
    alpha_1: float
    alpha_2: float
    beta_1: float
    beta_2: float
    x: float


def decode(file: BinaryIO, path: Path, max_pixels: int) -> Array | None:
    """Decode what a JPEG's camera measured, in the sensor's orientation; None if it has none.

    Returns:
        For a FLIR camera float32 [H, W] in Celsius, with NaN where it is colder than the camera can
        measure; for a DJI camera uint16 [H, W] of counts, with a warning.

    Raises:
        ImageFileError: The records are damaged, or lack the constants.
    """
    flir, counts = _segments(file)
    if flir:
        values = _of_flir(flir, path, max_pixels)
        height, width = values.shape
        warn(f"{path}: its temperatures are read, {width}x{height} in Celsius", "radiometric")
        return values
    return _of_dji(file, counts, path, max_pixels) if counts else None


def is_radiometric(path: str | os.PathLike[str]) -> bool:
    """Return whether it is a JPEG with a camera's measurements; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff" and any(_segments(file))
    except (OSError, ValueError):
        return False


def celsius(counts: Array, constants: Constants) -> Array:
    """Convert a camera's counts to Celsius, float32; NaN where no temperature gives the count."""
    c = constants
    air = c.air - KELVIN
    water = c.humidity * math.exp(
        1.5587 + 0.06939 * air - 0.00027816 * air**2 + 0.00000068455 * air**3
    )
    root, damp = math.sqrt(c.distance / 2), math.sqrt(water)
    # through half of the distance: the window is in the middle
    tau = c.x * math.exp(-root * (c.alpha_1 + c.beta_1 * damp)) + (1 - c.x) * math.exp(
        -root * (c.alpha_2 + c.beta_2 * damp)
    )
    through, emitted = c.through_window, c.emissivity
    known = (
        (1 - emitted) * tau * through * tau * _counts_of(c.reflected, c)
        + (1 - tau) * through * tau * _counts_of(c.air, c)
        + (1 - through) * tau * _counts_of(c.window, c)
        + (1 - tau) * _counts_of(c.air, c)
    )
    own = (counts.astype(np.float64) - known) / (emitted * tau * through * tau)
    with np.errstate(all="ignore"):
        ratio = c.r1 / (c.r2 * (own + c.o)) + c.f
        kelvin = c.b / np.log(ratio)
    kelvin[~((own + c.o > 0) & (kelvin > 0))] = np.nan
    return (kelvin - KELVIN).astype(np.float32)


def _counts_of(kelvin: float, c: Constants) -> float:
    """Return the counts that a black body of this temperature gives: W of the module."""
    return c.r1 / (c.r2 * (math.exp(c.b / kelvin) - c.f)) - c.o


def _segments(file: BinaryIO) -> tuple[bytes, bytes]:
    """Extract FLIR's records and DJI's counts from the segments before the picture."""
    file.seek(2)
    flir: dict[int, bytes] = {}
    counts = []
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != _SCAN:
        data = file.read(struct.unpack(">H", head[2:])[0] - 2)
        if head[1] == _APP1 and data.startswith(_FLIR) and len(data) > 8:
            flir[data[6]] = data[8:]
        elif head[1] == _APP3:
            counts.append(data)
    file.seek(0)
    return b"".join(flir[n] for n in sorted(flir)), b"".join(counts)


def _of_flir(fff: bytes, path: Path, max_pixels: int) -> Array:
    records = _records(fff, path)
    raw, camera = records.get(_RAW_RECORD), records.get(_CAMERA_RECORD)
    if raw is None or camera is None:
        raise ImageFileError(
            f"{path}: FLIR's records have no counts or constants; export its temperatures as "
            "CSV or TIFF"
        )
    return celsius(_counts(raw, path, max_pixels), _constants(camera, path))


def _records(fff: bytes, path: Path) -> dict[int, bytes]:
    """Return the first record of each kind."""
    if not fff.startswith((b"FFF\0", b"AFF\0")) or len(fff) < 64:
        raise damaged(path, "FLIR's records have no header")
    order = ">" if 100 <= struct.unpack_from(">I", fff, 20)[0] < 200 else "<"
    start, count = struct.unpack_from(order + "II", fff, 24)
    found: dict[int, bytes] = {}
    for at in range(start, start + 32 * min(count, _MOST_RECORDS), 32):
        if at + 32 > len(fff):
            raise damaged(path, "the list of FLIR's records is cut off")
        kind = struct.unpack_from(order + "H", fff, at)[0]
        place, size = struct.unpack_from(order + "II", fff, at + 12)
        if kind in (_RAW_RECORD, _CAMERA_RECORD):
            if place + size > len(fff):
                raise damaged(path, "one of FLIR's records is cut off")
            found.setdefault(kind, fff[place : place + size])
    return found


def _counts(raw: bytes, path: Path, max_pixels: int) -> Array:
    """Return the counts of a raw record: a PNG, a TIFF or bare numbers."""
    if len(raw) < _RAW_HEAD:
        raise damaged(path, "the record of counts is cut off")
    order = "<" if struct.unpack_from("<H", raw, 0)[0] == 2 else ">"
    width, height = struct.unpack_from(order + "HH", raw, 2)
    check_pixels(path, width, height, max_pixels)
    data = raw[_RAW_HEAD:]
    is_png = data.startswith(b"\x89PNG\r\n\x1a\n")
    if not is_png and not data.startswith((b"II*\0", b"MM\0*")):
        if len(data) < 2 * width * height:
            raise damaged(path, f"{len(data)} bytes of counts, expected {width}x{height}")
        return np.frombuffer(data, order + "u2", width * height).reshape(height, width)
    image = Image.open(io.BytesIO(data), formats=["PNG", "TIFF"])
    if image.size != (width, height) or not image.mode.startswith("I"):
        raise damaged(path, f"counts of {image.size}, {image.mode}, expected {width, height}")
    values = np.asarray(image).astype(np.uint16)
    if is_png:  # its low byte comes first, against PNG's rule
        values = values.byteswap()
    return values.byteswap() if is_swapped(values) else values


def _constants(camera: bytes, path: Path) -> Constants:
    if len(camera) < max(_CAMERA.values()) + 4:
        raise damaged(path, "the record of the camera is cut off")
    order = "<" if struct.unpack_from("<H", camera, 0)[0] == 2 else ">"
    found: dict[str, Any] = {
        name: struct.unpack_from(order + "f", camera, at)[0] for name, at in _CAMERA.items()
    }
    found["o"] = float(struct.unpack_from(order + "i", camera, _OFFSET_O)[0])
    if found["humidity"] > 2:  # some cameras write percent
        found["humidity"] /= 100
    if not 0 < found["through_window"] <= 1:
        found["through_window"] = 1.0
    temperatures = ("reflected", "air", "window")
    for name in temperatures:
        if not 100 < found[name] < 2000:
            found[name] = 293.15
    finite = all(math.isfinite(value) for value in found.values())
    if (
        not finite
        or min(found["r1"], found["r2"], found["b"]) <= 0
        or not (
            0 < found["emissivity"] <= 1 and 0 <= found["distance"] < 1e6 and found["humidity"] >= 0
        )
    ):
        raise ImageFileError(
            f"{path}: the constants of the camera are missing or make no sense; export its "
            "temperatures as CSV or TIFF"
        )
    return Constants(**found)


def _of_dji(file: BinaryIO, counts: bytes, path: Path, max_pixels: int) -> Array | None:
    image = Image.open(file, formats=["JPEG"])
    make = str(image.getexif().get(_MAKE, ""))
    file.seek(0)
    if not make.upper().startswith("DJI"):
        return None
    for width, height in (image.size, *_DJI_SIZES):
        if 2 * width * height == len(counts):
            check_pixels(path, width, height, max_pixels)
            warn(
                f"{path}: the camera's counts are read, {width}x{height}; DJI's own tools turn "
                "them into temperatures",
                "radiometric",
            )
            return np.frombuffer(counts, "<u2").reshape(height, width).astype(np.uint16)
    return None
