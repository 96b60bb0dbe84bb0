"""Print nanoseconds per pixel of each stage of `instant`, from uint8 arrays to an array.

    python tests/tools/pixel_budget.py [ROUNDS]

Times are the processor's on one thread, the median of all rounds, over 40 million pixels at least.
The sources are gray infrared and color visible, enlarged from the demo pair. A stage's time is
without that of a stage inside it, and "between" is what no stage counts.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import cv2
import torch

from ddfm_fast import api
from ddfm_fast.align.call import Aligner
from ddfm_fast.datasets.demo import asset
from ddfm_fast.images.pair import Pair
from ddfm_fast.method import Diffusion
from ddfm_fast.restore.sources import SourceModel
from ddfm_fast.runtime.pixels import NativePixels

SIZES = (640, 480), (1280, 960), (3840, 2160)
STAGES = {
    "containers, ranges, what the images are": (api, "read_pair"),
    "whether they show the same place": (Aligner, "raws"),
    "integers to lumas": (NativePixels, "read"),
    "looking for noise and defects": (SourceModel, "__call__"),
    "closed form": (Diffusion, "__call__"),
    "limits of the stretch": (NativePixels, "limits"),
    "chroma: choice and noise": (api.Fuser, "_colored"),
    "luma and chroma to integers": (Pair, "give_back"),
    "between": (api.Fuser, "_fuse_pairs"),
    "checks": (api.Fuser, "__call__"),
}


class Clock:
    """Measures functions without the others that they call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.inside = [0.0]

    def timed(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*arguments, **options):
            self.inside.append(0.0)
            begun = time.thread_time()
            result = function(*arguments, **options)
            seconds = time.thread_time() - begun
            self.spent[name] += seconds - self.inside.pop()
            self.inside[-1] += seconds
            return result

        return run


def measured(size: tuple[int, int], rounds: int) -> list[dict[str, float]]:
    """Return the nanoseconds per pixel of each stage, in each round."""
    ir, vis = (cv2.resize(asset(f"sentinel2_{n}.png"), size) for n in ("nir", "visible"))
    fuser, pixels, found = api.Fuser(preset="instant"), size[0] * size[1], []
    fuser(ir, vis)
    for _ in range(max(rounds, 40_000_000 // pixels)):
        clock = Clock()
        patches = [
            mock.patch.object(owner, name, clock.timed(stage, getattr(owner, name)))
            for stage, (owner, name) in STAGES.items()
        ]
        for patch in patches:
            patch.start()
        fuser(ir, vis)
        for patch in patches:
            patch.stop()
        found.append({stage: 1e9 * clock.spent[stage] / pixels for stage in STAGES})
    return found


def main(rounds: str = "7") -> None:
    torch.set_num_threads(1)
    columns = [measured(size, int(rounds)) for size in SIZES]
    print("| stage | " + " | ".join(f"{w}x{h}" for w, h in SIZES) + " |\n|---|---|---|---|")
    for stage in STAGES:
        cells = [statistics.median(one[stage] for one in found) for found in columns]
        print(f"| {stage} | " + " | ".join(f"{ns:.2f}" for ns in cells) + " |")
    totals = [statistics.median(sum(one.values()) for one in found) for found in columns]
    print("| in all | " + " | ".join(f"{ns:.1f}" for ns in totals) + " |")
    times = [1e-6 * ns * w * h for ns, (w, h) in zip(totals, SIZES, strict=True)]
    print("| in all, ms | " + " | ".join(f"{ms:.1f}" for ms in times) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
