"""Whole videos: what is kept, what faults leave behind, memory, order and dropping."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import BT709, endless, pan, quick_fuser, read_clip, texture, write_clip
from conftest import ROOT

from ddfm_fast.images.files import read_image
from ddfm_fast.video import VIDEO_PRESETS, fuse_video, open_source
from ddfm_fast.video.pipeline import INTERRUPTED, Ahead, beside
from ddfm_fast.video.sources import VideoError

FRAMES = 12


@pytest.fixture
def streams(tmp_path) -> tuple[Path, Path]:
    """(infrared, visible): 12 frames of 64x64 at 25/s, the visible one tagged and with audio."""
    return (
        write_clip(tmp_path / "ir.mp4", pan(FRAMES, 1)),
        write_clip(tmp_path / "vis.mp4", pan(FRAMES, 2, channels=3), tags=True, audio=True),
    )


def run(ir, vis, out, **options):
    return fuse_video(ir, vis, out, fuser=quick_fuser(), preset="realtime", **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "part" in p.name or p.name.startswith("."))


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
    assert report.evaluations == FRAMES + 2 and 0 < report.latency_p50 <= report.latency_p99


def test_file_holds_what_stream_gives(streams, tmp_path):
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


def test_colours_survive_the_way_through_h264(streams, tmp_path):
    """A grey infrared equal to the visible luma leaves the colour patches what they were."""
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


def test_container_that_does_not_hold_the_codec(streams, tmp_path):
    for name in ("o.mov", "o.ts"):
        with pytest.raises(VideoError, match="does not hold ffv1; write .mkv"):
            run(*streams, tmp_path / name, codec="ffv1")
    assert leftovers(tmp_path) == []


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
    grey = [
        np.abs(f.astype(int).mean(2) - e.mean(2)).mean()
        for f, e in zip(frames, expected, strict=True)
    ]
    assert max(grey) < 1500
    run(a, a, tmp_path / "png")
    png = read_image(tmp_path / "png" / "000002.png")
    assert png.dtype == np.uint16 and np.unique(png % 257).size > 100


def test_thermal_counts(tmp_path):
    """A 16-bit thermal picture of 7000 to 9000 counts is nearly flat without a range."""
    counts = [(7000 + f.astype(np.uint16) * 7) for f in pan(2, 1)]
    vis = [np.full((64, 64, 3), 100, np.uint8)] * 2
    stretched = [np.rint((c.astype(float) - 7000) / 2000 * 65535).astype(np.uint16) for c in counts]
    run(counts, vis, tmp_path / "a", ir_range=(7000, 9000))
    run(stretched, vis, tmp_path / "b")
    a, b = (read_image(tmp_path / name / "000001.png").astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 16
    with pytest.raises(ValueError, match="lo < hi"):
        run(counts, vis, tmp_path / "c", ir_range=(9, 7))


def test_start_end_offset_and_rates(tmp_path):
    ir = write_clip(tmp_path / "ir.mkv", pan(20, 1), rate=25)
    vis = write_clip(tmp_path / "vis.mp4", pan(40, 2, channels=3), rate=50)
    report = run(ir, vis, tmp_path / "o.mp4", start=0.2, end=0.5, offset=0.04)
    _, times, facts = read_clip(report.out)
    assert times == pytest.approx([n / 50 for n in range(15)]) and facts["rate"] == 50


def test_resize(tmp_path):
    ir, vis = pan(2, 1, size=32), pan(2, 2, channels=3)
    with pytest.raises(VideoError, match="ir has 32x32 pixels and vis 64x64.*--resize vis"):
        run(
            write_clip(tmp_path / "ir.mp4", ir), write_clip(tmp_path / "v.mp4", vis), tmp_path / "o"
        )
    for resize, size in (("vis", 64), ("ir", 32), ((40, 48), None)):
        out = tmp_path / f"o{size}"
        run(tmp_path / "ir.mp4", tmp_path / "v.mp4", out, resize=resize)
        assert read_image(out / "000001.png").shape[:2] == ((size, size) if size else (40, 48))


def test_pixel_aspect_is_kept(tmp_path):
    ir = write_clip(tmp_path / "ir.mp4", pan(2, 1))
    vis = write_clip(tmp_path / "vis.mp4", pan(2, 2, channels=3), aspect=Fraction(4, 3))
    run(ir, vis, tmp_path / "o.mp4")
    assert read_clip(tmp_path / "o.mp4")[2]["aspect"] == Fraction(4, 3)


def test_odd_sizes_and_grey(tmp_path):
    ir = [f[:33, :47] for f in pan(3, 1)]
    report = run(ir, ir, tmp_path / "o.mp4")
    frames, _, _ = read_clip(report.out)
    assert frames[0].shape == (34, 48, 3)
    assert np.abs(frames[0].astype(int) - frames[0][..., :1]).max() <= 3
    report = run(ir, ir, tmp_path / "o.mkv", codec="ffv1")
    frames, _, facts = read_clip(report.out)
    assert facts["format"] == "gray" and frames[0].shape == (33, 47, 3)


def test_beside():
    ir, vis, out = texture(16, 20, 1), texture(16, 20, 2, 3), texture(16, 20, 3, 3)
    whole = beside(ir, vis, out)
    assert whole.shape == (16, 60, 3)
    np.testing.assert_array_equal(whole[:, :20], np.dstack([ir] * 3))
    np.testing.assert_array_equal(whole[:, 40:], out)
    assert beside(ir, ir, ir[..., None]).shape == (16, 60)


# Faults


def test_bad_frames_are_reported_and_the_rest_goes_on(tmp_path):
    from ddfm_fast.images.files import write_image

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


def test_interrupt_completes_the_file(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            if n == 40:
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does: the main thread is told
            yield image

    report = run(endless(1), vis(), tmp_path / "o.mp4")
    assert report.stopped == INTERRUPTED and 25 <= report.frames < 200
    assert len(read_clip(report.out)[0]) == report.frames
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_full_disk_leaves_a_part_that_plays(tmp_path, suffix):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(VideoError, match="cannot be written after frame") as caught:
            run(endless(1), endless(3), tmp_path / f"o{suffix}", crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    part = tmp_path / f"o.part{suffix}"
    assert str(part) in str(caught.value) and not (tmp_path / f"o{suffix}").exists()
    source = open_source(part, "part")
    assert len(list(source.frames())) > 10
    source.close()


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
    frames, times, _ = read_clip(tmp_path / f"o.part{suffix}")
    assert 55 <= len(frames) < 80  # seven are in the queues, the rest in the encoder
    assert np.ptp(frames[-1]) > 50


def test_an_error_while_fusing_names_the_part(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            yield image if n < 40 else image[:32]

    with pytest.raises(VideoError, match="frame 40 has shape.*are in .*o.part.mp4$") as caught:
        run(endless(1), vis(), tmp_path / "o.mp4")
    frames = read_clip(tmp_path / "o.part.mp4")[0]
    assert 30 <= len(frames) <= 40 and f"up to there, {len(frames)}," in str(caught.value)


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


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(streams, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        run(*streams, folder / "o.mp4")


def test_an_old_output_stands_until_the_new_one_is_complete(streams, tmp_path):
    out = tmp_path / "o.mp4"
    out.write_bytes(b"old")
    with pytest.raises(VideoError):
        run(*streams, out, offset=50.0)
    assert out.read_bytes() == b"old"
    run(*streams, out)
    assert len(read_clip(out)[0]) == FRAMES


def test_audio_that_a_container_cannot_hold(tmp_path):
    ir = write_clip(tmp_path / "ir.mp4", pan(3, 1))
    vis = write_clip(tmp_path / "vis.mp4", pan(3, 2, channels=3), audio=True)
    report = run(ir, vis, tmp_path / "quiet.mp4", audio=False)
    assert read_clip(report.out)[2]["audio"] == []


# Live


def test_live_url(tmp_path):
    """Two MPEG transport streams over TCP: what arrives is fused, and the end is an end."""
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
    assert report.ok and 30 < report.frames <= 60  # less what the second came later
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


def test_ahead_is_bounded_ordered_and_passes_errors_on():
    made = []

    def items():
        for n in range(10):
            made.append(n)
            yield n
        raise KeyError("the end")

    ahead = Ahead(items(), 2)
    time.sleep(0.1)
    assert len(made) == 3  # two in the queue, one in hand
    taken = []
    with pytest.raises(KeyError):
        for item in ahead:
            taken.append(item)
    assert taken == list(range(10))
    ahead.close()


def test_ahead_drops_the_oldest_and_hands_on_what_must_not_be_lost():
    go = threading.Event()

    def items():
        yield from ([n] for n in range(10))
        go.set()

    ahead = Ahead(items(), 2, merge=lambda dropped, following: dropped + following)
    assert go.wait(5)
    assert list(ahead) == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9]] and ahead.dropped == 8


def test_closing_ends_the_threads():
    closed = threading.Event()

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    first = Ahead(items(), 1)
    second = Ahead((n for n in first), 1)
    next(second)
    second.close()
    first.close()
    assert closed.wait(5)
    assert not first._thread.is_alive() and not second._thread.is_alive()


def test_realtime_drops_frames_and_keeps_time(tmp_path):
    """Fusion that takes 60 ms a frame of a 50/s stream: pairs are dropped, timestamps are not."""

    class Slow:
        multiple = 1

        def __call__(self, x, t):
            time.sleep(0.06)
            return x * 0

    from ddfm_fast import Fuser

    ir = write_clip(tmp_path / "ir.mp4", pan(50, 1), rate=50)
    vis = write_clip(tmp_path / "vis.mp4", pan(50, 2, channels=3), rate=50, audio=True)
    fuser = Fuser(prior=Slow(), device="cpu")
    begun = time.perf_counter()
    report = fuse_video(ir, vis, tmp_path / "o.mkv", fuser=fuser, preset="realtime", realtime=True)
    took = time.perf_counter() - begun
    _, times, facts = read_clip(report.out)
    assert report.dropped > 5 and report.frames + report.dropped == 50
    assert len(times) == report.frames and 0.9 < took < 10
    assert all(min(abs(t - n / 50) for n in range(50)) < 2e-3 for t in times)
    assert facts["audio"] == ["aac"]


def test_memory_is_flat_over_5000_frames(tmp_path):
    """Resident memory after 1000 of 5000 frames is what it is at the end, to 5 %."""
    frames = pan(50, 1, size=32)
    resident = {}

    def source():
        for n in range(5000):
            if n in (1000, 4999):
                resident[n] = _resident()
            yield frames[n % 50]

    quick = replace(VIDEO_PRESETS["realtime"], polish=0)
    report = fuse_video(
        (frames[n % 50] for n in range(5000)),
        source(),
        tmp_path / "o.mkv",
        fuser=quick_fuser(),
        preset=quick,
    )
    assert report.frames == 5000
    assert abs(resident[4999] / resident[1000] - 1) < 0.05


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pytest.skip("resident memory is read from /proc")
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_times_are_exact_over_hours():
    from ddfm_fast.video.sources import ArraySource

    source = ArraySource([], "x", Fraction(30000, 1001))
    assert source.time_base * 30000 * 3600 == 1001 * 3600


# Without PyAV


def test_everything_imports_without_pyav(tmp_path):
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
