"""Whole streams through the temporal engine, every stage in its own thread.

    read and align | resize, motion, upload | fuse | download, encode (the caller's thread)

The stages are joined by bounded queues, so memory does not grow with the length of a stream, and a
slow stage slows the ones before it, or has frames dropped where ``realtime`` says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..api import Fuser
from ..datasets.jobs import same_depth
from ..images.planes import MIN_SIZE, to_planes
from ..runtime.memory import pages_kept
from .motion import Motion, MotionFinder
from .sinks import Sink, open_sink
from .sources import BadFrame, Faults, Frame, Pair, Source, VideoError, align, open_source
from .temporal import TemporalFuser, VideoPreset
from .transfer import Download, Downloader, Upload, Uploader

INTERRUPTED = "interrupted"
AHEAD = 2
"""items in each queue between two stages"""
_LATENCIES = 1000


class Ahead(Iterator):
    """Iterates over ``items`` in a thread, at most ``size`` items ahead; ``close`` ends it.

    ``merge``: where the queue is full, drop its oldest item instead of waiting, and call
    merge(dropped, next) for what takes the place of the next one; ``dropped`` counts. An error of
    ``items`` is raised where its item would have come.
    """

    def __init__(self, items: Iterable, size: int = AHEAD, merge: Callable | None = None):
        self.dropped = 0
        self._items, self._size, self._merge = items, size, merge
        self._queue: deque = deque()
        self._changed = threading.Condition()
        self._closed = self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:  # raised again in the thread that reads
            self._error = error
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _put(self, item) -> bool:
        with self._changed:
            while len(self._queue) >= self._size and not self._closed:
                if self._merge is None:
                    self._changed.wait()
                    continue
                oldest = self._queue.popleft()
                self.dropped += 1
                if self._queue:
                    self._queue[0] = self._merge(oldest, self._queue[0])
                else:
                    item = self._merge(oldest, item)
            self._queue.append(item)
            self._changed.notify_all()
            return not self._closed

    def __next__(self):
        with self._changed:
            while not self._queue and not self._done and not self._closed:
                self._changed.wait()
            if self._queue:
                item = self._queue.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration

    def stop(self) -> None:
        """Ask the thread to end after its item in hand."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait for the thread, but not for a network that is stalled."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)


def close_all(stages: Sequence[Ahead]) -> None:
    """Stop all, then wait: a stage may be waiting for the one before it."""
    for stage in stages:
        stage.stop()
    for stage in stages:
        stage.close()


def fuse_stream(
    fuser: Fuser, pairs: Iterable[tuple], *, preset: str | VideoPreset = "balanced", **reading
) -> Iterator:
    """Fuse an iterable of (ir, vis) images as one video, lazily and in order.

    Pairs are taken from the iterable in another thread, up to two ahead. Images and results as in
    the call of ``Fuser``, one image a source; ``reading``: its ``color``, ``value_range`` and
    ``layout``. Close the iterator to stop early. ValueError or TypeError names what is wrong.
    """
    temporal = TemporalFuser(fuser, preset)
    return _fuse_stream(temporal, pairs, reading)


def _fuse_stream(temporal: TemporalFuser, pairs: Iterable[tuple], reading: dict) -> Iterator:
    stream = temporal.open()
    analysed = Ahead(_analysed(pairs, reading))
    try:
        for ir, vis, motion in analysed:
            yield temporal.fuse(stream, ir, vis, motion, **reading)
    finally:
        analysed.close()


def fuse_streams(
    fuser: Fuser,
    streams: Sequence[Iterable[tuple]],
    *,
    preset: str | VideoPreset = "balanced",
    **reading,
) -> Iterator[list]:
    """Fuse several streams in step: each item is a list with the next result of every stream.

    None stands for a stream that has ended; the iterator ends with the last. Frames of one size go
    through the prior together, up to the fuser's ``batch_size``, and come out as they would alone.
    Arguments and errors as in :func:`fuse_stream`.
    """
    temporal = TemporalFuser(fuser, preset)
    return _fuse_streams(temporal, [Ahead(_analysed(pairs, reading)) for pairs in streams], reading)


