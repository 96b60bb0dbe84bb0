"""When a picture was taken, and by what kind of camera, from its header alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..files.paths import is_file
from ..files.reading import pillow_limit_lifted

_EXIF, _DATE, _TAKEN, _FRACTION = 0x8769, 306, 36867, 37521
_WITH_EXIF = (".jpg", ".jpeg", ".tif", ".tiff")
_RADIOMETRIC = ("APP1", b"FLIR\0")
"""the segment in which FLIR's cameras store the counts; their visible pictures have none"""


class Shot(NamedTuple):
    """What a header says; empty if it says nothing or cannot be read."""

    second: str = ""
    """EXIF's DateTimeOriginal, else its DateTime: "2026:11:29 10:15:30\""""
    fraction: str = ""
    """EXIF's SubSecTimeOriginal"""
    radiometric: bool = False
    """a FLIR picture with its counts: infrared, whatever its name"""


def read_shot(path: Path) -> Shot:
    """Read a header; nothing is decoded, and an unreadable file gives an empty shot."""
    try:
        # a pipe would keep its reader waiting
        if path.suffix.lower() not in _WITH_EXIF or not is_file(path):
            return Shot()
        with pillow_limit_lifted(), Image.open(path) as image:
            exif = image.getexif()
            taken = exif.get_ifd(_EXIF)
            segments = getattr(image, "applist", ())
    except Exception:  # decoders fail on damaged files in every possible way
        return Shot()
    second = str(taken.get(_TAKEN) or exif.get(_DATE) or "").strip("\0 ")
    fraction = str(taken.get(_FRACTION) or "").strip("\0 ")
    kind, start = _RADIOMETRIC
    radiometric = any(name == kind and data.startswith(start) for name, data in segments)
    # cameras without a clock write zeros or blanks, which are not a time that two files could share
    return Shot(second if second.strip("0: ") else "", fraction, radiometric)
