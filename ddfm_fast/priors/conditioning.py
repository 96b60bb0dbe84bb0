"""What depends only on the timestep, for all steps of a run: one table on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


class Conditioning:
    """One item for each timestep of a run, to hand to ``Prior.eps``.

    Attributes:
        table: [S, P], a row per step, on the prior's device.
        unpack: Makes the item from views of a row [P], with no work on the device.
    """

    def __init__(self, table: Tensor, unpack: Callable[[Tensor], Any]):
        self.table, self.unpack = table, unpack

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, s: int) -> Any:
        return self.unpack(self.table[s])

    def __iter__(self) -> Iterator[Any]:
        return map(self.unpack, self.table)

    def at(self, step: Tensor) -> Any:
        """Make the item of the step that ``step``, int32 or int64 [1] on the device, holds.

        This is one launch; a captured graph reads ``step`` again at each replay.
        """
        return self.unpack(self.table.index_select(0, step)[0])
