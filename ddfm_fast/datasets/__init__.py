"""Folders of pairs: finding them, fusing all of them, and the examples of the package.

pairs    pairs in the layouts of known data sets, in two folders, by names or in a manifest
names    which two files are a pair, from their names and times
lists    manifests
shots    when a picture was taken, from its header
jobs     pairs of files, each fused into a file
batch    a whole data set, safe to interrupt; rerun to resume
trees    folders listed without opening their files
history  what each picture of an output folder was made from
results  what became of each pair
demo     the example pairs that come with the package
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .batch import BatchInterrupted, run_batch
    from .items import PairItem
    from .jobs import fuse_files
    from .pairs import find_pairs
    from .results import BatchReport

__all__ = [
    "BatchInterrupted",
    "BatchReport",
    "PairItem",
    "find_pairs",
    "fuse_files",
    "run_batch",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "PairItem": "items",
        "find_pairs": "pairs",
        "fuse_files": "jobs",
        "run_batch": "batch",
        "BatchReport": "results",
        "BatchInterrupted": "batch",
    },
)
