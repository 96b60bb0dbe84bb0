"""How results are written: metadata, ranges, depth, a second page; by jobs, batches, commands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import texture
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.jobs import fuse_files
from ddfm_fast.datasets.output import Output
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.depth import Levels
from ddfm_fast.files.writing import CHROMAS, write_image

SIZE = 48, 64
CELSIUS = (texture(*SIZE, 1) / 255.0 * 80 - 20).astype(np.float32)
COUNTS = (7000 + texture(*SIZE, 1).astype(np.uint16) * 8).astype(np.uint16)
VISIBLE = texture(*SIZE, 2, 3)
QUIET = Levels({"ir": "data"})


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(preset="instant")


@pytest.fixture
def said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if w.category is DDFMWarning]


def pair(root: Path, name: str = "a", ir: np.ndarray = CELSIUS) -> tuple[Path, Path]:
    """Write an infrared TIFF that knows its place, and a visible JPEG as a camera writes it."""
    (root / "ir").mkdir(parents=True, exist_ok=True)
    (root / "vi").mkdir(exist_ok=True)
    infrared, visible = root / "ir" / f"{name}.tif", root / "vi" / f"{name}.jpg"
    exif, place = Image.Exif(), ImageFileDirectory_v2()
    exif[271], exif[272] = "Maker", f"Model {name}"
    Image.fromarray(VISIBLE).save(visible, exif=exif, dpi=(200, 200), quality=95)
    cv2.imwrite(str(infrared), ir)
    place[42113], place[34853] = "-9999", {1: "S"}
    with Image.open(infrared) as image:
        image.save(infrared, tiffinfo=place, compression="raw")
    return infrared, visible


def fused(paths: tuple[Path, Path], out: Path, fuser: Fuser, levels: Levels = QUIET, **how):
    """Fuse two files; return the picture and the report."""
    (report,) = fuse_files(*paths, out, fuser, levels=levels, output=Output(**how))
    assert report["ok"], report["error"]
    return cv2.imread(str(out), cv2.IMREAD_UNCHANGED), report


def pages(path: Path) -> int:
    return cv2.imcount(str(path))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


# Metadata


def test_a_result_has_the_visible_metadata_and_of_the_infrared_what_that_lacks(tmp_path, fuser):
    paths = pair(tmp_path)
    for suffix in (".png", ".tif"):
        with_it, _ = fused(paths, tmp_path / f"o{suffix}", fuser)
        without, _ = fused(paths, tmp_path / f"n{suffix}", fuser, metadata=False)
        np.testing.assert_array_equal(with_it, without)
        exif = opened(tmp_path / f"o{suffix}").getexif()
        assert (exif[271], exif[272]) == ("Maker", "Model a")
        assert exif.get_ifd(34853)[1] == "S"
        assert not {271, 305} & set(opened(tmp_path / f"n{suffix}").getexif())
        assert b"ddfm_fast" not in (tmp_path / f"n{suffix}").read_bytes()
    assert np.allclose(opened(tmp_path / "o.png").info["dpi"], 200, atol=0.02)


def test_a_place_on_the_earth_is_kept_from_either_source(tmp_path, fuser):
    place = ImageFileDirectory_v2()
    place[33550], place[34735] = (0.5, 0.5, 0.0), (1, 1, 0, 1, 1024, 0, 1, 1)
    place[33922] = (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)
    place.tagtype.update({33550: 12, 33922: 12, 34735: 3})
    Image.fromarray(texture(*SIZE, 1)).save(tmp_path / "geo.tif", tiffinfo=place)
    Image.fromarray(texture(*SIZE, 2)).save(tmp_path / "plain.png")
    both = tmp_path / "geo.tif", tmp_path / "plain.png"
    cropping = Fuser(preset="official-script", steps=2)
    for n, (paths, by) in enumerate([(both, fuser), (both[::-1], fuser), (both, cropping)]):
        fused(paths, tmp_path / f"{n}.tif", by, Levels())
        tags = opened(tmp_path / f"{n}.tif").tag_v2
        assert all(tags[tag] == place[tag] for tag in place)


def test_the_infrared_metadata_come_first_where_color_does(tmp_path, fuser):
    infrared, visible = pair(tmp_path, ir=texture(*SIZE, 1))
    exif = Image.Exif()
    exif[272] = "Infrared model"
    with Image.open(infrared) as image:
        image.convert("RGB").save(tmp_path / "ir.jpg", exif=exif)
    paths = tmp_path / "ir.jpg", visible
    for color, model in (("ir", "Infrared model"), (True, "Model a"), (False, "Model a")):
        fused(paths, tmp_path / "o.png", fuser.with_options(color=color))
        assert opened(tmp_path / "o.png").getexif()[272] == model
    with Image.open(visible) as image:
        image.convert("L").save(tmp_path / "gray.jpg", exif=image.getexif())
    # metadata follow the colors, which only the infrared source has here
    fused((tmp_path / "ir.jpg", tmp_path / "gray.jpg"), tmp_path / "o.png", fuser)
    assert opened(tmp_path / "o.png").getexif()[272] == "Infrared model"


def test_metadata_that_are_broken_fail_nothing(tmp_path, fuser, said):
    paths = pair(tmp_path)
    data = paths[1].read_bytes().replace(b"Exif\0\0MM\0*", b"Exif\0\0MMxx")
    paths[1].write_bytes(data)
    _, report = fused(paths, tmp_path / "o.png", fuser)
    assert report["ok"] and len(said()) == 1
    assert said()[0].startswith("a.tif with a.jpg: a.jpg: its EXIF is damaged")
    assert b"ddfm_fast" in (tmp_path / "o.png").read_bytes()


def test_batches_keep_metadata_and_say_of_damage_once(tmp_path, fuser, said):
    for name in "abc":
        _, visible = pair(tmp_path / "set", name, texture(*SIZE, 1))
        if name != "a":
            broken = visible.read_bytes().replace(b"Exif\0\0MM\0*", b"Exif\0\0MMxx")
            visible.write_bytes(broken)
    report = run_batch(find_pairs(tmp_path / "set"), tmp_path / "out", fuser)
    assert report.ok and len(said()) == 1
    assert opened(tmp_path / "out" / "a.png").getexif()[272] == "Model a"
    assert [result.range for result in report.results] == [[0, 255]] * 3
    # results are skipped unless they are to be written in another way
    again = run_batch(find_pairs(tmp_path / "set"), tmp_path / "out", fuser)
    assert again.count("skipped") == 3 and again.results[0].range == [0, 255]
    more = Output(metadata=False)
    assert run_batch(find_pairs(tmp_path / "set"), tmp_path / "out", fuser, output=more).count(
        "done"
    )
    assert 272 not in opened(tmp_path / "out" / "a.png").getexif()


# Depth


def test_sixteen_bits_become_eight_with_a_word(tmp_path, fuser, said):
    paths = pair(tmp_path, ir=COUNTS)
    deep, report = fused(paths, tmp_path / "o.png", fuser)
    assert deep.dtype == np.uint16 and report["range"] == [0, 65535] and not said()
    for suffix in (".jpg", ".bmp"):
        shallow, report = fused(paths, tmp_path / f"o{suffix}", fuser, chroma=None)
        assert shallow.dtype == np.uint8 and (report["dtype"], report["range"]) == (
            "uint8",
            [0, 255],
        )
    np.testing.assert_array_equal(shallow, np.rint(deep / 257.0))
    assert len(said()) == 2 and ".png and .tif (--format) keep them" in said()[0]


# Ranges


def test_degrees(tmp_path, fuser):
    paths = pair(tmp_path)
    usual, _ = fused(paths, tmp_path / "u.tif", fuser)
    found, report = fused(paths, tmp_path / "o.tif", fuser, out_range="ir")
    low, high = float(CELSIUS.min()), float(CELSIUS.max())
    assert found.dtype == np.float32 and report["dtype"] == "float32"
    assert report["range"] == [low, high]
    np.testing.assert_allclose(found, low + usual / 65535.0 * (high - low), atol=1e-4)
    tags = opened_tags(tmp_path / "o.tif")
    assert set(tags["SMinSampleValue"]) == {np.float32(low)}
    assert set(tags["SMaxSampleValue"]) == {np.float32(high)}
    assert tags["GDAL_NODATA"] == "-9999"  # a value that none of its pixels has
    assert "GDAL_NODATA" not in opened_tags(tmp_path / "u.tif")
    with_gaps = Levels({"ir": (-30, 70)})
    _, report = fused(paths, tmp_path / "o.tif", fuser, with_gaps, out_range="ir")
    assert report["range"] == [-30, 70]


def opened_tags(path: Path) -> dict[str, object]:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(path) as file:
        return {tag.name: tag.value for tag in file.pages[0].tags}


def test_counts(tmp_path, fuser):
    paths = pair(tmp_path, ir=COUNTS)
    usual, _ = fused(paths, tmp_path / "u.png", fuser)
    low, high = int(COUNTS.min()), int(COUNTS.max())
    for suffix in (".png", ".tif"):
        found, report = fused(paths, tmp_path / f"o{suffix}", fuser, out_range="ir")
        assert found.dtype == np.uint16 and report["range"] == [low, high]
        assert (found == np.rint(low + usual / 65535.0 * (high - low))).all()
    assert opened(tmp_path / "o.png").text["Value range"] == f"black {low}, white {high}"
    assert "Value range" not in opened(tmp_path / "u.png").text


def test_the_visible_range_is_eight_bits(tmp_path, fuser):
    paths = pair(tmp_path, ir=COUNTS)
    usual, _ = fused(paths, tmp_path / "u.png", fuser)
    found, report = fused(paths, tmp_path / "o.jpg", fuser, out_range="vis", quality=100)
    assert report["range"] == [0, 255] and np.abs(found - usual / 257.0).max() < 40
    found, _ = fused(paths, tmp_path / "o.png", fuser, out_range="vis")
    np.testing.assert_array_equal(found, np.rint(usual / 257.0))


@pytest.mark.parametrize(
    ("limits", "dtype"),
    [
        ((16, 235), "uint8"),
        ((0, 255), "uint8"),
        ((7000, 9000), "uint16"),
        ((0, 65535), "uint16"),
        ((0, 1), "float32"),
        ((-20, 60), "float32"),
        ((0.5, 500), "float32"),
        ((0, 70000), "float32"),
    ],
)
def test_ranges_that_are_given(tmp_path, fuser, limits, dtype):
    paths = pair(tmp_path, ir=texture(*SIZE, 1))
    usual, _ = fused(paths, tmp_path / "u.tif", fuser, Levels())
    found, report = fused(paths, tmp_path / "o.tif", fuser, Levels(), out_range=limits)
    assert found.dtype == dtype == report["dtype"] and report["range"] == [*limits]
    expected = limits[0] + usual / 255.0 * (limits[1] - limits[0])
    np.testing.assert_allclose(found, expected, atol=5e-3 if dtype == "float32" else 0.5)


def test_ranges_that_a_format_does_not_hold(tmp_path, fuser):
    paths = pair(tmp_path)
    (report,) = fuse_files(
        *paths, tmp_path / "o.png", fuser, levels=QUIET, output=Output(out_range="ir")
    )
    assert not report["ok"]
    for part in ("out_range", "-20 to 60", "float32", ".png", ".tif", "--out-range full"):
        assert part in report["error"]
    with pytest.raises(ValueError, match=r"out_range: values from 7000 .*uint16, which \.jpg"):
        fuse_files(*paths, tmp_path / "o.jpg", fuser, output=Output(out_range=(7000, 9000)))
    assert not list(tmp_path.glob("o.*"))


# A second page


@pytest.mark.parametrize("ir", [CELSIUS, COUNTS, texture(*SIZE, 1), COUNTS.astype(np.int32) - 9000])
def test_the_infrared_stays_as_a_second_page(tmp_path, fuser, ir):
    tifffile = pytest.importorskip("tifffile")
    paths = pair(tmp_path, ir=ir)
    usual, _ = fused(paths, tmp_path / "u.tif", fuser)
    fused(paths, tmp_path / "o.tif", fuser, keep_thermal=True, compression="none")
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        first, second = file.pages
        np.testing.assert_array_equal(first.asarray()[..., ::-1], usual)
        np.testing.assert_array_equal(second.asarray(), ir)
        assert second.asarray().dtype == ir.dtype
        assert second.tags["PageName"].value == "infrared"
        assert first.tags["Model"].value == "Model a"
    fused(paths, tmp_path / "o.tif", fuser, keep_thermal=True)
    with Image.open(tmp_path / "o.tif") as image:
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(image), ir)


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("float32", -9999, "-9999"), ("float32", np.nan, "nan"), ("int16", -32768, "-32768"),
        ("uint16", 0, "0"), ("float32", 0.1, "0.10000000000000001"),
    ],
)  # fmt: skip
def test_the_second_page_says_which_value_means_nothing(tmp_path, fuser, dtype, value, text):
    tifffile = pytest.importorskip("tifffile")
    values = COUNTS.astype(dtype)
    values[10:14, 10:14] = value
    paths = pair(tmp_path, ir=values)
    levels = Levels({"ir": (0, 65535), "vis": "dtype"}, {"ir": value})
    how = {"keep_thermal": True, "compression": "none"}
    fused(paths, tmp_path / "o.tif", fuser, levels=levels, **how)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        first, second = file.pages
        assert second.tags["GDAL_NODATA"].value == text and "GDAL_NODATA" not in first.tags
        np.testing.assert_array_equal(second.asarray(), values)
    fused(pair(tmp_path, ir=COUNTS), tmp_path / "p.tif", fuser, levels=QUIET, keep_thermal=True)
    with tifffile.TiffFile(tmp_path / "p.tif") as file:
        assert not any("GDAL_NODATA" in page.tags for page in file.pages)


def test_a_second_page_of_a_cropped_result_is_cropped_too(tmp_path, fuser):
    size = 75, 101
    cv2.imwrite(str(tmp_path / "ir.tif"), counts := np.arange(7575, dtype=np.uint16).reshape(size))
    write_image(tmp_path / "vis.png", texture(*size, 2, 3))
    paths = tmp_path / "ir.tif", tmp_path / "vis.png"
    cropping = Fuser(preset="official-script", steps=2)
    fused(paths, tmp_path / "o.tif", cropping, keep_thermal=True)
    with Image.open(tmp_path / "o.tif") as image:
        assert image.size == (96, 64)
        image.seek(1)
        np.testing.assert_array_equal(np.asarray(image), counts[:64, :96])


def test_batches_write_two_pages(tmp_path, fuser):
    for name in "ab":
        pair(tmp_path / "set", name, COUNTS)
    items, how = find_pairs(tmp_path / "set"), Output(keep_thermal=True, compression="deflate")
    report = run_batch(items, tmp_path / "out", fuser, format="tif", levels=QUIET, output=how)
    assert report.ok
    for name in "ab":
        assert pages(tmp_path / "out" / f"{name}.tif") == 2
    with pytest.raises(ValueError, match=r"keep_thermal: \.png holds one picture.*--format tif"):
        run_batch(items, tmp_path / "png", fuser, output=Output(keep_thermal=True))
    assert not (tmp_path / "png").exists()


# Options


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"quality": 0}, ValueError, "quality: got 0, expected an int from 1 to 100"),
        ({"quality": 80.0}, ValueError, "quality"),
        ({"chroma": "411"}, ValueError, "chroma: got '411', expected one of 444, 422, 420"),
        ({"compression": "jpeg"}, ValueError, "compression: got 'jpeg', expected one of none, lzw"),
        ({"compression": 10}, ValueError, "compression: got 10"),
        ({"compression": True}, ValueError, "compression: got True"),
        ({"out_range": "infrared"}, ValueError, "out_range: got 'infrared', expected .*full, ir"),
        ({"out_range": "12"}, ValueError, "out_range"),
        ({"out_range": (5, 5)}, ValueError, r"out_range: got \(5, 5\)"),
        ({"out_range": (0, float("inf"))}, ValueError, "out_range"),
        ({"out_range": None}, ValueError, "out_range"),
        ({"metadata": "no"}, TypeError, "metadata: got 'no', expected True or False"),
        ({"keep_thermal": 1}, TypeError, "keep_thermal"),
    ],
)
def test_options_are_checked(how, error, match):
    with pytest.raises(error, match=match):
        Output(**how)


def test_options_of_other_formats(said):
    with pytest.raises(ValueError, match=r"compression: got 5, expected one of none.*for \.tif"):
        Output(compression=5).check([".TIF"])
    with pytest.raises(ValueError, match=r"compression: got 'lzw', expected 0 to 9 for \.png"):
        Output(compression="lzw").check([".tif", ".png"])
    Output(quality=80, chroma="420").check([".jpg", ".png"])
    Output(compression=3).check([])
    assert not said()
    Output(quality=80, chroma="420").check([".png"])
    Output(compression=3).check([".jpeg"])
    assert [text.partition(" ")[0] for text in said()] == [
        "quality=80",
        "chroma=420",
        "compression=3",
    ]


def test_compression_changes_the_size_alone(tmp_path):
    picture = np.repeat(texture(*SIZE, 2, 3), 4, 1)
    sizes = {}
    for name in ("none", "lzw", "deflate"):
        write_image(tmp_path / f"{name}.tif", picture, compression=name)
        assert (
            opened(tmp_path / f"{name}.tif").tag_v2[259]
            == {"none": 1, "lzw": 5, "deflate": 8}[name]
        )
        sizes[name] = (tmp_path / f"{name}.tif").stat().st_size
    assert sizes["deflate"] < sizes["lzw"] < sizes["none"]
    for level in (0, 9):
        write_image(tmp_path / f"{level}.png", picture, compression=level)
        np.testing.assert_array_equal(np.asarray(opened(tmp_path / f"{level}.png")), picture)
        sizes[level] = (tmp_path / f"{level}.png").stat().st_size
    assert sizes[9] < sizes[0]


def test_quality_and_chroma_of_jpeg(tmp_path):
    sampling = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}
    for chroma in CHROMAS:
        write_image(tmp_path / "o.jpg", VISIBLE, quality=60, chroma=chroma)
        image = Image.open(tmp_path / "o.jpg")
        assert image.layer[0][1:3] == sampling[chroma]
    write_image(tmp_path / "better.jpg", VISIBLE, quality=95)
    assert Image.open(tmp_path / "better.jpg").layer[0][1:3] == (1, 1)
    assert (tmp_path / "better.jpg").stat().st_size > (tmp_path / "o.jpg").stat().st_size


# Commands


def command(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_fuse_as_a_command(tmp_path):
    paths = pair(tmp_path)
    how = ("--preset", "instant", "--json", "--ir-range", "-20,60")
    out = tmp_path / "o.tif"
    written = ("--out-range", "ir", "--keep-thermal", "--compression", "deflate")
    result = command("fuse", *paths, "-o", out, *how, *written)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["results"]
    assert report["range"] == [-20, 60] and report["dtype"] == "float32"
    assert pages(out) == 2 and opened_tags(out)["Compression"] == 8
    result = command("fuse", *paths, "-o", tmp_path / "o.jpg", *how, "--out-range", "16,235",
                     "--quality", "70", "--chroma", "420", "--no-metadata")  # fmt: skip
    assert result.exit_code == 0, result.output
    image = Image.open(tmp_path / "o.jpg")
    assert image.info["comment"] == b"Value range: black 16, white 235"
    assert image.layer[0][1:3] == (2, 2) and not image.getexif()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--out-range", "hot"], ["--out-range is 'hot'", "full, ir, vis"]),
        (["--out-range", "9,7"], ["--out-range"]),
        (["--compression", "zip"], ["compression: got 'zip'", "deflate"]),
        (["--keep-thermal"], ["keep_thermal", "--format tif"]),
        (["--quality", "101"], ["--quality"]),
        (["--chroma", "411"], ["--chroma"]),
    ],
)
def test_bad_words(tmp_path, words, parts):
    paths = pair(tmp_path)
    result = command("fuse", *paths, "-o", tmp_path / "o.png", "--preset", "instant", *words)
    assert result.exit_code == 2 and all(part in result.output for part in parts)
    assert not (tmp_path / "o.png").exists()


def test_batch_as_a_command(tmp_path):
    for name in "ab":
        pair(tmp_path / "set", name, COUNTS)
    result = command(
        "batch", tmp_path / "set", "-o", tmp_path / "out", "--preset", "instant", "--json",
        "--out-range", "ir", "--compression", "9", "--no-metadata",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [one["range"] for one in report["results"]] == [[COUNTS.min(), COUNTS.max()]] * 2
    assert report["settings"]["out_range"] == "ir" and report["settings"]["compression"] == 9
    history = (tmp_path / "out" / "ddfm_fast_batch.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["range"] == [COUNTS.min(), COUNTS.max()]
