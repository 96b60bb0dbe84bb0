"""Whole data sets: what is written, and that nothing is lost, half-written or done twice."""

from __future__ import annotations

import errno
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from batches import (
    ALL,
    NEEDS_POSIX,
    SETTINGS,
    CountingPrior,
    add_pair,
    five_pairs,
    lines,
    make_fuser,
    names,
    picture,
    pictures,
    run,
    states,
)

from ddfm_fast import DDFMWarning, Fuser, fuse
from ddfm_fast.datasets import output
from ddfm_fast.datasets.ahead import prefetch
from ddfm_fast.datasets.batch import (
    REPORT,
    BatchInterrupted,
    run_batch,
)
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image
from ddfm_fast.files.writing import write_image
from ddfm_fast.runtime.memory import is_out_of_memory


@pytest.fixture
def data(tmp_path) -> Path:
    return five_pairs(tmp_path / "data")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


# What it writes


def test_each_file_is_what_fuse_gives(data, out):
    report = run(data, out)
    assert report.ok and states(report) == dict.fromkeys(sorted(ALL), "done")
    for item in find_pairs(data):
        expected = fuse(read_image(item.ir), read_image(item.vis), prior=tanh_prior, **SETTINGS)
        np.testing.assert_array_equal(read_image(out / f"{item.name}.png"), expected)
    assert {p.name for p in out.iterdir()} == {"test", "train", HISTORY_FILE, REPORT}


def test_equal_sizes_share_a_batch(data, out):
    prior = CountingPrior()
    assert run(data, out, prior, settings={"steps": 1}, batch_size=2).ok
    assert prior.shapes == [(2, 16, 24), (1, 16, 24), (2, 20, 20)]
    alone = out.with_name("alone")
    assert run(data, alone, tanh_prior, settings={"steps": 1}).ok
    assert {n: p[2] for n, p in pictures(out).items()} == {
        n: p[2] for n, p in pictures(alone).items()
    }


def test_the_fusers_own_batch_size_is_the_default_and_stays(data, out):
    prior = CountingPrior()
    fuser = make_fuser(prior, steps=1, batch_size=3)
    assert run_batch(find_pairs(data), out, fuser).batch_size == 3
    assert prior.shapes == [(3, 16, 24), (2, 20, 20)]
    run_batch(find_pairs(data), out, fuser, batch_size=1, redo=True)
    assert fuser.batch_size == 3


@pytest.mark.parametrize("format", ["tif", ".TIFF", "jpg", "bmp"])
def test_formats(data, out, format):
    assert run(data, out, format=format).ok
    assert read_image(out / f"test/a.{format.lower().lstrip('.')}").shape == (16, 24, 3)


def test_16_bits_stay_and_are_not_lost_in_jpeg(data, out):
    add_pair(data, "test/deep", dtype=np.uint16)
    assert run(data, out).ok
    assert read_image(out / "test" / "deep.png").dtype == np.uint16
    with pytest.warns(DDFMWarning, match=r"test/deep: the 16 bits .* \.png and \.tif") as said:
        report = run(data, out, format="jpg")
    assert report.ok and len(said) == 1
    assert report.results[3].dtype == "uint8" and report.results[3].range == [0, 255]
    scaled = np.rint(read_image(out / "test" / "deep.png") / 257).astype(np.uint8)
    expected = write_image(data / "expected.jpg", scaled)
    np.testing.assert_array_equal(read_image(out / "test" / "deep.jpg"), read_image(expected))


# Broken pairs


