"""Frames of a stream, whatever it comes from, and two streams side by side in time.

A source is iterable once and yields :class:`Frame`: pictures upright, in time order, each with the
seconds since the first frame of its stream. Time is exact (``Fraction``), so that timestamps
survive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from ..images.files import SUFFIXES, ImageFileError, read_image

DEFAULT_RATE = Fraction(25)
"""frames a second of what has no rate of its own: folders of pictures and arrays"""
ON_ERROR = ("skip", "repeat", "stop")
TIMEOUT = 15.0
"""seconds without data after which a network stream counts as ended"""

_NUMBER = re.compile(r"(\d+)\D*$")
_HIDDEN_FRAMES = ("vp8",)
"""codecs with packets that show no frame, so that a packet without one is no fault"""
_JUMP = 10
"""seconds; timestamps that go back, or on by more, have started anew and are joined up"""


class VideoError(ValueError):
    """A stream that cannot be read, aligned or written; the message names it and the fix."""


class Frame(NamedTuple):
    """One picture of a stream."""

    image: Any
    """[H, W] grey or [H, W, 3] RGB, uint8 or uint16 (0..65535); what it was for arrays"""
    time: Fraction
    """seconds since the first frame of the stream"""
    number: int
    """counted from 0 at the first frame of the stream; from the timestamps after a seek"""
    packets: tuple = ()
    """encoded audio that comes before this picture, and its times, for the output to keep"""


class BadFrame(NamedTuple):
    """A frame that could not be read."""

    stream: str
    number: int
    reason: str


class Colour(NamedTuple):
    """The colour tags of a stream, FFmpeg's numbers; 2 or 0 where there are none."""

    space: int
    range: int
    primaries: int
    transfer: int


@dataclass
class Faults:
    """What was wrong with the frames of a stream, and what to do about it.

    on_error: "skip" leaves a bad frame out (the one before stands longer), "repeat" shows the last
    good picture in its place, "stop" ends the stream there.
    """

    on_error: str = "skip"
    frames: list[BadFrame] = field(default_factory=list)
    """the first 1000"""
    count: int = 0
    stopped: BadFrame | None = None

    def __post_init__(self):
        if self.on_error not in ON_ERROR:
            raise ValueError(
                f"on_error is {self.on_error!r}; expected one of {', '.join(ON_ERROR)}"
            )

    def add(self, bad: BadFrame) -> None:
        self.count += 1
        if len(self.frames) < 1000:
            self.frames.append(bad)
        if self.on_error == "stop":
            self.stopped = bad


class Source:
    """One stream of frames. Subclasses say where they come from."""

    name: str
    """for errors"""
    rate: Fraction = DEFAULT_RATE
    """frames a second, nominal"""
    size: tuple[int, int] | None = None
    """(height, width), upright; None where only the first frame will tell"""
    length: int | None = None
    """number of frames, None if unknown"""
    live = False
    """comes at its own pace and has no end known beforehand"""
    arrived = 0.0
    """of a live stream: when its first frame came, seconds of a steady clock"""
    colour: Colour | None = None
    pixel_aspect: Fraction | None = None
    """width of a pixel by its height, where it is not square"""
    audio: Any = None
    """a PyAV stream to copy, or None"""
    ended_early: str | None = None
    """what cut the stream short"""

    def __init__(self, faults: Faults | None = None):
        self.faults = faults or Faults()

    @property
    def time_base(self) -> Fraction:
        """Seconds that all timestamps are multiples of."""
        return 1 / self.rate

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        """The frames from ``start`` seconds on, once."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files. Safe to call twice."""


