"""Cameras as OpenCV's calibration writes them: a matrix and distortion coefficients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

MOST_BYTES = 1 << 20
"""most bytes of a file with a camera or a calibration"""
_COEFFICIENTS = (4, 5, 8, 12, 14)
"""numbers of coefficients that OpenCV's distortion models have"""


class Camera(NamedTuple):
    """A camera: focal lengths and center in pixels, and the distortion of its lens."""

    matrix: np.ndarray
    """[3, 3]"""
    distortion: np.ndarray
    """[4], [5], [8], [12] or [14], in OpenCV's order"""
    size: tuple[int, int] | None = None
    """(height, width) of the pictures that it was calibrated with, if known"""

    def ideal(self, at: np.ndarray) -> np.ndarray:
        """Return where pixels [N, 2] (x, y) of its picture would lie without distortion."""
        found = cv2.undistortPoints(
            at.reshape(-1, 1, 2), self.matrix, self.distortion, P=self.matrix
        )
        return found.reshape(-1, 2)

    def bent(self, at: np.ndarray) -> np.ndarray:
        """Return where such places [N, 2] lie in its picture."""
        x, y = at.T
        k = self.matrix
        ray = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones(len(at))], 1)
        found, _ = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), k, self.distortion)
        return found.reshape(-1, 2)

    def straight(self, plane: np.ndarray) -> np.ndarray:
        """Remove the distortion from a picture [H, W]."""
        return cv2.undistort(plane, self.matrix, self.distortion)

    def scaled(self, size: tuple[int, int]) -> Camera:
        """Scale it to pictures of (height, width); return it unchanged if its size is unknown."""
        if self.size is None or self.size == size:
            return self._replace(size=size)
        y, x = size[0] / self.size[0], size[1] / self.size[1]
        to = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1.0]])
        return Camera(to @ self.matrix, self.distortion, size)


def checked_camera(matrix: Any, distortion: Any, size: tuple[int, int] | None, name: str) -> Camera:
    """Make a camera from numbers; raise ValueError, beginning with ``name``, if they are wrong."""
    try:
        k = np.array(matrix, np.float64)
        d = np.array([] if distortion is None else distortion, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: the camera has values that are not numbers") from None
    good = k.shape == (3, 3) and np.isfinite(k).all() and min(k[0, 0], k[1, 1]) > 0
    if not good or list(k[2]) != [0, 0, 1]:
        raise ValueError(
            f"{name}: camera_matrix must be 3x3 of finite numbers, [[fx, 0, cx], [0, fy, cy], "
            "[0, 0, 1]] with fx and fy above 0"
        )
    if d.size == 0:
        d = np.zeros(5)
    if d.size not in _COEFFICIENTS or not np.isfinite(d).all():
        raise ValueError(
            f"{name}: distortion_coefficients has {d.size} values; expected 4, 5, 8, 12 or 14 "
            "finite ones, in OpenCV's order"
        )
    return Camera(k, d, size)


def read_camera(path: str | os.PathLike[str]) -> Camera:
    """Read a camera from a YAML, XML or JSON file as OpenCV's ``FileStorage`` writes it.

    Args:
        path: With ``camera_matrix`` and ``distortion_coefficients``, and maybe ``image_width`` and
            ``image_height``.

    Raises:
        ValueError: The file is missing, cannot be read, or lacks a camera.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path}: over 1 MiB, which no camera needs; expected OpenCV's YAML")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(
            f"{path}: {why}; expected a camera as OpenCV's FileStorage writes"
        ) from None
    try:
        return _parsed(text, str(path))
    except (cv2.error, SystemError):  # OpenCV's binding wraps some errors so
        raise ValueError(
            f"{path}: OpenCV cannot parse it; expected YAML, XML or JSON with camera_matrix and "
            "distortion_coefficients"
        ) from None


def _parsed(text: str, name: str) -> Camera:
    storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    try:
        matrix = storage.getNode("camera_matrix").mat()
        distortion = storage.getNode("distortion_coefficients").mat()
        height, width = (storage.getNode(key).real() for key in ("image_height", "image_width"))
    finally:
        storage.release()
    if matrix is None:
        raise ValueError(f"{name}: it has no camera_matrix; expected OpenCV's names")
    known = all(np.isfinite(n) and 1 <= n <= 1e6 for n in (height, width))
    size = (int(height), int(width)) if known else None
    return checked_camera(matrix, distortion, size, name)
