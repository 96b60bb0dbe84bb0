"""Many videos in one call: which streams a folder means, and the fusion of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Unpack

from ..api import Fuser
from ..datasets.pairs import find_pairs
from ..files.paths import VIDEO_SUFFIXES, ImageFileError, is_file, is_folder, is_picture
from ..options import check_names
from ..runtime.items import reached
from ..storage.objects import existing
from ..storage.staging import Stage
from ..storage.urls import without_password
from .frames import BadFrame, VideoError
from .opening import STDIN
from .outputs import Inputs, new_part
from .pipeline import VIDEO_DEFAULTS, VideoOptions, fuse_video
from .report import INTERRUPTED, VideoReport
from .staged import (
    Staged,
    below,
    check_output,
    named_warnings,
    object_of,
    objects_of,
    suffix_of,
)
from .streams import is_stream
from .temporal import FrameFuser

PAIRED_NAMES = (("_T", "_RGB"), ("_ir", "_vis"), ("_thermal", "_visible"))
"""endings of the infrared and the visible file of a pair of videos"""


@dataclass(frozen=True)
class Task:
    """Two streams, and the output of their fusion."""

    name: str
    ir: Any
    """a stream as `open_source` takes it, or URLs of objects (`staged`); like ``vis``"""
    vis: Any
    out: Path | str
    """a file or folder; "-", an address or the URL of an object as text"""


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
        """Return the result as JSON types: the report, or the error's text.

        Passwords of URLs are left out.
        """
        found: dict[str, Any] = {"name": self.task.name, "ok": self.ok}
        if self.skipped:
            found |= {"skipped": True, "out": str(self.task.out)}
        elif self.report is None:
            found |= {"error": str(self.error)}
        else:
            found = asdict(self.report) | found | {"fps": self.report.fps}
        return json.loads(without_password(json.dumps(found, default=str)))


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
            NAME_RGB.avi (also _ir and _vis, _thermal and _visible). A folder may be a prefix of
            objects, which is listed; nothing is fetched.
        vis: The other stream, or None.
        out: The output of one sequence; the folder or prefix of several, which go to OUT/NAME.
        codec: As in `open_sink`; decides the suffix in a folder (default ``.mp4``).

    Raises:
        ValueError: Nothing is found, or ``out`` is a file for several sequences.
        StorageError: A prefix cannot be listed, or objects cannot be written there.
    """
    if ir == vis == STDIN:
        raise ValueError("IR and VIS are both -; give one of them as a file or a named pipe")
    url = object_of(out)
    streamed = url is None and is_stream(out)
    place: Path | str = url or (str(out) if streamed else Path(out))
    suffix = suffix_of(out)
    if vis is not None:
        name = "video" if streamed else Path(place).stem
        return _checked([Task(name, object_of(ir) or ir, object_of(vis) or vis, place)])
    found = _found(ir)
    if streamed and len(found) > 1:
        raise ValueError(f"--out is {out}, a stream, for {len(found)} sequences; give a folder")
    if streamed or (len(found) == 1 and suffix):
        ((name, (first, second)),) = found.items()
        return _checked([Task(name, first, second, place)])
    if suffix:
        raise ValueError(
            f"--out is {out}, a file, for {len(found)} sequences; give a folder (no suffix)"
        )
    suffix = {"ffv1": ".mkv", "png": ""}.get(codec or "", ".mp4")
    return _checked(
        [
            Task(name, first, second, below(place, f"{name}{suffix}"))
            for name, (first, second) in found.items()
        ]
    )


def _checked(tasks: list[Task]) -> list[Task]:
    """Return the tasks; ValueError for an object that cannot hold a video."""
    for task in tasks:
        if (url := object_of(task.out)) is not None:
            check_output(url)
    return tasks


def _found(ir: str | os.PathLike[str]) -> dict[str, tuple[Any, Any]]:
    """Return the streams of a data set, by name: paths, or URLs of what a listing names."""
    if (url := object_of(ir)) is None:
        root = Path(ir)
        if not is_folder(root):
            raise ValueError(
                f"IR is {ir} and VIS is missing; give two streams, or the folder of a data set"
            )
        return _video_pairs(root) or _sequences(root)
    with Stage() as stage, stage.named_errors():
        root = stage.source(url, _is_wanted)
        if not is_folder(root):
            raise ValueError(
                f"IR is {url} and VIS is missing; give two streams, or the prefix of a data set"
            )
        pairs = _video_pairs(root) or _sequences(root)
        return {
            name: (_urls(stage, first), _urls(stage, second))
            for name, (first, second) in pairs.items()
        }


