"""Alignment as every fusion uses it: check whether a pair is aligned, or align it.

``align`` is "check": the first pair of a call, folder or stream is checked, with one warning if
it is surely shifted; "off": nothing; a model of ``estimation``: each pair is aligned by
the map found for it, and left as it is if no map is clear; or a calibration of two fixed
cameras. ``align_field`` is "visible": the result has the frame of the visible picture, and shows it
alone where the infrared one does not reach, with a soft edge; or "common": an aligned pair is
cropped to a rectangle that both cover.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..images.doubts import warn
from ..images.kind import is_functional
from ..images.planes import MIN_SIZE, Raw
from ..runtime.locks import ForkLock
from .calibration import Calibration, read_calibration
from .correlation import REACH, SIDE, SURE, shift_between
from .estimation import MODELS, between
from .warp import Alignment, apply, common, field

if TYPE_CHECKING:
    from ..files.depth import Sources

SETTINGS = ("check", "off", *MODELS)
FIELDS = ("visible", "common")
Setting = str | Calibration
Part = tuple[slice, slice]
"""rows and columns"""
FAR, FAR_SHARE = 2.5, 0.006
"""pixels, and share of the longer side, from which a shift is worth a warning"""
LEAST = 32
"""pixels of the shorter side below which there is no warning"""
_RGB = np.array([0.299, 0.587, 0.114], np.float32)


def checked_align(setting: Any) -> Setting:
    """Return the setting, with the calibration that a path names read.

    Raises:
        ValueError: It is unknown, or the file is not a calibration.
        TypeError: It is not a string, path or calibration.
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


def checked_field(field: Any, setting: Setting) -> str:
    """Return ``align_field``; warn if it has no effect with ``setting``.

    Raises:
        ValueError: It is not one of ``FIELDS``.
    """
    if not isinstance(field, str) or field not in FIELDS:
        raise ValueError(
            f'align_field is {field!r}; expected "visible", the frame of the visible picture, or '
            '"common", what both show'
        )
    if field == "common" and setting in ("check", "off"):
        warn(
            f'align_field="common" crops aligned pictures, and align is "{setting}", which aligns '
            'none, so nothing is cropped; pass align="shift" (--align shift) or another map'
        )
    return field


def _is_file_name(text: str) -> bool:
    path = Path(text)
    return bool(path.suffix) or path.exists()


def setting_identity(setting: Any) -> Any:
    """Return what identifies a setting as long as its file, if it has one, is unchanged."""
    if isinstance(setting, str) and setting in SETTINGS:
        return setting
    if not isinstance(setting, str | os.PathLike):
        return setting
    try:
        found = os.stat(setting)
    except (OSError, ValueError):
        return None
    return os.path.realpath(setting), found.st_size, found.st_mtime_ns, found.st_ino


class Moved(NamedTuple):
    """An infrared picture in the visible one's frame."""

    alignment: Alignment | None
    """None: it was not moved"""
    picture: np.ndarray
    weight: np.ndarray | None = None
    """float32 [H, W], its weight; None: 1 everywhere"""
    part: Part | None = None
    """the part that both cover, if they are to be cropped to it"""
    hole: np.ndarray | None = None
    """bool [H, W], where it has no data"""


