"""The pairs of a batch fused by actors of Ray; the history stays with the process that asks.

Actors read, fuse and write to the staging folder of the output, which every node shares. What they
report is committed here (:mod:`.ray_pool`): what was written stays, whatever is lost.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..api import Fuser
from ..datasets.batch import STAGING, Run
from ..datasets.history import Inputs, describe_settings
from ..datasets.items import PairItem
from ..datasets.remote_batch import RemoteRun
from ..datasets.results import DONE, FAILED, PairResult
from ..datasets.targets import Targets
from ..images.doubts import warn
from .ray import use_own_threads
from .ray_pool import VERSION, Cluster, PacedPool, as_given, check_version, sentences
from .ray_remote import work_remote


class Staged(NamedTuple):
    """What became of a pair in an actor."""

    result: PairResult
    inputs: Inputs
    path: Path | None
    """the picture; None of a failed pair"""
    facts: dict[str, Any]


class StagedPictures:
    """The ledger of an actor: keeps what was staged, for the process that has the history."""

    def __init__(self, out: Path):
        self.out = out
        self.kept: dict[str, tuple[Inputs, Path, dict[str, Any]]] = {}

    def commit(
        self, item: PairItem, inputs: Inputs, staged: Path, target: Path, facts: dict[str, Any]
    ) -> None:
        """Keep a picture under another name."""
        kept = staged.with_name(f"{secrets.token_hex(8)}.kept{target.suffix}")
        os.replace(staged, kept)
        self.kept[item.name] = inputs, kept, facts


class Worker:
    """What an actor runs; the fuser is built by the first call, so that its errors arrive."""

    def __init__(self, fuser: Fuser, out: Path, suffix: str, version: tuple, options: dict):
        self.fuser, self.out, self.suffix, self.options = fuser, out, suffix, options
        self.version = version
        use_own_threads()

    def ready(self) -> int:
        """Build the fuser; the most pairs at once."""
        check_version(self.version)
        return self.fuser.batch_size

    def settings(self) -> dict[str, Any]:
        """Describe the fuser as it is here."""
        return describe_settings(self.fuser, self.suffix)

    def fuse(
        self, items: list[PairItem], told: set[str]
    ) -> tuple[list[Staged], Any, set[str], Any]:
        """Fuse pairs into the staging folder.

        Args:
            items: The pairs.
            told: Kinds of warnings that the run has said.

        Returns:
            What became of each; sentences to say, and all kinds said; why a disk takes no more.
        """
        ledger = StagedPictures(self.out)
        targets = Targets(self.out, self.suffix)
        with sentences() as said:
            own: dict[str, Any] = {"redo": True, "progress": False, "on_error": None}
            run = Run(ledger, self.fuser, targets, **own, **self.options)
            run.told |= told
            try:
                run.work(items)
            finally:
                run.close()
        nothing: tuple[Inputs, None, dict[str, Any]] = Inputs([], []), None, {}
        staged = []
        for item in items:
            result = run.results.get(item.name)
            if not isinstance(result, PairResult):
                result = PairResult(item.name)
            staged.append(Staged(result, *ledger.kept.get(item.name, nothing)))
        return staged, said, run.told, run.stopped


class RayPairs(Cluster):
    """What fuses the pairs of ``run_batch(…, elsewhere=…)`` in a cluster."""

    def settings(self, fuser: Fuser, suffix: str) -> dict[str, Any]:
        """See :class:`.datasets.batch.Elsewhere`: of a worker, where that has another device."""
        if not self.num_gpus or fuser.device.type == "cuda":
            return describe_settings(fuser, suffix)
        actor = self.make(Worker, fuser, Path(), suffix, VERSION, {})
        try:
            return self.get(actor.settings.remote())
        finally:
            self.ray.kill(actor)

    def work(self, run: Run, items: list[PairItem]) -> None:
        """See :class:`.datasets.batch.Elsewhere`."""
        suffix = run.targets.suffix
        (run.history.out / STAGING).mkdir(parents=True, exist_ok=True)
        names = "workers", "max_pixels", "levels", "output", "aligner"
        options = {**{name: getattr(run, name) for name in names}, "batch_size": None}
        out = Path(os.path.abspath(run.history.out))
        pool = _Pairs(
            self,
            lambda: self.make(Worker, run.fuser, out, suffix, VERSION, options),
            lambda handle, some: handle.fuse.remote([*map(_absolute, some)], run.told),
        )
        pool.run_ = run
        pool.run(run.by_size(items), len(items))

    def work_remote(self, run: RemoteRun, items: list[PairItem]) -> None:
        """See :class:`.datasets.remote_batch.Elsewhere`."""
        work_remote(self, run, items)


class _Pairs(PacedPool):
    what = "pairs"
    run_: Run

    def stopped(self) -> bool:
        return bool(self.run_.stopped)

    def take(self, pieces: list[PairItem], found: Any, seconds: float) -> None:
        staged, said, told, stopped = found
        run = self.run_
        self.keep_pace(seconds / len(pieces))
        run.told |= told
        for sentence in said:
            warn(sentence)
        if stopped:
            run.stopped = stopped
        for item, one in zip(pieces, staged, strict=True):
            result = self._commit(item, one) if one.result.status == DONE else one.result
            if result.error:
                result = replace(result, error=as_given(result.error, item.files))
            if result.status in (DONE, FAILED):
                run.record(result)

    def give_up(self, piece: PairItem, why: str) -> None:
        self.run_.record(PairResult(piece.name, FAILED, error=f"{why} pair; is memory short?"))

    def _commit(self, item: PairItem, done: Staged) -> PairResult:
        if done.path is None or not done.path.is_file():
            why = f"{done.path} was written by a worker and is not here"
            error = f"{why}; --out must be a folder that all nodes share"
            return PairResult(item.name, FAILED, error=error)
        here = self.run_.history.out / STAGING / done.path.name
        return self.run_.finish(item, done.inputs, here, lambda: done.facts)


def _absolute(item: PairItem) -> PairItem:
    """Return the pair by paths that mean the same in every process."""
    return item.with_files(*map(os.path.abspath, item.files))
