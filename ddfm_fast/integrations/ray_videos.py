"""Videos fused by actors of Ray, each as a whole by one of them.

A video has its name only when it is complete (:mod:`..video.outputs`), so a worker that is lost
leaves a part of another name, and its video is done again by another worker. Where places are URLs
of objects, the worker fetches and puts them (:mod:`..video.staged`): no video passes through here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from ..images.doubts import warn
from ..video.opening import STDIN
from ..video.outputs import OutputBusy
from ..video.pipeline import VideoOptions
from ..video.staged import objects_of
from ..video.streams import is_stream
from ..video.tasks import Task, TaskResult, run_task
from ..video.temporal import FrameFuser
from .ray import use_own_threads
from .ray_pool import (
    VERSION,
    Cluster,
    Pool,
    as_given,
    check_shared,
    check_version,
    sentences,
)

_STAY = ("on_bad", "progress")
"""options that are for the process that asks"""
LET_GO = 30.0
"""seconds for which a video waits for a lock: a worker of a lost node, or of a run that was killed,
holds it until it notices"""


class VideoWorker:
    """What an actor runs; the fuser is built by the first call, so that its errors arrive."""

    def __init__(self, fuser: FrameFuser, version: tuple[Any, ...]):
        self.fuser, self.version = fuser, version
        use_own_threads()
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks

    def ready(self) -> int:
        """Build the fuser; an actor has one video at a time."""
        check_version(self.version)
        assert self.fuser.prior is not None
        return 1

    def fuse(self, task: Task, options: VideoOptions) -> tuple[TaskResult, list[str]]:
        """Fuse a video; what became of it, and sentences to say."""
        with sentences() as said:
            result = run_task(task, self.fuser, options)
            until = time.monotonic() + LET_GO
            while isinstance(result.error, OutputBusy) and time.monotonic() < until:
                time.sleep(0.5)
                result = run_task(task, self.fuser, options)
        return replace(result, error=_sendable(result.error)), said


class RayVideos(Cluster):
    """What fuses the videos of ``run_tasks(…, elsewhere=…)`` in a cluster."""

    def work(
        self,
        tasks: list[Task],
        fuser: FrameFuser,
        options: VideoOptions,
        tell: Callable[[TaskResult], None],
    ) -> None:
        """See :class:`..video.tasks.Elsewhere`.

        Raises:
            ValueError: An output or an option that only this process can have.
        """
        if options.get("preview"):
            raise ValueError("preview shows only frames of this process; leave it or Ray out")
        for task in tasks:
            places = [url for one in (task.ir, task.vis, task.out) for url in objects_of(one)]
            check_shared(places)
            if is_stream(task.out) and not objects_of(task.out):
                raise ValueError(f"out is {task.out}, a stream; give a file, or leave out Ray")
            if any(isinstance(one, str) and one == STDIN for one in (task.ir, task.vis)):
                raise ValueError("a source is -, which only this process has; leave out Ray")
        sent = cast("VideoOptions", {k: v for k, v in options.items() if k not in _STAY})
        pool = _Videos(
            self,
            lambda: self.make(VideoWorker, cast("Any", fuser), VERSION),
            lambda handle, some: handle.fuse.remote(_absolute(some[0]), sent),
        )
        pool.tell, pool.on_bad = tell, options.get("on_bad")
        shown = bool(options.get("progress"))
        with tqdm(total=len(tasks), desc="videos", unit="video", disable=not shown) as pool.bar:
            pool.run(tasks, len(tasks))


class _Videos(Pool):
    what = "videos"
    ahead = 1
    tell: Callable[[TaskResult], None]
    on_bad: Callable[[Any], None] | None
    bar: tqdm

    def take(self, pieces: list[Task], found: Any, seconds: float) -> None:
        del seconds
        result, said = found
        (task,) = pieces
        for sentence in said:
            warn(sentence)
        report = result.report
        is_local = not objects_of(task.out)
        if report is not None and is_local and not os.path.exists(report.out):
            why = f"{report.out} was written by a worker and is not here"
            error = ValueError(f"{why}; --out must be in a folder that all nodes share")
            result = TaskResult(task, error=error)
        elif report is not None:
            if self.on_bad is not None:
                for bad in report.bad:
                    self.on_bad(bad)
            report.out = Path(task.out) if is_local else task.out
        if result.error is not None:
            name_as_given(result.error, task)
        self._tell(replace(result, task=task))

    def give_up(self, piece: Task, why: str) -> None:
        self._tell(TaskResult(piece, error=RuntimeError(f"{why} video; is memory short?")))

    def _tell(self, result: TaskResult) -> None:
        self.bar.update()
        with tqdm.external_write_mode():
            self.tell(result)


def _absolute(task: Task) -> Task:
    """Return the task by paths that mean the same in every process."""
    ir, vis = (_path(source) for source in (task.ir, task.vis))
    out = task.out if objects_of(task.out) else Path(os.path.abspath(task.out))
    return replace(task, ir=ir, vis=vis, out=out)


def _path(source: Any) -> Any:
    if isinstance(source, list | tuple):
        return type(source)(map(_path, source))
    if isinstance(source, str | os.PathLike) and os.path.exists(source):
        return os.path.abspath(source)
    return source


def name_as_given(error: Exception, task: Task) -> None:
    """Have what a worker raised name the task's files as they were given."""
    files = [task.out]
    for source in (task.ir, task.vis):
        files += source if isinstance(source, list | tuple) else [source]
    if len(error.args) == 1 and isinstance(error.args[0], str):
        named = [file for file in files if isinstance(file, str | os.PathLike)]
        error.args = (as_given(error.args[0], named),)


def _sendable(error: Exception | None) -> Exception | None:
    """Return the error as it is, or its text where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # whatever a class makes of its arguments
        return RuntimeError(str(error))
