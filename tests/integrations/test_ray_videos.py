"""``ddfm-fast video --on ray``: the files of one machine, failures alone, Ctrl-C and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from clips import pan, write_clip

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.extras, pytest.mark.timeout(300)]
VIDEOS = 4


def command(data: Path, out: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ddfm_fast", "video", str(data), "-o", str(out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def done(*arguments) -> tuple[int, str, str]:
    process = command(*arguments)
    said, errors = process.communicate(timeout=200)
    return process.returncode, said, errors


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("in")
    for n in range(VIDEOS):
        write_clip(root / f"{n}_T.mp4", pan(12, n, size=64))
        write_clip(root / f"{n}_RGB.mp4", pan(12, 9 - n, size=64, channels=3))
    return root


def test_standard_input_is_refused(data, tmp_path):
    code, _, errors = done("-", tmp_path / "a.mp4", str(data / "0_RGB.mp4"), "--on", "ray")
    assert code == 2 and "a source is -" in errors


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("?.mp4"))}


def test_the_command_gives_what_one_machine_gives(data, tmp_path):
    """A video that cannot be read fails alone, with the same words."""
    (tmp_path / "in").mkdir()
    for path in data.iterdir():
        (tmp_path / "in" / path.name).symlink_to(path)
    (tmp_path / "in" / "2_T.mp4").unlink()
    (tmp_path / "in" / "2_T.mp4").write_bytes(b"no video")
    options = "--preset", "realtime", "--json"
    one = done(tmp_path / "in", tmp_path / "one", *options)
    two = done(tmp_path / "in", tmp_path / "two", *options, "--on", "ray", "--actors", "2")
    assert (one[0], two[0]) == (1, 1), two
    a, b = (json.loads(said)["videos"] for _, said, _ in (one, two))
    assert [video["ok"] for video in b] == [True, True, False, True]
    assert b[2] == a[2], "the same sentence"
    for x, y in zip(a, b, strict=True):
        for key in ("name", "ok", "frames", "evaluations", "sources", "bad_count", "stopped"):
            assert x.get(key) == y.get(key)
        assert y.get("out", "").replace("two", "one") == x.get("out", "")
    assert files(tmp_path / "two") == files(tmp_path / "one") and len(files(tmp_path / "two")) == 3
    assert f"error: {b[2]['name']}" in two[2]


def test_ctrl_c_ends_the_videos_under_way_and_the_rest_follows(data, tmp_path):
    options = "--preset", "exact"
    on_ray = *options, "--on", "ray", "--actors", "1", "--skip-existing"
    out = tmp_path / "two"
    stopped = command(data, out, *on_ray)
    start = time.monotonic()
    while not files(out):
        assert time.monotonic() - start < 120 and stopped.poll() is None, "no video comes"
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does, to all of the group
    said, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, errors
    there = files(out)
    assert 1 <= len(there) < VIDEOS, "what was under way has ended, and no other was begun"
    assert f"interrupted: {VIDEOS - len(there)} videos not reached" in errors
    assert sorted(path.name for path in out.iterdir()) == sorted(there), "nothing half-written"
    when = {name: (out / name).stat().st_mtime_ns for name in there}

    code, said, errors = done(data, out, *on_ray)
    assert code == 0, errors
    assert said.count("is already there") == len(there)
    assert {name: (out / name).stat().st_mtime_ns for name in there} == when, "done twice"
    assert done(data, tmp_path / "one", *options)[0] == 0
    assert files(out) == files(tmp_path / "one") and len(files(out)) == VIDEOS


def test_streams_are_for_one_machine(data, tmp_path):
    for n in range(2):
        (tmp_path / f"0_{'T' if n else 'RGB'}.mp4").symlink_to(
            data / f"0_{'T' if n else 'RGB'}.mp4"
        )
    code, _, errors = done(tmp_path, "udp://127.0.0.1:9", "--on", "ray")
    assert code == 2 and "a stream; give a file, or leave out Ray" in errors


@pytest.mark.parametrize("seconds", [1.0, 30.0], ids=["lets go", "stays"])
def test_a_worker_that_is_lost_may_still_hold_the_lock(data, tmp_path, monkeypatch, seconds):
    """Its node is gone and it has not noticed: the next one waits, but not forever."""
    from clusters import slow_fuser

    from ddfm_fast.integrations import ray_videos
    from ddfm_fast.integrations.ray_pool import VERSION
    from ddfm_fast.video.outputs import Lock
    from ddfm_fast.video.tasks import Task

    monkeypatch.setattr(ray_videos, "LET_GO", 10.0 if seconds == 1.0 else 1.0)
    task = Task("0", str(data / "0_T.mp4"), str(data / "0_RGB.mp4"), tmp_path / "0.mp4")
    lock = Lock(task.out)
    later = threading.Timer(seconds, lock.let_go)
    later.start()
    result, _ = ray_videos.VideoWorker(slow_fuser(0), VERSION).fuse(task, {"preset": "realtime"})
    later.cancel()
    assert result.ok == (seconds == 1.0), result.error
    if not result.ok:
        assert f"which process {os.getpid()} is writing; wait for it" in str(result.error)
        lock.let_go()
    assert [p.name for p in tmp_path.iterdir()] == ["0.mp4"] * result.ok


def test_an_error_names_files_as_they_were_given(tmp_path, monkeypatch):
    from ddfm_fast.integrations.ray_videos import name_as_given
    from ddfm_fast.video.tasks import Task

    monkeypatch.chdir(tmp_path)
    error = ValueError(f"{tmp_path}/a/0.mp4 is no video; {tmp_path}/o/0.mp4 stays")
    name_as_given(error, Task("0", "a/0.mp4", [Path("b/1.png")], Path("o/0.mp4")))
    assert str(error) == "a/0.mp4 is no video; o/0.mp4 stays"
