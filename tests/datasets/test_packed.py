"""Pairs in one file: RGB with the thermal picture as a fourth channel, as MFNet has it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddfm_fast.cli.app import app
from ddfm_fast.datasets.items import PairItem
from ddfm_fast.datasets.pairs import find_pairs, survey_pairs
from ddfm_fast.files.depth import Levels, read_sources
from ddfm_fast.files.packed import is_packed, read_pair
from ddfm_fast.files.paths import ImageFileError
from ddfm_fast.files.reading import read_image


def picture(seed: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, channels), np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))


@pytest.fixture
def root(tmp_path):
    """As published: images of four channels beside labels and lists."""
    for name in ("00001D", "00002N"):
        for folder, channels in (("images", 4), ("labels", 1)):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture(int(name[:5]), channels).squeeze()).save(path)
    (tmp_path / "test.txt").write_text("00001D\n")
    return tmp_path


def test_the_two_are_taken_apart(root):
    path = root / "images" / "00001D.png"
    ir, vis = read_pair(path, str(path))
    np.testing.assert_array_equal(ir, picture(1, 4)[..., 3])
    np.testing.assert_array_equal(vis, picture(1, 4)[..., :3])
    found = read_sources(path, path, Levels())
    np.testing.assert_array_equal(found.ir, ir)
    np.testing.assert_array_equal(found.vis, vis)


def test_layout(root):
    items = find_pairs(root, layout="mfnet")
    paths = {name: root / "images" / f"{name}.png" for name in ("00001D", "00002N")}
    assert items == [PairItem(f"images/{name}", path, path) for name, path in paths.items()]
    assert survey_pairs(root, layout="mfnet").alone == []
    Image.fromarray(picture(1, 3)).save(root / "images" / "rgb.png")
    found = survey_pairs(root, layout="mfnet")
    assert [one.file.name for one in found.alone] == ["rgb.png"] and not found.claims
    (root / "images" / "rgb.png").unlink()
    with pytest.raises(ImageFileError, match="four channels layout mfnet"):
        find_pairs(root)
    with pytest.raises(ImageFileError, match="no image of four channels"):
        find_pairs(root / "labels", layout="mfnet")


def test_a_file_without_a_fourth_channel(root, tmp_path):
    path = tmp_path / "labels" / "00001D.png"
    assert not is_packed(path) and not is_packed(tmp_path / "none.png")
    with pytest.raises(ImageFileError, match=r"both sources and has the shape \(48, 64\)"):
        read_pair(path, path)
    packed = root / "images" / "00001D.png"
    with pytest.raises(ImageFileError, match="pixels"):
        read_pair(packed, packed, 100)
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(ImageFileError, match="00001D"):
        read_pair(packed, packed)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_list_may_name_one_file_for_both(root, tmp_path):
    path = root / "images" / "00001D.png"
    listed = root / "list.csv"
    listed.write_text(f"ir,vis,name\n{path},{path},a\n")
    assert find_pairs(root, manifest=listed) == [PairItem("a", path, path)]
    result = call("batch", listed, "-o", tmp_path / "out", "--preset", "instant")
    assert result.exit_code == 0 and (tmp_path / "out" / "a.png").is_file(), result.output
    plain = root / "labels" / "00001D.png"
    listed.write_text(f"ir,vis,name\n{plain},{plain},a\n")
    with pytest.raises(ImageFileError, match="for ir and for vis; give two files, or one of four"):
        find_pairs(root, manifest=listed)


def test_batch_and_evaluate(root, tmp_path):
    out = tmp_path / "out"
    common = ["--layout", "mfnet", "--json"]
    result = call("batch", root, "-o", out, *common, "--preset", "instant")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"]
    two = tmp_path / "two"
    for name in ("00001D", "00002N"):
        for folder, at in (("ir", 3), ("vi", slice(3))):
            (two / folder).mkdir(parents=True, exist_ok=True)
            image = picture(int(name[:5]), 4)[..., at]
            Image.fromarray(image).save(two / folder / f"{name}.png")
    assert call("batch", two, "-o", tmp_path / "o2", "--preset", "instant").exit_code == 0
    for name in ("00001D", "00002N"):
        np.testing.assert_array_equal(
            read_image(out / "images" / f"{name}.png"), read_image(tmp_path / "o2" / f"{name}.png")
        )
    page = tmp_path / "page.html"
    result = call("evaluate", root, "--fused", f"ours={out}", *common, "--report", page)
    assert result.exit_code == 0, result.output
    assert page.stat().st_size > 1000


def test_patterns_of_evaluate_and_ablate(tmp_path):
    for name in "ab":
        for mark, seed in (("hot", 1), ("color", 2)):
            Image.fromarray(picture(seed, 3)).save(tmp_path / f"{name}.{mark}.png")
    pattern = ["--pattern", "{}.hot.png,{}.color.png"]
    result = call("evaluate", tmp_path, "--baselines", *pattern, "--json")
    assert result.exit_code == 0, result.output
    assert call("evaluate", tmp_path, "--baselines").exit_code == 2
    rows = ["--rows", "instant", "--preset", "instant", "--limit", 1, "-q"]
    result = call("ablate", tmp_path, "-o", tmp_path / "o", *pattern, *rows)
    assert result.exit_code == 0, result.output
