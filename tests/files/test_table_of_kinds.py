"""Every row of the table of kinds in ``docs/inputs.md``: what it says is what happens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from clips import texture
from PIL import Image
from reading_time import measured
from test_profiles import P3, SRGB_CURVE, expected, icc
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning, Fuser, fuse
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.depth import Levels
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ddfm_fast" / "docs" / "inputs.md"
SIZE = 96, 128
IR, VIS = texture(*SIZE, 1), texture(*SIZE, 2, 3)
FUSER = Fuser(preset="instant")


class Seen(NamedTuple):
    """What became of a kind."""

    said: str
    """a pattern of the one warning, or of the error; empty if there is neither"""
    right: bool


KINDS: dict[str, Callable[[Path], Seen] | str] = {}
"""a function, or the test of another module that holds the row: "file::name" """


def kind(name: str):
    def add(function):
        KINDS[name] = function
        return function

    return add


def fused(folder: Path, ir, vis=VIS, levels: Levels | None = None, **options) -> np.ndarray:
    """Return the result of two files in 8-bit units; arrays are written to fitting files first."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, source in (("ir", ir), ("vis", vis)):
        if isinstance(source, np.ndarray):
            deep = source.dtype not in (np.uint8, np.uint16)
            path = folder / f"{name}{'.tiff' if deep else '.png'}"
            if deep:
                Image.fromarray(source).save(path)
            else:
                write_image(path, source)
            source = path
        paths.append(source)
    fuser = FUSER.with_options(**options) if options else FUSER
    (report,) = fuse_files(*paths, folder / "o.png", fuser, levels=levels)
    if not report["ok"]:
        raise ValueError(report["error"])
    image = read_image(folder / "o.png")
    return image / (257 if image.dtype == np.uint16 else 1)


def near(a: np.ndarray, b: np.ndarray, levels: float = 2, apart: int = 0) -> bool:
    """Return whether at most ``apart`` pixels differ by more than ``levels``."""
    far = np.abs(a.astype(float) - b) > levels
    return int((far.any(-1) if far.ndim == 3 else far).sum()) <= apart


