"""Whole videos: what is kept of the streams, order, live streams, dropping and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import BT709, pan, quick_fuser, read_clip, write_clip
from conftest import ROOT
from fusing import FRAMES, leftovers, run, stream_files

from ddfm_fast import FuseConfig, Fuser
from ddfm_fast.files.reading import read_image
from ddfm_fast.video import VIDEO_PRESETS, VideoPreset, fuse_video
from ddfm_fast.video.frames import VideoError
from ddfm_fast.video.pipeline import VIDEO_DEFAULTS, VideoOptions


@pytest.fixture
def streams(tmp_path) -> tuple[Path, Path]:
    return stream_files(tmp_path)


# What is kept


def test_everything_of_the_visible_stream_is_kept(streams, tmp_path):
    report = run(*streams, tmp_path / "out" / "fused.mp4")
    frames, times, facts = read_clip(report.out)
    assert report.ok and report.frames == len(frames) == FRAMES
    assert times == pytest.approx([n / 25 for n in range(FRAMES)])
    assert facts["codec"] == "h264" and facts["rate"] == 25 and facts["audio"] == ["aac"]
    assert facts["tags"] == (BT709,) * 3 and facts["range"] == 1
    assert frames[0].shape == (64, 64, 3) and np.ptp(frames[0]) > 100
    assert leftovers(tmp_path / "out") == []
    assert report.evaluations == 0 and 0 < report.latency_p50 <= report.latency_p99
    assert report.sources["ir"]["evaluations"] == 0 == report.sources["vis"]["sigma"]


def test_file_holds_what_stream_gives(tmp_path):
    """Lossless output of lossless input is `Fuser.stream`, bit for bit."""
    ir, vis = pan(5, 1), pan(5, 2, channels=3)
    a = write_clip(tmp_path / "a.mkv", ir, codec="ffv1", pix_fmt="gray")
    b = write_clip(tmp_path / "b.mkv", vis, codec="ffv1", pix_fmt="bgr0")
    expected = list(quick_fuser().stream(zip(ir, vis, strict=True), preset="realtime"))
    run(a, b, tmp_path / "o.mkv", codec="ffv1")
    run(a, b, tmp_path / "png")
    for n, (frame, image) in enumerate(
        zip(read_clip(tmp_path / "o.mkv")[0], expected, strict=True)
    ):
        np.testing.assert_array_equal(frame, image)
        np.testing.assert_array_equal(read_image(tmp_path / "png" / f"{n:06d}.png"), image)


def test_colors_survive_the_way_through_h264(streams, tmp_path):
    """A gray infrared equal to the visible luma leaves the color patches what they were."""
    report = run(*streams, tmp_path / "o.mp4", crf=4, side_by_side=True)
    frames, _, _ = read_clip(report.out)
    whole, vis = frames[3], read_clip(streams[1])[0][3]
    assert whole.shape == (64, 192, 3)
    assert np.abs(whole[:, 64:128].astype(int) - vis).mean() < 4


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264.mov", "h264.mkv", "h264.ts", "hevc.mp4", "hevc.ts", "ffv1.mkv"]
)
def test_codecs_and_containers(streams, tmp_path, name):
    codec = name.partition(".")[0]
    report = run(*streams, tmp_path / name, codec=codec, end=0.2)
    frames, times, facts = read_clip(report.out)
    assert np.diff([0, *np.subtract(times, times[0])]) == pytest.approx([0, *[0.04] * 4])
    assert len(frames) == 5 and facts["codec"] == codec and facts["audio"] == ["aac"]


def test_sixteen_bits_stay(tmp_path):
    ir = [f.astype(np.uint16) * 257 for f in pan(4, 1)]
    vis = [f.astype(np.uint16) * 257 for f in pan(4, 2, channels=3)]
    a = write_clip(tmp_path / "a.mkv", ir, codec="ffv1", pix_fmt="gray16le")
    b = write_clip(tmp_path / "b.mkv", vis, codec="ffv1", pix_fmt="gbrp16le")
    expected = list(quick_fuser().stream(zip(ir, vis, strict=True), preset="realtime"))
    run(a, b, tmp_path / "o.mkv", codec="ffv1")
    frames, _, facts = read_clip(tmp_path / "o.mkv")
    assert facts["format"] == "gbrp16le"
    np.testing.assert_array_equal(frames[2], expected[2])
    run(a, b, tmp_path / "o.mp4", codec="hevc", crf=1)
    frames, _, facts = read_clip(tmp_path / "o.mp4")
    assert facts["format"] == "yuv420p10le"
    gray = [
        np.abs(f.astype(int).mean(2) - e.mean(2)).mean()
        for f, e in zip(frames, expected, strict=True)
    ]
    assert max(gray) < 1500
    run(a, a, tmp_path / "png")
    png = read_image(tmp_path / "png" / "000002.png")
    assert png.dtype == np.uint16 and np.unique(png % 257).size > 100


def test_start_end_offset_and_rates(tmp_path):
    ir = write_clip(tmp_path / "ir.mkv", pan(20, 1), rate=25)
    vis = write_clip(tmp_path / "vis.mp4", pan(40, 2, channels=3), rate=50)
    report = run(ir, vis, tmp_path / "o.mp4", start=0.2, end=0.5, offset=0.04)
    _, times, facts = read_clip(report.out)
    assert times == pytest.approx([n / 50 for n in range(15)]) and facts["rate"] == 50


def test_pixel_aspect_is_kept(tmp_path):
    ir = write_clip(tmp_path / "ir.mp4", pan(2, 1))
    vis = write_clip(tmp_path / "vis.mp4", pan(2, 2, channels=3), aspect=Fraction(4, 3))
    run(ir, vis, tmp_path / "o.mp4")
    assert read_clip(tmp_path / "o.mp4")[2]["aspect"] == Fraction(4, 3)


def test_odd_sizes_and_gray(tmp_path):
    ir = [f[:33, :47] for f in pan(3, 1)]
    report = run(ir, ir, tmp_path / "o.mp4")
    frames, _, _ = read_clip(report.out)
    assert frames[0].shape == (34, 48, 3)
    assert np.abs(frames[0].astype(int) - frames[0][..., :1]).max() <= 3
    report = run(ir, ir, tmp_path / "o.mkv", codec="ffv1")
    frames, _, facts = read_clip(report.out)
    assert facts["format"] == "gray" and frames[0].shape == (33, 47, 3)


def test_audio_that_a_container_cannot_hold(tmp_path):
    ir = write_clip(tmp_path / "ir.mp4", pan(3, 1))
    vis = write_clip(tmp_path / "vis.mp4", pan(3, 2, channels=3), audio=True)
    report = run(ir, vis, tmp_path / "quiet.mp4", audio=False)
    assert read_clip(report.out)[2]["audio"] == []


def test_an_old_output_stands_until_the_new_one_is_complete(streams, tmp_path):
    out = tmp_path / "o.mp4"
    out.write_bytes(b"old")
    with pytest.raises(VideoError):
        run(*streams, out, offset=50.0)
    assert out.read_bytes() == b"old"
    run(*streams, out)
    assert len(read_clip(out)[0]) == FRAMES


# Live


def test_live_url(tmp_path):
    """Two MPEG transport streams over TCP: what arrives is fused, and their end is no error."""
    import socket

    clips = [
        write_clip(tmp_path / "ir.ts", pan(60, 1)),
        write_clip(tmp_path / "vis.ts", pan(60, 2, channels=3)),
    ]
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in clips]

    def serve(server, path):
        with server, server.accept()[0] as connection:
            connection.sendall(path.read_bytes())

    for server, path in zip(servers, clips, strict=True):
        threading.Thread(target=serve, args=(server, path), daemon=True).start()
    urls = [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in servers]
    report = run(*urls, tmp_path / "o.mp4")
    assert report.ok and 30 < report.frames <= 60  # the streams do not begin together
    assert len(read_clip(report.out)[0]) == report.frames


def test_file_by_url_is_not_live(streams, tmp_path):
    report = run(*(path.as_uri() for path in streams), tmp_path / "o.mp4", start=0.2)
    assert report.frames == FRAMES - 5


# The stages


def test_order_is_kept(tmp_path):
    ir = [np.full((32, 32), 5 * n, np.uint8) for n in range(40)]
    run(ir, ir, tmp_path / "o", start=0)
    means = [read_image(tmp_path / "o" / f"{n:06d}.png").mean() for n in range(40)]
    assert len(means) == 40
    report = run(ir, ir, tmp_path / "o.mkv", codec="ffv1")
    _, times, _ = read_clip(report.out)
    assert times == sorted(times) and len(times) == 40


def test_realtime_drops_frames_and_keeps_time(tmp_path):
    """Fusion that takes 60 ms per frame of a 50/s stream: pairs are dropped, timestamps are not."""

    class Slow:
        multiple = 1

        def __call__(self, x, _t):
            time.sleep(0.06)
            return x * 0

    ir = write_clip(tmp_path / "ir.mp4", pan(50, 1), rate=50)
    vis = write_clip(tmp_path / "vis.mp4", pan(50, 2, channels=3), rate=50, audio=True)
    fuser = Fuser(prior=Slow(), device="cpu")
    begun = time.perf_counter()
    late = FuseConfig(variant="gradient", steps=1, start=20, spacing=1.5, psi=5.0, eta=10.0)
    preset = VideoPreset("one late step per frame", late)
    report = fuse_video(ir, vis, tmp_path / "o.mkv", fuser=fuser, preset=preset, realtime=True)
    took = time.perf_counter() - begun
    _, times, facts = read_clip(report.out)
    assert report.dropped > 5 and report.frames + report.dropped == 50
    assert len(times) == report.frames and 0.9 < took < 10
    assert all(min(abs(t - n / 50) for n in range(50)) < 2e-3 for t in times)
    assert facts["audio"] == ["aac"]


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.thorough)])
def test_memory_is_flat_over_thousands_of_frames(count, tmp_path):
    """Resident memory after 1000 frames is what it is at the end, to 5 %."""
    frames = pan(50, 1, size=32)
    resident = {}

    def source():
        for n in range(count):
            if n in (1000, count - 1):
                resident[n] = _resident()
            yield frames[n % 50]

    quick = replace(VIDEO_PRESETS["realtime"], polish=0)
    report = fuse_video(
        (frames[n % 50] for n in range(count)),
        source(),
        tmp_path / "o.mkv",
        fuser=quick_fuser(),
        preset=quick,
    )
    assert report.frames == count
    assert abs(resident[count - 1] / resident[1000] - 1) < 0.05


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pytest.skip("resident memory is read from /proc")
    return pages * os.sysconf("SC_PAGE_SIZE")


# Options


def test_every_option_has_a_default():
    assert set(VIDEO_DEFAULTS) == set(VideoOptions.__annotations__)


def test_an_unknown_option_is_refused(streams, tmp_path):
    with pytest.raises(TypeError, match="'reszie' is not an option; did you mean 'resize'"):
        run(*streams, tmp_path / "o.mp4", reszie="vis")


# Without PyAV


def test_everything_imports_without_pyav():
    code = """
import sys
sys.modules["av"] = None
import ddfm_fast.video as video
from ddfm_fast.video import *
from ddfm_fast import cli
assert video.fuse_video and video.TemporalFuser
try:
    video.fuse_video("a.mp4", "b.mp4", "c.mp4")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'pip install "ddfm_fast[video]"' in done.stdout
