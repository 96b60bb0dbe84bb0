"""Whole videos that go wrong: what is reported, what is left, and that it plays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import endless, pan, read_clip
from conftest import ROOT
from fusing import FRAMES, leftovers, run, stream_files

from ddfm_fast import DDFMWarning
from ddfm_fast.files.writing import write_image
from ddfm_fast.video import open_source
from ddfm_fast.video.frames import VideoError
from ddfm_fast.video.report import INTERRUPTED


@pytest.fixture
def streams(tmp_path) -> tuple[Path, Path]:
    return stream_files(tmp_path)


# In the input


def test_bad_frames_are_reported_and_the_rest_goes_on(tmp_path):
    for name, channels in (("ir", 1), ("vi", 3)):
        for n, image in enumerate(pan(6, channels, channels=channels)):
            write_image(tmp_path / name / f"{n}.png", image)
    (tmp_path / "vi" / "3.png").write_bytes(b"no picture")
    heard = []
    report = run(tmp_path / "ir", tmp_path / "vi", tmp_path / "o", on_bad=heard.append)
    assert report.bad_count == 1 and report.bad == heard and not report.ok
    assert heard[0].number == 3 and heard[0].stream == str(tmp_path / "vi")
    assert sorted(p.stem for p in (tmp_path / "o").iterdir()) == [
        f"{n:06d}" for n in (0, 1, 2, 4, 5)
    ]
    report = run(tmp_path / "ir", tmp_path / "vi", tmp_path / "r.mp4", on_error="repeat")
    assert report.frames == 6 and len(read_clip(report.out)[0]) == 6
    report = run(tmp_path / "ir", tmp_path / "vi", tmp_path / "s.mp4", on_error="stop")
    assert report.frames == 3 and "frame 3" in report.stopped
    assert len(read_clip(report.out)[0]) == 3


def test_an_error_while_fusing_names_the_part(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            yield image if n < 40 else image[:32]

    with pytest.raises(
        VideoError, match=r"frame 40 has shape.*are in .*o\.part-\d+-\w+\.mp4$"
    ) as caught:
        run(endless(1), vis(), tmp_path / "o.mp4")
    frames = read_clip(part_of(tmp_path / "o.mp4"))[0]
    assert 30 <= len(frames) <= 40 and f"The {len(frames)} frames before that" in str(caught.value)


def test_nothing_is_left_where_nothing_was_fused(streams, tmp_path):
    for options, words in (
        ({"offset": 50.0}, "no time in common"),
        ({"start": 50.0}, "no time in common"),
        ({"start": 2.0, "end": 1.0}, "expected end after start"),
        ({"codec": "vp9"}, "codec is 'vp9'"),
        ({"crf": 99}, "crf is 99"),
        ({"resize": "huge"}, "resize is 'huge'"),
        ({"on_error": "cry"}, "on_error is 'cry'"),
    ):
        with pytest.raises(ValueError, match=words):
            run(*streams, tmp_path / "o.mp4", **options)
        assert not (tmp_path / "o.mp4").exists() and leftovers(tmp_path) == []
    for out, words in (("o.gif", "ending in .mp4"), ("ir.mp4", "which is an input")):
        with pytest.raises(ValueError, match=words):
            run(*streams, tmp_path / out)
    with pytest.raises(VideoError, match="no time in common"):
        run(iter(()), iter(()), tmp_path / "o.mp4")


def test_container_that_does_not_hold_the_codec(streams, tmp_path):
    for name in ("o.mov", "o.ts"):
        with pytest.raises(VideoError, match="does not hold ffv1; write .mkv"):
            run(*streams, tmp_path / name, codec="ffv1")
    assert leftovers(tmp_path) == []


# Names


def part_of(out: Path) -> Path:
    """Return the one part of an output."""
    (part,) = out.parent.glob(f"{out.stem}.part-*{out.suffix}")
    return part


def test_an_input_of_a_parts_name_is_kept(streams, tmp_path):
    named = tmp_path / "a.part.mp4"
    named.write_bytes(Path(streams[0]).read_bytes())
    before = named.read_bytes()
    report = run(named, streams[1], tmp_path / "a.mp4")
    assert report.ok and named.read_bytes() == before and leftovers(tmp_path) == [named.name]


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_an_output_that_is_an_input_by_another_name_is_refused(streams, tmp_path, link):
    other = tmp_path / "other.mp4"
    link(streams[0], other)
    before = other.read_bytes()
    with pytest.raises(VideoError, match="other.mp4, which is an input .*choose another name"):
        run(*streams, other)
    assert other.read_bytes() == before


def test_the_folder_of_an_input_is_no_folder_for_the_output(tmp_path):
    for name in ("ir", "vi"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "000000.png", pan(1, 1)[0])
    with pytest.raises(VideoError, match="vi, which is an input"):
        run(tmp_path / "ir", tmp_path / "vi", tmp_path / "vi")
    files = [[tmp_path / name / "000000.png"] for name in ("ir", "vi")]
    with pytest.raises(VideoError, match="which is an input .*000000.png"):
        run(*files, tmp_path / "ir")


def test_two_runs_do_not_share_an_output(streams, tmp_path):
    out = tmp_path / "o.mp4"

    def slow():
        for n, image in enumerate(pan(4, 3, channels=3)):
            if n == 2:
                with pytest.raises(VideoError, match=f"which process {os.getpid()} is writing"):
                    run(*streams, out)
            yield image

    assert run(iter(pan(4, 1)), slow(), out).ok
    assert leftovers(tmp_path) == [] and run(*streams, out).ok


def test_a_part_that_was_left_is_kept_and_named(streams, tmp_path):
    left = tmp_path / "o.part-1-abc.mp4"
    left.write_bytes(b"of a run that was killed")
    with pytest.warns(DDFMWarning, match="o.part-1-abc.mp4 is left from a run that did not finish"):
        assert run(*streams, tmp_path / "o.mp4").ok
    assert left.read_bytes() == b"of a run that was killed"


def test_a_lock_of_a_process_that_is_gone_is_none(streams, tmp_path):
    (tmp_path / ".o.mp4.lock").write_text("1")
    assert run(*streams, tmp_path / "o.mp4").ok
    assert not (tmp_path / ".o.mp4.lock").exists()


def test_an_output_that_cannot_get_its_name_stays_as_a_part(streams, tmp_path, monkeypatch):
    def refuse(_source, _target):
        raise OSError(errno.EXDEV, "no rename on this network folder")

    monkeypatch.setattr("ddfm_fast.video.outputs.os.replace", refuse)
    with pytest.raises(VideoError, match="cannot be given its name .no rename.*all in .*part-"):
        run(*streams, tmp_path / "o.mp4")
    assert len(read_clip(part_of(tmp_path / "o.mp4"))[0]) == FRAMES


def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            if n == 30:
                shutil.rmtree(tmp_path / "gone")
            if n == 60:
                return
            yield image

    with pytest.raises(VideoError, match="o.mp4: cannot be "):
        run(endless(1), vis(), tmp_path / "gone" / "o.mp4")


# From outside


def test_interrupt_completes_the_file(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            if n == 40:
                os.kill(os.getpid(), signal.SIGINT)  # like Ctrl-C, it reaches the main thread
            yield image

    report = run(endless(1), vis(), tmp_path / "o.mp4")
    assert report.stopped == INTERRUPTED and 25 <= report.frames < 200
    assert len(read_clip(report.out)[0]) == report.frames
    assert leftovers(tmp_path) == []


def run_on_a_disk_of(size: int, out: Path, frames: int | None = None) -> str:
    """Run with a limit on the size of files, where writing fails as it does on a full disk."""
    ir, vis = endless(1), endless(3)
    if frames is not None:
        ir, vis = iter(pan(frames, 1)), iter(pan(frames, 3, channels=3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(VideoError, match="cannot be written after frame") as caught:
            run(ir, vis, out, crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    return str(caught.value)


NEEDS_LIMITS = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")


@NEEDS_LIMITS
@pytest.mark.parametrize("size", [20480, 25000, 40000])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_full_disk_leaves_a_part_that_plays_as_long_as_is_said(tmp_path, suffix, size):
    said = run_on_a_disk_of(size, tmp_path / f"o{suffix}")
    part = part_of(tmp_path / f"o{suffix}")
    source = open_source(part, "part")
    plays = len(list(source.frames()))
    source.close()
    assert source.faults.count == 0 and plays > 10
    assert said.endswith(f"The {plays} frames before that are in {part}")


@NEEDS_LIMITS
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_full_disk_on_which_nothing_plays_leaves_nothing(tmp_path, suffix):
    said = run_on_a_disk_of(3000, tmp_path / f"o{suffix}")
    assert said.endswith("frames up to there plays: the part is removed")
    assert list(tmp_path.iterdir()) == []


@NEEDS_LIMITS
def test_disk_full_at_the_end_of_a_file(tmp_path):
    """The index of an MP4 file comes last, and its beginning is then written over."""
    whole = run(iter(pan(24, 1)), iter(pan(24, 3, channels=3)), tmp_path / "a.mp4", crf=1).out
    said = run_on_a_disk_of(whole.stat().st_size - 200, tmp_path / "o.mp4", frames=24)
    part = part_of(tmp_path / "o.mp4")
    frames = read_clip(part)[0]
    assert len(frames) >= 23 and f"The {len(frames)} frames before that are in {part}" in said


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_killed_process_leaves_a_part_that_plays(tmp_path, suffix):
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT / "tests" / "tools")!r}, {str(ROOT)!r}]
from clips import endless, quick_fuser
from ddfm_fast.video import fuse_video
def frames():
    for n, image in enumerate(endless(3)):
        if n == 80:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image
fuse_video(endless(1), frames(), sys.argv[1], fuser=quick_fuser(), preset="realtime")
"""
    out = tmp_path / f"o{suffix}"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    frames, times, _ = read_clip(part_of(out))
    assert 55 <= len(frames) < 80  # seven are in the queues, the rest in the encoder
    assert np.ptp(frames[-1]) > 50


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(streams, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        run(*streams, folder / "o.mp4")
