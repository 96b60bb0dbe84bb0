"""Colors converted to sRGB by ICC profiles, compared with plain formulas."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import png, random_array, tiff
from PIL import Image, ImageCms

from ddfm_fast.files.profiles import read_profile
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.doubts import DDFMWarning

G18 = 461 / 256
"""a gamma near 1.8 that a profile holds exactly"""
D65, D50 = (0.3127, 0.329), np.array([0.9642, 1, 0.8249])
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CLOSE = {np.uint8: 1, np.uint16: 8}
"""levels; in 16 bits, the error that profile curves of 16 bits leave near black"""


def xyz(point):
    return np.array([point[0] / point[1], 1, (1 - sum(point)) / point[1]])


def primaries(points) -> np.ndarray:
    """Return the XYZ under D50 of linear RGB whose white is D65."""
    columns = np.stack([xyz(p) for p in points], 1)
    matrix = columns * np.linalg.solve(columns, xyz(D65))
    cone = (BRADFORD @ D50) / (BRADFORD @ xyz(D65))
    return np.linalg.inv(BRADFORD) @ np.diag(cone) @ BRADFORD @ matrix


def curve(kind) -> bytes:
    if kind == "linear":
        return b"curv" + struct.pack(">II", 0, 0)
    if kind == "table":
        points = (np.linspace(0, 1, 1024) ** 1.8 * 65535).round().astype(">u2")
        return b"curv" + struct.pack(">II", 0, 1024) + points.tobytes()
    if isinstance(kind, float):
        return b"curv" + struct.pack(">IIH", 0, 1, round(kind * 256)) + b"\0\0"
    return b"para" + struct.pack(">IHH", 0, 3, 0) + struct.pack(">5i", *fixed(kind))


def fixed(numbers):
    return [round(v * 65536) for v in numbers]


def icc(points=None, trc=2.2) -> bytes:
    """Make a profile of RGB, or of gray if there are no primaries."""
    tags = {"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed(D50))}
    text = b"made here\0"
    tags["desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + 2)
    if points is None:
        tags["kTRC"] = curve(trc)
    else:
        for name, column in zip("rgb", primaries(points).T, strict=True):
            tags[name + "XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed(column))
            tags[name + "TRC"] = curve(trc)
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    space = b"GRAY" if points is None else b"RGB "
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *fixed(D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def light(v, trc):
    if trc == "linear":
        return v
    if trc == SRGB_CURVE:
        return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return v ** (1.8 if trc == "table" else trc)


def encoded(x):
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def expected(array, points, trc):
    white = np.iinfo(array.dtype).max
    x = light(array / white, trc)
    if points is not None:
        stored = np.rint(primaries(points) * 65536) / 65536
        x = x @ (np.linalg.inv(primaries(SRGB)) @ stored).T
    return encoded(x) * white


def with_profile(tmp_path, array, profile, kind="png"):
    path = tmp_path / f"image.{kind}"
    if array.dtype == np.uint8:
        Image.fromarray(array).save(path, icc_profile=profile)
    else:
        chunk = b"x\0\0" + zlib.compress(profile)
        path.write_bytes(png(array if array.ndim == 3 else array[..., None], (b"iCCP", chunk)))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("points", "trc"),
    [(P3, SRGB_CURVE), (ADOBE, 563 / 256), (SRGB, "linear"), (SRGB, "table"), (None, G18),
     (None, "linear")],
)  # fmt: skip
def test_colors_become_srgb(tmp_path, dtype, points, trc):
    if points is None and trc == "linear" and dtype == np.uint16:
        pytest.skip("taken as measured, see below")
    array = random_array((40, 48, 3) if points else (40, 48), dtype.__name__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_image(with_profile(tmp_path, array, icc(points, trc)))
    wanted = expected(array, points, trc)
    assert back.dtype == array.dtype and back.shape == array.shape
    close = CLOSE[dtype] if trc != "linear" or dtype == np.uint16 else 2
    assert np.abs(back - wanted).max() <= close
    assert np.abs(back.astype(int) - array).max() > 3 * close, "the profile changes nothing"


def test_a_known_color_of_display_p3(tmp_path):
    """Its pure red lies outside of sRGB, whose red is (234, 51, 35) in it."""
    array = np.full((16, 16, 3), (234, 51, 35), np.uint8)
    back = read_image(with_profile(tmp_path, array, icc(P3, SRGB_CURVE)))
    assert np.abs(back.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_srgb_changes_no_byte(tmp_path, dtype):
    for profile in (
        icc(SRGB, SRGB_CURVE),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        for shape in ((40, 48, 3), (40, 48)):
            array = random_array(shape, dtype)
            np.testing.assert_array_equal(read_image(with_profile(tmp_path, array, profile)), array)


def test_gray_with_a_profile_of_color(tmp_path):
    for dtype in (np.uint8, np.uint16):
        array = random_array((40, 48), dtype.__name__)
        back = read_image(with_profile(tmp_path, array, icc(P3, G18)))
        assert back.shape == array.shape
        assert np.abs(back - expected(array, None, G18)).max() <= CLOSE[dtype]


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_other_formats_carry_profiles(tmp_path, kind):
    array = np.full((16, 16, 3), (200, 120, 60), np.uint8)
    back = read_image(with_profile(tmp_path, array, icc(ADOBE, 563 / 256), kind))
    assert np.abs(back - expected(array, ADOBE, 563 / 256)).max() <= 4


def test_deep_tiff_by_tifffile_carries_its_profile(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = random_array((3, 40, 48), "uint16")
    profile = icc(P3, SRGB_CURVE)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate",
                     iccprofile=profile)  # fmt: skip
    back = read_image(tmp_path / "a.tif")
    wanted = expected(array.transpose(1, 2, 0), P3, SRGB_CURVE)
    assert np.abs(back - wanted).max() <= CLOSE[np.uint16]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("profile", [b"junk" * 40, icc(P3)[:150], icc(None, G18)])
def test_profiles_that_cannot_be_used_are_told_and_ignored(tmp_path, dtype, profile):
    array = random_array((16, 20, 3), dtype)
    with pytest.warns(DDFMWarning, match="image.png: its color profile cannot be read and is ign"):
        back = read_image(with_profile(tmp_path, array, profile))
    np.testing.assert_array_equal(back, array)


def test_a_profile_without_matrix_is_told(tmp_path):
    lut = icc(P3).replace(b"rTRC", b"zTRC")
    array = random_array((16, 20, 3), "uint16")
    with pytest.warns(DDFMWarning, match="has no matrix.*export it as sRGB, or with 8 bits"):
        back = read_image(with_profile(tmp_path, array, lut))
    np.testing.assert_array_equal(back, array)


def test_floats_are_left_with_a_word(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).random((16, 20, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", iccprofile=icc(P3))
    with pytest.warns(DDFMWarning, match="not applied to values of float32"):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)


def test_parametric_curves():
    x = np.linspace(0, 1, 65536)
    cases = {
        0: ((2.2,), x**2.2),
        1: ((2.0, 0.5, 0.25), np.where(x >= -0.5, (0.5 * x + 0.25) ** 2, 0)),
        2: ((2.0, 0.5, 0.25, 0.125), (0.5 * x + 0.25) ** 2 + 0.125),
        4: ((2.0, 0.5, 0.25, 0.25, 0.5, 0.0625, 0.125),
            np.where(x >= 0.5, (0.5 * x + 0.25) ** 2 + 0.0625, 0.25 * x + 0.125)),
    }  # fmt: skip
    base = icc(None, "linear")
    for kind, (numbers, wanted) in cases.items():
        data = (
            b"para"
            + struct.pack(">IHH", 0, kind, 0)
            + struct.pack(f">{len(numbers)}i", *fixed(numbers))
        )
        place = base.index(b"kTRC")
        profile = (
            base[: place + 4] + struct.pack(">II", len(base), len(data)) + base[place + 12 :] + data
        )
        np.testing.assert_allclose(read_profile(profile).curves[0], wanted, atol=2e-5)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100000))


def test_linear_png_of_16_bits_is_encoded(tmp_path):
    array = random_array((16, 20, 3), "uint16")
    path = tmp_path / "image.png"
    for value in (1.0, 0.6):
        path.write_bytes(png(array, gamma(value)))
        with pytest.warns(DDFMWarning, match="image.png: says it is .*converted to sRGB"):
            back = read_image(path)
        assert np.abs(back - encoded((array / 65535) ** (1 / value)) * 65535).max() <= 1
    path.write_bytes(png(array[..., :1], gamma(1.0)))
    with pytest.warns(DDFMWarning, match="taken as measured and left unchanged"):
        np.testing.assert_array_equal(read_image(path), array[..., 0])


def test_linear_gray_of_16_bits_is_measured(tmp_path):
    array = random_array((16, 20), "uint16")
    path = with_profile(tmp_path, array, icc(None, "linear"))
    with pytest.warns(DDFMWarning, match="says it is linear; 16-bit gray is taken as measured"):
        np.testing.assert_array_equal(read_image(path), array)


def test_usual_gammas_change_nothing(tmp_path):
    path = tmp_path / "image.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype, chunks in (
            ("uint16", [gamma(0.45455)]),
            ("uint16", [(b"sRGB", b"\0"), gamma(1.0)]),
            ("uint8", [gamma(1.0)]),
            ("uint16", [gamma(0)]),
        ):
            array = random_array((16, 20, 3), dtype)
            path.write_bytes(png(array, *chunks))
            np.testing.assert_array_equal(read_image(path), array)


def test_cmyk_goes_by_its_profile_or_plainly(tmp_path):
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    image.save(tmp_path / "a.tif", icc_profile=b"junk" * 40)
    with pytest.warns(DDFMWarning, match="a.tif: its color profile cannot be read"):
        back = read_image(tmp_path / "a.tif")
    assert np.abs(back.astype(int) - [255, 0, 0]).max() <= 3


def test_gray_tiff_of_16_bits(tmp_path):
    array = random_array((16, 20), "uint16")
    path = tmp_path / "a.tif"
    Image.fromarray(array).save(path, icc_profile=icc(None, G18))
    assert np.abs(read_image(path) - expected(array, None, G18)).max() <= CLOSE[np.uint16]
    path.write_bytes(tiff(array, 1))
    np.testing.assert_array_equal(read_image(path), array)


@pytest.mark.parametrize(
    "coded, said",
    [
        ((12, 13, 0, 1), "image.png: its colors of Display P3 are read as sRGB"),
        ((9, 16, 0, 1), "image.png: is HDR"),
        ((1, 13, 0, 1), None),
    ],
)
def test_a_png_that_codes_other_colors_is_told(tmp_path, coded, said):
    """The chunk cICP of PNG's third edition gives numbers of ITU-T H.273."""
    for dtype in ("uint8", "uint16"):
        array = random_array((16, 20, 3), dtype)
        path = tmp_path / "image.png"
        path.write_bytes(png(array, (b"tEXt", b"a\0b"), (b"cICP", bytes(coded)), gamma(1.0)))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", DDFMWarning)
            np.testing.assert_array_equal(read_image(path), array)
        told = [str(w.message).replace(str(path), "image.png") for w in found]
        assert len(told) == (said is not None) and all(said in sentence for sentence in told)
