"""Training patches: a folder of photographs made to look like the images that get fused.

Infrared and medical images are gray, often soft, sometimes inverted, of any gamma, and medical
ones stand on black ground; fused ones lie between those and photographs. No such image is needed:
photographs are turned into likely stand-ins.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ...files.paths import SUFFIXES

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
FLAT_STD = 6.0
"""gray levels of standard deviation below which a tile counts as flat"""
FLAT_KEPT = 0.15
"""chance that a flat tile is used anyway: skies and black ground exist"""
THERMAL = 0.5
"""share of gray patches that are made to look like thermal images"""
STRETCHED = 0.1, 99.9
"""percentiles that become black and white of pictures deeper than 8 bits"""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def find_photos(folder: Path, argument: str = "--data") -> list[Path]:
    """Find the photographs in a folder, by name; ValueError when there are fewer than two.

    ``argument``: how the caller names the folder, for errors.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{argument} {str(folder)!r} is not a folder; give a folder of photographs"
        )
    photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(photos) < 2:
        raise ValueError(
            f"{argument} {str(folder)!r} holds {len(photos)} photographs, expected at least 2 "
            f"({', '.join(SUFFIXES)})"
        )
    return photos


def hash_files(paths: list[Path]) -> str:
    """Hash the names and contents of the files, in order: sha256."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def split_photos(photos: list[Path], holdout: int) -> tuple[list[Path], list[Path]]:
    """Split into training and held-out photographs: every n-th by name is held out."""
    holdout = min(holdout, len(photos) - 1)
    held = {int((i + 0.5) * len(photos) / holdout) for i in range(holdout)}
    train = [p for i, p in enumerate(photos) if i not in held]
    return train, [p for i, p in enumerate(photos) if i in held]


def load_pyramid(path: Path, patch: int) -> list[np.ndarray]:
    """Read a photograph as RGB uint8 at every scale of ``SCALES`` that still holds a patch."""
    image = read_photo(path)
    height, width = image.shape[:2]
    pyramid = []
    for scale in SCALES:
        size = round(width / scale), round(height / scale)
        if min(size) >= patch:
            pyramid.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    if not pyramid:
        raise ValueError(
            f"photographs: {path.name!r} is {width}x{height}, smaller than patches of {patch} "
            "pixels; remove it, or lower --patch where there is one"
        )
    return pyramid


def read_photo(path: Path) -> np.ndarray:
    """Read a photograph as RGB uint8 [H, W, 3]; deeper ones are stretched to their own range.

    Raises ValueError for anything but an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise ValueError(
            f"photographs: {path.name!r} cannot be read as an image; remove or replace it"
        )
    if image.dtype != np.uint8:  # counts of a thermal camera or a scanner fill a part of 16 bits
        counts = np.nan_to_num(image.astype(np.float32))
        low, high = np.percentile(counts, STRETCHED)
        image = ((counts - low) / max(high - low, 1e-6)).clip(0, 1) * 255
        image = image.round().astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class Patches:
    """Random patches of photographs, drawn in proportion to the square root of their area.

    ``channels``: 3 for color; 1 for luma, half of it made to look like thermal images.
    """

    def __init__(self, photos: list[Path], patch: int, channels: int = 3):
        self.patch, self.channels = patch, channels
        self.pyramids = [load_pyramid(p, patch) for p in photos]
        # the square root keeps a few large photographs from crowding out the small, textured ones
        area = np.array([math.sqrt(p[0].shape[0] * p[0].shape[1]) for p in self.pyramids])
        self.weights = area / area.sum()

    def crop(self, rng: np.random.Generator, side: int | None = None) -> np.ndarray:
        """Draw a patch [P, P, 3] uint8; nearly flat ones are mostly drawn again.

        ``side``: P, by default the patch of the constructor. If a level of the pyramid is smaller,
        the next larger one that holds the patch is used.
        """
        side = side or self.patch
        tile: np.ndarray | None = None
        for _ in range(8):
            pyramid = self.pyramids[rng.choice(len(self.pyramids), p=self.weights)]
            image = pyramid[rng.integers(len(pyramid))]
            if min(image.shape[:2]) < side:
                larger = [i for i in pyramid if min(i.shape[:2]) >= side]
                if not larger:
                    continue
                image = larger[-1]
            top, left = (rng.integers(n - side + 1) for n in image.shape[:2])
            tile = image[top : top + side, left : left + side]
            if tile.std(axis=(0, 1)).mean() > FLAT_STD or rng.random() < FLAT_KEPT:
                break
        if tile is None:
            raise ValueError(
                f"photographs: all are smaller than patches of {side} pixels; add larger ones, or "
                "lower --patch where there is one"
            )
        return tile

    def batch(
        self, size: int, rng: np.random.Generator, augmented: bool = True, side: int | None = None
    ) -> Tensor:
        """Draw [size, C, P, P] float32 in [-1, 1]; ``side``: P, see ``crop``."""
        tiles = []
        for _ in range(size):
            tile = self.crop(rng, side).astype(np.float32) / 255
            tiles.append(augment(tile, rng) if augmented else tile)
        x = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
        if self.channels == 1:
            x = torch.from_numpy(np.stack([self._gray(t, rng, augmented) for t in tiles]))[:, None]
        return x * 2 - 1

    @staticmethod
    def _gray(tile: np.ndarray, rng: np.random.Generator, augmented: bool) -> np.ndarray:
        gray = np.ascontiguousarray(tile @ LUMA)
        return thermal(gray, rng) if augmented and rng.random() < THERMAL else gray


