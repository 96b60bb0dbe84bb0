"""What a stream is: frames with exact times, and what was wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from ..config import require_number

DEFAULT_RATE = Fraction(25)
"""frames per second of sources without a rate of their own: folders of pictures, and arrays"""
SWITCHES = {"deinterlace": ("auto", "off", "tff", "bff"), "tone_map": ("auto", "off")}
_LONGEST_WAIT = 1e6
ON_ERROR = ("skip", "repeat", "stop")
FAULTS_KEPT = 1000


class VideoError(ValueError):
    """A stream cannot be read, aligned or written; the message names it and the fix."""


class Frame(NamedTuple):
    """One picture of a stream."""

    image: Any
    """[H, W] gray or [H, W, 3] RGB, uint8 or uint16 (0..65535); arrays as they were"""
    time: Fraction
    """seconds since the first frame of the stream"""
    number: int
    """counted from 0 at the first frame of the stream; after a seek, by the timestamps"""
    packets: tuple = ()
    """encoded audio that precedes this picture, with its times, for the output to keep"""
    nodata: float | None = None
    """the value of missing data, by the picture's file"""


class BadFrame(NamedTuple):
    """A frame that could not be read."""

    stream: str
    number: int
    reason: str


class ColorTags(NamedTuple):
    """The color tags of a stream, FFmpeg's numbers; 2 or 0 if there are none."""

    space: int
    range: int
    primaries: int
    transfer: int


class Intake(NamedTuple):
    """How streams are read, beyond what their bytes say; see `fuse_video`."""

    deinterlace: str = "auto"
    tone_map: str = "auto"
    reconnect: float = 0.0

    def checked(self) -> Intake:
        """Return itself; ValueError or TypeError if a value is wrong."""
        for name, known in SWITCHES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}"
                )
        require_number("reconnect", self.reconnect, 0, _LONGEST_WAIT)
        return self


@dataclass
class Faults:
    """What was wrong with the frames of a stream, and what to do about it."""

    on_error: str = "skip"
    """"skip" leaves a bad frame out (the previous one lasts longer), "repeat" shows the last good
    picture in its place, "stop" ends the stream there"""
    frames: list[BadFrame] = field(default_factory=list)
    """the first ``FAULTS_KEPT``"""
    count: int = 0
    stopped: BadFrame | None = None
    on_bad: Callable[[BadFrame], None] | None = None
    """called with each bad frame as it is found"""

    def __post_init__(self):
        if self.on_error not in ON_ERROR:
            raise ValueError(
                f"on_error is {self.on_error!r}; expected one of {', '.join(ON_ERROR)}"
            )

    def add(self, bad: BadFrame) -> None:
        """Count a bad frame."""
        self.count += 1
        if len(self.frames) < FAULTS_KEPT:
            self.frames.append(bad)
        if self.on_error == "stop":
            self.stopped = bad
        if self.on_bad is not None:
            self.on_bad(bad)


class Source:
    """One stream of frames. Subclasses say where they come from."""

    name: str
    """name in errors"""
    rate: Fraction = DEFAULT_RATE
    """frames per second, nominal"""
    size: tuple[int, int] | None = None
    """(height, width), upright; None if unknown before the first frame"""
    length: int | None = None
    """number of frames, None if unknown"""
    live = False
    """whether it arrives at its own pace and has no known end"""
    arrived = 0.0
    """of a live stream: when its first frame arrived, in seconds of a steady clock"""
    color_tags: ColorTags | None = None
    pixel_aspect: Fraction | None = None
    """width of a pixel over its height, if it is not square"""
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
        """Yield the frames from ``start`` seconds on, once."""
        raise NotImplementedError

    def close(self) -> None:
        """Close files. Safe to call twice."""
