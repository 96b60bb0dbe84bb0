"""``ddfm-fast demo``: something to look at, with nothing to download."""

from __future__ import annotations

from pathlib import Path

from ..runtime.words import parse_steps
from . import options as opt
from .options import default
from .settings import show_progress

EPILOG = "Example:  `ddfm-fast demo --out out`"


def demo(
    *,
    steps: opt.FewerSteps = default.steps,
    out: opt.DemoOut = Path("out"),
    video: opt.AsVideo = False,
    quiet: opt.NoBars = False,
    device: opt.Device = default.device,
) -> None:
    """Fuse the three example pairs of the package: smoke, satellite and brain MRI; no download."""
    if video:
        from ..video.demo import run as run_video

        run_video(out, device=device, progress=show_progress(quiet))
        return
    from ..datasets.demo import run

    run(out, steps=parse_steps(steps), device=device, progress=show_progress(quiet))
