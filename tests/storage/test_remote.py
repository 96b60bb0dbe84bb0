"""Pairs behind URLs without a server: a zip file in, memory out, and portions that are cut off."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.api import Fuser
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.remote import find_remote_pairs
from ddfm_fast.datasets.remote_batch import run_remote_batch
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.storage import objects
from ddfm_fast.storage.staging import Stage
from ddfm_fast.storage.trouble import StorageError, explained

pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")


@pytest.fixture(autouse=True)
def _empty():
    memory.MemoryFileSystem.store.clear()
    memory.MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def fuser():
    return Fuser(prior=lambda x, _t: x * 0.1, steps=2)


def data_set(tmp_path, count=5) -> str:
    """Write pairs to the disk and to a zip file; return the zip file's URL."""
    generator = np.random.default_rng(11)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        for name in range(count):
            for source, shape in (("ir", (18, 20)), ("vis", (18, 20, 3))):
                buffer = io.BytesIO()
                values = generator.integers(0, 255, shape, dtype=np.uint8)
                Image.fromarray(values).save(buffer, "PNG")
                file = tmp_path / "data" / source / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(buffer.getvalue())
                pack.writestr(f"{source}/{name}.png", buffer.getvalue())
        pack.writestr("../ir/outside.png", b"no place below the folder")
    return f"zip://::file://{tmp_path}/a.zip"


def remote(url, fuser, out="memory://out", **options):
    with Stage() as stage:
        items = find_remote_pairs(stage, url)
        report = run_remote_batch(stage, items, out, fuser, **options)
        assert all(path.stat().st_size == 0 for path in stage.objects)
        return report


@pytest.mark.filterwarnings("ignore:zip.*left out")
def test_portions_have_the_bytes_of_local_files_and_resume(tmp_path, fuser):
    url = data_set(tmp_path)
    local = run_batch(find_pairs(tmp_path / "data"), tmp_path / "local", fuser)
    found = remote(url, fuser, portion=2)
    assert found.count("done") == local.count("done") == 5
    for name in range(5):
        there = objects.read(f"memory://out/{name}.png")
        assert there == (tmp_path / f"local/{name}.png").read_bytes()
    assert len(objects.listing("memory://out/ddfm_fast_history")) == 1
    assert remote(url, fuser).count("skipped") == 5
    assert remote(url, fuser, redo=True).count("done") == 5
    assert remote(url, fuser.with_options(seed=1)).count("done") == 5


@pytest.mark.filterwarnings("ignore:zip.*left out")
def test_what_was_put_without_its_history_is_done_again(tmp_path, fuser, monkeypatch):
    url, put = data_set(tmp_path), objects.put

    def cut_off(target, data):
        if "ddfm_fast_history" in target and objects.listing("memory://out/ddfm_fast_history"):
            raise KeyboardInterrupt
        put(target, data)

    with monkeypatch.context() as patched:
        patched.setattr("ddfm_fast.datasets.remote_history.put", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remote(url, fuser, portion=2)
    assert objects.look("memory://out/3.png") is not None
    again = remote(url, fuser)
    assert [one.status for one in again.results] == ["skipped"] * 2 + ["done"] * 3


@pytest.mark.filterwarnings("ignore:zip.*left out")
def test_pictures_whose_history_cannot_be_put_are_done_and_redone(tmp_path, fuser, monkeypatch):
    def fail(url, _data):
        raise explained(TimeoutError("busy"), url, "written", 4)

    url = data_set(tmp_path)
    with monkeypatch.context() as patched, pytest.warns(DDFMWarning, match="run fuses 0, 1 again"):
        patched.setattr("ddfm_fast.datasets.remote_history.put", fail)
        assert remote(url, fuser, portion=2).count("done") == 5
    assert remote(url, fuser).count("done") == 5


@pytest.mark.filterwarnings("ignore:zip.*left out")
def test_a_place_that_takes_nothing_ends_the_run_at_once(tmp_path, fuser, monkeypatch):
    def refuse(url, _data):
        raise explained(PermissionError("no"), url, "written")

    monkeypatch.setattr("ddfm_fast.storage.staging.put", refuse)
    with pytest.raises(StorageError, match=r"memory://out/\d.png: may not be written"):
        remote(data_set(tmp_path), fuser, portion=2)


def test_names_that_lead_out_of_the_folder_are_left_out(tmp_path):
    url = data_set(tmp_path)
    with Stage() as stage, pytest.warns(UserWarning, match="left out"):
        stage.source(url)
        assert all(stage.folder in path.parents for path in stage.objects)
        assert not [path for path in stage.objects if ".." in path.parts]


def test_errors_name_urls(tmp_path):
    objects.put("memory://odd/ir/1.png", b"1")
    objects.put("memory://odd/vis/2.png", b"2")
    with Stage() as stage:
        with pytest.raises(ImageFileError, match=r"memory://odd/ir/1\.png") as caught:
            find_remote_pairs(stage, "memory://odd")
        assert str(stage.folder) not in str(caught.value)


def test_an_object_without_a_partner_fails_alone(tmp_path, fuser):
    data_set(tmp_path, 1)
    for source in ("ir", "vis"):
        objects.put(
            f"memory://lone/{source}/0.png", (tmp_path / f"data/{source}/0.png").read_bytes()
        )
    objects.put("memory://lone/ir/lone.png", b"1")
    with Stage() as stage:
        items = find_remote_pairs(stage, "memory://lone", strict=False)
        report = run_remote_batch(stage, items, "memory://fused", fuser)
    assert [one.status for one in report.results] == ["done", "failed"]
    assert (report.results[1].error or "").startswith("memory://lone/ir/lone.png has no partner")


def test_the_commands_take_urls(tmp_path):
    data_set(tmp_path, 1)
    pack = f"::file://{tmp_path}/a.zip"
    arguments = [f"zip://ir/0.png{pack}", f"zip://vis/0.png{pack}", "--steps", "2", "-q"]
    found = CliRunner().invoke(app, ["fuse", *arguments, "-o", "memory://f.png", "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)["results"][0]
    assert report["output"] == "memory://f.png" and report["ir"] == arguments[0]
    assert objects.read("memory://f.png")[:4] == b"\x89PNG"
    found = CliRunner().invoke(app, ["fuse", *arguments, "-o", f"zip://f.png{pack}"])
    assert found.exit_code == 2 and "read-only" in found.output
    several = ["batch", f"zip://::file://{tmp_path}/a.zip", "-o", "memory://x", "-q"]
    found = CliRunner().invoke(app, [*several, "--range-over", "dataset"])
    assert found.exit_code == 0, found.output
    assert objects.read("memory://x/0.png")[:4] == b"\x89PNG"
