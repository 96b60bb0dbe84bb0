"""What everything that fuses does about alignment: look whether a pair is, or bring it there.

``align`` is "check": the first pair of a call, folder or stream is looked at, and one sentence says
so where it is surely shifted; "off": nothing; a model of ``estimation``: each pair is aligned by
what is found for it, and left as it is where nothing stands out; or a calibration of two fixed
cameras. The visible picture keeps its frame. Where the infrared one does not reach, the result is
the visible picture, with a soft edge.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..images.doubts import warn
from ..images.kind import is_functional
from ..images.planes import Raw
from ..runtime.locks import ForkLock
from .calibration import Calibration, read_calibration
from .correlation import REACH, SIDE, SURE, shift_between
from .estimation import MODELS, between
from .warp import Alignment, apply, field

if TYPE_CHECKING:
    from ..files.depth import Sources

SETTINGS = ("check", "off", *MODELS)
Setting = str | Calibration
FAR, FAR_SHARE = 2.5, 0.006
"""pixels, and share of the longer side, from which a shift is worth a word"""
LEAST = 32
"""pixels of the shorter side below which no word is said"""
_RGB = np.array([0.299, 0.587, 0.114], np.float32)


def checked_align(setting: Any) -> Setting:
    """Return the setting; the calibration that a path names is read.

    Raises:
        ValueError: It is none, or the file does not do.
        TypeError: It is no text, path or calibration.
    """
    if isinstance(setting, Calibration) or (isinstance(setting, str) and setting in SETTINGS):
        return setting
    if not isinstance(setting, str | os.PathLike):
        raise TypeError(
            f"align is a {type(setting).__name__}; expected one of {', '.join(SETTINGS)}, or the "
            "path of a calibration"
        )
    if isinstance(setting, str) and not (setting and _is_file_name(setting)):
        raise ValueError(
            f"align is {setting!r}; expected one of {', '.join(SETTINGS)}, or the path of a "
            "calibration that `ddfm-fast align` wrote"
        )
    return read_calibration(setting)


def _is_file_name(text: str) -> bool:
    path = Path(text)
    return bool(path.suffix) or path.exists()


def setting_identity(setting: Any) -> Any:
    """What a setting is known by while its file, if it has one, stays as it is."""
    if isinstance(setting, str) and setting in SETTINGS:
        return setting
    if not isinstance(setting, str | os.PathLike):
        return setting
    try:
        found = os.stat(setting)
    except (OSError, ValueError):
        return None
    return os.path.realpath(setting), found.st_size, found.st_mtime_ns, found.st_ino


class Aligner:
    """Aligns the pairs of one call, folder or stream; threads may share it."""

    def __init__(self, setting: Setting, resize: str | None = None):
        """``setting``: from :func:`checked_align`. ``resize``: of files, whose size both get."""
        self.setting, self.resize = setting, resize
        self.moves = setting not in ("check", "off") if isinstance(setting, str) else True
        self._looked = setting == "off"
        self._lock = ForkLock()

    def to_dict(self) -> dict[str, Any]:
        """What decides results, as JSON types; empty where nothing is moved."""
        setting, resize = self.setting, {} if self.resize is None else {"resize": self.resize}
        if not self.moves:
            return resize
        align = setting.to_dict() if isinstance(setting, Calibration) else setting
        return {**resize, "align": align}

    def raws(self, ir: Raw, vis: Raw, index: str) -> tuple[Raw, Tensor | None]:
        """Align what was read of a call's sources.

        Args:
            ir: One image or batch.
            vis: The other.
            index: Of the arguments' names in sentences.

        Returns:
            The infrared source, and where it counts, [N, 1, H, W] from 0 to 1; None: everywhere.

        Raises:
            ValueError: The sizes differ, and no map stands out.
        """
        if not self.moves:
            self._look_at_raws(ir, vis, index)
            return ir, None
        if len(ir.values) != len(vis.values):
            return ir, None  # which is refused by name
        moved = [
            self.pictures(_hwc(ir.values[n]), _hwc(vis.values[n]), index, _hole(ir.holes, n))
            for n in range(len(ir.values))
        ]
        device, size = ir.values.device, vis.values.shape[-2:]
        values = [
            torch.from_numpy(image.reshape(*size, -1)).permute(2, 0, 1) for image, *_ in moved
        ]
        holes = None
        if ir.holes is not None:
            holes = torch.stack([torch.from_numpy(hole)[None] for *_, hole in moved]).to(device)
        weight = None
        if any(w is not None for _, w, _ in moved):
            full = np.ones(size, np.float32)
            parts = [torch.from_numpy(full if w is None else w)[None] for _, w, _ in moved]
            weight = torch.stack(parts)
        raw = ir._replace(values=torch.stack(values).to(device), sent=None, holes=holes)
        return raw, weight

    def sources(self, found: Sources) -> Sources:
        """Align a pair of files; ValueError where the sizes differ and no map stands out."""
        from ..files.depth import moved, resized_sources

        found = resized_sources(found, self.resize)
        ir, vis = found.ir, found.vis
        if not self.moves:
            self.look(ir, vis)
            return found
        chosen, size = self.found(ir, vis), vis.shape[:2]
        if chosen is None:
            return found
        ir, weight, hole = _moved(ir, found.holes[0], chosen, size)
        empty = hole
        if weight is not None:
            empty = weight == 0 if hole is None else hole | (weight == 0)
            hole = 1 - weight if hole is None else np.maximum(1 - weight, hole)
        units = tuple(
            moved(unit, lambda values: apply(values, chosen, size), found.holes[0], empty)
            if n == 0 else unit
            for n, unit in enumerate(found.units)
        )  # fmt: skip
        return found._replace(ir=faded(ir, vis, weight), holes=(hole, found.holes[1]), units=units)

    def pictures(
        self, ir: np.ndarray, vis: np.ndarray, index: str = "", hole: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Bring an infrared picture to the visible one.

        Args:
            ir: [H, W] or [H, W, C].
            vis: Likewise, of any size.
            index: Of the arguments' names in sentences.
            hole: bool [H, W], where ``ir`` has no data.

        Returns:
            The picture, where it counts (float32 [H, W], None: everywhere), and its holes.

        Raises:
            ValueError: The sizes differ, and no map stands out.
        """
        found = self.found(ir, vis, index)
        if found is None:
            return ir, None, hole
        return _moved(ir, hole, found, vis.shape[:2])

    def found(self, ir: np.ndarray, vis: np.ndarray, index: str = "") -> Alignment | None:
        """The map of a pair; None, after a sentence, where none stands out."""
        if isinstance(self.setting, Calibration):
            return self.setting.fitted(ir.shape[:2], vis.shape[:2])
        found = between(plane(ir), plane(vis), self.setting)
        if found.sure:
            return found
        if ir.shape[:2] == vis.shape[:2]:
            warn(
                f"no {self.setting} between ir{index} and vis{index} stands out; they are fused as "
                'they are: align="off" says nothing, a calibration (ddfm-fast align) needs no edges'
            )
            return None
        (a, b), (c, d) = ir.shape[:2], vis.shape[:2]
        raise ValueError(
            f"ir{index} has {a}x{b} and vis{index} {c}x{d}, and no {self.setting} between them "
            "stands out; expected images of equal size: --resize vis, or a calibration (--align)"
        )

    def look(
        self, ir: np.ndarray, vis: np.ndarray, index: str = "", *, again: bool = False
    ) -> None:
        """Say by one sentence if a pair [H, W] or [H, W, C] is surely shifted; the first alone.

        ``again``: look although a pair was looked at and nothing was found.
        """
        with self._lock:
            if self.setting != "check" or (self._looked and not again):
                return
            self._looked = True
        if ir.shape[:2] != vis.shape[:2] or min(ir.shape[:2]) < LEAST:
            return
        sentence = _sentence(ir, vis, index)
        if sentence is not None:
            self.setting = "off"
            warn(sentence, "align")

    def _look_at_raws(self, ir: Raw, vis: Raw, index: str) -> None:
        # on a device the look would wait for it
        if not self._looked and {ir.values.device.type, vis.values.device.type} == {"cpu"}:
            self.look(_hwc(ir.values[0]), _hwc(vis.values[0]), index)


