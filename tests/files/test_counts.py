"""Tables of temperatures and bare counts."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from image_bytes import random_array
from PIL import Image

from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image, read_picture
from ddfm_fast.images.doubts import DDFMWarning

RANDOM = np.random.default_rng(0)
CELSIUS = np.round(RANDOM.normal(20, 9, (24, 32)), 2)
GRADIENT = (7000 + np.add.outer(40 * np.arange(24), 9 * np.arange(32))).astype(np.uint16)


@pytest.fixture
def save(tmp_path):
    def save_(data: bytes | str, name: str = "a.csv", coding: str = "utf-8"):
        data = data.encode(coding) if isinstance(data, str) else data
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return save_


def table(between: str = ";", point: str = ".", values=CELSIUS, end: str = "", unit: str = ""):
    rows = [between.join(f"{v:.2f}{unit}".replace(".", point) for v in row) for row in values]
    return "\n".join(row + end for row in rows) + "\n"


FORMS = {
    "semicolons and commas": table(";", ","),
    "semicolons": table(";"),
    "semicolons at the end": table(";", ",", end=";"),
    "commas": table(","),
    "commas at the end": table(",", end=","),
    "commas and blanks": table(", "),
    "tabs": table("\t"),
    "tabs and commas": table("\t", ","),
    "blanks": table("  "),
    "quotes": '"' + table('";"', ",", end='"').strip().replace("\n", '\n"'),
    "units": table(";", unit=" °C"),
    "units without degree": table(",", unit="C"),
    "carriage returns": table(";").replace("\n", "\r\n"),
    "a head": "File;IR_0001.jpg\nEmissivity;0.95\nReflected;20.0;C\n\nFrame 1\n" + table(";"),
    "a head of numbers": "0.95;20.0\n1;2;3\n\n" + table(";", ",") + "\nmax;31.5\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_tables_come_back_exactly(save, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_image(save(FORMS[name]))
    assert back.dtype == np.float64
    np.testing.assert_array_equal(back, CELSIUS)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "latin-1"])
def test_codings(save, coding):
    back = read_image(save("Größe;32x24\n" + table(";", ",", unit="°C"), coding=coding))
    np.testing.assert_array_equal(back, CELSIUS)


@pytest.mark.parametrize("start", [0, 1])
def test_counters_are_left_out(save, start):
    lines = table(";", ",").splitlines()
    head = ";" + ";".join(str(n + start) for n in range(32))
    text = head + "\n" + "\n".join(f"{n + start};{line}" for n, line in enumerate(lines))
    with pytest.warns(DDFMWarning) as told:
        back = read_image(save(text))
    assert sorted(str(w.message)[-46:] for w in told)[0].endswith(
        "only numbers the others and is left out"
    )
    np.testing.assert_array_equal(back, CELSIUS)


def test_whole_numbers_stay_whole(save):
    for values, dtype in ((GRADIENT, "uint16"), (GRADIENT.astype(int) - 8000, "int32")):
        text = "\n".join(",".join(map(str, row)) for row in values)
        back = read_image(save(text))
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, values)


def test_empty_cells_are_no_data(save):
    lines = table(";").splitlines()
    cells = lines[3].split(";")
    cells[5] = ""
    lines[3] = ";".join(cells)
    found = read_picture(save("\n".join(lines)))
    assert np.isnan(found.nodata) and np.isnan(found.values).sum() == 1
    assert np.isnan(found.values[3, 5])


def test_rows_that_a_broken_one_cuts_off_are_told(save):
    rows = [",".join(str(100 * y + x) for x in range(6)) for y in range(12)]
    rows[3] = rows[3].rpartition(",")[0]
    path = save("\n".join(rows).encode(), "cut.csv")
    with pytest.warns(DDFMWarning, match=r"cut\.csv: 3 rows that are as long as .* are left out"):
        assert read_image(path).shape == (8, 6)


def test_several_tables(save):
    with pytest.warns(DDFMWarning, match="holds 2 tables of 24 rows; the first is used"):
        back = read_image(save(table(";") + "\nFrame 2\n" + table(";", values=CELSIUS + 1)))
    np.testing.assert_array_equal(back, CELSIUS)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("name,label\na.png,3\nb.png,4\n", "holds no table of numbers; expected an image"),
        ("1;2;3\n4;5;6\n", "holds no table of numbers"),
        ("\n".join("12.5" for _ in range(40)), "holds no table of numbers"),
        (b"\0\1\2;3" * 90, "zero bytes where text is expected"),
        (b"\xff\xfe\x00", "a.csv"),
    ],
)
def test_other_texts_are_refused(save, data, match):
    with pytest.raises(ImageFileError, match=match):
        read_image(save(data))


def test_tables_keep_the_limit(save):
    with pytest.raises(ImageFileError, match="768 pixels, more than the limit of 700"):
        read_image(save(table(";")), max_pixels=700)
    with pytest.raises(ImageFileError, match="more than 10 numbers take"):
        read_image(save(table(";")), max_pixels=10)


def test_text_under_another_name_stays_refused(save):
    with pytest.raises(ImageFileError, match="not a PNG, JPEG, TIFF or BMP image"):
        read_image(save(table(";"), "a.png"))


def test_bare_counts(save):
    path = save(GRADIENT.astype("<u2").tobytes(), "a.y16")
    back = read_image(path, raw_size=(32, 24))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, GRADIENT)
    eight = random_array((24, 32))
    np.testing.assert_array_equal(
        read_image(save(eight.tobytes(), "a.raw"), raw_size=(32, 24)), eight
    )


def test_bare_counts_of_the_other_order_and_of_frames(save):
    with pytest.warns(DDFMWarning, match="are read high byte first, judging by neighboring pixels"):
        back = read_image(save(GRADIENT.astype(">u2").tobytes(), "a.raw"), raw_size=(32, 24))
    np.testing.assert_array_equal(back, GRADIENT)
    with pytest.warns(DDFMWarning, match="holds 3 pictures; the first is used"):
        back = read_image(save(GRADIENT.tobytes() * 3, "a.raw"), raw_size=(32, 24))
    np.testing.assert_array_equal(back, GRADIENT)


def test_bare_counts_of_no_or_another_size(save):
    path = save(GRADIENT.tobytes(), "a.y16")
    with pytest.raises(ImageFileError, match=r"a\.y16: raw numbers have no size; .*--raw-size WxH"):
        read_image(path)
    with pytest.raises(ImageFileError, match="1536 bytes, expected 1538 for 769x1"):
        read_image(path, raw_size=(769, 1))
    with pytest.raises(ImageFileError, match="more than the limit"):
        read_image(path, raw_size=(10**6, 10**6))


@pytest.mark.parametrize(
    ("size", "error"),
    [((32,), TypeError), ("32x24", TypeError), ((32.0, 24), TypeError), ((True, 24), TypeError),
     ((0, 24), ValueError), ((32, -1), ValueError)],
)  # fmt: skip
def test_raw_size_is_checked(save, size, error):
    with pytest.raises(error, match="raw_size: got"):
        read_image(save(b"x", "a.raw"), raw_size=size)


def test_pairs_of_bare_counts_and_a_picture(save, tmp_path):
    ir = save(GRADIENT.tobytes(), "a.raw")
    vis = tmp_path / "vis.png"
    Image.fromarray(random_array((24, 32, 3))).save(vis)
    with pytest.warns(DDFMWarning, match="ir: values are 7000 to"):
        found = read_sources(ir, vis, Levels(raw_size=(32, 24)))
    assert found.ir.min() == 0 and found.ir.max() == 65535 and found.vis.shape == (24, 32, 3)
    assert Levels(raw_size=(32, 24)).to_dict() == {"raw_size": (32, 24)}


# Raw files of cameras


def dng(path, mosaic) -> None:
    """Write a DNG of an RGGB sensor whose color matrix is that of sRGB's primaries."""
    tifffile = pytest.importorskip("tifffile")
    xyz_to_srgb = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)
    matrix = tuple(n for v in xyz_to_srgb for n in (round(v * 10000), 10000))
    tags = [
        (33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes((0, 1, 1, 2)), True),
        (50706, 1, 4, bytes((1, 4, 0, 0)), True), (50708, 2, 0, "made here", True),
        (50717, 4, 1, 65535, True), (50714, 4, 1, 0, True), (50721, 10, 9, matrix, True),
        (50728, 5, 3, (1, 1, 1, 1, 1, 1), True), (50778, 3, 1, 21, True),
    ]  # fmt: skip
    tifffile.imwrite(path, mosaic, photometric=32803, extratags=tags, metadata=None)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["a.dng", "a.tif"])
def test_raw_files_are_developed(tmp_path, name):
    """A flat gray of linear light becomes sRGB's value of it; there are no edges to interpolate."""
    pytest.importorskip("rawpy")
    for light in (0.1, 0.4):
        dng(tmp_path / name, np.full((64, 96), round(light * 65535), np.uint16))
        back = read_image(tmp_path / name)
        assert back.dtype == np.uint16 and back.shape == (64, 96, 3)
        wanted = 65535 * (1.055 * light ** (1 / 2.4) - 0.055)
        assert np.abs(back[8:-8, 8:-8] - wanted).max() <= 0.02 * 65535
    with pytest.raises(ImageFileError, match="more than the limit"):
        read_image(tmp_path / name, max_pixels=2000)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-2000])
    with pytest.raises(ImageFileError):
        read_image(tmp_path / name)


def test_raw_files_without_the_extra(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(
        ImageFileError, match=r"a\.nef: a raw file of a camera needs rawpy.*export it as TIFF or J"
    ):
        read_image(save(b"II*\0" + bytes(200), "a.nef"))
