"""A calibration from files: pairs of pictures, or two folders of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..files.depth import Levels, read_sources
from ..files.pairing import match_pairs
from ..files.paths import ImageFileError, is_folder
from ..files.reading import DEFAULT_MAX_PIXELS
from .calibration import Calibration, calibrate
from .call import plane
from .cameras import Camera


def calibrate_files(
    pictures: Sequence[Path],
    model: str,
    *,
    out: Path,
    kept: Sequence[Path] = (),
    cameras: tuple[Camera | None, Camera | None] = (None, None),
    levels: Levels | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Calibration:
    """Find the map between two cameras from files.

    Args:
        pictures: Infrared and visible files in turn, or a folder of each.
        model: As for :func:`.calibration.calibrate`.
        out: Where the calibration goes; it must not be a picture, which would be lost.
        kept: Other files that are read and must not be replaced.
        cameras: The infrared and the visible camera, if known.
        levels: What the values of the files mean; found from them by default.
        max_pixels: Most pixels of an input file.

    Raises:
        ValueError: The number of files is odd, a file cannot be read, or as in ``calibrate``.
    """
    pairs = _pairs(pictures)
    target = os.path.realpath(out)
    if out.suffix.lower() != ".json":
        raise ValueError(f"--out is {out}; expected a file ending in .json")
    if any(os.path.realpath(path) == target for path in itertools.chain(kept, *pairs)):
        raise ImageFileError(f"output {out} would replace an input; choose another --out")

    def planes() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for ir, vis in pairs:
            found = read_sources(ir, vis, levels or Levels(), max_pixels)
            yield str(ir), plane(found.ir), plane(found.vis)

    return calibrate(planes(), model, ir_camera=cameras[0], vis_camera=cameras[1])


def _pairs(pictures: Sequence[Path]) -> list[tuple[Path, Path]]:
    if len(pictures) % 2 or not pictures:
        raise ValueError(
            f"{len(pictures)} pictures are given; expected an infrared and a visible one, in turn"
        )
    if len(pictures) == 2 and all(is_folder(path) for path in pictures):
        return [(ir, vis) for _, ir, vis in match_pairs(pictures[0], pictures[1])]
    return list(zip(pictures[::2], pictures[1::2], strict=True))
