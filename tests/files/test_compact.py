"""WebP, AVIF, HEIC and JPEG XL, of 8 and more bits."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
from image_bytes import random_array
from PIL import Image, features
from test_profiles import G18, P3, SRGB_CURVE, expected, icc

from ddfm_fast.files.compact import jxl_size
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import image_size, read_image
from ddfm_fast.images.doubts import DDFMWarning

needs_avif = pytest.mark.skipif(
    "avif" not in features.modules or not features.check("avif"), reason="Pillow without AVIF"
)


@pytest.fixture
def save(tmp_path):
    def save_(data: bytes, name: str):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return save_


def by_pillow(array, kind, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def heic(array, **options) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    mode = {np.uint8: "RGB", np.uint16: "RGB;16"}[array.dtype.type]
    made = heif.from_bytes(mode, array.shape[1::-1], array.tobytes())
    buffer = io.BytesIO()
    made.save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return buffer.getvalue()


def test_webp(save):
    array = random_array((40, 52, 3))
    path = save(by_pillow(array, "WEBP", lossless=True), "a.webp")
    np.testing.assert_array_equal(read_image(path), array)
    assert image_size(path) == (40, 52)
    with pytest.raises(ImageFileError, match="2080 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    with pytest.raises(ImageFileError):
        read_image(save(path.read_bytes()[:-600], "cut.webp"))


def test_webp_alpha_profile_and_animation(save):
    array = random_array((40, 52, 4))
    path = save(by_pillow(array, "WEBP", lossless=True, exact=True), "a.webp")
    with pytest.warns(DDFMWarning, match="a.webp: has transparent parts"):
        np.testing.assert_array_equal(read_image(path), array[..., :3])
    data = by_pillow(array[..., :3], "WEBP", lossless=True, icc_profile=icc(P3, G18))
    wanted = expected(array[..., :3], P3, G18)
    assert np.abs(read_image(save(data, "p.webp")) - wanted).max() <= 2
    more = [Image.fromarray(random_array((40, 52, 3)))]
    data = by_pillow(array[..., :3], "WEBP", lossless=True, save_all=True, append_images=more)
    with pytest.warns(DDFMWarning, match="holds 2 pictures; the first is used"):
        np.testing.assert_array_equal(read_image(save(data, "m.webp")), array[..., :3])


@needs_avif
def test_avif_of_8_bits(save):
    y, x = np.mgrid[:64, :96]
    array = np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8)
    path = save(by_pillow(array, "AVIF", quality=100, subsampling="4:4:4"), "a.avif")
    assert np.abs(read_image(path).astype(int) - array).max() <= 3
    with pytest.raises(ImageFileError, match="6144 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    with pytest.raises(ImageFileError):
        read_image(save(path.read_bytes()[:-200], "cut.avif"))


@needs_avif
@pytest.mark.extras
@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_comes_back_exactly(save, monkeypatch, bits):
    codecs = pytest.importorskip("imagecodecs")
    array = np.random.default_rng(0).integers(0, 1 << bits, (64, 96, 3)).astype(np.uint16)
    path = save(codecs.avif_encode(array, 100, bitspersample=bits), "a.avif")
    back = read_image(path)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, np.rint(array * (65535 / ((1 << bits) - 1))))
    with pytest.raises(ImageFileError, match="6144 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageFileError, match=rf"AVIF of {bits} bits needs imagecodecs.*\[files\]"):
        read_image(path)


@needs_avif
@pytest.mark.parametrize(
    ("at", "code", "match"),
    [(10, 16, "is HDR.*export it as SDR"), (8, 12, "of Display P3 are read as sRGB; export")],
)
def test_colors_beyond_srgb_are_told(save, at, code, match):
    """The color box holds primaries, then transfer, two bytes each."""
    data = by_pillow(random_array((64, 96, 3)), "AVIF")
    place = data.index(b"colrnclx") + at
    changed = data[:place] + bytes([0, code]) + data[place + 2 :]
    with pytest.warns(DDFMWarning, match=match):
        read_image(save(changed, "a.avif"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(save(data, "a.avif"))


@pytest.mark.extras
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_heic_comes_back_exactly(save, dtype):
    array = random_array((64, 96, 3), dtype.__name__)
    if dtype == np.uint16:  # the writer keeps 10 bits
        array &= 0xFFC0
    path = save(heic(array), "a.heic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_image(path)
    wanted = array if dtype == np.uint8 else np.rint((array >> 6) * (65535 / 1023))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, wanted)
    with pytest.raises(ImageFileError, match="6144 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    with pytest.raises(ImageFileError):
        read_image(save(path.read_bytes()[:-4000], "cut.heic"))


@pytest.mark.extras
def test_heic_of_a_phone_is_converted_from_display_p3(save):
    array = random_array((64, 96, 3))
    path = save(heic(array, icc_profile=icc(P3, SRGB_CURVE)), "a.heic")
    back = read_image(path)
    assert np.abs(back - expected(array, P3, SRGB_CURVE)).max() <= 2


def test_heic_without_the_extra(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(200)
    with pytest.raises(
        ImageFileError, match=r"a\.heic: HEIC needs pillow_heif.*\[files\]', or export it as JPEG"
    ):
        read_image(save(data, "a.heic"))


JXL_DTYPES = ["uint8", "uint16", "float32"]


@pytest.mark.extras
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("dtype", JXL_DTYPES)
def test_jxl_comes_back_exactly(save, dtype, channels):
    codecs = pytest.importorskip("imagecodecs")
    pytest.importorskip("pillow_jxl")
    shape = (40, 52, 3) if channels else (40, 52)
    random = np.random.default_rng(0).random(shape, np.float32)
    array = random if dtype == "float32" else random_array(shape, dtype)
    path = save(codecs.jpegxl_encode(array, lossless=True), "a.jxl")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if dtype == "uint8" else "ignore")
        back = read_image(path)
    assert back.dtype == dtype
    if dtype == "uint16" and channels:  # the writer calls it linear
        assert (
            np.abs(back - expected(array, None, "linear")).max() <= 64
        )  # the fractions of its matrix are rounded
    else:
        np.testing.assert_array_equal(back, array)
    with pytest.raises(ImageFileError, match="2080 pixels, more than the limit"):
        read_image(path, max_pixels=2000)
    with pytest.raises(ImageFileError):
        read_image(save(path.read_bytes()[:-300], "cut.jxl"))


@pytest.mark.extras
@pytest.mark.parametrize("size", [(8, 8), (256, 256), (40, 52), (300, 400), (720, 1280), (9, 700)])
@pytest.mark.parametrize("container", [False, True])
def test_jxl_size(size, container, tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    data = codecs.jpegxl_encode(np.zeros((*size, 3), np.uint8), usecontainer=container, effort=1)
    assert jxl_size(data, tmp_path / "a.jxl") == size[::-1]


def test_jxl_that_lies_is_refused_before_it_is_decoded(save):
    """The header claims a height and a width of 30 bits each, with all bits set."""
    huge = b"\xff\x0a" + ((1 << 80) - 2 & ~(7 << 33)).to_bytes(10, "little")
    with pytest.raises(ImageFileError, match="1073741824x1073741824 is .* more than the limit"):
        read_image(save(huge + bytes(50), "a.jxl"))
    for data in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)):
        with pytest.raises(ImageFileError, match="damaged or cut short"):
            read_image(save(data, "a.jxl"))
