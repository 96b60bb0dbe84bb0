"""Pairs behind URLs fused by actors of Ray, which fetch and put them; the history stays here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..api import Fuser
from ..datasets.items import PairItem
from ..datasets.remote_batch import Given, Portions, RemoteRun
from ..datasets.results import DONE, FAILED, PairResult
from ..images.doubts import warn
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


class RemoteWorker:
    """What an actor runs; the fuser is built by the first call, so that its errors arrive."""

    def __init__(
        self, fuser: Fuser, url: str, suffix: str, version: tuple[Any, ...], options: dict[str, Any]
    ):
        self.fuser, self.url, self.suffix, self.options = fuser, url, suffix, options
        self.version = version
        use_own_threads()

    def ready(self) -> int:
        """Build the fuser; the most pairs at once."""
        check_version(self.version)
        return self.fuser.batch_size

    def fuse(self, asked: list[Asked]) -> tuple[list[Given], list[str], str | None]:
        """Fetch pairs, fuse and put them.

        Returns:
            What became of each, sentences to say, and why a disk takes no more.

        Raises:
            StorageError: No object can be written there, for want of rights or a bucket.
        """
        with sentences() as said, Stage() as stage:
            items = [
                PairItem(one.name, _local(stage, one.ir), _local(stage, one.vis)) for one in asked
            ]
            failures = stage.fill(path for item in items for path in (item.ir, item.vis))
            portions = Portions(stage, self.url, self.suffix, self.fuser, self.options)
            given = portions.fuse(items, failures)
            text = [stage.text(sentence) for sentence in said]
        return given, text, portions.stopped


def _local(stage: Stage, place: str) -> Path:
    return stage.file(place) if as_url(place) else Path(place)


def work_remote(cluster: Cluster, run: RemoteRun, items: list[PairItem]) -> None:
    """Have pairs fused and put by the actors of a cluster.

    Raises:
        ValueError: A place that only this process has; actors that end before they give anything.
        StorageError: No object can be written there, for want of rights or a bucket.
    """
    url, suffix = run.history.url, run.history.suffix
    asked = {item.name: _asked(run.stage, item) for item in items}
    check_shared([url, *(place for one in asked.values() for place in (one.ir, one.vis))])
    pool = _Remotes(
        cluster,
        lambda: cluster.make(
            RemoteWorker, run.portions.fuser, url, suffix, VERSION, run.portions.options
        ),
        lambda handle, some: handle.fuse.remote([asked[item.name] for item in some]),
    )
    pool.remote = run
    pool.run(iter(items), len(items))


def _asked(stage: Stage, item: PairItem) -> Asked:
    places = []
    for path in (item.ir, item.vis):
        place = stage.url_of(path)
        places.append(place if as_url(place) else os.path.abspath(path))
    return Asked(item.name, *places)


class _Remotes(PacedPool):
    what = "pairs"
    remote: RemoteRun

    def stopped(self) -> bool:
        return bool(self.remote.stopped)

    def give_up(self, piece: PairItem, why: str) -> None:
        self.remote.record(PairResult(piece.name, FAILED, error=f"{why} pair; is memory short?"))

    def take(self, pieces: list[PairItem], found: Any, seconds: float) -> None:
        given, said, stopped = found
        self.keep_pace(seconds / len(pieces))
        for sentence in said:
            self.say_once(sentence)
        if stopped:
            self.remote.stopped = stopped
        items = {item.name: item for item in pieces}
        self.remote.take([self._as_here(items[one.result.name], one) for one in given])

    def say_once(self, sentence: str) -> None:
        """Warn of it, unless the run has said so."""
        if sentence not in self.remote.told:
            self.remote.told.add(sentence)
            warn(sentence)

    def _as_here(self, item: PairItem, one: Given) -> Given:
        result = one.result
        if result.error:
            text = as_given(result.error, (f for f in item.files if not as_url(f)))
            result = replace(result, error=text)
        local = (result.output or "").removeprefix("file://")
        if result.status == DONE and local != result.output and not os.path.exists(local):
            error = f"{local} was written by a worker and is not here; --out must be a folder "
            return Given(
                PairResult(item.name, FAILED, error=f"{error}that all nodes share, or a URL")
            )
        return Given(result, one.size)