def open_source(
    spec: Any,
    name: str,
    *,
    rate: float | Fraction | None = None,
    faults: Faults | None = None,
    audio: bool = False,
) -> Source:
    """The source that ``spec`` means.

    spec: a video file or URL that FFmpeg reads (extra ``video``), a folder of pictures, a list of
        picture files, any iterable of images (see `images.planes.to_planes`), or a Source.
    name: "ir" or "vis", for errors.
    rate: frames a second of pictures and arrays (default 25); videos bring their own.

    Raises VideoError (a ValueError) for what cannot be read, TypeError for what is none of these,
    ImportError where PyAV is needed and absent.
    """
    if rate is not None and not 0 < rate <= 10_000:
        raise ValueError(f"rate is {rate}; expected frames a second above 0")
    rate = DEFAULT_RATE if rate is None else Fraction(rate).limit_denominator(100_000)
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, (str, os.PathLike)):
        if "://" not in str(spec) and Path(spec).is_dir():
            return PictureSource(pictures(Path(spec)), str(spec), rate, faults)
        return VideoSource(str(spec), name, faults, audio=audio)
    if isinstance(spec, (list, tuple)) and spec and isinstance(spec[0], (str, os.PathLike)):
        return PictureSource([Path(p) for p in spec], name, rate, faults)
    if isinstance(spec, Iterable):
        return ArraySource(spec, name, rate, faults)
    raise TypeError(
        f"{name} is a {type(spec).__name__}; expected a video file, URL or folder of pictures, "
        "or an iterable of images"
    )


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder in the order of the last number in their names."""
    try:
        found = [
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
    except OSError as error:
        raise VideoError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not found:
        raise VideoError(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda p: (-1 if (n := _number(p)) is None else n, p.name))


def _number(path: Path) -> int | None:
    found = _NUMBER.search(path.stem)
    return int(found.group(1)) if found else None


class ArraySource(Source):
    """Images of any iterable, evenly in time."""

    def __init__(self, items: Iterable, name: str, rate: Fraction, faults: Faults | None = None):
        super().__init__(faults)
        self.items, self.name, self.rate = items, name, rate
        self.length = len(items) if hasattr(items, "__len__") else None

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        for n, image in enumerate(self.items):
            if n / self.rate >= start:
                yield Frame(image, n / self.rate, n)


class PictureSource(Source):
    """Picture files, one a frame.

    Where every name ends in a number of its own, that number is the frame's: a file that is missing
    leaves a gap in time.
    """

    def __init__(self, paths: list[Path], name: str, rate: Fraction, faults: Faults | None = None):
        super().__init__(faults)
        self.name, self.rate, self.paths = name, rate, paths
        numbers = [_number(p) for p in paths]
        ascending = None not in numbers and all(
            a < b for a, b in zip(numbers, numbers[1:], strict=False)
        )
        self.numbers = [n - numbers[0] for n in numbers] if ascending else list(range(len(paths)))
        self.length = len(paths)
        self._probe()

    def _probe(self) -> None:
        from ..datasets.pairs import image_size

        for path in self.paths:
            self.size = image_size(path)
            if self.size is not None:
                return
        raise VideoError(f"{self.name}: none of its {len(self.paths)} pictures can be read")

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        last = None
        for number, path in zip(self.numbers, self.paths, strict=True):
            time = number / self.rate
            if time < start:
                continue
            try:
                last = read_image(path)
            except ImageFileError as error:
                self.faults.add(BadFrame(self.name, number, str(error)))
                if self.faults.stopped:
                    return
                if self.faults.on_error == "skip" or last is None:
                    continue
            yield Frame(last, time, number)


class VideoSource(Source):
    """A file or URL by PyAV: the first video stream, upright, with its audio if asked for."""

    def __init__(self, url: str, name: str, faults: Faults | None = None, *, audio: bool = False):
        super().__init__(faults)
        av = load_av()
        self._av, self.name = av, url
        remote = "://" in url and not url.startswith("file:")
        options = {"rtsp_transport": "tcp"} if url.startswith("rtsp") else {}
        try:
            self._container = av.open(url, timeout=TIMEOUT if remote else None, options=options)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{name} is {url}: {_why(error, url)}") from error
        try:
            self.live = remote and self._container.duration is None
            self._open_streams(av, name, audio)
        except BaseException:
            self._container.close()
            raise

    def _open_streams(self, av, name: str, audio: bool) -> None:
        streams = self._container.streams
        if not streams.video:
            kinds = ", ".join(s.type for s in streams) or "nothing"
            raise VideoError(
                f"{name} is {self.name}: has no video stream ({kinds}); give a file that has one"
            )
        self._stream = stream = streams.video[0]
        # one packet at a time, so that an error is known to be that packet's
        stream.thread_type = "SLICE"
        context = stream.codec_context
        if context is None or not context.width or context.format is None:
            raise VideoError(
                f"{name} is {self.name}: the video stream cannot be decoded "
                "(damaged, or a codec that this FFmpeg lacks)"
            )
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        self.length = stream.frames or self._length_by_duration()
        self.size = (context.height, context.width)
        self.colour = Colour(
            context.colorspace, context.color_range, context.color_primaries, context.color_trc
        )
        self.audio = streams.audio[0] if audio and streams.audio else None
        self._peek()

    def _peek(self) -> None:
        """Decode up to the first frame: its turned size, and where time starts."""
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            reason = next(iter(self._awaited.values()), self.ended_early or "it holds none")
            raise VideoError(f"{self.name}: has no frame that can be decoded ({reason})")
        self._first, self.arrived = first, monotonic()
        aspect = self._stream.sample_aspect_ratio
        self.pixel_aspect = Fraction(aspect) if aspect and aspect != 1 else None
        if first.rotation % 180:
            self.size = self.size[::-1]
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
        return Fraction(self._stream.time_base)

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        if start > 0 and not self.live:
            self._seek(start)
        image = last = None
        for frame in self._all_decoded():
            self._start_clock(frame.pts)
            time = self._seconds(frame.pts, last)
            for bad, again in self._lost_before(frame.pts, start):
                if self.faults.stopped:
                    return
                fits = (last is None or again > last) and start <= again < time
                if self.faults.on_error == "repeat" and image is not None and fits:
                    yield Frame(image, again, bad.number, self._take_audio())
                    last = again
            image, last = self._picture(frame), time
            if time >= start:
                yield Frame(image, time, round(time * self.rate), self._take_audio())
        for bad, again in self._lost_before(None, start):
            if self.faults.stopped:
                return
            if self.faults.on_error == "repeat" and image is not None and again > last:
                yield Frame(image, again, bad.number, self._take_audio())
                last = again
        self._note_early_end(last)

    def _note_early_end(self, last: Fraction | None) -> None:
        """Say so where a file holds less than it promises, by more than a second."""
        if self.ended_early is None and self.length and last is not None and not self.live:
            here = round(last * self.rate) + 1
            if self.length - here > self.rate:
                self.ended_early = f"ends after frame {here} of {self.length}"

    def _start_clock(self, pts: int | None) -> None:
        """Time starts at the first frame, or at a damaged one before it."""
        if self._origin is not None:
            return
        times = [p for p in self._awaited if not self.live and pts is not None and p < pts]
        self._origin = min([*times, pts or 0]) * self.time_base

    def _seconds(self, pts: int | None, last: Fraction | None) -> Fraction:
        """Time of a frame since the first; timestamps that are absent or start anew go on."""
        following = Fraction(0) if last is None else last + 1 / self.rate
        if pts is None:
            return following
        time = pts * self.time_base - self._origin
        if last is not None and (time <= last or (self.live and time > last + _JUMP)):
            self._origin += time - following
            return following
        return time

    # state of the decoder, filled by _decode as packets pass
    _origin: Fraction | None = None
    _first: Any = None

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
        self._decoded = self._decode()

    def _decode(self) -> Iterator:
        """Decoded frames; audio packets and the timestamps still without a frame are set aside."""
        self._audio: list = []
        self._awaited: dict[int, str] = {}
        wanted = [s for s in (self._stream, self.audio) if s is not None]
        packets = self._container.demux(*wanted)
        tracked = self._stream.codec_context.name not in _HIDDEN_FRAMES
        while True:
            self._reading = True
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError as error:  # torn off, or the network went away
                self.ended_early = str(error)
                return
            finally:
                self._reading = False
            if packet is None:
                return
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

    def _lost_before(self, pts: int | None, start: Fraction) -> Iterator[tuple[BadFrame, Fraction]]:
        """Count and yield, with their time, the frames that should have come before ``pts``.

        A decoder gives its frames in order, so what is missing then will not come. What is missing
        before the first frame of a live stream, or before ``start``, was never to be seen.
        """
        for lost in sorted(p for p in self._awaited if pts is None or p < pts):
            reason = self._awaited.pop(lost)
            time = lost * self.time_base - (self._origin or 0)
            if time >= max(start, 0):
                bad = BadFrame(self.name, round(time * self.rate), reason)
                self.faults.add(bad)
                yield bad, time

    def _take_audio(self) -> tuple:
        """(packet, seconds since the first frame) of the audio read so far."""
        taken, self._audio = self._audio, []
        return tuple((p, p.dts * Fraction(p.time_base) - self._origin) for p in taken)

    def _picture(self, frame) -> np.ndarray:
        name = frame.format.name
        deep = max(c.bits for c in frame.format.components) > 8
        if name.startswith("gray") or name in ("monow", "monob"):
            target = "gray16le" if deep else "gray"
        else:
            target = "rgb48le" if deep else "rgb24"
        image = frame.to_ndarray(format=target)
        turns = (frame.rotation // 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    _reading = False

    def close(self) -> None:
        if not self._reading:  # a thread still waits for the network; it has its timeout
            self._container.close()


def load_av():
    """PyAV. ImportError with the command that installs it, where it is absent."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'reading and writing video needs PyAV; install it: pip install "ddfm_fast[video]"'
        ) from error
    av.logging.set_level(None)  # FFmpeg's own lines would run into the progress bar
    return av


