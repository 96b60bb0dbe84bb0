"""What thermal cameras measured, in JPEG files made by the published layout of their records."""

from __future__ import annotations

import io
import math
import struct
import warnings

import numpy as np
import pytest
from image_bytes import png, random_array
from PIL import Image

from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.packed import read_pair
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.radiometric import Constants, celsius
from ddfm_fast.files.reading import read_image
from ddfm_fast.images.doubts import DDFMWarning

CAMERA = Constants(
    r1=21106.77, r2=0.012545258, b=1501.0, f=1.0, o=-7340.0, emissivity=0.95, distance=20.0,
    reflected=295.15, air=291.15, window=298.15, through_window=0.96, humidity=0.5,
    alpha_1=0.006569, alpha_2=0.01262, beta_1=-0.002276, beta_2=-0.00667, x=1.9,
)  # fmt: skip
FLOATS = {
    0x20: "emissivity", 0x24: "distance", 0x28: "reflected", 0x2C: "air", 0x30: "window",
    0x34: "through_window", 0x3C: "humidity", 0x58: "r1", 0x5C: "b", 0x60: "f", 0x70: "alpha_1",
    0x74: "alpha_2", 0x78: "beta_1", 0x7C: "beta_2", 0x80: "x", 0x30C: "r2",
}  # fmt: skip
HEIGHT, WIDTH = 24, 32


def seen(kelvin, camera=CAMERA):
    """Return the counts that a camera sees of an object, following rays forward, step by step."""

    def black(t):
        return camera.r1 / (camera.r2 * (np.exp(camera.b / t) - camera.f)) - camera.o

    air = camera.air - 273.15
    water = camera.humidity * math.exp(
        1.5587 + 0.06939 * air - 0.00027816 * air**2 + 0.00000068455 * air**3
    )
    half = math.sqrt(camera.distance / 2)
    tau = camera.x * math.exp(-half * (camera.alpha_1 + camera.beta_1 * math.sqrt(water)))
    tau += (1 - camera.x) * math.exp(-half * (camera.alpha_2 + camera.beta_2 * math.sqrt(water)))
    leaving = camera.emissivity * black(kelvin) + (1 - camera.emissivity) * black(camera.reflected)
    at_window = tau * leaving + (1 - tau) * black(camera.air)
    behind = camera.through_window * at_window + (1 - camera.through_window) * black(camera.window)
    return tau * behind + (1 - tau) * black(camera.air)


CELSIUS = np.linspace(-10, 90, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
COUNTS = np.rint(seen(CELSIUS + 273.15)).astype(np.uint16)


def fff(counts=COUNTS, kind="png", order="<", camera=CAMERA, size=None, records=None) -> bytes:
    height, width = size or counts.shape
    if kind == "png":  # the low byte first, as the cameras write it
        data = png(counts.byteswap()[..., None])
    elif kind == "tiff":
        buffer = io.BytesIO()
        Image.fromarray(counts).save(buffer, "TIFF")
        data = buffer.getvalue()
    else:
        data = counts.astype(order + "u2").tobytes()
    raw = struct.pack(order + "3H", 2, width, height).ljust(32, b"\0") + data
    info = bytearray(0x400)
    struct.pack_into(order + "H", info, 0, 2)
    for at, name in FLOATS.items():
        struct.pack_into(order + "f", info, at, getattr(camera, name))
    struct.pack_into(order + "i", info, 0x308, int(camera.o))
    records = {1: raw, 32: bytes(info)} if records is None else records(raw, bytes(info))
    start, entries, body = 64, b"", b""
    for number, record in records.items():
        place = start + 32 * len(records) + len(body)
        entries += struct.pack(">HHIIII", number, 1, 100, 1, place, len(record)).ljust(32, b"\0")
        body += record
    head = b"FFF\0" + b"made here".ljust(16, b"\0") + struct.pack(">3I", 100, start, len(records))
    return head.ljust(64, b"\0") + entries + body


def with_segments(segments, size=(WIDTH, HEIGHT), make: str | None = None) -> bytes:
    buffer = io.BytesIO()
    tags = Image.Exif()
    if make:
        tags[271] = make
    Image.new("RGB", size, (200, 30, 90)).save(buffer, "JPEG", exif=tags, quality=95)
    data = buffer.getvalue()
    middle = b"".join(
        bytes([0xFF, mark]) + struct.pack(">H", len(body) + 2) + body for mark, body in segments
    )
    return data[:2] + middle + data[2:]


def flir(records: bytes, piece: int = 700, **options) -> bytes:
    pieces = [records[n : n + piece] for n in range(0, len(records), piece)]
    head = b"FLIR\0\x01"
    segments = [(0xE1, head + bytes([n, len(pieces) - 1]) + part) for n, part in enumerate(pieces)]
    return with_segments(segments, **options)


@pytest.fixture
def save(tmp_path):
    def save_(data: bytes, name: str = "ir.jpg"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return save_


def test_celsius_inverts_what_a_camera_sees():
    for camera in (
        CAMERA,
        CAMERA._replace(emissivity=1.0, distance=0.0, through_window=1.0),
        CAMERA._replace(b=1427.5, r1=16528.178, r2=0.012258549, o=-1307.0, humidity=0.9),
    ):
        back = celsius(seen(CELSIUS + 273.15, camera), camera)
        np.testing.assert_allclose(back, CELSIUS, atol=2e-4)
        assert back.dtype == np.float32


def test_a_black_body_by_the_plain_equation():
    """T = B / ln(R1 / (R2 (S + O)) + F), with the constants of an SC660, by hand."""
    plain = CAMERA._replace(emissivity=1.0, distance=0.0, through_window=1.0)
    by_hand = 1501 / math.log(21106.77 / (0.012545258 * (18109 - 7340)) + 1) - 273.15
    assert celsius(np.array([[18109]], np.uint16), plain)[0, 0] == pytest.approx(by_hand, abs=1e-4)


def test_counts_that_no_temperature_gives_are_nan():
    back = celsius(np.array([[0, 3000, 18000]], np.uint16), CAMERA)
    np.testing.assert_array_equal(np.isnan(back), [[True, True, False]])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["png", "tiff", "bare"])
def test_flir_gives_its_temperatures(save, kind, order):
    path = save(flir(fff(kind=kind, order=order)))
    with pytest.warns(DDFMWarning, match=r"ir\.jpg: its temperatures are read, 32x24 in Celsius"):
        back = read_image(path, radiometric=True)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, CELSIUS, atol=0.02)  # half a count


