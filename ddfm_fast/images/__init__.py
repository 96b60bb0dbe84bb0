"""Images as planes and back, their color, files and panels.

planes   any container to float planes [N, C, H, W] and back, padding, cropping
color    luma, chroma, and a new luma under the old chroma
stretch  a fused luma stretched to the full range
pair     two sources read for fusion, and the fused luma returned in the container of the input
kind     whether a photograph, or a functional map in false color
doubts   legal input that is surely a mistake: the warnings
panel    labeled pictures side by side
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .color import luma, with_luma
    from .panel import draw_panel
    from .planes import ImageSpec, from_planes, to_planes

__all__ = [
    "ImageSpec",
    "draw_panel",
    "from_planes",
    "luma",
    "to_planes",
    "with_luma",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "ImageSpec": "planes",
        "to_planes": "planes",
        "from_planes": "planes",
        "luma": "color",
        "with_luma": "color",
        "draw_panel": "panel",
    },
)
