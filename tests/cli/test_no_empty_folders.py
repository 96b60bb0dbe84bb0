"""A command that fails before its first item leaves no folder behind that it made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app


@pytest.fixture
def data(tmp_path):
    for source in ("ir", "vi"):
        (tmp_path / "data" / source).mkdir(parents=True)
        Image.fromarray(np.eye(40, dtype=np.uint8) * 200).save(tmp_path / "data" / source / "a.png")
    return tmp_path / "data"


def run(*arguments) -> int:
    return CliRunner().invoke(app, [str(one) for one in arguments]).exit_code


BAD_PRIOR = ("--prior", "nowhere.safetensors", "-q")


def commands(data, out):
    pair = data / "ir/a.png", data / "vi/a.png"
    return {
        "fuse": ("fuse", *pair, "-o", out / "f.png", *BAD_PRIOR),
        "fuse folders": ("fuse", data / "ir", data / "vi", "-o", out, *BAD_PRIOR),
        "batch": ("batch", data, "-o", out, *BAD_PRIOR),
        "batch nothing": ("batch", data / "none", "-o", out),
        "batch ray": ("batch", data, "-o", out, "-q", "--on", "ray", "--address", "127.0.0.1:9"),
        "video": ("video", *pair, "-o", out / "f.mp4", *BAD_PRIOR),
        "evaluate": (
            *("evaluate", data, "--fused", f"x={data / 'none'}"),
            *("--report", out / "r.html", "--csv", out / "t.csv"),
        ),
        "volume": ("volume", *pair, "-o", out / "v.nii.gz"),
    }


NAMES = list(commands(Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
def test_no_folder_is_left(name, data, tmp_path):
    assert run(*commands(data, tmp_path / "new" / "out")[name]) != 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["data"]


def test_a_folder_that_was_there_or_has_something_stays(data, tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    assert run("batch", data, "-o", out, *BAD_PRIOR) == 2
    assert out.is_dir()
    assert run("batch", data, "-o", out / "below", "--preset", "instant", "-q") == 0
    assert (out / "below/a.png").is_file()
    (data / "ir/a.png").write_bytes(b"none")
    assert run("batch", data, "-o", tmp_path / "other", "--preset", "instant", "-q") == 1
    assert (tmp_path / "other/ddfm_fast_report.json").is_file(), "which says what failed"
