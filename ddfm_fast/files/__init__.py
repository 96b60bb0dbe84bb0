"""Files of images: reading, writing, names and pairs.

reading      image files by content, the only entry to the next eight
tiffs        TIFF that Pillow cannot read, whose heads `tags` reads
compact      WebP, AVIF, HEIC, JPEG XL
arrays       .npy, .npz, OpenEXR, and .mat by `matlab`
radiometric  what FLIR's and DJI's cameras measured
counts       tables of temperatures, and bare counts
raw          raw files of cameras
profiles     colors turned to sRGB
guards       limits, libraries of the extra, shapes
depth        a pair of files of any depth as 8 or 16 bits that use their full range
packed       two sources in one file
metadata     what a file says besides its pixels
writing      images written atomically, by suffix
embedding    what a result says, put into an encoded file; `directories`, `srgb`
pairing      two folders of images by stem
paths        what exists, safe names, and bytes written whole or not at all
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
