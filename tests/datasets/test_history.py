"""What an output folder remembers: done is not redone, and what changed is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from batches import (
    ALL,
    NEEDS_POSIX,
    CountingPrior,
    add_pair,
    five_pairs,
    lines,
    make_fuser,
    names,
    picture,
    pictures,
    run,
)

from ddfm_fast import fuse
from ddfm_fast.datasets import history
from ddfm_fast.datasets.batch import (
    REPORT,
    STAGING,
)
from ddfm_fast.datasets.history import HISTORY_FILE, History, describe_settings
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image


@pytest.fixture
def data(tmp_path) -> Path:
    return five_pairs(tmp_path / "data")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@NEEDS_POSIX
@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["link", "hard link"])
def test_a_history_that_is_a_link_does_not_shorten_a_file(data, tmp_path, make):
    """An unfinished last line is cut off from a history, but from no other file."""
    notes = tmp_path / "notes.txt"
    notes.write_text("one line\nand half of one")
    (out := tmp_path / "out").mkdir()
    make(notes, out / HISTORY_FILE)
    with pytest.raises(ImageFileError, match=f"{HISTORY_FILE} is a link or not a file: remove it"):
        run(data, out)
    assert notes.read_text() == "one line\nand half of one"


def test_the_history_and_the_report_say_how(data, out):
    report = run(data, out)
    head, *pairs = lines(out)
    assert head["settings"] == report.settings == describe_settings(make_fuser(), ".png")
    assert head["settings"]["config"]["steps"] == 2
    assert {p["name"] for p in pairs} == ALL
    assert {p["settings"] for p in pairs} == {head["run"]}
    assert {(p["height"], p["width"], p["dtype"]) for p in pairs} == {
        (16, 24, "uint8"),
        (20, 20, "uint8"),
    }
    written = json.loads((out / REPORT).read_text())
    assert written == json.loads(json.dumps(report.to_dict()))
    assert (written["ok"], written["done"], written["failed"]) == (True, 5, 0)


# Started again


def test_a_second_run_touches_nothing(data, out):
    first = run(data, out)
    before, history = pictures(out), (out / HISTORY_FILE).read_bytes()
    prior = CountingPrior()
    prior.__name__ = tanh_prior.__name__
    second = run(data, out, prior)
    assert second.ok and names(second, "skipped") == ALL and prior.shapes == []
    assert pictures(out) == before and (out / HISTORY_FILE).read_bytes() == history
    pick = lambda r: [(p.output, p.height, p.width, p.dtype, p.seconds) for p in r.results]  # noqa: E731
    assert pick(second) == pick(first)


def test_redo(data, out):
    run(data, out)
    assert names(run(data, out, redo=True), "done") == ALL


@pytest.mark.parametrize(
    "settings", [{"steps": 3}, {"seed": 1}, {"color": False}, {"psi": 0.4}, {"stretch": "none"}]
)
def test_a_changed_setting_redoes_everything(data, out, settings):
    run(data, out)
    assert names(run(data, out, settings=settings), "done") == ALL
    assert names(run(data, out, settings=settings), "skipped") == ALL
    assert names(run(data, out), "done") == ALL  # those there have the other settings


def test_a_changed_prior_redoes_everything(data, out):
    class Net(torch.nn.Module):
        multiple = 1

        def __init__(self, gain):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        def forward(self, x, t):
            return torch.tanh(x * self.gain)

    assert names(run(data, out, Net(0.5)), "done") == ALL
    assert names(run(data, out, Net(0.5)), "skipped") == ALL
    assert names(run(data, out, Net(0.6)), "done") == ALL


def test_changed_maths_redo_everything(data, out, monkeypatch):
    run(data, out)
    monkeypatch.setattr(history, "MATHS_VERSION", history.MATHS_VERSION + 1)
    assert names(run(data, out), "done") == ALL


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_maths_are_those_of_this_version(sampler):
    """If results were meant to change, raise ``history.MATHS_VERSION`` and enter new numbers."""
    pair = picture(1, 16, 16), picture(2, 16, 16)
    fused = fuse(*pair, prior=tanh_prior, sampler=sampler, steps=4, device="cpu")
    assert history.MATHS_VERSION == 2
    np.testing.assert_allclose(fused[::5, ::5].astype(int), PINNED[sampler], atol=1)


PINNED = {
    "ddim": [[15, 27, 33, 25], [84, 73, 111, 88], [181, 179, 159, 151], [230, 255, 230, 226]],
    "ddpm": [[11, 22, 28, 21], [85, 71, 124, 86], [173, 169, 172, 153], [237, 255, 236, 232]],
}


def change_input(which):
    def change(data, out):
        path = data / "test" / which / "b.png"
        write_image(path, 255 - read_image(path))

    return change


def change_output(change):
    return lambda data, out: change(out / "test" / "b.png")


def replace_history(edit):
    def change(data, out):
        path = out / HISTORY_FILE
        path.write_bytes(edit(path.read_bytes()))

    return change


def without_b(data: bytes) -> bytes:
    return b"".join(line for line in data.splitlines(keepends=True) if b'"test/b"' not in line)


def spoiled_b(data: bytes) -> bytes:
    return b"".join(
        b"{[junk\n" if b'"test/b"' in line else line for line in data.splitlines(keepends=True)
    )


def torn_b(data: bytes) -> bytes:
    (line,) = (line for line in data.splitlines(keepends=True) if b'"test/b"' in line)
    return without_b(data) + line[: len(line) // 2]


@pytest.mark.filterwarnings("ignore:.*lines cannot be read")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change_input("ir"), id="infrared"),
        pytest.param(change_input("vi"), id="visible"),
        pytest.param(change_output(Path.unlink), id="output deleted"),
        pytest.param(change_output(lambda p: p.write_bytes(p.read_bytes()[:99])), id="output cut"),
        pytest.param(change_output(lambda p: write_image(p, picture(7, 16, 24))), id="replaced"),
        pytest.param(replace_history(without_b), id="line missing"),
        pytest.param(replace_history(spoiled_b), id="line spoiled"),
        pytest.param(replace_history(torn_b), id="line torn"),
    ],
)
def test_only_what_changed_is_done_again(data, out, change):
    run(data, out)
    before = pictures(out)
    change(data, out)
    report = run(data, out)
    assert names(report, "done") == {"test/b"} and report.ok
    after = pictures(out)
    assert {n for n in ALL if after[n] == before[n]} == ALL - {"test/b"}
    assert json.loads((out / HISTORY_FILE).read_text().splitlines()[-1])["name"] == "test/b"
    assert names(run(data, out), "skipped") == ALL


def test_an_unreadable_line_is_told(data, out):
    run(data, out)
    replace_history(spoiled_b)(data, out)
    with pytest.warns(UserWarning, match="1 lines cannot be read"):
        run(data, out)


def test_what_a_killed_run_staged_is_cleared_away(data, out):
    (out / STAGING).mkdir(parents=True)
    (out / STAGING / "half.png").write_bytes(b"half")
    assert run(data, out).ok
    assert not (out / STAGING).exists()


def test_new_pairs_join(data, out):
    run(data, out)
    add_pair(data, "train/c", seed=9)
    assert names(run(data, out), "done") == {"train/c"}


@NEEDS_POSIX
def test_two_runs_do_not_share_a_folder(data, out):
    out.mkdir()
    with (
        History(out, describe_settings(make_fuser(), ".png")),
        pytest.raises(ImageFileError, match="another run"),
    ):
        run(data, out)
    assert run(data, out).ok
