"""The rarer kinds of files in folders, pairs and commands."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import png, random_array, tiff
from test_counts import table
from test_radiometric import fff, flir
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.files.pairing import match_pairs
from ddfm_fast.files.paths import ImageFileError, image_files
from ddfm_fast.files.reading import image_size, read_image, read_image_bytes
from ddfm_fast.video.sources import pictures

CELSIUS = np.random.default_rng(0).normal(20, 9, (24, 32))


@pytest.fixture
def folders(tmp_path):
    for name in ("ir", "vi"):
        (tmp_path / name).mkdir()
    return tmp_path / "ir", tmp_path / "vi"


def test_folders_find_the_rarer_kinds(folders):
    ir, vi = folders
    np.save(ir / "a.npy", CELSIUS)
    (vi / "a.webp").write_bytes(b"")
    assert match_pairs(ir, vi) == [("a", ir / "a.npy", vi / "a.webp")]
    assert pictures(ir) == [ir / "a.npy"]


def test_an_array_beside_its_picture_is_left_out(folders):
    ir, vi = folders
    for folder in folders:
        (folder / "a.png").write_bytes(png(random_array((16, 20, 1))))
    np.save(ir / "a.npy", CELSIUS)
    (vi / "a.heic").write_bytes(b"")
    assert match_pairs(ir, vi) == [("a", ir / "a.png", vi / "a.png")]
    assert image_files(sorted(ir.iterdir())) == [ir / "a.png"] == pictures(ir)
    (ir / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"a\.jpg and a\.png have the same stem"):
        match_pairs(ir, vi)


def test_tables_and_matrices_in_a_folder_are_no_pictures(folders):
    ir, vi = folders
    for folder in folders:
        (folder / "a.png").write_bytes(png(random_array((16, 20, 1))))
        for name in ("labels.csv", "calibration.npz", "camera.mat", "notes.txt", "a.dng"):
            (folder / name).write_bytes(b"")
    assert [name for name, *_ in match_pairs(ir, vi)] == ["a"]


def test_sizes_of_the_rarer_kinds(tmp_path):
    np.save(tmp_path / "a.npy", CELSIUS)
    assert image_size(tmp_path / "a.npy") == (24, 32)
    (tmp_path / "a.tif").write_bytes(tiff(CELSIUS, 1, t274=6))
    assert image_size(tmp_path / "a.tif") == (32, 24)
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY" + bytes(40))
    assert image_size(tmp_path / "b.npy") is None
    (tmp_path / "c.csv").write_text("1,2\n")
    assert image_size(tmp_path / "c.csv") is None


def test_a_picture_of_four_channels_keeps_its_warning(tmp_path):
    """MFNet's files have the infrared as alpha, which pairing takes apart."""
    array = random_array((16, 20, 4))
    (tmp_path / "a.png").write_bytes(png(array))
    with pytest.warns(UserWarning, match="alpha is dropped"):
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), array[..., :3])


@pytest.mark.parametrize("size", ["32", "32x", "axb", "0x24", "32x24x3", "-32x24"])
def test_raw_size_of_commands_is_checked(tmp_path, size):
    (tmp_path / "a.raw").write_bytes(bytes(2 * 24 * 32))
    given = ["fuse", str(tmp_path / "a.raw"), str(tmp_path / "a.raw"), f"--raw-size={size}"]
    result = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "out.png")])
    assert result.exit_code == 2
    assert "--raw-size" in result.output and "640x512" in result.output


@pytest.mark.parametrize("kind", ["raw", "npy", "csv"])
def test_fuse_reads_them(tmp_path, kind):
    counts = (7000 + 100 * (CELSIUS - CELSIUS.min())).astype(np.uint16)
    ir, vis = tmp_path / f"a.{kind}", tmp_path / "vis.png"
    if kind == "npy":
        np.save(ir, counts)
    elif kind == "csv":
        ir.write_text("\n".join(";".join(map(str, row)) for row in counts))
    else:
        ir.write_bytes(struct.pack(f"<{counts.size}H", *counts.ravel()))
    vis.write_bytes(png(random_array((24, 32, 3))))
    given = ["fuse", str(ir), str(vis), "-o", str(tmp_path / "out.png"), "--steps", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, [*given, "--raw-size", "32x24"])
    assert result.exit_code == 0, result.output
    assert read_image(tmp_path / "out.png").shape == (24, 32, 3)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tif", "a.jpg", "a.csv"])
def test_bytes_are_read_as_files_are(tmp_path, name):
    if name == "a.tif":
        pytest.importorskip("tifffile")
    (tmp_path / name).write_bytes(seeds()[name])
    np.testing.assert_array_equal(
        read_image_bytes(seeds()[name], name), read_image(tmp_path / name)
    )


def seeds() -> dict[str, bytes]:
    buffers = {"a.npy": io.BytesIO(), "a.npz": io.BytesIO()}
    np.save(buffers["a.npy"], CELSIUS)
    np.savez_compressed(buffers["a.npz"], x=CELSIUS)
    return {
        **{name: buffer.getvalue() for name, buffer in buffers.items()},
        "a.tif": tiff(CELSIUS, 1),
        "a.jpg": flir(fff()),
        "a.csv": table(";", ",").encode(),
        "a.jxl": b"\xff\x0a" + bytes(range(200)),
        "a.heic": b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(200),
    }


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_files_raise_nothing_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    name, content = data.draw(st.sampled_from(sorted(seeds().items())))
    damaged = bytearray(content[: data.draw(st.integers(1, len(content)))])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(damaged), 400) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            array = read_image(folder / name, radiometric=True, max_pixels=10**6)
        except ImageFileError as error:
            assert name in str(error)
        else:
            assert array.ndim in (2, 3) and array.dtype.kind in "uif"
