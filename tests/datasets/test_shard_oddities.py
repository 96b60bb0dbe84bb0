"""Shards from other tools, with names that are no UTF-8, and runs that were killed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile

import pytest
from packs import PAIRS, members, packed, unpacked

from ddfm_fast.api import Fuser
from ddfm_fast.datasets.shards import fuse_shards

KILLED = """
import os, signal, sys
from ddfm_fast.api import Fuser
from ddfm_fast.datasets import shard_files, shards
shard_files.PORTION = 1
real = shards.run_batch
def cut(items, *given, **options):
    if items[0].name.endswith("1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(items, *given, **options)
shards.run_batch = cut
shards.fuse_shards(sys.argv[1], sys.argv[2], Fuser(preset="instant"))
"""


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(preset="instant", align="off")


def test_nothing_of_a_killed_run_stays_after_the_next(tmp_path, fuser):
    source, out = packed(tmp_path / "in.tar", members()), tmp_path / "out.tar"
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    killed = subprocess.run(command, capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists() and {p.name for p in tmp_path.iterdir()} == {
        "in.tar", ".out.tar.ddfm_fast_parts",
    }  # fmt: skip
    assert fuse_shards(source, out, fuser).ok and len(unpacked(out)) == 6
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"in.tar", "out.tar", "out.tar.ddfm_fast.json"}


def test_a_shard_that_cannot_be_read_leaves_no_folder(tmp_path, fuser):
    (tmp_path / "in.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="is damaged"):
        fuse_shards(tmp_path / "in.tar", tmp_path / "out.tar", fuser)
    assert [p.name for p in tmp_path.iterdir()] == ["in.tar"]


def odd_names(path):
    """Write keys in Latin-1, as old tools pack them; the first lacks a picture."""
    (ir, vis), (ir1, vis1) = PAIRS[:2]
    names = [("a\udce9.ir.png", ir), ("b\udce9.ir.png", ir1), ("b\udce9.vis.png", vis1),
             ("c.ir.png", ir), ("c.vis.png", vis)]  # fmt: skip
    return packed(path, names)


def test_a_key_that_is_no_utf_8_fails_no_other_row(tmp_path, fuser):
    source, out = odd_names(tmp_path / "in.tar"), tmp_path / "out.tar"
    (result,) = fuse_shards(source, out, fuser).shards
    assert (result.done, result.failed, result.error) == (2, 1, None)
    with tarfile.open(out) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar}
    assert list(found) == ["a\udce9.error.txt", "b\udce9.fused.png", "c.fused.png"]
    assert found["a\udce9.error.txt"] == rb"a\udce9: no member a\udce9.vis.*"


@pytest.mark.extras
def test_such_a_key_in_a_table(tmp_path, fuser):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    source, out = odd_names(tmp_path / "in.tar"), tmp_path / "out.parquet"
    (result,) = fuse_shards(source, out, fuser).shards
    assert (result.done, result.failed) == (2, 1)
    rows = parquet.read_table(out).to_pylist()
    assert [row["name"] for row in rows] == [r"a\udce9", r"b\udce9", "c"]
    assert rows[0]["error"] == r"a\udce9: no member a\udce9.vis.*" and rows[2]["error"] == ""


def test_an_older_result_in_a_tar_is_not_passed_on(tmp_path, fuser):
    """Otherwise the output would have two members of one name, which webdataset refuses."""
    more = [("a/0.fused.png", b"old"), ("a/0.error.txt", b"old"), ("a/0.FUSED.tif", b"old")]
    source = packed(tmp_path / "in.tar", members(PAIRS[:1]) + more)
    with pytest.warns(UserWarning, match="the result has that name"):
        assert fuse_shards(source, tmp_path / "out.tar", fuser).ok
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["a/0.json", "a/0.fused.png"]
        assert tar.extractfile("a/0.fused.png").read() != b"old"


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "struct"])
def test_paths_in_every_type_of_text(tmp_path, fuser, kind):
    """Polars writes large strings, pandas' categories are dictionaries."""
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {}
    for source, at in (("ir", 0), ("vis", 1)):
        names = [f"{n}.{source}.png" for n in range(2)]
        for name, pair in zip(names, PAIRS, strict=False):
            (tmp_path / name).write_bytes(pair[at])
        if kind == "struct":
            texts = pa.array([{"bytes": None, "path": name} for name in names])
        else:
            texts = pa.array(names)
            texts = (
                texts.dictionary_encode()
                if kind == "dictionary"
                else texts.cast(getattr(pa, kind)())
            )
        columns[source] = texts
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet")
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    assert fuse_shards(source, out, fuser).shards[0].done == 2
    first = parquet.read_table(out).to_pydict()
    assert first["error"] == ["", ""]
    assert first["fused"] == [
        row["fused"] for row in parquet.read_table(as_bytes(tmp_path, fuser)).to_pylist()
    ]
    assert fuse_shards(source, out, fuser).count("skipped") == 1
    (tmp_path / "1.ir.png").write_bytes(PAIRS[2][0])
    assert fuse_shards(source, out, fuser).count("done") == 1, "a picture has changed"


def as_bytes(folder, fuser):
    """Return the results of the same pairs from a table of bytes."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.table({"ir": [a for a, _ in PAIRS[:2]], "vis": [b for _, b in PAIRS[:2]]})
    data = io.BytesIO()
    parquet.write_table(table, data)
    (folder / "bytes.parquet").write_bytes(data.getvalue())
    fuse_shards(folder / "bytes.parquet", folder / "bytes.out.parquet", fuser)
    return folder / "bytes.out.parquet"
