"""Small data sets, fusers and what a batch left behind, for the tests of batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from analytic import tanh_prior

from ddfm_fast import Fuser
from ddfm_fast.datasets.batch import STAGING, run_batch
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.writing import write_image

SETTINGS = {"steps": 2, "device": "cpu"}
NEEDS_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def picture(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    """Draw a ramp with some texture, so that the result is not constant."""
    noise = np.random.default_rng(seed).random(shape)
    ramp = np.linspace(0.1, 0.8, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return ((ramp + 0.2 * noise) * np.iinfo(dtype).max).astype(dtype)


def add_pair(root: Path, name: str, size=(16, 24), seed: int = 0, dtype=np.uint8) -> None:
    folder, _, stem = name.rpartition("/")
    write_image(root / folder / "ir" / f"{stem}.png", picture(seed, *size, dtype=dtype))
    write_image(root / folder / "vi" / f"{stem}.png", picture(seed + 100, *size, 3, dtype=dtype))


def five_pairs(root: Path) -> Path:
    """Make five pairs in two parts, of two sizes that take turns; the names are ``ALL``."""
    for n, name in enumerate(("test/a", "test/b", "test/c", "train/a", "train/b")):
        add_pair(root, name, (16, 24) if n % 2 == 0 else (20, 20), seed=n)
    return root


class CountingPrior:
    """The analytic prior; notes the batch of each evaluation and refuses what it is told to."""

    multiple = 1
    has_variance = False

    def __init__(self, refuse=lambda x: None):
        self.shapes: list[tuple[int, ...]] = []
        self.refuse = refuse

    def __call__(self, x, t):
        self.shapes.append((len(x), *x.shape[2:]))
        error = self.refuse(x)
        if error is not None:
            raise error
        return tanh_prior(x, t)


def make_fuser(prior=tanh_prior, **settings) -> Fuser:
    return Fuser(prior=prior, **{**SETTINGS, **settings})


def run(data: Path, out: Path, prior=tanh_prior, *, settings=None, **options):
    items = find_pairs(data, check_sizes=False)
    return run_batch(items, out, make_fuser(prior, **(settings or {})), **options)


def states(report) -> dict[str, str]:
    return {result.name: result.status for result in report.results}


def names(report, status: str) -> set[str]:
    return {name for name, found in states(report).items() if found == status}


def pictures(out: Path) -> dict[str, tuple]:
    """Return, by output name, what tells a file from one that was written again."""
    found = {}
    for path in out.rglob("*.png"):
        if STAGING not in path.parts:
            stat = path.stat()
            found[path.relative_to(out).with_suffix("").as_posix()] = (
                stat.st_ino,
                stat.st_mtime_ns,
                path.read_bytes(),
            )
    return found


def lines(out: Path, *, torn: bool = False) -> list[dict]:
    """Read the history; ``torn`` allows for a last line that a kill cut off."""
    found = (out / HISTORY_FILE).read_text().split("\n")
    assert torn or found[-1] == ""
    return [json.loads(line) for line in found[:-1]]


ALL = {"test/a", "test/b", "test/c", "train/a", "train/b"}