class Aligner:
    """Aligns the pairs of one call, folder or stream; threads may share it."""

    def __init__(self, setting: Setting, resize: str | None = None, *, field: str = "visible"):
        """Take checked settings.

        Args:
            setting: From :func:`checked_align`.
            resize: For files, the source whose size both get.
            field: From :func:`checked_field`.
        """
        self.setting, self.resize, self.field = setting, resize, field
        self.moves = setting not in ("check", "off") if isinstance(setting, str) else True
        self._looked = setting == "off"
        self._lock = ForkLock()

    def to_dict(self) -> dict[str, Any]:
        """Return what decides results, as JSON types; empty if nothing is moved."""
        setting, resize = self.setting, {} if self.resize is None else {"resize": self.resize}
        if not self.moves:
            return resize
        align = setting.to_dict() if isinstance(setting, Calibration) else setting
        cut = {} if self.field == "visible" else {"align_field": self.field}
        return {**resize, "align": align, **cut}

    def raws(self, ir: Raw, vis: Raw, index: str) -> tuple[Raw, Raw, Tensor | None]:
        """Align the sources of a call, once they are read.

        The pictures of a batch that are to be cropped are cropped to what all of them have.

        Args:
            ir: One image or batch.
            vis: The other.
            index: Suffix of the arguments' names in messages.

        Returns:
            Both sources, and the weight of the infrared one, [N, 1, H, W] from 0 to 1; None: 1
            everywhere.

        Raises:
            ValueError: The sizes differ, and no map is clear; or too little is common.
        """
        if not self.moves:
            self._look_at_raws(ir, vis, index)
            return ir, vis, None
        if len(ir.values) != len(vis.values):
            return ir, vis, None  # refused later, by name
        moved = [
            self.pictures(_hwc(ir.values[n]), _hwc(vis.values[n]), index, _hole(ir.holes, n))
            for n in range(len(ir.values))
        ]
        if all(one.alignment is None for one in moved):
            return ir, vis, None
        device, size = ir.values.device, vis.values.shape[-2:]
        values = [
            torch.from_numpy(one.picture.reshape(*size, -1)).permute(2, 0, 1) for one in moved
        ]
        holes = None
        if ir.holes is not None:
            holes = torch.stack([torch.from_numpy(one.hole)[None] for one in moved]).to(device)
        weight = None
        if any(one.weight is not None for one in moved):
            full = np.ones(size, np.float32)
            weights = [full if one.weight is None else one.weight for one in moved]
            weight = torch.stack([torch.from_numpy(w)[None] for w in weights])
        raw = ir._replace(values=torch.stack(values).to(device), sent=None, holes=holes)
        if self.field == "visible":
            return raw, vis, weight
        part = checked_part([one.part for one in moved if one.part is not None], index)
        return _cropped_raw(raw, part), _cropped_raw(vis, part), None

    def sources(self, found: Sources) -> Sources:
        """Align a pair of files; ValueError as :meth:`raws` raises it."""
        from ..files.depth import moved, resized_sources

        found = resized_sources(found, self.resize)
        ir, vis = found.ir, found.vis
        if not self.moves:
            self.look(ir, vis)
            return found
        chosen, size = self.found(ir, vis), vis.shape[:2]
        if chosen is None:
            return found
        _, ir, weight, part, hole = self._moved(ir, found.holes[0], chosen, size)
        empty = hole
        if weight is not None:
            empty = weight == 0 if hole is None else hole | (weight == 0)
            hole = 1 - weight if hole is None else np.maximum(1 - weight, hole)
        units = tuple(
            moved(unit, lambda values: apply(values, chosen, size), found.holes[0], empty)
            if n == 0 else unit
            for n, unit in enumerate(found.units)
        )  # fmt: skip
        whole = found._replace(ir=faded(ir, vis, weight), holes=(hole, found.holes[1]), units=units)
        return whole if part is None else whole.cropped(*checked_part([part]))

    def pictures(
        self, ir: np.ndarray, vis: np.ndarray, index: str = "", hole: np.ndarray | None = None
    ) -> Moved:
        """Warp an infrared picture onto the visible one.

        Args:
            ir: [H, W] or [H, W, C].
            vis: Likewise, of any size.
            index: Suffix of the arguments' names in messages.
            hole: bool [H, W], where ``ir`` has no data.

        Raises:
            ValueError: The sizes differ, and no map is clear.
        """
        found = self.found(ir, vis, index)
        if found is None:
            return Moved(None, ir, hole=hole)
        return self._moved(ir, hole, found, vis.shape[:2])

    def _moved(
        self, ir: np.ndarray, hole: np.ndarray | None, found: Alignment, size: tuple[int, ...]
    ) -> Moved:
        """Return an infrared picture warped into the visible one's frame."""
        frame = size[0], size[1]
        weight, part = self.reach(found, (ir.shape[0], ir.shape[1]), frame)
        if hole is not None:
            hole = apply(hole.astype(np.uint8) * 255, found, frame) > 0
        picture = apply(np.ascontiguousarray(ir), found, frame)
        return Moved(found, picture, weight, part, hole)

    def reach(
        self, found: Alignment, ir_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray | None, Part | None]:
        """Return the infrared picture's weight, or the part that both cover, as ``field`` says."""
        if self.field == "common":
            return None, common(found, ir_size, size)
        return field(found, ir_size, size), None

    def found(self, ir: np.ndarray, vis: np.ndarray, index: str = "") -> Alignment | None:
        """Return the map of a pair; warn and return None if none is clear."""
        if isinstance(self.setting, Calibration):
            return self.setting.fitted(ir.shape[:2], vis.shape[:2])
        found = between(plane(ir), plane(vis), self.setting)
        if found.sure:
            return found
        if ir.shape[:2] == vis.shape[:2]:
            warn(
                f"no certain map ({self.setting}) was found between ir{index} and vis{index}, so "
                "they are fused as they are; a calibration (ddfm-fast align) works without edges, "
                'and align="off" (--align off) turns this warning off'
            )
            return None
        (a, b), (c, d) = ir.shape[:2], vis.shape[:2]
        raise ValueError(
            f"ir{index} is {a}x{b} and vis{index} is {c}x{d}, and no certain map ({self.setting}) "
            "was found between them; expected images of equal size: pass --resize vis, or a "
            "calibration (--align)"
        )

    def look(
        self, ir: np.ndarray, vis: np.ndarray, index: str = "", *, again: bool = False
    ) -> None:
        """Warn if a pair [H, W] or [H, W, C] is surely shifted; only the first pair is checked.

        ``again``: check once more although a pair was checked and nothing was found.
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
        # on a device the check would wait for the device
        if not self._looked and {ir.values.device.type, vis.values.device.type} == {"cpu"}:
            self.look(_hwc(ir.values[0]), _hwc(vis.values[0]), index)


def _sentence(ir: np.ndarray, vis: np.ndarray, index: str) -> str | None:
    """Return the warning for a pair of one size; None if it may be aligned."""
    a, b = (plane(image, SIDE) for image in (ir, vis))
    height, width = ir.shape[:2]
    k = width / a.shape[1]
    try:
        found = shift_between(a, b, REACH / k)
    except (cv2.error, ValueError):  # a check never stops what it checks
        return None
    x, y = found.x * k, found.y * k
    far = max(FAR, FAR_SHARE * max(height, width))
    if found.confidence < SURE or np.hypot(x, y) < far or _functional(ir) or _functional(vis):
        return None
    return (
        f"ir{index} seems to be shifted by ({x:+.0f}, {y:+.0f}) pixels (right, down) against "
        f'vis{index}; align="shift" (--align shift) moves it back, "off" turns this warning off'
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
    """Return an infrared picture that fades into the visible one's luma where its weight falls.

    Args:
        ir: [H, W] or [H, W, C] of a real dtype.
        vis: Likewise, of that size and dtype.
        weight: float32 [H, W]; None for a weight of 1 everywhere.
    """
    if weight is None:
        return ir
    gray = _gray(vis)
    if ir.ndim == 3:
        gray, weight = gray[..., None], weight[..., None]
    mixed = gray + weight * (ir.astype(np.float32) - gray)
    return (np.rint(mixed) if ir.dtype.kind != "f" else mixed).astype(ir.dtype)


def checked_part(parts: list[Part], index: str = "") -> Part:
    """Return the part that all of these cover; ValueError if it is too small to be fused."""
    part = tuple(
        slice(max(one[n].start for one in parts), min(one[n].stop for one in parts)) for n in (0, 1)
    )
    height, width = (max(0, one.stop - one.start) for one in part)
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"ir{index} and vis{index} have a field of {height}x{width} pixels in common; expected "
            f'at least {MIN_SIZE}x{MIN_SIZE}, or align_field="visible" (--align-field visible), '
            "which keeps the whole frame"
        )
    return part[0], part[1]


def _cropped_raw(raw: Raw, part: Part) -> Raw:
    holes = None if raw.holes is None else raw.holes[..., part[0], part[1]]
    return raw._replace(values=raw.values[..., part[0], part[1]], sent=None, holes=holes)


def _hwc(values: Tensor) -> np.ndarray:
    """Rearrange [C, H, W] to [H, W] or [H, W, 3]."""
    image = values.detach().permute(1, 2, 0).cpu().numpy()
    return image[..., 0] if image.shape[2] == 1 else image


def _hole(holes: Tensor | None, n: int) -> np.ndarray | None:
    return None if holes is None else holes[n, 0].cpu().numpy()
