"""Data sets of many pairs: what listing, planning and resuming ask the system for, and hold.

Nothing here is timed: `tests/tools/many_pairs.py` times a million.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from batches import make_fuser
from many_pairs import finished, tree

from ddfm_fast.datasets import batch, history
from ddfm_fast.datasets.batch import REPORT, run_batch
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.paths import split_suffix

FOLDERS = 10
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="counts of POSIX")


@pytest.fixture
def stats(monkeypatch) -> Counter[str]:
    """Counts how often files are looked up, by name, and folders are listed."""
    found: Counter[str] = Counter()
    for name in ("stat", "lstat", "scandir", "listdir"):
        real = getattr(os, name)

        def call(*arguments, real=real, name=name, **more):
            found[name] += 1
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, call)
    return found


@pytest.mark.parametrize("by_list", [False, True], ids=["tree", "manifest"])
def test_listing_looks_at_folders_alone(tmp_path, stats, by_list):
    """The counts are the same for 40 files per folder as for 400."""
    counts = []
    for files in (40, 400):
        root = tree(tmp_path / str(files), files, FOLDERS)
        stats.clear()
        given = {"root": root, "manifest": root / "list.csv"} if by_list else {"root": root / "in"}
        items = find_pairs(**given, check_sizes=False)
        counts.append(dict(stats))
        assert len(items) == FOLDERS * files
        assert items[0] == PairItem(
            "00/00000", root / "in/ir/00/00000.png", root / "in/vi/00/00000.png"
        )
    assert counts[0] == counts[1], "no file is asked for"
    assert counts[0]["scandir"] <= 3 * FOLDERS


def test_a_list_names_what_is_missing(tmp_path, stats):
    """This holds in folders that are listed, too, and for links, one of which is dangling."""
    root = tree(tmp_path, 60, FOLDERS)
    gone = ["in/ir/03/00007.png", "in/vi/05/00008.png", "in/vi/05/00009.png"]
    for name in gone:
        (root / name).unlink()
    (root / gone[1]).symlink_to(root / "vi.png")
    (root / gone[2]).symlink_to(root / "nowhere.png")
    with pytest.raises(ValueError, match="2 files do not exist") as error:
        find_pairs(root, manifest=root / "list.csv")
    assert all(name in str(error.value) for name in (gone[0], gone[2]))
    assert gone[1] not in str(error.value)


def test_bad_entries_alone_carry_an_error(tmp_path, stats):
    """Many good entries beside them cost nothing extra; no other file is looked up."""
    root = tree(tmp_path, 60, FOLDERS)
    (root / "in/vi/05/00008.png").unlink()
    lines = (root / "list.csv").read_text().splitlines()
    whole = find_pairs(root, manifest=write(root / "whole.csv", lines[:300]), check_sizes=False)
    lines.insert(200, "odd,,in/vi/00/00000.png")
    stats.clear()
    listed = write(root / "list.csv", lines)
    items = find_pairs(root, manifest=listed, check_sizes=False, strict=False)
    bad = {item.name: item for item in items if item.error}
    assert bad.keys() == {"line 201", "05/00008"}
    assert bad["line 201"].error == f"{listed}, line 201: ir is ''; expected a path"
    gone = root / "in/vi/05/00008.png"
    assert bad["05/00008"].error == f"{gone} is not there; paths in the list are relative to {root}"
    assert bad["05/00008"].vis == gone
    assert len(items) == FOLDERS * 60 + 1
    assert {type(item) for item in items if not item.error} == {PairItem}
    assert {*map(sys.getsizeof, whole)} == {sys.getsizeof(i) for i in items if not i.error}
    assert stats["stat"] + stats["lstat"] < 20
    for item in bad.values():
        for other in (pickle.loads(pickle.dumps(item)), item.with_name(item.name)):
            assert other == item and other.error == item.error
        assert item != PairItem(item.name, item.ir, item.vis)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_resuming_looks_at_each_file_once_and_reads_none(tmp_path, stats, monkeypatch):
    counts = []
    for files in (40, 400):
        items = finished(tree(tmp_path / str(files), files, FOLDERS), FOLDERS)
        monkeypatch.setattr(history, "file_sha256", lambda *_: pytest.fail("a file is read"))
        stats.clear()
        report = run_batch(items, tmp_path / str(files) / "out", make_fuser())
        counts.append(Counter(stats))
        monkeypatch.undo()
        stats_again(stats, monkeypatch)
        assert report.ok and report.count("skipped") == len(items)
        assert report.results[7].name == items[7].name and report.results[7].height == 16
    more = counts[1] - counts[0]
    assert more == {"stat": 3 * FOLDERS * 360}, "both inputs and the output, once"


def stats_again(found: Counter[str], monkeypatch) -> None:
    """Resume the counting that ``undo`` ended."""
    for name in ("stat", "lstat", "scandir", "listdir"):
        real = getattr(os, name)

        def call(*arguments, real=real, name=name, **more):
            found[name] += 1
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, call)


def test_memory_of_many_pairs(tmp_path):
    """10,000 pairs take limited memory each when they are listed, read from a list and resumed."""
    pairs = 10_000
    root = tree(tmp_path, pairs // FOLDERS, FOLDERS)
    items = finished(root, FOLDERS)
    del items
    fuser = make_fuser()
    find_pairs(root / "one" / ".." / "in", check_sizes=False)  # loads modules
    tracemalloc.start()
    try:
        listed = peak(lambda: find_pairs(root / "in", check_sizes=False))
        by_list = peak(lambda: find_pairs(root, manifest=root / "list.csv", check_sizes=False))
        items = find_pairs(root / "in", check_sizes=False)
        run_batch(items[:10], root / "out", fuser)
        resumed = peak(lambda: run_batch(items, root / "out", fuser))
    finally:
        tracemalloc.stop()
    assert listed < 280 * pairs, listed / pairs
    assert by_list < 400 * pairs, by_list / pairs
    assert resumed < 150 * pairs, f"beside the items: {resumed / pairs}"
    report = json.loads((root / "out" / REPORT).read_text())
    assert report["skipped"] == len(report["results"]) == pairs


def peak(work) -> int:
    """Return the most bytes held at once, above what was held before."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    work()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("what", ["ir", "vi", "out"])
