"""A service whose replicas are in a cluster of Ray: the same bytes, also when replicas are lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from clusters import two_nodes
from conftest import ROOT
from serving import colored, form, picture, png, serving, write

import ddfm_fast
from ddfm_fast.client.calls import fuse as ask
from ddfm_fast.datasets.jobs import fuse_files

for name in ("ray.serve", "starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name, reason="needs the extra ray-serve")
pytestmark = [pytest.mark.extras, pytest.mark.timeout(600)]
TOKEN = "a-secret-of-the-tests"


def replicas(server) -> set[int]:
    """Return the living processes of the server's replicas on this machine."""
    name = server.log("replicas")[0]["application"].encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret") / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    limits = "--max-pixels", "40000", "--max-bytes", "2000000"
    ray = "--on", "ray", "--actors", "2", "--device", "cpu", "--timeout", "400"
    with serving("--token-file", str(secret), *limits, *ray) as found:
        yield found


def test_bytes_of_the_command(server, tmp_path):
    ir, vis = png(picture(1)), png(colored(2))
    files = write(tmp_path / "a.png", ir), write(tmp_path / "b.png", vis)
    fuse_files(*files, tmp_path / "o.png", ddfm_fast.Fuser(device="cpu"))
    status, headers, body = authorized(server, ir, vis)
    assert status == 200 and body == (tmp_path / "o.png").read_bytes()
    assert json.loads(headers["x-ddfm-report"])
    pairs = [(picture(n), colored(n + 9)) for n in range(6)]
    expected = [ddfm_fast.fuse(*pair, preset="fast") for pair in pairs]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda pair: ask(*pair, url=server.url, token=TOKEN, preset="fast"), pairs)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def authorized(server, ir: bytes, vis: bytes):
    body, kind = form({"ir": ir, "vis": vis})
    token = {"Authorization": f"Bearer {TOKEN}"}
    return server.request("POST", "/fuse", body, Content_Type=kind, Accept="*/*", **token)


def test_what_is_refused_has_the_status_and_the_sentence_of_one_machine(server):
    small, large = png(picture(1)), png(picture(1, 300, 300))
    assert server.fuse(small, small)[0] == 401
    status, _, body = authorized(server, large, large)
    assert status == 413 and "40000" in json.loads(body)["error"]
    for ir, word in ((small[:900], "cannot be decoded"), (png(picture(1, 20, 20)), "resize")):
        status, _, body = authorized(server, ir, small)
        assert status == 400 and word in json.loads(body)["error"], body
    counters = server.request("GET", "/metrics", Authorization=f"Bearer {TOKEN}")[2].decode()
    assert "ddfm_prior_evaluations_total" in counters
    assert float(counters.split("ddfm_fusion_seconds_count ")[1].split()[0]) >= 1


def test_a_killed_replica_is_replaced_and_no_request_is_lost(server):
    pair = picture(3, 96, 128), picture(4, 96, 128)
    expected = ddfm_fast.fuse(*pair, preset="official", steps=100, device="cpu")
    before = replicas(server)
    assert len(before) == 2
    own = {"url": server.url, "token": TOKEN, "preset": "official", "steps": 100, "timeout": 400.0}
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(ask, *pair, **own) for _ in range(4)]
        time.sleep(1.0)
        os.kill(min(before), signal.SIGKILL)
        server.wait("replica lost")
        quick = ask(picture(1), picture(2), url=server.url, token=TOKEN, timeout=120.0)
        assert all(np.array_equal(one.result(), expected) for one in under_way)
    assert np.array_equal(quick, ddfm_fast.fuse(picture(1), picture(2)))
    wait_for(lambda: len(replicas(server)) == 2 and min(before) not in replicas(server))


def test_ctrl_c_ends_it_and_the_cluster_that_it_started(server):
    there = replicas(server)
    assert there and server.stop(signal.SIGINT) == 0
    assert server.log("stopped")
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in there), 30)


def test_a_cluster_that_stays_is_left_as_it_was():
    """This also holds for a service that is killed, which leaves nothing that works for nobody."""
    from ray import serve

    with two_nodes() as nodes:
        options = "--on", "ray", "--address", nodes.address, "--actors", "2", "--device", "cpu"
        for end in (signal.SIGTERM, signal.SIGKILL):
            with serving(*options) as server:
                assert len(replicas(server)) == 2
                found = ask(picture(1), picture(2), url=server.url)
                assert np.array_equal(found, ddfm_fast.fuse(picture(1), picture(2)))
                assert server.stop(end) == (0 if end == signal.SIGTERM else -signal.SIGKILL)
                wait_for(lambda server=server: not replicas(server))
        wait_for(lambda: not serve.status().applications)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--on", "ray", "--address", "127.0.0.1:9"), "where no Ray cluster answers"),
        (("--on", "ray", "--num-gpus", "3"), "num_gpus is 3 and the cluster has 0"),
        (("--actors", "3"), "--actors is for --on ray"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(options, words):
    run = command(*options)
    assert run.returncode == 2 and words in run.stderr
    assert "Traceback" not in run.stderr


def test_ray_that_is_missing_is_named_with_its_extra():
    block = "import sys; sys.modules['ray.serve'] = None; "
    run = command("--on", "ray", before=block)
    assert run.returncode == 2 and "pip install 'ddfm_fast[ray-serve]'" in run.stderr


def command(*options: str, before: str = "") -> subprocess.CompletedProcess:
    code = f"{before}from ddfm_fast.__main__ import main; main()"
    line = [sys.executable, "-c", code, "serve", "--port", "0", *options]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=240)
