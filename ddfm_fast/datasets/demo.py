"""``ddfm-fast demo``: fuse the three example pairs that come with the package."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files.paths import ensure_writable_dir
from ..files.reading import read_image
from ..files.writing import write_image
from ..images.panel import draw_panel
from ..method import BASELINES, Baseline


class Pair(NamedTuple):
    """An example: the files of its two sources, their labels, and what to expect of the result."""

    name: str
    title: str
    first: str
    second: str
    labels: tuple[str, str]
    color: bool
    note: str


PAIRS = (
    Pair(
        "dune",
        "walkers behind smoke, photograph + noisy infrared, both partly drawn",
        "dune_infrared.png",
        "dune_visible.png",
        ("infrared (synthetic)", "visible (smoke drawn)"),
        True,
        "the hidden people white, the colors of the sand, and none of the sensor's noise",
    ),
    Pair(
        "sentinel2",
        "satellite, near infrared + visible (Sentinel-2)",
        "sentinel2_nir.png",
        "sentinel2_visible.png",
        ("near infrared", "visible"),
        True,
        "the visible colors with the texture of the infrared, best seen in the dark woods",
    ),
    Pair(
        "brain",
        "brain MRI, T1 + proton density",
        "brain_mri_t1.png",
        "brain_mri_pd.png",
        ("MRI T1", "MRI proton density"),
        False,
        "gray and white matter have opposite contrast in the two; both tissues stay apart",
    ),
)


def asset(name: str) -> np.ndarray:
    """Read an example image of the package: uint8, HW or HW3."""
    with as_file(files("ddfm_fast") / "assets" / name) as path:
        return read_image(path)


def run(
    out: str | Path = "out",
    *,
    steps: int | str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> list[Path]:
    """Fuse the example pairs and write the results and a labeled panel.

    Args:
        out: Folder to write to, made if it is missing.
        steps: As in :func:`ddfm_fast.fuse`, of the preset "official"; ``None`` for the default
            preset.
        device: Where to fuse; ``None`` for CUDA if there is one.
        progress: Show bars over the steps on stderr.

    Returns:
        The files written: one fused picture per pair, then ``panel.png``.

    Raises:
        ValueError: ``out`` cannot be written, or ``steps`` or ``device`` is refused.
    """
    out = ensure_writable_dir(out)
    started = time.perf_counter()
    from ..api import Fuser

    fuser = Fuser(prior="embedded", steps=steps, device=device)
    plain = {
        name: Fuser(
            method=Baseline(name).of,
            prior=fuser.prior,
            preset="instant",
            stretch="none",
            device=device,
        )
        for name in BASELINES
    }
    what = "preset balanced" if steps is None else f"preset official, {steps} steps"
    print(
        f"Fusing {len(PAIRS)} pairs on {fuser.prior.device} with the embedded prior, {what} ...",
        file=sys.stderr,
    )
    rows, written = [], []
    for pair in PAIRS:
        first, second = asset(pair.first), asset(pair.second)
        before = time.perf_counter()
        fused = fuser(first, second, color=pair.color, progress=progress)
        seconds = time.perf_counter() - before
        written.append(write_image(out / f"{pair.name}_fused.png", fused))
        rows.append([(pair.labels[0], first), (pair.labels[1], second), ("fused", fused)])
        rows[-1] += [(name, f(first, second, color=pair.color)) for name, f in plain.items()]
        print(f"{written[-1]}  {pair.title}, {fused.shape[1]}x{fused.shape[0]}, {seconds:.1f} s")
        print(f"    {pair.note}", flush=True)
    written.append(write_image(out / "panel.png", draw_panel(rows, height=240)))
    print(f"{written[-1]}  sources and results side by side: look at this one")
    print(f"Done in {time.perf_counter() - started:.1f} s.\n\n{_next_steps(out)}")
    return written


def _next_steps(out: Path) -> str:
    command = _command()
    first, second = (_short(Path(str(files("ddfm_fast") / "assets" / n))) for n in PAIRS[0][2:4])
    quick = shlex.quote(str(out / "quick.png"))
    return (
        "Try next:\n"
        f"  {command} fuse {first} {second} -o {quick} --panel\n"
        f"  {command} fuse --help     your own pictures: two aligned files, or two folders\n"
        f"  {command} doctor          what this machine can do, and what to install for more"
    )


def _command() -> str:
    """Return how this user calls the command: its name if the shell finds it, else its path."""
    script = Path(sys.executable).with_name("ddfm-fast")
    if shutil.which("ddfm-fast"):
        return "ddfm-fast"
    return _short(script) if script.is_file() else f"{_short(Path(sys.executable))} -m ddfm_fast"


def _short(path: Path) -> str:
    """Return the path for a shell, relative to the working directory if it lies under it."""
    cwd = Path.cwd()
    return shlex.quote(str(path.relative_to(cwd) if path.is_relative_to(cwd) else path))
