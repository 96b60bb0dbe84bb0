"""Find out whether two sources show the same place, and align them.

    check       how many pixels an infrared picture is shifted from the visible one
    estimate    the shift, affine map or homography between them
    apply       the infrared picture warped onto the visible one
    field       where the warped picture has pixels, with a soft edge
    common      a rectangle that both cover

Directions of edges are compared, as the contrast of edges differs between the sensors.
"""

from .correlation import Shift, check
from .estimation import estimate
from .warp import Alignment, apply, common, field

__all__ = ["Alignment", "Shift", "apply", "check", "common", "estimate", "field"]
