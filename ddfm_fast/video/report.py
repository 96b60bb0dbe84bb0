"""What became of a video, and why it ended early or never began."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .frames import BadFrame, Source

INTERRUPTED = "interrupted"
"""``VideoReport.stopped`` after Ctrl-C"""
READER_GONE = "its reader went away"
"""``VideoReport.stopped`` if the reader of standard output closed it, which is not a fault"""
STAGES = ("decode", "fit", "motion", "fuse", "encode")
"""work on a frame: decoding and pairing, resizing and depth, motion and upload, fusion, download
and encoding"""

T = TypeVar("T")


class StageTimes:
    """Total seconds that each of ``STAGES`` was at work.

    Stages work in parallel, so their sum is more than the elapsed time. Each stage is timed by one
    thread only.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is inside."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begun

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Time how long an iterator takes for its items."""
        iterator = iter(items)
        try:
            while True:
                with self.of(stage):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


@dataclass
class VideoReport:
    """What became of a video."""

    out: Path | str
    """the output: its own name if it is complete, a part's if the disk was full; "-" or an address
    as it was given"""
    frames: int = 0
    dropped: int = 0
    """pairs left out by ``realtime`` because fusion was not ready for them"""
    bad: list[BadFrame] = field(default_factory=list)
    """the first 1000 frames of each stream that could not be read"""
    bad_count: int = 0
    evaluations: int = 0
    """total evaluations of the prior"""
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    """for "ir" and "vis", what was found in frames and done about it, as means over the frames: the
    fields of ``ddfm_fast.restore.sources.SourceReport``"""
    clocks: dict[str, float] = field(default_factory=dict)
    """for two live streams: ``offset``, seconds by which infrared started later by arrival times,
    and ``drift_ppm``, by how much its clock is slower (0 before six seconds)"""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """seconds that each of ``STAGES`` was at work; they work in parallel"""
    latency_p50: float = 0.0
    """seconds from a pair's decoding to its encoding: median, and 99th percentile of the last
    1000 frames"""
    latency_p99: float = 0.0
    stopped: str | None = None
    """why it ended early: "interrupted", or what was wrong with a stream"""

    @property
    def fps(self) -> float:
        """Frames per second, from opening the streams to closing the output."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def ok(self) -> bool:
        """Whether every frame was read, fused and written."""
        return self.stopped in (None, READER_GONE) and not self.bad_count

    def take_faults(self, sources: Sequence[Source]) -> None:
        """Add what was wrong with the sources."""
        self.bad = [bad for source in sources for bad in source.faults.frames]
        self.bad_count = sum(source.faults.count for source in sources)
        if self.stopped is None:
            self.stopped = why_early(sources)


def why_early(sources: Sequence[Source]) -> str | None:
    """Describe what cut a source short; None if nothing did."""
    for source in sources:
        if source.faults.stopped:
            bad = source.faults.stopped
            return f"{bad.stream}: frame {bad.number}: {bad.reason}"
        if source.ended_early:
            return f"{source.name}: {source.ended_early}"
    return None


def why_nothing(sources: Sequence[Source]) -> str:
    """Describe why two sources gave not a single pair."""
    early = why_early(sources)
    if early:
        return f"no frame could be fused: {early}"
    bad = [b for source in sources for b in source.faults.frames]
    if bad:
        return f"no frame could be fused; {bad[0].stream}: frame {bad[0].number}: {bad[0].reason}"
    return (
        f"{sources[0].name} and {sources[1].name} have no time in common; "
        "check --offset, --start and --end, and that neither is empty"
    )