class StreamAligner(Aligner):
    """Aligns the frames of one stream by a map that is found once and then follows slowly."""

    EVERY, SEARCH = 50, 5
    """frames between estimates; and before the first that is sure"""
    FOLLOW, JUMP = 0.2, 0.02
    """share of a new estimate; of the longer side, a jump, believed when it is seen twice"""

    def __init__(self, setting: Setting):
        """``setting``: from :func:`checked_align`."""
        super().__init__(setting)
        self._map: Alignment | None = None
        self._weight: np.ndarray | None = None
        self._jumped: Alignment | None = None
        self._frame = -1
        self._warned = False

    def frame(self, ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
        """Return the next infrared frame, of one depth with the visible one, where that is.

        Until a map is found a frame of another size is resized.
        """
        if not self.moves:
            self.look(ir, vis)
            return ir
        self._frame += 1
        every = self.SEARCH if self._map is None else self.EVERY
        if self._frame % every == 0:
            self._update(ir, vis)
        if self._map is None:
            return _of_size(ir, vis)
        return faded(apply(ir, self._map, vis.shape[:2]), vis, self._weight)

    def hole(self, hole: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Move where the frame that was given last has no data, bool [H, W], as it was moved."""
        if not self.moves or (self._map is None and hole.shape == size):
            return hole
        if self._map is None:
            return _of_size(hole.astype(np.uint8), np.empty(size)) > 0
        return apply(hole.astype(np.uint8) * 255, self._map, size) > 0

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
                    f"no {self.setting} between the first frames stands out; they are fused {how} "
                    "until one does; a calibration (ddfm-fast align) needs no edges"
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
        self._map = found
        self._weight = field(found, ir.shape[:2], vis.shape[:2])


def _of_size(ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
    from ..files.depth import resized

    return ir if ir.shape[:2] == vis.shape[:2] else resized(ir, vis.shape[:2])


def _moved(
    ir: np.ndarray, hole: np.ndarray | None, found: Alignment, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """An infrared picture brought to the visible one's frame, where it counts, and its holes."""
    weight = field(found, ir.shape[:2], (size[0], size[1]))
    if hole is not None:
        hole = apply(hole.astype(np.uint8) * 255, found, (size[0], size[1])) > 0
    return apply(np.ascontiguousarray(ir), found, (size[0], size[1])), weight, hole


def _sentence(ir: np.ndarray, vis: np.ndarray, index: str) -> str | None:
    """What to say of a pair of one size; None of one that may be aligned."""
    a, b = (plane(image, SIDE) for image in (ir, vis))
    height, width = ir.shape[:2]
    k = width / a.shape[1]
    try:
        found = shift_between(a, b, REACH / k)
    except (cv2.error, ValueError):  # a look never stops what it looks at
        return None
    x, y = found.x * k, found.y * k
    far = max(FAR, FAR_SHARE * max(height, width))
    if found.confidence < SURE or np.hypot(x, y) < far or _functional(ir) or _functional(vis):
        return None
    return (
        f"ir{index} seems to be shifted by ({x:+.0f}, {y:+.0f}) pixels (right, down) against "
        f'vis{index}: align="shift" (--align shift) moves it back, "off" says nothing'
    )


def _functional(image: np.ndarray) -> bool:
    if image.ndim == 2 or image.shape[2] != 3:
        return False
    top = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    return is_functional(
        torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None],
        lambda values: values.float() / top,
    )[0]


def plane(image: np.ndarray, side: int | None = None) -> np.ndarray:
    """Return luma [H, W] float32, of integers over their maximum; ``side``: at most that long."""
    scale = 1 if side is None else side / max(image.shape[:2])
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        image = image.astype(np.float32)
    if scale < 1:
        size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    top = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    return np.ascontiguousarray(_gray(image) * np.float32(1 / top))


def _gray(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[2] == 3:
        return image.astype(np.float32) @ _RGB
    return image.reshape(image.shape[:2]).astype(np.float32)


def faded(ir: np.ndarray, vis: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """An infrared picture that becomes the visible one's luma where it does not count.

    Args:
        ir: [H, W] or [H, W, C] of a real dtype.
        vis: Likewise, of that size and dtype.
        weight: float32 [H, W]; None for an infrared picture that counts everywhere.
    """
    if weight is None:
        return ir
    gray = _gray(vis)
    if ir.ndim == 3:
        gray, weight = gray[..., None], weight[..., None]
    mixed = gray + weight * (ir.astype(np.float32) - gray)
    return (np.rint(mixed) if ir.dtype.kind != "f" else mixed).astype(ir.dtype)


def _hwc(values: Tensor) -> np.ndarray:
    """[C, H, W] → [H, W] or [H, W, 3]."""
    image = values.detach().permute(1, 2, 0).cpu().numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def _hole(holes: Tensor | None, n: int) -> np.ndarray | None:
    return None if holes is None else holes[n, 0].cpu().numpy()
