"""A real S3 server, the commands against it, and what may go wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from objectstore import DeadLine, s3_environment, s3_server
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.storage import objects
from ddfm_fast.storage.trouble import StorageError

pytestmark = [pytest.mark.extras, pytest.mark.slow]
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto.moto_server.werkzeug_app", exc_type=ImportError)

QUICK = ("--steps", "2", "-q")


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


@pytest.fixture(autouse=True)
def store(server, monkeypatch):
    """The server with an empty bucket called "box"; its file system."""
    failing, port = server
    for name, value in s3_environment(port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0)
    failing.left = failing.failed = 0
    failing.refused = ""
    control(port, "reset")
    system = fresh()
    system.mkdir("box")
    return system


def fresh():
    """Return a file system that reads the environment's credentials once more."""
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    type(system).clear_instance_cache()
    return system


def control(port: int, what: str, data: bytes = b"") -> None:
    url, head = f"http://127.0.0.1:{port}/moto-api/{what}", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, data, head)).close()


@pytest.fixture
def folder(tmp_path, store):
    """Three pairs on the disk, and the same in the bucket."""
    generator = np.random.default_rng(7)
    for name in ("0", "1", "2"):
        for source, shape in (("ir", (24, 32)), ("vis", (24, 32, 3))):
            file = tmp_path / "data" / source / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(file)
            store.pipe_file(f"box/data/{source}/{name}.png", file.read_bytes())
    return tmp_path


def run(*arguments, code=0):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found


def test_a_pair_has_the_bytes_of_local_files(folder, store):
    data = folder / "data"
    run("fuse", data / "ir/0.png", data / "vis/0.png", "-o", folder / "local.png", *QUICK)
    run("fuse", "s3://box/data/ir/0.png", "s3://box/data/vis/0.png", "-o", "s3://box/f.png", *QUICK)
    assert store.cat_file("box/f.png") == (folder / "local.png").read_bytes()


def test_folders_are_fused_and_resumed_by_listing(folder, store):
    run("fuse", folder / "data/ir", folder / "data/vis", "-o", folder / "local", *QUICK)
    command = ("fuse", "s3://box/data/ir", "s3://box/data/vis", "-o", "s3://box/out/", "--json")
    run(*command, *QUICK)
    for name in ("0", "1", "2"):
        assert store.cat_file(f"box/out/{name}.png") == (folder / f"local/{name}.png").read_bytes()
    store.rm_file("box/out/1.png")
    found = json.loads(run(*command, *QUICK, "--skip-existing").stdout)
    assert [one["skipped"] for one in found["results"]] == [True, False, True]
    assert found["results"][1]["output"] == "s3://box/out/1.png"
    assert store.exists("box/out/1.png")


def test_a_batch_has_the_bytes_of_one_machine_and_is_resumed(folder, store):
    run("batch", folder / "data", "-o", folder / "local", *QUICK)
    command = ("batch", "s3://box/data", "-o", "s3://box/out", "--json", *QUICK)
    assert json.loads(run(*command).stdout)["done"] == 3
    for name in ("0", "1", "2"):
        assert store.cat_file(f"box/out/{name}.png") == (folder / f"local/{name}.png").read_bytes()
    again = json.loads(run(*command).stdout)
    assert (again["skipped"], again["done"], again["out"]) == (3, 0, "s3://box/out")
    store.rm_file("box/out/0.png")
    store.pipe_file("box/data/ir/2.png", store.cat_file("box/data/ir/1.png"))
    third = json.loads(run(*command).stdout)
    assert [one["status"] for one in third["results"]] == ["done", "skipped", "done"]
    assert json.loads(store.cat_file("box/out/ddfm_fast_report.json"))["done"] == 2
    assert len(store.find("box/out/ddfm_fast_history")) == 1


def test_a_result_that_was_replaced_by_one_of_its_size_is_made_again(folder, store):
    command = ("batch", "s3://box/data", "-o", "s3://box/out", "--json", *QUICK)
    run(*command)
    made = store.cat_file("box/out/1.png")
    store.pipe_file("box/out/1.png", made[::-1])
    again = json.loads(run(*command).stdout)
    assert [one["status"] for one in again["results"]] == ["skipped", "done", "skipped"]
    assert store.cat_file("box/out/1.png") == made


def test_a_history_is_merged_where_nothing_may_be_deleted(server, folder, store):
    """It is merged without an error, and no run adds objects."""
    failing, _ = server
    failing.refused = "DELETE"
    command = ("batch", "s3://box/data", "-o", "s3://box/out", "--json", *QUICK)
    for runs, name in enumerate(("0", "1", "2"), 1):
        done = json.loads(run(*command).stdout)["done"]
        assert (done, runs) in ((3, 1), (1, 2), (1, 3))
        assert len(store.find("box/out/ddfm_fast_history")) == runs + (runs > 1)
        store.pipe_file(f"box/out/{name}.png", b"other")
    with pytest.raises(StorageError, match="s3://box/out/1.png: may not be deleted"):
        objects.remove("s3://box/out/1.png")
    failing.refused = ""
    assert json.loads(run(*command).stdout)["done"] == 1
    assert len(store.find("box/out/ddfm_fast_history")) == 1
    assert json.loads(run(*command).stdout)["skipped"] == 3


