"""``ddfm-fast batch``, as a command and as a process that is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import (
    NEEDS_POSIX,
    SETTINGS,
    add_pair,
    five_pairs,
    lines,
    pictures,
)
from typer.testing import CliRunner

from ddfm_fast import Fuser, fuse
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.batch import (
    REPORT,
    run_batch,
)
from ddfm_fast.datasets.history import HISTORY_FILE
from ddfm_fast.datasets.pairs import find_pairs
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.unet import UNet, UNetConfig


@pytest.fixture
def data(tmp_path) -> Path:
    return five_pairs(tmp_path / "data")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


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
    assert "5 fused, 0 already there, 0 failed" in result.stdout and result.stderr == ""
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
            ([data / "x.csv"], 1, "x: ir is 16x24 and vis is 20x20"),
            ([data, "--manifest", data / "x.csv"], 1, "1 failed"),
            ([test / "ir", test / "vi", "--manifest", data / "x.csv"], 2, "leave out one"),
        ]
    ):
        result = call(*arguments, "-o", out / str(n))
        assert result.exit_code == code and words in result.output, result.output


def test_a_bad_entry_of_a_list_fails_alone(call, data, out):
    good = "test/ir/a.png,test/vi/a.png,x\n"
    bad = ["test/ir/a.png,,y", "test/ir/gone.png,test/vi/a.png,z", "a.png,b.png,../up"]
    (data / "x.csv").write_text("ir,vis,name\n" + good + "\n".join(bad) + "\n")
    result = call(data / "x.csv", "-o", out)
    assert result.exit_code == 1, result.output
    assert "1 fused, 0 already there, 3 failed" in result.stdout
    for words in (
        "line 3: ", "expected a path", "z: ", "gone.png is not there; paths in the list are",
        "line 5: ", "expected a plain name",
    ):  # fmt: skip
        assert words in result.stderr, result.stderr
    again = call(data / "x.csv", "-o", out)
    assert again.exit_code == 1 and "0 fused, 1 already there, 3 failed" in again.stdout
    rows = [["test/ir/a.png", "test/vi/a.png"], ["one"], 4, {"ir": "test/ir/a.png", "vis": 4}]
    (data / "x.json").write_text(json.dumps(rows))
    result = call(data / "x.json", "-o", out / "j", "--range-over", "dataset")
    assert result.exit_code == 1 and "1 fused, 0 already there, 3 failed" in result.stdout
    assert "pair 3: " in result.stderr and "got 4" in result.stderr
    listed = call(data / "x.json", "--list")
    assert listed.exit_code == 1 and "1 pairs, 3 files without a partner" in listed.stdout
    assert "pair 2: " in listed.stdout


def test_a_list_without_a_good_entry_is_refused(call, data, out):
    (data / "x.csv").write_text("ir,vis\nno.png,none.png\n")
    result = call(data / "x.csv", "-o", out)
    assert result.exit_code == 2 and "2 files do not exist" in result.stderr
    assert not out.exists() or not list(out.glob("*.png"))


def test_a_file_without_a_partner_fails_alone(call, data, out):
    test = data / "test"
    for lone, like in [("ir/lone.png", "ir/a.png"), ("vi/other.png", "vi/a.png")]:
        (test / lone).write_bytes((test / like).read_bytes())
    with pytest.raises(ImageFileError, match="2 images without a partner"):
        find_pairs(data)
    assert "cannot be fused: " in call(data, "-o", out, "--dry-run").stdout
    result = call(data, "-o", out, "--range-over", "dataset")
    assert result.exit_code == 1, result.output
    assert "5 fused, 0 already there, 2 failed" in result.stdout
    assert (
        f"error: test/ir/lone.png: {test / 'ir' / 'lone.png'} has no partner: no visible picture "
        "has its name or its time; rename or remove it"
    ) in result.stderr
    assert "error: test/vi/other.png: " in result.stderr
    again = call(data, "-o", out, "--range-over", "dataset")
    assert again.exit_code == 1 and "0 fused, 5 already there, 2 failed" in again.stdout
    two = call(test / "ir", test / "vi", "-o", out / "two")
    assert two.exit_code == 1 and "3 fused, 0 already there, 2 failed" in two.stdout
    assert "error: infrared/lone.png: " in two.stderr and "visible/other.png: " in two.stderr


def test_a_file_that_fits_two_others_fails_alone(call, data, out):
    for name in ("x_V.png", "V_x.png"):
        (data / "test" / "vi" / name).write_bytes((data / "test" / "vi" / "a.png").read_bytes())
    image = (data / "test" / "ir" / "a.png").read_bytes()
    (data / "test" / "ir" / "x_T.png").write_bytes(image)
    result = call(data, "-o", out)
    assert result.exit_code == 1 and "5 fused, 0 already there, 3 failed" in result.stdout
    assert "fits V_x.png and x_V.png; remove one of them" in result.stderr


def test_a_data_set_without_a_pair_is_refused(call, data, out):
    for path in data.rglob("vi/*"):
        path.rename(path.with_name(f"no{path.stem}partner.png"))
    result = call(data, "-o", out)
    assert result.exit_code == 2 and "10 images without a partner" in result.stderr
    assert not list(out.rglob("*.png"))


def test_lone_files_do_not_share_a_name_in_a_benchmark(call, data, out):
    image = (data / "test" / "ir" / "a.png").read_bytes()
    for folder in ("test/ir", "test/vi/s"):
        (data / folder).mkdir(exist_ok=True)
        (data / folder / "lone.png").write_bytes(image)
    result = call(data / "test", "-o", out, "--layout-out", "vif-benchmark")
    assert result.exit_code == 1 and "3 fused, 0 already there, 2 failed" in result.stdout


def test_panels(call, data, out):
    assert call(data, "-o", out).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    result = call(data, "-o", out, "--panel")
    assert "5 fused" in result.stdout and result.exit_code == 0
    panel = read_image(out / "test" / "a.panel.png")
    height, width = read_image(out / "test" / "a.png").shape[:2]
    assert panel.shape[0] >= height and panel.shape[1] >= 3 * width
    assert all(path.read_bytes() == data for path, data in before.items())
    again = call(data, "-o", out, "--panel")
    assert "0 fused, 5 already there" in again.stdout
    assert "0 fused, 5 already there" in call(data, "-o", out).stdout
    (out / "test" / "a.panel.png").unlink()
    assert "1 fused, 4 already there" in call(data, "-o", out, "--panel").stdout
    ray = call(data, "-o", out / "r", "--panel", "--on", "ray")
    assert ray.exit_code == 2 and "--panel works only with local folders" in ray.stderr


def test_panels_do_not_replace_results(call, data, out):
    for name in ("ir", "vi"):
        folder = data / "test" / name
        (folder / "a.panel.png").write_bytes((folder / "a.png").read_bytes())
    result = call(data, "-o", out, "--panel")
    assert result.exit_code == 2 and "test/a.panel; rename" in result.stderr


def test_command_reports_failures(call, data, out):
    (data / "test" / "ir" / "a.png").write_bytes(b"junk")
    result = call(data, "-o", out)
    assert result.exit_code == 1
    assert "4 fused, 0 already there, 1 failed" in result.stdout
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
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["done"] == 4
    assert [one["name"] for one in report["results"] if one["error"]] == ["test/ir/b.png"]


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
    assert "interrupted: 3 pairs not reached; run the same command again" in result.stderr
    assert json.loads(result.stdout)["stopped"] == "interrupted"
    assert "3 fused, 2 already there" in call(data, "-o", out).stdout


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
        HISTORY_FILE,
        REPORT,
        *(f"{n:02}.png" for n in range(12)),
    }
    times = Counter(line["name"] for line in lines(out) if "name" in line)
    assert len(times) == 12 and all(times[name] == 1 for name in kept)

    run_batch(find_pairs(data), whole, Fuser(prior=tiny_prior, steps=10, device="cpu"))
    assert {n: p[2] for n, p in found.items()} == {n: p[2] for n, p in pictures(whole).items()}
