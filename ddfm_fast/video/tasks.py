"""Many videos in one call: which streams a folder means, and the fusion of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..api import Fuser
from ..datasets.pairs import find_pairs
from ..files.paths import is_folder
from ..options import check_names
from ..runtime.items import reached
from .outputs import Inputs
from .pipeline import VIDEO_DEFAULTS, VideoOptions, fuse_video
from .report import INTERRUPTED, VideoReport
from .streams import is_stream
from .temporal import FrameFuser

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".m4v", ".ts")
PAIRED_NAMES = (("_T", "_RGB"), ("_ir", "_vis"), ("_thermal", "_visible"))
"""endings of the infrared and the visible file of a pair of videos"""


@dataclass(frozen=True)
class Task:
    """Two streams and where their fusion goes."""

    name: str
    ir: Any
    """a stream as `open_source` takes it; likewise ``vis``"""
    vis: Any
    out: Path | str
    """a file or folder; "-" or an address as text"""


@dataclass(frozen=True)
class TaskResult:
    """The report of a task, or the error that ended it."""

    task: Task
    report: VideoReport | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether every frame was read, fused and written."""
        return self.report is not None and self.report.ok

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary that JSON holds: the report, or the error's text."""
        if self.report is None:
            return {"name": self.task.name, "ok": False, "error": str(self.error)}
        found = asdict(self.report) | {
            "name": self.task.name,
            "ok": self.ok,
            "fps": self.report.fps,
        }
        return json.loads(json.dumps(found, default=str))


def plan(
    ir: str | os.PathLike[str],
    vis: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    codec: str | None = None,
) -> list[Task]:
    """List the tasks that ``IR VIS -o OUT`` or ``ROOT -o OUT`` means.

    Args:
        ir: A stream, or without ``vis`` the folder of a data set: sequences of pictures in a
            layout of ``ddfm_fast.datasets.pairs``, or pairs of videos NAME_T.avi and
            NAME_RGB.avi (also _ir and _vis, _thermal and _visible).
        vis: The other stream, or None.
        out: The output of one sequence; the folder of several, which go to OUT/NAME.
        codec: As in `open_sink`; decides the suffix in a folder (default ``.mp4``).

    Raises:
        ValueError: Nothing is found, or ``out`` is a file for several sequences.
    """
    if vis is not None:
        return [Task("video", ir, vis, str(out)) if is_stream(out) else _one(ir, vis, Path(out))]
    root = Path(ir)
    if not is_folder(root):
        raise ValueError(
            f"IR is {ir} and VIS is missing; give two streams, or the folder of a data set"
        )
    found = _video_pairs(root) or _sequences(root)
    if is_stream(out):
        if len(found) > 1:
            raise ValueError(f"--out is {out}, a stream, for {len(found)} sequences; give a folder")
        ((name, (first, second)),) = found.items()
        return [Task(name, first, second, str(out))]
    out = Path(out)
    if len(found) == 1 and out.suffix:
        ((name, (first, second)),) = found.items()
        return [Task(name, first, second, out)]
    if out.suffix:
        raise ValueError(
            f"--out is {out}, a file, for {len(found)} sequences; give a folder (no suffix)"
        )
    suffix = {"ffv1": ".mkv", "png": ""}.get(codec or "", ".mp4")
    return [
        Task(name, first, second, out / f"{name}{suffix}")
        for name, (first, second) in found.items()
    ]


def _one(ir: Any, vis: Any, out: Path) -> Task:
    return Task(out.stem, ir, vis, out)


def _video_pairs(root: Path) -> dict[str, tuple[Any, Any]]:
    """Pairs of videos at any depth, as INO keeps them: a folder for each."""
    files = {
        p.relative_to(root).with_suffix("").as_posix(): p
        for p in sorted(root.rglob("*"))
        if p.suffix.lower() in VIDEO_SUFFIXES
    }
    return {
        stem.removesuffix(first): (str(path), str(files[partner]))
        for first, second in PAIRED_NAMES
        for stem, path in files.items()
        if stem.endswith(first) and (partner := stem.removesuffix(first) + second) in files
    }


def _sequences(root: Path) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for item in find_pairs(root, check_sizes=False):
        name = item.name.rpartition("/")[0] or root.resolve().name
        ir, vis = found.setdefault(name, ([], []))
        ir.append(item.ir)
        vis.append(item.vis)
    return found


def _fault(result: TaskResult) -> str:
    if result.report is None:
        return str(result.error)
    return result.report.stopped or f"{result.report.bad_count} bad frames"


def run_tasks(
    tasks: Sequence[Task],
    *,
    fuser: FrameFuser | None = None,
    on_result: Callable[[TaskResult], None] | None = None,
    **options: Unpack[VideoOptions],
) -> list[TaskResult]:
    """Fuse every task; one that fails does not stop the others.

    Ctrl-C ends the task in progress, whose frames so far are kept, and no other is started.

    Args:
        tasks: As `plan` lists them.
        fuser: As in `fuse_video`.
        on_result: Called with each result as soon as its task has ended. What it raises is
            raised here and ends the run.
        **options: Of `fuse_video`, among them ``preset`` and ``on_bad``.

    Returns:
        A result for each task, in order; fewer after Ctrl-C.

    Raises:
        TypeError: An option that there is not.
    """
    check_names(options, VIDEO_DEFAULTS)
    fuser = Fuser() if fuser is None else fuser
    results = []
    inputs = Inputs(source for task in tasks for source in (task.ir, task.vis))
    for task in tasks:
        try:
            inputs.refuse(task.out)
            report = fuse_video(task.ir, task.vis, task.out, fuser=fuser, **options)
            result = TaskResult(task, report)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            result = TaskResult(task, error=error)
        results.append(result)
        reached(str(task.out), "fused" if result.ok else _fault(result), result.as_dict())
        if on_result is not None:
            on_result(result)
        if result.report is not None and result.report.stopped == INTERRUPTED:
            break
    return results
