"""A batch behind URLs on a cluster of two nodes: its workers fetch and put, and may be lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from clusters import slow_fuser, two_nodes, workers
from objectstore import bucket_in_environment, s3_server

from ddfm_fast.api import Fuser
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.datasets.remote import find_remote_pairs
from ddfm_fast.datasets.remote_batch import run_remote_batch
from ddfm_fast.datasets.remote_history import HISTORY
from ddfm_fast.files.writing import write_image
from ddfm_fast.storage import staging
from ddfm_fast.storage.objects import listing, put, read
from ddfm_fast.storage.staging import Stage
from ddfm_fast.storage.trouble import StorageError

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("s3fs", reason="needs the extra storage")
pytest.importorskip("moto.moto_server.werkzeug_app", exc_type=ImportError)
from ddfm_fast.integrations.ray_pairs import RayPairs  # noqa: E402

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
PAIRS = 8


@pytest.fixture(scope="module")
def store():
    """The environment of an S3 server, for this process and the nodes it starts."""
    with s3_server() as (_, port), bucket_in_environment(port) as url:
        yield url


@pytest.fixture(scope="module")
def data(store, tmp_path_factory):
    """Pairs on the disk and in the bucket, with names that URLs would have to quote."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for n in range(PAIRS):
        for source, shape in (("ir", (24, 32)), ("vi", (24, 32, 3))):
            file = root / source / f"{n} #ü%20.png"
            write_image(file, rng.integers(0, 255, shape).astype(np.uint8))
            put(f"{store}/data/{source}/{file.name}", file.read_bytes())
    return root


@pytest.fixture(scope="module")
def cluster(store):  # noqa: ARG001  (whose environment the nodes take over)
    with two_nodes() as nodes:
        yield nodes


def remote(store, out, fuser, cluster, **options):
    with Stage() as stage:
        items = find_remote_pairs(stage, f"{store}/data")
        return run_remote_batch(stage, items, out, fuser, elsewhere=cluster, **options)


def test_workers_fetch_and_put_and_the_bytes_are_those_of_one_machine(
    cluster, store, data, tmp_path, monkeypatch
):
    """This process fetches and puts no picture; later runs skip what is done in either output."""
    fuser = Fuser(preset="fast")
    run_batch(find_pairs(data), tmp_path / "one", fuser)
    names = sorted(file.name for file in (tmp_path / "one").glob("*.png"))
    copied: list[str] = []
    monkeypatch.setattr(staging, "fetch", lambda url, *_: copied.append(url))
    monkeypatch.setattr(staging, "put", lambda url, *_: copied.append(url))
    with RayPairs(actors=2) as there:
        done = remote(store, f"{store}/fused", fuser, there)
        again = remote(store, f"{store}/fused", fuser, there)
        local = remote(store, tmp_path / "local", fuser, there)
    assert copied == []
    assert (done.count("done"), again.count("skipped"), len(names)) == (PAIRS, PAIRS, PAIRS)
    assert local.count("done") == PAIRS
    for name in names:
        expected = (tmp_path / "one" / name).read_bytes()
        assert read(f"{store}/fused/{name}") == expected
        assert (tmp_path / "local" / name).read_bytes() == expected
    monkeypatch.undo()
    assert remote(store, f"{store}/fused", fuser, None).count("skipped") == PAIRS
    report = json.loads(read(f"{store}/fused/ddfm_fast_report.json"))
    assert report["done"] == 0 and report["skipped"] == PAIRS
    assert len([n for n in listing(f"{store}/fused") if n.startswith(HISTORY)]) == 1
    assert remote(store, tmp_path / "local", fuser, None).count("skipped") == PAIRS
    assert len(list((tmp_path / "local" / HISTORY).iterdir())) == 1


def test_a_lost_worker_and_a_bad_pair_take_no_other_down(cluster, store, data):
    bad = f"{store}/data/ir/bad.png"
    put(bad, b"no picture")
    put(bad.replace("/ir/", "/vi/"), b"nor this")
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            time.sleep(0.2)
            done = any(name.endswith(".png") for name in listing(f"{store}/lost"))
            if done and (there := workers("RemoteWorker")):
                killed.append(min(there.values()))
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with RayPairs(actors=2) as there:
            report = remote(store, f"{store}/lost", slow_fuser(0.6), there)
    finally:
        killer.join()
        import fsspec

        system = fsspec.filesystem("s3")
        for source in ("ir", "vi"):
            system.rm_file(f"box/data/{source}/bad.png")
    assert killed
    assert (report.count("done"), report.count("failed")) == (PAIRS, 1)
    (failed,) = (one for one in report.results if one.status == "failed")
    assert "box/data/ir/bad.png" in failed.error and "/tmp" not in failed.error
    assert len([n for n in listing(f"{store}/lost") if n.endswith(".png")]) == PAIRS
    assert len(list(data.glob("ir/*"))) == PAIRS


def test_a_bucket_that_is_not_there_ends_the_run_in_a_sentence(cluster, store, data):
    with RayPairs(actors=1) as there, pytest.raises(StorageError, match="no such bucket"):
        remote(store, "s3://nobody/fused", Fuser(preset="fast"), there)


def test_the_memory_of_a_process_is_not_shared(cluster, store, data):
    with RayPairs(actors=1) as there, pytest.raises(ValueError, match="in the memory of this"):
        remote(store, "memory://fused", Fuser(preset="fast"), there)