def test_broken_pairs_are_reported_and_the_others_go_on(data, out):
    (data / "test" / "ir" / "a.png").write_bytes(b"junk")
    cut = data / "train" / "vi" / "b.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    write_image(data / "test" / "vi" / "b.png", picture(3, 20, 21, 3))
    add_pair(data, "train/tiny", (8, 8))
    told = []
    items = [*find_pairs(data, check_sizes=False)]
    items.append(PairItem("lost", data / "none.png", data / "none too.png"))
    report = run_batch(items, out, make_fuser(), batch_size=4, on_error=told.append)
    assert names(report, "done") == {"test/c", "train/a"} and not report.ok
    errors = {result.name: result.error for result in told}
    assert errors == {r.name: r.error for r in report.results if r.status == "failed"}
    expected = {
        "test/a": "a.png",
        "train/b": "damaged",
        "test/b": "20x20 and vis is 20x21",
        "train/tiny": "16",
        "lost": "none.png",
    }
    assert set(errors) == set(expected)
    assert all(words in errors[name] for name, words in expected.items()), errors
    assert set(pictures(out)) == {"test/c", "train/a"}
    assert {line.get("name") for line in lines(out)[1:]} == {"test/c", "train/a"}
    cut.write_bytes(whole)
    again = run_batch(items, out, make_fuser())
    assert names(again, "done") == {"train/b"} and names(again, "skipped") == {"test/c", "train/a"}


def test_a_failure_keeps_the_older_picture(data, out):
    run(data, out)
    before = pictures(out)
    report = run(data, out, settings={"steps": 3}, max_pixels=10)
    assert names(report, "failed") == ALL and pictures(out) == before


def test_one_bad_pair_does_not_spoil_its_batch(tmp_path, out):
    for n in range(4):
        add_pair(tmp_path / "data", f"{n}", seed=n)
    bright = np.full((16, 24, 3), 255, np.uint8)
    write_image(tmp_path / "data" / "vi" / "2.png", bright)
    write_image(tmp_path / "data" / "ir" / "2.png", bright[..., 0])
    calls = []

    class Fragile(Fuser):
        def __call__(self, ir, vis, **options):
            calls.append(len(ir))
            if any(image.min() == 255 for image in vis):
                raise RuntimeError("white")
            return super().__call__(ir, vis, **options)

    items = find_pairs(tmp_path / "data")
    report = run_batch(items, out, Fragile(prior=tanh_prior, **SETTINGS), batch_size=4)
    assert states(report) == {"0": "done", "1": "done", "2": "failed", "3": "done"}
    assert report.results[2].error == "white"
    assert calls == [4, 1, 1, 1, 1] and report.batch_size == 4


# Memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_batches_shrink_where_memory_runs_out(tmp_path, out, error):
    for n in range(11):
        add_pair(tmp_path / "data", f"{n:02}", seed=n)
    prior = CountingPrior(lambda x: error if len(x) > 2 else None)
    with pytest.warns(UserWarning, match="memory ran out with"):
        report = run(tmp_path / "data", out, prior, settings={"steps": 1}, batch_size=8)
    assert report.ok and report.count("done") == 11 and report.batch_size == 2
    assert [shape[0] for shape in prior.shapes] == [8, 4, 2, 2, 2, 2, 2, 1]


def test_smaller_images_keep_larger_batches(tmp_path, out):
    for n in range(8):
        add_pair(tmp_path / "data", f"{n}", (32, 32) if n < 4 else (16, 16), seed=n)
    limit = lambda x: MemoryError() if x[:, 0].numel() > 2 * 32 * 32 else None  # noqa: E731
    prior = CountingPrior(limit)
    with pytest.warns(UserWarning, match="4 images of 32x32 at once; continuing with 2"):
        assert run(tmp_path / "data", out, prior, settings={"steps": 1}, batch_size=4).ok
    assert [shape[0] for shape in prior.shapes] == [4, 2, 2, 4]


def test_memory_that_is_too_small_for_one_pair(tmp_path, out):
    for n, size in enumerate([(16, 16), (64, 64), (16, 20)]):
        add_pair(tmp_path / "data", f"{n}", size, seed=n)
    prior = CountingPrior(lambda x: MemoryError() if x.shape[-1] > 32 else None)
    report = run(tmp_path / "data", out, prior)
    assert states(report) == {"0": "done", "1": "failed", "2": "done"}
    assert "memory ran out even for this pair" in report.results[1].error


def test_other_errors_are_no_want_of_memory():
    assert all(is_out_of_memory(error) for error in OUT_OF_MEMORY)
    assert not any(map(is_out_of_memory, (RuntimeError("shape"), ValueError("out of memory"))))


