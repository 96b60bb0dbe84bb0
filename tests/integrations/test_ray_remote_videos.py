"""Videos behind URLs on a cluster of two nodes: its workers fetch and put, and may be lost."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from clips import pan, write_clip
from clusters import slow_fuser, two_nodes, workers
from objectstore import bucket_in_environment, s3_server
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.storage import staging
from ddfm_fast.storage.objects import listing, put, read
from ddfm_fast.storage.trouble import StorageError
from ddfm_fast.video import staged
from ddfm_fast.video.tasks import Task, plan, run_tasks

pytest.importorskip("ray", reason="needs the extra ray")
pytest.importorskip("s3fs", reason="needs the extra storage")
pytest.importorskip("moto.moto_server.werkzeug_app", exc_type=ImportError)
from ddfm_fast.integrations.ray_videos import RayVideos  # noqa: E402

pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
VIDEOS = 4
QUICK = ("--preset", "realtime", "--json")


@pytest.fixture(scope="module")
def store():
    """The environment of an S3 server, for this process and the nodes it starts."""
    with s3_server() as (_, port), bucket_in_environment(port) as url:
        yield url


@pytest.fixture(scope="module")
def data(store, tmp_path_factory) -> Path:
    """Pairs on the disk and in the bucket, with names that URLs would have to quote."""
    root = tmp_path_factory.mktemp("set")
    for n in range(VIDEOS):
        for end, channels in (("T", 1), ("RGB", 3)):
            file = root / f"{n} #ü%20_{end}.mp4"
            write_clip(file, pan(4, n + channels, size=32, channels=channels))
            put(f"{store}/set/{file.name}", file.read_bytes())
    return root


@pytest.fixture(scope="module")
def cluster(store):  # noqa: ARG001  (whose environment the nodes take over)
    with two_nodes() as nodes:
        yield nodes


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def run(*arguments, code=0):
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    assert found.exit_code == code, found.output
    return found


def videos(*arguments, code=0) -> list[dict]:
    return json.loads(run("video", *arguments, *QUICK, code=code).stdout)["videos"]


@pytest.fixture
def idle(monkeypatch) -> list[str]:
    """The URLs that this process fetches or puts, of which there must be none."""
    copied: list[str] = []
    monkeypatch.setattr(staging, "fetch", lambda url, *_: copied.append(url))
    monkeypatch.setattr(staged, "put_file", lambda url, *_: copied.append(url))
    return copied


def test_workers_fetch_and_put_and_the_bytes_are_those_of_one_machine(
    cluster, store, data, tmp_path, idle
):
    """A bad video among good ones fails alone; a second run does what the first could not."""
    bad, out = f"{store}/set/1 #ü%20_T.mp4", f"{store}/fused"
    on_ray = (f"{store}/set", "-o", out, "--on", "ray", "--actors", "2")
    one = videos(data, "-o", tmp_path / "one")
    put(bad, b"no video")
    found = videos(*on_ray, code=1)
    assert [video["ok"] for video in found] == [True, False, True, True] and idle == []
    assert found[1]["error"].startswith(f"ir is {bad}: cannot be opened as video")
    before = listing(out)
    assert len(before) == VIDEOS - 1, "nothing half-written, and no part"
    put(bad, (data / "1 #ü%20_T.mp4").read_bytes())
    again = videos(*on_ray, "--skip-existing")
    assert [video.get("skipped", False) for video in again] == [True, False, True, True]
    assert idle == [] and {**listing(out), **before} == listing(out), "nothing is done twice"
    for n, (here, video) in enumerate(zip(one, found, strict=True)):
        video = again[n] if n == 1 else video
        assert video["out"] == f"{out}/{n} #ü%20.mp4"
        for key in ("frames", "evaluations", "sources", "bad_count", "stopped"):
            assert video[key] == here[key]
        assert read(video["out"]) == Path(here["out"]).read_bytes()


def test_addresses_and_folders_beside_objects(cluster, store, data, tmp_path, idle):
    """FFmpeg opens an address where the worker is; a local output is what nodes share."""
    ir = write_clip(tmp_path / "ir.mkv", pan(4, 1, size=32))  # plays from its beginning on
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"http://127.0.0.1:{server.server_port}/ir.mkv"
    vis = f"{store}/set/0 #ü%20_RGB.mp4"
    tasks = [
        Task("web", web, vis, f"{store}/mixed/web.mp4"),
        Task("here", str(ir), vis, tmp_path / "here.mp4"),
        Task("none", f"{store}/set/none.mp4", vis, f"{store}/mixed/none.mp4"),
    ]
    with RayVideos(actors=2) as there:
        results = run_tasks(tasks, fuser=slow_fuser(0), elsewhere=there, preset="realtime")
    server.shutdown()
    assert [r.ok for r in results] == [True, True, False], [r.error for r in results]
    assert read(f"{store}/mixed/web.mp4") == (tmp_path / "here.mp4").read_bytes()
    assert str(results[2].error).startswith(f"{store}/set/none.mp4: no such object")
    assert results[1].report.out == tmp_path / "here.mp4" and idle == []
    assert [*listing(f"{store}/mixed")] == ["web.mp4"]


def test_the_video_of_a_lost_worker_is_done_again(cluster, store, data, tmp_path):
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            time.sleep(0.1)
            if listing(f"{store}/lost") and (there := workers("VideoWorker")):
                killed.append(min(there.values()))
                os.kill(killed[0], signal.SIGKILL)

    fuser, options = slow_fuser(0.3), {"preset": "exact"}
    one = run_tasks(plan(data, None, tmp_path / "one"), fuser=slow_fuser(0), **options)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with RayVideos(actors=2) as there:
            tasks = plan(f"{store}/set", None, f"{store}/lost")
            results = run_tasks(tasks, fuser=fuser, elsewhere=there, **options)
    finally:
        killer.join()
    assert killed and [r.ok for r in results] == [True] * VIDEOS, [r.error for r in results]
    assert len(listing(f"{store}/lost")) == VIDEOS, "and no part"
    for here, result in zip(one, results, strict=True):
        assert read(str(result.report.out)) == Path(here.report.out).read_bytes()


def test_a_place_that_workers_do_not_have_ends_the_run_in_a_sentence(cluster, store, data):
    set_ = f"{store}/set"
    on_ray = ("--on", "ray", "--actors", "1", *QUICK)
    said = run("video", set_, "-o", "s3://nobody/fused", *on_ray, code=2).stderr
    assert said.startswith("error: s3://nobody/fused/") and "no such bucket" in said
    assert said.count("error") == 1
    said = run("video", set_, "-o", "memory://fused", *on_ray, code=2).stderr
    assert "is in the memory of this process; leave out --on ray" in said
    with RayVideos(actors=1) as there, pytest.raises(StorageError, match="no such bucket"):
        tasks = plan(set_, None, "s3://nobody/fused")[:1]
        run_tasks(tasks, fuser=slow_fuser(0), elsewhere=there, preset="realtime")
