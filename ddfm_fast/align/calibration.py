"""The map between two fixed cameras, found from several pairs and kept in a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..files.paths import atomic_write_bytes
from ..images.doubts import warn
from .cameras import MOST_BYTES, Camera, checked_camera
from .estimation import MODELS, between
from .warp import Alignment, scaling

FORMAT = "ddfm_fast alignment 1"
_GRID, _SPREAD, _ASPECT = 7, 0.01, 0.01
"""points per side at which maps are compared; median distance between pairs, relative to the longer
side of the visible picture, above which to warn; and how much the aspect ratio may differ"""
_MOST_SIDE = 1 << 20


class Calibration(NamedTuple):
    """A map between two cameras, for pictures of these sizes and of multiples of them."""

    alignment: Alignment
    ir_size: tuple[int, int]
    """(height, width), like ``vis_size``"""
    vis_size: tuple[int, int]
    pairs: int = 1
    """from how many it was found"""

    def fitted(self, ir_size: tuple[int, int], vis_size: tuple[int, int]) -> Alignment:
        """Return the map for pictures of these sizes; raise ValueError for another aspect ratio."""
        if (ir_size, vis_size) == (self.ir_size, self.vis_size):
            return self.alignment
        for name, size, own in (("ir", ir_size, self.ir_size), ("vis", vis_size, self.vis_size)):
            if abs(math.log(size[1] / size[0] * own[0] / own[1])) > _ASPECT:
                raise ValueError(
                    f"align: the calibration is for {name} pictures of {own[1]}x{own[0]} pixels, "
                    f"and {name} has {size[1]}x{size[0]}, another aspect ratio; make one from "
                    "such pictures: ddfm-fast align IR VIS -o calibration.json"
                )
        found = self.alignment
        matrix = scaling(self.ir_size, ir_size) @ found.matrix @ scaling(vis_size, self.vis_size)
        ir_camera, vis_camera = found.ir_camera, found.vis_camera
        return found._replace(
            matrix=matrix / matrix[2, 2],
            ir_camera=None if ir_camera is None else ir_camera.scaled(ir_size),
            vis_camera=None if vis_camera is None else vis_camera.scaled(vis_size),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file, as JSON types."""
        found = self.alignment
        record = {
            "format": FORMAT,
            "model": found.model,
            "matrix": found.matrix.tolist(),
            "confidence": found.confidence,
            "pairs": self.pairs,
            "ir_size": list(self.ir_size),
            "vis_size": list(self.vis_size),
        }
        for name in ("ir_camera", "vis_camera"):
            camera = getattr(found, name)
            if camera is not None:
                record[name] = {
                    "camera_matrix": camera.matrix.tolist(),
                    "distortion_coefficients": camera.distortion.ravel().tolist(),
                }
        return record


