"""Image files: what is written comes back, and every kind of file is read correctly."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import (
    LOSSLESS,
    RANDOM,
    exif,
    png,
    random_array,
    tiff,
    upright,
)
from PIL import Image

from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import image_size, read_image
from ddfm_fast.files.writing import write_image

settings.register_profile("files", deadline=None, max_examples=25)
settings.load_profile("files")


@pytest.fixture
def save(tmp_path):
    def save_(data: bytes | Image.Image, name: str = "image.png", **options) -> Path:
        path = tmp_path / name
        if isinstance(data, Image.Image):
            data.save(path, **options)
        else:
            path.write_bytes(data)
        return path

    return save_


# Round trips


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(suffix, "uint8") for suffix in LOSSLESS]
    + [(suffix, "uint16") for suffix in LOSSLESS if suffix != ".bmp"],
)
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_lossless_formats_come_back_exactly(tmp_path, suffix, dtype, channels):
    array = random_array((17, 23, channels) if channels else (17, 23), dtype)
    path = write_image(tmp_path / f"image{suffix}", array)
    back = read_image(path)
    assert back.dtype == array.dtype and back.flags.c_contiguous
    np.testing.assert_array_equal(back, array[..., 0] if channels == 1 else array)
    expected = {".tif": "TIFF", ".tiff": "TIFF"}.get(suffix, suffix[1:].upper())
    with Image.open(path) as image:
        assert image.format == expected


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (3,)]),
       st.sampled_from(["uint8", "uint16"]), st.sampled_from([".png", ".TIF"]))  # fmt: skip
def test_any_size_comes_back(tmp_path_factory, height, width, channels, dtype, suffix):
    array = random_array((height, width, *channels), dtype)
    path = tmp_path_factory.mktemp("sizes") / f"image{suffix}"
    np.testing.assert_array_equal(read_image(write_image(path, array)), array)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_is_close_in_luma_and_color(tmp_path, suffix):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    color = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 90), axis=-1)
    for array in (color.astype(np.uint8), color[..., 1].astype(np.uint8)):
        back = read_image(write_image(tmp_path / f"image{suffix}", array))
        assert back.shape == array.shape
        assert np.abs(back.astype(int) - array).max() <= 4


def test_jpeg_quality_and_chroma_sampling(tmp_path):
    array = random_array((64, 64, 3))
    sizes = []
    for quality, sampling in ((50, 2), (89, 2), (90, 1), (100, 1)):
        path = write_image(tmp_path / f"{quality}.jpg", array, quality=quality)
        sizes.append(path.stat().st_size)
        with Image.open(path) as image:
            assert image.layer[0][1] == sampling
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_views_and_foreign_byte_order_are_written_right(tmp_path):
    base = random_array((40, 40, 3), "uint16")
    for array in (base[::-1, ::2], base.transpose(1, 0, 2), base.astype(">u2")):
        back = read_image(write_image(tmp_path / "image.png", array))
        np.testing.assert_array_equal(back, array)


# Kinds of files


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_kinds(save, channels, dtype):
    array = random_array((16, 20, channels), dtype)
    path = save(png(array))
    if channels in (2, 4):
        with pytest.warns(UserWarning, match="image.png: .*alpha is dropped"):
            back = read_image(path)
    else:
        back = read_image(path)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array[..., 0] if channels < 3 else array[..., :3])


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_opaque_alpha_is_dropped_in_silence(save, channels, dtype):
    array = random_array((16, 20, channels), dtype)
    array[..., -1] = np.iinfo(dtype).max
    path = save(png(array))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_image(path)
    np.testing.assert_array_equal(back, array[..., 0] if channels == 2 else array[..., :3])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff_kinds(save, order, dtype):
    color, white = random_array((16, 20, 3), dtype), np.iinfo(dtype).max
    np.testing.assert_array_equal(read_image(save(tiff(color, 2, order), "a.tif")), color)
    gray = color[..., 0]
    np.testing.assert_array_equal(read_image(save(tiff(gray, 1, order), "b.tif")), gray)
    if order == "<":  # Pillow does not know big-endian white-is-zero of 16 bits
        inverted = read_image(save(tiff(gray, 0, order), "c.tif"))
        np.testing.assert_array_equal(inverted, white - gray)


def test_planar_tiff_is_read_right(save):
    eight = random_array((16, 20, 3))
    np.testing.assert_array_equal(read_image(save(tiff(eight, 2, planar=True), "a.tif")), eight)
    pytest.importorskip("tifffile")
    deep = random_array((16, 20, 3), "uint16")
    np.testing.assert_array_equal(read_image(save(tiff(deep, 2, planar=True), "b.tif")), deep)


def test_planar_tiff_of_16_bits_needs_a_library(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    deep = random_array((16, 20, 3), "uint16")
    with pytest.raises(ImageFileError, match=r"b\.tif: .*planar needs tifffile"):
        read_image(save(tiff(deep, 2, planar=True), "b.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(save, orientation):
    for dtype in ("uint8", "uint16"):
        array = random_array((16, 20, 3), dtype)
        expected = upright(array, orientation)
        path = save(png(array, (b"eXIf", exif(orientation))))
        np.testing.assert_array_equal(read_image(path), expected)
        path = save(tiff(array, 2, t274=orientation), "image.tif")
        np.testing.assert_array_equal(read_image(path), expected)
        path = save(tiff(array[..., 0], 1, t274=orientation), "image.tif")
        np.testing.assert_array_equal(read_image(path), expected[..., 0])


def test_exif_orientation_of_jpeg(save):
    array = np.zeros((32, 48), np.uint8)
    array[:16, :16] = 255
    tags = Image.Exif()
    tags[274] = 6
    back = read_image(save(Image.fromarray(array), "image.jpg", exif=tags))
    assert back.shape == (48, 32)
    assert back[:16, 16:].min() > 200 and back[16:].max() < 50 and back[:, :16].max() < 50


def test_palettes(save):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(indices).convert("P")
    palette = random_array((256, 3))
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(read_image(save(image)), palette[indices])
    image.putpalette(np.repeat(palette[:, :1], 3, axis=1).tobytes())
    np.testing.assert_array_equal(read_image(save(image)), palette[indices, 0])
    with pytest.warns(UserWarning, match="alpha is dropped"):
        assert read_image(save(image, transparency=7)).shape == (16, 16)


def test_one_bit_becomes_black_and_white(save):
    bits = RANDOM.random((16, 20)) > 0.5
    for name in ("image.png", "image.tif", "image.bmp"):
        back = read_image(save(Image.fromarray(bits), name))
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, bits * 255)


@pytest.mark.parametrize("name", ["image.jpg", "image.tif"])
def test_cmyk_becomes_rgb(save, name):
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    back = read_image(save(image, name))
    assert back.shape == (32, 32, 3)
    assert np.abs(back.astype(int) - [255, 0, 0]).max() <= 3


def test_integers_of_32_bits(save):
    array = random_array((16, 20), "uint16").astype(np.int32)
    back = read_image(save(tiff(array, 1), "a.tif"))
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, array)
    for value in (-1, 65536):
        array[0, 0] = value
        back = read_image(save(tiff(array, 1), "b.tif"))
        assert back.dtype == np.int32
        np.testing.assert_array_equal(back, array)


def test_floats_come_as_they_are(save):
    array = (60 * RANDOM.random((16, 20)) - 20).astype(np.float32)
    back = read_image(save(tiff(array, 1), "f.tif"))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_first_of_several_pictures_is_read(save, name):
    pictures = [Image.fromarray(random_array((16, 20, 3))) for _ in range(3)]
    path = save(pictures[0], name, save_all=True, append_images=pictures[1:])
    with pytest.warns(UserWarning, match=f"{name}: holds 3 pictures; the first is used"):
        back = read_image(path)
    np.testing.assert_array_equal(back, np.asarray(pictures[0]))


def test_content_decides_not_the_suffix(save):
    array = random_array((16, 20, 3))
    np.testing.assert_array_equal(read_image(save(png(array), "image.jpg")), array)


def test_real_files_agree_with_pillow():
    for name in ("sentinel2_visible.png", "brain_mri_t1.png"):
        path = shared("demo") / name
        np.testing.assert_array_equal(read_image(str(path)), np.asarray(Image.open(path)))


# Headers


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_image_size(tmp_path, suffix):
    write_image(tmp_path / f"a.{suffix}", random_array((17, 30)))
    assert image_size(tmp_path / f"a.{suffix}") == (17, 30)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (17, 30)), (3, (17, 30)), (6, (30, 17))])
def test_image_size_is_upright(tmp_path, suffix, orientation, size):
    tags = Image.Exif()
    tags[274] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("L", (30, 17)).save(path, exif=tags)
    assert image_size(path) == size == read_image(path).shape


def test_image_size_of_what_is_no_image(tmp_path):
    assert image_size(tmp_path / "none.png") is None
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n junk")
    assert image_size(tmp_path / "a.png") is None
