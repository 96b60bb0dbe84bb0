"""Image files that are too large, damaged or something else."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import (
    encoded,
    png,
    random_array,
    tiff_front,
)
from PIL import Image

from ddfm_fast.files import reading
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image

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
        with reading.pillow_limit_lifted():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=long_reader)
    with reading.pillow_limit_lifted():
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


def test_the_truncation_helper_makes_a_readable_tiff(save):
    array = random_array((40, 48, 3), "uint16")
    np.testing.assert_array_equal(read_image(save(tiff_front(array))), array[..., ::-1])


def test_png_chunk_longer_than_the_file_is_not_allocated(save, monkeypatch):
    """Pillow reads past such a claim; OpenCV would take 4 GiB for it."""
    data = bytearray(png(random_array((16, 20, 3), "uint16")))
    data[33] = 0xEF
    monkeypatch.setattr(reading.cv2, "imdecode", lambda *_: pytest.fail("reached the decoder"))
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
    with pytest.raises(ImageFileError, match="cannot be reached .File name too long"):
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
