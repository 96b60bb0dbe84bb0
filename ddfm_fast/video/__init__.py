"""Video: two streams in, one fused stream out, with a few prior evaluations per frame.

    sources (decoding) → pairing → fitting, motion → temporal → sinks

``sources`` opens streams of ``frames``, ``decoding`` reads videos and ``cameras`` (whose frames
become pictures in ``converting`` and ``hdr``), ``pairing`` aligns two streams in time (live ones by
``clocks``), ``fitting`` brings pictures to one size and depth, ``motion`` examines only the
sources, ``temporal`` fuses with what it keeps of the last frame, ``sinks`` encodes to ``outputs``
or ``streams``, and ``preview`` shows frames. ``stream`` does this for images, ``pipeline`` for
files, each stage in a thread (``ahead``), and ``tasks`` for many files; where these are objects,
``staged`` fetches and uploads them. PyAV (extra ``video``) is loaded by ``decoding`` and ``sinks``
on first use: everything here imports without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faces import face

if TYPE_CHECKING:
    from .pairing import align
    from .pipeline import fuse_video
    from .report import VideoReport
    from .sinks import open_sink
    from .sources import open_source
    from .stream import fuse_stream, fuse_streams
    from .temporal import VIDEO_PRESETS, TemporalFuser, VideoPreset

__all__ = [
    "TemporalFuser",
    "VIDEO_PRESETS",
    "VideoPreset",
    "VideoReport",
    "align",
    "fuse_stream",
    "fuse_streams",
    "fuse_video",
    "open_sink",
    "open_source",
]

__getattr__, __dir__ = face(
    __name__,
    {
        "VIDEO_PRESETS": "temporal",
        "VideoPreset": "temporal",
        "TemporalFuser": "temporal",
        "fuse_stream": "stream",
        "fuse_streams": "stream",
        "fuse_video": "pipeline",
        "VideoReport": "report",
        "open_source": "sources",
        "align": "pairing",
        "open_sink": "sinks",
    },
)
