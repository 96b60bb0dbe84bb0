"""Small pictures in motion, and video files of them, for the video tests."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from analytic import tanh_prior

from ddfm_fast.api import Fuser

BT709 = 1


def texture(height: int, width: int, seed: int, channels: int = 1) -> np.ndarray:
    """Draw smooth noise over the whole range: uint8 [H, W] or [H, W, 3]."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((height, width, channels)).astype(np.float32), (0, 0), 3)
    noise = (noise - noise.min()) / np.ptp(noise)
    return np.rint(noise.reshape(height, width, channels).squeeze() * 255).astype(np.uint8)


def pan(frames: int, seed: int, *, size: int = 64, step: int = 1, channels: int = 1) -> list:
    """Move a window over a texture by ``step`` pixels per frame."""
    whole = texture(size, size + step * frames, seed, channels)
    return [np.ascontiguousarray(whole[:, n * step : n * step + size]) for n in range(frames)]


def write_clip(
    path: Path,
    frames: list,
    *,
    rate: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list | None = None,
    tags: bool = False,
    audio: bool = False,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Path:
    """Write a video of uint8 or uint16, gray or RGB; ``times`` count frames, by default from 0."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        options = {"crf": "8", "preset": "veryfast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.gop_size = 8
        if aspect:
            context.sample_aspect_ratio = aspect
        if tags:
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = 1
        if rotation:
            if not hasattr(type(stream), "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000, layout="mono") if audio else None
        for n, image in enumerate(frames):
            kind = ("gray", "rgb24", "gray16le", "rgb48le")
            frame = av.VideoFrame.from_ndarray(
                image, kind[(image.ndim == 3) + 2 * (image.dtype == np.uint16)]
            )
            color = {"dst_colorspace": BT709, "dst_color_range": 1} if tags else {}
            frame = frame.reformat(format=pix_fmt, **color)
            frame.pts = n if times is None else times[n]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _write_tone(av, container, sound, len(frames) / rate)
    return path


def _write_tone(av, container, sound, seconds: float) -> None:
    samples = np.sin(np.arange(int(8000 * seconds)) / 3) * 9000
    frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=8000, frame_size=1024)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(sound.encode(part))
    container.mux(sound.encode())


def read_clip(path: Path) -> tuple[list[np.ndarray], list[float], object]:
    """Read (RGB frames, their times in seconds, facts) of a video file."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        facts = {
            "codec": context.codec.name,
            "rate": stream.average_rate,
            "tags": (context.colorspace, context.color_primaries, context.color_trc),
            "range": context.color_range,
            "aspect": stream.sample_aspect_ratio,
            "audio": [s.codec_context.name for s in container.streams.audio],
        }
        decoded = list(container.decode(stream))
        facts["format"] = decoded[0].format.name if decoded else None
        deep = decoded and max(c.bits for c in decoded[0].format.components) > 8
        frames = [f.to_ndarray(format="rgb48le" if deep else "rgb24") for f in decoded]
        return frames, [float(f.time) for f in decoded], facts


def quick_fuser(**settings) -> Fuser:
    """Make a fuser whose prior costs nothing."""
    return Fuser(prior=tanh_prior, device="cpu", **settings)


def endless(channels: int, seed: int = 1):
    frames = pan(30, seed, channels=channels)
    return itertools.chain.from_iterable(itertools.repeat(frames + frames[::-1]))
