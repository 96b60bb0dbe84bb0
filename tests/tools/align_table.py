"""Print how well shifts and maps are found, on warps of the pairs beside the checkout.

    python tests/tools/align_table.py [WARPS] [FOLDER] [MODEL]...

Truth is the warp after what the pair as it comes is given, as few of these pairs are aligned to the
pixel; where that is not sure, the warp alone. Corners move by up to 5 % of the sides, shifts are up
to 20 pixels. Pairs of different places must not be sure.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2
import numpy as np

from ddfm_fast.align import check, estimate

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "ddfm_fast" / "assets"
WRONG = {"shift": 2.0, "affine": 4.0, "homography": 4.0}
"""pixels of median error from which an answer that is sure is wrong"""


def pairs(shared: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The name, infrared and visible picture of each pair."""
    files = [
        (f.stem, f, f.parent.parent / "vi" / f.name)
        for f in sorted((shared / "data" / "ivf" / "ir").iterdir())
    ]
    for folder in sorted((shared / "data" / "mif").iterdir()):
        first = folder.name.removeprefix("MRI_")
        files += [
            (f"{folder.name}_{f.stem}", f, folder / "MRI" / f.name)
            for f in sorted((folder / first).iterdir())
        ]
    files.append(("satellite", ASSETS / "sentinel2_nir.png", ASSETS / "sentinel2_visible.png"))
    for folder in sorted((shared / "data" / "video").iterdir()):
        first = min((folder / "ir").iterdir())
        files.append((f"video {folder.name}", first, folder / "vi" / first.name))
    return [
        (name, *(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in two)) for name, *two in files
    ]


def warp(model: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A map [3, 3] from a place in the visible picture to the infrared one."""
    if model == "shift":
        x, y = rng.uniform(-20, 20, 2)
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    there = (corners + rng.uniform(-0.05, 0.05, (4, 2)) * [width, height]).astype(np.float32)
    if model == "affine":
        return np.vstack([cv2.getAffineTransform(corners[:3], there[:3]), [0, 0, 1]])
    return cv2.getPerspectiveTransform(corners, there)


def moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A picture whose place p comes to lie at ``matrix`` p."""
    return cv2.warpPerspective(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REFLECT)


def error(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> float:
    """Median pixels between where two maps send the places of a picture."""
    height, width = size
    y, x = np.mgrid[0.1 * height : 0.9 * height : 9j, 0.1 * width : 0.9 * width : 9j]
    at = np.stack([x.ravel(), y.ravel(), np.ones(81)])
    p, q = (m @ at for m in (a, b))
    return float(np.median(np.hypot(*(p[:2] / p[2] - q[:2] / q[2]))))


def measure(
    name: str, ir: np.ndarray, vis: np.ndarray, model: str, warps: int
) -> tuple[list[float], list[float], str]:
    """Errors of the answers that are sure, against both truths, and the pair's row."""
    size, rest = vis.shape, estimate(ir, vis, model)
    rng = np.random.default_rng(sum(map(ord, name)))
    own = rest.matrix if rest.sure else np.eye(3)
    errors, plain = [], []
    for _ in range(warps):
        true = warp(model, rng, *size)
        found = estimate(moved(ir, true), vis, model)
        if found.sure:
            errors.append(error(found.matrix, true @ own, size))
            plain.append(error(found.matrix, true, size))
    shown = (
        f"{np.median(errors):.2f} | {max(errors):.2f} | {np.median(plain):.2f}" if errors else "| |"
    )
    as_it_comes = f"{error(rest.matrix, np.eye(3), size):.1f}" if rest.sure else "not sure"
    return errors, plain, f"| {name} | {as_it_comes} | {len(errors)} of {warps} | {shown} |"


def main() -> None:
    warps = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    shared = os.environ.get("DDFM_FAST_SHARED") or ROOT.parent / "shared"
    found = pairs(Path(sys.argv[2] if len(sys.argv) > 2 else shared))
    for model, limit in WRONG.items():
        if len(sys.argv) > 3 and model not in sys.argv[3:]:
            continue
        print(
            f"\n## {model}\n\n| pair | as it comes, pixels | sure | median error | largest | "
            "against the warp alone |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        errors: list[float] = []
        wrong = 0
        for name, ir, vis in found:
            mine, plain, row = measure(name, ir, vis, model, warps)
            errors += mine
            wrong += sum(min(two) > limit for two in zip(mine, plain, strict=True))
            print(row, flush=True)
        print(
            f"\nMedian error of all that are sure {np.median(errors):.2f} pixels, 95 % below "
            f"{np.percentile(errors, 95):.2f}; sure {len(errors)} of {warps * len(found)}, of "
            f"which wrong by both truths (over {limit:g} pixels) {wrong}."
        )
    unlike = [
        check(cv2.resize(a, c.shape[::-1]), c).sure
        for n, (name, a, _) in enumerate(found)
        for other, _, c in (found[:n] + found[n + 1 :])
        if name[:6] != other[:6] or name.startswith(("FLIR", "TNO"))
    ]
    print(f"\nPairs of different places that `check` is sure of: {sum(unlike)} of {len(unlike)}.")


if __name__ == "__main__":
    main()
