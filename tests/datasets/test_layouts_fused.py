"""Every published layout from its folders to results, by the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from clips import pan, texture, write_clip
from PIL import Image
from test_datasets import PUBLISHED
from typer.testing import CliRunner

from ddfm_fast import Fuser
from ddfm_fast.cli.app import app
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image

SIZE = 32, 40
PARTS = {
    "msrs": "test", "harvard": "MRI_CT", "kaist": "set00/V000", "flir": "JPEGImages",
    "lasher": "x", "vtuav": "s", "ivif_zoo": "FMB",
}  # fmt: skip
"""by layout, a folder further down that the command also accepts"""


def command(name: str, *arguments):
    return CliRunner().invoke(app, [name, *map(str, arguments), "--preset", "instant"])


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(preset="instant")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_layout_is_fused(tmp_path, fuser, name):
    pairs = PUBLISHED[name]
    for n, (ir, vis) in enumerate(pairs.values()):
        Image.fromarray(texture(*SIZE, n)).save(make(tmp_path / "set" / ir))
        Image.fromarray(texture(*SIZE, 50 + n, 3)).save(make(tmp_path / "set" / vis))
    result = command("batch", tmp_path / "set", "-o", tmp_path / "out", "--layout", name, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["done"] == len(pairs), result.output
    for one, (ir, vis) in pairs.items():
        sources = (read_image(tmp_path / "set" / path) for path in (ir, vis))
        expected = fuser(*sources, align="off")
        np.testing.assert_array_equal(read_image(tmp_path / "out" / f"{one}.png"), expected)
    if part := PARTS.get(name):
        below = command("batch", tmp_path / "set" / part, "-o", tmp_path / "part")
        assert below.exit_code == 0, below.output


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_four_channels_are_fused(tmp_path, fuser):
    """MFNet and MSRS, as published with one PNG per pair: RGB, and thermal as alpha."""
    ir, vis = texture(*SIZE, 1), texture(*SIZE, 2, 3)
    Image.fromarray(np.dstack([vis, ir])).save(make(tmp_path / "set" / "images" / "1D.png"))
    Image.fromarray(ir).save(make(tmp_path / "set" / "labels" / "1D.png"))
    result = command("batch", tmp_path / "set", "-o", tmp_path / "out", "--layout", "mfnet")
    assert result.exit_code == 0, result.output
    (made,) = (tmp_path / "out").rglob("1D.png")
    np.testing.assert_array_equal(read_image(made), fuser(ir, vis, align="off"))


def test_two_videos_of_ino_are_named_by_batch_and_fused_by_video(tmp_path):
    folder = tmp_path / "INO_TreesAndRunner"
    folder.mkdir()
    write_clip(folder / "INO_TreesAndRunner_T.avi", pan(4, 1), codec="mjpeg", pix_fmt="yuvj420p")
    write_clip(
        folder / "INO_TreesAndRunner_RGB.avi", pan(4, 2, channels=3), codec="mjpeg",
        pix_fmt="yuvj420p",
    )  # fmt: skip
    refused = command("batch", folder, "-o", tmp_path / "o")
    assert refused.exit_code == 2 and f"ddfm-fast video {folder}" in refused.stderr
    arguments = ["video", str(tmp_path), "-o", str(tmp_path / "out"), "--preset", "realtime"]
    found = CliRunner().invoke(app, [*arguments, "--codec", "png", "--json"])
    (one,) = json.loads(found.stdout)["videos"]
    assert found.exit_code == 0 and one["frames"] == 4 and "TreesAndRunner" in one["name"]
    assert one["ok"]


def test_pairs_of_one_second_are_fused(tmp_path):
    """A FLIR camera's two files with different numbers pair by EXIF's DateTimeOriginal."""
    from test_names import shoot

    shoot(tmp_path / "set" / "IR_1234.jpg", counts=True)
    shoot(tmp_path / "set" / "DC_1235.jpg")
    write_image(tmp_path / "set" / "MSX_1234.jpg", texture(*SIZE, 3, 3))
    listed = CliRunner().invoke(app, ["batch", str(tmp_path / "set"), "--list"])
    assert listed.exit_code == 0 and "IR_1234.jpg + " in listed.stdout, listed.output
    assert "a blend of both sources (MSX)" in listed.stdout