def augment(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn, mirror, soften and recolor a tile [P, P, 3] in [0, 1]; some stand on black ground."""
    tile = np.rot90(tile, int(rng.integers(4)))
    if rng.random() < 0.5:
        tile = tile[:, ::-1]
    if rng.random() < 0.12:
        tile = enlarge(tile, rng.uniform(1.3, 3.0), rng)
    kind = rng.random()
    if kind < 0.35:
        tile = np.repeat((tile @ LUMA)[..., None], 3, axis=2)
    elif kind < 0.5:
        tile = np.repeat(tile[..., rng.integers(3), None], 3, axis=2)
    elif kind < 0.55:
        tile = tile[..., rng.permutation(3)]
    if rng.random() < 0.15:
        tile = 1 - tile
    if rng.random() < 0.35:
        tile = tile ** np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    if rng.random() < 0.06:
        tile = tile * black_ground(len(tile), rng)[..., None]
    return np.ascontiguousarray(tile, dtype=np.float32)


def thermal(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a gray tile [P, P] in [0, 1] look thermal: soft, of low contrast, partly inverted.

    Surfaces have temperatures of their own: what is bright to the eye may be cold. So a smooth,
    random part of the tile is inverted; then come the blur of a germanium lens, a gamma, and the
    narrow range that a scene fills.
    """
    if rng.random() < 0.5:
        coarse = rng.standard_normal((3, 3)).astype(np.float32)
        field = cv2.resize(coarse, tile.shape[::-1], interpolation=cv2.INTER_CUBIC)
        share = 0.5 + 0.5 * np.tanh(field * rng.uniform(2, 20))
        tile = share * tile + (1 - share) * (1 - tile)
    if rng.random() < 0.6:
        tile = cv2.GaussianBlur(tile, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.5:
        tile = tile.clip(0, 1) ** np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    if rng.random() < 0.6:
        contrast = rng.uniform(0.15, 0.9)
        tile = contrast * tile + rng.uniform(0, 1 - contrast)
    return tile.astype(np.float32).clip(0, 1)


def enlarge(tile: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Enlarge a part of the tile to its size: as soft as thermal and medical images are."""
    side = len(tile)
    part = max(2, round(side / factor))
    top, left = rng.integers(side - part + 1, size=2)
    small = np.ascontiguousarray(tile[top : top + part, left : left + part])
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def black_ground(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a mask [side, side], 1 inside a large ellipse, 0 outside, its edge a few pixels."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    center, radii = rng.uniform(-0.2, 1.2, 2), rng.uniform(0.4, 1.0, 2)
    distance = np.hypot((rows - center[0]) / radii[0], (columns - center[1]) / radii[1])
    edge = rng.uniform(1, 4) / side / radii.mean()
    return np.clip((1 - distance) / edge + 0.5, 0, 1).astype(np.float32)
