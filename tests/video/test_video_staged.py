"""Videos whose places are objects: fetched one at a time, put when they are complete."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import pytest
from clips import pan, quick_fuser, read_clip, write_clip

from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.writing import write_image
from ddfm_fast.images.doubts import DDFMWarning, warn
from ddfm_fast.storage import objects, staging
from ddfm_fast.storage.trouble import StorageError
from ddfm_fast.video import staged
from ddfm_fast.video.tasks import Task, plan, run_tasks

pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")
pytest.importorskip("av")
NAMES = ("a", "deep/b", "deep/c")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty memory of objects, and a temporary folder of the test's own."""
    memory.MemoryFileSystem.store.clear()
    memory.MemoryFileSystem.pseudo_dirs[:] = [""]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield memory.MemoryFileSystem()
    assert not list((tmp_path / "temporary").iterdir()), "what was fetched is dropped"


@pytest.fixture
def data(store, tmp_path) -> Path:
    """Pairs of videos on the disk and the same behind a prefix, beside what is no video."""
    root = tmp_path / "set"
    for n, name in enumerate(NAMES):
        for end, channels in (("T", 1), ("RGB", 3)):
            path = root / f"{name}_{end}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, pan(3, n + channels, size=32, channels=channels))
            store.pipe_file(f"/set/{name}_{end}.mp4", path.read_bytes())
    store.pipe_file("/set/notes.txt", b"no video")
    return root


def fuse(tasks, **options):
    return run_tasks(tasks, fuser=quick_fuser(), preset="realtime", **options)


def there(store) -> list[str]:
    return sorted(path.removeprefix("/out/") for path in store.find("/out"))


def test_a_data_set_needs_the_room_of_one_pair(store, data, tmp_path, monkeypatch):
    """It is planned by listing; each pair is fetched in its turn, when the previous one was put."""
    done: list[str] = []

    def fetch(url, target):
        done.append(url.removeprefix("memory://set/"))
        return objects.fetch(url, target)

    def put(url, file):
        done.append(url.removeprefix("memory://"))
        return objects.put_file(url, file)

    monkeypatch.setattr(staging, "fetch", fetch)
    monkeypatch.setattr(staged, "put_file", put)
    tasks = plan("memory://set", None, "memory://out")
    assert [task.name for task in tasks] == [*NAMES] and not done
    assert tasks[1].ir == "memory://set/deep/b_T.mp4"
    assert tasks[1].out == "memory://out/deep/b.mp4"
    results = fuse(tasks)
    assert [result.ok for result in results] == [True] * 3
    for n, name in enumerate(NAMES):
        pair = {f"{name}_T.mp4", f"{name}_RGB.mp4"}
        assert {*done[3 * n : 3 * n + 2]} == pair and done[3 * n + 2] == f"out/{name}.mp4"
        assert results[n].report.out == f"memory://out/{name}.mp4"
    fuse(plan(data, None, tmp_path / "one"))
    for name in NAMES:
        assert store.cat_file(f"/out/{name}.mp4") == (tmp_path / f"one/{name}.mp4").read_bytes()
    assert len(there(store)) == 3


def test_what_is_there_is_skipped_and_what_is_bad_fails_alone(store, data):
    tasks = plan("memory://set", None, "memory://out")
    fuse(tasks[:1])
    made = store.modified("/out/a.mp4")
    store.pipe_file("/set/deep/b_T.mp4", b"no video")
    store.rm_file("/set/deep/c_RGB.mp4")
    more = Task("d", "memory://set/a_T.mp4", "memory://set/a_RGB.mp4", "memory://out/d.mp4")
    results = fuse([*tasks, more], skip_existing=True)
    assert [(r.ok, r.skipped) for r in results] == [
        (True, True), (False, False), (False, False), (True, False),
    ]  # fmt: skip
    assert "ir is memory://set/deep/b_T.mp4: cannot be opened" in str(results[1].error)
    assert isinstance(results[2].error, StorageError)
    assert str(results[2].error).startswith("memory://set/deep/c_RGB.mp4: no such object")
    assert "temporary" not in json.dumps([result.as_dict() for result in results])
    assert store.modified("/out/a.mp4") == made and there(store) == ["a.mp4", "d.mp4"]


def test_here_and_there_may_be_mixed(store, data, tmp_path):
    tasks = plan(data, None, "memory://out")
    assert [task.out for task in tasks] == [f"memory://out/{name}.mp4" for name in NAMES]
    back = Task("b", "memory://set/a_T.mp4", str(data / "a_RGB.mp4"), tmp_path / "b.mp4")
    first, second = fuse([tasks[0], back])
    assert first.ok and second.ok and second.report.out == tmp_path / "b.mp4"
    assert (tmp_path / "b.mp4").read_bytes() == store.cat_file("/out/a.mp4")
    (one,) = plan("memory://set/a_T.mp4", "memory://set/a_RGB.mp4", "memory://out/one.mp4")
    assert (one.name, one.out) == ("one", "memory://out/one.mp4")


