"""Whole videos through the temporal fuser, every stage in its own thread.

    read and align | resize, motion, upload | fuse | download, encode (the caller's thread)

The stages are joined by bounded queues, so memory does not grow with the length of a stream. A slow
stage slows the ones before it or, if ``realtime`` is on, causes frames to be dropped.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypedDict

import numpy as np
from typing_extensions import Unpack

from ..align.streams import StreamAligner
from ..api import Fuser
from ..files.depth import Sources
from ..images.pixels import Given
from ..options import check_names
from ..runtime.memory import pages_kept
from .ahead import AHEAD, Ahead, close_all
from .fitting import Fit, Resize, beside, settle_aspect
from .frames import BadFrame, Faults, Intake, Source, VideoError
from .motion import Motion, MotionFinder
from .outputs import Inputs
from .pairing import FramePair, Timeline
from .preview import Previewed
from .report import INTERRUPTED, READER_GONE, StageTimes, VideoReport, why_nothing
from .sinks import Sink, is_for_pictures, open_sink
from .sources import open_source
from .streams import ReaderGone
from .temporal import FrameFuser, TemporalFuser, VideoPreset

_LATENCIES = 1000


class VideoOptions(TypedDict, total=False):
    """Options of `fuse_video`, which explains them; defaults are in ``VIDEO_DEFAULTS``."""

    preset: str | VideoPreset
    offset: float
    resize: Resize
    ir_range: tuple[float, float] | str | None
    vis_range: tuple[float, float] | str | None
    nodata: float | Mapping[str, float | None] | None
    start: float
    end: float | None
    rate: float | None
    codec: str | None
    crf: int | None
    audio: bool
    side_by_side: bool
    realtime: bool
    preview: bool
    on_error: str
    deinterlace: str
    tone_map: str
    reconnect: float
    progress: bool
    on_bad: Callable[[BadFrame], None] | None
    on_frame: Callable[[int, int | None], None] | None


VIDEO_DEFAULTS: VideoOptions = {
    "preset": "balanced",
    "offset": 0.0,
    "resize": None,
    "ir_range": None,
    "vis_range": None,
    "nodata": None,
    "start": 0.0,
    "end": None,
    "rate": None,
    "codec": None,
    "crf": None,
    "audio": True,
    "side_by_side": False,
    "realtime": False,
    "preview": False,
    "on_error": "skip",
    "deinterlace": "auto",
    "tone_map": "auto",
    "reconnect": 0.0,
    "progress": False,
    "on_bad": None,
    "on_frame": None,
}


def fuse_video(
    ir: Any,
    vis: Any,
    out: str | os.PathLike[str],
    *,
    fuser: FrameFuser | None = None,
    **options: Unpack[VideoOptions],
) -> VideoReport:
    """Fuse two streams into a video file, a folder of PNG files, or a stream.

    They are paired by time as :func:`align` says: the output has the visible stream's frames,
    timestamps, rate, color tags and audio, upright. Of two live streams the first frames are apart
    by as much as they arrived apart. Ctrl-C ends the output properly, and the report says so.

    Args:
        ir: See `open_source`; so for ``vis``.
        vis: See ``ir``.
        out: See `open_sink`; so for ``codec`` and ``crf``.
        fuser: Its prior, seed, device and color count (default: the embedded prior).
        **options: ``preset``: a name of ``VIDEO_PRESETS``, or a preset (default: "balanced").
            ``offset``: seconds by which the infrared stream starts later.
            ``resize``: "vis" brings infrared frames to the visible size, "ir" the other way round,
            (height, width) both; without it, sizes that differ are an error unless the fuser's
            ``align`` looks for a map, which brings infrared frames to the visible size.
            ``ir_range``, ``vis_range``: (lo, hi), the values of black and white; values beyond are
            clipped. Or "auto" (the default), "data", "dtype": the first frame decides, and the
            range then follows the others slowly, see ``ddfm_fast.images.steady``.
            ``nodata``: the value of missing pixels, maybe NaN, for both or per source; the result
            shows the other source there.
            ``start``, ``end``: seconds of the visible stream.
            ``rate``: frames per second of folders of pictures and arrays (default 25).
            ``audio``: keep the visible stream's (default: True).
            ``side_by_side``: infrared | visible | fused in one picture.
            ``realtime``: play files at their own rate, and drop the oldest waiting pair whenever
            one arrives while two wait for fusion; what is shown keeps its timestamps.
            ``preview``: show the frames in a window, or without a display at an address of this
            machine (MJPEG), which is printed on stderr.
            ``on_error``: what to do about bad frames, see `Faults`; ``on_bad`` is called with each.
            ``deinterlace``: "auto" (the default) deinterlaces frames marked as
            interlaced, by FFmpeg's bwdif, and warns if others have combs; "off" leaves them;
            "tff" and "bff" deinterlace all frames, with the top or bottom field first.
            ``tone_map``: "auto" (the default) brings PQ and HLG to BT.709; "off" leaves the coded
            values.
            ``reconnect``: seconds to keep trying if a live stream breaks off.
            ``progress``: show a bar on stderr; ``on_frame``: called with frames written, of all.

    Raises:
        ValueError: Input or output is not usable (VideoError); nothing is written then. VideoError
            later, naming the playable part that is left, if the output can no longer be
            written or a frame no longer be fused.
        TypeError: An input has the wrong type, or an option is unknown.
    """
    check_names(options, VIDEO_DEFAULTS)
    given: VideoOptions = {**VIDEO_DEFAULTS, **options}
    begun = time.perf_counter()
    with _opened(ir, vis, given) as sources:
        report = _fuse_opened(sources, (ir, vis), out, fuser, given)
    report.seconds = time.perf_counter() - begun
    report.take_faults(sources)
    return report


@contextmanager
def _opened(ir: Any, vis: Any, given: VideoOptions) -> Iterator[tuple[Source, Source]]:
    """Open both streams, and close them at the end."""
    ir_faults, vis_faults = (Faults(given["on_error"], on_bad=given["on_bad"]) for _ in range(2))
    intake = Intake(given["deinterlace"], given["tone_map"], given["reconnect"])
    with ExitStack() as stack:
        ir_source = open_source(ir, "ir", rate=given["rate"], faults=ir_faults, intake=intake)
        stack.callback(ir_source.close)
        more: dict[str, Any] = {"audio": given["audio"], "intake": intake}
        vis_source = open_source(vis, "vis", rate=given["rate"], faults=vis_faults, **more)
        stack.callback(vis_source.close)
        yield ir_source, vis_source


def _fuse_opened(
    sources: tuple[Source, Source],
    inputs: tuple,
    out: str | os.PathLike[str],
    fuser: FrameFuser | None,
    given: VideoOptions,
) -> VideoReport:
    ir, vis = sources
    timeline = Timeline.of(ir, vis, offset=given["offset"], start=given["start"], end=given["end"])
    temporal = TemporalFuser(Fuser() if fuser is None else fuser, given["preset"])
    aligner = temporal.aligner()
    values = given["ir_range"], given["vis_range"], given["nodata"]
    fit = Fit(ir, vis, given["resize"], *values, aligned=aligner.moves)
    Inputs(inputs).refuse(out)
    pictures = given["codec"] == "png" or (given["codec"] is None and is_for_pictures(out))
    settle_aspect(ir, vis, given["resize"], pictures=pictures)
    sink = open_sink(out, vis, codec=given["codec"], crf=given["crf"])
    if given["preview"]:
        sink = Previewed(sink)
    stages = _Stages(
        temporal, fit, aligner, sink,
        realtime=given["realtime"], side_by_side=given["side_by_side"], told=given["on_frame"],
    )  # fmt: skip
    with pages_kept(temporal.fuser.device):
        return stages.run(timeline, progress=given["progress"])


Placing = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class _Read(NamedTuple):
    """A pair that was read and aligned."""

    pair: FramePair
    arrived: float


class _Prepared(NamedTuple):
    """A pair on its way to the device."""

    read: _Read
    shown: Sources | None
    """the two fitted pictures, kept for side_by_side and for missing data"""
    sent: tuple
    """the two pictures, as they are fused"""
    motion: Motion
    flow: Callable[[], Any] | None


class _Fused(NamedTuple):
    """A fused picture on its way back."""

    read: _Read
    shown: Sources | None
    image: Given


def _merge_dropped(dropped: _Read, following: _Read) -> _Read:
    """Return the next pair, with the audio of one that is dropped."""
    vis = following.pair.vis
    vis = vis._replace(packets=dropped.pair.vis.packets + vis.packets)
    return following._replace(pair=following.pair._replace(vis=vis))


class _Stages:
    """One video through the stages."""

    def __init__(
        self,
        temporal: TemporalFuser,
        fit: Fit,
        aligner: StreamAligner,
        sink: Sink,
        *,
        realtime: bool,
        side_by_side: bool,
        told: Callable[[int, int | None], None] | None = None,
    ):
        self.temporal, self.fit, self.aligner, self.sink = temporal, fit, aligner, sink
        self.realtime, self.side_by_side, self.told = realtime, side_by_side, told
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)
        self.times = StageTimes()

    def run(self, timeline: Timeline, *, progress: bool) -> VideoReport:
        sources = (timeline.ir, timeline.vis)
        report = VideoReport(self.sink.path)
        total = timeline.expected()
        paced = self.realtime and not any(source.live for source in sources)
        read = Ahead(
            _arrivals(self.times.each("decode", timeline.pairs()), paced),
            AHEAD,
            _merge_dropped if self.realtime else None,
        )
        prepared = Ahead(self._prepare(read), 1)
        fused = Ahead(self._fuse(prepared), 1 if self.realtime else AHEAD)
        bar = _bar(total, progress, os.path.basename(str(self.sink.path)))
        try:
            for item in fused:
                with self.times.of("encode"):
                    self._write(item)
                report.dropped = read.dropped
                self._show(bar, report)
                if self.told is not None:
                    self.told(self.sink.frames, total)
        except KeyboardInterrupt:
            report.stopped = INTERRUPTED
        except ReaderGone:
            report.stopped = READER_GONE
        except BaseException as error:
            close_all((fused, prepared, read))
            raise self._failed(error) from error
        finally:
            bar.close()
            close_all((fused, prepared, read))
        if self.sink.frames == 0 and report.stopped is None:
            self.sink.abandon()
            raise VideoError(why_nothing(sources))
        try:
            with self.times.of("encode"):
                self.sink.finish()
        except VideoError as error:
            raise self._failed(error) from error
        self._complete(report, read.dropped)
        if timeline.clocks is not None:
            report.clocks = timeline.clocks.found(timeline.offset)
        return report

    def _complete(self, report: VideoReport, dropped: int) -> None:
        report.frames, report.dropped = self.sink.frames, dropped
        report.stages = {name: round(took, 6) for name, took in self.times.seconds.items()}
        report.evaluations = self.temporal.evaluations
        report.sources = {name: found.means() for name, found in self.temporal.found.items()}
        if self.latencies:
            report.latency_p50, report.latency_p99 = self._percentiles()

    def _percentiles(self) -> tuple[float, float]:
        p50, p99 = np.quantile(self.latencies, (0.5, 0.99))
        return float(p50), float(p99)

    def _prepare(self, items: Iterable[_Read]) -> Iterator[_Prepared]:
        find, pixels = MotionFinder(value_range="dtype"), self.temporal.fuser.pixels
        for read in items:
            with self.times.of("fit"):
                fitted = self._aligned(self.fit(read.pair), self.aligner.frame)
            with self.times.of("motion"):
                motion = find(fitted.ir, fitted.vis)
                if motion.cut:
                    if (anew := self.fit.at_cut(read.pair)) is not None:
                        fitted = self._aligned(anew, self.aligner.placed)
                        find.begin(fitted.ir, fitted.vis)
                    self.aligner.look(fitted.ir, fitted.vis, again=True)
                flow = None if motion.flow is None else pixels.array_ahead(np.asarray(motion.flow))
                sent = pixels.ahead(fitted.ir, fitted.vis)
            holed = any(hole is not None for hole in fitted.holes)
            shown = fitted if self.side_by_side or holed else None
            yield _Prepared(read, shown, sent, motion, flow)

    def _aligned(self, found: Sources, placed: Placing) -> Sources:
        """Return a pair, aligned, and where each source lacks data."""
        ir, vis = placed(found.ir, found.vis)
        return Sources(ir, vis, self.aligner.holes(found.holes, found.vis.shape[:2]))

    def _fuse(self, items: Iterable[_Prepared]) -> Iterator[_Fused]:
        stream = self.temporal.open()
        for read, shown, (ir, vis), motion, flow in items:
            with self.times.of("fuse"):
                motion = motion._replace(flow=None if flow is None else flow())
                image = self.temporal.begin(stream, ir, vis, motion, value_range="dtype")
            yield _Fused(read, shown, image)

    def _write(self, item: _Fused) -> None:
        image = item.image.image()
        if item.shown is not None:
            image = item.shown.mended(image)
        if self.side_by_side and item.shown is not None:
            image = beside(item.shown.ir, item.shown.vis, image)
        frame = item.read.pair.vis
        self.sink.write(image, frame.time, frame.number, frame.packets)
        self.latencies.append(time.perf_counter() - item.read.arrived)

    def _show(self, bar: Any, report: VideoReport) -> None:
        if not bar.disable:
            p50, p99 = (seconds * 1e3 for seconds in self._percentiles())
            dropped = f", {report.dropped} dropped" if self.realtime else ""
            bar.set_postfix_str(f"latency p50 {p50:.0f} ms, p99 {p99:.0f} ms{dropped}", False)
        bar.update()

    def _failed(self, error: BaseException) -> BaseException:
        part = self.sink.abandon()
        kept = f"The {self.sink.frames} frames before that are in {part}"
        left = kept if part is not None else self.sink.lost
        if left is None or str(error).endswith(f" {part}") or not isinstance(error, Exception):
            return error
        kind = VideoError if isinstance(error, (ValueError, OSError)) else type(error)
        return kind(f"{error}. {left}")


def _arrivals(pairs: Iterator[FramePair], paced: bool) -> Iterator[_Read]:
    """Yield pairs and when they arrived; ``paced``: hold them back until their time."""
    first: float | None = None
    for pair in pairs:
        now = time.perf_counter()
        if paced:
            first = now - float(pair.vis.time) if first is None else first
            time.sleep(max(0.0, first + float(pair.vis.time) - now))
        yield _Read(pair, time.perf_counter())


def _bar(total: int | None, progress: bool, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="frame", disable=not progress, smoothing=0.05)
