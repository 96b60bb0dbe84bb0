"""ZIP files that lie, lead elsewhere or grow."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from ddfm_fast.page.archives import Bounds, pack, root_of, unpack


def made(path: Path, files: list[tuple[str | zipfile.ZipInfo, bytes]], **more) -> Path:
    with zipfile.ZipFile(path, "w", **more) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "a/../../out.png",
        "/etc/out.png",
        "..\\out.png",
        "C:\\out.png",
        "\\\\host\\share\\out.png",
        "a/b:stream.png",
        "con.png",
        "ir/NUL",
        "x" * 300 + ".png",
        "a\nb.png",
        "../notes.txt",
    ],
)
def test_names_that_lead_out_are_refused(name, folder, tmp_path):
    archive = made(tmp_path / "a.zip", [("ok.png", b"1"), (name, b"2")])
    with pytest.raises(ValueError, match="leads out of the archive"):
        unpack(archive, folder)
    assert everything(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    "names",
    [
        ("ir/a.png", "ir/a.png/b.png"),
        ("ir/a.png/b.png", "ir/a.png"),
        ("ir/" + "☃" * 190 + ".png",),
        ("ir/" * 3000 + "a.png",),
    ],
)
def test_names_that_no_folder_can_have(names, folder, tmp_path):
    archive = made(tmp_path / "a.zip", [(name, b"1") for name in names])
    with pytest.raises(ValueError, match=r"^a.zip: 'ir/.*cannot be unpacked .*shorter") as found:
        unpack(archive, folder)
    assert str(tmp_path) not in str(found.value)


def test_links_are_refused(folder, tmp_path):
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = made(tmp_path / "a.zip", [(link, b"/etc/passwd")])
    with pytest.raises(ValueError, match="is a link"):
        unpack(archive, folder)


def test_bombs_are_bounded_whatever_the_directory_says(folder, tmp_path):
    archive = made(
        tmp_path / "a.zip", [("a.png", bytes(10**6)), ("b.png", bytes(10**6))],
        compression=zipfile.ZIP_DEFLATED,
    )  # fmt: skip
    assert archive.stat().st_size < 10_000
    with pytest.raises(ValueError, match="more than 1500000 bytes when it is unpacked"):
        unpack(archive, folder, Bounds(bytes=1_500_000))
    assert sum(p.stat().st_size for p in folder.rglob("*.png")) <= 1_500_000
    lying = bytearray(archive.read_bytes())
    while (at := lying.find(struct.pack("<I", 10**6))) >= 0:
        lying[at : at + 4] = struct.pack("<I", 10)
    archive.write_bytes(lying)
    (other := tmp_path / "other").mkdir()
    with pytest.raises(ValueError):
        unpack(archive, other, Bounds(bytes=1_500_000))
    assert sum(p.stat().st_size for p in other.rglob("*.png")) <= 1_500_000


def test_counts_are_bounded(folder, tmp_path):
    archive = made(tmp_path / "a.zip", [(f"{n}.png", b"1") for n in range(6)])
    with pytest.raises(ValueError, match="more than 5 pictures"):
        unpack(archive, folder, Bounds(files=5))


def test_what_is_no_archive(folder, tmp_path):
    path = tmp_path / "a.zip"
    for data in (b"", b"PK\x03\x04 and nothing", b"\x89PNG"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.zip: is not a ZIP file that can be read"):
            unpack(path, folder)
    whole = made(path, [("a.png", bytes(range(256)) * 40)]).read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * 50 + whole[150:])  # the sum no longer fits
    with pytest.raises(ValueError, match="can be read"):
        unpack(path, folder)
    with pytest.raises(ValueError, match="holds no picture"):
        unpack(made(path, [("notes.txt", b"1")]), folder)


def test_encrypted_ones(folder, tmp_path):
    path = made(tmp_path / "a.zip", [("a.png", b"1")])
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(mark) + at] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted"):
        unpack(path, folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("other", ["ir/a.png", "IR/A.png"])
def test_names_that_come_twice(other, folder, tmp_path):
    """On systems that take both for one, the second would replace the first."""
    archive = made(tmp_path / "a.zip", [("ir/a.png", b"1"), (other, b"2")])
    with pytest.raises(ValueError, match="twice"):
        unpack(archive, folder)


def test_what_others_pack(folder, tmp_path):
    names = ["set/", "set/ir/a.png", "set/.hidden/b.png", "__MACOSX/set/._a.png", "set/Thumbs.db"]
    archive = made(tmp_path / "a.zip", [(name, b"1" * (not name.endswith("/"))) for name in names])
    assert unpack(archive, folder) == [folder / "set" / "ir" / "a.png"]
    assert root_of(folder) == folder / "set" / "ir"
    (folder / "set" / "vis").mkdir()
    assert root_of(folder) == folder / "set"


def test_packed_twice_alike(tmp_path):
    (tmp_path / "x").write_bytes(b"data")
    files = [("a/b.png", tmp_path / "x")]
    first, second = (pack(files, tmp_path / name).read_bytes() for name in ("1.zip", "2.zip"))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.read("a/b.png") == b"data" and archive.testzip() is None
