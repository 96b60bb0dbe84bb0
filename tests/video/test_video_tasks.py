"""Many videos in one call: what a folder means, failures, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal

import pytest
from clips import endless, pan, quick_fuser, read_clip

from ddfm_fast.files.writing import write_image
from ddfm_fast.video.tasks import Task, plan, run_tasks


def sequence(root, layout="{role}/{name}", names=("one", "two")):
    for name in names:
        for role, channels in (("ir", 1), ("vi", 3)):
            for n, image in enumerate(pan(2, channels, size=32, channels=channels)):
                path = root / layout.format(role=role, name=name) / f"{n:04d}.png"
                write_image(path, image)


def fuse_all(tasks, **options):
    return run_tasks(tasks, fuser=quick_fuser(), preset="realtime", **options)


# Plans


def test_two_streams_are_one_task(tmp_path):
    out = tmp_path / "o.mkv"
    assert plan("a.mp4", "b.mp4", out) == [Task("o", "a.mp4", "b.mp4", out)]


@pytest.mark.parametrize("codec, suffix", [(None, ".mp4"), ("ffv1", ".mkv"), ("png", "")])
def test_folder_of_sequences(tmp_path, codec, suffix):
    sequence(tmp_path / "set" / "test")
    tasks = plan(tmp_path / "set", None, tmp_path / "out", codec)
    assert [t.name for t in tasks] == ["test/one", "test/two"]
    assert [t.out for t in tasks] == [tmp_path / f"out/{t.name}{suffix}" for t in tasks]
    assert [p.name for p in tasks[0].ir] == ["0000.png", "0001.png"]


def test_one_sequence_may_go_to_a_file_and_several_may_not(tmp_path):
    sequence(tmp_path / "set", "{name}/{role}")
    (task,) = plan(tmp_path / "set" / "one", None, tmp_path / "o.mkv")
    assert (task.name, task.out) == ("one", tmp_path / "o.mkv")
    with pytest.raises(ValueError, match="a file, for 2 sequences; give a folder"):
        plan(tmp_path / "set", None, tmp_path / "o.mkv")


@pytest.mark.parametrize(
    "names", [("a_T.avi", "a_RGB.avi"), ("a_ir.mp4", "a_vis.mkv"), ("a_thermal.ts", "a_visible.ts")]
)
def test_folder_of_videos(tmp_path, names):
    for name in (*names, "alone_T.avi", "notes.txt"):
        (tmp_path / name).touch()
    (task,) = plan(tmp_path, None, tmp_path / "out")
    assert task.name == "a" and task.out == tmp_path / "out" / "a.mp4"
    assert [task.ir, task.vis] == [str(tmp_path / name) for name in names]


def test_nothing_found(tmp_path):
    with pytest.raises(ValueError, match="VIS is missing"):
        plan(tmp_path / "none.mp4", None, tmp_path / "out")
    with pytest.raises(ValueError, match="no pairs found"):
        plan(tmp_path, None, tmp_path / "out")


# Runs


def test_a_task_that_fails_does_not_stop_the_others(tmp_path):
    sequence(tmp_path / "set")
    for n in range(2):
        (tmp_path / "set" / "vi" / "one" / f"{n:04d}.png").write_bytes(b"")
    heard: list = []
    results = fuse_all(plan(tmp_path / "set", None, tmp_path / "out"), on_result=heard.append)
    assert results == heard and [r.ok for r in results] == [False, True]
    assert results[0].report is None and isinstance(results[0].error, ValueError)
    assert len(read_clip(results[1].report.out)[0]) == 2
    failed, fused = (json.loads(json.dumps(r.as_dict())) for r in results)
    assert failed == {"name": "one", "ok": False, "error": str(results[0].error)}
    assert fused["name"] == "two" and fused["frames"] == 2 and fused["fps"] > 0


def test_what_the_callback_raises_ends_the_run(tmp_path):
    tasks = [Task(name, "none.mp4", "none.mp4", tmp_path / "o.mp4") for name in "ab"]
    heard: list = []

    def stop(result):
        heard.append(result.task.name)
        raise result.error

    with pytest.raises(ValueError, match="no such file"):
        fuse_all(tasks, on_result=stop)
    assert heard == ["a"]


def test_an_interrupt_ends_the_run(tmp_path):
    def vis():
        for n, image in enumerate(endless(3)):
            if n == 30:
                os.kill(os.getpid(), signal.SIGINT)
            yield image

    first = Task("first", endless(1), vis(), tmp_path / "1.mp4")
    second = Task("second", pan(2, 1), pan(2, 2), tmp_path / "2.mp4")
    (result,) = fuse_all([first, second])
    assert not result.ok and result.report.stopped == "interrupted"
    assert len(read_clip(first.out)[0]) == result.report.frames and not second.out.exists()


def test_an_unknown_option_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(TypeError, match="'offfset' is not an option"):
        fuse_all([Task("a", pan(2, 1), pan(2, 2), tmp_path / "o.mp4")], offfset=1.0)
