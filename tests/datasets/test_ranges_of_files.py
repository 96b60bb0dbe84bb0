"""What files' values mean: alone, in batches, over a data set, when scored, and in a video."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import texture
from conftest import shared
from PIL import Image

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.window import over_dataset
from ddfm_fast.files.depth import Levels, read_sources, sources
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.metrics.evaluation import MethodPictures, evaluate, read_lumas
from ddfm_fast.video.fitting import Fit
from ddfm_fast.video.frames import Frame
from ddfm_fast.video.pairing import FramePair
from ddfm_fast.video.sources import ArraySource

SIZE = 48, 64
PICTURE = texture(*SIZE, 1)


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(preset="instant")


@pytest.fixture
def said():
    """Collect the warnings of what runs inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def counts(low: int, step: int, picture: np.ndarray = PICTURE) -> np.ndarray:
    return low + picture.astype(np.uint16) * step


def folders(root: Path, infrared: list[np.ndarray]) -> list:
    """Write a data set of these infrared pictures and 8-bit color ones; return its pairs."""
    for n, image in enumerate(infrared):
        write_image(root / "ir" / f"{n}.png", image)
        write_image(root / "vi" / f"{n}.png", texture(*SIZE, 50 + n, 3))
    return find_pairs(root)


def fused(out: Path, ir: Path, vis: Path, fuser: Fuser, levels: Levels | None = None) -> np.ndarray:
    """Fuse two files; return the result in 8-bit units."""
    (report,) = fuse_files(ir, vis, out, fuser, levels=levels)
    assert report["ok"], report["error"]
    image = read_image(out)
    return image / (257 if image.dtype == np.uint16 else 1)


# The inputs that failed once


@pytest.mark.parametrize(
    ("name", "window", "levels", "off"),
    [
        ("ir_counts.png", "7000 to 9000", None, 0),
        ("ir_float.tiff", "-20 to 60", None, 0),
        ("ir_int32.tiff", "-500 to 2050", None, 0),
        ("ir_nodata.tiff", "-20 to 60.*-9999", None, 1),
        ("ir_nodata.tiff", "-20 to 60", Levels(nodata={"ir": -9999}), 1),
        ("ir_counts.png", None, Levels({"ir": (7000, 9000)}), 0),
        ("ir_float.tiff", None, Levels({"ir": (-20, 60)}), 0),
        ("ir_int32.tiff", None, Levels({"ir": "data"}), 0),
    ],
)
def test_a_source_in_other_units_gives_the_picture_of_eight_bits(
    tmp_path, fuser, said, name, window, levels, off
):
    case, vis = shared(f"cases/{name}"), shared("cases/vis.png")
    infrared = read_image(shared("cases/ir.png")).astype(float)
    low, high = infrared.min(), infrared.max()
    stretched = np.rint((infrared - low) / (high - low) * 255).astype(np.uint8)
    write_image(tmp_path / "ir.png", stretched)
    expected = fused(tmp_path / "expected.png", tmp_path / "ir.png", vis, fuser)
    assert not said
    found = fused(tmp_path / "found.png", case, vis, fuser, levels)
    far = (np.abs(found - expected) > 2).any(-1)
    # the one pixel without data, and its neighbors, which a pyramid reaches
    assert far.sum() <= 64 * off
    texts = [str(w.message) for w in said if w.category is DDFMWarning]
    assert len(texts) == (window is not None)
    if window:
        assert texts[0].startswith(f"{name} with vis.png: ir: ") and "--ir-range" in texts[0]
        assert all(part in texts[0] for part in window.split(".*"))


# Files


def test_results_of_deep_files_are_deep_and_use_all_of_16_bits(tmp_path, fuser):
    write_image(tmp_path / "ir.png", counts(7000, 8))
    cv2.imwrite(str(tmp_path / "vis.tiff"), counts(100, 3, texture(*SIZE, 2)).astype(np.float32))
    with pytest.warns(DDFMWarning) as said:
        fuse_files(tmp_path / "ir.png", tmp_path / "vis.tiff", tmp_path / "o.png", fuser)
    texts = [str(w.message).removeprefix("ir.png with vis.tiff: ") for w in said]
    assert {text[:4] for text in texts} == {"ir: ", "vis:"}
    result = read_image(tmp_path / "o.png")
    assert result.dtype == np.uint16 and result.max() > 50000


