"""Clusters of Ray on this machine, and priors that take their time, for the tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddfm_fast.api import Fuser


class SlowPrior:
    """A prior that takes its time, so that workers are caught at work."""

    __name__ = "slow"

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, x, t):
        del t
        time.sleep(self.seconds)
        return x * 0.5


def slow_fuser(seconds: float = 0.4) -> Fuser:
    return Fuser(prior=SlowPrior(seconds), steps=1)


def started(head: dict[str, Any], attempts: int = 3) -> Any:
    """Start a cluster; on a busy machine its first node may miss the 30 s that Ray gives it."""
    from ray.cluster_utils import Cluster

    for left in reversed(range(attempts)):
        try:
            return Cluster(initialize_head=True, head_node_args=head)
        except Exception:  # Ray has no exception of its own for it
            if not left:
                raise
    return None


@contextmanager
def two_nodes(**system: Any) -> Iterator[Any]:
    """Yield two nodes of one CPU each, like two machines; ``nodes.second`` can be removed."""
    import ray

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    head = {**small, "include_dashboard": False, "_system_config": system or None}
    nodes = started(head)
    nodes.second = nodes.add_node(**small)
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        address=nodes.address, logging_level="ERROR", log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )  # fmt: skip
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def workers(kind: str = "Worker") -> dict[str, int]:
    """Return the processes of our actors that are alive, by node."""
    from ray._private.state import actors  # the public list needs a dashboard

    return {
        one["Address"]["NodeID"]: one["Pid"]
        for one in actors().values()
        if one["State"] == "ALIVE" and one["ActorClassName"] == kind
    }
