"""Writing image files atomically, and pairing two folders by stem."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from image_bytes import (
    random_array,
)

from ddfm_fast import DDFMWarning
from ddfm_fast.files.pairing import match_pairs
from ddfm_fast.files.paths import ImageFileError, atomic_write_bytes, ensure_writable_dir
from ddfm_fast.files.writing import write_image

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

    monkeypatch.setattr(tempfile, "TemporaryFile", deny)
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
    with pytest.warns(
        DDFMWarning, match="left out, as they are not files and have no partner: .*sub.png"
    ):
        found = match_pairs(str(ir), vis)
    assert found == [
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
    with pytest.raises(ImageFileError, match=r"vis: has no images; expected files ending in \.png"):
        match_pairs(ir, vis)
    with pytest.raises(ImageFileError, match="none: not a folder"):
        match_pairs(ir, tmp_path / "none")
    with pytest.raises(ImageFileError, match=r"a\.png: not a folder"):
        match_pairs(ir / "a.png", vis)
    with pytest.raises(ImageFileError, match="given for infrared and for visible"):
        match_pairs(ir, ir)
