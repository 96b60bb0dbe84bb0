"""Shards, videos, tables and ranges of a data set behind URLs, against a real S3 server."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import pan, read_clip, write_clip
from packs import PAIRS, members, packed, unpacked
from PIL import Image
from test_s3 import control, folder, fresh, run, server, store  # noqa: F401

from ddfm_fast.integrations.ray import FuseBatch
from ddfm_fast.storage import objects

pytestmark = [pytest.mark.extras, pytest.mark.slow]
QUICK = ("--preset", "instant", "--align", "off", "--quiet")


def test_a_file_is_put_without_being_held(store, tmp_path):  # noqa: F811
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * 100)
    objects.put_file("s3://box/deep/a.bin", file)
    assert store.cat_file("box/deep/a.bin") == b"x" * 100
    objects.put_file(f"file://{tmp_path}/copy.bin", file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "copy.bin"]
    with pytest.raises(FileNotFoundError):
        objects.put_file("s3://box/b.bin", tmp_path / "none")


def test_shards(store, tmp_path):  # noqa: F811
    local = packed(tmp_path / "in.tar", members())
    run("batch", local, "-o", tmp_path / "out.tar", *QUICK)
    for name in ("0.tar", "1.tar"):
        store.pipe_file(f"box/in/{name}", local.read_bytes())
    command = ("batch", "s3://box/in/*.tar", "-o", "s3://box/out", "--json", *QUICK)
    report = json.loads(run(*command).stdout)
    assert [one["output"] for one in report["shards"]] == [f"s3://box/out/{n}.tar" for n in (0, 1)]
    for name in ("0.tar", "1.tar"):
        assert store.cat_file(f"box/out/{name}") == (tmp_path / "out.tar").read_bytes()
    assert len(store.find("box/out")) == 4
    store.pipe_file("box/in/1.tar", packed(tmp_path / "b.tar", members(PAIRS[:1])).read_bytes())
    again = json.loads(run(*command).stdout)["shards"]
    assert [(one["status"], one["done"]) for one in again] == [("skipped", 3), ("done", 1)]
    run("batch", "s3://box/in/0.tar", "-o", tmp_path / "here.tar", *QUICK)
    assert unpacked(tmp_path / "here.tar") == unpacked(tmp_path / "out.tar")
    said = run("batch", "s3://box/in/0.tar", "-o", "s3://none/0.tar", *QUICK, code=2).stderr
    assert said.startswith("error: s3://none/0.tar") and "no such bucket" in said


def test_a_video(store, tmp_path):  # noqa: F811
    for n, name in enumerate(("ir", "vis")):
        clip = write_clip(tmp_path / f"{name}.mp4", pan(4, n, channels=1 + 2 * n))
        store.pipe_file(f"box/{name}.mp4", clip.read_bytes())
    how = ("--preset", "realtime", "--image-preset", "instant", "--codec", "ffv1", "-q")
    run("video", tmp_path / "ir.mp4", tmp_path / "vis.mp4", "-o", tmp_path / "out.mkv", *how)
    pair = ("s3://box/ir.mp4", "s3://box/vis.mp4")
    found = run("video", *pair, "-o", "s3://box/out/fused.mkv", "--json", *how)
    (report,) = json.loads(found.stdout)["videos"]
    assert (report["out"], report["frames"]) == ("s3://box/out/fused.mkv", 4)
    (tmp_path / "there.mkv").write_bytes(store.cat_file("box/out/fused.mkv"))
    here, there = (read_clip(tmp_path / f"{name}.mkv")[0] for name in ("out", "there"))
    assert len(here) == 4 and np.array_equal(here, there)
    for arguments, words in (
        ((*pair, "-o", "s3://box/out"), "--out is s3://box/out; expected a file there"),
        ((*pair, "-o", "s3://box/ir.mp4"), "output s3://box/ir.mp4 would replace an input"),
        ((pair[0], "-o", "s3://box/o.mp4"), "s3://box/ir.mp4 and VIS is missing; give two streams"),
        (("s3://box/no.mp4", pair[1], "-o", "s3://box/o.mp4"), "s3://box/no.mp4: no such object"),
        ((*pair, "-o", "zip://a.mp4::s3://box/a.zip"), "zip:// is read-only"),
    ):
        assert words in run("video", *arguments, *how, code=2).stderr
    assert not store.exists("box/o.mp4")
    store.pipe_file("box/bad.mp4", b"no video")
    said = run("video", "s3://box/bad.mp4", pair[1], "-o", "s3://box/o.mp4", *how, code=2).stderr
    assert said.startswith("error: ir is s3://box/bad.mp4: cannot be opened as video")


def test_a_data_set_of_videos(store, tmp_path):  # noqa: F811
    """Planned by a dry run, too, which writes nothing; resumed by what is there."""
    (tmp_path / "set").mkdir()
    for n in range(2):
        for end, channels in (("T", 1), ("RGB", 3)):
            frames = pan(3, n + channels, size=32, channels=channels)
            clip = write_clip(tmp_path / f"set/{n}_{end}.mp4", frames)
            store.pipe_file(f"box/set/{clip.name}", clip.read_bytes())
    how = ("--preset", "realtime", "-q")
    run("video", tmp_path / "set", "-o", tmp_path / "out", *how)
    command = ("video", "s3://box/set", "-o", "s3://box/out", "--json", *how)
    planned = json.loads(run(*command, "--dry-run").stdout)["items"]
    assert not store.exists("box/out") and [one["there"] for one in planned] == [False] * 2
    videos = json.loads(run(*command).stdout)["videos"]
    assert [one["out"] for one in videos] == [one["output"] for one in planned]
    for n in range(2):
        assert store.cat_file(f"box/out/{n}.mp4") == (tmp_path / f"out/{n}.mp4").read_bytes()
    store.rm_file("box/out/1.mp4")
    again = json.loads(run(*command, "--skip-existing").stdout)["videos"]
    assert [one.get("skipped", False) for one in again] == [True, False]
    assert [*store.find("box/out")] == ["box/out/0.mp4", "box/out/1.mp4"]
    line = ("video", "s3://box/set", "-o", "s3://nobody/out", *how)
    assert "no such bucket" in run(*line, code=2).stderr


def test_evaluate_and_ablate(store, folder):  # noqa: F811
    for file in (folder / "data").rglob("*.png"):
        with Image.open(file) as picture:
            picture.resize((64, 48)).save(file)  # VIF needs 41 pixels
        store.pipe_file(f"box/data/{file.parent.name}/{file.name}", file.read_bytes())
    run("batch", folder / "data", "-o", folder / "fused", *QUICK)
    for file in (folder / "fused").glob("*.png"):
        store.pipe_file(f"box/fused/{file.name}", file.read_bytes())
    here = run("evaluate", folder / "data", "--fused", f"a={folder / 'fused'}", "--json", "-q")
    there = run("evaluate", "s3://box/data", "--fused", "a=s3://box/fused", "--json", "-q")
    a, b = (json.loads(one.stdout)["methods"][0] for one in (here, there))
    assert (a.pop("folder"), b.pop("folder")) == (str(folder / "fused"), "s3://box/fused")
    assert a == b
    mixed = run("evaluate", folder / "data", "--fused", "a=s3://box/fused", "--json", "-q")
    assert json.loads(mixed.stdout)["methods"][0]["name"] == "a"
    rows = ("--rows", "official", "--steps", "2", "--limit", "1", "-q")
    run("ablate", "s3://box/data", "-o", folder / "rows", *rows)
    assert (folder / "rows/ablation.csv").is_file()
    for command, words in (
        (("evaluate", "s3://box/data", "--baselines", "-o", "s3://box/t.csv"), "--out is s3://box"),
        (("evaluate", "s3://box/data", "--baselines", "--report", "s3://b/t.html"), "--report is"),
        (("ablate", "s3://box/data", "-o", "s3://box/rows", *rows), "--out is s3://box/rows; this"),
        (("evaluate", "s3://box/data", "--fused", "a=s3://box/none"), "s3://box/none: no such obj"),
        (("evaluate", "s3://box/none", "--baselines"), "s3://box/none: no such object or prefix"),
    ):
        assert words in run(*command, code=2).stderr


def test_one_range_for_all(store, folder):  # noqa: F811
    for n, file in enumerate(sorted((folder / "data/ir").glob("*.png"))):
        counts = np.random.default_rng(n).integers(7000 + n, 7400 + 9 * n, (24, 32))
        Image.fromarray(counts.astype(np.uint16)).save(file)
        store.pipe_file(f"box/data/ir/{file.name}", file.read_bytes())
    how = ("--range-over", "dataset", *QUICK)
    run("batch", folder / "data", "-o", folder / "local", *how)
    run("batch", "s3://box/data", "-o", "s3://box/out", *how)
    for name in ("0.png", "1.png", "2.png"):
        assert store.cat_file(f"box/out/{name}") == (folder / "local" / name).read_bytes()


def test_workers_of_ray_read_and_write_urls_themselves(store, folder):  # noqa: F811
    """What an actor runs, which needs no cluster: each row is read by the actor that fuses it."""
    run("batch", "s3://box/data", "-o", folder / "out", *QUICK)
    rows = {s: np.array([f"s3://box/data/{s}/{n}.png" for n in (0, 1, 9)], object)
            for s in ("ir", "vis")}  # fmt: skip
    worker = FuseBatch(out="s3://box/ray", preset="instant", align="off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = worker(rows)
    assert list(found["error"][:2]) == ["", ""]
    assert "s3://box/data/ir/9.png: no such object" in found["error"][2]
    for n in (0, 1):
        assert store.cat_file(f"box/ray/{n}.png") == (folder / f"out/{n}.png").read_bytes()


def test_an_unknown_scheme(tmp_path):
    out = ("-o", tmp_path / "out", *QUICK)
    for command in (
        ("fuse", "foo://a.png", "foo://b.png"), ("batch", "foo://a"), ("batch", "foo://a/b.tar"),
    ):  # fmt: skip
        said = run(*command, *out, code=2).stderr
        assert "unknown scheme" in said and said.count("\n") == 1, said
    found = Path(tmp_path / "out")
    assert not found.exists() or not any(found.rglob("*.png"))


@pytest.fixture
def reader(server, store, folder, monkeypatch):  # noqa: F811
    """The credentials of a user who may read the bucket and not write to it."""
    boto3 = pytest.importorskip("boto3")
    _, port = server
    iam = boto3.client("iam", endpoint_url=f"http://127.0.0.1:{port}")
    iam.create_user(UserName="reader")
    keys = iam.create_access_key(UserName="reader")["AccessKey"]
    rights = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=text)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    control(port, "reset-auth", b"0")  # from here on the server checks credentials
    type(store).clear_instance_cache()
    yield
    control(port, "reset-auth", b"inf")


def test_a_bucket_that_may_not_be_written(reader, tmp_path):
    """One sentence that names the object and the fix; what was there stays as it was."""
    before = fresh().find("box")
    pair = ("s3://box/data/ir/0.png", "s3://box/data/vis/0.png")
    packed(tmp_path / "a.tar", members())
    for command in (
        ("fuse", *pair, "-o", "s3://box/out/0.png"), ("batch", "s3://box/data", "-o", "s3://box/o"),
        ("batch", tmp_path / "a.tar", "-o", "s3://box/out/a.tar"),
    ):  # fmt: skip
        found = run(*command, *QUICK, code=2)
        assert found.stderr.count("\n") == 1, found.stderr
        assert "may not be written" in found.stderr and "AWS_ACCESS_KEY_ID" in found.stderr
    assert fresh().find("box") == before


def test_an_address_where_nobody_answers(store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(store).clear_instance_cache()
    pair = ("s3://box/a.mp4", "s3://box/b.mp4")
    for command in (
        ("video", *pair, "-o", tmp_path / "o.mp4", "-q"), ("evaluate", "s3://box/d", "--baselines"),
        ("batch", "s3://box/a.tar", "-o", tmp_path / "o.tar", *QUICK),
        ("ablate", "s3://box/d", "-o", tmp_path / "rows", "-q"),
    ):  # fmt: skip
        said = run(*command, code=2).stderr
        assert "cannot be read after 4 tries" in said and said.count("\n") == 1, said
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
