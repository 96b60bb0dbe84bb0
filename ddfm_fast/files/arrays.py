"""Arrays saved by programs: .npy, .npz, .mat and OpenEXR. Nothing is ever unpickled."""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..images.doubts import warn
from . import matlab
from .guards import Array, check_pixels, colors, damaged, library, plain_integers
from .paths import ImageFileError, few

NPY, ZIP, EXR = b"\x93NUMPY", b"PK\x03\x04", b"\x76\x2f\x31\x01"
MAT, MAT_HDF = b"MATLAB 5.0 MAT-file", b"MATLAB 7.3 MAT-file"
_MOST_MEMBERS = 1000


def decode_npy(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Decode the array of a .npy file.

    Raises:
        ImageFileError: It holds objects, no picture, or less data than its header says.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read_npy(file, path, length, max_pixels)


def decode_npz(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Decode the one array of a .npz file that is a picture.

    Raises:
        ImageFileError: It holds several pictures, or none.
    """
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if len(members) > _MOST_MEMBERS:
            raise ImageFileError(f"{path}: holds {len(members)} arrays, expected one picture")
        shapes = {}
        for member in members:
            with archive.open(member) as stream:
                shapes[member.filename[:-4]] = _npy_header(stream, path)[0]
        name = _only_picture(shapes, path)
        member = archive.getinfo(name + ".npy")
        with archive.open(member) as stream:
            return _read_npy(stream, path, member.file_size, max_pixels)


def decode_mat(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Decode the one variable of a MATLAB file that is a picture.

    Raises:
        ImageFileError: It holds several pictures, or none, or has version 7.3.
    """
    if file.read(len(MAT_HDF)) == MAT_HDF:
        raise ImageFileError(
            f"{path}: a MATLAB file of version 7.3, which cannot be read; save it with "
            "save(name, 'variable', '-v7')"
        )
    found = {v.name: v for v in matlab.variables(file, path)}
    name = _only_picture({name: v.shape for name, v in found.items()}, path)
    _checked_shape(found[name].shape, path, max_pixels)
    return as_picture(matlab.decode(file, path, found[name]), path, max_pixels)


def decode_exr(file: BinaryIO, path: Path, max_pixels: int) -> Array:
    """Decode an OpenEXR file: a gray channel as it is, colors from linear light to sRGB.

    Raises:
        ImageFileError: The extra is missing, or its channels are neither gray nor RGB.
    """
    openexr = library("OpenEXR", path, "OpenEXR", "a TIFF of 32-bit floats")
    if isinstance(file, io.BytesIO):
        raise ImageFileError(f"{path}: OpenEXR is only read from disk; send a TIFF of floats")
    header = openexr.File(str(path), header_only=True).parts[0].header
    low, high = header["dataWindow"]
    width, height = (int(b) - int(a) + 1 for a, b in zip(low, high, strict=True))
    check_pixels(path, width, height, max_pixels)
    parts = openexr.File(str(path), separate_channels=True).parts
    if len(parts) > 1:
        warn(f"{path}: holds {len(parts)} pictures; the first is used")
    channels = parts[0].channels
    gray = [name for name in channels if name != "A"]
    if {"R", "G", "B"} <= channels.keys():
        names = ["R", "G", "B"]
    elif len(gray) == 1:
        names = gray
    else:
        raise ImageFileError(
            f"{path}: holds the channels {few(sorted(channels))}, expected R, G, B or one; export "
            "the one that you want"
        )
    found = [np.asarray(channels[name].pixels) for name in names]
    if any(one.shape != (height, width) for one in found):
        raise ImageFileError(f"{path}: its channels differ in size; export them at one size")
    if len(found) == 1:
        return as_picture(found[0], path, max_pixels)
    warn(f"{path}: holds linear light, and its colors are converted to sRGB")
    light = np.stack(found, -1).astype(np.float32)
    size = np.abs(light)
    coded = np.where(size <= 0.0031308, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055)
    return np.copysign(coded, light).astype(np.float32)


def as_picture(values: Array, path: Path, max_pixels: int) -> Array:
    """Return an array as [H, W] or [H, W, 3] of a dtype that the package knows, or refuse it."""
    height, width, first = _checked_shape(values.shape, path, max_pixels)
    if values.dtype.kind not in "buif" or values.dtype.itemsize > 8:
        raise ImageFileError(
            f"{path}: holds {values.dtype}, expected integers, or floats of at most 64 bits"
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if first:
        values = np.moveaxis(values.reshape(-1, height, width), 0, -1)
    else:
        values = values.reshape(height, width, -1)
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    integers = values.dtype.kind in "iu"
    white: Any = np.iinfo(values.dtype).max if integers else 1
    values = colors(values, white, path)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return np.ascontiguousarray(plain_integers(values))


def _read_npy(stream: Any, path: Path, length: int, max_pixels: int) -> Array:
    """Return the array of a stream of `length` bytes."""
    shape, fortran, dtype = _npy_header(stream, path)
    if dtype.hasobject:
        raise ImageFileError(
            f"{path}: holds Python objects, which are never unpickled; save an array of numbers"
        )
    _checked_shape(shape, path, max_pixels)
    size = math.prod(shape) * dtype.itemsize
    if size > length:
        raise damaged(path, f"an array of {size} bytes in a file of {length}")
    data = stream.read(size)
    if len(data) != size:
        raise damaged(path, f"only {len(data)} of {size} bytes are there")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return as_picture(values, path, max_pixels)


def _npy_header(stream: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ImageFileError(f"{path}: is .npy version {version}, expected an array of plain numbers")


def _checked_shape(shape: tuple[int, ...], path: Path, max_pixels: int) -> tuple[int, int, bool]:
    """Return (height, width, whether channels come first); axes of length one are dropped."""
    kept = tuple(shape)
    while len(kept) > 3 and kept[0] == 1:
        kept = kept[1:]
    first = len(kept) == 3 and kept[0] in (1, 3) and kept[2] > 4
    if len(kept) not in (2, 3) or (len(kept) == 3 and not first and not 1 <= kept[2] <= 4):
        raise ImageFileError(
            f"{path}: holds an array of shape {tuple(shape)}, expected [H, W], or [H, W, 3] for "
            "RGB; save one picture"
        )
    height, width = kept[1:] if first else kept[:2]
    check_pixels(path, width, height, max_pixels)
    return height, width, first


def _only_picture(shapes: dict[str, tuple[int, ...]], path: Path) -> str:
    """Find the one array that may be a picture, not just a vector or a small matrix."""
    found = [
        name
        for name, shape in shapes.items()
        if len(shape) in (2, 3) and sum(n > 4 for n in shape) >= 2
    ]
    if len(found) != 1:
        held = few([f"{name} {tuple(shape)}" for name, shape in shapes.items()])
        raise ImageFileError(
            f"{path}: holds {len(found)} arrays that may be pictures ({held}), expected one; save "
            "the one that you want alone"
        )
    return found[0]