def test_two_prefixes_to_a_local_folder(folder, store):
    run("batch", "s3://box/data/ir", "s3://box/data/vis", "-o", folder / "out", *QUICK)
    assert sorted(p.name for p in (folder / "out").glob("*.png")) == ["0.png", "1.png", "2.png"]


def test_a_manifest_in_the_bucket(folder, store):
    rows = [
        "ir,vis,name",
        "data/ir/0.png,data/vis/0.png,a",
        "s3://box/data/ir/1.png,data/vis/1.png,b/c",
        "data/ir/none.png,data/vis/1.png,d",
    ]
    store.pipe_file("box/list.csv", "\n".join(rows).encode())
    command = ("batch", "s3://box", "--manifest", "s3://box/list.csv", "-o", "s3://box/out")
    found = run(*command, *QUICK, code=1)
    assert "d: s3://box/data/ir/none.png: no such object" in found.output
    assert store.exists("box/out/a.png") and store.exists("box/out/b/c.png")
    local = folder / "list.csv"
    local.write_text("ir,vis\ns3://box/data/ir/0.png,s3://box/data/vis/0.png\n")
    command = ("batch", local, "-o", folder / "out", "--json", *QUICK)
    assert json.loads(run(*command).stdout)["done"] == 1
    assert json.loads(run(*command).stdout)["skipped"] == 1


def test_the_pairs_are_listed_by_their_urls(folder):
    found = json.loads(run("batch", "s3://box/data", "--list", "--json").stdout)
    assert found["pairs"][0]["vis"] == "s3://box/data/vis/0.png" and len(found["pairs"]) == 3


def test_a_server_that_fails_twice_is_asked_again(server, store):
    failing, _ = server
    failing.word, failing.left = "/a.bin", 2
    objects.put("s3://box/a.bin", b"bytes")
    assert failing.failed == 2 and store.cat_file("box/a.bin") == b"bytes"
    failing.left = 2
    assert objects.read("s3://box/a.bin") == b"bytes" and failing.failed == 4
    failing.left = 99
    with pytest.raises(StorageError, match="s3://box/a.bin: cannot be read after 4 tries"):
        objects.read("s3://box/a.bin")
    assert failing.failed == 4 + objects.TRIES


def test_one_object_that_fails_takes_no_other_down(server, folder, store):
    failing, _ = server
    failing.word, failing.left = "/data/ir/1.png", 99
    command = ("batch", "s3://box/data", "-o", "s3://box/out", "--json", *QUICK)
    found = json.loads(run(*command, code=1).stdout)
    assert [one["status"] for one in found["results"]] == ["done", "failed", "done"]
    failing.left = 0
    assert json.loads(run(*command).stdout)["done"] == 1


def one_sentence(found) -> str:
    lines = found.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: s3://box/"), found.output
    return lines[0]


def test_wrong_credentials_are_one_sentence(server, folder, store):
    _, port = server
    arguments = ("s3://box/data/vis/0.png", "-o", "s3://box/f.png", *QUICK)
    control(port, "reset-auth", b"0")  # from here on the server checks credentials
    try:
        type(store).clear_instance_cache()
        found = run("fuse", "s3://box/data/ir/0.png", *arguments, code=2)
        assert "AWS_ACCESS_KEY_ID" in one_sentence(found)
        found = run("batch", "s3://box/data", "-o", "s3://box/out", *QUICK, code=2)
        assert "s3://box/data: may not be read" in one_sentence(found)
        with pytest.raises(StorageError, match=r"credentials are refused \(InvalidAccessKeyId\)"):
            objects.listing("s3://box/data")
    finally:
        control(port, "reset-auth", b"inf")


def test_no_credentials_are_one_sentence(folder, store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    type(store).clear_instance_cache()
    found = run("batch", "s3://box/data", "-o", "s3://box/out", *QUICK, code=2)
    assert "there are no credentials" in one_sentence(found)


def test_a_bucket_that_is_not_there_and_an_output_that_is_an_input(folder):
    pair = ("s3://box/data/ir/0.png", "s3://box/data/vis/0.png")
    found = run("fuse", *pair, "-o", "s3://nothing-here/f.png", *QUICK, code=2)
    assert "s3://nothing-here/f.png: there is no such bucket" in found.output
    found = run("fuse", *pair, "-o", pair[0], *QUICK, code=2)
    assert "would replace an input" in found.output
    found = run("batch", "s3://box/none", "-o", "s3://box/out", *QUICK, code=2)
    assert "s3://box/none: no such object or prefix" in found.output


def test_an_address_where_nobody_answers(folder, store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(store).clear_instance_cache()
    found = run("batch", "s3://box/data", "-o", "s3://box/out", *QUICK, code=2)
    assert "cannot be read after 4 tries" in one_sentence(found)


@pytest.mark.parametrize("size", [2_000_000, 120_000_000], ids=["one request", "in parts"])
def test_a_kill_in_the_middle_of_a_put_leaves_the_old_object(server, store, size):
    _, port = server
    store.pipe_file("box/a.bin", b"old")
    line = DeadLine(port, 500_000)
    code = f"from ddfm_fast.storage.objects import put\nput('s3://box/a.bin', b'x' * {size})"
    env = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        assert line.is_dead.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        line.close()
    assert store.cat_file("box/a.bin") == b"old"
    assert store.find("box") == ["box/a.bin"]
