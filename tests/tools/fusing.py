"""Two small streams, and their fusion by a prior that costs nothing."""

from __future__ import annotations

from pathlib import Path

from clips import pan, quick_fuser, write_clip

from ddfm_fast.video import VideoReport, fuse_video

FRAMES = 12


def stream_files(folder: Path) -> tuple[Path, Path]:
    """Write (infrared, visible): 12 frames of 64x64 at 25/s; visible is tagged and has audio."""
    return (
        write_clip(folder / "ir.mp4", pan(FRAMES, 1)),
        write_clip(folder / "vis.mp4", pan(FRAMES, 2, channels=3), tags=True, audio=True),
    )


def run(ir, vis, out, **options) -> VideoReport:
    return fuse_video(ir, vis, out, fuser=quick_fuser(), preset="realtime", **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "part" in p.name or p.name.startswith("."))
