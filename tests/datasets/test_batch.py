"""Whole data sets: what is written, and that nothing is lost, half-written or done twice."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import tanh_prior
from typer.testing import CliRunner

from ddfm_fast import Fuser, fuse
from ddfm_fast.cli.app import app
from ddfm_fast.datasets import batch
from ddfm_fast.datasets.batch import (
    MANIFEST,
    REPORT,
    STAGING,
    BatchInterrupted,
    Manifest,
    _prefetch,
    describe_settings,
    is_out_of_memory,
    run_batch,
)
from ddfm_fast.datasets.pairs import PairItem, find_pairs
from ddfm_fast.images.files import ImageFileError, read_image, write_image
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.unet import UNet, UNetConfig

SETTINGS = {"steps": 2, "device": "cpu"}
NEEDS_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def picture(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    """A ramp with some texture, so that the result is no constant."""
    noise = np.random.default_rng(seed).random(shape)
    ramp = np.linspace(0.1, 0.8, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return ((ramp + 0.2 * noise) * np.iinfo(dtype).max).astype(dtype)


def add_pair(root: Path, name: str, size=(16, 24), seed: int = 0, dtype=np.uint8) -> None:
    folder, _, stem = name.rpartition("/")
    write_image(root / folder / "ir" / f"{stem}.png", picture(seed, *size, dtype=dtype))
    write_image(root / folder / "vi" / f"{stem}.png", picture(seed + 100, *size, 3, dtype=dtype))


@pytest.fixture
def data(tmp_path) -> Path:
    """Five pairs in two parts, of two sizes that take turns."""
    for n, name in enumerate(("test/a", "test/b", "test/c", "train/a", "train/b")):
        add_pair(tmp_path / "data", name, (16, 24) if n % 2 == 0 else (20, 20), seed=n)
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


class CountingPrior:
    """The analytic prior; notes the batch of each evaluation and refuses what it is told to."""

    multiple = 1
    has_variance = False

    def __init__(self, refuse=lambda x: None):
        self.shapes: list[tuple[int, ...]] = []
        self.refuse = refuse

    def __call__(self, x, t):
        self.shapes.append((len(x), *x.shape[2:]))
        error = self.refuse(x)
        if error is not None:
            raise error
        return tanh_prior(x, t)


def make_fuser(prior=tanh_prior, **settings) -> Fuser:
    return Fuser(prior=prior, **{**SETTINGS, **settings})


def run(data: Path, out: Path, prior=tanh_prior, *, settings=None, **options):
    items = find_pairs(data, check_sizes=False)
    return run_batch(items, out, make_fuser(prior, **(settings or {})), **options)


def states(report) -> dict[str, str]:
    return {result.name: result.status for result in report.results}


def names(report, status: str) -> set[str]:
    return {name for name, found in states(report).items() if found == status}


def pictures(out: Path) -> dict[str, tuple]:
    """Output name → what tells a file from one that was written anew."""
    found = {}
    for path in out.rglob("*.png"):
        if STAGING not in path.parts:
            stat = path.stat()
            found[path.relative_to(out).with_suffix("").as_posix()] = (
                stat.st_ino,
                stat.st_mtime_ns,
                path.read_bytes(),
            )
    return found


def lines(out: Path, *, torn: bool = False) -> list[dict]:
    """The manifest; ``torn`` allows for a last line that a kill cut off."""
    found = (out / MANIFEST).read_text().split("\n")
    assert torn or found[-1] == ""
    return [json.loads(line) for line in found[:-1]]


ALL = {"test/a", "test/b", "test/c", "train/a", "train/b"}


# What it writes


def test_each_file_is_what_fuse_gives(data, out):
    report = run(data, out)
    assert report.ok and states(report) == dict.fromkeys(sorted(ALL), "done")
    for item in find_pairs(data):
        expected = fuse(read_image(item.ir), read_image(item.vis), prior=tanh_prior, **SETTINGS)
        np.testing.assert_array_equal(read_image(out / f"{item.name}.png"), expected)
    assert {p.name for p in out.iterdir()} == {"test", "train", MANIFEST, REPORT}


def test_the_manifest_and_the_report_say_how(data, out):
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
    report = run(data, out, format="jpg")
    assert names(report, "failed") == {"test/deep"} and "16 bits" in report.results[3].error


# Started again


def test_a_second_run_touches_nothing(data, out):
    first = run(data, out)
    before, history = pictures(out), (out / MANIFEST).read_bytes()
    prior = CountingPrior()
    prior.__name__ = tanh_prior.__name__
    second = run(data, out, prior)
    assert second.ok and names(second, "skipped") == ALL and prior.shapes == []
    assert pictures(out) == before and (out / MANIFEST).read_bytes() == history
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
    assert names(run(data, out), "done") == ALL  # what is there is of the other setting


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
    monkeypatch.setattr(batch, "MATHS_VERSION", batch.MATHS_VERSION + 1)
    assert names(run(data, out), "done") == ALL


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_maths_are_those_of_this_version(sampler):
    """If this fails on purpose, raise ``batch.MATHS_VERSION`` and put in the new numbers."""
    pair = picture(1, 16, 16), picture(2, 16, 16)
    fused = fuse(*pair, prior=tanh_prior, sampler=sampler, steps=4, device="cpu")
    assert batch.MATHS_VERSION == 2
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
        path = out / MANIFEST
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
    assert json.loads((out / MANIFEST).read_text().splitlines()[-1])["name"] == "test/b"
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
        "test/b": "20x20 and vis 20x21",
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
    with pytest.warns(UserWarning, match="4 images of 32x32 at once; going on with 2"):
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
        for n, value in enumerate(_prefetch(pool, work, range(50), 3)):
            assert value == n
            time.sleep(0.001)
            with lock:
                under_way -= 1
    assert 2 <= most <= 5  # three ahead, one handed out, one just submitted


# Outputs that cannot be written


def test_a_full_disk_ends_the_run_and_the_next_goes_on(data, out, monkeypatch):
    room = [2]

    def write(path, array):
        if room[0] == 0:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise ImageFileError(f"{path}: cannot be written") from cause
        room[0] -= 1
        return write_image(path, array)

    monkeypatch.setattr(batch, "write_image", write)
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
    (out / MANIFEST).mkdir(parents=True)
    with pytest.raises(ImageFileError, match=MANIFEST):
        run(data, out)
    (out.with_name("other") / "test" / "a.png").mkdir(parents=True)
    with pytest.raises(ValueError, match="a.png is a folder"):
        run(data, out.with_name("other"))
    items = [PairItem("a", data / "test/ir/a.png", data / "test/vi/a.png")]
    for folder in (data / "test" / "ir", data / "test" / "vi" / ".." / "vi"):
        with pytest.raises(ValueError, match="replace an input"):
            run_batch(items, folder, make_fuser())
    assert not (data / "test" / "ir" / MANIFEST).exists()


@NEEDS_POSIX
def test_two_runs_do_not_share_a_folder(data, out):
    out.mkdir()
    with (
        Manifest(out, describe_settings(make_fuser(), ".png")),
        pytest.raises(ImageFileError, match="another run"),
    ):
        run(data, out)
    assert run(data, out).ok


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


# The command


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory) -> str:
    torch.manual_seed(0)
    config = UNetConfig(model_channels=32, num_res_blocks=1, attention_resolutions=())
    config = dataclasses.replace(config, channel_mult=(1,), middle_attention=False)
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    return str(save_unet(path, UNet(config)))


@pytest.fixture
def call(tiny_prior):
    def command(*arguments):
        options = ["--prior", tiny_prior, "--steps", "2", "--device", "cpu"]
        return CliRunner().invoke(app, ["batch", *map(str, arguments), *options])

    return command


def test_command(call, data, out, tiny_prior):
    result = call(data, "-o", out)
    assert result.exit_code == 0, result.output
    assert "5 fused, 0 there already, 0 failed" in result.stdout and result.stderr == ""
    result = call(data, "-o", out, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["ok"] and report["skipped"] == 5
    item = find_pairs(data)[0]
    expected = fuse(read_image(item.ir), read_image(item.vis), prior=tiny_prior, **SETTINGS)
    np.testing.assert_array_equal(read_image(out / "test" / "a.png"), expected)
    assert call(data, "-o", out, "--seed", 1, "-q").output == ""
    assert "5 fused" in call(data, "-o", out, "--seed", 1, "--redo").stdout


def test_command_with_two_folders_a_list_or_a_layout(call, data, out):
    test = data / "test"
    (data / "x.csv").write_text("ir,vis,name\ntest/ir/a.png,test/vi/b.png,x\n")
    for n, (arguments, code, words) in enumerate(
        [
            ([test / "ir", test / "vi"], 0, "3 fused"),
            ([data, "--layout", "ir,vi"], 0, "5 fused"),
            ([data, "--layout", "llvip"], 2, "no pairs"),
            ([data / "x.csv"], 1, "x: ir has 16x24 and vis 20x20"),
            ([data, "--manifest", data / "x.csv"], 1, "1 failed"),
            ([test / "ir", test / "vi", "--manifest", data / "x.csv"], 2, "leave out one"),
        ]
    ):
        result = call(*arguments, "-o", out / str(n))
        assert result.exit_code == code and words in result.output, result.output


def test_command_reports_failures(call, data, out):
    (data / "test" / "ir" / "a.png").write_bytes(b"junk")
    result = call(data, "-o", out)
    assert result.exit_code == 1
    assert "4 fused, 0 there already, 1 failed" in result.stdout
    assert result.stderr.startswith("error: test/a: ") and "a.png" in result.stderr
    result = call(data, "-o", out, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and not report["ok"]
    assert [r["name"] for r in report["results"] if r["error"]] == ["test/a"]


def test_command_refuses(call, data, out):
    (data.parent / "file").write_text("in the way")
    for arguments, words in [
        ([data / "none", "-o", out], "none"),
        ([data.parent / "out2", "-o", out], "no such"),
        ([data, "-o", data.parent / "file" / "out"], "file"),
        ([data, "-o", out, "--format", "gif"], "gif"),
        ([data, "-o", out, "--preset", "none"], "preset"),
    ]:
        result = call(*arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output
        assert result.stderr.startswith("error: ") and result.stdout == ""
    (data / "test" / "vi" / "b.png").unlink()
    result = call(data, "-o", out, "--json")
    assert result.exit_code == 2 and "b.png" in json.loads(result.stdout)["error"]


def test_command_after_ctrl_c(call, data, out, monkeypatch):
    original, calls = Fuser.__call__, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Fuser, "__call__", interrupted)
    result = call(data, "-o", out, "--json")
    assert result.exit_code == 130
    assert "interrupted: 3 pairs not reached; start the same command again" in result.stderr
    assert json.loads(result.stdout)["stopped"] == "interrupted"
    assert "3 fused, 2 there already" in call(data, "-o", out).stdout


# A real process


@NEEDS_POSIX
def test_kill_9_and_resume(tmp_path, call, tiny_prior):
    data, out, whole = (tmp_path / n for n in ("data", "out", "whole"))
    for n in range(12):
        add_pair(data, f"{n:02}", (32, 32), seed=n)
    options = ["--prior", tiny_prior, "--steps", "10", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddfm_fast", "batch", str(data), "-o", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while len(pictures(out)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    kept = pictures(out)
    assert 3 <= len(kept) < 12
    assert kept.keys() <= {line.get("name") for line in lines(out, torn=True)}

    again = CliRunner().invoke(app, ["batch", str(data), "-o", str(out), *options, "--json"])
    report = json.loads(again.stdout)
    assert again.exit_code == 0 and again.stderr == ""
    assert report["skipped"] == len(kept) and report["done"] == 12 - len(kept)
    found = pictures(out)
    assert {name: found[name] for name in kept} == kept  # neither lost nor written again
    assert {p.name for p in out.iterdir()} == {
        MANIFEST,
        REPORT,
        *(f"{n:02}.png" for n in range(12)),
    }
    times = Counter(line["name"] for line in lines(out) if "name" in line)
    assert len(times) == 12 and all(times[name] == 1 for name in kept)

    run_batch(find_pairs(data), whole, Fuser(prior=tiny_prior, steps=10, device="cpu"))
    assert {n: p[2] for n, p in found.items()} == {n: p[2] for n, p in pictures(whole).items()}
