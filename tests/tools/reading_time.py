"""How long a pair of 640x480 files takes to be read and checked, beyond decoding it.

    python tests/tools/reading_time.py

Decoding is OpenCV's alone. Checking is what a fusion does before it computes: what the files say,
the ranges, one depth, what is unlikely, luma and color. Alignment is not included. The time is the
processor's, so that a busy machine counts for little.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import process_time

import cv2
import numpy as np
from clips import texture

from ddfm_fast import Fuser
from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.writing import write_image

SIZE = 480, 640


def measured(tries: int = 30) -> dict[str, tuple[float, float]]:
    """Return (seconds to decode, seconds beyond it) of kinds of infrared with 8 bits in color."""
    fuser = Fuser(preset="instant")
    gray = texture(*SIZE, 1)
    kinds = {"8 bits": gray, "16-bit counts": gray.astype(np.uint16) * 8 + 7000}
    found = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vis = write_image(Path(folder) / "vis.png", texture(*SIZE, 2, 3))
        for name, image in kinds.items():
            ir = write_image(Path(folder) / "ir.png", image)

            def decode(ir: Path = ir) -> None:
                for path in (ir, vis):
                    cv2.imread(str(path), cv2.IMREAD_UNCHANGED)

            def read(ir: Path = ir) -> None:
                pair = read_sources(ir, vis, Levels())
                fuser.read(pair.ir, pair.vis, value_range="dtype")

            decoding = _best(decode, tries)
            found[name] = decoding, _best(read, tries) - decoding
    return found


def _best(what: Callable[[], None], tries: int) -> float:
    times = []
    for _ in range(tries):
        begun = process_time()
        what()
        times.append(process_time() - begun)
    return min(times)


if __name__ == "__main__":
    for kind, (decoding, beyond) in measured().items():
        print(f"{kind}: {decoding * 1e3:.1f} ms decoding, {beyond * 1e3:.1f} ms beyond it")