def calibrate(
    planes: Iterable[tuple[str, np.ndarray, np.ndarray]],
    model: str = "homography",
    *,
    ir_camera: Camera | None = None,
    vis_camera: Camera | None = None,
) -> Calibration:
    """Find the map between two fixed cameras from pairs of their pictures.

    The map of each pair sends a grid of points to other points; one map is fitted to their medians
    over all pairs, so that a few pairs with something near do no harm.

    Args:
        planes: A name and both planes [H, W] float32 in [0, 1] of each pair, all of one size.
        model: "shift", "affine" or "homography".
        ir_camera: The infrared camera with its distortion, if known. Pictures are undistorted
            before the map is estimated.
        vis_camera: The visible camera, likewise.

    Returns:
        The calibration; its confidence is the median over the pairs that were sure.

    Raises:
        ValueError: The model is unknown, there is no pair, sizes differ, or no pair is sure.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}")
    sizes: tuple | None = None
    found: list[Alignment] = []
    names = []
    for name, ir, vis in planes:
        names.append(name)
        sizes = sizes or (ir.shape, vis.shape)
        if (ir.shape, vis.shape) != sizes:
            raise ValueError(f"{name}: {_sizes(ir.shape, vis.shape)}; the first {_sizes(*sizes)}")
        a = ir if ir_camera is None else ir_camera.scaled(ir.shape).straight(ir)
        b = vis if vis_camera is None else vis_camera.scaled(vis.shape).straight(vis)
        one = between(a, b, model)
        if one.sure:
            found.append(one)
    if sizes is None:
        raise ValueError("no pair is given; expected at least one picture of each camera")
    if not found:
        raise ValueError(
            f"{', '.join(names[:3])}{' and more' * (len(names) > 3)}: no certain map ({model}) was "
            "found; expected pictures of one scene with edges that both show, by day, not at dusk"
        )
    matrix, spread = _together([one.matrix for one in found], sizes[1], model)
    if spread > _SPREAD * max(sizes[1]):
        warn(
            f"the maps of {len(found)} pairs differ by {spread:.1f} pixels, as near objects shift "
            "between two cameras; take pictures of distant objects, or use another --model"
        )
    confidence = float(np.median([one.confidence for one in found]))
    alignment = Alignment(
        matrix, model, confidence,
        None if ir_camera is None else ir_camera.scaled(sizes[0]),
        None if vis_camera is None else vis_camera.scaled(sizes[1]),
    )  # fmt: skip
    return Calibration(alignment, sizes[0], sizes[1], len(found))


def _together(
    matrices: list[np.ndarray], size: tuple[int, int], model: str
) -> tuple[np.ndarray, float]:
    """Fit a map to the medians of where maps send points; also return the median distance."""
    y, x = np.mgrid[0 : size[0] - 1 : _GRID * 1j, 0 : size[1] - 1 : _GRID * 1j]
    at = np.stack([x.ravel(), y.ravel()], 1)
    maps = [Alignment(matrix, model, 1.0) for matrix in matrices]
    sent = np.stack([one.points(at) for one in maps])
    median = np.median(sent, 0)
    spread = float(np.median(np.hypot(*np.moveaxis(sent - median, -1, 0))))
    if len(matrices) == 1:
        return matrices[0], spread
    if model == "homography":
        matrix, _ = cv2.findHomography(at, median, 0)
    elif model == "affine":
        rows = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), median, rcond=None)[0]
        matrix = np.vstack([rows.T, [0, 0, 1]])
    else:  # one scale and, by the medians, one shift
        matrix = np.median(matrices, 0)
    return matrix / matrix[2, 2], spread


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write a calibration as JSON, whole or not at all; raise ImageFileError if that fails."""
    text = json.dumps(calibration.to_dict(), indent=1, allow_nan=False) + "\n"
    atomic_write_bytes(Path(path), text.encode())


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration that :func:`write_calibration` wrote.

    Raises:
        ValueError: The file is wrong; the message names it and says why.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is larger than 1 MiB")
        found = json.loads(path.read_bytes().decode(), parse_constant=_no_number)
        return _checked(found, str(path))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        if isinstance(error, RecursionError):
            why = "it is nested too deeply"
        why = why.removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: {why}; expected a calibration that `ddfm-fast align IR VIS -o FILE` wrote"
        ) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _checked(found: Any, name: str) -> Calibration:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f'its format is not "{FORMAT}"')
    if found.get("model") not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}")
    matrix = _numbers(found.get("matrix"), (3, 3), "matrix")
    if abs(matrix[2, 2]) < 1e-12 or abs(np.linalg.det(matrix / np.abs(matrix).max())) < 1e-15:
        raise ValueError("matrix maps a picture to a line")
    confidence = float(_numbers(found.get("confidence"), (), "confidence"))
    sizes = [_checked_size(found.get(key), key) for key in ("ir_size", "vis_size")]
    pairs = found.get("pairs", 1)
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise ValueError("pairs must be a positive int")
    cameras = [
        _camera(found.get(key), size, f"{name}: {key}")
        for key, size in zip(("ir_camera", "vis_camera"), sizes, strict=True)
    ]
    matrix = matrix / matrix[2, 2]
    height, width = sizes[1]
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1.0]])
    if (corners @ matrix[2] <= 0).any():
        raise ValueError("matrix puts a part of the picture behind the camera")
    return Calibration(
        Alignment(matrix, found["model"], confidence, *cameras), sizes[0], sizes[1], pairs
    )


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array([])
    good = array.shape == shape and np.isfinite(array).all() and np.abs(array).max() < 1e12
    if value is None or not good:
        what = " of ".join(["x".join(map(str, shape))] * bool(shape) + ["finite numbers"])
        raise ValueError(f"{name} must be {what if shape else 'a finite number'}")
    return array


def _checked_size(value: Any, name: str) -> tuple[int, int]:
    good = isinstance(value, list) and len(value) == 2
    if not good or any(type(n) is not int or not 1 <= n <= _MOST_SIDE for n in value):
        raise ValueError(f"{name} must be [height, width] in pixels")
    return value[0], value[1]


def _camera(found: Any, size: tuple[int, int], name: str) -> Camera | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{name.rpartition(': ')[2]} must be an object")
    matrix, distortion = (found.get(k) for k in ("camera_matrix", "distortion_coefficients"))
    return checked_camera(matrix, distortion, size, name)


def _sizes(ir: tuple[int, ...], vis: tuple[int, ...]) -> str:
    return f"ir is {ir[1]}x{ir[0]} and vis {vis[1]}x{vis[0]} pixels"
