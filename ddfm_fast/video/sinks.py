"""Write the fused frames to a video file that survives interruption, or to a folder of PNGs."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..files.paths import ensure_writable_dir, is_folder
from ..files.writing import write_image
from ..images.integers import as_count
from .decoding import load_av
from .frames import Source, VideoError
from .outputs import ISO, Lock, Output
from .streams import STDOUT, ReaderGone, StreamOutput, is_stream

CODECS = ("h264", "hevc", "ffv1", "png")
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".ts")
CRF = {"h264": 18, "hevc": 20}

_ENCODERS = {"h264": "libx264", "hevc": "libx265", "ffv1": "ffv1"}
_TS_CODECS = ("h264", "hevc", "aac", "mp3", "mp2", "ac3", "eac3", "opus")
_UNTAGGED = (0, 2)
_RGB_SPACE = 0


def open_sink(
    out: str | os.PathLike[str],
    like: Source,
    *,
    codec: str | None = None,
    crf: int | None = None,
) -> Sink:
    """Open the sink that ``out`` means.

    Args:
        out: A file ending in one of ``SUFFIXES``, else a folder for PNG; or, as text, "-" for
            standard output (Matroska) or an address: rtsp://…, udp://…, tcp://…, srt://….
        like: The source whose rate, timestamps, color tags and audio the output takes.
        codec: "h264" (the default for files), "hevc", "ffv1" or "png". ffv1 and png keep uint16
            frames whole, hevc keeps 10 bits of them and h264 8.
        crf: Quality of h264 and hevc, 0 to 51, smaller is better (default 18 and 20).

    Raises:
        ValueError: The arguments do not fit together (VideoError), or the folder cannot be
            written to (ImageFileError).
        ImportError: PyAV is needed and missing.
    """
    sent = is_stream(out)
    suffix = "" if sent else Path(out).suffix.lower()
    if codec is None:
        codec = "png" if is_for_pictures(out) else "h264"
    if codec not in CODECS:
        raise VideoError(f"codec is {codec!r}; expected one of {', '.join(CODECS)}")
    if crf is not None and (codec not in CRF or as_count(crf, 0, 51) is None):
        raise VideoError(f"crf is {crf!r} with codec {codec}; expected 0 to 51 with h264 or hevc")
    quality = CRF.get(codec) if crf is None else int(crf)
    if sent:
        if codec == "png":
            raise VideoError(f"out is {out} with codec png; expected h264, hevc or ffv1")
        return StreamSink(str(out), like, codec, quality)
    out = Path(out)
    if codec == "png":
        if suffix and not is_folder(out):
            raise VideoError(
                f"out is {out}; expected a file ending in {', '.join(SUFFIXES)}, or a folder "
                "(a name without suffix) for PNG files"
            )
        return PictureSink(out)
    if suffix not in SUFFIXES or is_folder(out):
        raise VideoError(
            f"out is {out} with codec {codec}; expected a file ending in {', '.join(SUFFIXES)}"
        )
    return VideoSink(out, like, codec, quality)


def is_for_pictures(out: str | os.PathLike[str]) -> bool:
    """Return whether an output without a codec means a folder of PNG files."""
    return not is_stream(out) and Path(out).suffix.lower() not in SUFFIXES


class Sink:
    """Takes fused frames in order. ``path``: where the result is, or will be after ``finish``."""

    path: Path | str
    frames = 0
    lost: str | None = None
    """after ``abandon``: why nothing is left of frames that were written"""

    def write(self, image: np.ndarray, time: Fraction, number: int, packets: tuple = ()) -> None:
        """Add a frame.

        Args:
            image: [H, W], [H, W, 1] or [H, W, 3], uint8 or uint16.
            time: Seconds at which it appears, larger than the previous frame's.
            number: The visible frame's number.
            packets: The visible frame's audio packets.

        Raises:
            VideoError: It cannot be written.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Complete the output under its name; VideoError if that fails."""

    def abandon(self) -> Path | str | None:
        """Stop after an error; return the playable part of the output, if any. Never raises."""
        return self.path if self.frames else None


class PictureSink(Sink):
    """A folder of PNG files named after the number of the visible frame; each is whole.

    One run at a time writes to a folder.
    """

    path: Path

    def __init__(self, folder: Path):
        self.path = ensure_writable_dir(folder)
        self._lock = Lock(folder, folder=True)

    def write(self, image: np.ndarray, time: Fraction, number: int, packets: tuple = ()) -> None:
        """Add a frame; PNG files have neither time nor audio."""
        del time, packets
        picture = self.path / f"{number:06d}.png"
        if not (self._lock.holds and os.path.isdir(self.path)):
            raise VideoError(f"{self.path}: is gone after frame {self.frames}; start again")
        if os.path.islink(picture):
            raise VideoError(f"{picture}: is a link to another file; choose another folder")
        try:
            write_image(picture, image)
        except OSError as error:
            raise VideoError(f"{picture}: cannot be written ({_reason(error)})") from error
        self.frames += 1

    def finish(self) -> None:
        """Let the next run write to the folder."""
        self._lock.let_go()

    def abandon(self) -> Path | None:
        """Let the next run write to the folder; return it if there are frames in it."""
        ours = self._lock.holds and os.path.isdir(self.path)
        self._lock.let_go()
        return self.path if self.frames and ours else None


class VideoSink(Sink):
    """A video file, called NAME.part-PROCESS-RANDOM.SUFFIX until it is complete.

    The part is playable at any moment, except for the last ten frames or so that the encoder still
    holds: MP4 and MOV are written in fragments, which become an ordinary file at the end; Matroska
    and TS need no end. If writing fails, the part is cut after its last whole frame. Time starts at
    the first frame; one row or column is repeated if 4:2:0 needs an even size.
    """

    path: Path | str
    _live = False
    """whether speed of delivery matters more than size"""

    def __init__(self, path: Path | str, like: Source, codec: str, crf: int | None):
        av = load_av()
        self._av, self.path, self._codec = av, path, codec
        self._output = self._opened()
        self._start = Fraction(0)
        self._color_tags, self._pixel_aspect = like.color_tags, like.pixel_aspect
        self._time_base = like.time_base
        self._rate = like.rate
        out, options = self._output, dict(self._output.options, flush_packets="1")
        try:
            self._container = av.open(out.target, "w", format=out.format, options=options)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._output.leave(empty=True)
            raise VideoError(f"{path}: cannot be written ({_reason(error)})") from error
        try:
            self._check_codecs(codec, like.audio)
            self._options = _encoder_options(codec, crf, live=self._live)
            self._audio_stream = like.audio
        except BaseException:
            self._container.close()
            self._output.leave(empty=True)
            raise
        self._stream: Any = None
        self._audio: Any = None
        self._broken = self._ended = False

    def _opened(self) -> Output | StreamOutput:
        path = Path(self.path)
        ensure_writable_dir(path.parent)
        return Output(path)

    def _check_codecs(self, codec: str, audio: Any) -> None:
        suffix, supported = self._output.suffix, self._container.supported_codecs
        if suffix == ".ts":  # FFmpeg has no list of its codecs: it wraps whatever it is given
            supported = _TS_CODECS
        if codec not in supported:
            raise VideoError(f"out is {self.path}: {suffix} does not hold {codec}; write .mkv")
        if audio is not None and audio.codec_context.name not in supported:
            name = audio.codec_context.name
            raise VideoError(
                f"out is {self.path}: {suffix} does not hold the visible stream's audio ({name}); "
                "write .mkv, or leave the audio out (command line: --no-audio)"
            )

    def _open_streams(self, height: int, width: int) -> None:
        stream = self._container.add_stream(
            _ENCODERS[self._codec], rate=self._rate, options=self._options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, self._format
        context = stream.codec_context
        context.time_base = stream.time_base = self._time_base
        context.gop_size = max(1, round(self._rate))
        if self._codec == "hevc" and self._output.suffix in ISO:
            context.codec_tag = "hvc1"  # Apple's players require it
        if self._pixel_aspect:
            context.sample_aspect_ratio = self._pixel_aspect
        if self._color_tags and self._format.startswith("yuv"):
            context.color_range = self._color_tags.range
            if self._color_tags.space != _RGB_SPACE:
                context.colorspace = self._color_tags.space
            context.color_primaries = self._color_tags.primaries
            context.color_trc = self._color_tags.transfer
        self._stream = stream
        if self._audio_stream is not None:
            self._audio = self._container.add_stream_from_template(self._audio_stream)

    def write(self, image: np.ndarray, time: Fraction, number: int, packets: tuple = ()) -> None:
        """Add a frame; videos count their own."""
        del number
        image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if self._codec in CRF:
            image = _even(image)
        try:
            if self._stream is None:
                self._start = time
                self._format = _pixel_format(self._codec, image.dtype == np.uint16, image.ndim == 2)
                self._open_streams(*image.shape[:2])
            frame = self._frame(image)
            frame.pts = round((time - self._start) / self._time_base)
            frame.time_base = self._time_base
            self._mux(self._stream.encode(frame))
            for packet, seconds in packets:
                self._mux_audio(packet, seconds)
        except (self._av.error.FFmpegError, OSError) as error:
            self._broken = True
            raise self._failed(error) from error
        self.frames += 1

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._container.mux(packet)
            self._output.mark()

    def _frame(self, image: np.ndarray) -> Any:
        kind = ("gray", "gray16le") if image.ndim == 2 else ("rgb24", "rgb48le")
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image), kind[image.dtype == np.uint16]
        )
        to: dict[str, Any] = {"format": self._format}
        if self._format.startswith("yuv") and self._color_tags:
            if self._color_tags.space not in (*_UNTAGGED, _RGB_SPACE):
                to["dst_colorspace"] = self._color_tags.space
            if self._color_tags.range:
                to["dst_color_range"] = self._color_tags.range
        return frame.reformat(**to)

    def _mux_audio(self, packet: Any, seconds: Fraction) -> None:
        if self._audio is None or seconds < self._start:
            return
        dts = round((seconds - self._start) / packet.time_base)
        if packet.pts is not None:
            packet.pts += dts - packet.dts
        packet.dts = dts
        packet.stream = self._audio
        self._mux([packet])

    def finish(self) -> None:
        """Write the end, and give the file its name if it has frames.

        Raises:
            VideoError: It cannot be completed.
        """
        if self.frames == 0:  # interrupted before the first frame: an older output stays
            self.abandon()
            return
        try:
            self._mux(self._stream.encode())
            self._container.close()
            self._ended = True
        except (self._av.error.FFmpegError, OSError) as error:
            self._broken = True
            raise self._failed(error) from error
        try:
            self._output.complete()
        except OSError as error:
            left = self._output.leave(empty=False)
            where = f"it is all in {left}" if left else "and its part is gone"
            raise VideoError(
                f"{self.path}: cannot be given its name ({_reason(error)}); {where}"
            ) from error

    def abandon(self) -> Path | None:
        """Stop after an error; return the playable part of the output, if any. Never raises."""
        if self._ended:
            return self._output.leave(empty=False)
        try:
            # if the header could not be written, FFmpeg crashes on the next packet
            if self._stream is not None and not self._broken:
                self._mux(self._stream.encode())
            self._container.close()
        except (self._av.error.FFmpegError, OSError, ValueError):
            self._broken = True
        if self._broken:  # some were still in the encoder, or in what was not written whole
            self._output.take_back()
            given, self.frames = self.frames, self._playable()
            if given and not self.frames:
                self.lost = f"None of the {given} frames up to there plays: the part is removed"
        return self._output.leave(empty=self.frames == 0)

    def _playable(self) -> int:
        """Count the frames of the part, which ends with a whole one."""
        errors = (self._av.error.FFmpegError, OSError, ValueError, IndexError)
        with contextlib.suppress(*errors), self._av.open(self._output.target) as part:
            stream = part.streams.video[0]
            if stream.codec_context is not None and stream.codec_context.width:
                return sum(packet.size > 0 for packet in part.demux(stream))
        return 0

    def _failed(self, error: Exception) -> VideoError:
        return VideoError(
            f"{self.path}: cannot be written after frame {self.frames} ({_reason(error)}); "
            "make room, or choose a folder that you may write to"
        )


class StreamSink(VideoSink):
    """Standard output, or an address that FFmpeg sends to: each frame as soon as it is encoded."""

    def __init__(self, out: str, like: Source, codec: str, crf: int | None):
        self._live = out != STDOUT
        super().__init__(out, like, codec, crf)

    def _opened(self) -> StreamOutput:
        return StreamOutput(str(self.path))

    def _failed(self, error: Exception) -> VideoError:
        return VideoError(
            f"{self.path}: cannot be sent to after frame {self.frames} ({_reason(error)}); check "
            "the address, and that its receiver listens"
        )

    def finish(self) -> None:
        """Send the end; VideoError if that fails."""
        with contextlib.suppress(ReaderGone):
            super().finish()
            return
        self.abandon()

    def abandon(self) -> Path | None:
        """Close it; nothing is left of a stream. Never raises."""
        errors = (self._av.error.FFmpegError, OSError, ValueError)
        with contextlib.suppress(*errors):
            self._container.close()
        return self._output.leave(empty=True)


def _pixel_format(codec: str, deep: bool, gray: bool) -> str:
    if codec == "h264":
        return "yuv420p"
    if codec == "hevc":
        return "yuv420p10le" if deep else "yuv420p"
    if gray:
        return "gray16le" if deep else "gray"
    return "gbrp16le" if deep else "bgr0"


def _encoder_options(codec: str, crf: int | None, *, live: bool) -> dict[str, str]:
    if codec == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    # if the process is killed, frames that the encoder still holds are lost
    options = {"preset": "veryfast", "crf": str(crf)}
    if live:
        options["tune"] = "zerolatency"
        return options if codec == "h264" else {**options, "x265-params": "log-level=error"}
    if codec == "hevc":
        few = "rc-lookahead=5:bframes=2:frame-threads=1"
        return {**options, "x265-params": f"log-level=error:{few}"}
    return {**options, "rc-lookahead": "5", "bf": "2", **_same_bytes()}


def _same_bytes() -> dict[str, str]:
    """Keep libx264 from using AVX-512, with which its mbtree reads uninitialized memory.

    With B-frames and a width that is not a multiple of 128, the same frames get different bytes
    from run to run; with AVX2 they get those of SSE, for 7 % more of the encoder's time. Without
    AVX-512 the option must not be set: x264 would then assume that the processor has AVX2.
    """
    import cv2

    avx2, avx512 = 11, 13  # CV_CPU_AVX2 and CV_CPU_AVX_512F, for which Python has no names
    if cv2.checkHardwareSupport(avx512) and cv2.checkHardwareSupport(avx2):
        return {"x264-params": "asm=avx2,fma3,bmi2"}
    return {}


def _even(image: np.ndarray) -> np.ndarray:
    odd = [(0, n % 2) for n in image.shape[:2]]
    if not any(n for _, n in odd):
        return image
    return np.pad(image, [*odd, (0, 0)][: image.ndim], mode="edge")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
