"""Turn the files or arrays of a call into pictures, and a result into the bytes of a format."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..datasets.output import NOTHING_SAID, Output
from ..files.depth import Levels, Sources, resized_sources, sources
from ..files.metadata import Metadata, metadata_of
from ..files.reading import pillow_limit_lifted, read_image_bytes
from ..files.writing import encode_image
from .bodies import Call
from .formats import pillow_formats
from .limits import Refused

FORMATS = {
    "png": "image/png", "tiff": "image/tiff", "jpeg": "image/jpeg", "npy": "application/x-npy",
}  # fmt: skip
"""formats in which a result is sent, and their media types"""
_NAMES = {**{name: name for name in FORMATS}, "tif": "tiff", "jpg": "jpeg"}
_SUFFIXES = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}
_NPY = b"\x93NUMPY"
_CHANNELS = 4


class Pictures(NamedTuple):
    """A pair as a fuser takes it."""

    ir: np.ndarray
    vis: np.ndarray
    reading: dict[str, Any]
    """options of the call"""
    files: Sources | None
    """the pair, if it came as image files, for missing data"""
    said: tuple[Metadata, Metadata] = NOTHING_SAID
    """what these files say besides their pixels"""
    output: Output = Output()
    """how the result is written"""

    def shown(self, fused: np.ndarray) -> np.ndarray:
        """Return the result, with the other source where a file lacks data."""
        return fused if self.files is None else self.files.mended(fused)

    def encoded(self, fused: np.ndarray, name: str, color: Any) -> tuple[bytes, np.ndarray]:
        """Encode the result as ``ddfm-fast fuse`` does if files came; also return its values.

        Raises:
            ValueError: The format cannot hold it.
        """
        if self.files is None or name == "npy":
            return encode(fused, name, **self.output.encoding()), fused
        suffix = _SUFFIXES[name]
        ready = self.output.prepared(fused, self.files, self.said, suffix, color=color)
        return encode_image(ready.picture, Path(f"result{suffix}"), **ready.how), ready.picture


def size_of(data: bytes, name: str, max_pixels: int) -> tuple[int, ...]:
    """Find a picture's size by its header, before anything is decoded.

    Returns:
        (height, width) as stored, or an array's shape; () if the header cannot be read, for which
        decoding has a better error.

    Raises:
        Refused: It is too large.
    """
    if data.startswith(_NPY):
        shape = _header(data, name)[0]
        channels = [n for n in (shape[0], shape[-1]) if n <= _CHANNELS] if len(shape) == 3 else []
        pixels = math.prod(shape) // max([1, *channels])
    else:
        try:
            known = pillow_formats(data)
            with pillow_limit_lifted(), Image.open(io.BytesIO(data), formats=known) as image:
                shape = image.size[::-1]
        except Exception:  # decoders fail on damaged files in every possible way
            return ()
        pixels = math.prod(shape)
    if pixels > max_pixels:
        size = "x".join(str(n) for n in shape[::-1])
        raise Refused(
            413,
            f"{name}: {size} is {pixels} pixels, more than the limit of {max_pixels}; send a "
            "smaller picture, or start the service with a higher --max-pixels",
        )
    return shape


def decode(call: Call, max_pixels: int) -> Pictures:
    """Decode the pictures of a call: image files as ``ddfm-fast fuse`` does, arrays as ``fuse``.

    Raises:
        ValueError: A picture is wrong; the message names it and says why.
    """
    files = (("ir", call.ir), ("vis", call.vis))
    if any(data.startswith(_NPY) for _, data in files):
        ir, vis = (
            _array(data, name)
            if data.startswith(_NPY)
            else read_image_bytes(data, name, max_pixels=max_pixels)
            for name, data in files
        )
        _check_array_output(call)
        return Pictures(ir, vis, call.reading, None, output=call.output)
    if (layout := call.reading.get("layout")) is not None:
        raise ValueError(f"layout is {layout!r}; it is for arrays (NPY): leave it out for files")
    levels = Levels(call.reading.get("value_range"), call.reading.get("nodata"))
    ir, vis = (read_image_bytes(data, name, max_pixels=max_pixels) for name, data in files)
    found = resized_sources(sources(ir, vis, levels), call.resize)
    one, other = (metadata_of(io.BytesIO(data), Path(name)) for name, data in files)
    reading = {"value_range": "dtype"}
    return Pictures(found.ir, found.vis, reading, found, (one, other), call.output)


def _check_array_output(call: Call) -> None:
    """Refuse options that a call with arrays cannot have."""
    given = {"resize": call.resize, **call.output.to_dict()}
    of_files = ("resize", "out_range", "keep_thermal", "metadata")
    if wrong := [name for name in of_files if given.get(name) is not None]:
        raise ValueError(f"{wrong[0]} is for image files, and arrays (NPY) came; leave it out")


def _header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read shape, Fortran order, dtype and where numbers begin; Refused for anything odd."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
        start = file.tell()
    except Exception as error:  # a header is Python source, which may be odd in every way
        raise Refused(400, f"{name}: no NPY header that can be read; save the array again") from (
            error
        )
    if dtype.kind not in "buif" or len(shape) not in (2, 3) or min(shape) < 1:
        raise Refused(
            400,
            f"{name}: NPY of {dtype} {list(shape)}; expected one picture of numbers, [H, W], "
            "[H, W, C] or [C, H, W]",
        )
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise Refused(400, f"{name}: the NPY file is cut short or too long; save the array again")
    return shape, fortran, dtype, start


def _array(data: bytes, name: str) -> np.ndarray:
    shape, fortran, dtype, start = _header(data, name)
    flat = np.frombuffer(data, dtype, offset=start)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")


def chosen_format(asked: str | None, accept: str) -> tuple[str, bool]:
    """Return the format of the result, and whether it is wanted within JSON.

    Args:
        asked: The field ``format``, which takes precedence.
        accept: The header of that name.

    Raises:
        Refused: The format is unknown.
    """
    if asked is not None and asked.lower() not in _NAMES:
        raise Refused(400, f"format is {asked!r}; expected one of {', '.join(FORMATS)}")
    found = None if asked is None else _NAMES[asked.lower()]
    media = {kind: name for name, kind in FORMATS.items()}
    for kind in _by_preference(accept):
        if kind == "application/json":
            return found or "png", True
        if kind in ("*/*", "image/*"):
            return found or "png", False
        if kind in media:
            return found or media[kind], False
    if found is not None or not accept.strip():
        return found or "png", False
    raise Refused(
        406,
        f"Accept is {accept!r}; expected one of {', '.join([*media, 'application/json'])}",
    )


def _by_preference(accept: str) -> list[str]:
    wanted: list[tuple[float, int, str]] = []
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if kind and quality > 0:
            wanted.append((-quality, len(wanted), kind))
    return [kind for *_, kind in sorted(wanted)]


def encode(picture: np.ndarray, name: str, **how: Any) -> bytes:
    """Encode a result in a format, by the options of :func:`.files.writing.encode_image`.

    Raises:
        ValueError: The format cannot hold it.
    """
    if name == "npy":
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(picture), allow_pickle=False)
        return file.getvalue()
    _check_depth(picture, name)
    fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3))
    if picture.dtype.name not in ("uint8", "uint16") or not fits:
        raise ValueError(
            f"format is {name!r}, which does not hold the result, {picture.dtype} "
            f"{list(picture.shape)}; ask for npy"
        )
    return encode_image(picture, Path(f"result{_SUFFIXES[name]}"), **how)


def check_format(pictures: Pictures, name: str) -> None:
    """Raise ValueError, before the fusion, if a format cannot hold a result of files."""
    if name != "npy":
        pictures.output.check([_SUFFIXES[name]])
    elif given := pictures.output.to_dict():
        raise ValueError(f"{next(iter(given))} is not for NPY; ask for png, tiff or jpeg")
    if pictures.files is not None:
        _check_depth(pictures.vis, name)


def _check_depth(picture: np.ndarray, name: str) -> None:
    if picture.dtype == np.uint16 and name == "jpeg":
        raise ValueError(
            "format is 'jpeg', which would lose the 16 bits of the input; ask for png, tiff or npy"
        )
