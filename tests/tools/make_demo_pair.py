"""Make the demo pair ``dune_*.png``: a photograph behind drawn smoke, and a synthetic infrared.

    python tests/tools/make_demo_pair.py extreme-desert-hike.jpg ddfm_fast/assets

The visible image is a part of the photograph (CC0) with smoke drawn over its walkers. The infrared
is drawn from the same part: walkers hot, sand by its slope to the sun, sky cold, smoke invisible,
then the blur and the noise (σ 12) of an uncooled sensor. No thermal camera was there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

TOP, LEFT, HEIGHT, WIDTH = 680, 330, 320, 480
SMOKE, NOISE, SEED = 0.97, 12.0, 5


def clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw smooth random structure of several scales in 0..1."""
    total = np.zeros((height, width), np.float32)
    for cells in (3, 6, 12, 24, 48):
        coarse = rng.standard_normal((cells, round(cells * width / height))).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.8
    return (total - total.min()) / np.ptp(total)


def walkers(luma: np.ndarray) -> np.ndarray:
    """Return where people are, softly: much darker than the sand around them."""
    around = cv2.medianBlur((luma * 255).astype(np.uint8), 61).astype(np.float32) / 255
    mask = ((around - luma) > 0.16).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 1), np.uint8))  # shadows lie flat
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    for index in range(1, count):
        _, _, w, h, area = stats[index]
        if area < 20 or w > 1.3 * h or h < 14:  # specks and shadows
            mask[labels == index] = 0
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)


def main(photo: Path, out: Path) -> None:
    """Write both images."""
    image = cv2.imread(str(photo))
    part = image[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH].astype(np.float32) / 255
    luma = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    rng = np.random.default_rng(SEED)
    people = walkers(luma)
    rows, columns = np.nonzero(people > 0.5)
    center = columns.mean(), rows.mean()
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    distance = np.hypot((x - center[0]) / (0.42 * WIDTH), (y - center[1]) / (0.4 * HEIGHT))
    thick = np.clip(0.8 + 0.6 * clouds(HEIGHT, WIDTH, rng), 0, 1)
    smoke = np.clip(np.clip(1.6 - 1.4 * distance, 0, 1) * thick, 0, SMOKE)[..., None]
    gray = 0.55 + 0.2 * clouds(HEIGHT, WIDTH, rng)[..., None]
    visible = part * (1 - smoke) + gray * smoke
    sky = cv2.GaussianBlur((part[..., 0] > part[..., 2]).astype(np.float32), (0, 0), 1)
    sand = 0.32 + 0.5 * (cv2.GaussianBlur(luma, (0, 0), 1.2) - luma.mean())
    infrared = np.clip(sand, 0.1, 0.6) * (1 - sky) + 0.06 * sky
    infrared = infrared * (1 - people) + 0.95 * people
    infrared = cv2.GaussianBlur(infrared, (0, 0), 0.7) + rng.normal(0, NOISE / 255, luma.shape)
    for name, plane in (("dune_visible.png", visible), ("dune_infrared.png", infrared)):
        cv2.imwrite(str(out / name), (plane.clip(0, 1) * 255).round().astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
