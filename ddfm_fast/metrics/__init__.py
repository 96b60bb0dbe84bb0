"""The field's image fusion metrics, each under a named convention, batched on CPU or GPU.

>>> from ddfm_fast import metrics
>>> scores = metrics.compute(fused, ir, vis)                    # doctest: +SKIP
>>> scores["VIF"], scores["VIF_min"]                            # doctest: +SKIP
>>> print(metrics.CONVENTIONS["cddfuse"].definitions["VIF"])    # doctest: +SKIP

A high MI, VIF or Qabf can mean that the fused image is a copy of one source: read them beside
SCD, CC and the worse source (``_min``; ``_max`` where less is better), and see `near_copy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .conventions import CONVENTIONS, NAMES, SINGLE, Convention, SsimWindow
    from .guard import near_copy
    from .inputs import to_luma
    from .scores import compute, smallest_size

__all__ = [
    "CONVENTIONS",
    "Convention",
    "NAMES",
    "SINGLE",
    "SsimWindow",
    "compute",
    "near_copy",
    "smallest_size",
    "to_luma",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "CONVENTIONS": "conventions",
        "Convention": "conventions",
        "NAMES": "conventions",
        "SINGLE": "conventions",
        "SsimWindow": "conventions",
        "compute": "scores",
        "near_copy": "guard",
        "smallest_size": "scores",
        "to_luma": "inputs",
    },
)