def _fuse_streams(temporal: TemporalFuser, inputs: list[Ahead], reading: dict) -> Iterator[list]:
    states = [temporal.open() for _ in inputs]
    try:
        while True:
            items = [next(source, None) for source in inputs]
            here = [n for n, item in enumerate(items) if item is not None]
            if not here:
                return
            fused = temporal.fuse_many(
                [states[n] for n in here],
                [items[n][:2] for n in here],
                [items[n][2] for n in here],
                **reading,
            )
            results: list = [None] * len(items)
            for n, image in zip(here, fused, strict=True):
                results[n] = image
            yield results
    finally:
        close_all(inputs)


def _analysed(pairs: Iterable[tuple], reading: dict) -> Iterator[tuple[Any, Any, Motion]]:
    find = MotionFinder(**{k: v for k, v in reading.items() if k != "color"})
    for ir, vis in pairs:
        yield ir, vis, find(ir, vis)


@dataclass
class VideoReport:
    """What became of a video."""

    out: Path
    """the output: its own name where it is complete, a part's where the disk was full"""
    frames: int = 0
    dropped: int = 0
    """pairs left out by ``realtime`` because fusion was not ready for them"""
    bad: list[BadFrame] = field(default_factory=list)
    """the first 1000 frames that could not be read"""
    bad_count: int = 0
    evaluations: int = 0
    """of the prior, in all"""
    seconds: float = 0.0
    latency_p50: float = 0.0
    """seconds from a pair's decoding to its encoding: median, and 99th percentile of the last
    1000 frames"""
    latency_p99: float = 0.0
    stopped: str | None = None
    """why it ended before its time: "interrupted", or what was wrong with a stream"""

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def ok(self) -> bool:
        return self.stopped is None and not self.bad_count


def fuse_video(
    ir: Any,
    vis: Any,
    out: str | os.PathLike[str],
    *,
    fuser: Fuser | None = None,
    preset: str | VideoPreset = "balanced",
    offset: float = 0.0,
    resize: str | tuple[int, int] | None = None,
    ir_range: tuple[float, float] | None = None,
    start: float = 0.0,
    end: float | None = None,
    rate: float | None = None,
    codec: str | None = None,
    crf: int | None = None,
    audio: bool = True,
    side_by_side: bool = False,
    realtime: bool = False,
    on_error: str = "skip",
    progress: bool = False,
    on_bad: Callable[[BadFrame], None] | None = None,
) -> VideoReport:
    """Fuse two streams into a video file, or a folder of PNG files.

    ir, vis: see `open_source`. They are paired by time as :func:`align` says: the output has the
        visible stream's frames, timestamps, rate, colour tags and audio, upright.
        Of two live streams the first frames are apart by as much as they arrived apart.
    out, codec, crf: see `open_sink`. offset: seconds by which the infrared stream starts later.
    fuser: its prior, seed, device and colour count (default: the embedded prior); preset: see
        ``VIDEO_PRESETS``. rate: of folders of pictures and arrays, frames a second (default 25).
    resize: "vis" brings infrared frames to the visible size, "ir" the other way round, (height,
        width) both; without it, sizes that differ are an error.
    ir_range: (lo, hi), infrared values that mean black and white, for thermal cameras whose 16
        bits are counts; values beyond are clipped.
    start, end: seconds of the visible stream. side_by_side: infrared | visible | fused in one.
    realtime: play files at their own rate, and drop the oldest waiting pair whenever one arrives
        while two wait for fusion; what is shown keeps its timestamps.
    on_error: what a bad frame means, see `Faults`; ``on_bad`` hears of each.

    Ctrl-C ends the output properly, and the report says so. Raises VideoError or ValueError before
    anything is written where input or output does not do; VideoError later, naming the playable
    part that is left, where the output can no longer be written or a frame no longer be fused.
    """
    begun = time.perf_counter()
    faults = {"ir": _Told(on_error, on_bad), "vis": _Told(on_error, on_bad)}
    sources: list[Source] = []
    try:
        sources.append(open_source(ir, "ir", rate=rate, faults=faults["ir"]))
        sources.append(open_source(vis, "vis", rate=rate, faults=faults["vis"], audio=audio))
        span = _checked_span(start, end)
        fit = _Fit(*sources, resize, ir_range)
        if resize not in (None, "vis"):
            sources[1].pixel_aspect = None
        temporal = TemporalFuser(Fuser() if fuser is None else fuser, preset)
        _refuse_to_replace(out, ir, vis)
        sink = open_sink(out, sources[1], codec=codec, crf=crf)
        run = _Run(temporal, fit, sink, realtime=realtime, side_by_side=side_by_side)
        late = _exact(offset) + _arrival_gap(*sources)
        total = _expected(*sources, late, *span)
        with pages_kept(temporal.fuser.device):
            report = run(_pairs(*sources, late, *span), sources, total, progress)
    finally:
        for source in sources:
            source.close()
    report.seconds = time.perf_counter() - begun
    report.bad = [bad for f in faults.values() for bad in f.frames]
    report.bad_count = sum(f.count for f in faults.values())
    if report.stopped is None:
        report.stopped = _why_early(sources)
    return report


