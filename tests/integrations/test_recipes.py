"""The recipes of the topic integrations, run as they are printed, on small files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from clips import pan, read_clip, write_clip
from conftest import ROOT

from ddfm_fast import Fuser
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image

pytestmark = pytest.mark.slow
DOCS = ROOT / "ddfm_fast" / "docs" / "hosts.md"
FRAMES, SIZE = 6, (64, 96)
FFMPEG = shutil.which("ffmpeg")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCS.read_text(), re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with thermal.mp4, visible.mp4 and counts.raw, the working directory."""
    monkeypatch.chdir(tmp_path)
    infrared = [frame[: SIZE[0], : SIZE[1]] for frame in pan(FRAMES, 1, size=96)]
    visible = [frame[: SIZE[0], : SIZE[1]] for frame in pan(FRAMES, 2, size=96, channels=3)]
    write_clip(tmp_path / "thermal.mp4", infrared)
    write_clip(tmp_path / "visible.mp4", visible)
    counts = np.stack(infrared).astype("<u2") * 7 + 7000
    (tmp_path / "counts.raw").write_bytes(counts.tobytes())
    return tmp_path


def bash(script: str) -> subprocess.CompletedProcess:
    if FFMPEG is None or shutil.which("bash") is None:
        pytest.skip("needs ffmpeg and bash")
    tool = Path("bin", "ddfm-fast").absolute()
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ddfm_fast "$@"\n')
    tool.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{script}"],
        capture_output=True, text=True, env=env, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other) == FRAMES
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def by_command(ir: str, *options: str) -> list[np.ndarray]:
    """Return the frames that the command writes from files, without a pipe."""
    words = " ".join((ir, "visible.mp4", "-o", "plain.mkv", "--codec", "ffv1", *options))
    bash(f"ddfm-fast video {words}")
    return read_clip(Path("plain.mkv"))[0]


def test_raw_counts_by_a_pipe(folder):
    script, _ = blocks("bash")
    lossless = script.replace("fused.mp4", "fused.mkv --codec ffv1")
    assert lossless != script
    bash(script)
    assert len(read_clip(folder / "fused.mp4")[0]) == FRAMES
    bash(lossless)
    bash(
        "ffmpeg -v error -f rawvideo -pixel_format gray16le -video_size 96x64 -framerate 25 "
        "-i counts.raw -c:v ffv1 counts.mkv"
    )
    same(read_clip(folder / "fused.mkv")[0], by_command("counts.mkv", "--ir-range", "7000,9000"))


def test_nut_and_raw_frames_in_and_out(folder):
    _, script = blocks("bash")
    bash(script)
    plain = by_command("thermal.mp4")
    same(read_clip(folder / "fused.nut")[0], plain)
    raw = np.fromfile(folder / "fused.raw", np.uint8).reshape(FRAMES, *SIZE, 3)
    bash("ffmpeg -v error -i plain.mkv -f rawvideo -pix_fmt rgb24 plain.raw")
    assert raw.tobytes() == (folder / "plain.raw").read_bytes()
    assert np.ptp(raw) > 100


def test_one_standard_input_is_not_two_streams(folder):
    done = subprocess.run(
        [sys.executable, "-m", "ddfm_fast", "video", "-", "-", "-o", "x.mp4"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "IR and VIS are both -" in done.stderr


def test_the_opencv_loop(folder):
    (block,) = blocks("python")[:1]
    assert "VideoCapture" in block
    names: dict = {}
    exec(block, names)

    def frames(name: str) -> list[np.ndarray]:
        capture, found = cv2.VideoCapture(name), []
        while (read := capture.read())[0]:
            found.append(read[1])
        return found

    gray = [cv2.cvtColor(one, cv2.COLOR_BGR2GRAY) for one in frames("thermal.mp4")]
    color = [cv2.cvtColor(one, cv2.COLOR_BGR2RGB) for one in frames("visible.mp4")]
    assert len(gray) == len(color) == FRAMES
    wanted = list(Fuser().stream(zip(gray, color, strict=True), preset="realtime"))
    found = [cv2.imread(f"fused_{n:06d}.png")[..., ::-1] for n in range(FRAMES)]
    same(found, wanted)
    assert not Path(f"fused_{FRAMES:06d}.png").exists()


def test_the_fiftyone_recipe(folder, monkeypatch):
    """On a stand-in for fiftyone 1.22, whose database cannot be installed from an index.

    core/dataset.py: ``iter_groups(group_slices)`` yields {slice: sample}, ``group_field``,
    ``add_samples``; core/groups.py: ``Group.element(name)`` is the same group's other slice.
    """
    (block,) = [one for one in blocks("py") if "fiftyone" in one]
    infrared, visible = pan(2, 1), pan(2, 2, channels=3)
    for n in range(2):
        write_image(folder / f"ir_{n}.png", infrared[n])
        write_image(folder / f"vis_{n}.png", visible[n])

    class Group:
        def __init__(self, id, name):
            self.id, self.name = id, name

        def element(self, name):
            return Group(self.id, name)

    class Sample(dict):
        def __init__(self, *, filepath, **fields):
            super().__init__(fields)
            self.filepath = filepath

    class Dataset:
        group_field = "camera"
        added: list = []

        def iter_groups(self, group_slices=None):
            for n in range(2):
                names = {"infrared": f"ir_{n}.png", "visible": f"vis_{n}.png"}
                assert group_slices == list(names)
                yield {
                    name: Sample(filepath=str(folder / file), camera=Group(n, name))
                    for name, file in names.items()
                }

        def add_samples(self, samples):
            self.added += samples

    theirs, dataset = ModuleType("fiftyone"), Dataset()
    theirs.Sample, theirs.load_dataset = Sample, lambda name: dataset
    monkeypatch.setitem(sys.modules, "fiftyone", theirs)
    exec(block, {})
    assert [one["camera"].id for one in dataset.added] == [0, 1]
    assert {one["camera"].name for one in dataset.added} == {"fused"}
    for n, one in enumerate(dataset.added):
        assert one.filepath == str(folder / f"ir_{n}_fused.png")
        np.testing.assert_array_equal(read_image(one.filepath), Fuser()(infrared[n], visible[n]))


def test_lines_that_start_gstreamer_are_in_a_block_that_names_the_element():
    (block,) = blocks("sh")
    assert "ddfm_fast.integrations.gstreamer" in block and "ddfmfuse name=f" in block
