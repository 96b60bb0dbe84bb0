"""A batch behind URLs on a cluster: what is done stays done, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clusters import slow_fuser, two_nodes, workers
from conftest import ROOT
from objectstore import make_bucket, s3_environment, s3_server

from ddfm_fast.datasets.remote import find_remote_pairs
from ddfm_fast.datasets.remote_batch import run_remote_batch
from ddfm_fast.datasets.remote_history import HISTORY, RemoteHistory
from ddfm_fast.files.writing import encode_image
from ddfm_fast.storage.objects import listing, put
from ddfm_fast.storage.staging import Stage

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("s3fs", reason="needs the extra storage")
pytest.importorskip("moto.moto_server.werkzeug_app", exc_type=ImportError)
from ddfm_fast.integrations import ray_pool  # noqa: E402
from ddfm_fast.integrations.ray_pairs import RayPairs  # noqa: E402

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
PAIRS, PIECES = 24, 2
BOX = "s3://box"
DRIVER = f"""
import sys
from clusters import slow_fuser
from ddfm_fast.datasets.remote import find_remote_pairs
from ddfm_fast.datasets.remote_batch import run_remote_batch
from ddfm_fast.integrations import ray_pool
from ddfm_fast.integrations.ray_pairs import RayPairs
from ddfm_fast.storage.staging import Stage

ray_pool.MOST_PIECES = {PIECES}
address, actors, out = sys.argv[1:]
with RayPairs(address, int(actors)) as there, Stage() as stage:
    items = find_remote_pairs(stage, "{BOX}/data")
    report = run_remote_batch(stage, items, out, slow_fuser(0.15), elsewhere=there)
print(report.count("done"), report.count("skipped"))
"""


@pytest.fixture(scope="module")
def server():
    """A server that logs its requests, with pairs in a bucket."""
    tools = str(Path(__file__).parents[1] / "tools")
    path = os.pathsep.join([str(ROOT), tools, os.environ.get("PYTHONPATH", "")])
    with s3_server() as (found, port), pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_environment(port), "PYTHONPATH": path}.items():
            patch.setenv(name, value)
        make_bucket("box")
        rng = np.random.default_rng(0)
        for n in range(PAIRS):
            for source, shape in (("ir", (24, 32)), ("vi", (24, 32, 3))):
                picture = rng.integers(0, 255, shape).astype(np.uint8)
                data = encode_image(picture, Path("a.png"))
                put(f"{BOX}/data/{source}/{n:02}.png", data)
        yield found


@pytest.fixture(scope="module")
def cluster(server):  # noqa: ARG001  (whose environment the nodes take over)
    with two_nodes() as nodes:
        yield nodes


def start(cluster, out: str, actors: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, cluster.address, str(actors), out]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def fuse(out: str, elsewhere=None):
    with Stage() as stage:
        items = find_remote_pairs(stage, f"{BOX}/data")
        return run_remote_batch(stage, items, out, slow_fuser(0.15), elsewhere=elsewhere)


def puts(server, out: str) -> Counter[str]:
    """Count how often each picture has been put, by its name."""
    prefix = out.removeprefix("s3:/") + "/"
    return Counter({
        Path(path).stem: count for path, count in server.puts().items() if path.startswith(prefix)
    })  # fmt: skip


def wait(until, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def test_a_killed_driver_costs_no_more_than_what_was_under_way(cluster, server):
    """What each worker put is in the history though nobody took its report."""
    out, least = f"{BOX}/killed", random.randrange(6, 16)
    driver = start(cluster, out)
    try:
        wait(lambda: len(puts(server, out)) >= least)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait(lambda: not workers("RemoteWorker"))
    before = puts(server, out)
    written = RemoteHistory(out, {}, ".png").records.keys()
    assert least <= len(before) < PAIRS and written <= before.keys()
    with RayPairs(actors=2) as there:
        report = fuse(out, there)
    assert report.ok and report.count("skipped") == len(written)
    after = puts(server, out)
    assert len(after) == PAIRS and all(after[name] == 1 for name in written)
    twice = {name for name, count in after.items() if count > 1}
    assert twice <= before.keys() - written
    assert len(twice) <= 2 * PIECES, "of each worker a chunk"
    assert len(listing(f"{out}/{HISTORY}")) == 1
    assert fuse(out).count("skipped") == PAIRS and puts(server, out) == after


def test_two_runs_at_once_lose_nothing(cluster, server):
    """Both do what they find undone, and merge what the other writes."""
    out = f"{BOX}/both"
    drivers = [start(cluster, out, actors=1)]
    wait(lambda: len(puts(server, out)) >= 4)
    drivers.append(start(cluster, out, actors=1))
    said = [driver.communicate(timeout=300)[0].split() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert said[0] == [str(PAIRS), "0"]
    assert sum(map(int, said[1])) == PAIRS and int(said[1][1]) >= 4 - PIECES
    assert RemoteHistory(out, {}, ".png").records.keys() == puts(server, out).keys()
    assert len(puts(server, out)) == PAIRS
    assert fuse(out).count("skipped") == PAIRS
    assert len(listing(f"{out}/{HISTORY}")) == 1


def test_a_worker_fetches_the_next_pairs_while_it_fuses(cluster, server, monkeypatch):
    """It fetches one chunk ahead and no more."""
    monkeypatch.setattr(ray_pool, "MOST_PIECES", 1)
    begin = len(server.log)
    with RayPairs(actors=1) as there, Stage() as stage:
        items = find_remote_pairs(stage, f"{BOX}/data")[:6]
        fuser = slow_fuser(0.6).with_options(batch_size=1)
        report = run_remote_batch(stage, items, f"{BOX}/ahead", fuser, elsewhere=there)
    assert report.count("done") == 6
    fetched: set[str] = set()
    ahead = []
    for method, path in server.log[begin:]:
        if method == "GET" and path.startswith("/box/data/ir/"):
            fetched.add(path)
        if method == "PUT" and path.startswith("/box/ahead/0"):
            ahead.append(len(fetched) - len(ahead) - 1)
    assert len(ahead) == 6 and max(ahead) == 1, ahead
    assert ahead.count(1) >= 4, ahead


def test_an_error_ahead_is_that_of_its_pair(cluster, server):
    """The pair before and the pair after are fused."""
    with RayPairs(actors=1) as there, Stage() as stage:
        items = find_remote_pairs(stage, f"{BOX}/data")[:4]
        import fsspec

        system = fsspec.filesystem("s3")
        data = system.cat_file("box/data/ir/01.png")
        system.rm_file("box/data/ir/01.png")
        try:
            fuser = slow_fuser(0.3).with_options(batch_size=1)
            report = run_remote_batch(stage, items, f"{BOX}/error", fuser, elsewhere=there)
        finally:
            put(f"{BOX}/data/ir/01.png", data)
    assert [one.status for one in report.results] == ["done", "failed", "done", "done"]
    assert f"{BOX}/data/ir/01.png: no such object" in report.results[1].error
    assert json.dumps(report.to_dict())
