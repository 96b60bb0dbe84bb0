"""The pairs of a batch fused by actors of Ray; the history stays with the process that asks.

Actors read, fuse and write to the staging folder of the output, which every node shares. What they
report is committed here, so that a worker, a node or this process may be lost at any time: what was
written stays, and only what was not is done again. Actors that are lost are replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..api import Fuser
from ..datasets.batch import DONE, FAILED, STAGING, PairResult, Run
from ..datasets.history import MATHS_VERSION, describe_settings
from ..datasets.pairs import PairItem
from ..images.doubts import DDFMWarning, warn
from ..runtime import environment
from ..runtime.machine import usable_cores
from ..runtime.travel import sent_to
from .ray import use_own_threads

INSTALL = "Ray is missing; install it: pip install 'ddfm_fast[ray]'"
CHUNK_SECONDS, MOST_PAIRS = 2.0, 32
"""work that an actor is handed at once: as much as takes so long, and so many pairs at most"""
ATTEMPTS = 3
"""workers that a pair may take down before it counts as failed"""
MOST_LOST = 5
"""actors in a row that may be lost before any result"""
PATIENCE = 30.0
"""seconds without a free worker after which that is said"""
CPUS_EACH = 4
"""of an actor, where their number is left to choose"""


class Staged(NamedTuple):
    """What became of a pair in an actor."""

    result: PairResult
    inputs: list[str]
    path: Path | None
    """the picture; None of a failed pair"""
    facts: dict[str, Any]


class StagedPictures:
    """The ledger of an actor: keeps what was staged, for the process that has the history."""

    def __init__(self, out: Path):
        self.out = out
        self.kept: dict[str, tuple[list[str], Path, dict[str, Any]]] = {}

    def commit(
        self, item: PairItem, inputs: list[str], staged: Path, target: Path, facts: dict[str, Any]
    ) -> None:
        """Keep a picture under another name."""
        kept = staged.with_name(f"{secrets.token_hex(8)}.kept{target.suffix}")
        os.replace(staged, kept)
        self.kept[item.name] = inputs, kept, facts


class Worker:
    """What an actor runs; the fuser is built by the first call, so that its errors arrive."""

    def __init__(self, fuser: Fuser, out: Path, suffix: str, version: tuple, options: dict):
        self.fuser, self.out, self.suffix, self.options = fuser, out, suffix, options
        if version != (here := (__version__, MATHS_VERSION)):
            self.refusal = f"a worker has ddfm_fast {here[0]}, this process {version[0]}"
        else:
            self.refusal = ""
        use_own_threads()

    def ready(self) -> int:
        """Build the fuser; the most pairs at once."""
        if self.refusal:
            raise ValueError(f"{self.refusal}; install the same version on all nodes")
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
        targets = {item.name: self.out / f"{item.name}{self.suffix}" for item in items}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DDFMWarning)
            own: dict[str, Any] = {"redo": True, "progress": False, "on_error": None}
            run = Run(ledger, self.fuser, targets, **own, **self.options)
            run.told |= told
            try:
                run.work(items)
            finally:
                run.close()
        found = [run.results.get(item.name, PairResult(item.name)) for item in items]
        staged = [Staged(one, *ledger.kept.get(one.name, ([], None, {}))) for one in found]
        said = [str(one.message) for one in caught if issubclass(one.category, DDFMWarning)]
        return staged, said, run.told, run.stopped


@dataclass
class _Actor:
    handle: Any
    size: int = 1
    """most pairs at once, of its fuser"""
    calls: list[Any] = field(default_factory=list)
    ready: bool = False


class RayPairs:
    """What fuses the pairs of ``run_batch(…, elsewhere=…)`` in a cluster.

    Args:
        address: Of a cluster; None starts one on this machine, which ends with the run.
        actors: How many; None for what suits the cluster.
        num_gpus: GPUs of each actor, which may be a part of one; None or 0 for CPUs.

    Raises:
        ImportError: Ray is missing.
        ValueError: Numbers out of range, or a cluster that cannot be had.
    """

    def __init__(
        self, address: str | None = None, actors: int | None = None, num_gpus: float | None = None
    ):
        try:
            import ray
        except ImportError as error:
            raise ImportError(INSTALL) from error
        if actors is not None and actors < 1:
            raise ValueError(f"actors is {actors}; expected at least 1")
        if num_gpus is not None and num_gpus < 0:
            raise ValueError(f"num_gpus is {num_gpus:g}; expected 0 or more")
        self.ray: Any = ray
        self.address, self.actors, self.num_gpus = address, actors, num_gpus or 0
        self.started = False
        self.pace = 0.0

    def __enter__(self) -> RayPairs:
        if not self.ray.is_initialized():
            _connect(self.ray, self.address)
            self.started = True
        try:
            self._plan()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            self.ray.shutdown()
            self.started = False

    def _plan(self) -> None:
        """How many actors, and what each gets."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        if self.num_gpus > gpus:
            raise ValueError(
                f"num_gpus is {self.num_gpus:g} and the cluster has {gpus:g}; leave it out to work "
                "on CPUs, or add nodes with a GPU"
            )
        if not sum(cpus):
            raise ValueError("the cluster has no CPUs; expected nodes that take work")
        if self.actors is None:
            by_gpu = int(gpus / self.num_gpus) if self.num_gpus else 0
            self.actors = by_gpu or max(sum(n > 0 for n in cpus), sum(cpus) // CPUS_EACH)
        self.cpus = cpus_each(cpus, self.actors)

    def settings(self, fuser: Fuser, suffix: str) -> dict[str, Any]:
        """See :class:`.datasets.batch.Elsewhere`: of a worker, where that has another device."""
        if not self.num_gpus or fuser.device.type == "cuda":
            return describe_settings(fuser, suffix)
        actor = self._actor(fuser, Path(), suffix, {})
        try:
            return self._get(actor.settings.remote())
        finally:
            self.ray.kill(actor)

    def work(self, run: Run, items: list[PairItem]) -> None:
        """See :class:`.datasets.batch.Elsewhere`."""
        suffix = next(iter(run.targets.values())).suffix
        (run.history.out / STAGING).mkdir(parents=True, exist_ok=True)
        names = "workers", "max_pixels", "levels", "output", "aligner"
        options = {**{name: getattr(run, name) for name in names}, "batch_size": None}
        out = Path(os.path.abspath(run.history.out))
        pool = _Pool(self, run, lambda: self._actor(run.fuser, out, suffix, options))
        pool.run([_absolute(item) for item in items])

    def _actor(self, fuser: Fuser, out: Path, suffix: str, options: dict[str, Any]) -> Any:
        kind = self.ray.remote(Worker).options(
            num_cpus=self.cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0
        )
        # a device of one's own choice, such as cuda:1, means nothing on other nodes
        there = sent_to(fuser, "cuda" if self.num_gpus else "cpu")
        return kind.remote(there, out, suffix, (__version__, MATHS_VERSION), options)

    def _get(self, call: Any) -> Any:
        """The result of a call; what its code raised is raised as it was."""
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None


class _Pool:
    """Actors at work for one run; all of this in the thread of the run."""

    def __init__(self, cluster: RayPairs, run: Run, make: Any):
        self.cluster, self.ray, self.run_, self.make = cluster, cluster.ray, run, make
        self.queue: deque[list[PairItem]] = deque()
        self.actors: list[_Actor] = []
        self.asked: dict[Any, tuple[_Actor, list[PairItem] | None, float]] = {}
        """calls under way: whose, what for (None: getting ready), since when"""
        self.deaths: Counter[str] = Counter()
        self.lost = 0
        self.pace = 0.0
        """seconds that a pair takes in an actor"""
        self.waited = time.monotonic()

    def run(self, items: list[PairItem]) -> None:
        self.items = deque(items)
        interrupted = None
        try:
            for _ in range(min(self.cluster.actors or 1, len(items))):
                self._start()
            while self.asked and not (self.run_.stopped and not self._busy()):
                try:
                    self._step(draining=interrupted is not None or bool(self.run_.stopped))
                except KeyboardInterrupt as found:
                    if interrupted is not None:
                        raise
                    interrupted = found
                    self._drain()
        finally:
            for actor in self.actors:
                with contextlib.suppress(Exception):
                    self.ray.kill(actor.handle)
        if interrupted is not None:
            raise interrupted

    def _busy(self) -> bool:
        return any(items for _, items, _ in self.asked.values())

    def _drain(self) -> None:
        """Wait for what is under way alone."""
        self.asked = {call: entry for call, entry in self.asked.items() if entry[1]}
        if self.asked:
            print("waiting for the pairs under way; Ctrl-C again leaves them", file=sys.stderr)

    def _start(self) -> None:
        actor = _Actor(self.make())
        self.actors.append(actor)
        self.asked[actor.handle.ready.remote()] = actor, None, time.monotonic()

    def _step(self, *, draining: bool) -> None:
        """Wait for a call, take what it gives, and hand out more."""
        done, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=1.0)
        for call in done:
            actor, items, since = self.asked.pop(call)
            try:
                found = self.cluster._get(call)
            except self.ray.exceptions.RayActorError as error:
                self._replace(actor, items, error, draining)
                continue
            if items is None:
                actor.ready, actor.size = True, found
            else:
                self.lost = 0
                self._take(items, found, time.monotonic() - since)
            self.waited = time.monotonic()
        if not any(actor.ready for actor in self.actors):
            self._say_if_long()
        if not draining:
            for actor in self.actors:
                while actor.ready and self._calls(actor) < 2 and (chunk := self._chunk(actor)):
                    call = actor.handle.fuse.remote(chunk, self.run_.told)
                    self.asked[call] = actor, chunk, time.monotonic()

    def _calls(self, actor: _Actor) -> int:
        return sum(one is actor for one, _, _ in self.asked.values())

    def _chunk(self, actor: _Actor) -> list[PairItem]:
        """The next pairs: as many as take CHUNK_SECONDS, shared out as they get few."""
        if self.queue:
            return self.queue.popleft()
        by_time = int(CHUNK_SECONDS / self.pace) if self.pace else 1
        share = len(self.items) // (2 * len(self.actors))
        size = max(actor.size, min(by_time, share, MOST_PAIRS), 1)
        return [self.items.popleft() for _ in range(min(size, len(self.items)))]

    def _take(self, items: list[PairItem], found: Any, seconds: float) -> None:
        staged, said, told, stopped = found
        run = self.run_
        self.pace = (
            seconds / len(items) if not self.pace else (self.pace + seconds / len(items)) / 2
        )
        run.told |= told
        for sentence in said:
            warn(sentence)
        if stopped:
            run.stopped = stopped
        for item, one in zip(items, staged, strict=True):
            result = self._commit(item, one) if one.result.status == DONE else one.result
            if result.status in (DONE, FAILED):
                run.record(result)

    def _commit(self, item: PairItem, done: Staged) -> PairResult:
        if done.path is None or not done.path.is_file():
            why = f"{done.path} was written by a worker and is not here"
            error = f"{why}; --out must be a folder that all nodes share"
            return PairResult(item.name, FAILED, error=error)
        here = self.run_.history.out / STAGING / done.path.name
        return self.run_.finish(item, done.inputs, here, lambda: done.facts)

    def _replace(
        self, actor: _Actor, items: list[PairItem] | None, error: Exception, draining: bool
    ) -> None:
        """An actor is lost: its pairs are done again, one by one, by another."""
        for item in items or ():
            self.deaths[item.name] += 1
            if self.deaths[item.name] < ATTEMPTS:
                self.queue.append([item])
            else:
                why = f"{ATTEMPTS} workers were lost while they had this pair; is memory short?"
                self.run_.record(PairResult(item.name, FAILED, error=why))
        if actor not in self.actors:
            return
        self.actors.remove(actor)
        self.lost += 1
        if self.lost > MOST_LOST + len(self.actors):
            raise ValueError(f"Ray's workers end before they give anything: {_first_line(error)}")
        if not draining and (self.items or self.queue or self._busy()):
            self._start()

    def _say_if_long(self) -> None:
        if time.monotonic() - self.waited > PATIENCE:
            self.waited = float("inf")
            warn(
                f"no worker has started in {PATIENCE:.0f} s: each needs {self.cluster.cpus:g} CPUs"
                f" and {self.cluster.num_gpus:g} GPUs that others may be using; waiting"
            )


