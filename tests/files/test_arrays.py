"""Arrays that programs save, none of which is unpickled."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest

from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image, read_picture
from ddfm_fast.images.doubts import DDFMWarning

RANDOM = np.random.default_rng(0)
CELSIUS = RANDOM.normal(20, 9, (40, 52))


@contextlib.contextmanager
def at_most(size: int):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("dtype", "back"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), (">f8", "f8"), ("u1", "u1"), ("u2", "u2"),
     ("i2", "i2"), ("i8", "i4")],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(40, 52), (40, 52, 3), (40, 52, 1), (1, 40, 52), (3, 40, 52)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_comes_back_exactly(tmp_path, dtype, back, shape, order):
    low = 0 if dtype[0] == "u" else -100
    array = np.asarray(RANDOM.integers(low, 101, shape).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    found = read_image(tmp_path / "a.npy")
    assert found.dtype == back and found.flags.c_contiguous
    wanted = np.moveaxis(array, 0, -1) if shape[0] in (1, 3) else array
    np.testing.assert_array_equal(found, wanted[..., 0] if 1 in shape else wanted)


def test_masks_become_black_and_white(tmp_path):
    mask = RANDOM.random((40, 52)) > 0.5
    np.save(tmp_path / "a.npy", mask)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), mask * 255)


def test_nan_is_no_data(tmp_path):
    for value, expected in ((np.nan, np.nan), (1.0, None)):
        array = CELSIUS.copy()
        array[2, 3] = value
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_equal(read_picture(tmp_path / "a.npy").nodata, expected)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    array = np.empty((40, 52), object)
    array[:] = Trap()
    data = b"\x93NUMPY\x01\0" + struct.pack("<H", 118)
    data += b"{'descr': '|O', 'fortran_order': False, 'shape': (40, 52), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(data + pickle.dumps(array))
    with pytest.raises(ImageFileError, match=r"a\.npy: holds Python objects, which are never"):
        read_image(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data + pickle.dumps(array))
    with pytest.raises(ImageFileError, match=r"a\.npz: holds Python objects, which are never"):
        read_image(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["c8", "U3", "M8[s]", "f4,i4"])
def test_other_dtypes_are_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((40, 52), dtype))
    with pytest.raises(ImageFileError, match="a.npy: holds .*expected integers, or floats"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(), (40,), (40, 52, 7), (2, 40, 52), (5, 40, 52, 3), (0, 52)])
def test_other_shapes_are_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ImageFileError, match=r"a\.npy: (holds an array of shape|says it is)"):
        read_image(tmp_path / "a.npy")


def npy_header(shape: str, descr="<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (npy_header("(99999, 99999)"), "more than the limit"),
        (npy_header("(9999, 9999)"), "an array of 799840008 bytes in"),
        (npy_header("(-5, 40)"), "says it is 40x-5|expected at least one"),
        (npy_header("(16, 16)") + bytes(2047), "an array|bytes are there"),
        (b"\x93NUMPY\x09\0" + bytes(90), "cannot be decoded|version"),
        (b"\x93NUMPY", "cannot be decoded"),
        (npy_header("__import__('os').getpid()"), "cannot be decoded"),
    ],
)
def test_damaged_and_hostile_npy(tmp_path, data, match):
    (tmp_path / "a.npy").write_bytes(data)
    with at_most(1 << 20), pytest.raises(ImageFileError, match=match):
        read_image(tmp_path / "a.npy")


def test_npz_of_one_picture(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", celsius=CELSIUS, matrix=np.eye(3), time=4.0)
        np.testing.assert_array_equal(read_image(tmp_path / "a.npz"), CELSIUS)
    np.savez(tmp_path / "a.npz", ir=CELSIUS, vis=CELSIUS)
    with pytest.raises(ImageFileError, match=r"holds 2 arrays that may be pictures \(ir \(40, 52"):
        read_image(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", matrix=np.eye(3))
    with pytest.raises(ImageFileError, match="holds 0 arrays"):
        read_image(tmp_path / "a.npz")


def test_zip_bombs_are_not_unfolded(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_header("(20000, 20000)", "|u1") + bytes(1 << 24))
    with at_most(1 << 21), pytest.raises(ImageFileError, match="more than the limit"):
        read_image(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_header("(40, 52)", "|u1") + bytes(1 << 24))
    with at_most(1 << 21):
        assert read_image(tmp_path / "a.npz").shape == (40, 52)


def test_cut_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", celsius=CELSIUS)
    data = (tmp_path / "a.npz").read_bytes()
    for cut in (40, len(data) // 2, -5):
        (tmp_path / "a.npz").write_bytes(data[:cut])
        with pytest.raises(ImageFileError):
            read_image(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_mat(tmp_path, compressed):
    scipy = pytest.importorskip("scipy.io")
    for array in (CELSIUS, RANDOM.integers(0, 255, (40, 52, 3)).astype(np.uint8)):
        scipy.savemat(
            tmp_path / "a.mat", {"frame": array, "name": "x", "cell": np.array([1, "a"], object)},
            do_compression=compressed,
        )  # fmt: skip
        np.testing.assert_array_equal(read_image(tmp_path / "a.mat"), array)
        with pytest.raises(ImageFileError, match="2080 pixels, more than the limit"):
            read_image(tmp_path / "a.mat", max_pixels=2000)
        data = (tmp_path / "a.mat").read_bytes()
        (tmp_path / "a.mat").write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageFileError):
            read_image(tmp_path / "a.mat")


@pytest.mark.parametrize("dtype", ["f8", "f4", "u1", "i2", "u2", "i4", "u4", "i8", "bool"])
def test_mat_of_every_class(tmp_path, dtype):
    scipy = pytest.importorskip("scipy.io")
    array = (100 * RANDOM.random((40, 52))).astype(dtype)
    scipy.savemat(tmp_path / "a.mat", {"x": array})
    back = read_image(tmp_path / "a.mat")
    np.testing.assert_array_equal(back, array * 255 if dtype == "bool" else array)


def test_mat_of_several_and_of_no_picture(tmp_path):
    scipy = pytest.importorskip("scipy.io")
    scipy.savemat(tmp_path / "a.mat", {"ir": CELSIUS, "a_long_name_of_more_than_8": CELSIUS})
    with pytest.raises(ImageFileError, match=r"\(ir \(40, 52\), a_long_name_of_more_than_8 \(40"):
        read_image(tmp_path / "a.mat")
    scipy.savemat(tmp_path / "a.mat", {"text": "hello", "waves": CELSIUS + 1j})
    with pytest.raises(ImageFileError, match="holds 0 arrays"):
        read_image(tmp_path / "a.mat")


def test_mat_that_lies_or_unfolds(tmp_path):
    """A few bytes claim a matrix of 20,000 x 20,000, or unfold to much more than they claim."""
    scipy = pytest.importorskip("scipy.io")
    scipy.savemat(tmp_path / "a.mat", {"x": CELSIUS}, do_compression=True)
    data = (tmp_path / "a.mat").read_bytes()
    matrix = zlib.decompress(data[136:])
    at = matrix.index(struct.pack("<2i", 40, 52))
    huge = matrix[:at] + struct.pack("<2i", 20000, 20000) + matrix[at + 8 :]
    for body, match in (
        (huge, "400000000 pixels, more than the limit"),
        (matrix + bytes(1 << 24), None),
        (matrix[: at + 4000], "bytes for"),
    ):
        packed = zlib.compress(body)
        (tmp_path / "a.mat").write_bytes(data[:128] + struct.pack("<2I", 15, len(packed)) + packed)
        with at_most(1 << 20):
            if match is None:
                np.testing.assert_array_equal(read_image(tmp_path / "a.mat"), CELSIUS)
            else:
                with pytest.raises(ImageFileError, match=match):
                    read_image(tmp_path / "a.mat")


def test_mat_that_is_not_read(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: x" + bytes(600))
    with pytest.raises(ImageFileError, match="version 7.3, which cannot be read; .*-v7"):
        read_image(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: x" + bytes(600))
    with pytest.raises(ImageFileError, match="no MATLAB header"):
        read_image(tmp_path / "a.mat")


def exr(path, **channels):
    openexr = pytest.importorskip("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    with openexr.File(header, {n: np.ascontiguousarray(c) for n, c in channels.items()}) as file:
        file.write(str(path))


@pytest.mark.extras
@pytest.mark.parametrize("dtype", ["f2", "f4", "u4"])
def test_exr_of_gray_comes_back_exactly(tmp_path, dtype):
    array = (RANDOM.random((40, 52)) * 900).astype(dtype)
    exr(tmp_path / "a.exr", Y=array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.exr"), array)
    with pytest.raises(ImageFileError, match="2080 pixels, more than the limit"):
        read_image(tmp_path / "a.exr", max_pixels=2000)
    data = (tmp_path / "a.exr").read_bytes()
    for cut in (20, len(data) // 2):
        (tmp_path / "a.exr").write_bytes(data[:cut])
        with pytest.raises(ImageFileError):
            read_image(tmp_path / "a.exr")


@pytest.mark.extras
def test_exr_of_color_is_encoded(tmp_path):
    light = RANDOM.normal(0.5, 0.6, (40, 52, 3)).astype(np.float32)
    exr(tmp_path / "a.exr", **{name: light[..., i] for i, name in enumerate("RGB")})
    with pytest.warns(DDFMWarning, match="holds linear light, and its colors are converted"):
        back = read_image(tmp_path / "a.exr")
    size = np.abs(light.astype(float))
    wanted = np.where(size <= 0.0031308, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(back, np.sign(light) * wanted, atol=1e-6)
    exr(tmp_path / "b.exr", Z=light[..., 0], N=light[..., 1])
    with pytest.raises(ImageFileError, match="holds the channels N, Z, expected R, G, B or one"):
        read_image(tmp_path / "b.exr")


def test_exr_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(600))
    with pytest.raises(ImageFileError, match=r"OpenEXR needs OpenEXR.*TIFF of 32-bit floats"):
        read_image(tmp_path / "a.exr")


def test_arrays_by_content(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, CELSIUS)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), CELSIUS)
