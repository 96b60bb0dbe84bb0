"""Frames of a video file or URL, by PyAV: upright, with exact times, skipping damaged packets."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from time import monotonic
from typing import Any

import numpy as np

from ..files.paths import look
from ..images.doubts import warn
from .cameras import camera, open_camera
from .converting import Converter, deinterlaced, field_order
from .frames import (
    DEFAULT_RATE,
    BadFrame,
    ColorTags,
    Faults,
    Frame,
    Intake,
    Source,
    VideoError,
)
from .opening import STDIN, Pipe, address, is_pipe, local

TIMEOUT = 15.0
"""seconds without data after which a network stream counts as ended"""

_HIDDEN_FRAMES = ("vp8",)
"""codecs whose packets may show no frame, so that a packet without one is not a fault"""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
"""seconds between two attempts to reopen a stream, at first and at most"""
_RATES = (Fraction(1, 3600), Fraction(100_000))
"""plausible frames per second, from one per hour to the fastest cameras"""
_JUMP = 10
"""seconds; timestamps that go back, or jump by more than this, have restarted, and are joined"""


def load_av() -> Any:
    """Return PyAV; ImportError with the command that installs it if it is missing."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'reading and writing video needs PyAV; install it: pip install "ddfm_fast[video]"'
        ) from error
    av.logging.set_level(None)  # FFmpeg's own messages would run into the progress bar
    return av


_AS_USUAL = Intake()


