"""Video: two streams in, one fused stream out, at a few prior evaluations a frame.

    sources → (align) → motion → temporal → sinks, joined by ``pipeline``

``sources`` decodes and aligns, ``motion`` looks at the sources alone, ``temporal`` fuses with what
it keeps of the frame before, ``sinks`` encodes. Only ``sources`` and ``sinks`` know PyAV (extra
``video``), and both load it on first use: everything here imports without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .pipeline import VideoReport, fuse_stream, fuse_streams, fuse_video
    from .sinks import open_sink
    from .sources import align, open_source
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
        "fuse_stream": "pipeline",
        "fuse_streams": "pipeline",
        "fuse_video": "pipeline",
        "VideoReport": "pipeline",
        "open_source": "sources",
        "align": "sources",
        "open_sink": "sinks",
    },
)
