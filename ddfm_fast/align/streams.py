"""Align the frames of one stream by one map, which is found once and is then updated slowly."""

from __future__ import annotations

import numpy as np

from ..images.doubts import warn
from .calibration import Calibration
from .call import Aligner, Part, Setting, checked_part, faded, plane
from .estimation import between
from .warp import Alignment, apply, scaling

Holes = tuple[np.ndarray | None, np.ndarray | None]
"""where each source has no data"""


class StreamAligner(Aligner):
    """Aligns the frames of one stream by a map that is found once and is then updated slowly."""

    EVERY, SEARCH = 50, 5
    """frames between estimates, after and before the first sure one"""
    FOLLOW, JUMP = 0.2, 0.02
    """weight of a new estimate; share of the longer side that is a jump, believed when seen
    twice"""

    def __init__(self, setting: Setting, *, field: str = "visible"):
        """``setting``, ``field``: as for :class:`Aligner`.

        Raises:
            ValueError: Frames are to be cropped by a map that is updated, so sizes would change.
        """
        super().__init__(setting, field=field)
        if field == "common" and self.moves and not isinstance(setting, Calibration):
            raise ValueError(
                f'align_field is "common" and align is "{setting}", whose map follows the stream: '
                "the size of its frames would change; expected a calibration, which stays "
                '(ddfm-fast align IR VIS -o calibration.json), or align_field="visible"'
            )
        self._map: Alignment | None = None
        self._reach: tuple[np.ndarray | None, Part | None] = None, None
        self._jumped: Alignment | None = None
        self._frame = -1
        self._warned = False

    def frame(self, ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move the next infrared frame onto the visible one; both have the same depth.

        Until a map is found, a frame of another size is resized. Both are cropped if they are to
        be; ValueError if that leaves too little.
        """
        if not self.moves:
            self.look(ir, vis)
            return ir, vis
        self._frame += 1
        every = self.SEARCH if self._map is None else self.EVERY
        if self._frame % every == 0:
            self._update(ir, vis)
        return self.placed(ir, vis)

    def placed(self, ir: np.ndarray, vis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Treat a pair as :meth:`frame` treated the last one."""
        if not self.moves:
            return ir, vis
        if self._map is None:
            return _of_size(ir, vis), vis
        weight, part = self._reach
        ir = faded(apply(ir, self._map, vis.shape[:2]), vis, weight)
        return (ir, vis) if part is None else (ir[part], vis[part])

    def holes(self, holes: Holes, size: tuple[int, int]) -> Holes:
        """Move masks of missing data, bool [H, W] or None, along with the pair of :meth:`placed`.

        ``size``: of the visible frame before cropping.
        """
        ir, vis = holes
        if not self.moves:
            return holes
        if self._map is not None:
            ir = None if ir is None else apply(ir.astype(np.uint8) * 255, self._map, size) > 0
        elif ir is not None:
            ir = _of_size(ir.astype(np.uint8), np.empty(size)) > 0
        part = self._reach[1]
        if part is not None:
            ir, vis = (None if hole is None else hole[part] for hole in (ir, vis))
        return ir, vis

    def now(self) -> Aligner:
        """Return an aligner that treats any frames as :meth:`frame` treated the last ones."""
        return _Placed(self._map, self._reach, self.field) if self.moves else Aligner("off")

    def _update(self, ir: np.ndarray, vis: np.ndarray) -> None:
        if isinstance(self.setting, Calibration):
            if self._map is None:
                self._take(self.setting.fitted(ir.shape[:2], vis.shape[:2]), ir, vis)
            return
        found = between(plane(ir), plane(vis), self.setting)
        if not found.sure:
            if self._map is None and not self._warned:
                self._warned = True
                how = "as they are" if ir.shape[:2] == vis.shape[:2] else "resized"
                warn(
                    f"no certain map ({self.setting}) was found between the first frames; frames "
                    f"are fused {how} until one is found, and a calibration (ddfm-fast align) "
                    "works without edges"
                )
            return
        if self._map is None:
            self._take(found, ir, vis)
        elif not self._far(found, self._map, vis):
            self._jumped = None
            matrix = self._map.matrix + self.FOLLOW * (found.matrix - self._map.matrix)
            self._take(found._replace(matrix=matrix), ir, vis)
        elif self._jumped is not None and not self._far(found, self._jumped, vis):
            self._jumped = None
            self._take(found, ir, vis)
        else:
            self._jumped = found

    def _far(self, a: Alignment, b: Alignment, vis: np.ndarray) -> bool:
        height, width = vis.shape[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
        by = np.hypot(*(a.points(corners) - b.points(corners)).T)
        return bool(by.max() > self.JUMP * max(height, width))

    def _take(self, found: Alignment, ir: np.ndarray, vis: np.ndarray) -> None:
        # a common frame given by a calibration is checked once, and so is its size
        sizes = ir.shape[:2], vis.shape[:2]
        self._map, self._reach = found, self.reach(found, *sizes)
        if self._reach[1] is not None:
            checked_part([self._reach[1]])


class _Placed(Aligner):
    """Moves by a known map, or resizes while none is known."""

    def __init__(
        self,
        found: Alignment | None,
        reach: tuple[np.ndarray | None, Part | None],
        field: str,
    ):
        super().__init__("shift", field=field)
        self._found, self._reach = found, reach

    def found(self, ir: np.ndarray, vis: np.ndarray, index: str = "") -> Alignment | None:
        """Return the known map; without one, that of a resize if the sizes differ."""
        del index
        if self._found is not None or ir.shape[:2] == vis.shape[:2]:
            return self._found
        return Alignment(scaling(vis.shape[:2], ir.shape[:2]), "shift", 1.0)

    def reach(
        self, found: Alignment, ir_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray | None, Part | None]:
        """Return the reach that was found with the map."""
        del found, ir_size, size
        return self._reach


def _of_size(ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
    from ..files.depth import resized

    return ir if ir.shape[:2] == vis.shape[:2] else resized(ir, vis.shape[:2])