class _Told(Faults):
    """Faults that are told to somebody as they happen."""

    def __init__(self, on_error: str, tell: Callable[[BadFrame], None] | None):
        super().__init__(on_error)
        self._tell = tell

    def add(self, bad: BadFrame) -> None:
        super().add(bad)
        if self._tell is not None:
            self._tell(bad)


def _why_early(sources: list[Source]) -> str | None:
    for source in sources:
        if source.faults.stopped:
            bad = source.faults.stopped
            return f"{bad.stream}: frame {bad.number}: {bad.reason}"
        if source.ended_early:
            return f"{source.name}: {source.ended_early}"
    return None


def _checked_span(start: float, end: float | None) -> tuple[Fraction, Fraction | None]:
    if not 0 <= start < float("inf"):
        raise ValueError(f"start is {start}; expected seconds from 0")
    if end is not None and not end > start:
        raise ValueError(f"end is {end} and start {start}; expected end after start")
    return _exact(start), None if end is None or end == float("inf") else _exact(end)


def _arrival_gap(ir: Source, vis: Source) -> Fraction:
    """Seconds by which the first frame of a live infrared stream came later than the visible."""
    both = ir.live and vis.live
    return _exact(ir.arrived - vis.arrived) if both else Fraction(0)


def _exact(seconds: float) -> Fraction:
    """The decimal number that was meant: 0.1 as a float is a little later than frame 3 at 30/s."""
    return Fraction(seconds).limit_denominator(1_000_000)


def _refuse_to_replace(out, *inputs) -> None:
    for source in inputs:
        is_path = isinstance(source, (str, os.PathLike)) and "://" not in str(source)
        if is_path and Path(out).resolve() == Path(source).resolve():
            raise VideoError(f"out is {out}, which is an input; choose another name")


def _pairs(
    ir: Source, vis: Source, offset: Fraction, start: Fraction, end: Fraction | None
) -> Iterator[Pair]:
    period = 1 / ir.rate
    ir_start = max(Fraction(0), start - offset - 2 * period)
    for pair in align(ir.frames(ir_start), vis.frames(start), offset=offset, period=period):
        if end is not None and pair.vis.time >= end:
            return
        yield pair


def _expected(
    ir: Source, vis: Source, offset: Fraction, start: Fraction, end: Fraction | None
) -> int | None:
    """About how many frames there will be, None if nobody knows."""
    ends = [] if end is None else [end]
    if vis.length is not None:
        ends.append(vis.length / vis.rate)
    if ir.length is not None:
        ends.append(ir.length / ir.rate + offset)
    return max(0, round((min(ends) - start) * vis.rate)) if ends else None