def test_what_changed_by_its_bytes_alone_is_found(tmp_path, what):
    """A file with the same size but a new time is hashed, and done again only if it differs."""
    root = tree(tmp_path, 1, FOLDERS)
    items = finished(root, FOLDERS)
    path = {"out": root / "out/04/00000.png"}.get(what, root / "in" / what / "04/00000.png")
    os.utime(path)
    assert run_batch(items, root / "out", make_fuser()).count("skipped") == FOLDERS
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in or near the checksum of the pixels: no picture, but of the same size
    path.write_bytes(data)
    report = run_batch(items, root / "out", make_fuser())
    changed = [one.name for one in report.results if one.status != "skipped"]
    assert changed == ["04/00000"]


@pytest.mark.parametrize("far", [0.0, 1.0], ids=["in threads", "here"])
@pytest.mark.parametrize("block", [0, 1 << 20], ids=["line by line", "at once"])
def test_what_changed_is_found_among_many(tmp_path, monkeypatch, far, block):
    """An input, an output and a line of other settings are found, however lines are read."""
    monkeypatch.setattr(history, "_BLOCK", block)
    monkeypatch.setattr(batch, "FAR", far)
    monkeypatch.setattr(batch, "CHECKED", 7)
    root = tree(tmp_path, 6, FOLDERS)
    items = finished(root, FOLDERS)
    for role in ("in/ir/03/00002", "out/05/00001"):
        link = root / f"{role}.png"
        data = link.read_bytes()
        link.unlink()
        link.write_bytes(data if role.startswith("in") else data[:-1] + b"x")
    lines = (root / "out" / HISTORY_FILE).read_text().splitlines(keepends=True)
    odd = next(n for n, line in enumerate(lines) if '"name": "07/00004"' in line)
    lines[odd] = lines[odd].replace('"settings": "', '"settings": "0')
    (root / "out" / HISTORY_FILE).write_text("".join(lines))
    report = run_batch(items, root / "out", make_fuser())
    done = [result.name for result in report.results if result.status == "done"]
    assert done == ["05/00001", "07/00004"], "an input of the same bytes is told by its hash"
    written = json.loads((root / "out" / batch.REPORT).read_text())
    assert [one["status"] for one in written["results"]].count("skipped") == len(items) - 2
    assert written["results"] == json.loads(json.dumps(report.to_dict()["results"]))


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "a",
        ".png",
        "..png",
        "...",
        "a.",
        ".a.png",
        "..a.b",
        "a.tar.gz",
        ".",
        "",
        "a..",
        "é.x",
    ],
)
def test_split_suffix_is_that_of_the_standard_library(name):
    assert split_suffix(name) == os.path.splitext(name)


@pytest.mark.parametrize("folder", ["", ".", "/", "a", "a/b/", "//"])
@pytest.mark.parametrize("file", ["x.png", "x", ".x.png", "..png", "x.tar.gz"])
def test_the_names_of_an_item_are_those_of_its_files(folder, file):
    files = os.path.join(folder, file), os.path.join(folder, "v", file)
    item = PairItem("above/" + os.path.splitext(file)[0], *files)
    assert item.files == files
    assert (item.ir, item.vis) == (Path(files[0]), Path(files[1]))
    assert item.name == "above/" + os.path.splitext(file)[0]