def test_reading_ahead_is_bounded():
    under_way, most, lock = 0, 0, threading.Lock()

    def work(n):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return n

    with ThreadPoolExecutor(8) as pool:
        for n, value in enumerate(prefetch(pool, work, range(50), 3)):
            assert value == n
            time.sleep(0.001)
            with lock:
                under_way -= 1
    assert 2 <= most <= 5  # three ahead, one handed out, one just submitted


# Outputs that cannot be written


def test_a_full_disk_ends_the_run_and_the_next_goes_on(data, out, monkeypatch):
    room = [2]

    def write(path, array, **options):
        if room[0] == 0:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise ImageFileError(f"{path}: cannot be written") from cause
        room[0] -= 1
        return write_image(path, array, **options)

    monkeypatch.setattr(output, "write_image", write)
    report = run(data, out, workers=1)
    assert report.stopped == f"{out}: No space left on device" and not report.ok
    assert report.count("done") == 2 == len(pictures(out)) and report.count("failed") >= 1
    assert json.loads((out / REPORT).read_text())["stopped"] == report.stopped
    monkeypatch.undo()
    again = run(data, out)
    assert again.ok and again.count("skipped") == 2


@NEEDS_POSIX
@pytest.mark.filterwarnings("ignore:the report was not written")
def test_writes_that_the_system_cuts_short(tmp_path, out):
    """A real limit on file sizes: large pictures and then the manifest itself do not fit."""
    import resource

    for n in range(12):
        add_pair(tmp_path / "data", f"{n:02}", (48, 48) if n % 3 == 0 else (16, 16), seed=n)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3500, hard))
    try:
        report = run(tmp_path / "data", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = names(report, "done")
    assert 1 <= len(done) < 8 and done == set(pictures(out))
    assert len(names(report, "failed")) == 12 - len(done)
    assert {line["name"] for line in lines(out)[1:]} == done
    assert all(read_image(out / f"{name}.png").shape == (16, 16, 3) for name in done)
    assert not list(out.rglob("*.tmp"))
    again = run(tmp_path / "data", out)
    assert again.ok and names(again, "skipped") == done


def test_outputs_that_cannot_be(data, out):
    (data.parent / "file").write_text("in the way")
    with pytest.raises(ImageFileError, match="file"):
        run(data, data.parent / "file" / "out")
    (out / HISTORY_FILE).mkdir(parents=True)
    with pytest.raises(ImageFileError, match=HISTORY_FILE):
        run(data, out)
    (out.with_name("other") / "test" / "a.png").mkdir(parents=True)
    with pytest.raises(ValueError, match="a.png is a folder"):
        run(data, out.with_name("other"))
    items = [PairItem("a", data / "test/ir/a.png", data / "test/vi/a.png")]
    for folder in (data / "test" / "ir", data / "test" / "vi" / ".." / "vi"):
        with pytest.raises(ValueError, match="replace an input"):
            run_batch(items, folder, make_fuser())
    assert not (data / "test" / "ir" / HISTORY_FILE).exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 1.5}, TypeError),
        ({"workers": 0}, ValueError),
        ({"workers": True}, TypeError),
        ({"format": "gif"}, ValueError),
    ],
)
def test_bad_arguments(data, out, options, error):
    with pytest.raises(error, match=next(iter(options))):
        run(data, out, **options)
    assert not out.exists()


def test_bad_items(data, out):
    item = PairItem("a", data / "test/ir/a.png", data / "test/vi/a.png")
    with pytest.raises(ValueError, match="empty"):
        run_batch([], out, make_fuser())
    with pytest.raises(ValueError, match="unique"):
        run_batch([item, item], out, make_fuser())


def test_ctrl_c_keeps_what_is_done(data, out):
    prior = CountingPrior()
    prior.__name__ = tanh_prior.__name__
    prior.refuse = lambda x: KeyboardInterrupt() if len(prior.shapes) == 6 else None
    with pytest.raises(BatchInterrupted) as caught:
        run(data, out, prior)
    report = caught.value.report
    assert report.count("done") == 2 == len(pictures(out)) and report.count("pending") == 3
    assert json.loads((out / REPORT).read_text())["stopped"] == "interrupted"
    again = run(data, out)
    assert again.ok and names(again, "skipped") == names(report, "done")
