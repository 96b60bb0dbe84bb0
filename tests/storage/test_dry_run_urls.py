"""``--dry-run`` of commands whose places are URLs: listed and looked for, never fetched."""

from __future__ import annotations

import json
import tempfile

import pytest
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.storage import objects, staging

pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")
QUICK = ("--preset", "instant")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Objects in memory, of which nothing may be fetched or written; the current folder is empty.

    There are pictures 0, 1 and 2 of both sources, and videos a and b.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory.MemoryFileSystem.store.clear()
    memory.MemoryFileSystem.pseudo_dirs[:] = [""]
    system = memory.MemoryFileSystem()
    for name in ("data/ir/0.png", "data/ir/1.png", "data/ir/2.png"):
        system.pipe_file(f"/{name}", b"x")
        system.pipe_file(f"/{name.replace('/ir/', '/vis/')}", b"x")
    for name in ("a_T.mp4", "a_RGB.mp4", "b_T.mp4", "b_RGB.mp4"):
        system.pipe_file(f"/clips/{name}", b"x")
    before = {path: system.cat_file(path) for path in system.find("/")}
    for module, name in ((staging, "fetch"), (staging, "put"), (objects, "put_file")):
        monkeypatch.setattr(module, name, None)
    yield system
    for path in system.find("/"):
        assert system.cat_file(path) == before.get(path, b"")
    assert [*tmp_path.iterdir()] == [], "nothing is written here"


def call(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def rows(*arguments: object, code: int = 0) -> list[dict]:
    found = call(*arguments, "--dry-run", "--json")
    assert found.exit_code == code, found.output
    report = json.loads(found.stdout)
    assert report["ok"] is (code == 0) and report["dry_run"]
    return report["items"]


def refused(*arguments: object) -> str:
    found = call(*arguments, "--dry-run")
    assert found.exit_code == 2 and found.stderr.count("\n") <= 2, found.output
    return found.stderr


def test_fuse(store):
    store.pipe_file("/out/1.png", b"")
    sources = ("memory://data/ir", "memory://data/vis")
    found = rows("fuse", *sources, "-o", "memory://out", "--panel", *QUICK)
    assert [(row["output"], row["there"]) for row in found] == [
        ("memory://out/0.png", False), ("memory://out/1.png", True), ("memory://out/2.png", False),
    ]  # fmt: skip
    assert found[0]["ir"] == "memory://data/ir/0.png" and found[0]["missing"] == []
    assert found[0]["panel"] == "memory://out/0.panel.png"
    shown = call("fuse", *sources, "-o", "memory://out", *QUICK, "--dry-run", "--skip-existing")
    line = "memory://data/ir/1.png + memory://data/vis/1.png -> memory://out/1.png"
    assert f"{line}  (already there: left alone)\n" in shown.stdout
    pair = ("memory://data/ir/0.png", "memory://data/vis/0.png")
    (row,) = rows("fuse", *pair, "-o", "new/o.png", *QUICK)
    assert (row["output"], row["there"]) == ("new/o.png", False)
    assert "none.png: no such object" in refused("fuse", "memory://none.png", pair[1], "-o", "o/")
    assert "would replace an input" in refused("fuse", *pair, "-o", pair[0])
    assert "read-only" in refused("fuse", *pair, "-o", "https://host/o.png")


def test_lists_of_urls(store, tmp_path):
    (tmp_path / "a.txt").write_text("memory://data/ir/0.png\nmemory://data/ir/9.png\n")
    (tmp_path / "b.txt").write_text("memory://data/vis/0.png\nmemory://data/vis/0.png\n")
    line = ("fuse", "@a.txt", "@b.txt", "-o", "new", *QUICK)
    found = rows(*line, code=1)
    assert [row["missing"] for row in found] == [[], ["memory://data/ir/9.png"]]
    assert found[1]["output"] == "new/9.png"
    assert "  not there: memory://data/ir/9.png" in call(*line, "--dry-run").stdout
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").unlink()


def test_batch(store, tmp_path):
    store.pipe_file("/out/0.png", b"")
    found = rows("batch", "memory://data", "-o", "memory://out", *QUICK)
    assert [(row["ir"], row["there"]) for row in found] == [
        (f"memory://data/ir/{n}.png", n == 0) for n in range(3)
    ]
    found = rows("batch", "memory://data", "-o", "new", "--format", "jpg", *QUICK)
    assert found[2]["output"] == "new/2.jpg"
    (tmp_path / "pairs.csv").write_text(
        "ir,vis\nmemory://data/ir/0.png,memory://data/vis/0.png\n"
        "memory://data/ir/8.png,memory://data/vis/8.png\n"
    )
    found = rows("batch", "pairs.csv", "-o", "memory://out", *QUICK, code=1)
    assert found[1]["missing"] == ["memory://data/ir/8.png", "memory://data/vis/8.png"]
    assert found[0]["there"] and not found[1]["there"]
    (tmp_path / "pairs.csv").unlink()
    assert "--panel works only" in refused("batch", "memory://data", "-o", "out", "--panel")
    assert "read-only" in refused("batch", "memory://data", "-o", "https://host/out")
    on_ray = ("-o", "memory://out", "--on", "ray")
    assert "in the memory of this process" in refused("batch", "memory://data", *on_ray)


def test_video(store, tmp_path):
    store.pipe_file("/out/b.mp4", b"")
    found = rows("video", "memory://clips", "-o", "memory://out", "--skip-existing")
    assert [(row["ir"], row["output"], row["there"], row["left"]) for row in found] == [
        (f"memory://clips/{name}_T.mp4", f"memory://out/{name}.mp4", name == "b", True)
        for name in "ab"
    ]
    pair = ("memory://clips/a_T.mp4", "memory://clips/a_RGB.mp4")
    (row,) = rows("video", *pair, "-o", "memory://out/a.mp4")
    assert (row["there"], row["missing"]) == (False, [])
    (row,) = rows("video", "memory://data/ir", "memory://data/vis", "-o", "a.mp4")
    assert row["vis"] == "memory://data/vis"
    (row,) = rows("video", "memory://data", "-o", "a.mp4")
    assert row["ir"] == "memory://data/ir (3 pictures)"
    said = refused("video", "memory://clips/no.mp4", pair[1], "-o", "o.mp4")
    assert "IR is memory://clips/no.mp4, which does not exist" in said
    assert "would replace an input" in refused("video", *pair, "-o", pair[1])
    assert "expected a file there" in refused("video", *pair, "-o", "memory://out")
    on_ray = ("-o", "o.mp4", "--on", "ray")
    assert "in the memory of this process" in refused("video", *pair, *on_ray)


def test_volumes_are_local(store):
    line = ("volume", "memory://a.nii", "memory://b.nii", "-o", "c.nii")
    words = "IR is memory://a.nii; volumes are read and written locally: copy it"
    assert words in refused(*line)
    assert words in call(*line).stderr


def test_passwords_are_not_printed(store, monkeypatch):
    monkeypatch.setattr(objects, "existing", lambda urls: set())
    monkeypatch.setattr(objects, "look", lambda url: objects.Object(url, 1))
    url = "zip://{}::http://me:secret@host/a.zip"
    pair = (url.format("0_ir.png"), url.format("0_vis.png"))
    monkeypatch.setattr(staging, "look", lambda url: objects.Object(url, 1))
    for line in (("fuse", *pair, "-o", "o.png"), ("video", *pair, "-o", "o.mp4")):
        for more in ((), ("--json",)):
            found = call(*line, "--dry-run", *more)
            assert found.exit_code == 0 and "me:***@host" in found.stdout, found.output
            assert "secret" not in found.stdout + found.stderr
