"""Whether two sources show the same place, and how to bring them there.

    check       by how many pixels an infrared picture is shifted against the visible one
    estimate    the shift, affine map or homography between them
    apply       the infrared picture brought to where the visible one is
    field       where that has a pixel, with a soft edge
    common      a rectangle that both have

What is compared are the directions of edges, whose contrast differs between the sensors.
"""

from .correlation import Shift, check
from .estimation import estimate
from .warp import Alignment, apply, common, field

__all__ = ["Alignment", "Shift", "apply", "check", "common", "estimate", "field"]
