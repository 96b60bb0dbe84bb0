"""Many videos in one call: which streams a folder means, and the fusion of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Unpack

from ..api import Fuser
from ..datasets.pairs import find_pairs
from ..files.paths import VIDEO_SUFFIXES, ImageFileError, is_file, is_folder
from ..options import check_names
from ..runtime.items import reached
from .frames import VideoError
from .opening import STDIN
from .outputs import Inputs, new_part
from .pipeline import VIDEO_DEFAULTS, VideoOptions, fuse_video
from .report import INTERRUPTED, VideoReport
from .streams import is_stream
from .temporal import FrameFuser

PAIRED_NAMES = (("_T", "_RGB"), ("_ir", "_vis"), ("_thermal", "_visible"))
"""endings of the infrared and the visible file of a pair of videos"""


@dataclass(frozen=True)
class Task:
    """Two streams, and the output of their fusion."""

    name: str
    ir: Any
    """a stream as `open_source` takes it, like ``vis``"""
    vis: Any
    out: Path | str
    """a file or folder; "-" or an address as text"""


@dataclass(frozen=True)
class TaskResult:
    """The report of a task, or the error that ended it."""

    task: Task
    report: VideoReport | None = None
    error: Exception | None = None
    skipped: bool = False
    """whether its output already existed"""

    @property
    def ok(self) -> bool:
        """Whether every frame was read, fused and written; if skipped, by an earlier run."""
        return self.skipped or (self.report is not None and self.report.ok)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON types: the report, or the error's text."""
        if self.skipped:
            return {"name": self.task.name, "ok": True, "skipped": True, "out": str(self.task.out)}
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
    if ir == vis == STDIN:
        raise ValueError("IR and VIS are both -; give one of them as a file or a named pipe")
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
    """Find pairs of videos at any depth, as INO stores them: one folder for each."""
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


class TasksInterrupted(KeyboardInterrupt):
    """Ctrl-C while tasks ran elsewhere, after those in progress have ended: see ``results``."""

    def __init__(self, results: list[TaskResult]):
        super().__init__("the videos were interrupted; rerun with skip_existing to resume")
        self.results = results


class Elsewhere(Protocol):
    """Runs tasks in other processes."""

    def work(
        self,
        tasks: list[Task],
        fuser: FrameFuser,
        options: VideoOptions,
        tell: Callable[[TaskResult], None],
    ) -> None:
        """Run the tasks, in any order, and report each."""


def _outcome(result: TaskResult) -> str:
    """Describe the outcome of a task in a word or a sentence."""
    if result.skipped:
        return "already there"
    if result.ok:
        return "fused"
    if result.report is None:
        return str(result.error)
    return result.report.stopped or f"{result.report.bad_count} bad frames"


def run_tasks(
    tasks: Sequence[Task],
    *,
    fuser: FrameFuser | None = None,
    on_result: Callable[[TaskResult], None] | None = None,
    skip_existing: bool = False,
    elsewhere: Elsewhere | None = None,
    **options: Unpack[VideoOptions],
) -> list[TaskResult]:
    """Fuse every task; one that fails does not stop the others.

    Ctrl-C ends the task in progress and keeps its frames so far; no other task is started.

    Args:
        tasks: As `plan` lists them.
        fuser: As in `fuse_video`.
        on_result: Called with each result as soon as its task has ended. What it raises is
            raised here and ends the run.
        skip_existing: Skip tasks whose file exists: it has its name only when it is complete.
            An output that Ctrl-C cuts short is then called NAME.part-….SUFFIX.
        elsewhere: Runs the tasks in other processes; None for this process.
        **options: Options of `fuse_video`, among them ``preset`` and ``on_bad``.

    Returns:
        A result for each task, in order; fewer after Ctrl-C.

    Raises:
        TypeError: An option is unknown.
        ValueError: ``skip_existing`` is given with outputs that are not files.
        TasksInterrupted: Ctrl-C while the tasks run ``elsewhere``; no other is started.
    """
    check_names(options, VIDEO_DEFAULTS)
    fuser = Fuser() if fuser is None else fuser
    found: dict[int, TaskResult] = {}
    places = {id(task): n for n, task in enumerate(tasks)}

    def tell(result: TaskResult) -> None:
        found[places[id(result.task)]] = result
        reached(str(result.task.out), _outcome(result), result.as_dict())
        if on_result is not None:
            on_result(result)

    try:
        todo = _todo(tasks, skip_existing, tell)
        if elsewhere is not None:
            elsewhere.work(todo, fuser, options, tell)
        else:
            _work(todo, fuser, options, tell, skip_existing)
    except KeyboardInterrupt:
        if elsewhere is None:
            raise
        raise TasksInterrupted([found[n] for n in sorted(found)]) from None
    return [found[n] for n in sorted(found)]


def _todo(
    tasks: Sequence[Task], skip_existing: bool, tell: Callable[[TaskResult], None]
) -> list[Task]:
    """Report tasks that are already done or cannot be done; return the others."""
    inputs = Inputs(source for task in tasks for source in (task.ir, task.vis))
    todo = []
    for task in tasks:
        try:
            inputs.refuse(task.out)
            if skip_existing and _is_there(task.out):
                tell(TaskResult(task, skipped=True))
            else:
                todo.append(task)
        except (VideoError, ImageFileError) as error:
            tell(TaskResult(task, error=error))
    return todo


def _is_there(out: Path | str) -> bool:
    if is_stream(out) or not Path(out).suffix:
        raise ValueError(
            f"out is {out} and what exists is to be skipped; a folder or a stream does not show "
            "whether it is complete: give a video file, or leave out skip_existing "
            "(command line: --skip-existing)"
        )
    return is_file(out)


def run_task(task: Task, fuser: FrameFuser, options: VideoOptions) -> TaskResult:
    """Fuse a task; an error becomes its result."""
    try:
        return TaskResult(task, fuse_video(task.ir, task.vis, task.out, fuser=fuser, **options))
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        return TaskResult(task, error=error)


def _work(
    tasks: Sequence[Task],
    fuser: FrameFuser,
    options: VideoOptions,
    tell: Callable[[TaskResult], None],
    aside: bool,
) -> None:
    """Run the tasks here; ``aside``: an output that Ctrl-C cuts short does not get its name."""
    for task in tasks:
        result = run_task(task, fuser, options)
        cut = result.report is not None and result.report.stopped == INTERRUPTED
        if cut and aside and result.report is not None and is_file(task.out):
            result.report.out = new_part(Path(task.out))
            os.replace(task.out, result.report.out)
        tell(result)
        if cut:
            return
