"""A cluster of Ray, and actors in it that are handed work and replaced when they are lost.

What an actor reports is taken by the process that asks, so that a worker, a node or this process
may be lost at any time: only what was not reported is done again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from typing_extensions import Self

from .. import __version__
from ..api import Fuser
from ..datasets.history import MATHS_VERSION
from ..images.doubts import DDFMWarning, warn
from ..runtime import environment
from ..runtime.machine import usable_cores
from ..runtime.travel import sent_to
from ..storage.urls import as_url, schemes

INSTALL = "Ray is missing; install it: pip install 'ddfm_fast[ray]'"
ATTEMPTS = 3
"""workers that a piece of work may take down before it counts as failed"""
MOST_LOST = 5
"""actors in a row that may be lost before any result"""
PATIENCE = 30.0
"""seconds without a free worker after which that is said"""
CHUNK_SECONDS, MOST_PIECES = 2.0, 32
"""work that an actor is handed at once: as much as takes so long, and so many pieces at most"""
CPUS_EACH = 4
"""of an actor, where their number is automatic"""
VERSION = __version__, MATHS_VERSION
_OF_ONE_PROCESS = "memory"
"""scheme of fsspec"""


def check_version(asked: tuple[Any, ...]) -> None:
    """Raise ValueError, in an actor, where the process that asks has another version."""
    if asked != VERSION:
        raise ValueError(
            f"a worker has ddfm_fast {VERSION[0]}, this process {asked[0]}; install the same "
            "version on all nodes"
        )


def as_given(text: str, files: Iterable[Any]) -> str:
    """Return an actor's text with the names of files as the calling process was given them."""
    for file in files:
        text = text.replace(os.path.abspath(file), os.fspath(file))
    return text


def check_shared(places: Iterable[str]) -> None:
    """Raise ValueError for the URL of what only this process has."""
    for place in places:
        if as_url(place) and _OF_ONE_PROCESS in schemes(place):
            raise ValueError(f"{place} is in the memory of this process; leave out --on ray")


@contextlib.contextmanager
def sentences() -> Iterator[list[str]]:
    """Collect what is warned inside, for the process that asks."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DDFMWarning)
        try:
            yield said
        finally:
            said += [str(one.message) for one in caught if issubclass(one.category, DDFMWarning)]


@dataclass
class Actor:
    """An actor of a pool."""

    handle: Any
    size: int = 1
    """most pieces at once, as its ``ready`` says"""
    ready: bool = False


class Cluster:
    """A connection to Ray, and what each actor gets there.

    Args:
        address: Of a cluster; None starts one on this machine, which ends with the block.
        actors: How many; None for what suits the cluster.
        num_gpus: GPUs of each actor, which may be a part of one; None or 0 for CPUs.

    Raises:
        ImportError: Ray is missing.
        ValueError: Numbers out of range, or a cluster that is not available.
    """

    STORE = 200 << 20
    """bytes of a local cluster's object store at most: only results' names pass through it"""

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

    def __enter__(self) -> Self:
        if not self.ray.is_initialized():
            _connect(self.ray, self.address, self.STORE)
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
            raise ValueError("the cluster has no CPUs; expected nodes that accept work")
        if self.actors is None:
            by_gpu = int(gpus / self.num_gpus) if self.num_gpus else 0
            self.actors = by_gpu or max(sum(n > 0 for n in cpus), sum(cpus) // CPUS_EACH)
        self.cpus = cpus_each(cpus, self.actors)

    def make(self, kind: type, fuser: Fuser, *more: Any, at_once: int = 1) -> Any:
        """Start an actor: ``kind(fuser, *more)``, with the fuser for its device.

        Args:
            kind: Class of the actor.
            fuser: The first argument.
            *more: Further ones.
            at_once: Calls that it works on at a time, in threads.
        """
        remote = self.ray.remote(kind).options(
            num_cpus=self.cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0,
            max_concurrency=at_once,
        )  # fmt: skip
        return remote.remote(self.sent(fuser), *more)

    def sent(self, fuser: Fuser) -> Fuser:
        """The fuser for an actor: a device of one's own choice means nothing on other nodes."""
        return sent_to(fuser, "cuda" if self.num_gpus else "cpu")

    def wanting(self) -> str:
        """A sentence where none has started for long."""
        return (
            f"no worker has started in {PATIENCE:.0f} s: each needs {self.cpus:g} CPUs and "
            f"{self.num_gpus:g} GPUs that others may be using; waiting"
        )

    def get(self, call: Any) -> Any:
        """Return the result of a call; what its code raised is raised as it was."""
        try:
            return self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None


