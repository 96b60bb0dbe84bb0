"""The demo and the example images that come with the package."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from typer.testing import CliRunner

from ddfm_fast import fuse
from ddfm_fast.cli.app import app
from ddfm_fast.datasets import demo
from ddfm_fast.files.reading import read_image


def test_example_pairs_match_in_size():
    for pair in demo.PAIRS:
        first, second = demo.asset(pair.first), demo.asset(pair.second)
        assert first.dtype == second.dtype == np.uint8
        assert first.shape[:2] == second.shape[:2] and min(first.shape[:2]) >= 16
        assert (second.ndim == 3) == pair.color
    assert demo.asset("sentinel2_visible.png").shape == (300, 300, 3)


def test_demo_writes_the_pictures_that_it_names(tmp_path, capsys):
    written = demo.run(tmp_path / "out", steps=2, device="cpu")
    names = ["dune_fused.png", "sentinel2_fused.png", "brain_fused.png", "panel.png"]
    assert [path.name for path in written] == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    dune, _, brain, panel = map(read_image, written)
    pair = demo.PAIRS[0]
    expected = fuse(demo.asset(pair.first), demo.asset(pair.second), steps=2, device="cpu")
    np.testing.assert_array_equal(dune, expected)
    assert brain.shape == (217, 181)
    assert panel.shape[1] > 5 * 240 and panel.shape[0] > 3 * 240
    text = capsys.readouterr().out
    for path in written:
        assert str(path) in text


def test_the_commands_that_it_suggests_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo.run("out", steps=1, device="cpu")
    lines = capsys.readouterr().out.split("Try next:\n")[1].splitlines()
    assert len(lines) == 3
    first, second, third = (shlex.split(line.split("     ")[0]) for line in lines)
    start = first.index("fuse")
    assert CliRunner().invoke(app, [*first[start:], "--steps", "1"]).exit_code == 0
    assert read_image("out/quick.png").shape == (320, 480, 3)
    assert CliRunner().invoke(app, second[start:]).exit_code == 0
    assert third[-1] == "doctor"


def test_demo_needs_a_folder_that_it_can_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="file"):
        demo.run(tmp_path / "file", steps=1)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