def _why(error: Exception, url: str) -> str:
    if "://" not in url and not Path(url).exists():
        return "no such file or folder; check the name"
    if "://" not in url and Path(url).stat().st_size == 0:
        return "the file is empty; copy or record it again"
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot be opened as video ({reason}); check that it plays"


class Pair(NamedTuple):
    """A visible frame and the infrared frame nearest to it in time."""

    ir: Frame
    vis: Frame


def align(
    ir: Iterable[Frame],
    vis: Iterable[Frame],
    *,
    offset: Fraction = Fraction(0),
    period: Fraction = 1 / DEFAULT_RATE,
) -> Iterator[Pair]:
    """Pair two streams by time: the visible frames are kept, each with the nearest infrared one.

    The first frames of both streams count as simultaneous, unless ``offset`` says by how many
    seconds the infrared stream starts later (negative: earlier). Of two infrared frames equally
    near the earlier is taken. Infrared frames are used again where that stream is slower or has a
    gap, and left out where it is faster. The output is the common time: visible frames further
    than ``period`` seconds (one infrared frame) before the first or after the last infrared frame
    have no partner and are left out. Both streams are read in step, one infrared frame ahead.
    """
    stream = iter(ir)
    before: Frame | None = None
    after = next(stream, None)
    packets: tuple = ()
    for frame in vis:
        packets += frame.packets
        while after is not None and after.time + offset < frame.time:
            before, after = after, next(stream, None)
        choice = _nearest(before, after, frame.time - offset)
        if choice is None:
            return
        if abs(choice.time + offset - frame.time) > period and None in (before, after):
            if after is None:
                return
            continue
        yield Pair(choice, frame._replace(packets=packets))
        packets = ()


def _nearest(before: Frame | None, after: Frame | None, time: Fraction) -> Frame | None:
    if before is None or after is None:
        return after or before
    return before if time - before.time <= after.time - time else after