class Pool:
    """Actors at work for one run; all of this in the thread of the run.

    A subclass says how many pieces an actor is handed (`size`), what their result means (`take`)
    and what a piece is that took its workers down (`give_up`).

    Args:
        cluster: Where they work.
        make: Starts an actor, whose ``ready()`` gives the most pieces at once.
        ask: Calls an actor for pieces of work.
    """

    what = "pieces"
    ahead = 2
    """calls that an actor has at most: one is waiting while it works on another"""

    def __init__(
        self, cluster: Cluster, make: Callable[[], Any], ask: Callable[[Any, list[Any]], Any]
    ):
        self.cluster, self.ray, self.make, self.ask = cluster, cluster.ray, make, ask
        self.queue: deque[list[Any]] = deque()
        self.actors: list[Actor] = []
        self.asked: dict[Any, tuple[Actor, list[Any] | None, float]] = {}
        """calls under way: whose, what for (None: getting ready), since when"""
        self.deaths: Counter[str] = Counter()
        self.lost = 0
        self.left = 0
        """pieces that nobody was handed yet"""
        self.waited = time.monotonic()

    def size(self, actor: Actor) -> int:
        """Return how many pieces an actor is handed next."""
        del actor
        return 1

    def take(self, pieces: list[Any], found: Any, seconds: float) -> None:
        """Take what an actor gave for its pieces."""
        raise NotImplementedError

    def give_up(self, piece: Any, why: str) -> None:
        """Count a piece as failed."""
        raise NotImplementedError

    def stopped(self) -> bool:
        """Return whether no more is to be handed out."""
        return False

    def run(self, pieces: Iterable[Any], count: int) -> None:
        """Have all of so many pieces done; each has a ``name``.

        Raises:
            ValueError: Actors end before they give anything.
            KeyboardInterrupt: Ctrl-C, once what was under way has been taken.
        """
        self.pieces, self.left = iter(pieces), count
        interrupted = None
        try:
            for _ in range(min(self.cluster.actors or 1, count)):
                self._start()
            while self._busy() or (self._more() and not self.stopped() and not interrupted):
                try:
                    self._step(draining=interrupted is not None or self.stopped())
                except KeyboardInterrupt as found:
                    if interrupted is not None:
                        raise
                    interrupted = found
                    self._say_draining()
        finally:
            for actor in self.actors:
                with contextlib.suppress(Exception):
                    self.ray.kill(actor.handle)
        if interrupted is not None:
            raise interrupted

    def _busy(self) -> bool:
        return any(pieces for _, pieces, _ in self.asked.values())

    def _more(self) -> bool:
        return bool(self.left or self.queue)

    def _say_draining(self) -> None:
        if self._busy():
            text = f"waiting for the {self.what} under way; Ctrl-C again leaves them"
            print(text, file=sys.stderr)

    def _start(self) -> None:
        actor = Actor(self.make())
        self.actors.append(actor)
        self.asked[actor.handle.ready.remote()] = actor, None, time.monotonic()

    def _step(self, *, draining: bool) -> None:
        """Wait for a call, take what it gives, and hand out more."""
        done, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=1.0)
        for call in done:
            actor, pieces, since = self.asked.pop(call)
            try:
                found = self.cluster.get(call)
            except self.ray.exceptions.RayActorError as error:
                self._replace(actor, pieces, error, draining)
                continue
            if pieces is None:
                actor.ready, actor.size = True, found
            else:
                self.lost = 0
                self.take(pieces, found, time.monotonic() - since)
            self.waited = time.monotonic()
        if not any(actor.ready for actor in self.actors):
            self._say_if_long()
        if not draining:
            for actor in self.actors:
                while actor.ready and self._has_room(actor) and (some := self._some(actor)):
                    self.asked[self.ask(actor.handle, some)] = actor, some, time.monotonic()

    def _has_room(self, actor: Actor) -> bool:
        """Return whether to hand it more: a piece of a lost worker comes alone, to count alone."""
        calls = [pieces or [] for one, pieces, _ in self.asked.values() if one is actor]
        suspect = self.queue or any(self.deaths[piece.name] for some in calls for piece in some)
        return len(calls) < (1 if suspect else self.ahead)

    def _some(self, actor: Actor) -> list[Any]:
        """Return the next pieces."""
        if self.queue:
            return self.queue.popleft()
        some = list(islice(self.pieces, min(self.size(actor), self.left)))
        self.left = self.left - len(some) if some else 0
        return some

    def _replace(
        self, actor: Actor, pieces: list[Any] | None, error: Exception, draining: bool
    ) -> None:
        """An actor is lost: its pieces are done again, one by one, by another."""
        for piece in pieces or ():
            self.deaths[piece.name] += 1
            if self.deaths[piece.name] < ATTEMPTS:
                self.queue.append([piece])
            else:
                self.give_up(piece, f"{ATTEMPTS} workers were lost while working on this")
        if actor not in self.actors:
            return
        self.actors.remove(actor)
        self.lost += 1
        if self.lost > MOST_LOST + len(self.actors):
            raise ValueError(f"Ray's workers end before they return anything: {first_line(error)}")
        if not draining and (self._more() or self._busy()):
            self._start()

    def _say_if_long(self) -> None:
        if time.monotonic() - self.waited > PATIENCE:
            self.waited = float("inf")
            warn(self.cluster.wanting())


