"""Fused video on standard output and sent to addresses."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import warnings

import pytest
from clips import endless, pan, write_clip
from conftest import ROOT
from fusing import run

from ddfm_fast.video import open_sink, streams
from ddfm_fast.video.frames import VideoError
from ddfm_fast.video.report import READER_GONE
from ddfm_fast.video.sources import ArraySource
from ddfm_fast.video.streams import ReaderGone, is_stream
from ddfm_fast.video.tasks import plan

av = pytest.importorskip("av")


@pytest.fixture
def pair(tmp_path):
    return (
        write_clip(tmp_path / "ir.mp4", pan(9, 1, size=48)),
        write_clip(tmp_path / "vis.mp4", pan(9, 2, size=48, channels=3), audio=True),
    )


def command(*arguments, **options):
    line = [sys.executable, "-m", "ddfm_fast", "video", *map(str, arguments)]
    return subprocess.Popen(
        [*line, "--preset", "realtime"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("more", [[], ["--codec", "ffv1", "--json", "--profile"]])
def test_standard_output_is_a_video_and_nothing_else(pair, more):
    data, said = command(*pair, "-o", "-", *more).communicate(timeout=120)
    assert data[:4] == b"\x1aE\xdf\xa3", said  # Matroska's first four bytes
    with av.open(io.BytesIO(data)) as container:
        assert container.format.name.startswith("matroska")
        assert len(list(container.decode(video=0))) == 9
    with av.open(io.BytesIO(data)) as container:
        assert [s.codec_context.name for s in container.streams.audio] == ["aac"]
    assert (b'"ok": true' if more else b"9 frames") in said


def test_a_reader_that_leaves_ends_it_quietly(tmp_path):
    clips = [
        write_clip(tmp_path / f"{n}.mkv", pan(300, n, size=48), codec="ffv1", pix_fmt="gray")
        for n in (1, 2)
    ]
    process = command(*clips, "-o", "-", "--codec", "ffv1", "-q")
    assert len(process.stdout.read(2000)) == 2000
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 0 and said == b""


def test_a_reader_that_leaves_is_in_the_report(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(streams, "_FD", write)
    os.close(read)
    report = run(endless(1), endless(3), "-", end=1.0)
    os.close(write)
    assert report.stopped == READER_GONE and report.ok and report.out == "-"


def listening(url: str, ready: threading.Event, **options) -> tuple[threading.Thread, list]:
    """Read frames from an address in a thread; return it and the list that the frames go to."""
    got: list = []

    def read():
        with av.open(url, options=options) as container:
            for frame in container.decode(video=0):
                got.append(frame.to_ndarray(format="rgb24"))
                ready.set()

    def quietly():
        try:
            read()
        except (av.error.FFmpegError, OSError) as error:
            got.append(str(error)) if not got else None

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread, got


def free_port(kind=socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(event: threading.Event):
    """Yield frames until somebody has seen one, for 30 seconds at most."""
    for n, image in enumerate(endless(3)):
        if n % 5 == 4 and event.wait(0.05) or n > 750:
            return
        yield image


def test_udp():
    port = free_port(socket.SOCK_DGRAM)
    seen = threading.Event()
    thread, got = listening(f"udp://127.0.0.1:{port}?timeout=3000000", seen)
    report = run(endless(1), until(seen), f"udp://127.0.0.1:{port}?pkt_size=1316")
    thread.join(timeout=20)
    assert seen.is_set() and got[0].shape == (64, 64, 3) and report.out.startswith("udp://")


def test_rtsp():
    url = f"rtsp://127.0.0.1:{free_port()}/fused"
    seen = threading.Event()
    thread, got = listening(url, seen, rtsp_flags="listen", listen_timeout="20")
    for _ in range(50):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                report = run(endless(1), until(seen), url)
                break
            except VideoError:  # not listening yet
                threading.Event().wait(0.1)
    thread.join(timeout=20)
    assert seen.is_set() and got[0].shape == (64, 64, 3) and report.frames > 0


def test_what_cannot_be_sent_to(monkeypatch, tmp_path):
    source = ArraySource(pan(3, 1), "vis", 25)
    with pytest.raises(VideoError, match=r"gopher://x; expected a file.*rtsp://, udp://"):
        open_sink("gopher://x", source)
    with pytest.raises(VideoError, match="with codec png"):
        open_sink("-", source, codec="png")
    monkeypatch.setattr("os.isatty", lambda _: True)
    with pytest.raises(VideoError, match="terminal; pipe it on"):
        open_sink("-", source)
    with pytest.raises(VideoError, match="cannot be sent to after frame 0 .*receiver listens"):
        run(pan(3, 1), pan(3, 3), f"tcp://127.0.0.1:{free_port()}")
    assert not is_stream(tmp_path / "-") and is_stream("-") and not is_stream("a-b.mkv")
    for name in ("a", "b"):
        for end in ("T", "RGB"):
            (tmp_path / f"{name}_{end}.avi").touch()
    with pytest.raises(ValueError, match="a stream, for 2 sequences"):
        plan(tmp_path, None, "-")
    assert issubclass(ReaderGone, Exception) and not issubclass(ReaderGone, (ValueError, OSError))