def _is_wanted(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES or is_picture(file)


def _urls(stage: Stage, source: Any) -> Any:
    if isinstance(source, list):
        return [stage.url_of(path) for path in source]
    return stage.url_of(Path(source))


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
        skip_existing: Skip tasks whose file or object exists: it has its name only when it is
            complete. An output that Ctrl-C cuts short is then called NAME.part-….SUFFIX.
        elsewhere: Runs the tasks in other processes; None for this process.
        **options: Options of `fuse_video`, among them ``preset`` and ``on_bad``.

    Returns:
        A result for each task, in order; fewer after Ctrl-C.

    Raises:
        TypeError: An option is unknown.
        ValueError: ``skip_existing`` is given with outputs that are not files.
        StorageError: Outputs cannot be listed; or no object can be written there, for lack of
            rights or a bucket.
        TasksInterrupted: Ctrl-C while the tasks run ``elsewhere``; no other is started.
    """
    check_names(options, VIDEO_DEFAULTS)
    fuser = Fuser() if fuser is None else fuser
    found: dict[int, TaskResult] = {}
    places = {id(task): n for n, task in enumerate(tasks)}

    def tell(result: TaskResult) -> None:
        found[places[id(result.task)]] = result
        name, what = (without_password(text) for text in (str(result.task.out), _outcome(result)))
        reached(name, what, result.as_dict())
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
    inputs, taken = _inputs(tasks)
    there = outputs_there(tasks) if skip_existing else set()
    todo = []
    for task in tasks:
        try:
            if object_of(task.out) is None:
                inputs.refuse(task.out)
            elif task.out in taken:
                raise VideoError(f"output {task.out} would replace an input; choose another --out")
            if skip_existing and _is_there(task.out, there):
                tell(TaskResult(task, skipped=True))
            else:
                todo.append(task)
        except (VideoError, ImageFileError) as error:
            tell(TaskResult(task, error=error))
    return todo


def _inputs(tasks: Sequence[Task]) -> tuple[Inputs, set[str]]:
    """Return what streams are read from: files, and URLs of objects."""
    sources = [source for task in tasks for source in (task.ir, task.vis)]
    urls = {url for source in sources for url in objects_of(source)}
    return Inputs(source for source in sources if not objects_of(source)), urls


def outputs_there(tasks: Sequence[Task]) -> set[str]:
    """Return those outputs of tasks that are objects, and there: by a listing if they are many.

    Raises:
        StorageError: It cannot be found out.
    """
    return existing([url for task in tasks if (url := object_of(task.out)) is not None])


def _is_there(out: Path | str, there: set[str]) -> bool:
    if object_of(out) is not None:
        return out in there
    if is_stream(out) or not Path(out).suffix:
        raise ValueError(
            f"out is {out} and what exists is to be skipped; a folder or a stream does not show "
            "whether it is complete: give a video file, or leave out skip_existing "
            "(command line: --skip-existing)"
        )
    return is_file(out)


def run_task(
    task: Task, fuser: FrameFuser, options: VideoOptions, *, aside: bool = False
) -> TaskResult:
    """Fuse a task; an error becomes its result.

    Sources that are objects are fetched, and the output is put if it is to be an object.

    Args:
        task: The task.
        fuser: As in `fuse_video`.
        options: Of `fuse_video`.
        aside: An output that Ctrl-C cuts short does not get its name.

    Raises:
        StorageError: No object can be written there, for lack of rights or a bucket.
    """
    if not any(map(objects_of, (task.ir, task.vis, task.out))):
        return _run_here(task, fuser, options, aside)
    with Stage() as stage:
        try:
            staged = Staged(stage, task.ir, task.vis, task.out)
            staged.fetch()
        except (ValueError, ImportError, OSError) as error:
            return TaskResult(task, error=error)
        here = replace(task, ir=staged.ir, vis=staged.vis, out=staged.out)
        with named_warnings(staged.text):
            result = _run_here(here, fuser, _named(options, staged), aside)
        return _given_back(task, result, staged)


def _run_here(task: Task, fuser: FrameFuser, options: VideoOptions, aside: bool) -> TaskResult:
    try:
        report = fuse_video(task.ir, task.vis, task.out, fuser=fuser, **options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        return TaskResult(task, error=error)
    if aside and report.stopped == INTERRUPTED and is_file(task.out):
        report.out = new_part(Path(task.out))
        os.replace(task.out, report.out)
    return TaskResult(task, report)


def _named(options: VideoOptions, staged: Staged) -> VideoOptions:
    """Return the options with an ``on_bad`` that is told URLs."""
    on_bad = options.get("on_bad")
    if on_bad is None:
        return options
    tell = on_bad
    return {**options, "on_bad": lambda bad: tell(_renamed(bad, staged))}


def _renamed(bad: BadFrame, staged: Staged) -> BadFrame:
    return bad._replace(stream=staged.text(bad.stream), reason=staged.text(bad.reason))


def _given_back(task: Task, result: TaskResult, staged: Staged) -> TaskResult:
    """Put what was written; return the result of the task that names URLs."""
    report = result.report
    error = None if result.error is None else staged.named(result.error)
    try:
        staged.put()
    except (ValueError, ImportError, OSError) as trouble:
        if getattr(trouble, "is_common", False):
            raise
        if error is not None:
            trouble = VideoError(f"{error}; and it cannot be put there: {trouble}")
        return TaskResult(task, error=trouble)
    if report is not None:
        report.out = staged.given(report.out)
        report.stopped = report.stopped and staged.text(report.stopped)
        report.bad = [_renamed(bad, staged) for bad in report.bad]
    return TaskResult(task, report, error)


def _work(
    tasks: Sequence[Task],
    fuser: FrameFuser,
    options: VideoOptions,
    tell: Callable[[TaskResult], None],
    aside: bool,
) -> None:
    """Run the tasks here; ``aside``: an output that Ctrl-C cuts short does not get its name."""
    for task in tasks:
        result = run_task(task, fuser, options, aside=aside)
        tell(result)
        if result.report is not None and result.report.stopped == INTERRUPTED:
            return