def like_8_bits(folder: Path, ir: np.ndarray, apart: int = 0, **more) -> bool:
    return near(fused(folder / "a", ir, **more), fused(folder / "b", IR), apart=apart)


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether pictures in color are the same except for a stretch."""
    a, b = (np.asarray(x, float) @ [0.299, 0.587, 0.114] for x in (a, b))
    return bool(np.isfinite(a).all() and np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.995)


def celsius() -> np.ndarray:
    return (IR / 255 * 80 - 20).astype(np.float32)


@kind("16-bit counts of a thermal camera, 7000 to 9040")
def _(folder):
    return Seen("7000 to 9040.*--ir-range", like_8_bits(folder, IR.astype(np.uint16) * 8 + 7000))


@kind("float32 of degrees, -20 to 60")
def _(folder):
    return Seen("-20 to 60.*--ir-range", like_8_bits(folder, celsius()))


@kind("signed counts, -500 to 2050")
def _(folder):
    image = IR.astype(np.int32) * 10 - 500
    return Seen("-500 to 2050.*--ir-range", like_8_bits(folder, image))


@kind("degrees with a pixel of -9999")
def _(folder):
    image = celsius()
    image[40, 50] = -9999
    return Seen("-20 to 60.*-9999.*nodata", like_8_bits(folder, image, apart=64))


@kind("degrees with a pixel of -9999 and `--nodata`")
def _(folder):
    image = celsius()
    image[40, 50] = -9999
    levels = Levels({"ir": (-20, 60)}, {"ir": -9999})
    found = fused(folder / "c", image, levels=levels)
    shown = near(found[40, 50], VIS[40, 50])
    return Seen("", shown and like_8_bits(folder, image, apart=64, levels=levels))


@kind("infrared shifted by (6, -4) pixels")
def _(folder):
    scene = texture(140, 170, 3)
    warm = np.rint(255 * (scene / 255) ** 1.5).astype(np.uint8)
    vis, ir = np.dstack([scene[20:116, 20:148]] * 3), warm[24:120, 14:142]
    moved = fused(folder / "a", ir, vis, align="shift")
    ghosts = fused(folder / "b", ir, vis)
    inside = slice(12, -12), slice(12, -12)
    wanted = fused(folder / "c", warm[20:116, 20:148], vis, align="off")
    better = np.abs(moved - wanted)[inside].mean() < 0.4 * np.abs(ghosts - wanted)[inside].mean()
    return Seen(r"\(\+6, -4\).*--align shift", better)


@kind("infrared of half the size")
def _(folder):
    with pytest.raises(ValueError, match="equal size") as error:
        fused(folder / "a", np.ascontiguousarray(IR[::2, ::2]))
    return Seen("", "--resize" in str(error.value) and "--align" in str(error.value))


@kind("a drone's folder, `DJI_0001_T.JPG` beside `DJI_0001_V.JPG`")
def _(folder):
    for n in (1, 2):
        for mark, image in (("T", IR), ("V", VIS)):
            write_image(folder / "TV" / f"DJI_000{n}_{mark}.JPG", image)
    arguments = ["batch", str(folder / "TV"), "-o", str(folder / "o"), "--preset", "instant"]
    found = CliRunner().invoke(app, arguments)
    names = [item.name for item in find_pairs(folder / "TV")]
    right = found.exit_code == 0 and "2 fused" in found.output
    return Seen("", right and names == ["DJI_0001", "DJI_0002"])


@kind("stems that differ in case")
def _(folder):
    write_image(folder / "ir" / "A.JPG", IR)
    write_image(folder / "vi" / "a.png", VIS)
    (report,) = fuse_files(folder / "ir", folder / "vi", folder / "o", FUSER)
    return Seen("", report["ok"])


@kind("a visible picture that is half transparent")
def _(folder):
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:, :64] = 0
    Image.fromarray(np.dstack([VIS, alpha])).save(folder / "alpha.png")
    found = fused(folder / "a", IR, folder / "alpha.png")
    return Seen("transparent.*alpha is dropped", near(found, fused(folder / "b", IR), 0))


@kind("12-bit values in 16 bits, 0 to 4080, with an 8-bit picture")
def _(folder):
    return Seen("0 to 4080.*--ir-range", like_8_bits(folder, IR.astype(np.uint16) * 16))


@kind("int16 of -1024 to 3071, its range given")
def _(folder):
    image = np.rint(IR / 255 * 4095 - 1024).astype(np.int16)
    image.flat[:2] = -1024, 3071
    found = fuse(image, VIS, preset="instant", value_range={"ir": (-1024, 3071)})
    return Seen("", near(found, fused(folder / "b", IR), apart=64))


@kind("a visible picture in Display P3")
def _(folder):
    Image.fromarray(VIS).save(folder / "p3.png", icc_profile=icc(P3, SRGB_CURVE))
    colors = np.rint(expected(VIS, P3, SRGB_CURVE)).astype(np.uint8)
    found = fused(folder / "a", IR, folder / "p3.png")
    return Seen("", near(found, fused(folder / "b", IR, colors), 3))


@kind("Adobe's CMYK JPEG")
def _(folder):
    Image.fromarray(VIS).convert("CMYK").save(folder / "c.jpg", quality=98)
    return Seen("", near(read_image(folder / "c.jpg"), VIS, 40, apart=200))


@kind("infrared that is black everywhere")
def _(folder):
    return Seen("ir is black everywhere", alike(fused(folder / "a", np.zeros(SIZE, np.uint8)), VIS))


@kind("the same picture as infrared and visible")
def _(folder):
    return Seen("the same picture", alike(fused(folder / "a", VIS), VIS))


@kind("five pairs in two orders, one by one and in batches, after a larger pair")
def _(folder):
    pairs = [(texture(64, 80, n), texture(64, 80, 20 + n, 3)) for n in range(5)]
    larger = texture(96, 128, 9), texture(96, 128, 29, 3)
    alone = [FUSER(*pair) for pair in pairs]
    fuser = Fuser(preset="instant", batch_size=4)
    fuser(*larger)
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        found = fuser([pairs[n][0] for n in order], [pairs[n][1] for n in order])
        if any((alone[n] != image).any() for n, image in zip(order, found, strict=True)):
            return Seen("", False)
    return Seen("", True)


KINDS |= {
    "an interlaced clip": "video/test_video_kinds.py::test_interlaced_frames_lose_their_combs",
    "interlaced frames that are not marked as such":
        "video/test_video_combs.py::test_a_clip_that_no_frame_marks_is_told_of_once_and_can_be_mended",
    "a clip of full range (yuvj420p)":
        "video/test_video_kinds.py::test_the_ends_of_a_full_range_ramp_stay",
    "a 16-bit clip whose range drifts":
        "video/test_video_ranges.py::test_a_drift_in_a_16_bit_video_does_not_flicker",
    "a damaged clip with a rate of 1/42949673": "video/test_video_kinds.py::test_damaged_rate",
    "a video with `-o -`":
        "video/test_video_streams.py::test_standard_output_is_a_video_and_nothing_else",
    "a camera given by its number": "video/test_video_live.py::test_a_camera_that_is_not_there",
}  # fmt: skip


def rows() -> dict[str, str]:
    """Return the kinds of the page's table, and what it states about each."""
    text = PAGE.read_text(encoding="utf-8").partition("## Unusual inputs that are tested")[2]
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: row[2] for row in cells[1:] if set(row[0]) != {"-"}}


def test_the_page_has_every_kind():
    assert list(rows()) == list(KINDS)


@pytest.mark.parametrize("name", [n for n, how in KINDS.items() if callable(how)])
def test_a_kind(name, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = KINDS[name](tmp_path)
    assert seen.right
    said = [str(w.message) for w in caught if w.category is DDFMWarning]
    told = rows()[name]
    assert bool(seen.said) == told.startswith("a warning"), told
    assert len(set(said)) == bool(seen.said), said
    assert not seen.said or re.search(seen.said, said[0]), said


@pytest.mark.parametrize("name", [n for n, how in KINDS.items() if isinstance(how, str)])
def test_a_kind_that_another_module_tries(name):
    file, _, function = KINDS[name].partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_reading_and_checking_take_little_time():
    """A guard of the times that the page states, wide enough for a busy machine."""
    found = measured(tries=5)
    assert set(found) == {"8 bits", "16-bit counts"}
    for decoding, beyond in found.values():
        assert decoding < 0.5 and beyond < 0.1
