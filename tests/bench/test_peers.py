"""The comparison with public networks, on a clone that the test writes: no network, no figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("skimage", reason="the benchmarks need it")

from ddfm_fast.bench import results
from ddfm_fast.bench.adapters import PEERS, imports_from
from ddfm_fast.bench.baselines import BASELINES
from ddfm_fast.bench.corruptions import CORRUPTIONS, noise_levels
from ddfm_fast.bench.peers import app, middle
from ddfm_fast.files.writing import write_image

NETWORK = """
import torch.nn as nn
import utils

class stu_net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.mix = nn.Conv2d(inputs, outputs, 1, bias=False)

    def encoder(self, planes):
        return [self.mix(planes)] * utils.COPIES

    def decoder(self, features):
        return [features[0], features[1]]
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    """Lay out a folder as MMDRFuse does; its network weighs infrared by 3/4, visible by 1/4."""
    folder = tmp_path / "clone"
    (folder / "pretrained_models").mkdir(parents=True)
    (folder / "student_net.py").write_text(NETWORK)
    (folder / "utils.py").write_text("COPIES = 2\n")
    state = {"mix.weight": torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)}
    torch.save(state, folder / "pretrained_models/student.model")
    return folder


def planes(height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw two smooth lumas that differ."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return (0.5 + 0.4 * np.sin(x / 7)).astype(np.float32), (0.2 + 0.6 * y / height)


@pytest.fixture
def pairs(tmp_path) -> Path:
    for folder, plane in zip(("ir", "vi"), planes(), strict=True):
        write_image(tmp_path / "pairs" / folder / "a.png", (plane * 255).astype(np.uint8))
    return tmp_path / "pairs"


def test_a_peer_is_its_own_code_and_leaves_nothing_behind(clone, monkeypatch):
    ours = object()
    monkeypatch.setitem(sys.modules, "utils", ours)
    before, path = set(sys.modules), list(sys.path)
    ir, vis = planes()
    fused = PEERS["mmdrfuse"].load(clone)(ir, vis)
    mixed = 0.75 * ir + 0.25 * vis
    expected = (mixed - mixed.min()) / (mixed.max() - mixed.min())
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, expected, atol=1e-6)  # float32 rounding
    assert sys.modules["utils"] is ours and sys.path == path
    assert not {"student_net", "model"} & (set(sys.modules) - before)
    assert not list(clone.rglob("*.pyc"))


def test_imports_are_undone_where_they_fail(tmp_path):
    (tmp_path / "broken.py").write_text("import hollow.part as part\nraise OSError(part.name)\n")
    path = list(sys.path)
    with pytest.raises(OSError, match="None"), imports_from(tmp_path, "hollow", "hollow.part"):
        __import__("broken")
    assert sys.path == path and not {"broken", "hollow", "hollow.part"} & set(sys.modules)


@pytest.mark.slow
def test_the_command_compares_and_survives_a_broken_peer(clone, pairs, tmp_path):
    arguments = [str(pairs), "--presets", "fast", "--corruptions", "clean,low-light"]
    peers = ["--peer", f"mmdrfuse={clone}", "--peer", f"sage={clone}"]
    done = CliRunner().invoke(app, [*arguments, *peers, "--size", "44x48", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("peers-*.json")
    assert str(tmp_path) not in path.read_text() and path.with_suffix(".png").is_file()
    report = results.load(path)
    assert [m.name for m in report.measurements] == ["clean", "low-light"] and not report.full
    for measurement in report.measurements:
        assert set(measurement.candidates) == {*BASELINES, "preset fast", "mmdrfuse", "sage"}
        good = measurement.candidates["mmdrfuse"]
        assert len(good.samples) == 1 and {"VIF_min", "SSIM_min", "EN"} <= set(good.quality)
        broken = measurement.candidates["sage"]
        assert not broken.samples and broken.about.startswith("failed: ModuleNotFoundError")
    text = path.with_suffix(".md").read_text()
    assert "## low-light" in text and "| sage | failed: ModuleNotFoundError" in text
    names = json.loads(path.read_text())["measurements"][0]["facts"]["values"]["mmdrfuse"]
    assert names[0]["VIF_min"] == pytest.approx(min(names[0]["VIF_ir"], names[0]["VIF_vis"]))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--peer", "nobody=x"], "expected NAME=FOLDER"),
        (["--peer", "sage"], "expected NAME=FOLDER"),
        (["--presets", "nice"], "'nice'"),
        (["--size", "32"], "HEIGHTxWIDTH"),
    ],
)
def test_wrong_options_are_said_first(pairs, wrong, words):
    done = CliRunner().invoke(app, [str(pairs), *wrong])
    assert done.exit_code == 2 and words in done.output


def test_middle_keeps_to_the_picture():
    assert middle((10, 20), (4, 40)) == (slice(3, 7), slice(0, 20))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_give_pictures(name):
    ir, vis = planes()
    fused = BASELINES[name](ir, vis, (0.0, 0.0))
    assert fused.shape == ir.shape and fused.dtype == np.float32
    assert fused.min() >= 0 and fused.max() <= 1
    if name != "mean, percentile":  # two equal sources leave no choice
        np.testing.assert_allclose(BASELINES[name](ir, ir, (0.0, 0.0)), ir, atol=1e-5)


def test_known_noise_helps_the_denoising_baseline():
    clean = planes()
    ir, vis = CORRUPTIONS["ir-sigma25"](*clean, 0)
    noise = noise_levels("ir-sigma25", vis)

    def error(name: str) -> float:
        exact = BASELINES["pyramid"](*clean, (0.0, 0.0))
        return float(np.abs(BASELINES[name](ir, vis, noise) - exact).mean())

    assert noise == (25.0, 0.0) and error("NLM + pyramid") < 0.7 * error("pyramid")


def test_corruptions_are_of_their_strength_and_repeat():
    ir, vis = np.full((200, 200), 0.5, np.float32), np.full((200, 200), 0.64, np.float32)
    assert CORRUPTIONS["clean"](ir, vis, 1) == (ir, vis)
    for sigma in (10, 25):
        noisy, same = CORRUPTIONS[f"ir-sigma{sigma}"](ir, vis, 1)
        assert same is vis and noisy.dtype == np.float32
        assert 255 * noisy.std() == pytest.approx(sigma, rel=0.03)  # four standard errors
        np.testing.assert_array_equal(np.round(noisy * 255), (noisy * 255).round(3))
    same, dark = CORRUPTIONS["low-light"](ir, vis, 1)
    assert same is ir and dark.mean() == pytest.approx(0.3 * 0.64**1.5, rel=0.02)
    assert noise_levels("low-light", dark)[1] == pytest.approx(255 * dark.std(), rel=0.05)
    for name in ("ir-sigma10", "low-light"):
        first, again, other = (CORRUPTIONS[name](ir, vis, seed) for seed in (1, 1, 2))
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        assert not all((a == b).all() for a, b in zip(first, other, strict=True))