def cpus_each(nodes: list[int], actors: int) -> float:
    """CPUs of each actor so that all fit on nodes of so many: whole ones where there are enough."""
    for cpus in range(max(nodes), 0, -1):
        if sum(n // cpus for n in nodes) >= actors:
            return cpus
    return max(0.01, int(100 * sum(nodes) / actors) / 100 / 2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's advice on its own settings from a user who did not call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine."""
    own = environment.set_values()
    common: dict[str, Any] = {
        "logging_level": "ERROR",
        "log_to_driver": False,
        "runtime_env": {"env_vars": own} if own else None,
    }
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _quiet():
        if address is None:
            free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 1 << 30
            store = max(80 << 20, min(200 << 20, free // 2))  # only results' names pass through it
            ray.init(
                address="local", num_cpus=usable_cores(), include_dashboard=False,
                object_store_memory=store, **common,
            )  # fmt: skip
            return
        try:
            _knock(address)
            ray.init(address=address, **common)
        except Exception as error:  # whatever an address makes of it
            raise ValueError(
                f"--address is {address!r}, where no Ray cluster answers ({_first_line(error)}); "
                "expected one such as 10.0.0.1:6379 or auto, or leave it out for this machine"
            ) from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens: Ray would try again for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _absolute(item: PairItem) -> PairItem:
    """The pair by paths that mean the same in every process."""
    return replace(item, ir=Path(os.path.abspath(item.ir)), vis=Path(os.path.abspath(item.vis)))