def test_eight_bit_files_stay_as_they_were(tmp_path, fuser, said):
    """They give the bytes of a call with arrays, without a warning."""
    vis = texture(*SIZE, 2, 3)
    write_image(tmp_path / "ir.png", PICTURE)
    write_image(tmp_path / "vis.png", vis)
    fuse_files(tmp_path / "ir.png", tmp_path / "vis.png", tmp_path / "o.png", fuser)
    np.testing.assert_array_equal(read_image(tmp_path / "o.png"), fuser(PICTURE, vis))
    assert not said


def test_a_range_that_was_asked_for_is_not_found_again(tmp_path, fuser, said):
    """What --ir-range leaves dark stays dark, and nothing else warns about the range."""
    write_image(tmp_path / "ir.png", counts(7000, 8))
    write_image(tmp_path / "vis.png", texture(*SIZE, 2, 3))
    paths = tmp_path / "ir.png", tmp_path / "vis.png"
    seen = []
    spy = fuser.with_options()
    spy.read = lambda ir, vis, **given: seen.append(given) or fuser.read(ir, vis, **given)
    for n, setting in enumerate(["dtype", (0, 65535)]):
        fuse_files(*paths, tmp_path / f"{n}.png", spy, levels=Levels({"ir": setting}))
    assert len(seen) == 2 and not said
    assert all(given["value_range"] == "dtype" for given in seen)
    a, b = (read_image(tmp_path / f"{n}.png") for n in range(2))
    np.testing.assert_array_equal(a, b)


def test_values_beyond_a_range_are_clipped():
    levels = Levels({"ir": (7100, 8000)})
    ir = sources(counts(7000, 8), PICTURE, levels).ir
    assert ir.min() == 0 and ir.max() == 65535


def test_what_has_no_data_shows_the_other_file(tmp_path, fuser):
    image, vis = counts(7000, 8).astype(np.float32), texture(*SIZE, 2, 3)
    image[10:20, 20:30] = -9999
    cv2.imwrite(str(tmp_path / "ir.tiff"), image)
    write_image(tmp_path / "vis.png", vis)
    with pytest.warns(DDFMWarning, match="values are 7000 to 9040"):
        result = fused(
            tmp_path / "o.png",
            tmp_path / "ir.tiff",
            tmp_path / "vis.png",
            fuser,
            Levels(nodata={"ir": -9999}),
        )
    np.testing.assert_array_equal(result[10:20, 20:30], vis[10:20, 20:30])
    assert (np.abs(result - vis) > 20).any()


def test_nan_in_a_file_is_no_data_with_a_word(tmp_path):
    image = PICTURE.astype(np.float32) / 255
    image[3, 4] = np.nan
    cv2.imwrite(str(tmp_path / "ir.tiff"), image)
    write_image(tmp_path / "vis.png", PICTURE)
    paths = tmp_path / "ir.tiff", tmp_path / "vis.png"
    with pytest.warns(DDFMWarning, match="ir: the file says that nan means no data.*--nodata"):
        found = read_sources(*paths, Levels({"ir": "dtype"}))
    told = read_sources(*paths, Levels({"ir": "dtype"}, {"ir": float("nan")}))
    for one in (found, told):
        assert one.holes[0] is not None and one.holes[0].sum() == 1 and one.holes[0][3, 4]
    color = np.dstack([image] * 3)
    color[5, 6, 1] = np.nan
    cv2.imwrite(str(tmp_path / "vis.tiff"), color)
    np.save(tmp_path / "vis.npy", color)
    with pytest.warns(DDFMWarning, match="vis: the file says that nan means no data"):
        hole = read_sources(tmp_path / "vis.png", tmp_path / "vis.npy", Levels()).holes[1]
    assert sorted(zip(*np.nonzero(hole), strict=True)) == [(3, 4), (5, 6)]


def test_infinity_in_a_file_names_the_option():
    image = PICTURE.astype(np.float32) / 255
    image[3, 4] = np.inf
    with pytest.raises(ValueError, match=r"ir: 1 values .*infinite, such as inf; nodata=nan"):
        sources(image, PICTURE)
    assert sources(image, PICTURE, Levels(nodata={"ir": np.inf})).holes[0].sum() == 1


def test_all_of_a_file_without_data_is_refused():
    with pytest.raises(ValueError, match="ir: every pixel is nodata=7"):
        sources(np.full(SIZE, 7, np.uint8), PICTURE, Levels(nodata=7))


@pytest.mark.parametrize("value", [300.0, -300.0, 0.0])
def test_a_constant_file_of_floats_is_black(value, said):
    ir = sources(np.full(SIZE, value, np.float32), PICTURE).ir
    assert not ir.any() and not said


