"""Convert the colors of a file to sRGB, by its ICC profile or its gamma.

8 bits go through Little CMS, by Pillow. That supports no more bits, so 16 bits go through the
profile's curves and matrix in float: with a device value v of each channel,

    sRGB = encode(M_sRGB⁻¹ M curve(v))

where M has the profile's primaries, and M_sRGB those of sRGB, in XYZ under D50 as its columns.
A profile that describes sRGB changes no byte.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from ..images.doubts import warn
from .guards import Array

SRGB = np.array(
    [
        [0.43604125, 0.38511291, 0.14304584],
        [0.22248454, 0.71690508, 0.06061038],
        [0.01392019, 0.09706724, 0.71391257],
    ]
)
"""M_sRGB: primaries and white of the standard, adapted by Bradford's matrix"""
_HDR = (16, 18)
"""transfer characteristics of ITU-T H.273: PQ and HLG"""
_WIDE = {9: "BT.2020", 12: "Display P3"}
"""color primaries of ITU-T H.273 that are wider than sRGB's"""
USUAL_GAMMA = (0.4, 0.5)
"""range of gamma in PNG files that are meant for screens; sRGB's is near 1/2.2"""
_GRID = 17
_CLOSE_8, _CLOSE_16 = 1, 128
"""levels within which a profile counts as sRGB: two roundings of 255, half of that of 65535"""
_LINEAR = 1e-3
_MEASURED = "16-bit gray is taken as measured and left unchanged"
_SIGNS = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
_ROWS = 1 << 20
"""pixels that are converted at a time"""


def from_profile(values: Array, profile: bytes, path: Path) -> Array:
    """Convert a picture of 8 or 16 bits to sRGB; if that is impossible, leave it, with a warning.

    Args:
        values: [H, W] or [H, W, 3].
        profile: The ICC profile of its file.
        path: For the message.
    """
    if values.dtype not in (np.uint8, np.uint16):
        if values.ndim == 3:
            warn(f"{path}: has a color profile, which is not applied to values of {values.dtype}")
        return values
    try:
        convert = (_by_table if values.dtype == np.uint8 else _by_matrix)(profile, values.ndim)
    except _TableOnlyError as error:
        warn(
            f"{path}: its color profile ({error}) has no matrix, so its 16-bit colors are left as "
            "they are; export it as sRGB, or with 8 bits"
        )
        return values
    except Exception:  # Little CMS and struct fail on damaged profiles in their own ways
        warn(f"{path}: its color profile cannot be read and is ignored")
        return values
    if convert is None:
        return values
    if values.dtype == np.uint16 and values.ndim == 2 and _is_linear(_gray(profile)):
        warn(f"{path}: says it is linear; {_MEASURED}")
        return values
    return convert(values)


def from_cmyk(image: Image.Image, profile: bytes, path: Path) -> Image.Image:
    """Convert a CMYK picture to sRGB by its profile; if that fails, plainly and with a warning."""
    try:
        found = ImageCms.profileToProfile(
            image, io.BytesIO(profile), _srgb(), outputMode="RGB", **_INTENT
        )
    except Exception:
        warn(f"{path}: its color profile cannot be read and is ignored")
        return image
    return image if found is None else found


def from_gamma(values: Array, gamma: float, path: Path) -> Array:
    """Convert a 16-bit PNG with an unusual gamma to sRGB, with a warning.

    Args:
        values: uint16, [H, W] or [H, W, 3].
        gamma: The exponent that turned light into the file's values; 1 if they are linear.
        path: For the message.
    """
    if USUAL_GAMMA[0] <= gamma <= USUAL_GAMMA[1] or not 0.01 <= gamma <= 100:
        return values
    kind = "linear" if abs(gamma - 1) < 0.01 else f"of gamma {gamma:.3g}"
    if values.ndim == 2:
        warn(f"{path}: says it is {kind}; {_MEASURED}")
        return values
    warn(f"{path}: says it is {kind} (its gAMA chunk), and is converted to sRGB")
    table = _levels(_encode(np.linspace(0, 1, 65536) ** (1 / gamma)))
    return table[values]


def tell_of_colors(path: Path, primaries: int, transfer: int) -> None:
    """Warn of colors that are not sRGB's but are read as such, by the numbers of ITU-T H.273."""
    if transfer in _HDR:
        warn(f"{path}: is HDR; its values are read unchanged and look flat: export it as SDR")
    elif primaries in _WIDE:
        warn(f"{path}: its colors of {_WIDE[primaries]} are read as sRGB; export it as sRGB")


def png_colors(file: BinaryIO) -> tuple[int, int] | None:
    """Read (primaries, transfer) of a PNG's cICP chunk, which Pillow skips; None without one."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"cICP" and len(data := file.read(4)) == size:
            return data[0], data[1]
        file.seek(size + 4, os.SEEK_CUR)
    return None


_INTENT: dict[str, Any] = {
    "renderingIntent": ImageCms.Intent.RELATIVE_COLORIMETRIC,
    "flags": ImageCms.Flags.BLACKPOINTCOMPENSATION,
}


class _TableOnlyError(ValueError):
    """A profile without a matrix; the message is its name."""


@lru_cache(1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(16)
def _by_table(profile: bytes, ndim: int) -> Callable[[Array], Array] | None:
    """Return a function that converts 8 bits to sRGB; None if it would change nothing."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _SIGNS[own.profile.xcolor_space]
    if mode == "CMYK" or (mode == "L" and ndim == 3):
        raise ValueError(f"a profile of {mode}")
    transform = ImageCms.buildTransform(own, _srgb(), mode, "RGB", **_INTENT)

    def apply(values: Array) -> Array:
        found = ImageCms.applyTransform(Image.fromarray(values), transform)
        assert found is not None
        return np.array(found)

    if ndim == 2:
        ramp = np.arange(256, dtype=np.uint8)[None]
        try:
            table = np.rint(_encode(_gray(profile)[::257]) * 255).astype(np.uint8)
        except _TableOnlyError:
            table = apply(ramp if mode == "L" else np.repeat(ramp[..., None], 3, -1))[0, :, 1]
        same = np.abs(table.astype(int) - ramp[0]).max() <= _CLOSE_8
        return None if same else lambda values: table[values]
    steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(_GRID, -1, 3)
    return None if np.abs(apply(grid).astype(int) - grid).max() <= _CLOSE_8 else apply


