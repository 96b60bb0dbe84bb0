"""The history behind a URL: its parts, and what merging them may meet with."""

from __future__ import annotations

import json
import warnings

import pytest

from ddfm_fast.datasets import remote_history
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.remote_history import HISTORY, PartWriter, RemoteHistory
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.storage import objects
from ddfm_fast.storage.trouble import explained

pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")

URL, SETTINGS = "memory://out", {"steps": 2}
INPUTS = ["1 a", "2 b"]
COUNT = 6


@pytest.fixture(autouse=True)
def _empty():
    memory.MemoryFileSystem.store.clear()
    memory.MemoryFileSystem.pseudo_dirs[:] = [""]


def history(settings=SETTINGS) -> RemoteHistory:
    return RemoteHistory(URL, settings, ".png")


def record(name: str, size: int = 3, **more) -> dict:
    return {"name": name, "inputs": INPUTS, "size": size, "version": "", **more}


def write(writer: PartWriter, *names: str) -> None:
    """Put pictures, and then their part."""
    for name in names:
        objects.put(f"{URL}/{name}.png", b"abc")
    writer.put([record(name) for name in names])


def written(count: int = COUNT) -> None:
    """Leave what a killed run leaves: a part for each picture."""
    writer = history().writer
    for n in range(count):
        write(writer, str(n))


def parts() -> list[str]:
    return [*objects.listing(f"{URL}/{HISTORY}")]


def done(found: RemoteHistory, count: int = COUNT) -> list[int]:
    return [n for n in range(count) if found.is_done(PairItem(str(n), "a", "b"), INPUTS)]


def test_small_parts_become_one_and_the_lines_stay():
    written()
    assert len(parts()) == COUNT
    history().merge()
    (merged,) = parts()
    head, *lines = map(json.loads, objects.read(f"{URL}/{HISTORY}/{merged}").splitlines())
    assert len(head["replaces"]) == COUNT and [line["name"] for line in lines] == [*"012345"]
    assert done(history()) == [*range(COUNT)]
    history().merge()
    assert parts() == [merged], "one part is left alone"
    write(history().writer, "6")
    history().merge()
    assert len(parts()) == 1 and done(history(), 7) == [*range(7)]


def test_a_run_merges_many_parts_before_it_begins(monkeypatch):
    written()
    assert done(history()) == [*range(COUNT)] and len(parts()) == COUNT
    monkeypatch.setattr(remote_history, "MANY", COUNT - 1)
    assert done(history()) == [*range(COUNT)] and len(parts()) == 1


def test_large_parts_stay_as_they_are(monkeypatch):
    written()
    size = objects.look(f"{URL}/{HISTORY}/{parts()[0]}").size
    monkeypatch.setattr(remote_history, "LARGEST", 3 * size)
    history().merge()
    two = parts()
    assert len(two) == 2 and done(history()) == [*range(COUNT)]
    history().merge()
    assert parts() == two


def test_a_kill_between_merging_and_deleting_costs_nothing(monkeypatch):
    def kill(_url):
        raise KeyboardInterrupt

    written()
    with monkeypatch.context() as patched:
        patched.setattr(remote_history, "remove", kill)
        with pytest.raises(KeyboardInterrupt):
            history().merge()
    assert len(parts()) == COUNT + 1
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(remote_history, "read", lambda url: asked.append(url) or objects.read(url))
        assert done(history()) == [*range(COUNT)]
    assert len(asked) == 1, "what is in the merged part is not read again"
    history().merge()
    assert len(parts()) == 1 and done(history()) == [*range(COUNT)]


def test_without_the_right_to_delete_objects_do_not_multiply(monkeypatch):
    def refuse(url):
        raise explained(PermissionError("no"), url, "deleted")

    monkeypatch.setattr(remote_history, "remove", refuse)
    monkeypatch.setattr(remote_history, "MANY", 5)
    written(3)
    history().merge()
    assert len(parts()) == 4
    for n in range(3, 7):
        write(history().writer, str(n))
        history().merge()
        assert len(parts()) == n + 2
    write(history().writer, "7")
    history().merge()
    assert len(parts()) == 10, "five more became one"
    history().merge()
    assert len(parts()) == 10 and done(history(), 8) == [*range(8)]


def test_a_part_that_was_not_read_is_not_deleted(monkeypatch):
    """A worker, of another run or of a killed one, puts it while others are merged."""
    written()
    put, late = objects.put, PartWriter(URL, history().writer.key, 0)

    def put_late(url, data):
        if "-merged" in url:
            monkeypatch.setattr(remote_history, "put", put)
            write(late, "6")
        return put(url, data)

    monkeypatch.setattr(remote_history, "put", put_late)
    history().merge()
    assert len(parts()) == 2 and done(history(), 7) == [*range(7)]


def test_parts_that_another_run_merges_while_they_are_read_are_found(monkeypatch):
    written()
    other, read = history(), objects.read

    def read_late(url):
        monkeypatch.setattr(remote_history, "read", read)
        other.merge()
        return read(url)

    monkeypatch.setattr(remote_history, "read", read_late)
    assert done(history()) == [*range(COUNT)] and len(parts()) == 1


def test_two_runs_that_merge_at_once_lose_nothing(monkeypatch):
    """Both have read all parts when both put theirs."""
    written()
    one, other, remove = history(), history(), objects.remove

    def merge_first(url):
        monkeypatch.setattr(remote_history, "remove", remove)
        other.merge()
        remove(url)

    def none_yet(self, names):
        return [read_part(name) for name in names]

    read_part = {name: remote_history._read_part(URL, name) for name in parts()}.get
    monkeypatch.setattr(remote_history, "remove", merge_first)
    monkeypatch.setattr(other, "_read", none_yet.__get__(other))
    one.merge()
    assert done(history()) == [*range(COUNT)]
    history().merge()
    assert len(parts()) == 1 and done(history()) == [*range(COUNT)]


def test_the_later_run_counts_though_its_clock_is_behind(monkeypatch):
    written()
    monkeypatch.setattr(remote_history.time, "time_ns", lambda: 5)
    other = history({"steps": 9})
    write(other.writer, "1", "2")
    assert done(history()) == [0, 3, 4, 5] and done(history({"steps": 9})) == [1, 2]
    history().merge()
    assert len(parts()) == 1
    assert done(history()) == [0, 3, 4, 5] and done(history({"steps": 9})) == [1, 2]


def test_a_picture_is_done_if_size_and_version_are_those_of_its_line():
    found = history()
    for name in "0123":
        objects.put(f"{URL}/{name}.png", b"abc")
    version = objects.listing(URL)["0.png"].version
    lines = [record("0", version=version), record("1", version="x"), record("2", 4), record("3")]
    found.writer.put(lines)
    assert done(history()) == [0, 3]


def test_a_damaged_part_and_other_files_stay():
    written()
    damaged, foreign = f"{'9' * 20}-01234567.jsonl", "notes.txt"
    objects.put(f"{URL}/{HISTORY}/{damaged}", b'{"name": "0", "settings"\n3\n')
    objects.put(f"{URL}/{HISTORY}/{foreign}", b"mine")
    with pytest.warns(DDFMWarning, match="a line of the history cannot be read"):
        found = history()
    found.merge()
    assert len(parts()) == 3 and {damaged, foreign} < {*parts()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDFMWarning)
        assert done(history()) == [*range(COUNT)]