class _Fit:
    """Brings the pictures of a pair to one size and depth."""

    def __init__(self, ir: Source, vis: Source, resize, ir_range):
        self.size = _target_size(ir, vis, resize)
        self.ir_range = _checked_range(ir_range)
        self._resized = resize is not None
        self._shapes: dict[str, tuple] = {}

    def __call__(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """(infrared, visible), uint8 or both uint16, [H, W] or [H, W, 3]."""
        ir, vis = (
            self._picture(frame, name) for frame, name in zip(pair, pair._fields, strict=True)
        )
        if self.ir_range is not None:
            low, high = self.ir_range
            scaled = (ir.astype(np.float32) - low) * (65535 / (high - low))
            ir = np.rint(scaled.clip(0, 65535)).astype(np.uint16)
        return same_depth(ir, vis)

    def _picture(self, frame: Frame, name: str) -> np.ndarray:
        image = _pixels(frame.image, name)
        if self._resized and self.size is None:
            raise VideoError(f"resize needs the size of {name}, which an iterator does not tell")
        if self._resized and image.shape[:2] != self.size:
            smaller = image.shape[0] > self.size[0]
            how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
            return cv2.resize(image, self.size[::-1], interpolation=how)
        first = self._shapes.setdefault(name, image.shape)
        if image.shape != first:
            raise VideoError(
                f"{name}: frame {frame.number} has shape {image.shape} after {first}; expected "
                "frames of one size, or --resize"
            )
        return image


def _pixels(image: Any, name: str) -> np.ndarray:
    """An image of any container as NumPy uint8 or uint16; floats become uint16."""
    if isinstance(image, np.ndarray) and image.dtype in (np.uint8, np.uint16):
        return image
    planes, spec = to_planes(image, name)
    channels = planes[0].permute(1, 2, 0)
    top = 255 if str(spec.dtype) == "torch.uint8" else 65535
    values = (channels * top).round().cpu().numpy()
    values = values.astype(np.uint8 if top == 255 else np.uint16)
    return values[..., 0] if values.shape[2] == 1 else values


def _target_size(ir: Source, vis: Source, resize) -> tuple[int, int] | None:
    if resize is None:
        if ir.size and vis.size and ir.size != vis.size:
            (a, b), (c, d) = ir.size, vis.size
            raise VideoError(
                f"ir has {b}x{a} pixels and vis {d}x{c}; expected aligned streams of one size: "
                "register them first, or let --resize vis bring infrared to the visible size"
            )
        return vis.size
    if resize in ("ir", "vis"):
        return (ir if resize == "ir" else vis).size
    try:
        height, width = (int(n) for n in resize)
    except (TypeError, ValueError):
        raise ValueError(f'resize is {resize!r}; expected "vis", "ir" or (height, width)') from None
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"resize is {resize!r}; expected at least {MIN_SIZE} a side")
    return height, width


def _checked_range(ir_range) -> tuple[float, float] | None:
    if ir_range is None:
        return None
    low, high = (float(n) for n in ir_range)
    if not low < high:
        raise ValueError(f"ir_range is {ir_range!r}; expected two numbers (lo, hi) with lo < hi")
    return low, high


@dataclass
class _Job:
    """A pair on its way through the stages."""

    pair: Pair
    arrived: float
    shown: tuple = ()
    """the two fitted pictures, kept for side_by_side"""
    upload: Upload | None = None
    motion: Motion | None = None
    fused: Download | None = None


def _merge_dropped(dropped: _Job, following: _Job) -> _Job:
    """A dropped pair's audio goes on with the next one."""
    vis = following.pair.vis
    vis = vis._replace(packets=dropped.pair.vis.packets + vis.packets)
    return replace(following, pair=following.pair._replace(vis=vis))


