"""Objects in memory, in zip files and on the disk: read, listed, written whole, tried again."""

from __future__ import annotations

import errno
import io
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import image_size, read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.priors.load import EMBEDDED, file_identity, load_prior
from ddfm_fast.storage import objects
from ddfm_fast.storage.trouble import StorageError

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    memory.MemoryFileSystem.store.clear()
    memory.MemoryFileSystem.pseudo_dirs[:] = [""]
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0)


class Flaky(memory.MemoryFileSystem):
    """Fails for the next ``left`` calls."""

    protocol = "flaky"
    left, error, calls = 0, OSError(errno.EBUSY, "slow down"), 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _fail(self):
        type(self).calls += 1
        if self.left > 0:
            type(self).left -= 1
            raise self.error

    def cat_file(self, path, **kwargs):
        self._fail()
        return super().cat_file(path, **kwargs)

    def mv(self, *args, **kwargs):
        self._fail()
        return super().mv(*args, **kwargs)


@pytest.fixture
def flaky():
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.left = Flaky.calls = 0
    return Flaky


def picture(shape=(5, 7, 3)):
    values = np.random.default_rng(3).integers(0, 255, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return values, file.getvalue()


def test_objects_are_put_looked_at_listed_and_read(tmp_path):
    objects.put("memory://box/b/2.png", b"22")
    objects.put("memory://box/a.png", b"1")
    assert objects.look("memory://box/a.png").size == 1
    assert objects.look("memory://box/b").is_prefix
    assert objects.look("memory://box/none") is None
    found = objects.listing("memory://box")
    assert [(name, one.size) for name, one in found.items()] == [("a.png", 1), ("b/2.png", 2)]
    assert found["b/2.png"].url == "memory://box/b/2.png"
    assert objects.listing("memory://nothing") == {}
    assert objects.read("memory://box/b/2.png") == b"22"
    assert objects.fetch("memory://box/a.png", tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(StorageError, match="memory://box/x: no such object"):
        objects.read("memory://box/x")


def test_a_zip_file_is_a_folder_that_is_only_read(tmp_path):
    values, data = picture()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("ir/1.png", data)
    whole = f"zip://::file://{tmp_path}/a.zip"
    assert [*objects.listing(whole)] == ["ir/1.png"]
    inside = f"zip://ir/1.png::file://{tmp_path}/a.zip"
    assert np.array_equal(read_image(inside), values)
    with pytest.raises(StorageError, match="read-only"):
        objects.put(inside, b"")


def test_images_are_read_and_written_by_url():
    values, data = picture()
    objects.put("memory://box/a.png", data)
    assert np.array_equal(read_image("memory://box/a.png"), values)
    assert image_size("memory://box/a.png") == (5, 7)
    write_image("memory://box/b.tif", values)
    assert np.array_equal(read_image("memory://box/b.tif"), values)
    objects.put("memory://box/bad.png", data[:60])
    with pytest.raises(ImageFileError, match="memory://box/bad.png: cannot be decoded"):
        read_image("memory://box/bad.png")
    objects.put("memory://box/empty.png", b"")
    with pytest.raises(ImageFileError, match="memory://box/empty.png: the object is empty"):
        read_image("memory://box/empty.png")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EBUSY, "slow down"), TimeoutError("late"), ConnectionResetError("gone")],
)
def test_another_try_where_it_may_help(flaky, error):
    flaky().pipe_file("/a", b"1")
    flaky.left, flaky.error = 2, error
    assert objects.read("flaky://a") == b"1" and flaky.calls == 3
    flaky.left, flaky.calls = 99, 0
    with pytest.raises(StorageError, match="flaky://a: cannot be read after 4 tries"):
        objects.read("flaky://a")
    assert flaky.calls == objects.TRIES


def test_no_other_try_where_it_cannot_help(flaky):
    flaky.left, flaky.error = 99, PermissionError("no")
    with pytest.raises(StorageError, match="flaky://a: may not be read") as caught:
        objects.read("flaky://a")
    assert flaky.calls == 1 and caught.value.is_common


def test_a_place_that_writes_in_parts_gets_a_temporary_object_first(flaky):
    objects.put("flaky://box/a", b"old")
    flaky.left, flaky.error = 99, OSError(errno.ENOSPC, "no room")
    with pytest.raises(StorageError, match="no room"):
        objects.put("flaky://box/a", b"new")
    flaky.left = 0
    assert objects.read("flaky://box/a") == b"old"
    assert [*objects.listing("flaky://box")] == ["a"]


def test_files_on_the_disk_are_objects_too(tmp_path):
    objects.put(f"file://{tmp_path}/new/a.bin", b"1")
    assert (tmp_path / "new/a.bin").read_bytes() == b"1"
    assert [*objects.listing(f"file://{tmp_path}")] == ["new/a.bin"]


def test_schemes_that_cannot_be_used(monkeypatch):
    with pytest.raises(StorageError, match="foo://a: an unknown scheme"):
        objects.look("foo://a")
    with pytest.raises(StorageError, match="https://host/a: a web server lists no files"):
        objects.listing("https://host/a")
    with pytest.raises(StorageError, match="https:// is read-only"):
        objects.put("https://host/a", b"")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs://b/a: needs gcsfs.*ddfm_fast\[gs\]'"):
        objects.read("gs://b/a")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"needs fsspec.*pip install 'ddfm_fast\[storage\]'"):
        objects.read("s3://b/a")


def test_a_prior_is_kept_until_its_object_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFM_FAST_CACHE", str(tmp_path / "kept"))
    url, fetched = "memory://priors/mine.safetensors", []
    fetch = objects.fetch
    monkeypatch.setattr("ddfm_fast.storage.cache.fetch", lambda *a: fetched.append(a) or fetch(*a))
    objects.put(url, EMBEDDED.read_bytes())
    first, again = load_prior(url), load_prior(url)
    assert len(fetched) == 1 and first.name == again.name == "mine"
    assert first.fingerprint == load_prior(EMBEDDED).fingerprint
    before = file_identity(url)
    objects.put(url, EMBEDDED.read_bytes())
    assert file_identity(url) != before
    load_prior(url)
    assert len(fetched) == 2
    with pytest.raises(ValueError, match="memory://priors/other.pt: no such object"):
        load_prior("memory://priors/other.pt")