@lru_cache(16)
def _by_matrix(profile: bytes, ndim: int) -> Callable[[Array], Array] | None:
    """Return a function that converts 16 bits to sRGB; None if it would change nothing."""
    if ndim == 2:
        table = _levels(_encode(_gray(profile)))
        same = np.abs(table.astype(int) - np.arange(65536)).max() <= _CLOSE_16
        return None if same else lambda values: table[values]
    found = read_profile(profile)
    if found.matrix is None:
        raise ValueError("a profile of gray")
    to_srgb = np.linalg.inv(SRGB) @ found.matrix
    curves = found.curves

    def apply(values: Array) -> Array:
        flat, out = values.reshape(-1, 3), np.empty((values.size // 3, 3), np.uint16)
        for start in range(0, len(flat), _ROWS):
            part = flat[start : start + _ROWS]
            light = np.stack([curve[part[:, c]] for c, curve in enumerate(curves)], -1)
            out[start : start + _ROWS] = _levels(_encode(light @ to_srgb.T))
        return out.reshape(values.shape)

    steps = np.linspace(0, 65535, _GRID).round().astype(np.uint16)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1)
    return None if np.abs(apply(grid).astype(int) - grid).max() <= _CLOSE_16 else apply


class Profile(NamedTuple):
    """An ICC profile that consists of curves and, for color, a matrix."""

    curves: tuple[Array, ...]
    """float64 [65536] per channel: the light in [0, 1] of each level"""
    matrix: Array | None
    """float64 [3, 3]: XYZ under D50 of the channels' light, in columns"""


def read_profile(profile: bytes) -> Profile:
    """Read the curves and the matrix of an ICC profile of gray or RGB.

    Raises:
        ValueError: It has none of them, or is damaged.
    """
    if profile[36:40] != b"acsp":
        raise ValueError("no ICC profile")
    count = struct.unpack_from(">I", profile, 128)[0]
    places = {}
    for n in range(min(count, 200)):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * n)
        places[name.decode("latin-1")] = profile[start : start + size]
    if profile[16:20] == b"GRAY":
        return Profile((_curve(places["kTRC"]),), None)
    if profile[16:20] != b"RGB ":
        raise ValueError(f"a profile of {profile[16:20]!r}")
    if not {"rXYZ", "gXYZ", "bXYZ", "rTRC", "gTRC", "bTRC"} <= places.keys():
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        raise _TableOnlyError(name.strip())
    matrix = [[v / 65536 for v in struct.unpack_from(">3i", places[c + "XYZ"], 8)] for c in "rgb"]
    return Profile(tuple(_curve(places[c + "TRC"]) for c in "rgb"), np.array(matrix).T)


def _gray(profile: bytes) -> Array:
    """Return the light of all levels of gray; for color, that of green."""
    return read_profile(profile).curves[-2:][0]


def _is_linear(light: Array) -> bool:
    return bool(np.abs(light - np.linspace(0, 1, light.size)).max() < _LINEAR)


def _curve(data: bytes) -> Array:
    """Evaluate a ``curv`` or ``para`` tag at all levels of 16 bits."""
    x = np.linspace(0, 1, 65536)
    kind, number = data[:4], struct.unpack_from(">I", data, 8)[0]
    if kind == b"curv":
        if number == 0:
            return x
        if number == 1:
            return x ** (struct.unpack_from(">H", data, 12)[0] / 256)
        points = np.frombuffer(data, ">u2", number, 12) / 65535
        return np.interp(x, np.linspace(0, 1, number), points)
    if kind != b"para":
        raise ValueError(f"a curve of kind {kind!r}")
    number >>= 16
    names = ("g", "gab", "gabc", "gabcd", "gabcdef")[number]
    p = dict.fromkeys("abcdefg", 0.0) | {"a": 1.0}
    numbers = struct.unpack_from(f">{len(names)}i", data, 12)
    p |= {name: value / 65536 for name, value in zip(names, numbers, strict=True)}
    power = np.maximum(p["a"] * x + p["b"], 0) ** p["g"]
    if number == 0:
        found = power
    elif number in (1, 2):
        found = np.where(x >= -p["b"] / p["a"], power, 0) + (p["c"] if number == 2 else 0)
    else:
        found = np.where(x >= p["d"], power + p["e"], p["c"] * x + p["f"])
    return found.clip(0, 1)


def _encode(light: Array) -> Array:
    """Return sRGB's value in [0, 1] for light, which is clipped."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _levels(values: Array) -> Array:
    return np.rint(values * 65535).astype(np.uint16)
