"""Reading, writing and pairing of image files."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddfm_fast.images import files
from ddfm_fast.images.files import (
    ImageFileError,
    atomic_write_bytes,
    ensure_writable_dir,
    match_pairs,
    read_image,
    write_image,
)

settings.register_profile("files", deadline=None, max_examples=25)
settings.load_profile("files")

RANDOM = np.random.default_rng(0)
LOSSLESS = (".png", ".tif", ".tiff", ".bmp")


def random_array(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def png(array: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of [H, W, 1 | 2 | 3 | 4], uint8 or uint16, spelled out by the PNG specification."""
    height, width, channels = array.shape
    rows = array.astype(array.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, array.itemsize * 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tiff(array: np.ndarray, photometric: int, order: str = "<", planar: bool = False, **tags):
    """An uncompressed TIFF of [H, W] or [H, W, C] with one strip (a plane each if planar)."""
    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    planes = [array[..., i] for i in range(channels)] if planar else [array]
    strips = [plane.astype(array.dtype.newbyteorder(order)).tobytes() for plane in planes]
    offsets = np.cumsum([8] + [len(strip) for strip in strips]).tolist()
    fields = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [array.itemsize * 8] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, offsets[:-1]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        339: (3, [kind] * channels),
        **{int(tag[1:]): (3, [value]) for tag, value in tags.items()},
    }
    start = offsets[-1] + offsets[-1] % 2
    end = start + 2 + 12 * len(fields) + 4
    entries, tail = b"", b""
    for tag, (type_, values) in sorted(fields.items()):
        data = struct.pack(f"{order}{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(data) > 4:
            place = struct.pack(order + "I", end + len(tail))
            tail += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, type_, len(values)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    body = b"".join(strips).ljust(start - 8, b"\0")
    return head + body + struct.pack(order + "H", len(fields)) + entries + b"\0" * 4 + tail


def exif(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


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


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The picture meant by stored pixels of an EXIF orientation, by where pixel (0, 0) belongs."""
    if orientation >= 5:
        array = np.moveaxis(array, 0, 1)
    top_first = orientation in (1, 2, 5, 6)
    left_first = orientation in (1, 4, 5, 8)
    return array[:: 1 if top_first else -1, :: 1 if left_first else -1]


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
def test_jpeg_is_close_in_luma_and_colour(tmp_path, suffix):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    colour = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 90), axis=-1)
    for array in (colour.astype(np.uint8), colour[..., 1].astype(np.uint8)):
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
    colour, white = random_array((16, 20, 3), dtype), np.iinfo(dtype).max
    np.testing.assert_array_equal(read_image(save(tiff(colour, 2, order), "a.tif")), colour)
    grey = colour[..., 0]
    np.testing.assert_array_equal(read_image(save(tiff(grey, 1, order), "b.tif")), grey)
    if order == "<":  # Pillow does not know big-endian white-is-zero of 16 bits
        inverted = read_image(save(tiff(grey, 0, order), "c.tif"))
        np.testing.assert_array_equal(inverted, white - grey)


def test_planar_tiff_is_read_right_or_refused(save):
    eight = random_array((16, 20, 3))
    np.testing.assert_array_equal(read_image(save(tiff(eight, 2, planar=True), "a.tif")), eight)
    deep = random_array((16, 20, 3), "uint16")
    with pytest.raises(ImageFileError, match=r"b\.tif: .*planar.*export it as 16-bit RGB PNG"):
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
        with pytest.raises(ImageFileError, match=rf"b\.tif: integers from .*{value}.*value_range"):
            read_image(save(tiff(array, 1), "b.tif"))


def test_float_files_are_refused(save):
    array = RANDOM.random((16, 20)).astype(np.float32)
    with pytest.raises(ImageFileError, match=r"f\.tif: floating-point.*value_range"):
        read_image(save(tiff(array, 1), "f.tif"))


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


# Limits


def test_size_is_checked_before_decoding(save, monkeypatch):
    path = save(png(random_array((16, 20, 3))))
    assert read_image(path, max_pixels=320).shape == (16, 20, 3)

    def fail(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(ImageFileError, match=r"image\.png: 20x16 is 320 pixels.*limit of 319.*"
                       r"max_pixels=.*--max-pixels"):  # fmt: skip
        read_image(path, max_pixels=319)


def test_decompression_bomb_is_refused_by_default(save):
    bomb = bytearray(png(random_array((1, 1, 1))))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(ImageFileError, match="3600000000 pixels, more than the limit"):
        read_image(save(bytes(bomb)))


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.jpg"])
def test_pillow_limit_is_replaced_and_restored(save, monkeypatch, name):
    path = save(Image.new("RGB", (40, 40)), name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (40, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ImageFileError):
        read_image(path, max_pixels=5)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillow_limit_survives_overlapping_readers(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    inside, leave = threading.Event(), threading.Event()

    def long_reader():
        with files._pillow_limit_lifted():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=long_reader)
    with files._pillow_limit_lifted():
        thread.start()
        assert inside.wait(10)
    assert Image.MAX_IMAGE_PIXELS is None
    leave.set()
    thread.join(10)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), (1e6, TypeError), (None, TypeError),
                         (True, TypeError)]
)  # fmt: skip
def test_max_pixels_is_checked(save, limit, error):
    with pytest.raises(error, match="max_pixels: got"):
        read_image(save(png(random_array((16, 16, 1)))), max_pixels=limit)


# Files that are not images


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        (b"hello, world\n" * 20, "not a PNG, JPEG, TIFF or BMP image"),
        (b"GIF89a" + b"\0" * 50, "not a PNG, JPEG, TIFF or BMP image"),
        (b"\x89PNG\r\n\x1a\n", "not a PNG|cannot be decoded"),
    ],
)
def test_other_files_are_refused(save, data, match):
    with pytest.raises(ImageFileError, match=rf"image\.png: .*({match})"):
        read_image(save(data))


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "deep PNG", "deep TIFF"])
def test_truncated_files_are_refused(save, kind, keep):
    array = random_array((40, 48, 3))
    deep = random_array((40, 48, 3), "uint16")
    data = {"deep PNG": lambda: png(deep), "deep TIFF": lambda: tiff_front(deep)}.get(
        kind, lambda: encoded(array, kind)
    )()
    with pytest.raises(ImageFileError, match=r"image\.png: (cannot be decoded|not a PNG)"):
        read_image(save(data[: int(len(data) * keep)]))


def tiff_front(array: np.ndarray) -> bytes:
    """A 16-bit TIFF whose directory comes first, so that what is cut off is pixels."""
    import cv2

    data = cv2.imencode(".tif", array, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    with Image.open(io.BytesIO(data)) as image:
        offset, tags = image.tag_v2[273][0], dict(image.tag_v2)
    assert tags[258] == (16, 16, 16)
    pixels = data[offset : offset + array.nbytes]
    fields = {256: array.shape[1], 257: array.shape[0], 262: 2, 277: 3, 278: array.shape[0]}
    fields |= {259: 1, 279: len(pixels), 258: None, 273: None}
    end = 8 + 2 + 12 * len(fields) + 4
    fields[273] = end + 6
    out = b"II*\0" + struct.pack("<IH", 8, len(fields))
    for tag, value in sorted(fields.items()):
        count, kind, value = (3, 3, end) if tag == 258 else (1, 4, value)
        out += struct.pack("<HHII", tag, kind, count, value)
    return out + b"\0" * 4 + struct.pack("<3H", 16, 16, 16) + pixels


def test_the_truncation_helper_makes_a_readable_tiff(save):
    array = random_array((40, 48, 3), "uint16")
    np.testing.assert_array_equal(read_image(save(tiff_front(array))), array[..., ::-1])


def test_png_chunk_longer_than_the_file_is_not_allocated(save, monkeypatch):
    """Pillow reads past such a claim; OpenCV would take 4 GiB for it."""
    data = bytearray(png(random_array((16, 20, 3), "uint16")))
    data[33] = 0xEF
    monkeypatch.setattr(files.cv2, "imdecode", lambda *_: pytest.fail("reached the decoder"))
    with pytest.raises(ImageFileError, match=r"image\.png: the file is damaged or cut short"):
        read_image(save(bytes(data)))


def test_bytes_after_the_end_of_a_png_do_no_harm(save):
    for dtype in ("uint8", "uint16"):
        array = random_array((16, 20, 3), dtype)
        np.testing.assert_array_equal(read_image(save(png(array) + b"trailer" * 9)), array)


@given(st.data())
def test_damaged_files_raise_nothing_else(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]))
    content = bytearray(encoded(np.full((16, 20, 3), 77, np.uint8), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "image.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = read_image(path, max_pixels=10**6)
        except ImageFileError as error:
            assert "image.png" in str(error)
        else:
            assert array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageFileError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageFileError, match="cannot be opened"):
        read_image(tmp_path / ("n" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageFileError, match="not a regular file"):
        read_image(tmp_path / "pipe")
    with pytest.raises(TypeError, match="path: got int"):
        read_image(7)
    for path in ("", "a\0b"):
        with pytest.raises(ImageFileError, match="path: got"):
            read_image(path)


def test_unreadable_file_is_refused(save, monkeypatch):
    path = save(png(random_array((16, 16, 1))))

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ImageFileError, match=r"image\.png: cannot be opened \(Permission denied\)"):
        read_image(path)


# Writing


@pytest.mark.parametrize("name", ["image", "image.gif", "image.npy"])
def test_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(ImageFileError, match=r"not one of \.png, \.jpg, \.jpeg, \.tif.*\.bmp"):
        write_image(tmp_path / name, random_array((16, 16)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".bmp"])
def test_sixteen_bits_need_png_or_tiff(tmp_path, suffix):
    with pytest.raises(ImageFileError, match=r"uint16; write \.png or \.tif"):
        write_image(tmp_path / f"image{suffix}", random_array((16, 16), "uint16"))


@pytest.mark.parametrize(
    ("array", "error", "match"),
    [
        (np.zeros((16, 16)), TypeError, r"dtype float64.*astype\('uint8'\)"),
        (np.zeros((16, 16), bool), TypeError, "dtype bool"),
        ([[0]], TypeError, "got list"),
        (np.zeros((16, 16, 4), np.uint8), ValueError, r"shape \(16, 16, 4\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), ValueError, "shape"),
        (np.zeros(16, np.uint8), ValueError, "shape"),
        (np.zeros((0, 16), np.uint8), ValueError, "not empty"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, error, match):
    with pytest.raises(error, match=f"array: .*{match}"):
        write_image(tmp_path / "image.png", array)


@pytest.mark.parametrize("quality", [0, 101, 95.0, True, "high"])
def test_quality_is_checked(tmp_path, quality):
    with pytest.raises(ValueError, match="quality: got"):
        write_image(tmp_path / "image.jpg", random_array((16, 16)), quality=quality)


def test_too_wide_for_jpeg(tmp_path):
    with pytest.raises(ImageFileError, match=r"image\.jpg: .*cannot be encoded"):
        write_image(tmp_path / "image.jpg", np.zeros((1, 70000), np.uint8))
    assert not list(tmp_path.iterdir())


def test_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "image.png"
    assert write_image(str(path), random_array((16, 16))) == path
    assert path.is_file()


@pytest.mark.parametrize("place", ["file", "proc"])
def test_folders_that_cannot_be_are_named(tmp_path, place):
    if place == "proc" and not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "out" if place == "file" else Path("/proc/out")
    for attempt in (
        lambda: write_image(folder / "image.png", random_array((16, 16))),
        lambda: ensure_writable_dir(folder),
    ):
        with pytest.raises(ImageFileError, match=f"{folder}.*cannot be"):
            attempt()
    with pytest.raises(ImageFileError, match="cannot be made"):
        ensure_writable_dir(tmp_path / "file")


def test_folder_without_write_permission(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", deny)
    with pytest.raises(ImageFileError, match=r"cannot be written to \(Permission denied\)"):
        ensure_writable_dir(tmp_path)


def test_ensure_writable_dir_leaves_nothing_behind(tmp_path):
    folder = ensure_writable_dir(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b" and not list(folder.iterdir())
    assert ensure_writable_dir(folder) == folder


def test_failed_write_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "data.bin"
    atomic_write_bytes(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, full)
            with pytest.raises(ImageFileError, match=r"data\.bin: .*No space left"):
                atomic_write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]
    atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "data.bin"
    contents = [bytes([i]) * 200_000 for i in range(4)]
    atomic_write_bytes(path, contents[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            data = path.read_bytes()
            seen.add((len(data), len(set(data))))

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(40):
        atomic_write_bytes(path, contents[i % 4])
    done.set()
    thread.join(10)
    assert seen == {(200_000, 1)}


def test_new_files_have_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    path = atomic_write_bytes(tmp_path / "atomic", b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_links_are_followed_and_special_files_spared(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ImageFileError, match="not a regular file"):
            atomic_write_bytes(tmp_path / name, b"")


# Pairs


@pytest.fixture
def folders(tmp_path):
    def make(ir: list[str], vis: list[str]) -> tuple[Path, Path]:
        for folder, names in (("ir", ir), ("vis", vis)):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / name).write_bytes(b"")
        return tmp_path / "ir", tmp_path / "vis"

    return make


def test_pairs_by_stem(folders):
    ir, vis = folders(
        ["b.png", "a.1.bmp", ".hidden.png", "notes.txt", "c.JPG"],
        ["a.1.jpg", "c.tiff", "b.PNG", "Thumbs.db"],
    )
    (ir / "sub.png").mkdir()
    assert match_pairs(str(ir), vis) == [
        ("a.1", ir / "a.1.bmp", vis / "a.1.jpg"),
        ("b", ir / "b.png", vis / "b.PNG"),
        ("c", ir / "c.JPG", vis / "c.tiff"),
    ]


def test_stems_without_a_partner_are_named_on_both_sides(folders):
    ir, vis = folders([f"{i}.png" for i in range(9)], ["8.png", "x.png"])
    with pytest.raises(
        ImageFileError, match=r"only in \S+ir: 0, 1, 2, 3, 4 and 3 more; only in \S+vis: x;"
    ):
        match_pairs(ir, vis)


def test_one_sided_partners(folders):
    ir, vis = folders(["a.png"], ["a.png", "b.png"])
    with pytest.raises(ImageFileError, match=r"only in \S+ir: none; only in \S+vis: b;"):
        match_pairs(ir, vis)


def test_same_stem_twice(folders):
    ir, vis = folders(["a.png", "a.jpg"], ["a.png"])
    with pytest.raises(ImageFileError, match=r"ir: a\.jpg and a\.png have the same stem"):
        match_pairs(ir, vis)


def test_folders_that_cannot_pair(folders, tmp_path):
    ir, vis = folders(["a.png"], ["notes.txt"])
    with pytest.raises(ImageFileError, match=r"vis: no images in it \(\.png"):
        match_pairs(ir, vis)
    with pytest.raises(ImageFileError, match="none: not a folder"):
        match_pairs(ir, tmp_path / "none")
    with pytest.raises(ImageFileError, match=r"a\.png: not a folder"):
        match_pairs(ir / "a.png", vis)
    with pytest.raises(ImageFileError, match="given for infrared and for visible"):
        match_pairs(ir, ir)
