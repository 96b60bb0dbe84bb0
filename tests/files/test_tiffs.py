"""TIFF files of every kind of number and layout, and hostile ones."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import RANDOM, random_array, tiff, upright
from PIL import Image

from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image, read_picture
from ddfm_fast.images.doubts import DDFMWarning

NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8")
FIRST = 8
"""where the helper's strips begin"""


def values(dtype: str, shape=(40, 52)) -> np.ndarray:
    if dtype[0] == "f":
        return (RANDOM.normal(size=shape) * 900).astype(dtype)
    info = np.iinfo(dtype)
    return RANDOM.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def packed_tiff(array: np.ndarray, bits: int, order: str, compressed: bool) -> bytes:
    """Make a gray TIFF whose numbers of `bits` bits follow each other, the highest bit first."""
    rows = array.astype(">u4").view("u1").reshape(*array.shape, 4)
    rows = np.unpackbits(rows, axis=-1)[..., 32 - bits :].reshape(len(array), -1)
    strip = np.packbits(rows, axis=1).tobytes()
    strip = zlib.compress(strip) if compressed else strip
    fields = {256: array.shape[1], 257: array.shape[0], 258: bits, 259: 8 if compressed else 1,
              262: 1, 273: FIRST, 277: 1, 278: array.shape[0], 279: len(strip)}  # fmt: skip
    strip += b"\0" * (len(strip) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", FIRST + len(strip))
    entries = b"".join(struct.pack(order + "HHII", t, 4, 1, v) for t, v in fields.items())
    return head + strip + struct.pack(order + "H", len(fields)) + entries + b"\0" * 4


def patched(data: bytes, tag: int, value: int, order: str = "<") -> bytes:
    """Return a TIFF in which a tag that holds one number has another value."""
    start = struct.unpack(order + "I", data[4:8])[0]
    for at in range(
        start + 2, start + 2 + 12 * struct.unpack_from(order + "H", data, start)[0], 12
    ):
        if struct.unpack_from(order + "H", data, at)[0] == tag:
            entry = struct.pack(order + "HHII", tag, 4, 1, value)
            return data[:at] + entry + data[at + 12 :]
    raise KeyError(tag)


@pytest.fixture
def save(tmp_path):
    def save_(data: bytes, name: str = "image.tif"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return save_


@contextlib.contextmanager
def at_most(size: int):
    """Fail if what is inside takes more than `size` bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


# Kinds


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_come_back_exactly(save, dtype, order):
    pytest.importorskip("tifffile")
    for photometric, shape in ((1, (40, 52)), (2, (40, 52, 3))):
        array = values(dtype, shape)
        back = read_image(save(tiff(array, photometric, order)))
        np.testing.assert_array_equal(back, array)
        if dtype[0] == "f":
            assert back.dtype == (np.float32 if dtype == "f2" else np.dtype(dtype))


@pytest.mark.extras
@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "packbits", "lzma", None])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_layouts_come_back_exactly(tmp_path, dtype, compression):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    predictors = [None, 3 if dtype[0] == "f" else 2]
    for predictor, order, tile, big, color, planar in itertools.product(
        predictors, "<>", (None, (32, 32)), (False, True), (False, True), (False, True)
    ):
        if (predictor and compression in (None, "packbits")) or (planar and not color):
            continue
        array = values(dtype, (40, 52, 3) if color else (40, 52))
        tifffile.imwrite(
            tmp_path / "a.tif",
            array.transpose(2, 0, 1) if planar else array,
            photometric="rgb" if color else "minisblack",
            planarconfig=("separate" if planar else "contig") if color else None,
            compression=compression, predictor=predictor, byteorder=order, tile=tile, bigtiff=big,
            rowsperstrip=None if tile else 12,
        )  # fmt: skip
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("bits", [12, 10, 14])
@pytest.mark.parametrize(("order", "compressed"), [("<", False), (">", False), ("<", True)])
def test_packed_bits_come_back_exactly(save, bits, order, compressed):
    array = RANDOM.integers(0, 1 << bits, (33, 47))
    path = save(packed_tiff(array, bits, order, compressed))
    if (bits, order, compressed) != (12, "<", False):  # Pillow reads that one
        pytest.importorskip("imagecodecs")
    back = read_image(path)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, array)


def test_levels_of_few_bits_span_8(save):
    pytest.importorskip("imagecodecs")
    array = RANDOM.integers(0, 64, (33, 48))
    back = read_image(save(packed_tiff(array, 6, "<", False)))
    np.testing.assert_array_equal(back, np.rint(array * (255 / 63)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(save, orientation):
    pytest.importorskip("tifffile")
    array = values("f8")
    back = read_image(save(tiff(array, 1, t274=orientation)))
    np.testing.assert_array_equal(back, upright(array, orientation))


def test_white_is_zero(save):
    pytest.importorskip("tifffile")
    array = values("u4")
    np.testing.assert_array_equal(read_image(save(tiff(array, 0))), 0xFFFFFFFF - array)
    with pytest.raises(ImageFileError, match="white is zero; export it with black as zero"):
        read_image(save(tiff(values("f8"), 0)))


def test_alpha_of_deep_color(save):
    pytest.importorskip("tifffile")
    array = values("i2", (16, 20, 4))
    with pytest.warns(DDFMWarning, match="image.tif: has transparent parts; alpha is dropped"):
        back = read_image(save(tiff(array, 2, t338=2)))
    np.testing.assert_array_equal(back, array[..., :3])
    with pytest.raises(ImageFileError, match="premultiplied by alpha"):
        read_image(save(tiff(array, 2, t338=1)))


def test_bands_are_not_guessed(save):
    for count in (2, 5):
        with pytest.raises(ImageFileError, match=rf"{count} bands, expected 1 or 3; .*-b 1"):
            read_image(save(tiff(values("f4", (16, 20, count)), 1)))


def test_several_pictures_but_not_smaller_copies(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = values("f8")
    for kind, expected in ((0, True), (1, False)):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(array)
            file.write(array[::2, ::2], subfiletype=kind)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)
        assert [str(w.message)[-37:] for w in told] == (
            ["a.tif: holds 2 pictures; the first is used"[-37:]] if expected else []
        )


# The value without meaning


def with_nodata(tmp_path, array, text: str):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "ir.tif"
    tifffile.imwrite(path, array, extratags=[(42113, "s", 0, text, True)])
    return path


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [("f4", "-9999", -9999), ("f8", "nan", np.nan), ("i2", "-32768", -32768), ("u2", "0", 0),
     ("f4", "-3.4028234663852886e+38", -3.4028234663852886e38)],
)  # fmt: skip
def test_nodata_of_the_file_is_left_out(tmp_path, dtype, text, value):
    array = np.linspace(10, 60, 32 * 40).reshape(32, 40).astype(dtype)
    array[3:5, 7:9] = value
    ir = with_nodata(tmp_path, array, text)
    vis = tmp_path / "vis.tif"
    vis.write_bytes(tiff(random_array((32, 40)), 1))
    np.testing.assert_equal(read_picture(ir).nodata, value)
    with pytest.warns(DDFMWarning) as told:
        found = read_sources(ir, vis, Levels(value_range={"ir": (10, 60)}))
    assert [
        str(w.message) for w in told if "means no data: such pixels are left out" in str(w.message)
    ]
    expected = np.zeros((32, 40), bool)
    expected[3:5, 7:9] = True
    np.testing.assert_array_equal(found.holes[0], expected)
    assert found.holes[1] is None
    np.testing.assert_array_equal(found.mended(found.ir)[expected], found.vis[expected])


def test_nodata_that_is_given_or_absent_counts_more(tmp_path):
    array = np.linspace(10, 60, 32 * 40).reshape(32, 40).astype("f4")
    ir = with_nodata(tmp_path, array, "-9999")
    vis = tmp_path / "vis.tif"
    vis.write_bytes(tiff(random_array((32, 40)), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_sources(ir, vis, Levels({"ir": (10, 60)})).holes == (None, None)
    array[0, 0] = -9999
    ir = with_nodata(tmp_path, array, "-9999")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_sources(ir, vis, Levels({"ir": (-9999, 60)}, {"ir": float("nan")}))
    assert found.holes == (None, None)


def test_nan_beside_the_nodata_of_the_file_is_left_out_too(tmp_path):
    array = np.linspace(10, 60, 32 * 40).reshape(32, 40).astype("f4")
    array[3, 4], array[5, 6] = -9999, np.nan
    ir = with_nodata(tmp_path, array, "-9999")
    vis = tmp_path / "vis.tif"
    vis.write_bytes(tiff(random_array((32, 40)), 1))
    with pytest.warns(DDFMWarning, match="no data: such pixels are left out"):
        found = read_sources(ir, vis, Levels({"ir": (10, 60)}))
    assert sorted(zip(*np.nonzero(found.holes[0]), strict=True)) == [(3, 4), (5, 6)]


@pytest.mark.parametrize("bands", [4, 5])
def test_bands_beyond_the_color_are_told(tmp_path, bands):
    """Bands that are not alpha: near infrared beside RGB, which Pillow reads without a warning."""
    tifffile = pytest.importorskip("tifffile")
    array = random_array((32, 40, bands))
    path = tmp_path / "bands.tif"
    extra = ["unspecified"] * (bands - 3)
    tifffile.imwrite(path, array, photometric="rgb", extrasamples=extra)
    with pytest.warns(DDFMWarning, match=rf"bands\.tif: has {bands} bands; the first 3 are used"):
        np.testing.assert_array_equal(read_image(path), array[..., :3])


def test_signed_16_bits_keep_their_range(tmp_path):
    """Pillow widens them to 32 bits, whose range is 65536 times as wide."""
    array = np.linspace(-32768, 32767, 32 * 40).round().astype("i2").reshape(32, 40)
    path = tmp_path / "ir.tif"
    path.write_bytes(tiff(array, 1))
    read = read_image(path)
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, array)
    vis = tmp_path / "vis.tif"
    vis.write_bytes(tiff(random_array((32, 40)), 1))
    found = read_sources(path, vis, Levels({"ir": "dtype"})).ir
    np.testing.assert_array_equal(found, (array.astype(int) + 32768).astype(np.uint16))


def test_nodata_of_a_color_is_told_and_left(tmp_path):
    array = random_array((32, 40, 3))
    array[2, 2] = 0
    vis = with_nodata(tmp_path, array, "0").rename(tmp_path / "vis.tif")
    ir = tmp_path / "ir.tif"
    ir.write_bytes(tiff(random_array((32, 40)), 1))
    with pytest.warns(DDFMWarning, match="vis: the file says that 0 means no data: it is not used"):
        assert read_sources(ir, vis, Levels()).holes == (None, None)


# Refused


@pytest.mark.parametrize("module", ["tifffile", "imagecodecs"])
def test_missing_libraries_are_named(save, monkeypatch, module):
    pytest.importorskip("tifffile")
    monkeypatch.setitem(sys.modules, module, None)
    data = packed_tiff(RANDOM.integers(0, 1 << 10, (16, 20)), 10, "<", False)
    with pytest.raises(
        ImageFileError,
        match=rf"image\.tif: a TIFF of unsigned 10 bits needs {module}.*"
        r"pip install 'ddfm_fast\[files\]', or export it as an uncompressed TIFF",
    ):
        read_image(save(data))


def test_pillow_alone_never_misreads(save, monkeypatch):
    """Kinds that Pillow takes for others need the extra, or are refused."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for dtype in ("i1", "u4"):
        with pytest.raises(ImageFileError, match="needs tifffile"):
            read_image(save(tiff(values(dtype), 1)))


HOSTILE = {
    "width": (256, 1 << 30, "pixels, more than the limit"),
    "height of 0": (257, 0, "expected at least one"),
    "width beyond": (256, 9000, "failed to read|a part claims"),
    "offset": (273, 1 << 31, "in the file"),
    "count": (279, 0xFFFFFFFF, "in the file"),
    "no pixels": (279, 0, "parts have no pixels"),
    "bits": (258, 4000, "number format|depth"),
    "samples": (277, 65535, "bands, expected"),
    "compression": (259, 34712, "cannot be read safely"),
    "number format": (339, 6, "number format 6"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_are_refused_quickly_and_without_memory(save, name):
    pytest.importorskip("tifffile")
    tag, value, match = HOSTILE[name]
    path = save(patched(tiff(values("f8"), 1), tag, value))
    with at_most(1 << 22), pytest.raises(ImageFileError, match=match):
        read_image(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_circle_of_directories_is_refused(save, order):
    data = tiff(values("f8"), 1, order)
    start = struct.unpack(order + "I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack_from(order + "H", data, start)[0]
    circle = data[:end] + struct.pack(order + "I", start) + data[end + 4 :]
    with pytest.raises(ImageFileError, match="list of pictures is a loop"):
        read_image(save(circle))


@pytest.mark.parametrize("cut", [8, 9, 100, -20, -200])
def test_cut_files_are_refused(save, cut):
    pytest.importorskip("tifffile")
    with pytest.raises(ImageFileError, match=r"image\.tif: .*(damaged or cut short|not a PNG)"):
        read_image(save(tiff(values("f8"), 1)[:cut]))


def test_a_bomb_in_a_strip_is_not_unfolded(save):
    pytest.importorskip("imagecodecs")
    data = packed_tiff(np.zeros((4, 4), int), 10, "<", True)
    bomb = zlib.compress(bytes(1 << 28), 9)
    data = patched(data + bomb, 273, len(data))
    path = save(patched(data, 279, len(bomb)))
    with at_most(1 << 20), pytest.raises(ImageFileError):
        read_image(path)


@pytest.mark.extras
def test_a_strip_that_ends_early_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    for compression in ("lzw", "deflate", "zstd", "packbits"):
        tifffile.imwrite(tmp_path / "a.tif", values("f8"), compression=compression, byteorder="<")
        data = (tmp_path / "a.tif").read_bytes()
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            count = file.pages[0].databytecounts[0]
        (tmp_path / "a.tif").write_bytes(patched(data, 279, count // 2))
        with pytest.raises(ImageFileError):
            read_image(tmp_path / "a.tif")


def test_a_small_copy_that_comes_first_is_no_picture(save):
    """Viewers look for such a copy there; the camera's picture is the second."""
    small, large = Image.new("L", (20, 16), 9), Image.new("L", (40, 32), 7)
    for more in ([large], []):
        file = io.BytesIO()
        small.save(file, "TIFF", tiffinfo={254: 0}, save_all=True, append_images=more)
        path = save(patched(file.getvalue(), 254, 1))
        if not more:
            assert (read_image(path) == 9).all(), "alone it is all there is"
            continue
        with pytest.raises(ImageFileError, match="first picture is a small copy of another; exp"):
            read_image(path)
