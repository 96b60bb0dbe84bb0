"""Video: two streams in, one fused stream out, at a few prior evaluations a frame.

    sources → (align) → motion → temporal → sinks, joined by ``pipeline``

``sources`` decodes and aligns, ``motion`` looks at the sources alone, ``temporal`` fuses with what
it keeps of the frame before, ``sinks`` encodes. Only ``sources`` and ``sinks`` know PyAV (extra
``video``), and both load it on first use: everything here imports without it.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
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
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