class PacedPool(Pool):
    """Actors that are handed as many pieces as take `CHUNK_SECONDS`."""

    pace = 0.0
    """seconds that a piece takes in an actor"""

    def size(self, actor: Actor) -> int:
        """As many as take so long, shared out as they get few."""
        by_time = int(CHUNK_SECONDS / self.pace) if self.pace else 1
        share = self.left // (2 * len(self.actors))
        return max(actor.size, min(by_time, share, MOST_PIECES), 1)

    def keep_pace(self, seconds: float) -> None:
        """Learn how long a piece took."""
        self.pace = (self.pace + seconds) / 2 if self.pace else seconds


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


def _connect(ray: Any, address: str | None, most: int) -> None:
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
            store = max(80 << 20, min(most, free // 2))
            _start_here(
                ray, address="local", num_cpus=usable_cores(), include_dashboard=False,
                object_store_memory=store, **common,
            )  # fmt: skip
            return
        try:
            _knock(address)
            ray.init(address=address, **common)
        except Exception as error:  # whatever an address makes of it
            raise ValueError(
                f"--address is {address!r}, where no Ray cluster answers ({first_line(error)}); "
                "expected one such as 10.0.0.1:6379 or auto, or leave it out for this machine"
            ) from error


def _start_here(ray: Any, **options: Any) -> None:
    """Start Ray on this machine, which may fail once where that is busy; ValueError then."""
    for last in (False, True):
        try:
            ray.init(**options)
            return
        except Exception as error:  # it has no class of its own for this
            ray.shutdown()
            if last:
                raise ValueError(
                    f"Ray does not start on this machine ({first_line(error)}); try again when it "
                    "is less busy, or give --address of a cluster"
                ) from error


def _knock(address: str) -> None:
    """Raise OSError if nothing listens: Ray would try again for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
