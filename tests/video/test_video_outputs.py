"""What a video is written to: locks, names, and outputs that go away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from clips import endless, pan, quick_fuser, read_clip
from conftest import ROOT
from fusing import FRAMES, leftovers, run, stream_files

from ddfm_fast.files.reading import read_image
from ddfm_fast.video import outputs
from ddfm_fast.video.frames import VideoError
from ddfm_fast.video.report import INTERRUPTED
from ddfm_fast.video.sinks import PictureSink, VideoSink
from ddfm_fast.video.tasks import plan, run_tasks

LOCK = ".ddfm_fast_video.lock"


@pytest.fixture
def streams(tmp_path) -> tuple[Path, Path]:
    return stream_files(tmp_path)


def frames_of(folder: Path) -> list[str]:
    """Return the names of the pictures in a folder, each of which is read."""
    return [path.name for path in sorted(folder.glob("*.png")) if read_image(path).ndim]


def visible(at: int, act, frames: int = 40):
    """Yield frames, and call ``act`` before one of them."""
    for n, image in zip(range(frames), endless(3), strict=False):
        if n == at:
            act()
        yield image


# A folder of pictures


def test_two_runs_do_not_share_a_folder(streams, tmp_path):
    out = tmp_path / "o"

    def second():
        with pytest.raises(VideoError, match=f"o, which process {os.getpid()} is writing"):
            run(*streams, out)

    assert run(endless(1), visible(5, second), out).ok
    assert leftovers(out) == [] and run(*streams, out).ok


def test_a_folders_lock_of_a_process_that_is_gone_is_none(streams, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / LOCK).write_text("1")
    assert run(*streams, tmp_path / "o").ok and leftovers(tmp_path / "o") == []


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["link", "hard link"])
@pytest.mark.parametrize("out, lock", [("o.mp4", ".o.mp4.lock"), ("o", f"o/{LOCK}")])
def test_a_lock_that_is_a_link_does_not_empty_a_file(streams, tmp_path, out, lock, make):
    other = tmp_path / "other.txt"
    other.write_text("kept")
    (tmp_path / lock).parent.mkdir(exist_ok=True)
    make(other, tmp_path / lock)
    with pytest.raises(VideoError, match=f"{Path(lock).name} is a link or not a file"):
        run(*streams, tmp_path / out)
    assert other.read_text() == "kept" and not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("another", [False, True], ids=["none", "another"])
def test_a_folder_that_vanishes_is_not_made_again(tmp_path, another):
    sink = PictureSink(tmp_path / "o")
    sink.write(pan(1, 1)[0], Fraction(0), 0)
    sink.path.rename(tmp_path / "elsewhere")
    if another:
        sink.path.mkdir()
    with pytest.raises(VideoError, match="o: is gone after frame 1; start again$"):
        sink.write(pan(1, 1)[0], Fraction(1), 1)
    assert sink.abandon() is None and sink.path.exists() == another
    assert not another or os.listdir(sink.path) == []
    assert frames_of(tmp_path / "elsewhere") == ["000000.png"]


def test_a_folder_that_is_removed_ends_the_run(tmp_path):
    out = tmp_path / "o"
    with pytest.raises(ValueError, match="o: is gone after|cannot be written"):
        run(endless(1), visible(30, lambda: shutil.rmtree(out, True), frames=200), out)


def test_a_frame_does_not_go_through_a_link(streams, tmp_path):
    run(*streams, tmp_path / "pictures")
    out = tmp_path / "o"
    out.mkdir()
    (out / "000003.png").symlink_to(tmp_path / "pictures" / "000003.png")
    before = (tmp_path / "pictures" / "000003.png").read_bytes()
    with pytest.raises(VideoError, match="000003.png: is a link .*The 3 frames before that are in"):
        run(*streams, out)
    assert (tmp_path / "pictures" / "000003.png").read_bytes() == before
    assert leftovers(out) == []


def test_a_folder_where_files_get_no_names_is_one_sentence(streams, tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("000004.png"):
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        VideoError, match="000004.png: cannot be written in .*The 4 frames before that are in .*o$"
    ):
        run(*streams, tmp_path / "o")
    assert len(frames_of(tmp_path / "o")) == 4 and leftovers(tmp_path / "o") == []


def test_a_killed_run_leaves_whole_frames_and_no_lock(streams, tmp_path):
    done = program(
        """
def frames():
    for n, image in enumerate(endless(3)):
        if n == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image
fuse_video(endless(1), frames(), sys.argv[1], fuser=quick_fuser(), preset="realtime")
""",
        tmp_path / "o",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 20 < len(frames_of(tmp_path / "o")) < 60 and (tmp_path / "o" / LOCK).exists()
    assert run(*streams, tmp_path / "o").ok


def program(code: str, *arguments: object) -> subprocess.CompletedProcess:
    start = f"""
