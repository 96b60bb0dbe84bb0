"""Print how well shifts and maps are found, on warps of the pairs beside the checkout.

    python tests/tools/align_table.py HALF [MODEL]... [--warps N] [--shared FOLDER]
    python tests/tools/align_table.py limits

HALF is "judging", or "tuning", on which the thresholds of `ddfm_fast.align` were chosen; pairs of
each kind take turns by name. Two kinds of pairs:

real    Pairs of two sensors. Few are aligned to the pixel, so the truth is the warp after the map
        that is found for the pair as it is, if that map is sure; else it is the warp alone.
made    Photographs beside a made second sensor: a smooth function of their colors that is not
        monotonic, blurred and noisy, mixed with that of another photograph, which only the second
        sensor sees. Exact. With a share of 1 there is nothing to find.

Corners move by up to 5 % of the sides, shifts are up to 20 pixels. "limits" tries what is known to
be hard: blur that leaves little texture, and things that are nearer than the rest.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ddfm_fast.align import check, estimate

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "ddfm_fast" / "assets"
WRONG = {"shift": 2.0, "affine": 4.0, "homography": 4.0}
"""pixels of median error above which a sure answer is wrong"""
HALVES = "tuning", "judging"
SHARES = 0.5, 0.7, 0.85, 1.0
"""shares of what only the second sensor sees, in made pairs"""
SIDE = 480


class Named(NamedTuple):
    """A pair, infrared first."""

    name: str
    ir: np.ndarray
    vis: np.ndarray


def half(pairs: list, which: str) -> list:
    """Return every second one."""
    return pairs[HALVES.index(which) :: 2]


def real(shared: Path, which: str) -> list[Named]:
    """Return the real pairs of a half; each kind is divided by itself."""
    ivf = sorted((shared / "data" / "ivf" / "ir").iterdir())
    kinds = [
        [(f.stem, f, f.parent.parent / "vi" / f.name) for f in ivf if f.stem.startswith(start)]
        for start in ("FLIR", "TNO")
    ]
    for folder in sorted((shared / "data" / "mif").iterdir()):
        first = folder.name.removeprefix("MRI_")
        kinds.append(
            [
                (f"{folder.name}_{f.stem}", f, folder / "MRI" / f.name)
                for f in sorted((folder / first).iterdir())
            ]
        )
    demo = shared / "demo"
    kinds.append(
        [
            ("brain", demo / "brain_mri_t1.png", demo / "brain_mri_pd.png"),
            ("satellite", ASSETS / "sentinel2_nir.png", ASSETS / "sentinel2_visible.png"),
        ]
    )
    for folder in sorted((shared / "data" / "video").iterdir()):  # of one scene: one half has it
        first = min((folder / "ir").iterdir())
        kinds.append([None, (f"video {folder.name}", first, folder / "vi" / first.name)])
    chosen = [one for kind in kinds for one in half(kind, which) if one is not None]
    return [Named(name, *map(gray, two)) for name, *two in chosen]


def gray(path: Path) -> np.ndarray:
    """Read a picture as uint8 [H, W]."""
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def colors(path: Path) -> np.ndarray:
    """Read a photograph as float32 [H, W, 3] in [0, 1], of at most 480 pixels per side."""
    image = cv2.imread(str(path))
    k = SIDE / max(image.shape)
    return cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_AREA).astype("f4") / 255


def sensed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what another sensor might make of colors: float32 [H, W], mean 0, deviation 1."""
    turn = rng.normal(0, 2.5, (3, 3)).astype(np.float32)
    seen = np.cos(image @ turn + rng.uniform(0, 6.28, 3).astype(np.float32)).mean(-1)
    seen = cv2.GaussianBlur(seen, (0, 0), 2)
    return (seen - seen.mean()) / (seen.std() + 1e-6)


