"""The work behind ``ddfm-fast video``: which streams are meant, what to tell about them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ddfm_fast.video.pipeline import VideoReport
    from ddfm_fast.video.sources import BadFrame

INTERRUPTED = 130
INTERRUPTED_WORD = "interrupted"
_PAIRED_FILES = (("_T", "_RGB"), ("_ir", "_vis"), ("_thermal", "_visible"))
_VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".m4v", ".ts")


class OnError(str, Enum):
    skip = "skip"
    repeat = "repeat"
    stop = "stop"


class Codec(str, Enum):
    h264 = "h264"
    hevc = "hevc"
    ffv1 = "ffv1"
    png = "png"


@dataclass(frozen=True)
class Task:
    """Two streams and where their fusion goes."""

    name: str
    ir: Any
    vis: Any
    out: Path


def plan(ir: str, vis: str | None, out: Path, codec: Codec | None) -> list[Task]:
    """What ``IR VIS -o OUT`` or ``ROOT -o OUT`` means.

    Without VIS, IR is a data set: sequences of pictures in a layout of
    ``ddfm_fast.datasets.pairs``, or pairs of videos NAME_T.avi and NAME_RGB.avi (also _ir and
    _vis, _thermal and _visible). One sequence goes to OUT, several to OUT/NAME. ValueError
    where nothing is found.
    """
    if vis is not None:
        return [Task(out.stem, ir, vis, out)]
    root = Path(ir)
    if not root.is_dir():
        raise ValueError(
            f"IR is {ir} and VIS is missing; give two streams, or the folder of a data set"
        )
    found = _video_pairs(root) or _sequences(root)
    if len(found) == 1 and out.suffix:
        ((name, pair),) = found.items()
        return [Task(name, *pair, out)]
    if out.suffix:
        raise ValueError(
            f"--out is {out}, a file, for {len(found)} sequences; give a folder (no suffix)"
        )
    suffix = {None: ".mp4", Codec.ffv1: ".mkv", Codec.png: ""}.get(codec, ".mp4")
    return [Task(name, *pair, out / f"{name}{suffix}") for name, pair in found.items()]


def _video_pairs(root: Path) -> dict[str, tuple[str, str]]:
    files = {p.stem: p for p in sorted(root.iterdir()) if p.suffix.lower() in _VIDEO_SUFFIXES}
    return {
        stem.removesuffix(first): (str(path), str(files[partner]))
        for first, second in _PAIRED_FILES
        for stem, path in files.items()
        if stem.endswith(first) and (partner := stem.removesuffix(first) + second) in files
    }


def _sequences(root: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    from ddfm_fast.datasets.pairs import find_pairs

    found: dict[str, tuple[list[Path], list[Path]]] = {}
    for item in find_pairs(root, check_sizes=False):
        name = item.name.rpartition("/")[0] or root.resolve().name
        ir, vis = found.setdefault(name, ([], []))
        ir.append(item.ir)
        vis.append(item.vis)
    return found


def parse_resize(text: str | None) -> str | tuple[int, int] | None:
    """``vis``, ``ir`` or WIDTHxHEIGHT; ValueError otherwise."""
    if text is None or text in ("vis", "ir"):
        return text
    try:
        width, height = (int(n) for n in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--resize is {text!r}; expected vis, ir or WIDTHxHEIGHT") from None
    return height, width


def parse_range(text: str | None) -> tuple[float, float] | None:
    """``LO,HI``; ValueError otherwise."""
    if text is None:
        return None
    try:
        low, high = (float(n) for n in text.split(","))
    except ValueError:
        raise ValueError(f"--ir-range is {text!r}; expected LO,HI such as 7000,9000") from None
    return low, high


@contextmanager
def termination_is_an_interrupt() -> Iterator[None]:
    """SIGTERM ends the output as properly as Ctrl-C does."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    tasks: list[Task], *, as_json: bool, quiet: bool, **options
) -> tuple[list[VideoReport], list[dict[str, Any]]]:
    """Fuse every task; the reports, and a dictionary a task for ``--json``.

    options: of `fuse_video`. Of several tasks, one that fails is told on stderr and the others go
    on; a single one raises. Ctrl-C ends the task in hand, and no other is begun.
    """
    from ddfm_fast.video import fuse_video

    reports, lines = [], []
    for task in tasks:
        try:
            with termination_is_an_interrupt():
                report = fuse_video(task.ir, task.vis, task.out, on_bad=_echo_bad, **options)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            if len(tasks) == 1:
                raise
            typer.echo(f"error: {task.name}: {error}", err=True)
            lines.append({"name": task.name, "ok": False, "error": str(error)})
            continue
        reports.append(report)
        lines.append(as_dict(task, report))
        echo_report(report, quiet=quiet or as_json)
        if report.stopped == INTERRUPTED_WORD:
            break
    return reports, lines


def _echo_bad(bad: BadFrame) -> None:
    typer.echo(f"bad frame {bad.number} of {bad.stream}: {bad.reason}", err=True)


def echo_report(report: VideoReport, *, quiet: bool) -> None:
    """Print what was written in a line, and on stderr what went wrong."""
    if not quiet:
        ms = (report.latency_p50 * 1e3, report.latency_p99 * 1e3)
        dropped = f", {report.dropped} dropped" if report.dropped else ""
        typer.echo(
            f"{report.out}  {report.frames} frames{dropped}, {report.fps:.1f} frames/s, "
            f"{report.evaluations / max(1, report.frames):.1f} prior evaluations a frame, "
            f"latency p50 {ms[0]:.0f} ms, p99 {ms[1]:.0f} ms"
        )
    if report.bad_count:
        typer.echo(f"{report.out}: {report.bad_count} bad frames", err=True)
    if report.stopped is not None:
        kept = f"the frames up to there, {report.frames}, are in {report.out}"
        kept = kept if report.frames else "nothing was written"
        typer.echo(f"stopped: {report.stopped}; {kept}", err=True)


def as_dict(task: Task, report: VideoReport) -> dict[str, Any]:
    """The report for ``--json``."""
    found = asdict(report) | {"name": task.name, "ok": report.ok, "fps": report.fps}
    return json.loads(json.dumps(found, default=str))


def exit_code(reports: list[VideoReport], failed: int) -> int:
    """0 all is well, 1 bad frames, early ends or failed sequences, 130 after Ctrl-C."""
    if any(report.stopped == INTERRUPTED_WORD for report in reports):
        return INTERRUPTED
    return int(failed > 0 or not all(report.ok for report in reports))
