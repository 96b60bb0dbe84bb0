"""Names of streams: files with colons in them, addresses of FFmpeg's, and named pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from clips import read_clip
from conftest import ROOT
from fusing import FRAMES, leftovers, run, stream_files

from ddfm_fast import DDFMWarning
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import image_size, read_image
from ddfm_fast.video import open_source
from ddfm_fast.video.frames import VideoError
from ddfm_fast.video.opening import local

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs names and pipes of POSIX")
NAMES = ["a:b.mp4", "pipe:1.mp4", "c:d.mkv", "-x.mp4", "rtsp:x.mov", "concat:a|b.ts", "12:30"]


@pytest.fixture
def streams(tmp_path) -> tuple[Path, Path]:
    return stream_files(tmp_path)


def count(spec) -> int:
    source = open_source(spec, "ir")
    try:
        return len(list(source.frames()))
    finally:
        source.close()


# Names


@posix
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_exists_is_a_file(streams, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    streams[0].rename(name)
    assert count(name) == count(Path(name)) == FRAMES


@posix
@pytest.mark.parametrize("name", [name for name in NAMES if "." in name])
def test_an_output_is_a_file(streams, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run(*streams, name).frames == FRAMES
    assert len(read_clip(tmp_path / name)[0]) == FRAMES and leftovers(tmp_path) == []


@posix
def test_a_folder_with_a_colon_is_a_folder(streams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*streams, "o:p").frames == FRAMES
    assert count("o:p") == FRAMES


@posix
def test_a_files_colon_does_not_make_another_file_an_input(streams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams[0].rename("a:b.mp4")
    assert run("a:b.mp4", streams[1], "b.mp4").ok
    with pytest.raises(VideoError, match="which is an input"):
        run("file:vis.mp4", streams[1], "vis.mp4")


def test_other_text_is_left_to_ffmpeg(streams, tmp_path):
    for text in ("rtsp://thermal", "http://a/b.mp4", "concat:a|b", "pipe:0", "fd:", "data:,"):
        assert local(text) is None
    for text in ("pipe:1.mp4", "none.mp4", tmp_path / "rtsp://thermal"):
        assert local(text) == Path(text)
    ts = tmp_path / "ir.ts"
    run(*streams, ts)
    assert count(f"file:{ts}") == FRAMES and count(f"concat:{ts}|{ts}") > FRAMES
    assert count(ts.as_uri().replace("///", "/")) == FRAMES
    with pytest.raises(VideoError, match="ir is a:b.mp4: no such file or folder"):
        open_source("a:b.mp4", "ir")
    with pytest.raises(VideoError, match="ir is pipe:1.mp4: no such file or folder"):
        open_source("pipe:1.mp4", "ir")


@posix
def test_playlists_find_what_lies_beside_them(streams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x:y").mkdir()
    (tmp_path / "x:y" / "ir.mp4").write_bytes(streams[0].read_bytes())
    for folder in ("", "x:y/"):
        Path(f"{folder}list.ffconcat").write_text("ffconcat version 1.0\nfile ir.mp4\n")
        assert count(f"{folder}list.ffconcat") == FRAMES


# Pipes


@pytest.fixture
def pipe(tmp_path) -> Path:
    os.mkfifo(tmp_path / "pipe.mkv")
    return tmp_path / "pipe.mkv"


def written_to(pipe: Path, data: bytes) -> threading.Thread:
    """Write in a thread, which waits for a reader as programs do."""
    thread = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    thread.start()
    return thread


@posix
def test_a_pipe_is_a_stream(streams, tmp_path, pipe):
    run(*streams, tmp_path / "whole.mkv")
    data = (tmp_path / "whole.mkv").read_bytes()
    writer = written_to(pipe, data)
    assert count(pipe) == FRAMES
    writer.join()
    written_to(pipe, data)
    source = open_source(str(pipe), "ir")
    assert not source.live
    assert [f.number for f in source.frames(10 / source.rate)] == [10, 11]
    source.close()


@posix
def test_a_pipe_that_ends_without_a_byte_is_an_error(pipe):
    writer = written_to(pipe, b"")
    with pytest.raises(VideoError, match="ir is .*pipe.mkv: no video came through the pipe"):
        open_source(pipe, "ir")
    writer.join()


@posix
def test_a_pipe_that_nobody_writes_is_named_and_awaited(streams, tmp_path, pipe):
    run(*streams, tmp_path / "whole.mkv")
    data = (tmp_path / "whole.mkv").read_bytes()
    timer = threading.Timer(2, written_to, (pipe, data))
    timer.start()
    with pytest.warns(DDFMWarning, match="ir is .*pipe.mkv, a pipe that nobody has written to"):
        assert count(pipe) == FRAMES
    timer.join()


@posix
@pytest.mark.parametrize("begun", [False, True], ids=["silent", "stalled"])
def test_ctrl_c_ends_the_wait_for_a_pipe(streams, tmp_path, pipe, begun):
    out = tmp_path / "o.mp4"
    command = [sys.executable, "-m", "ddfm_fast", "video", str(pipe), str(streams[1]), "-o", out]
    program = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if begun:
        writer = os.open(pipe, os.O_WRONLY)
        os.write(writer, b"\x1a\x45\xdf\xa3")
        threading.Timer(2, program.send_signal, (signal.SIGINT,)).start()
    else:
        assert "nobody has written to yet; waiting" in program.stderr.readline()
        program.send_signal(signal.SIGINT)
    words = program.communicate(timeout=60)[1]
    assert program.returncode == 130 and words.splitlines()[-1] == "interrupted"
    assert "Traceback" not in words and not out.exists()


@posix
def test_a_pipe_is_no_picture(pipe):
    assert image_size(pipe) is None
    with pytest.raises(ImageFileError, match="not a regular file"):
        read_image(pipe)
    with pytest.raises(VideoError, match="none of its 1 pictures can be read"):
        open_source([pipe], "ir")
