"""Tars and Parquet files of pairs: bytes of single files, failed rows, resume, odd input."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import pytest
from packs import PAIRS, members, packed, unpacked
from typer.testing import CliRunner

from ddfm_fast.api import Fuser
from ddfm_fast.cli.app import app
from ddfm_fast.datasets import shard_files, shards
from ddfm_fast.datasets.shards import are_shards, fuse_shards

QUICK = ("--preset", "instant", "--align", "off", "--quiet")


def run(*arguments, code=0):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[bytes]:
    """What ``fuse`` writes for each pair."""
    folder = tmp_path_factory.mktemp("single")
    for n, pair in enumerate(PAIRS):
        names = [folder / f"{n}.{source}.png" for source in ("ir", "vis")]
        for name, data in zip(names, pair, strict=True):
            name.write_bytes(data)
        run("fuse", *names, "-o", folder / f"{n}.png", *QUICK)
    return [(folder / f"{n}.png").read_bytes() for n in range(len(PAIRS))]


def test_a_tar_becomes_a_tar(tmp_path, expected):
    packed(tmp_path / "in.tar", members())
    run("batch", tmp_path / "in.tar", "-o", tmp_path / "out.tar", *QUICK)
    found = unpacked(tmp_path / "out.tar")
    assert list(found) == [f"a/{n}.{end}" for n in range(3) for end in ("json", "fused.png")]
    assert [found[f"a/{n}.fused.png"] for n in range(3)] == expected
    assert json.loads(found["a/1.json"]) == {"n": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "in.tar", "out.tar", "out.tar.ddfm_fast.json",
    ]  # fmt: skip


def test_what_is_done_is_left_alone_until_something_changes(tmp_path):
    source, out = packed(tmp_path / "in.tar", members()), tmp_path / "out.tar"
    command = ("batch", source, "-o", out, "--json", *QUICK)
    assert json.loads(run(*command).stdout)["shards"][0]["status"] == "done"
    first = out.stat().st_mtime_ns, out.read_bytes()
    assert json.loads(run(*command).stdout)["shards"][0]["status"] == "skipped"
    assert (out.stat().st_mtime_ns, out.read_bytes()) == first
    for change in (("--redo",), ("--stretch", "minmax"), ("--format", "tif")):
        assert json.loads(run(*command, *change).stdout)["done"] == 1, change
    run(*command)
    assert out.read_bytes() == first[1]
    packed(source, members([PAIRS[1], PAIRS[0]]))
    assert json.loads(run(*command).stdout)["shards"][0]["done"] == 2
    out.write_bytes(b"cut")
    assert json.loads(run(*command).stdout)["done"] == 1


def test_a_run_that_is_cut_off_fuses_only_what_is_left(tmp_path, monkeypatch):
    """After an interruption in the second of three portions, the first is not fused again."""
    monkeypatch.setattr(shard_files, "PORTION", 1)
    source, out = packed(tmp_path / "in.tar", members()), tmp_path / "out.tar"
    fuser = Fuser(preset="instant", align="off")
    real, calls = shards.run_batch, []

    def cut(items, *given, **options):
        if len(calls) == 1:
            raise KeyboardInterrupt
        report = real(items, *given, **options)
        calls.append([one.status for one in report.results])
        return report

    monkeypatch.setattr(shards, "run_batch", cut)
    report = fuse_shards(source, out, fuser)
    assert report.stopped and not report.ok and not out.exists()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    monkeypatch.setattr(shards, "run_batch", lambda *a, **k: (r := real(*a, **k), calls.append(
        [one.status for one in r.results]))[0])  # fmt: skip
    assert fuse_shards(source, out, fuser).ok
    assert calls == [["done"], ["skipped"], ["done"], ["done"]]
    assert len(unpacked(out)) == 6 and not list(tmp_path.glob(".out*"))


def test_failed_rows_have_their_error(tmp_path, expected):
    odd = [
        ("0.ir.png", PAIRS[0][0]), ("0.vis.png", PAIRS[0][1]), ("1.ir.png", b"no picture"),
        ("1.vis.png", PAIRS[1][1]), ("2.ir.png", PAIRS[2][0]), ("3.vis.png", PAIRS[2][1]),
        ("0.ir.png", PAIRS[0][0]), ("0.vis.png", PAIRS[0][1]),
    ]  # fmt: skip
    packed(tmp_path / "in.tar", odd)
    command = ("batch", tmp_path / "in.tar", "-o", tmp_path / "out.tar", *QUICK)
    said = run(*command, code=1).stderr
    with tarfile.open(tmp_path / "out.tar") as tar:
        found = [(one.name, tar.extractfile(one).read()) for one in tar]
    assert found[0] == ("0.fused.png", expected[0])
    texts = [data.decode() for _, data in found[1:]]
    assert [name for name, _ in found[1:]] == [f"{n}.error.txt" for n in (1, 2, 3, 0)]
    assert texts[0].startswith("ir: not a PNG") and texts[1] == "2: no member 2.vis.*"
    assert texts[2] == "3: no member 3.ir.*" and "0 occurs twice" in texts[3]
    assert f"error: {tmp_path / 'in.tar'}: 1: ir: not a PNG" in said
    record = json.loads((tmp_path / "out.tar.ddfm_fast.json").read_text())
    assert (record["done"], record["failed"]) == (1, 4) and record["errors"][0]["key"] == "1"
    run(*command, code=1)  # failed rows are tried again


def test_a_folder_of_tars_and_a_damaged_one(tmp_path):
    (tmp_path / "in").mkdir()
    packed(tmp_path / "in/0.tar", members(PAIRS[:1]))
    packed(tmp_path / "in/1.tar.gz", members(PAIRS[1:2]), "w:gz")
    whole = (tmp_path / "in/0.tar").read_bytes()  # 2000 bytes end within a header
    (tmp_path / "in/2.tar").write_bytes(whole[:2000])
    found = run("batch", tmp_path / "in", "-o", tmp_path / "out", *QUICK, code=1)
    assert "2.tar: is damaged after 0 samples" in found.stderr
    names = sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".json")
    assert names == ["0.tar", "1.tar.gz"]
    assert list(unpacked(tmp_path / "out/1.tar.gz")) == ["a/0.json", "a/0.fused.png"]
    again = run("batch", str(tmp_path / "in/*.tar"), "-o", tmp_path / "two", *QUICK, code=1)
    assert (tmp_path / "two/0.tar").is_file() and "1.tar.gz" not in again.output


def test_names_in_a_tar_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir, vis = PAIRS[0]
    odd = ["../up", "/abs/x", "a/../../b", "..", "c\\d"]
    packed(tmp_path / "in.tar", [(f"{k}.{s}.png", d) for k in odd for s, d in
                                 (("ir", ir), ("vis", vis))])  # fmt: skip
    run("batch", "in.tar", "-o", "out/out.tar", *QUICK)
    assert list(unpacked(tmp_path / "out/out.tar")) == [f"{n:08d}.fused.png" for n in range(4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tar", "out"]
    assert not (tmp_path.parent / "up.fused.png").exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def test_links_are_no_pictures(tmp_path):
    (tmp_path / "secret.png").write_bytes(PAIRS[0][0])
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.addfile(link("0.ir.png", str(tmp_path / "secret.png")))
        vis = tarfile.TarInfo("0.vis.png")
        vis.size = len(PAIRS[0][1])
        tar.addfile(vis, io.BytesIO(PAIRS[0][1]))
    run("batch", tmp_path / "in.tar", "-o", tmp_path / "out.tar", *QUICK, code=1)
    assert unpacked(tmp_path / "out.tar") == {"0.error.txt": b"0: no member 0.ir.*"}


def test_bombs_take_no_memory(tmp_path, monkeypatch):
    """A member above the limit is a failed row; a header of gigabytes ends the reading."""
    monkeypatch.setattr(shard_files, "_MOST_BYTES", 10_000)
    packed(tmp_path / "a.tar", [("0.ir.png", bytes(10_001)), ("0.vis.png", PAIRS[0][1])])
    run("batch", tmp_path / "a.tar", "-o", tmp_path / "b.tar", *QUICK, code=1)
    assert b"has 10001 bytes" in unpacked(tmp_path / "b.tar")["0.error.txt"]
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    with gzip.open(tmp_path / "c.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(2**21))
    found = run("batch", tmp_path / "c.tar.gz", "-o", tmp_path / "d.tar", *QUICK, code=2)
    assert "a header of 4294967296 bytes" in found.stderr and not (tmp_path / "d.tar").exists()


def test_refused_in_words(tmp_path):
    source = packed(tmp_path / "in.tar", members())
    out = ("-o", tmp_path / "out.tar", *QUICK)
    for options, words in (
        ((*out, "--panel"), "a shard, which takes no --panel"),
        ((*out, "--list"), "a shard, which takes no --list"),
        ((*out, "--layout", "ir,vis"), "a shard, which takes no --layout"),
        ((*out, "--range-over", "dataset"), "--range-over dataset would read every shard twice"),
        ((*out, "--on", "ray"), "use ray.data.read_parquet or read_webdataset"),
        (QUICK, "--out is missing; expected a shard such as out.parquet"),
        (("-o", source, *QUICK), "would replace an input"),
    ):
        assert words in run("batch", source, *options, code=2).stderr, options
    nothing = run("batch", tmp_path / "none.tar", *out, code=2).stderr
    assert "none.tar: there is no such shard" in nothing
    packed(tmp_path / "empty.tar", [("readme.txt", b"x")])
    said = run("batch", tmp_path / "empty.tar", *out, code=1).stderr
    assert "readme: no member readme.ir.*" in said
    packed(tmp_path / "more.tar", members())
    said = run("batch", str(tmp_path / "*.tar"), *out, code=2).stderr
    assert "one file, and there are" in said


def test_folders_of_pictures_are_no_shards(tmp_path):
    packed(tmp_path / "a.tar", members())
    assert (
        are_shards(tmp_path) and are_shards(tmp_path / "a.tar") and are_shards("s3://b/c.parquet")
    )
    (tmp_path / "x.png").write_bytes(PAIRS[0][0])
    assert (
        not are_shards(tmp_path) and not are_shards("s3://b/c") and not are_shards("zip://::a.zip")
    )
    assert not are_shards(tmp_path / "none")
