"""What a network finds in fused pictures, and in each source alone: scores of a whole data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

COLUMNS = {
    "mAP50": "mean over the classes of COCO's average precision at an IoU of .5, by pycocotools",
    "mAP": "the same, averaged over IoUs of .5, .55, … .95",
    "mIoU": "mean over the labeled classes of intersection over union, of all pixels of all pairs",
}
"""the columns, and what they are; for all of them more is better"""


@dataclass
class TaskScores:
    """What a network scored on the methods' pictures and on the sources'."""

    task: str
    """"detection" or "segmentation" """
    network: str
    """the network's name, and the file of its weights if it is the user's own"""
    scored: str
    """what was scored: how many pairs and objects, of which classes"""
    rows: dict[str, dict[str, float]]
    """column → score, by method and then by source"""
    classes: dict[str, dict[str, float]]
    """class → its mAP or IoU, by row"""
    notes: list[str] = field(default_factory=list)
    """what was left out, sentences without a full stop"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, of `COLUMNS`."""
        return tuple(c for c in COLUMNS if any(c in row for row in self.rows.values()))

    @property
    def caption(self) -> str:
        """One line above the table, without a full stop."""
        return f"{self.task} by {self.network}, {self.scored}"

    def marks(self, row: str) -> dict[str, str]:
        """Return the columns in which a row is "best" or "second"; equal scores share a mark."""
        found = {}
        for column in self.columns:
            scores = {x for r in self.rows.values() if math.isfinite(x := r[column])}
            order = sorted(scores, reverse=True)[: 2 if len(scores) > 1 else 0]
            if self.rows[row][column] in order:
                found[column] = ("best", "second")[order.index(self.rows[row][column])]
        return found
