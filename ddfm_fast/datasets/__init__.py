"""Folders of pairs: finding them, fusing all of them, and the examples of the package.

    pairs  pairs in the layouts of known data sets, in two folders or in a manifest
    jobs   pairs of files, each fused into a file
    batch  a whole data set, safe to interrupt and to run again
    demo   the two example pairs that come with the package
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .batch import BatchInterrupted, BatchReport, run_batch
    from .pairs import PairItem, find_pairs

__all__ = [
    "BatchInterrupted",
    "BatchReport",
    "PairItem",
    "find_pairs",
    "run_batch",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "PairItem": "pairs",
        "find_pairs": "pairs",
        "run_batch": "batch",
        "BatchReport": "batch",
        "BatchInterrupted": "batch",
    },
)
