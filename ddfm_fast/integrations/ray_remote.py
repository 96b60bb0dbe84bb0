"""Pairs behind URLs fused by actors of Ray, which fetch them, and put pictures and history.

An actor works on two calls at a time, in threads: while it fuses the pairs of one, it fetches those
of the next, or puts those of the last.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..api import Fuser
from ..datasets.items import PairItem
from ..datasets.remote_batch import Portions, RemoteRun
from ..datasets.remote_history import PartWriter
from ..datasets.results import DONE, FAILED, PairResult
from ..storage.staging import Stage
from ..storage.urls import as_url
from .ray import use_own_threads
from .ray_pool import (
    VERSION,
    Cluster,
    PacedPool,
    as_given,
    check_shared,
    check_version,
    sentences,
)


class Asked(NamedTuple):
    """A pair on its way to an actor: URLs, or paths that mean the same in every process."""

    name: str
    ir: str
    vis: str
    inputs: list[str]
    """the states of both, as the process that asks has listed them"""


class RemoteWorker:
    """What an actor runs; the fuser is built by the first call, so that its errors arrive."""

    AT_ONCE = 2
    """calls that it works on"""

    def __init__(
        self,
        fuser: Fuser,
        writer: PartWriter,
        suffix: str,
        version: tuple[Any, ...],
        options: dict[str, Any],
    ):
        self.fuser, self.writer, self.suffix, self.options = fuser, writer, suffix, options
        self.version = version
        self._turn = threading.Lock()
        use_own_threads()

    def ready(self) -> int:
        """Build the fuser; the most pairs at once."""
        check_version(self.version)
        return self.fuser.batch_size

    def fuse(self, asked: list[Asked]) -> tuple[list[PairResult], list[str], str | None]:
        """Fetch pairs, fuse and put them, and their part of the history.

        Returns:
            What became of each, sentences to say, and why a disk takes no more.

        Raises:
            StorageError: No object can be written there, for want of rights or a bucket.
        """
        said: list[str] = []
        with Stage() as stage:
            items = [
                PairItem(one.name, _local(stage, one.ir), _local(stage, one.vis)) for one in asked
            ]
            failures = stage.fill(path for item in items for path in (item.ir, item.vis))
            turn = self._take_turn(said)
            portions = Portions(stage, self.writer, self.suffix, self.fuser, self.options, turn)
            results = portions.fuse(items, failures, {one.name: one.inputs for one in asked})
            text = [stage.text(sentence) for sentence in said + portions.said]
        return results, text, portions.stopped

    @contextmanager
    def _take_turn(self, said: list[str]) -> Iterator[None]:
        """Fuse alone, as warnings are caught for a whole process; add them to ``said``."""
        with self._turn, sentences() as found:
            yield
        said += found


def _local(stage: Stage, place: str) -> Path:
    return stage.file(place) if as_url(place) else Path(place)


def work_remote(cluster: Cluster, run: RemoteRun, items: list[PairItem]) -> None:
    """Have pairs fused and put by the actors of a cluster.

    Raises:
        ValueError: A place that only this process has; actors that end before they give anything.
        StorageError: No object can be written there, for want of rights or a bucket.
    """
    url, suffix = run.history.url, run.history.suffix
    asked = {item.name: _asked(run, item) for item in items}
    check_shared([url, *(place for one in asked.values() for place in (one.ir, one.vis))])
    pool = _Remotes(
        cluster,
        lambda: cluster.make(
            RemoteWorker, run.portions.fuser, run.history.writer, suffix, VERSION,
            run.portions.options, at_once=RemoteWorker.AT_ONCE,
        ),
        lambda handle, some: handle.fuse.remote([asked[item.name] for item in some]),
    )  # fmt: skip
    pool.remote = run
    pool.run(iter(items), len(items))


def _asked(run: RemoteRun, item: PairItem) -> Asked:
    ir, vis = (_place(run, path) for path in (item.ir, item.vis))
    return Asked(item.name, ir, vis, run.inputs[item.name])


def _place(run: RemoteRun, path: Path) -> str:
    place = run.stage.url_of(path)
    return place if as_url(place) else os.path.abspath(path)


class _Remotes(PacedPool):
    what = "pairs"
    remote: RemoteRun

    def stopped(self) -> bool:
        return bool(self.remote.stopped)

    def give_up(self, piece: PairItem, why: str) -> None:
        self.remote.record(PairResult(piece.name, FAILED, error=f"{why} pair; is memory short?"))

    def take(self, pieces: list[PairItem], found: Any, seconds: float) -> None:
        results, said, stopped = found
        self.keep_pace(seconds / len(pieces))
        for sentence in said:
            self.remote.say_once(sentence)
        if stopped:
            self.remote.stopped = stopped
        items = {item.name: item for item in pieces}
        self.remote.take([_as_here(items[one.name], one) for one in results])


def _as_here(item: PairItem, result: PairResult) -> PairResult:
    """Return a worker's result as this process sees it."""
    local = (result.output or "").removeprefix("file://")
    if result.status == DONE and local != result.output and not os.path.exists(local):
        error = f"{local} was written by a worker and is not here; --out must be a folder "
        return PairResult(item.name, FAILED, error=f"{error}that all nodes share, or a URL")
    if result.error:
        text = as_given(result.error, (f for f in item.files if not as_url(f)))
        return replace(result, error=text)
    return result