def test_sequences_of_pictures_behind_a_prefix(store, tmp_path):
    for role, channels in (("ir", 1), ("vi", 3)):
        for n, image in enumerate(pan(3, channels, size=32, channels=channels)):
            path = tmp_path / "seq" / "one" / role / f"{n:04d}.png"
            write_image(path, image)
            store.pipe_file(f"/seq/one/{role}/{path.name}", path.read_bytes())
    (task,) = plan("memory://seq", None, "memory://out")
    assert task.ir == [f"memory://seq/one/ir/{n:04d}.png" for n in range(3)]
    folders = Task("f", "memory://seq/one/ir", "memory://seq/one/vi", "memory://out/f.mp4")
    store.pipe_file("/seq/one/ir/0001.png", b"no picture")
    bad: list = []
    results = fuse([task, folders], on_bad=bad.append)
    assert [(r.report.frames, r.report.bad_count) for r in results] == [(3, 1)] * 2
    for one in (*bad, *(found for r in results for found in r.report.bad)):
        assert "memory://seq/one/ir/0001.png" in one.reason
        assert "temporary" not in one.reason + one.stream
    assert len(bad) == 2 and there(store) == ["f.mp4", "one.mp4"]


@pytest.mark.parametrize("skip_existing", [False, True])
def test_ctrl_c_is_as_with_files(store, data, skip_existing):
    """It ends the video, which gets its name unless only complete videos may have one."""

    def stop(done, total):
        del total
        if done == 2:
            raise KeyboardInterrupt

    tasks = plan("memory://set", None, "memory://out")
    (result,) = fuse(tasks, skip_existing=skip_existing, on_frame=stop)
    assert result.report.stopped == "interrupted"
    (name,) = there(store)
    assert result.report.out == f"memory://out/{name}"
    assert name.startswith("a.part-") if skip_existing else name == "a.mp4"


def test_a_part_that_plays_is_put_under_a_name_of_its_own(store, data, tmp_path):
    def fail(done, total):
        del total
        if done == 2:
            raise RuntimeError("the power went")

    pair = plan("memory://set/a_T.mp4", "memory://set/a_RGB.mp4", "memory://out/o.mkv")
    (result,) = fuse(pair, on_frame=fail, codec="ffv1")
    (name,) = there(store)
    assert name.startswith("o.part-")
    assert str(result.error) == (
        f"the power went. The 2 frames before that are in memory://out/{name}"
    )
    (tmp_path / "o.mkv").write_bytes(store.cat_file(f"/out/{name}"))
    assert len(read_clip(tmp_path / "o.mkv")[0]) == 2


def test_what_cannot_be_put_is_an_error(store, data, monkeypatch):
    """The error is that of one video, or of all if nothing can be put there."""
    trouble = StorageError("memory://out/a.mp4: the line is dead")

    def put(url, file):
        del url, file
        raise trouble

    monkeypatch.setattr(staged, "put_file", put)
    tasks = plan("memory://set", None, "memory://out")
    assert [str(r.error) for r in fuse(tasks)] == [str(trouble)] * 3
    trouble.is_common = True
    with pytest.raises(StorageError, match="the line is dead"):
        fuse(tasks)


def test_refused(store, data, tmp_path):
    for places, words in (
        (("memory://set/a_T.mp4", None, "memory://out/o.mp4"), r"a_T\.mp4 and VIS is missing"),
        (("memory://none", None, "memory://out"), "memory://none: no such object or prefix"),
        (("memory://set", None, "memory://out/o.mp4"), "o.mp4, a file, for 3 sequences"),
        (("a.mp4", "b.mp4", "memory://out"), "--out is memory://out; expected a file there"),
        (("a.mp4", "b.mp4", "zip://a.mp4::memory://a.zip"), "read-only"),
    ):
        with pytest.raises(ValueError, match=words):
            plan(*places)
    with pytest.raises(ValueError, match="folders of PNG files are only written locally"):
        plan("memory://set", None, "memory://out", "png")
    store.pipe_file("/empty/a.txt", b"")
    with pytest.raises(ImageFileError, match="memory://empty"):
        plan("memory://empty", None, "memory://out")
    over = Task("a", "memory://set/a_T.mp4", str(data / "a_RGB.mp4"), "memory://set/a_T.mp4")
    wrong = Task("b", "memory://set/a_T.mp4", str(data / "a_RGB.mp4"), "memory://out")
    first, second = fuse([over, wrong])
    assert "would replace an input" in str(first.error)
    assert "expected a file there" in str(second.error)
    assert there(store) == []


def test_a_password_is_in_no_report(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0)
    url = "zip://a.mp4::http://me:secret@127.0.0.1:9/a.zip"
    (result,) = fuse([Task("a", url, url, "memory://out/a.mp4")])
    said = json.dumps(result.as_dict())
    assert "me:***@127.0.0.1" in said and "secret" not in said


def test_warnings_name_urls(store, data, monkeypatch):
    from ddfm_fast.video import tasks

    real = tasks.fuse_video

    def warning(ir, vis, out, **options):
        warn(f"ir is {ir}: it is odd")
        return real(ir, vis, out, **options)

    monkeypatch.setattr(tasks, "fuse_video", warning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DDFMWarning)
        fuse(plan("memory://set", None, "memory://out")[:1])
    assert [str(one.message) for one in caught] == ["ir is memory://set/a_T.mp4: it is odd"]


def test_objects_are_looked_for_one_by_one_or_listed(store, monkeypatch):
    for n in range(40):
        store.pipe_file(f"/out/deep/{n}.mp4", b"x")
    some = [f"memory://out/deep/{n}.mp4" for n in range(38, 42)]
    many = [f"memory://out/deep/{n}.mp4" for n in range(20, 60)]
    assert objects.existing([]) == set()
    assert objects.existing([*some, "memory://out/deep"]) == {*some[:2]}
    monkeypatch.setattr(objects, "look", None)
    assert objects.existing(many) == {*many[:20]}
