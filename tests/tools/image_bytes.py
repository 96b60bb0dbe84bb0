"""Image files spelled out byte by byte, by their specifications."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)
LOSSLESS = (".png", ".tif", ".tiff", ".bmp")


def random_array(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def png(array: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of [H, W, 1 | 2 | 3 | 4], uint8 or uint16, spelled out by its specification."""
    height, width, channels = array.shape
    rows = array.astype(array.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, array.itemsize * 8, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tiff(array: np.ndarray, photometric: int, order: str = "<", planar: bool = False, **tags):
    """Return an uncompressed TIFF of [H, W] or [H, W, C] with one strip, or one per plane."""
    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    planes = [array[..., i] for i in range(channels)] if planar else [array]
    strips = [plane.astype(array.dtype.newbyteorder(order)).tobytes() for plane in planes]
    offsets = np.cumsum([8] + [len(strip) for strip in strips]).tolist()
    fields = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [array.itemsize * 8] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, offsets[:-1]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        339: (3, [kind] * channels),
        **{int(tag[1:]): (3, [value]) for tag, value in tags.items()},
    }
    start = offsets[-1] + offsets[-1] % 2
    end = start + 2 + 12 * len(fields) + 4
    entries, tail = b"", b""
    for tag, (type_, values) in sorted(fields.items()):
        data = struct.pack(f"{order}{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(data) > 4:
            place = struct.pack(order + "I", end + len(tail))
            tail += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, type_, len(values)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    body = b"".join(strips).ljust(start - 8, b"\0")
    return head + body + struct.pack(order + "H", len(fields)) + entries + b"\0" * 4 + tail


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return the picture that stored pixels of an EXIF orientation mean, by where (0, 0) goes."""
    if orientation >= 5:
        array = np.moveaxis(array, 0, 1)
    top_first = orientation in (1, 2, 5, 6)
    left_first = orientation in (1, 4, 5, 8)
    return array[:: 1 if top_first else -1, :: 1 if left_first else -1]


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def tiff_front(array: np.ndarray) -> bytes:
    """Return a 16-bit TIFF whose directory comes first, so that what is cut off is pixels."""
    import cv2

    data = cv2.imencode(".tif", array, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    with Image.open(io.BytesIO(data)) as image:
        offset, tags = image.tag_v2[273][0], dict(image.tag_v2)
    assert tags[258] == (16, 16, 16)
    pixels = data[offset : offset + array.nbytes]
    fields = {256: array.shape[1], 257: array.shape[0], 262: 2, 277: 3, 278: array.shape[0]}
    fields |= {259: 1, 279: len(pixels), 258: None, 273: None}
    end = 8 + 2 + 12 * len(fields) + 4
    fields[273] = end + 6
    out = b"II*\0" + struct.pack("<IH", 8, len(fields))
    for tag, value in sorted(fields.items()):
        count, kind, value = (3, 3, end) if tag == 258 else (1, 4, value)
        out += struct.pack("<HHII", tag, kind, count, value)
    return out + b"\0" * 4 + struct.pack("<3H", 16, 16, 16) + pixels