class _Run:
    """One video through the stages."""

    def __init__(self, temporal: TemporalFuser, fit: _Fit, sink: Sink, *, realtime, side_by_side):
        self.temporal, self.fit, self.sink = temporal, fit, sink
        self.realtime, self.side_by_side = realtime, side_by_side
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)

    def __call__(
        self, pairs: Iterator[Pair], sources: list[Source], total: int | None, progress: bool
    ) -> VideoReport:
        report = VideoReport(self.sink.path)
        paced = self.realtime and not any(source.live for source in sources)
        read = Ahead(_jobs(pairs, paced), AHEAD, _merge_dropped if self.realtime else None)
        prepared = Ahead(self._prepare(read), 1)
        fused = Ahead(self._fuse(prepared), 1 if self.realtime else AHEAD)
        bar = _bar(total, progress)
        try:
            for job in fused:
                self._write(job)
                report.dropped = read.dropped
                self._show(bar, report)
        except KeyboardInterrupt:
            report.stopped = INTERRUPTED
        except BaseException as error:
            close_all((fused, prepared, read))
            raise self._failed(error) from error
        finally:
            bar.close()
            close_all((fused, prepared, read))
        if self.sink.frames == 0 and report.stopped is None:
            self.sink.abandon()
            raise VideoError(_nothing(sources))
        self.sink.finish()
        report.frames, report.dropped = self.sink.frames, read.dropped
        report.evaluations = self.temporal.evaluations
        if self.latencies:
            p50, p99 = np.quantile(self.latencies, (0.5, 0.99))
            report.latency_p50, report.latency_p99 = float(p50), float(p99)
        return report

    def _prepare(self, jobs: Iterable[_Job]) -> Iterator[_Job]:
        find, upload = MotionFinder(), Uploader(self.temporal.fuser.device)
        for job in jobs:
            ir, vis = self.fit(job.pair)
            job.motion = find(ir, vis)
            flow = () if job.motion.flow is None else (job.motion.flow,)
            job.upload = upload(ir, vis, *flow)
            job.shown = (ir, vis) if self.side_by_side else ()
            yield job

    def _fuse(self, jobs: Iterable[_Job]) -> Iterator[_Job]:
        stream, download = self.temporal.open(), Downloader(self.temporal.fuser.device)
        for job in jobs:
            ir, vis, *flow = job.upload.images()
            motion = job.motion._replace(flow=flow[0] if flow else None)
            job.fused = download(self.temporal.fuse(stream, ir, vis, motion))
            job.upload = None
            yield job

    def _write(self, job: _Job) -> None:
        image = job.fused.image()
        if self.side_by_side:
            image = beside(*job.shown, image)
        vis = job.pair.vis
        self.sink.write(image, vis.time, vis.number, vis.packets)
        self.latencies.append(time.perf_counter() - job.arrived)

    def _show(self, bar, report: VideoReport) -> None:
        if not bar.disable:
            p50, p99 = np.quantile(self.latencies, (0.5, 0.99)) * 1e3
            dropped = f", {report.dropped} dropped" if self.realtime else ""
            bar.set_postfix_str(f"latency p50 {p50:.0f} ms, p99 {p99:.0f} ms{dropped}", False)
        bar.update()

    def _failed(self, error: BaseException) -> BaseException:
        part = self.sink.abandon()
        if part is None or not isinstance(error, Exception):
            return error
        kind = VideoError if isinstance(error, (ValueError, OSError)) else type(error)
        return kind(f"{error}. The frames up to there, {self.sink.frames}, are in {part}")


def _jobs(pairs: Iterator[Pair], paced: bool) -> Iterator[_Job]:
    first = None
    for pair in pairs:
        now = time.perf_counter()
        if paced:
            first = now - float(pair.vis.time) if first is None else first
            time.sleep(max(0.0, first + float(pair.vis.time) - now))
        yield _Job(pair, time.perf_counter())


def _nothing(sources: list[Source]) -> str:
    early = _why_early(sources)
    if early:
        return f"no frame could be fused: {early}"
    bad = [b for source in sources for b in source.faults.frames]
    if bad:
        return f"no frame could be fused; {bad[0].stream}: frame {bad[0].number}: {bad[0].reason}"
    return (
        f"{sources[0].name} and {sources[1].name} have no time in common; "
        "check --offset, --start and --end, and that neither is empty"
    )


def beside(ir: np.ndarray, vis: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """infrared | visible | fused as one picture, RGB where any is; uint8 or uint16, all alike."""
    pictures = [p[..., 0] if p.ndim == 3 and p.shape[2] == 1 else p for p in (ir, vis, fused)]
    height, width = fused.shape[:2]
    pictures = [p[:height, :width] for p in pictures]
    if any(p.ndim == 3 for p in pictures):
        pictures = [np.dstack([p] * 3) if p.ndim == 2 else p for p in pictures]
    return np.concatenate(pictures, axis=1)


def _bar(total: int | None, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="fusing", unit="frame", disable=not progress, smoothing=0.05)
