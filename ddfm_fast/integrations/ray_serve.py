"""The requests of a service fused by replicas of Ray Serve: ``ddfm-fast serve --on ray``.

The address, the token, limits, the queue and the counters stay with the process that was started;
a replica decodes, fuses and encodes batches of requests as `..serve.engine.Here` does it. Ray Serve
replaces a replica that is lost, and what it had is done again by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..api import Fuser
from ..serve.bodies import Call
from ..serve.engine import Answer, Fusion, Here, Item, Tell, settle
from ..serve.fusers import Fusers
from ..serve.limits import Clock, Limits, Refused
from ..serve.logs import Log, told_apart
from .ray import use_own_threads
from .ray_pool import ATTEMPTS, PATIENCE, VERSION, Cluster, check_version, first_line

INSTALL = "Ray Serve is missing; install it: pip install 'ddfm_fast[ray-serve]'"
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_HEALTH_SECONDS = 2.0
"""between two looks at a replica; a process that ends is noticed at once"""


class Asked(NamedTuple):
    """An item on its way to a replica."""

    call: Call
    format: str
    sizes: tuple[tuple[int, ...], ...]
    seconds: float
    """that it may take"""
    passed: float
    """of them, until now"""


class Refusal(NamedTuple):
    """A `Refused` on its way back."""

    status: int
    sentence: str
    headers: dict[str, str]


class Failure(NamedTuple):
    """What was not expected, on its way back."""

    text: str


class Replica:
    """What Ray Serve runs.

    Args:
        fuser: Of the service.
        limits: Of requests.
        version: Of the process that asks.
        name: Of the application.
        lease: An actor of the process that asks, which ends when that does.
    """

    def __init__(
        self, fuser: Fuser, limits: Limits, version: tuple[Any, ...], name: str, lease: Any
    ):
        check_version(version)
        use_own_threads()
        told_apart(Log()).__enter__()  # for the life of the process
        self.here, self.fusions = Here(Fusers(fuser), limits), list[Fusion]()
        self.here.tell = self.fusions.append
        self.here.fusers.warm_up()
        threading.Thread(target=_end_with, args=(name, lease), daemon=True).start()

    def most(self) -> int:
        """Requests that are fused together."""
        return self.here.most

    async def work(
        self, asked: list[Asked]
    ) -> tuple[list[Answer | Refusal | Failure | None], list[Fusion]]:
        """Answer requests; None for those without an answer, as nobody waits for them."""
        now, loop = time.monotonic(), asyncio.get_running_loop()
        items = [
            Item(one.call, one.format, one.sizes, Clock(one.seconds, now - one.passed), done)
            for one in asked
            for done in [loop.create_future()]
        ]
        try:
            await self.here.work(items)
        finally:
            for item in items:
                item.gone = True
        fusions, self.fusions[:] = list(self.fusions), []
        return [_sent(item) for item in items], fusions


class Lease:
    """An actor that lives as long as the process that made it."""

    async def held(self) -> None:
        """Never return."""
        await asyncio.Event().wait()


def _end_with(name: str, lease: Any) -> None:
    """End the application when the process that asks was killed and cannot."""
    import ray
    from ray import serve

    try:
        ray.get(lease.held.remote())
    except ray.exceptions.RayError:
        with contextlib.suppress(Exception):
            serve.delete(name, _blocking=False)


def _sent(item: Item) -> Answer | Refusal | Failure | None:
    if not item.done.done():
        return None
    error = item.done.exception()
    if error is None:
        return item.done.result()
    if isinstance(error, Refused):
        return Refusal(error.status, str(error), error.headers)
    return Failure(f"{type(error).__name__}: {error}")


class RayReplicas(Cluster):
    """A service's replicas in a cluster; they end with the block."""

    STORE = 1 << 30

    def __enter__(self) -> RayReplicas:
        try:
            from ray import serve
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self.serve: Any = serve
        self.name = f"ddfm-fast-{secrets.token_hex(4)}"
        self.lease: Any = None
        self.has_controller = False
        super().__enter__()
        return self

    def __exit__(self, *given: object) -> None:
        with _still():
            if self.lease is not None and self.address is not None:
                self._leave()
            self.lease = None
            super().__exit__(*given)

    def _leave(self) -> None:
        """Take the application off a cluster that stays, and what Ray Serve had to start for it."""
        with contextlib.suppress(Exception):  # a cluster that is gone
            self.serve.delete(self.name)
            if not self.has_controller and not self.serve.status().applications:
                self.serve.shutdown()
            self.ray.kill(self.lease)

    def engine(self, fuser: Fuser, limits: Limits, log: Log) -> Replicas:
        """Start the replicas, and wait until they are ready.

        Raises:
            ValueError: They do not start.
        """
        self.has_controller = _has_controller(self.ray)
        self.lease = self.ray.remote(Lease).options(num_cpus=0).remote()
        own = {"num_cpus": self.cpus, "num_gpus": self.num_gpus}
        deployment = self.serve.deployment(
            Replica, name="fuse", num_replicas=self.actors, max_ongoing_requests=Here.slots,
            ray_actor_options=own, health_check_period_s=_HEALTH_SECONDS,
            graceful_shutdown_timeout_s=limits.timeout,
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )  # fmt: skip
        application = deployment.bind(self.sent(fuser), limits, VERSION, self.name, self.lease)
        patience = threading.Timer(PATIENCE, lambda: log("waiting", message=self.wanting()))
        patience.daemon = True
        patience.start()
        try:
            with _still():
                self.serve.start(proxy_location="Disabled")
                handle = self.serve.run(application, name=self.name, route_prefix=None)
                most = handle.most.remote().result()
        except (RuntimeError, self.ray.exceptions.RayError) as error:
            raise ValueError(f"Ray's replicas do not start: {self._why(error)}") from error
        finally:
            patience.cancel()
        log(
            "replicas", application=self.name, count=self.actors, cpus=self.cpus, gpus=self.num_gpus
        )
        return Replicas(handle, most, Here.slots * (self.actors or 1), log)

    def _why(self, error: BaseException) -> str:
        """What the constructor of a replica said, if that is it."""
        with contextlib.suppress(Exception):
            found = self.serve.status().applications[self.name]
            text = "\n".join([found.message, *(d.message for d in found.deployments.values())])
            if lines := [line for line in text.splitlines() if "Error: " in line]:
                return lines[-1].strip()
        return first_line(error)


