"""Reading video files: codecs, depths, rotation, timestamps, and damaged files."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from clips import pan, read_clip, texture, write_clip

from ddfm_fast.video.decoding import VideoSource
from ddfm_fast.video.frames import Faults, VideoError
from ddfm_fast.video.sources import open_source


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "worst"),
    [
        ("libx264", ".mp4", "yuv420p", 6),
        ("libx265", ".mkv", "yuv420p", 8),
        ("mpeg4", ".avi", "yuv420p", 12),
        ("ffv1", ".mkv", "bgr0", 0),
        ("libvpx-vp9", ".webm", "yuv420p", 12),
        ("mjpeg", ".mov", "yuvj420p", 12),
    ],
)
def test_codecs_and_containers(tmp_path, codec, suffix, pix_fmt, worst):
    frames = pan(10, 1, channels=3)
    frames = [np.repeat(f[..., :1], 3, axis=2) for f in frames]  # chroma is subsampled: no color
    path = write_clip(tmp_path / f"clip{suffix}", frames, codec=codec, pix_fmt=pix_fmt)
    source = open_source(path, "vis")
    assert source.size == (64, 64) and source.rate == 25
    read = list(source.frames())
    source.close()
    assert len(read) == 10 and not source.faults.count and source.ended_early is None
    assert [f.number for f in read] == list(range(10))
    assert [float(f.time) for f in read] == pytest.approx([n / 25 for n in range(10)], abs=1e-3)
    for frame, image in zip(read, frames, strict=True):
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - image).mean() <= worst


@pytest.mark.parametrize("pix_fmt", ["gray16le", "gray", "gbrp16le", "gray10le", "gray12le"])
def test_depths(tmp_path, pix_fmt):
    deep = texture(32, 48, 1).astype(np.uint16) * 257
    image = np.dstack([deep, deep // 2, deep // 3]) if pix_fmt.startswith("gb") else deep
    path = write_clip(tmp_path / "d.mkv", [image] * 2, codec="ffv1", pix_fmt=pix_fmt)
    source = open_source(path, "ir")
    got = next(source.frames()).image
    source.close()
    assert got.shape == image.shape
    if pix_fmt == "gray":
        assert got.dtype == np.uint8 and np.abs(got.astype(int) - image // 257).max() <= 1
        return
    assert got.dtype == np.uint16
    bits = {"gray16le": 16, "gbrp16le": 16, "gray10le": 10, "gray12le": 12}[pix_fmt]
    assert np.abs(got.astype(int) - image).max() <= (0 if bits == 16 else 65536 >> bits)


def test_ten_bit_color(tmp_path):
    image = np.full((32, 32, 3), (40000, 20000, 50000), np.uint16)
    image[:16] //= 3
    path = write_clip(tmp_path / "d.mkv", [image] * 3, codec="libx265", pix_fmt="yuv420p10le")
    source = open_source(path, "vis")
    got = next(source.frames()).image
    source.close()
    assert got.dtype == np.uint16 and np.abs(got.astype(int) - image)[4:12].mean() < 800


def test_rotation_is_applied(tmp_path):
    frames = pan(3, 2, channels=3)
    frames = [f[:32] for f in frames]
    turned = [np.ascontiguousarray(np.rot90(f)) for f in frames]
    path = write_clip(tmp_path / "r.mp4", turned, rotation=-90)
    source = open_source(path, "vis")
    assert source.size == (32, 64)
    got = next(source.frames()).image
    source.close()
    assert got.shape == (32, 64, 3)
    assert np.abs(got.astype(int) - frames[0]).mean() < 12


def test_color_matrix_follows_the_tags(tmp_path):
    red = np.full((32, 32, 3), (200, 30, 60), np.uint8)
    path = write_clip(tmp_path / "c.mp4", [red] * 2, tags=True)
    source = open_source(path, "vis")
    got = next(source.frames()).image
    source.close()
    assert source.color_tags.space == 1 and source.color_tags.range == 1
    assert np.abs(got.astype(int) - red).max() <= 3


def test_uneven_timestamps_are_kept(tmp_path):
    times = [0, 1, 2, 7, 8, 20]
    path = write_clip(tmp_path / "v.mp4", pan(6, 1, channels=3), times=times)
    source = open_source(path, "vis")
    assert [float(f.time) for f in source.frames()] == pytest.approx([t / 25 for t in times])
    source.close()


@pytest.mark.parametrize("start", [0.1, 0.4, 1.0])
def test_start_seeks_to_the_frame(tmp_path, start):
    frames = pan(40, 1, channels=3, step=2)
    path = write_clip(tmp_path / "v.mp4", frames)
    source = open_source(path, "vis")
    read = list(source.frames(Fraction(start).limit_denominator(1000)))
    source.close()
    first = math.ceil(start * 25)
    assert [f.number for f in read] == list(range(first, 40)) and not source.faults.count
    assert np.abs(read[0].image.astype(int) - frames[first]).mean() < 6


def test_helper_reads_what_it_wrote(tmp_path):
    frames, times, facts = read_clip(write_clip(tmp_path / "x.mp4", pan(3, 1), audio=True))
    assert len(frames) == 3 and times == [0, 0.04, 0.08] and facts["audio"] == ["aac"]


# Damage


def damaged(tmp_path, *, codec="libx264", suffix=".mkv", lost=(12,)):
    """Write a clip whose given packets are noise."""
    av = pytest.importorskip("av")
    good = write_clip(tmp_path / f"good{suffix}", pan(30, 1, channels=3), codec=codec)
    data = bytearray(good.read_bytes())
    with av.open(str(good)) as container:
        spans = {
            round(float(p.pts * p.time_base) * 25): (p.pos, p.size)
            for p in container.demux(video=0)
            if p.size
        }
    rng = np.random.default_rng(0)
    for n in lost:
        position, size = spans[n]
        noise = rng.integers(0, 256, size - 8, np.uint8).tobytes()
        data[position + 8 : position + size] = noise
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("mpeg4", ".avi")])
@pytest.mark.parametrize("policy", ["skip", "repeat", "stop"])
def test_corrupt_packet(tmp_path, codec, suffix, policy):
    path = damaged(tmp_path, codec=codec, suffix=suffix, lost=(16,))
    faults = Faults(policy)
    source = open_source(path, "vis", faults=faults)
    read = list(source.frames())
    source.close()
    numbers = [f.number for f in read]
    bad = [b.number for b in faults.frames]
    assert 16 in bad and faults.count == len(bad) <= 14
    assert all(b.stream == str(path) and b.reason for b in faults.frames)
    if policy == "stop":
        assert numbers == list(range(bad[0])) and faults.stopped == faults.frames[0]
    elif policy == "skip":
        assert numbers == [n for n in range(30) if n not in bad]
    else:
        assert numbers == list(range(30))
        np.testing.assert_array_equal(read[bad[0]].image, read[bad[0] - 1].image)
    assert [f.time for f in read] == sorted({f.time for f in read})


def test_early_end_is_noticed(tmp_path):
    whole = write_clip(
        tmp_path / "w.mkv", pan(90, 1, channels=3), codec="mjpeg", pix_fmt="yuvj420p"
    )
    data = whole.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) // 2])
    source = open_source(path, "vis")
    read = list(source.frames())
    source.close()
    assert 30 < len(read) < 60
    assert source.ended_early is not None


def test_audio_only_and_no_frames(tmp_path):
    av = pytest.importorskip("av")
    clip = write_clip(tmp_path / "clip.mp4", pan(12, 1), audio=True)
    with (
        av.open(str(clip)) as whole,
        av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container,
    ):
        sound = container.add_stream_from_template(whole.streams.audio[0])
        for packet in whole.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                container.mux(packet)
    with pytest.raises(VideoError, match=r"has no video stream \(audio\)"):
        VideoSource(str(tmp_path / "a.m4a"), "vis")
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="no frame that can be decoded|cannot be opened as video"):
        VideoSource(str(tmp_path / "none.mkv"), "vis")
