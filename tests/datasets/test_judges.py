"""Results where benchmarks look for them: names, and the command on generated trees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batches import add_pair
from typer.testing import CliRunner

from ddfm_fast import fuse
from ddfm_fast.cli.app import app
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.judges import arranged
from ddfm_fast.files.reading import read_image


def items(*names: str) -> list[PairItem]:
    return [PairItem(name, Path(f"ir/{name}.png"), Path(f"vi/{name}.png")) for name in names]


@pytest.fixture
def data(tmp_path) -> Path:
    for n, name in enumerate(("test/01", "test/02")):
        add_pair(tmp_path / "data", name, (24, 32), seed=n)
    return tmp_path / "data"


@pytest.mark.parametrize(
    "layout, names",
    [
        ("ivif-zoo:M3FD", ["IVIF/M3FD/DDFM/01.png", "IVIF/M3FD/DDFM/02.png"]),
        ("ivif-zoo:FMB:DDFM-fast", ["IVIF/FMB/DDFM-fast/01.png", "IVIF/FMB/DDFM-fast/02.png"]),
        ("vif-benchmark", ["Results/DDFM/01.png", "Results/DDFM/02.png"]),
        ("vifb", ["output/fused_images/01_DDFM.jpg", "output/fused_images/02_DDFM.jpg"]),
        ("vifb:Mine", ["output/fused_images/01_Mine.jpg", "output/fused_images/02_Mine.jpg"]),
    ],
)
def test_the_command_writes_what_a_benchmark_reads(data, tmp_path, layout, names):
    out = tmp_path / "out"
    words = ["batch", str(data), "-o", str(out), "--layout-out", layout, "--preset", "instant"]
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--quiet"])
    assert result.exit_code == 0, result.output
    written = [p for p in out.rglob("*") if p.suffix in (".png", ".jpg")]
    assert sorted(p.relative_to(out).as_posix() for p in written) == names
    ir, vis = (read_image(data / "test" / name / "01.png") for name in ("ir", "vi"))
    expected = fuse(ir, vis, preset="instant", device="cpu")
    found = read_image(out / names[0])
    if names[0].endswith(".png"):
        np.testing.assert_array_equal(found, expected)
    else:  # JPEG of quality 95
        assert np.abs(found.astype(int) - expected).mean() < 4
    again = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert "0 fused, 2 already there" in again.output


def test_a_format_that_is_asked_for_holds_where_it_can(data, tmp_path):
    out = tmp_path / "out"
    words = ["batch", str(data), "-o", str(out), "--preset", "instant", "--quiet", "--layout-out"]
    result = CliRunner().invoke(app, [*words, "ivif-zoo:TNO", "--format", "bmp"])
    assert result.exit_code == 0 and (out / "IVIF/TNO/DDFM/01.bmp").is_file()
    result = CliRunner().invoke(app, [*words, "vifb", "--format", "png"])
    assert result.exit_code == 2 and "vifb reads jpg alone" in result.stderr


@pytest.mark.parametrize(
    "layout, sentence",
    [
        ("zoo", "expected one of ivif-zoo, vif-benchmark, vifb"),
        ("ivif-zoo", "expected ivif-zoo:DATASET or ivif-zoo:DATASET:METHOD"),
        ("ivif-zoo:", "expected ivif-zoo:DATASET"),
        ("ivif-zoo:a:b:c", "expected ivif-zoo:DATASET"),
        ("ivif-zoo:../x", "expected ivif-zoo:DATASET"),
        ("ivif-zoo:..", "expected ivif-zoo:DATASET"),
        ("vifb:a:b", "expected vifb or vifb:METHOD"),
    ],
)
def test_a_layout_that_there_is_not(layout, sentence):
    with pytest.raises(ValueError, match=sentence):
        arranged(items("1"), layout)


def test_two_images_of_one_name_have_no_place():
    with pytest.raises(ValueError, match="'1' is the name of two images"):
        arranged(items("test/1", "train/1"), "vifb")
    assert arranged(items("a{b}"), "vifb")[0][0].name == "output/fused_images/a{b}_DDFM"