def test_one_bit_and_palettes_are_eight_bits(tmp_path, said):
    Image.fromarray(PICTURE > 100).save(tmp_path / "ir.png")
    Image.fromarray(PICTURE).convert("P").save(tmp_path / "vis.png")
    found = read_sources(tmp_path / "ir.png", tmp_path / "vis.png", Levels())
    assert found.ir.dtype == found.vis.dtype == np.uint8 and not said
    assert set(np.unique(found.ir)) == {0, 255}


# Batches, data sets, scores


def test_a_run_says_it_once_a_source(tmp_path, fuser, said):
    items = folders(tmp_path, [counts(7000 + 50 * n, 8, texture(*SIZE, n)) for n in range(4)])
    report = run_batch(items, tmp_path / "out", fuser)
    assert len(report.results) == 4 and all(r.status == "done" for r in report.results)
    texts = [str(w.message) for w in said if w.category is DDFMWarning]
    assert len(texts) == 1 and "ir: values are 70" in texts[0]
    fuse_files(tmp_path / "ir", tmp_path / "vi", tmp_path / "again", fuser)
    assert len(said) == 2  # another run warns again


def test_a_batch_gives_what_its_files_give_alone(tmp_path, fuser, said):
    items = folders(tmp_path, [counts(7000, 8), counts(3000, 4, texture(*SIZE, 9)), PICTURE])
    run_batch(items, tmp_path / "out", fuser, batch_size=3)
    for item in items:
        fuse_files(item.ir, item.vis, tmp_path / "alone.png", fuser)
        np.testing.assert_array_equal(
            read_image(tmp_path / "out" / f"{item.name}.png"), read_image(tmp_path / "alone.png")
        )


def test_one_range_for_a_data_set(tmp_path, said):
    items = folders(tmp_path, [counts(7000, 4), counts(8000, 8)])
    levels = over_dataset(items, Levels())
    assert levels.value_range == {"ir": (7000, 10040), "vis": "dtype"}
    a, b = (read_sources(item.ir, item.vis, levels) for item in items)
    assert a.ir.max() < b.ir.max() == 65535 and a.ir.min() == 0 < b.ir.min()
    assert not [w for w in said if w.category is DDFMWarning]


def test_a_range_that_is_given_holds_for_the_data_set(tmp_path):
    items = folders(tmp_path, [counts(7000, 4), counts(8000, 8)])
    given = {"ir": (0, 65535), "vis": "dtype"}
    assert over_dataset(items, Levels(given)).value_range == given


def test_a_data_set_with_a_picture_of_all_16_bits_takes_the_dtype(tmp_path):
    items = folders(tmp_path, [counts(7000, 4), counts(0, 257)])
    assert over_dataset(items, Levels()).value_range["ir"] == "dtype"


def test_scores_say_it_once_too(tmp_path, said):
    items = folders(tmp_path, [counts(7000 + 50 * n, 8, texture(*SIZE, n)) for n in range(3)])
    for item in items:
        write_image(tmp_path / "out" / f"{item.name}.png", read_image(item.vis))
    evaluate(items, [MethodPictures("copy", tmp_path / "out")], names=("SD",))
    (text,) = [str(w.message) for w in said if w.category is DDFMWarning]
    assert text.startswith("0: ir: values are 70")


def test_scores_see_what_was_fused(tmp_path):
    (item,) = folders(tmp_path, [counts(7000, 8)])
    with pytest.warns(DDFMWarning, match="7000 to 9040"):
        ir, _ = read_lumas(item)
    assert np.abs(ir.numpy() - PICTURE).max() < 0.01


# Video


@pytest.mark.parametrize(("ir_range", "most"), [(None, 65535), ("data", 65535), ("dtype", 9040)])
def test_a_video_keeps_near_the_range_of_its_first_frame(ir_range, most, said):
    frames = [counts(7000, 8), counts(7000, 4), counts(7500, 8)]
    streams = (ArraySource(many, name, Fraction(25)) for many, name in ((frames, "ir"), ([], "v")))
    fit = Fit(*streams, ir_range=ir_range)
    pairs = [
        FramePair(Frame(image, Fraction(n, 25), n), Frame(PICTURE, Fraction(n, 25), n))
        for n, image in enumerate(frames)
    ]
    first, darker, brighter = (fit(pair)[0] for pair in pairs)
    assert first.max() == most == min(brighter.max(), most) and darker.max() < most
    assert len(said) == (ir_range is None)