def photographs(shared: Path, which: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name and colors of each photograph of a half, and those of another, of its size."""
    files = half(sorted((shared / "photos").glob("*.jpg")), which)
    found = []
    for n, file in enumerate(files):
        image, other = colors(file), colors(files[(n + 5) % len(files)])
        found.append((file.stem, image, cv2.resize(other, image.shape[1::-1])))
    return found


def made(shared: Path, which: str) -> Iterator[Named]:
    """Yield the made pairs of a half."""
    for name, image, other in photographs(shared, which):
        for share in SHARES:
            rng = np.random.default_rng(zlib.crc32(f"{name} {share}".encode()))
            ir = (1 - share) * sensed(image, rng) + share * sensed(other, rng)
            yield Named(f"{name} {share}", counts(ir, rng), luma(image))


def counts(plane: np.ndarray, rng: np.random.Generator, noise: float = 5) -> np.ndarray:
    """Return a plane as uint8 with noise."""
    plane = plane / (plane.std() + 1e-9) * 45 + 110
    return (plane + rng.normal(0, noise, plane.shape)).clip(0, 255).astype(np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    """Return the luma of colors as uint8 [H, W]."""
    return cv2.cvtColor((image * 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)


def warp(model: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a map [3, 3] from a place in the visible picture to the infrared one."""
    if model == "shift":
        x, y = rng.uniform(-20, 20, 2)
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    there = (corners + rng.uniform(-0.05, 0.05, (4, 2)) * [width, height]).astype(np.float32)
    if model == "affine":
        return np.vstack([cv2.getAffineTransform(corners[:3], there[:3]), [0, 0, 1]])
    return cv2.getPerspectiveTransform(corners, there)


def moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return a picture whose place p comes to lie at ``matrix`` p."""
    return cv2.warpPerspective(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REFLECT)


def error(a: np.ndarray, b: np.ndarray, size: tuple[int, ...], part: slice = slice(None)) -> float:
    """Return the median pixels between two maps of a picture's places; ``part``: of 9 rows."""
    height, width = size
    y, x = np.mgrid[0.1 * height : 0.9 * height : 9j, 0.1 * width : 0.9 * width : 9j][:, part]
    at = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    p, q = (m @ at for m in (a, b))
    return float(np.median(np.hypot(*(p[:2] / p[2] - q[:2] / q[2]))))


def measure(pair: Named, model: str, warps: int, own: np.ndarray) -> list[tuple[float, float]]:
    """Return two errors per sure answer: with the map of the pair as it is, and without it."""
    size = pair.vis.shape
    rng = np.random.default_rng(zlib.crc32(f"{pair.name} {model}".encode()))
    errors = []
    for _ in range(warps):
        true = warp(model, rng, *size)
        found = estimate(moved(pair.ir, true), pair.vis, model)
        if found.sure:
            two = (error(found.matrix, t, size) for t in (true @ own, true))
            errors.append(tuple(two))
    return errors


def table(model: str, pairs: list[Named], warps: int) -> list[tuple[float, float]]:
    """Print a row for each real pair; return all errors."""
    print("| pair | as it comes, pixels | sure | median error | largest | against the warp alone |")
    print("|---|---|---|---|---|---|", flush=True)
    every = []
    for pair in pairs:
        rest = estimate(pair.ir, pair.vis, model)
        errors = measure(pair, model, warps, rest.matrix if rest.sure else np.eye(3))
        size = pair.vis.shape
        comes = f"{error(rest.matrix, np.eye(3), size):.1f}" if rest.sure else "not sure"
        mine, plain = zip(*errors, strict=True) if errors else ((), ())
        shown = (
            f"{np.median(mine):.2f} | {max(mine):.2f} | {np.median(plain):.2f}" if mine else "||"
        )
        print(f"| {pair.name} | {comes} | {len(mine)} of {warps} | {shown} |", flush=True)
        every += errors
    return every


def summary(kind: str, model: str, errors: list[tuple[float, float]], tried: int) -> None:
    """Print the results of a kind of pairs."""
    if not errors:
        print(f"\n{kind}: sure 0 of {tried}.", flush=True)
        return
    best = [two[0] for two in errors]
    wrong = sum(min(two) > WRONG[model] for two in errors)
    print(
        f"\n{kind}: sure {len(errors)} of {tried}; median error {np.median(best):.2f} pixels, 95 % "
        f"below {np.percentile(best, 95):.2f}; wrong (over {WRONG[model]:g} pixels) {wrong}.",
        flush=True,
    )


def limits(shared: Path) -> None:
    """Print the effects of little texture and of near things."""
    photos = photographs(shared, "judging")[::2]
    print("| made pairs | shift: sure | median error | wrong | homography: sure | error | wrong |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for sigma in (0, 4, 8, 12):
        cells = []
        for model in ("shift", "homography"):
            found = []
            for name, image, _ in photos:
                rng = np.random.default_rng(zlib.crc32(f"{name} {sigma}".encode()))
                blur = cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image
                pair = Named(name, counts(sensed(blur, rng), rng), luma(blur))
                found += [mine for mine, _ in measure(pair, model, 1, np.eye(3))]
            cells += said(found, len(photos), model)
        print(f"| blurred by {sigma} pixels | {' | '.join(cells)} |", flush=True)
    for near in (3, 6, 12):
        cells = []
        for model in ("shift", "homography"):
            found = []
            for name, image, _ in photos:
                rng = np.random.default_rng(zlib.crc32(f"{name} near {near}".encode()))
                far = sensed(image, rng)
                shifted = moved(far, np.array([[1, 0, near], [0, 1, 0], [0, 0, 1.0]]))
                rows = np.arange(len(far))[:, None] > 0.5 * len(far)
                ir = counts(np.where(rows, shifted, far), rng)
                got = estimate(ir, luma(image), model)
                if got.sure:  # errors of the upper half, which is far and not moved
                    found.append(error(got.matrix, np.eye(3), far.shape, slice(0, 5)))
            cells += [*said(found, len(photos), model)[:2], "–"]  # a map fits one of two depths
        print(f"| lower half {near} pixels nearer | {' | '.join(cells)} |", flush=True)


def said(errors: list[float], tried: int, model: str) -> list[str]:
    """Return the cells of a row."""
    wrong = str(sum(one > WRONG[model] for one in errors))
    return [f"{len(errors)} of {tried}", f"{np.median(errors):.2f}" if errors else "", wrong]


def unlike(pairs: list[Named]) -> None:
    """Print how often `check` is sure of pictures of two places."""
    found = [
        check(cv2.resize(one.ir, other.vis.shape[::-1]), other.vis).sure
        for one in pairs
        for other in pairs
        if one.name[:6] != other.name[:6]
        or (one.name != other.name and one.name.startswith(("FLIR", "TNO")))
    ]
    print(f"\nPairs of different places that `check` is sure of: {sum(found)} of {len(found)}.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("half", choices=(*HALVES, "limits"))
    parser.add_argument("models", nargs="*", default=list(WRONG))
    parser.add_argument("--warps", type=int, default=6)
    parser.add_argument("--shared", type=Path)
    given = parser.parse_args()
    shared = given.shared or Path(os.environ.get("DDFM_FAST_SHARED") or ROOT.parent / "shared")
    if given.half == "limits":
        limits(shared)
        return
    pairs = real(shared, given.half)
    for model in given.models:
        print(f"\n## {model}, {given.half} half\n")
        summary("Real pairs", model, table(model, pairs, given.warps), given.warps * len(pairs))
        errors: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        tried = {True: 0, False: 0}
        for pair in made(shared, given.half):
            nothing = pair.name.endswith(" 1.0")
            errors[nothing] += measure(pair, model, 1 if model != "shift" else 3, np.eye(3))
            tried[nothing] += 1 if model != "shift" else 3
        summary("Made pairs", model, errors[False], tried[False])
        summary("Made pairs with nothing in common", model, errors[True], tried[True])
    unlike(pairs)


if __name__ == "__main__":
    main()
