"""Priors and training logs on a full disk: the path is named, and what was there stays."""

from __future__ import annotations

import json
import os

import pytest
import torch
from batches import NEEDS_POSIX
from failing import full_disk
from networks import SMALL, random_unet
from safetensors.torch import save_file
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.priors.atomic import atomic_path
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.training.log import append_line, draw_curve, trim_log

pytestmark = NEEDS_POSIX
WRITERS = {
    "torch": lambda path: torch.save({"x": torch.zeros(10_000)}, path.open("wb")),
    "safetensors": lambda path: save_file({"x": torch.zeros(10_000)}, path),
    "text": lambda path: path.write_text("x" * 10_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_the_path_is_named_and_the_old_file_stays(tmp_path, writer):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    refused = pytest.raises(ValueError, match="file' cannot be written .*too large")
    with full_disk(2000), refused, atomic_path(path) as temporary:
        WRITERS[writer](temporary)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_folder_where_files_get_no_names(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", refuse)
    refused = pytest.raises(ValueError, match="file' cannot be written .Invalid cross-device link")
    with refused, atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["n" * 300, "x\ud800"])
def test_names_that_cannot_be(tmp_path, name):
    refused = pytest.raises(ValueError, match="cannot be written")
    with refused, atomic_path(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == []


def test_convert_on_a_full_disk_is_one_line(tmp_path):
    source, target = tmp_path / "prior.safetensors", tmp_path / "out.safetensors"
    save_unet(source, random_unet(SMALL))
    target.write_bytes(b"old")
    with full_disk(5000):
        done = CliRunner().invoke(app, ["prior", "convert", str(source), str(target)])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert done.stderr.startswith(f"error: {str(target)!r} cannot be written (")
    assert target.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == [
        target.name,
        source.name,
    ]


def test_a_log_holds_whole_lines_and_what_a_kill_cut_off_is_dropped(tmp_path):
    log = tmp_path / "run.log.jsonl"
    lines = [json.dumps({"step": n, "heldout": {"all": 0.5}, "pad": "x" * 300}) for n in range(5)]
    append_line(log, lines[0])
    with full_disk(500), pytest.raises(ValueError, match="run.log.jsonl' cannot be written"):
        append_line(log, lines[1])
    assert log.read_text() == lines[0] + "\n"
    append_line(log, lines[1])
    with log.open("a") as file:
        file.write(lines[2][:20])
    assert draw_curve(log, tmp_path / "curve.png") in (True, False)
    trim_log(log, 1)
    assert log.read_text() == lines[0] + "\n" + lines[1] + "\n"