def test_flir_as_a_picture_is_its_picture(save):
    path = save(flir(fff()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_image(path)
    assert back.dtype == np.uint8 and np.abs(back.astype(int) - (200, 30, 90)).max() <= 3


def test_plain_files_are_read_as_ever(save):
    array = random_array((HEIGHT, WIDTH, 3))
    path = save(png(array), "a.png")
    np.testing.assert_array_equal(read_image(path, radiometric=True), array)
    path = save(with_segments([(0xE1, b"Exif\0\0"), (0xE3, b"other")]), "a.jpg")
    assert read_image(path, radiometric=True).dtype == np.uint8


def test_infrared_gives_temperatures_and_visible_its_picture(save):
    path, vis = save(flir(fff())), save(flir(fff()), "vis.jpg")
    with pytest.warns(DDFMWarning, match="temperatures are read"):
        found = read_sources(path, vis, Levels({"ir": (-10, 90)}))
    wanted = np.rint((CELSIUS + 10) / 100 * 65535)
    assert np.abs(found.ir.astype(int) - wanted).max() <= 20
    assert found.vis.dtype == np.uint16 and found.vis[0, 0, 0] // 257 == pytest.approx(200, abs=3)


def test_a_picture_that_fits_comes_before_temperatures_that_do_not(save):
    path = save(flir(fff(), size=(64, 48)))
    vis = save(png(random_array((48, 64, 3))), "vis.png")
    with pytest.warns(DDFMWarning, match="picture is used; to use the temperatures, resize vis"):
        assert read_sources(path, vis, Levels()).ir.shape == (48, 64, 3)


def damaged_records():
    nan = CAMERA._replace(r1=float("nan"))
    return {
        "no counts": (fff(records=lambda raw, info: {32: info}), "have no counts or constants"),
        "no constants": (fff(records=lambda raw, info: {1: raw}), "have no counts or constants"),
        "nan": (fff(camera=nan), "make no sense"),
        "zero": (fff(camera=CAMERA._replace(r2=0.0)), "make no sense"),
        "cut": (fff()[:900], "is cut off"),
        "list cut": (fff()[:70], "list of FLIR's records is cut off"),
        "head": (b"XXX" + fff()[3:], "have no header"),
        "short camera": (
            fff(records=lambda raw, info: {1: raw, 32: info[:99]}),
            "record of the camera is cut",
        ),
        "short counts": (
            fff(records=lambda raw, info: {1: raw[:9], 32: info}),
            "record of counts is cut",
        ),
        "huge": (fff(kind="bare", size=(65535, 65535)), "more than the limit|bytes of counts"),
        "other size": (fff(size=(8, 8)), "expected"),
        "bare and short": (fff(kind="bare", size=(60, 60)), "bytes of counts"),
    }


@pytest.mark.parametrize("name", damaged_records())
def test_damaged_records_are_refused(save, name):
    data, match = damaged_records()[name]
    path = save(flir(data))
    with pytest.raises(ImageFileError, match=match):
        read_image(path, radiometric=True)
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)


def dji(counts, make="DJI", **options) -> bytes:
    data = counts.astype("<u2").tobytes()
    segments = [(0xE3, data[n : n + 500]) for n in range(0, len(data), 500)]
    return with_segments(segments, make=make, **options)


def test_dji_gives_its_counts(save):
    for options, counts in (
        ({}, COUNTS),
        ({"size": (64, 48)}, random_array((120, 160), "uint16")),
    ):
        path = save(dji(counts, **options))
        with pytest.warns(DDFMWarning, match="ir.jpg: the camera's counts are read.*DJI's own"):
            back = read_image(path, radiometric=True)
        assert back.dtype == np.uint16
        np.testing.assert_array_equal(back, counts)
        assert read_image(path).dtype == np.uint8


def test_segments_of_other_cameras_are_no_counts(save):
    for data in (dji(COUNTS, make="Canon"), dji(COUNTS[:5])):
        assert read_image(save(data), radiometric=True).dtype == np.uint8


def test_one_file_is_both_sources(save):
    """Its temperatures are the infrared and its picture the visible source."""
    path = save(flir(fff()))
    with pytest.warns(DDFMWarning, match="its temperatures are read"):
        found = read_sources(path, path, Levels())
    np.testing.assert_allclose(found.units[0].values, CELSIUS, atol=0.02)
    assert found.units[1].values.shape == (HEIGHT, WIDTH, 3)
    for shown in read_pair(path, path):
        np.testing.assert_array_equal(shown, found.units[1].values)
    plain = save(with_segments([]), "plain.jpg")
    with pytest.raises(ImageFileError, match="is given for both sources"):
        read_sources(plain, plain, Levels())