class VideoSource(Source):
    """The first video stream of a file, pipe or URL, upright, on request with its audio."""

    # state of the decoder, filled by _decode as packets pass
    _origin = Fraction(0)
    """seconds of the stream's clock at its first frame"""
    _clock_started = False
    _first: Any = None
    """the frame that was decoded in advance, until it is taken"""
    _reading = False
    _pipe: Pipe | None = None
    _container: Any = None
    _seen = 0.0
    """when the last frame arrived, in seconds of a steady clock"""
    _resumed = False
    """whether the stream was reopened and its clock has not started yet"""

    def __init__(
        self,
        url: str | os.PathLike[str],
        name: str,
        faults: Faults | None = None,
        *,
        audio: bool = False,
        intake: Intake = _AS_USUAL,
    ):
        super().__init__(faults)
        self._av, self.name = load_av(), str(url)
        self._who, self._intake = f"{name} is {url}", intake
        self._url, self._role, self._with_audio = url, name, audio
        self._closed = Event()
        self._audio: list = []
        self._awaited: dict[int, str] = {}
        try:
            remote = self._open(url, name)
            self.live = remote and self._container.duration is None
            self._open_streams()
        except BaseException as error:
            self.close()
            if self._pipe is not None and self._pipe.error is not None:
                raise self._pipe.error from error
            raise

    def _open(self, url: str | os.PathLike[str], name: str) -> bool:
        """Open the file or address; return whether it is on a network."""
        if (device := camera(url)) is not None:
            self._container = open_camera(self._av, device, name)
            return True
        path, text = local(url), str(url)
        if text == STDIN and sys.stdin is not None and sys.stdin.isatty():
            raise VideoError(
                f"{name} is -, and standard input is a terminal; pipe a stream in "
                "(ffmpeg … -f nut - | ddfm-fast video - …), or name a file"
            )
        remote = path is None and "://" in text and not text.startswith("file:")
        options = {"rtsp_transport": "tcp"} if remote and text.startswith("rtsp") else {}
        wait = TIMEOUT if remote else None
        try:
            if path is not None and is_pipe(path):
                self._pipe = Pipe(path, name)
            is_file = path is not None or text == STDIN
            source = self._pipe or (address(path or text) if is_file else text)
            self._container = self._av.open(source, timeout=wait, options=options)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{name} is {url}: {_why(error, url)}") from error
        return remote

    def _choose_streams(self) -> Any:
        """Choose the first video stream, and the audio if wanted; return the codec context."""
        streams, name = self._container.streams, self._role
        if not streams.video:
            kinds = ", ".join(s.type for s in streams) or "nothing"
            raise VideoError(
                f"{name} is {self.name}: has no video stream ({kinds}); give a file that has one"
            )
        self._stream = stream = streams.video[0]
        # one packet at a time, so that an error belongs to that packet
        stream.thread_type = "SLICE"
        context = stream.codec_context
        if context is None or not context.width or context.format is None:
            raise VideoError(
                f"{name} is {self.name}: the video stream cannot be decoded "
                "(damaged, or a codec that this FFmpeg lacks)"
            )
        self.audio = streams.audio[0] if self._with_audio and streams.audio else None
        return context

    def _open_streams(self) -> None:
        context, stream = self._choose_streams(), self._stream
        self.rate = plausible_rate(stream)
        self.length = stream.frames or self._length_by_duration()
        tags = ColorTags(
            context.colorspace, context.color_range, context.color_primaries, context.color_trc
        )
        self._picture = Converter(self._who, self._intake, tags)
        self.color_tags = self._picture.tags
        self._peek(context.height, context.width)

    def _peek(self, height: int, width: int) -> None:
        """Decode up to the first frame, for its upright size and the start of time."""
        self._decoded = self._decoded_frames()
        first = next(self._decoded, None)
        if first is None:
            reason = next(iter(self._awaited.values()), self.ended_early or "it holds none")
            raise VideoError(f"{self.name}: has no frame that can be decoded ({reason})")
        self._first, self.arrived = first, monotonic()
        aspect = self._stream.sample_aspect_ratio
        self.pixel_aspect = Fraction(aspect) if aspect and aspect != 1 else None
        self.size = (height, width)
        if first.rotation % 180:
            self.size = (width, height)
            self.pixel_aspect = self.pixel_aspect and 1 / self.pixel_aspect

    def _length_by_duration(self) -> int | None:
        stream = self._stream
        if stream.duration:
            seconds = stream.duration * stream.time_base
        elif self._container.duration:
            seconds = Fraction(self._container.duration, 1_000_000)
        else:
            return None
        return max(1, round(seconds * self.rate))

    @property
    def time_base(self) -> Fraction:
        """Seconds that all timestamps are multiples of."""
        return Fraction(self._stream.time_base)

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        """Yield the frames from ``start`` seconds on, once."""
        if start > 0 and not self.live and self._pipe is None:
            self._seek(start)
        image: np.ndarray | None = None
        last: Fraction | None = None
        for frame in self._all_decoded():
            self._start_clock(frame.pts)
            time = self._seconds(frame.pts, last)
            for bad, again in self._lost_before(frame.pts, start):
                if self.faults.stopped:
                    return
                fits = (last is None or again > last) and start <= again < time
                if self._repeats(image) and fits:
                    yield Frame(image, again, bad.number, self._take_audio())
                    last = again
            image, last = self._picture(frame), time
            if time >= start:
                yield Frame(image, time, round(time * self.rate), self._take_audio())
        for bad, again in self._lost_before(None, start):
            if self.faults.stopped:
                return
            if self._repeats(image) and last is not None and again > last:
                yield Frame(image, again, bad.number, self._take_audio())
                last = again
        self._note_early_end(last)

    def _repeats(self, image: np.ndarray | None) -> bool:
        return self.faults.on_error == "repeat" and image is not None

    def _note_early_end(self, last: Fraction | None) -> None:
        """Note if a file is more than a second shorter than its header promises."""
        if self.ended_early is None and self.length and last is not None and not self.live:
            here = round(last * self.rate) + 1
            if self.length - here > self.rate:
                self.ended_early = f"ends after frame {here} of {self.length}"

    def _start_clock(self, pts: int | None) -> None:
        """Start time at the first frame, or at a damaged one before it."""
        if self._clock_started:
            return
        times = [p for p in self._awaited if not self.live and pts is not None and p < pts]
        self._origin = min([*times, pts or 0]) * self.time_base
        self._clock_started = True

    def _seconds(self, pts: int | None, last: Fraction | None) -> Fraction:
        """Return a frame's time since the first; continue missing or restarted timestamps."""
        following = Fraction(0) if last is None else last + 1 / self.rate
        now, before = monotonic(), self._seen
        self._seen = now
        if self._resumed and last is not None:
            self._resumed = False
            self._awaited.clear()
            away = Fraction(now - before).limit_denominator(1000)
            following = max(following, last + away)
            self._origin = (pts or 0) * self.time_base - following
            return following
        if pts is None:
            return following
        time = pts * self.time_base - self._origin
        if last is not None and (time <= last or (self.live and time > last + _JUMP)):
            self._origin += time - following
            return following
        return time

    def _all_decoded(self) -> Iterator:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._decoded

    def _seek(self, start: Fraction) -> None:
        self._start_clock(self._first.pts)
        self._first = None
        target = int((self._origin + start) / self.time_base)
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except self._av.error.FFmpegError as error:
            raise VideoError(f"{self.name}: cannot be searched for {float(start):g} s") from error
        self._decoded = self._decoded_frames()

    def _decoded_frames(self) -> Iterator:
        """Yield decoded frames, deinterlaced."""
        decoded, stream = self._decode(), self._stream
        if self._intake.deinterlace == "off":
            return decoded
        order = field_order(stream.codec_context)
        how = self._intake.deinterlace
        return deinterlaced(decoded, self._av, self._who, order, stream.time_base, how)

    def _decode(self) -> Iterator:
        """Yield decoded frames; set aside audio packets and timestamps still without a frame."""
        self._audio = []
        self._awaited = {}
        tracked = self._stream.codec_context.name not in _HIDDEN_FRAMES
        for packet in self._packets():
            if packet.stream is self.audio:
                if packet.dts is not None:
                    self._audio.append(packet)
                continue
            if tracked and packet.size and packet.pts is not None and not packet.is_discard:
                self._awaited[packet.pts] = "no frame came out of its data"
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError as error:
                if packet.pts is not None:
                    self._awaited[packet.pts] = f"cannot be decoded ({error.strerror})"
                continue
            for frame in frames:
                if frame.is_corrupt and frame.pts is not None:
                    self._awaited[frame.pts] = "the decoder marks it as corrupt"
                    continue
                self._awaited.pop(frame.pts, None)
                yield frame

    def _packets(self) -> Iterator:
        """Yield packets up to the end; a live stream that breaks off is reopened."""
        while True:
            yield from self._packets_once()
            if not (self.live and self._intake.reconnect and self._reopened()):
                return

    def _reopened(self) -> bool:
        """Reopen the stream, at growing intervals; return False if it is not back in time."""
        why, seconds = self.ended_early or "it ended", self._intake.reconnect
        warn(f"{self._who}: it broke off ({why}); trying again for {seconds:g} s")
        until, pause = monotonic() + seconds, _FIRST_PAUSE
        while not self._closed.wait(min(pause, max(0.0, until - monotonic()))):
            try:
                self._container.close()
                self._open(self._url, self._role)
                self._choose_streams()
            except VideoError:
                if monotonic() >= until:
                    break
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self.ended_early, self._resumed = None, True
            self._awaited.clear()
            return True
        self.ended_early = f"broke off ({why}) and was not back within {seconds:g} s"
        return False

    def _packets_once(self) -> Iterator:
        """Yield packets up to the end, or until the data breaks off."""
        wanted = [s for s in (self._stream, self.audio) if s is not None]
        packets = self._container.demux(*wanted)
        while True:
            self._reading = True
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError as error:  # cut off, or the network is gone
                self.ended_early = str(error)
                return
            finally:
                self._reading = False
            if self._pipe is not None and self._pipe.error is not None:
                raise self._pipe.error
            if packet is None:
                return
            yield packet

    def _lost_before(self, pts: int | None, start: Fraction) -> Iterator[tuple[BadFrame, Fraction]]:
        """Count and yield, with their time, the frames that should have come before ``pts``.

        A decoder returns its frames in order, so a frame that is missing by then will not come.
        Frames missing before the first one of a live stream, or before ``start``, do not count.
        """
        for lost in sorted(p for p in self._awaited if pts is None or p < pts):
            reason = self._awaited.pop(lost)
            time = lost * self.time_base - self._origin
            if time >= max(start, Fraction(0)):
                bad = BadFrame(self.name, round(time * self.rate), reason)
                self.faults.add(bad)
                yield bad, time

    def _take_audio(self) -> tuple:
        """Return (packet, seconds since the first frame) of the audio read so far."""
        taken, self._audio = self._audio, []
        return tuple((p, p.dts * Fraction(p.time_base) - self._origin) for p in taken)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._closed.set()
        # a thread may still wait for the network, which has a timeout, or for a pipe
        if self._container is not None and not self._reading:
            self._container.close()
        if self._pipe is not None:
            self._pipe.close(reading=self._reading)


def plausible_rate(stream: Any) -> Fraction:
    """Return frames per second: the first of the stream's two guesses that is plausible.

    FFmpeg averages over the timestamps that it could read, so a damaged header gives years per
    frame, with which encoders crash.
    """
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and _RATES[0] <= rate <= _RATES[1]:
            return Fraction(rate)
    return DEFAULT_RATE


def _why(error: Exception, url: str | os.PathLike[str]) -> str:
    found = None if (path := local(url)) is None else look(path)
    if found is None and "://" not in str(url):  # of concat: and the like, too
        return "no such file or folder; check the name"
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_size == 0:
        return "the file is empty; copy or record it again"
    reason = getattr(error, "strerror", None) or str(error)
    if found is not None and stat.S_ISFIFO(found.st_mode):
        return (
            f"no video came through the pipe ({reason}); see the messages of the program before it"
        )
    return f"cannot be opened as video ({reason}); check that it plays"
