"""Names that a file cannot have, and dangling links: only their own item fails."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from batches import NEEDS_POSIX, add_pair, make_fuser, names, run
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.batch import run_batch
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.jobs import plan_jobs, run_jobs
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.pairing import match_pairs
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image

pytestmark = NEEDS_POSIX
TOO_LONG, NO_NAME, BYTE = "n" * 300, "x\ud800", "x\udc80"
"""a name too long, one that no file can have, and one with a byte that is no text"""


@pytest.fixture
def data(tmp_path) -> Path:
    for n, name in enumerate("ab"):
        add_pair(tmp_path / "data", name, seed=n)
    return tmp_path / "data"


@pytest.fixture
def loop(tmp_path) -> Path:
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


def test_links_that_lead_nowhere_fail_alone(data, tmp_path):
    for n, stem in enumerate(("circle", "nothing")):
        add_pair(data, stem, seed=n)
        (data / "ir" / f"{stem}.png").unlink()
        target = f"{stem}.png" if stem == "circle" else "absent"
        (data / "ir" / f"{stem}.png").symlink_to(target)
    (data / "vi" / "folder").symlink_to("folder")
    assert [stem for stem, *_ in match_pairs(data / "ir", data / "vi")] == [
        *"ab",
        "circle",
        "nothing",
    ]
    report = run(data, tmp_path / "out")
    assert names(report, "done") == set("ab") and names(report, "failed") == {"circle", "nothing"}
    errors = {result.name: result.error or "" for result in report.results}
    assert "ir/circle.png: cannot be reached (Too many" in errors["circle"]
    assert "ir/nothing.png: no such file" in errors["nothing"]
    jobs = run_jobs(plan_jobs(data / "ir", data / "vi", tmp_path / "fused"), make_fuser())
    assert [job["ok"] for job in jobs] == [True, True, False, False]


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ODD = {
    "folder": (Path.mkdir, "is a folder, expected an image"),
    "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "dangling": (lambda path: path.symlink_to("absent"), "no such file"),
}


@pytest.mark.parametrize("side", ["ir", "vi"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_fails_its_pair_alone(data, tmp_path, kind, side):
    make, words = ODD[kind]
    add_pair(data, "odd")
    (data / side / "odd.png").unlink()
    make(data / side / "odd.png")
    listed = tmp_path / "pairs.json"
    listed.write_text(json.dumps([[f"ir/{n}.png", f"vi/{n}.png"] for n in ("a", "b", "odd")]))
    ways = [find_pairs(data), find_pairs((data / "ir", data / "vi"))]
    ways += [find_pairs(data, manifest=listed)] if kind != "dangling" else []
    for n, items in enumerate(ways):
        report = run_batch(items, tmp_path / f"out{n}", make_fuser())
        assert names(report, "done") == set("ab") and names(report, "failed") == {"odd"}
        assert words in next(r.error for r in report.results if r.name == "odd")
    jobs = run_jobs(plan_jobs(data / "ir", data / "vi", tmp_path / "fused"), make_fuser())
    assert [job["ok"] for job in jobs] == [True, True, False] and words in jobs[2]["error"]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_and_alone_is_left_out(data, kind):
    ODD[kind][0](data / "ir" / "odd.png")
    with pytest.warns(
        DDFMWarning, match="left out, as they are not files and have no partner: .*odd.png"
    ):
        assert [item.name for item in find_pairs(data)] == ["a", "b"]
    with pytest.warns(
        DDFMWarning, match="left out, as they are not files and have no partner: .*odd.png"
    ):
        assert [stem for stem, *_ in match_pairs(data / "ir", data / "vi")] == ["a", "b"]


@pytest.mark.parametrize("name", [TOO_LONG, NO_NAME])
def test_items_of_such_names_fail_alone(data, tmp_path, name):
    good = (data / "ir" / "a.png", data / "vi" / "a.png")
    items = [
        PairItem("good", *good),
        PairItem("input", data / "ir" / f"{name}.png", good[1]),
        PairItem(name, *good),
        PairItem(f"{name}/deep", *good),
    ]
    for _ in range(2):  # a new output folder, then an existing one
        report = run_batch(items, tmp_path / "out", make_fuser(), redo=True)
        assert names(report, "done") == {"good"} and report.count("failed") == 3
        errors = [result.error for result in report.results[1:]]
        assert all(
            ascii(name)[1:-1] in error.encode("ascii", "backslashreplace").decode()
            for error in errors
        )
        assert not any(error.startswith("[Errno") for error in errors)
    listed = tmp_path / "pairs.json"
    rows = [{"ir": str(item.ir), "vis": str(item.vis), "name": item.name} for item in items]
    listed.write_text(json.dumps(rows))
    assert names(run_batch(find_pairs(listed), tmp_path / "o", make_fuser()), "done") == {"good"}


def test_a_byte_that_is_no_text_is_a_name_like_others(data, tmp_path):
    add_pair(data, BYTE)
    report = run(data, tmp_path / BYTE)
    assert report.ok and names(report, "done") == {"a", "b", BYTE}


@pytest.mark.parametrize("name", [TOO_LONG, NO_NAME, "loop"])
def test_such_names_are_refused_in_a_sentence(data, tmp_path, loop, name):
    path, pair = tmp_path / name, (data / "ir" / "a.png", data / "vi" / "a.png")
    image = read_image(pair[0])
    calls = (
        lambda: write_image(path / "a.png", image),
        lambda: read_image(path / "a.png"),
        lambda: match_pairs(path, data / "vi"),
        lambda: find_pairs(path),
        lambda: find_pairs((path, data / "vi")),
        lambda: find_pairs(None, manifest=path / "list.json"),
        lambda: plan_jobs(*pair, path),
        lambda: plan_jobs(*pair, path / "a.png"),
        lambda: plan_jobs(path, data / "vi", tmp_path / "o"),
        lambda: run(data, path),
    )
    for call in calls:
        with pytest.raises(ImageFileError):
            call()


def test_a_link_to_itself_is_not_written_over(tmp_path, data):
    link = tmp_path / "round.png"
    link.symlink_to(link)
    with pytest.raises(ImageFileError, match="round.png: cannot be reached .Too many levels"):
        write_image(link, read_image(data / "ir" / "a.png"))
    assert link.is_symlink()


@pytest.mark.parametrize("command", ["fuse", "batch", "video"])
@pytest.mark.parametrize("name", [TOO_LONG, "loop"])
def test_such_an_output_is_bad_input(data, tmp_path, loop, command, name):
    line = [command, str(data / "ir"), str(data / "vi"), "-o", str(tmp_path / name)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.exception
    (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert str(tmp_path / name) in error and "cannot be" in error