class Replicas:
    """The engine of a service whose replicas are elsewhere."""

    def __init__(self, handle: Any, most: int, slots: int, log: Log):
        from ray.exceptions import RayActorError

        self.handle, self.most, self.slots, self.log = handle, most, slots, log
        self.lost: Any = RayActorError
        self.tell: Tell = lambda _: None

    async def start(self, tell: Tell) -> None:
        """Nothing: the replicas are ready."""
        self.tell = tell

    async def stop(self) -> None:
        """Nothing: they end with the block of their cluster."""

    async def work(self, batch: list[Item]) -> None:
        """Have a replica answer them; each alone by another, where that one is lost."""
        await self._work(batch, ATTEMPTS)

    async def _work(self, batch: list[Item], tries: int) -> None:
        batch = [item for item in batch if item.wanted]
        if not batch:
            return
        try:
            found, fusions = await self._answers(batch)
        except self.lost as error:
            self.log("replica lost", requests=len(batch), message=first_line(error))
            if tries > 1:
                await asyncio.gather(*(self._work([item], tries - 1) for item in batch))
                return
            found, fusions = [_GIVEN_UP] * len(batch), []
        except Exception as error:  # of the cluster, which fails in every way there is
            found, fusions = [Failure(first_line(error))] * len(batch), []
        for fusion in fusions:
            self.tell(fusion)
        for item, one in zip(batch, found, strict=True):
            if isinstance(one, Refusal):
                settle(item, Refused(one.status, one.sentence, **one.headers))
            elif isinstance(one, Failure):
                settle(item, RuntimeError(one.text))
            elif one is not None:
                settle(item, one)

    async def _answers(self, batch: list[Item]) -> tuple[list[Any], list[Fusion]]:
        """Ask a replica, which is told where nobody waits any more."""
        call = self.handle.work.remote([_asked(item) for item in batch])
        answer = asyncio.ensure_future(_result(call))
        gone = asyncio.ensure_future(asyncio.wait([item.done for item in batch]))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            call.cancel()
            return [None] * len(batch), []
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            gone.cancel()
            answer.cancel()
            await asyncio.gather(gone, answer, return_exceptions=True)


_GIVEN_UP = Refusal(
    503,
    f"{ATTEMPTS} replicas were lost while they had this request; send smaller pictures, or give "
    "each replica more memory",
    {"Retry-After": "5"},
)


async def _result(call: Any) -> Any:
    return await call


def _asked(item: Item) -> Asked:
    return Asked(item.call, item.format, item.sizes, item.clock.seconds, item.clock.passed)


def _has_controller(ray: Any) -> bool:
    try:
        ray.get_actor(_CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _still() -> Iterator[None]:
    """Keep what Ray Serve reports of itself out of the log."""
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
