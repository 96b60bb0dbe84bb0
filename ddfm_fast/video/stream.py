"""Frames in, fused frames out: streams of images that are in memory or arrive one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from typing_extensions import Unpack

from ..align.call import Aligner
from ..align.streams import StreamAligner
from ..options import ReadingOptions, check_reading
from .ahead import Ahead, close_all
from .motion import Motion, MotionFinder
from .temporal import FrameFuser, TemporalFuser, VideoPreset

Color = bool | str | None


def fuse_stream(
    fuser: FrameFuser,
    pairs: Iterable[tuple],
    *,
    preset: str | VideoPreset = "balanced",
    color: Color = None,
    **reading: Unpack[ReadingOptions],
) -> Iterator[Any]:
    """Fuse an iterable of (ir, vis) images as one video, lazily and in order.

    Pairs are taken from the iterable in another thread, up to two ahead. Close the iterator to stop
    early. The fuser's ``align`` holds for the stream as in :func:`.pipeline.fuse_video`: one map,
    which is updated slowly.

    Args:
        fuser: A ``Fuser``: its prior, seed, device and color count.
        pairs: Images as in the call of ``Fuser``, one per source.
        preset: A name of ``VIDEO_PRESETS``, or a preset.
        color: Overrides the fuser's, as in its call.
        **reading: ``value_range`` and ``layout`` as in the call of ``Fuser``.

    Raises:
        ValueError, TypeError: The message names what is wrong.
    """
    check_reading(reading, "stream")
    temporal = TemporalFuser(fuser, preset)
    return _fuse_stream(temporal, _checked_iterable(pairs, "pairs"), color, reading)


def _fuse_stream(
    temporal: TemporalFuser, pairs: Iterable[tuple], color: Color, reading: ReadingOptions
) -> Iterator[Any]:
    stream = temporal.open()
    analyzed = Ahead(_analyzed(pairs, temporal.aligner(), reading))
    try:
        for ir, vis, motion, aligner in analyzed:
            (fused,) = temporal.fuse_many(
                [stream], [(ir, vis)], [motion], aligners=[aligner], color=color, **reading
            )
            yield fused
    finally:
        analyzed.close()


def fuse_streams(
    fuser: FrameFuser,
    streams: Sequence[Iterable[tuple]],
    *,
    preset: str | VideoPreset = "balanced",
    color: Color = None,
    **reading: Unpack[ReadingOptions],
) -> Iterator[list]:
    """Fuse several streams in step: each item is a list with the next result of every stream.

    None stands for a stream that has ended; the iterator ends with the last one. Frames of equal
    size go through the prior together, up to the fuser's ``batch_size``, with the same results as
    alone.

    Args:
        fuser: As in :func:`fuse_stream`.
        streams: An iterable of pairs for each stream.
        preset: As in :func:`fuse_stream`.
        color: As in :func:`fuse_stream`.
        **reading: As in :func:`fuse_stream`.

    Raises:
        ValueError, TypeError: The message names what is wrong.
    """
    check_reading(reading, "stream")
    temporal = TemporalFuser(fuser, preset)
    inputs = [
        Ahead(_analyzed(_checked_iterable(pairs, f"streams[{n}]"), temporal.aligner(), reading))
        for n, pairs in enumerate(_checked_iterable(streams, "streams"))
    ]
    return _fuse_streams(temporal, inputs, color, reading)


def _fuse_streams(
    temporal: TemporalFuser, inputs: list[Ahead], color: Color, reading: ReadingOptions
) -> Iterator[list]:
    states = [temporal.open() for _ in inputs]
    try:
        while True:
            items = [next(source, None) for source in inputs]
            here = [(n, item) for n, item in enumerate(items) if item is not None]
            if not here:
                return
            fused = temporal.fuse_many(
                [states[n] for n, _ in here],
                [item[:2] for _, item in here],
                [item[2] for _, item in here],
                aligners=[item[3] for _, item in here],
                color=color,
                **reading,
            )
            results: list = [None] * len(items)
            for (n, _), image in zip(here, fused, strict=True):
                results[n] = image
            yield results
    finally:
        close_all(inputs)


def _analyzed(
    pairs: Iterable[tuple], aligner: StreamAligner, reading: ReadingOptions
) -> Iterator[tuple[Any, Any, Motion, Aligner]]:
    find = MotionFinder(aligner, **reading)
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            length = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
            raise TypeError(
                f"pairs: item {number} is a {type(pair).__name__}{length}; expected (ir, vis), one "
                "image of each source: zip(infrared_frames, visible_frames)"
            )
        ir, vis = pair
        yield ir, vis, find(ir, vis), aligner.now()


def _checked_iterable(value: Any, name: str) -> Iterable:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} is a {type(value).__name__}; expected an iterable of (ir, vis)")
    return value
