"""Images as planes and back, their color, files and panels.

planes   any container to float planes [N, C, H, W] and back, padding, cropping
color    luma, chroma, and a new luma under the old chroma
stretch  a fused luma stretched to the full range
pair     two sources read for fusion, and the fused luma given back as what came in
files    PNG, JPEG, TIFF and BMP, read with care and written atomically
kind     photograph, or functional map in false color
doubts   what is legal but surely not meant: the warnings
depth    8 and 16 bits brought together
panel    labeled pictures side by side
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .color import luma, with_luma
    from .files import ImageFileError, read_image, write_image
    from .panel import draw_panel
    from .planes import ImageSpec, from_planes, to_planes

__all__ = [
    "ImageFileError",
    "ImageSpec",
    "draw_panel",
    "from_planes",
    "luma",
    "read_image",
    "to_planes",
    "with_luma",
    "write_image",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "ImageSpec": "planes",
        "to_planes": "planes",
        "from_planes": "planes",
        "luma": "color",
        "with_luma": "color",
        "read_image": "files",
        "write_image": "files",
        "ImageFileError": "files",
        "draw_panel": "panel",
    },
)
