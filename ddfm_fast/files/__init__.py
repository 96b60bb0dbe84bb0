"""Files of images: reading, writing, names and pairs.

reading   PNG, JPEG, TIFF and BMP, by content
depth     a pair of files of any depth as 8 or 16 bits that use their range
metadata  what a file says beside its pixels
writing   images written atomically, by suffix
embedding what a result says, put into an encoded file
pairing   two folders of images by stem
paths     what is there, safe names, and bytes written whole or not at all

`directories` reads and writes the tags of TIFF and EXIF; `srgb` makes the color profile of results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .paths import ImageFileError
    from .reading import read_image
    from .writing import write_image

__all__ = ["ImageFileError", "read_image", "write_image"]

__getattr__, __dir__ = face(
    __name__, {"read_image": "reading", "write_image": "writing", "ImageFileError": "paths"}
)
