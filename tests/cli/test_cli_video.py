"""``ddfm-fast video``: which streams its arguments name, what it prints, and its exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from clips import pan, read_clip, write_clip
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.cli.video import parse_range, parse_resize
from ddfm_fast.files.writing import write_image
from ddfm_fast.video.report import STAGES


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def streams(tmp_path):
    return (
        write_clip(tmp_path / "in" / "a_T.mp4", pan(4, 1, size=32)),
        write_clip(tmp_path / "in" / "a_RGB.mp4", pan(4, 2, size=32, channels=3)),
    )


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "in").mkdir()


def sequence(root, layout="{role}/{name}", names=("one", "two")):
    for name in names:
        for role, channels in (("ir", 1), ("vi", 3)):
            for n, image in enumerate(pan(2, channels, size=32, channels=channels)):
                path = root / layout.format(role=role, name=name) / f"{n:04d}.png"
                write_image(path, image)


def test_two_files(streams, tmp_path):
    result = call("video", *streams, "-o", tmp_path / "o.mp4", "--preset", "realtime")
    assert result.exit_code == 0, result.output
    assert "4 frames" in result.stdout and "latency p50" in result.stdout
    assert result.stderr == ""
    assert len(read_clip(tmp_path / "o.mp4")[0]) == 4


def test_profile_says_where_the_time_went(streams, tmp_path):
    common = ["video", *streams, "--preset", "realtime", "--profile", "-o"]
    result = call(*common, tmp_path / "o.mp4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [*STAGES, "in"]
    assert all("ms per frame" in line for line in lines)
    (video,) = json.loads(call(*common, tmp_path / "p.mp4", "--json").stdout)["videos"]
    assert list(video["stages"]) == list(STAGES)
    assert all(0 < seconds < video["seconds"] for seconds in video["stages"].values())


def test_options_reach_the_pipeline(streams, tmp_path):
    options = ["--start", "0.04", "--end", "0.12", "--codec", "ffv1", "--side-by-side"]
    options += ["--resize", "48x40", "--gray", "--no-audio", "--preset", "realtime", "--json"]
    result = call("video", *streams, "-o", tmp_path / "o.mkv", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (video,) = found["videos"]
    assert found["ok"] and video["frames"] == 2 and video["out"].endswith("o.mkv")
    frames, _, _ = read_clip(tmp_path / "o.mkv")
    assert len(frames) == 2 and frames[0].shape == (40, 144, 3)


def test_image_preset_of_exact(streams, tmp_path):
    options = ["--preset", "exact", "--image-preset", "official", "--end", "0.08", "--json"]
    result = call("video", *streams, "-o", tmp_path / "o", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["videos"][0]["evaluations"] == 200


def test_data_set_of_pictures(tmp_path):
    sequence(tmp_path / "set")
    out = tmp_path / "out"
    result = call("video", tmp_path / "set", "-o", out, "--preset", "realtime")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["one.mp4", "two.mp4"]
    (tmp_path / "set" / "vi" / "one" / "0000.png").write_bytes(b"")
    (tmp_path / "set" / "vi" / "one" / "0001.png").write_bytes(b"")
    result = call("video", tmp_path / "set", "-o", out, "--preset", "realtime", "--json")
    assert result.exit_code == 1 and "error: one" in result.stderr
    assert [v["ok"] for v in json.loads(result.stdout)["videos"]] == [False, True]


def test_bad_frames_and_policies(tmp_path):
    sequence(tmp_path / "set", names=("one",))
    (tmp_path / "set" / "vi" / "one" / "0001.png").write_bytes(b"broken")
    pair = (tmp_path / "set/ir/one", tmp_path / "set/vi/one")
    out = tmp_path / "o.mp4"
    common = ["--preset", "realtime", "-o", out]
    result = call("video", *pair, *common)
    assert result.exit_code == 1 and "bad frame 1 of" in result.stderr
    assert len(read_clip(out)[0]) == 1
    result = call("video", *pair, *common, "--on-error", "repeat")
    assert result.exit_code == 1 and len(read_clip(out)[0]) == 2
    result = call("video", *pair, *common, "--on-error", "stop")
    assert result.exit_code == 1 and "stopped:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{ir}", "-o", "o.mp4"], "VIS is missing"),
        (["{in}/none.mp4", "{vis}", "-o", "{out}.mp4"], "no such file"),
        (["{ir}", "{vis}", "-o", "{out}.gif"], "ending in .mp4"),
        (["{ir}", "{vis}", "-o", "{out}.mp4", "--preset", "slow"], "exact, balanced, realtime"),
        (["{ir}", "{vis}", "-o", "{out}.mp4", "--resize", "big"], "vis, ir or WIDTHxHEIGHT"),
        (["{ir}", "{vis}", "-o", "{out}.mp4", "--ir-range", "x"], "LO,HI"),
        (["{ir}", "{vis}", "-o", "{out}.mp4", "--offset", "99"], "no time in common"),
        (["{ir}", "{vis}", "-o", "{out}.mp4", "--start", "3", "--end", "2"], "end after start"),
        (["{ir}", "{vis}", "-o", "{ir}"], "which is an input"),
        (["{none}", "-o", "{out}"], "no pairs found"),
    ],
)
def test_bad_input(streams, tmp_path, arguments, words):
    (tmp_path / "none").mkdir()
    names = {"ir": streams[0], "vis": streams[1], "in": tmp_path / "in", "out": tmp_path / "out"}
    names["none"] = tmp_path / "none"
    result = call("video", *(a.format(**names) for a in arguments))
    assert result.exit_code == 2, result.output
    assert words in result.stderr and result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) <= 2 and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("out*"))


def test_parsing():
    assert parse_resize("640x480") == (480, 640) and parse_resize("vis") == "vis"
    assert parse_range("7000,9000.5", "--ir-range") == (7000, 9000.5)
    assert parse_resize(None) is None and parse_range(None, "--ir-range") is None


def test_demo_video(tmp_path, monkeypatch):
    from ddfm_fast.video import demo

    monkeypatch.setattr(demo, "LAP", 6)
    result = call("demo", "--video", "-o", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    names = ["pan_fused.mp4", "pan_ir.mp4", "pan_vis.mp4"]
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == names
    frames, times, _ = read_clip(tmp_path / "demo" / "pan_fused.mp4")
    assert len(frames) == 6 and times[1] == pytest.approx(1 / 25)
    assert np.ptp(frames[0]) > 150
