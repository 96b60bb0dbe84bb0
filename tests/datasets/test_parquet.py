"""Parquet files of pairs, by pyarrow: columns of bytes, of structs and of paths."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from packs import PAIRS, members, packed, unpacked
from test_shards import QUICK, expected, run  # noqa: F401

from ddfm_fast.datasets import shard_files

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra ray")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra ray")
pytestmark = pytest.mark.extras


def written(path, columns, **options):
    parquet.write_table(pa.table(columns), path, **options)
    return path


def bytes_columns():
    ir, vis = zip(*PAIRS, strict=True)
    return {"name": ["x", "y", "z"], "ir": list(ir), "label": [3, 1, 2], "vis": list(vis)}


def test_bytes_to_rows_in_order(tmp_path, expected):  # noqa: F811
    source = written(tmp_path / "in.parquet", bytes_columns(), row_group_size=2)
    run("batch", source, "-o", tmp_path / "out.parquet", *QUICK)
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert found == {
        "name": ["x", "y", "z"], "label": [3, 1, 2], "fused": expected, "error": ["", "", ""],
    }  # fmt: skip
    command = ("batch", source, "-o", tmp_path / "out.parquet", "--json", *QUICK)
    assert json.loads(run(*command).stdout)["skipped"] == 1


def test_structs_and_paths_and_a_tar(tmp_path, expected):  # noqa: F811
    """Structs as ``datasets`` writes its pictures; paths relative to the table."""
    for n, (ir, _) in enumerate(PAIRS):
        (tmp_path / f"{n}.png").write_bytes(ir)
    vis = [{"bytes": data, "path": "v.png"} for _, data in PAIRS]
    columns = {"infrared": ["0.png", "1.png", str(tmp_path / "2.png")], "visible": vis}
    source = written(tmp_path / "in.parquet", columns)
    run("batch", source, "-o", tmp_path / "out.tar", *QUICK)
    assert unpacked(tmp_path / "out.tar") == {
        f"row {n}.fused.png": data for n, data in enumerate(expected)
    }
    out = tmp_path / "out.parquet"
    command = ("batch", source, "-o", out, "--json", *QUICK)
    run(*command)
    assert parquet.read_table(out).column_names == ["infrared", "fused", "error"]
    assert json.loads(run(*command).stdout)["skipped"] == 1
    (tmp_path / "0.png").write_bytes(PAIRS[1][0])  # the table is the same, the picture is not
    assert json.loads(run(*command).stdout)["done"] == 1


def test_a_tar_becomes_a_table(tmp_path, expected):  # noqa: F811
    packed(tmp_path / "in.tar", members())
    run("batch", tmp_path / "in.tar", "-o", tmp_path / "out.parquet", *QUICK)
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert found == {"name": ["a/0", "a/1", "a/2"], "fused": expected, "error": [""] * 3}


def test_failed_rows(tmp_path, expected):  # noqa: F811
    columns = bytes_columns()
    columns["ir"] = [b"no picture", None, columns["ir"][2]]
    source = written(tmp_path / "in.parquet", columns)
    said = run("batch", source, "-o", tmp_path / "out.parquet", *QUICK, code=1).stderr
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert found["fused"] == [None, None, expected[2]] and found["error"][2] == ""
    assert found["error"][0].startswith("ir: not a PNG")
    assert found["error"][1] == "column 'ir' is empty" and "in.parquet: y: column" in said
    paths = {"ir": ["none.png", "s3://b/x.png"], "vis": ["none.png", "none.png"]}
    source = written(tmp_path / "paths.parquet", paths)
    run("batch", source, "-o", tmp_path / "out2.parquet", *QUICK, code=1)
    errors = parquet.read_table(tmp_path / "out2.parquet").to_pydict()["error"]
    assert "none.png: no such file" in errors[0] and "URLs in a table are not" in errors[1]


def test_tables_that_are_none(tmp_path):
    out = ("-o", tmp_path / "out.parquet", *QUICK)
    cases = {
        "no column of vis pictures": {"ir": [b"x"]},
        "column 'ir' is int64": {"ir": [1], "vis": [b"x"]},
        "has a column 'fused' already": {"ir": [b"x"], "vis": [b"x"], "fused": [1]},
        "has no rows": {"ir": pa.array([], pa.binary()), "vis": pa.array([], pa.binary())},
    }
    for words, columns in cases.items():
        source = written(tmp_path / "in.parquet", columns)
        said = run("batch", source, *out, code=2).stderr
        assert words in said and said.count("\n") == 1, said
    whole = written(tmp_path / "in.parquet", bytes_columns()).read_bytes()
    for data in (b"PAR1", whole[:-20], whole[: len(whole) // 2] + bytes(99), b""):
        (tmp_path / "cut.parquet").write_bytes(data)
        said = run("batch", tmp_path / "cut.parquet", *out, code=2).stderr
        assert said.startswith("error: ") and "cut.parquet: " in said and said.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob("*.tmp"))


def test_portions_are_small_where_rows_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "_PORTION_BYTES", 2 * sum(map(len, PAIRS[0])) + 200)
    source = written(tmp_path / "in.parquet", bytes_columns(), compression="none")
    found = [len(one.rows) for one in shard_files.portions(source, tmp_path)]
    assert sum(found) == 3 and max(found) < 3


def test_without_pyarrow(tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"sys.argv = ['ddfm-fast', 'batch', {str(tmp_path / 'in.parquet')!r}, '-o', 'o.parquet']\n"
        "from ddfm_fast.cli.app import main; main()"
    )
    written(tmp_path / "in.parquet", bytes_columns())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == (
        "error: Parquet needs pyarrow: pip install 'ddfm_fast[ray]', or pip install pyarrow\n"
    )