import os, resource, signal, sys
sys.path[:0] = [{str(ROOT / "tests" / "tools")!r}, {str(ROOT)!r}]
from clips import endless, quick_fuser
from ddfm_fast.video import fuse_video
"""
    line = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


# A file


def test_an_output_that_is_no_file_is_refused(streams, tmp_path):
    os.mkfifo(tmp_path / "pipe.mkv")
    with pytest.raises(VideoError, match="pipe.mkv, which is not a regular file"):
        run(*streams, tmp_path / "pipe.mkv")
    assert (tmp_path / "pipe.mkv").is_fifo()


def test_the_longest_name_can_be_written(streams, tmp_path):
    out = tmp_path / ("n" * 251 + ".mkv")
    assert run(*streams, out).frames == FRAMES and leftovers(tmp_path) == []
    with pytest.raises(ValueError, match="too long"):
        run(*streams, tmp_path / ("n" * 252 + ".mkv"))
    others = [outputs.Lock(tmp_path / ("n" * 250 + f"{n}.mkv")) for n in range(2)]
    for lock in others:  # two names that differ where they are shortened
        assert lock.holds
        lock.let_go()


def test_a_part_without_a_byte_is_cleared_away(streams, tmp_path, recwarn):
    (tmp_path / "o.part-1-abc.mp4").touch()
    assert run(*streams, tmp_path / "o.mp4").ok
    assert leftovers(tmp_path) == [] and not [w for w in recwarn if "is left" in str(w.message)]


def test_an_interrupt_before_the_first_frame_keeps_an_older_output(tmp_path, monkeypatch):
    out = tmp_path / "o.mp4"
    out.write_bytes(b"an older output")
    opened = VideoSink._open_streams

    def interrupted(self, *size):
        opened(self, *size)
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoSink, "_open_streams", interrupted)
    report = run(iter(pan(4, 1)), iter(pan(4, 3, channels=3)), out)
    assert report.stopped == INTERRUPTED and report.frames == 0
    assert out.read_bytes() == b"an older output" and leftovers(tmp_path) == []


def test_an_end_that_cannot_be_written_names_the_part(streams, tmp_path, monkeypatch):
    def fail(self):
        raise VideoError("o.mp4: cannot be written after frame 12 (No space left on device)")

    monkeypatch.setattr(VideoSink, "finish", fail)
    with pytest.raises(
        VideoError, match=r"The 12 frames before that are in .*o\.part-.*\.mp4$"
    ) as caught:
        run(*streams, tmp_path / "o.mp4")
    (part,) = tmp_path.glob("o.part-*")
    assert str(part) in str(caught.value) and len(read_clip(part)[0]) == FRAMES


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_a_disk_that_is_full_from_the_start_is_one_sentence(tmp_path, suffix):
    done = program(
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
fuse_video(endless(1), endless(3), sys.argv[1], fuser=quick_fuser(), preset="realtime")
""",
        tmp_path / f"o{suffix}",
    )
    assert done.returncode == 1, done.stderr
    assert f"o{suffix}: cannot be written after frame " in done.stderr.splitlines()[-1]
    assert leftovers(tmp_path) == [] and not (tmp_path / f"o{suffix}").exists()


# An output that is an input


def other_names(folder: Path) -> dict[str, str]:
    """Return names of folder/vis.mp4 that are not plain paths."""
    video = folder / "vis.mp4"
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'vis.mp4'\n")
    (folder / "live.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n")
    (folder / "nested.txt").write_text("file list.ffconcat\n")
    (folder / "link.mp4").symlink_to("vis.mp4")
    names = {
        "file": f"file:{video}",
        "url": f"file://{video}",
        "concat": f"concat:none.mp4|{video}",
        "cache": f"cache:{video}",
    }
    lists = {name: str(folder / name) for name in ("list.ffconcat", "live.m3u8", "nested.txt")}
    return {**names, **lists, "link": str(folder / "link.mp4")}


@pytest.mark.parametrize(
    "name",
    ["file", "url", "concat", "cache", "list.ffconcat", "live.m3u8", "nested.txt", "link"],
)
def test_an_input_is_seen_through_prefixes_lists_and_links(tmp_path, name):
    (tmp_path / "vis.mp4").write_bytes(b"precious")
    with pytest.raises(VideoError, match="vis.mp4, which is an input"):
        outputs.Inputs([other_names(tmp_path)[name]]).refuse(tmp_path / "vis.mp4")
    outputs.Inputs([str(tmp_path / "link.mp4")]).refuse(tmp_path / "new.mp4")


def test_a_folder_of_links_does_not_hide_where_they_lead(tmp_path):
    for name in ("real", "links"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "0.png").write_bytes(b"precious")
    (tmp_path / "links" / "0.png").symlink_to(tmp_path / "real" / "0.png")
    with pytest.raises(VideoError, match="real, which is an input"):
        outputs.Inputs([tmp_path / "links"]).refuse(tmp_path / "real")


def test_a_data_set_does_not_write_over_an_input_of_another_of_its_tasks(streams, tmp_path):
    folder = tmp_path / "ds"
    folder.mkdir()
    for name in ("a_T", "a_RGB", "a_T_T", "a_T_RGB"):
        shutil.copy(streams["_RGB" in name], folder / f"{name}.mp4")
    before = (folder / "a_T.mp4").read_bytes()
    results = run_tasks(plan(folder, None, folder), fuser=quick_fuser(preset="instant"))
    assert {r.task.name: r.error is None for r in results} == {"a": True, "a_T": False}
    assert (folder / "a_T.mp4").read_bytes() == before
