"""Read the frames of a stream from any source.

A source is iterable once and yields :class:`Frame`: upright pictures in time order, each with the
seconds since the first frame of its stream. Time is exact (``Fraction``), so that timestamps
survive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sized
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..config import require_number
from ..files.paths import READ_SUFFIXES, ImageFileError, image_files, is_folder
from ..files.reading import image_size, read_picture
from ..images.integers import as_count
from .decoding import VideoSource
from .frames import DEFAULT_RATE, BadFrame, Faults, Frame, Intake, Source, VideoError
from .opening import local

_NUMBER = re.compile(r"(\d+)\D*$")


def open_source(
    spec: Any,
    name: str,
    *,
    rate: float | Fraction | None = None,
    faults: Faults | None = None,
    audio: bool = False,
    intake: Intake | None = None,
) -> Source:
    """Open the source that ``spec`` means.

    Args:
        spec: A video file, named pipe or URL that FFmpeg reads (extra ``video``), a camera (0,
            "/dev/video0"), a folder of pictures, a list of picture files, any iterable of images
            (see `images.planes.to_planes`), or a Source. Text that names an existing file or folder
            means that, even with a colon in it; see `opening`.
        name: "ir" or "vis", for errors.
        rate: Frames per second of pictures and arrays (default 25); videos bring their own.
        faults: Counts bad frames, and says how to treat them (default: left out).
        audio: Whether to read the audio of a video, too.
        intake: How videos are read (default: interlaced frames are deinterlaced, and HDR is
            tone-mapped).

    Raises:
        VideoError: It cannot be read; a ValueError.
        TypeError: ``spec`` has another type.
        ImportError: PyAV is needed and missing.
    """
    if rate is not None:
        require_number("rate", rate, 0.001, 10_000)
    intake = Intake() if intake is None else intake.checked()
    rate = DEFAULT_RATE if rate is None else Fraction(rate).limit_denominator(100_000)
    if isinstance(spec, Source):
        return spec
    if (camera := as_count(spec, 0)) is not None:
        spec = str(camera)
    if isinstance(spec, (str, os.PathLike)):
        path = local(spec)
        if path is not None and is_folder(spec):
            return PictureSource(pictures(path), str(spec), rate, faults)
        return VideoSource(spec, name, faults, audio=audio, intake=intake)
    if isinstance(spec, (list, tuple)) and spec and isinstance(spec[0], (str, os.PathLike)):
        return PictureSource([Path(p) for p in spec], name, rate, faults)
    if isinstance(spec, Iterable):
        return ArraySource(spec, name, rate, faults)
    raise TypeError(
        f"{name} is a {type(spec).__name__}; expected a video file, URL or folder of pictures, "
        "or an iterable of images"
    )


def pictures(folder: Path) -> list[Path]:
    """List the picture files of a folder in the order of the last number in their names."""
    try:
        found = image_files(folder.iterdir())
    except OSError as error:
        raise VideoError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not found:
        raise VideoError(
            f"{folder}: has no pictures; expected files ending in {', '.join(READ_SUFFIXES)}"
        )
    return sorted(found, key=lambda p: (-1 if (n := _number(p)) is None else n, p.name))


def _number(path: Path) -> int | None:
    found = _NUMBER.search(path.stem)
    return int(found.group(1)) if found else None


class ArraySource(Source):
    """Images of any iterable, evenly spaced in time."""

    def __init__(self, items: Iterable, name: str, rate: Fraction, faults: Faults | None = None):
        super().__init__(faults)
        self.items, self.name, self.rate = items, name, rate
        self.length = len(items) if isinstance(items, Sized) else None

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        """Yield the frames from ``start`` seconds on, once."""
        for n, image in enumerate(self.items):
            if n / self.rate >= start:
                yield Frame(image, n / self.rate, n)


class PictureSource(Source):
    """Picture files, one per frame.

    If every name ends in a different number, that is the frame's number, and a missing file leaves
    a gap in time.
    """

    def __init__(self, paths: list[Path], name: str, rate: Fraction, faults: Faults | None = None):
        super().__init__(faults)
        self.name, self.rate, self.paths = name, rate, paths
        self.numbers = _frame_numbers(paths)
        self.length = len(paths)
        self._probe()

    def _probe(self) -> None:
        for path in self.paths:
            self.size = image_size(path)
            if self.size is not None:
                return
        raise VideoError(f"{self.name}: none of its {len(self.paths)} pictures can be read")

    def frames(self, start: Fraction = Fraction(0)) -> Iterator[Frame]:
        """Yield the frames from ``start`` seconds on, once."""
        last = None
        for number, path in zip(self.numbers, self.paths, strict=True):
            time = number / self.rate
            if time < start:
                continue
            try:
                last = read_picture(path)
            except ImageFileError as error:
                self.faults.add(BadFrame(self.name, number, str(error)))
                if self.faults.stopped:
                    return
                if self.faults.on_error == "skip" or last is None:
                    continue
            yield Frame(last.values, time, number, nodata=last.nodata)


def _frame_numbers(paths: list[Path]) -> list[int]:
    """Return frame numbers from 0: those in the names if they ascend, else the files' order."""
    numbers = [n for n in map(_number, paths) if n is not None]
    if len(numbers) == len(paths) and all(a < b for a, b in pairwise(numbers)):
        return [n - numbers[0] for n in numbers]
    return list(range(len(paths)))
