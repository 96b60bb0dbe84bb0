"""Tars of pairs as webdataset names their members, made by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, *shape: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, shape or (24, 32), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PAIRS = [(png(n), png(n + 50, 24, 32, 3)) for n in range(3)]


def packed(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members(pairs=PAIRS) -> list[tuple[str, bytes]]:
    found = []
    for n, (ir, vis) in enumerate(pairs):
        meta = json.dumps({"n": n}).encode()
        found += [(f"a/{n}.ir.png", ir), (f"a/{n}.json", meta), (f"a/{n}.vis.png", vis)]
    return found


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}
