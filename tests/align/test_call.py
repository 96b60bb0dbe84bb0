"""Alignment in everything that fuses: a warning for a shifted pair, and pairs that are aligned."""

from __future__ import annotations

import json
import time
import warnings

import cv2
import numpy as np
import pytest
from conftest import ROOT, shared
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning, Fuser, fuse
from ddfm_fast.align.call import Aligner, checked_align, plane
from ddfm_fast.align.streams import StreamAligner
from ddfm_fast.cli.app import app

ASSETS = ROOT / "ddfm_fast" / "assets"
SHIFT = (9, -6)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A gray and a color picture of one place, 200x240."""
    ir = cv2.imread(str(ASSETS / "sentinel2_nir.png"), cv2.IMREAD_GRAYSCALE)
    vis = cv2.imread(str(ASSETS / "sentinel2_visible.png"))
    return ir[40:240, 30:270].copy(), cv2.cvtColor(vis, cv2.COLOR_BGR2RGB)[40:240, 30:270].copy()


def shifted(image, x=SHIFT[0], y=SHIFT[1]):
    matrix = np.float64([[1, 0, x], [0, 1, y]])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def said(call) -> tuple[object, list[str]]:
    """Return the result of a call, and its warnings about alignment."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    texts = [str(one.message) for one in caught if issubclass(one.category, DDFMWarning)]
    return result, [text for text in texts if "shifted" in text or "certain map" in text]


def differs(a, b, border=24) -> float:
    inside = slice(border, -border), slice(border, -border)
    return float(np.abs(a[inside].astype(float) - b[inside]).mean())


def test_a_shifted_pair_gets_one_sentence_and_the_same_bytes(pair):
    ir, vis = pair
    _, nothing = said(lambda: fuse(ir, vis))
    result, texts = said(lambda: fuse([shifted(ir), shifted(ir)], [vis, vis]))
    assert nothing == [] and len(texts) == 1
    assert "ir[0] seems to be shifted by (+9, -6) pixels" in texts[0] and "--align" in texts[0]
    off, nothing = said(lambda: fuse(shifted(ir), vis, align="off"))
    assert nothing == [] and np.array_equal(off, result[0])


@pytest.mark.parametrize("align", ["shift", "affine", "homography"])
def test_aligned_pictures_are_those_of_the_aligned_pair(pair, align):
    ir, vis = pair
    wanted, ghosts = fuse(ir, vis, align="off"), fuse(shifted(ir), vis, align="off")
    got, texts = said(lambda: fuse(shifted(ir), vis, align=align))
    assert texts == [] and got.shape == vis.shape and got.dtype == vis.dtype
    assert differs(got, wanted) < 0.25 * differs(ghosts, wanted)


def test_outside_of_the_infrared_field_the_visible_picture_shows(pair):
    ir, vis = pair
    part = ir[40:160, 60:200].copy()
    got, texts = said(lambda: fuse(part, vis, align="affine", stretch="none"))
    assert texts == []
    assert np.abs(got[:20].astype(int) - vis[:20]).mean() < 2
    whole = fuse(ir, vis, stretch="none")
    apart = fuse(cv2.resize(part, ir.shape[::-1]), vis, align="off", stretch="none")
    inside = slice(60, 140), slice(80, 180)
    assert differs(got[inside], whole[inside], 8) < 0.3 * differs(apart[inside], whole[inside], 8)


def test_containers_depths_and_holes(pair):
    ir, vis = pair
    deep = shifted(ir).astype(np.uint16) * 257
    assert fuse(deep, vis, align="shift").dtype == np.uint8
    celsius = shifted(ir).astype(np.float32) / 4 - 20
    celsius[100:110, 100:110] = np.nan
    got = fuse(celsius, vis, align="shift", nodata={"ir": np.nan})
    assert got.shape == vis.shape
    batch = np.stack([shifted(vis), vis])
    assert fuse(batch, np.stack([vis, vis]), align="shift", layout="NHWC").shape == batch.shape


def test_other_sizes(pair):
    ir, vis = pair
    small = cv2.resize(ir, (150, 125), interpolation=cv2.INTER_AREA)
    with pytest.raises(ValueError, match='align="homography"'):
        fuse(small, vis)
    assert differs(fuse(small, vis, align="affine"), fuse(ir, vis)) < 8
    noise = np.random.default_rng(0).integers(0, 256, (100, 130), np.uint8)
    with pytest.raises(ValueError, match=r"no certain map \(affine\) was found between them"):
        fuse(noise, vis, align="affine")


@pytest.mark.parametrize("align", ["shift", "homography"])
def test_what_does_not_stand_out_is_left_with_a_sentence(pair, align):
    _, vis = pair
    flat = np.full(vis.shape[:2], 90, np.uint8)
    got, texts = said(lambda: fuse(flat, vis, align=align))
    assert len(texts) == 1 and f"no certain map ({align}) was found between ir and" in texts[0]
    assert np.array_equal(got, fuse(flat, vis, align="off"))


@pytest.mark.parametrize("size", [(16, 16), (31, 200)])
def test_small_and_constant_pictures_get_no_word(size):
    rng = np.random.default_rng(1)
    ir, flat = rng.integers(0, 256, size, np.uint8), np.full(size, 3, np.uint8)
    for a, b in ((ir, np.roll(ir, 8, 1)), (ir, flat), (flat, flat)):
        assert said(lambda a=a, b=b: fuse(a, b))[1] == []
        assert fuse(a, b, align="affine").shape == size


def test_nan_is_refused_as_without():
    nan = np.full((64, 64), np.nan, np.float32)
    for align in ("check", "shift"):
        with pytest.raises(ValueError, match="ir"):
            fuse(nan, nan, align=align)


def test_unlike_pictures_and_maps_in_false_color_get_no_word(pair):
    ir, vis = pair
    rng = np.random.default_rng(0)
    for seed in range(10):
        turned = np.rot90(ir, 1 + seed % 3).copy()
        turned = cv2.resize(np.roll(turned, rng.integers(0, 99), 0), ir.shape[::-1])
        assert said(lambda turned=turned: Aligner("check").look(turned, vis))[1] == []


def test_the_look_is_quick():
    rng = np.random.default_rng(0)
    vis = cv2.GaussianBlur(rng.integers(0, 256, (480, 640, 3), np.uint8), (0, 0), 2)
    took = []
    for _ in range(5):
        begun = time.thread_time()
        Aligner("check").look(vis[..., 0].copy(), vis)
        took.append(time.thread_time() - begun)
    assert min(took) < 0.06


def test_bad_settings():
    for bad, kind in (("shfit", ValueError), (3, TypeError), (None, TypeError)):
        with pytest.raises(kind, match="align is .*expected one of check, off, shift"):
            checked_align(bad)
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        Fuser(align="none.json")


def test_a_fuser_and_its_calls(pair):
    ir, vis = pair
    fuser = Fuser(align="shift")
    assert fuser.align == "shift" and fuser.with_options(align="off").align == "off"
    assert np.array_equal(fuser(shifted(ir), vis), fuse(shifted(ir), vis, align="shift"))
    assert np.array_equal(fuser(ir, vis, align="off"), fuse(ir, vis, align="off"))


def test_a_stream_is_steady(pair):
    """The map is found at the first frame, follows a slow drift, and does not obey one outlier."""
    ir, vis = pair
    aligner = StreamAligner("shift")
    aligner.EVERY = 2
    places = []
    for n in range(12):
        aligner.frame(shifted(ir, 12, 0) if n == 4 else shifted(ir, 4 + 0.1 * n, 0), vis)
        places.append(aligner._map.matrix[0, 2])
    assert np.abs(np.diff(places)).max() < 0.4 and 4 < places[-1] < 6
    assert StreamAligner("off").frame(ir, vis)[0] is ir


def test_files(pair, tmp_path):
    ir, vis = pair
    names = {"ir": shifted(ir), "vis": vis[..., ::-1], "half": cv2.resize(ir, (120, 100))}
    for name, image in names.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    out = tmp_path / "out.png"

    def run(*options: str, ir: str = "ir"):
        args = ["fuse", str(tmp_path / f"{ir}.png"), str(tmp_path / "vis.png"), "-o", str(out)]
        return CliRunner().invoke(app, [*args, *options])

    found = run()
    assert found.exit_code == 0 and found.output.count("shifted by (+9, -6)") == 1
    assert run("--align", "shift").exit_code == 0
    got = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    wanted, ghosts = fuse(ir, vis), fuse(shifted(ir), vis, align="off")
    assert differs(got, wanted) < 0.25 * differs(ghosts, wanted)
    assert "--resize vis" in run(ir="half").output
    assert run("--resize", "vis", ir="half").exit_code == 0
    assert cv2.imread(str(out)).shape == vis.shape
    assert run("--resize", "ir", ir="half").exit_code == 0
    assert cv2.imread(str(out)).shape == (100, 120, 3)


def test_a_batch_says_it_once_and_redoes_what_is_aligned_otherwise(pair, tmp_path):
    ir, vis = pair
    for n in range(3):
        for folder, image in (("ir", shifted(ir)), ("vi", vis)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{n}.png"), image)

    def run(*options: str):
        args = ["batch", str(tmp_path / "ir"), str(tmp_path / "vi"), "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*args, "--json", "--workers", "1", *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), result.stderr

    first, errors = run()
    assert first["done"] == 3 and errors.count("shifted by (+9, -6)") == 1
    assert run("--align", "off")[0]["skipped"] == 3
    for what in ("done", "skipped"):
        assert run("--align", "shift")[0][what] == 3


def test_the_case_of_the_shifted_picture():
    folder = shared("cases")
    vis = cv2.cvtColor(cv2.imread(str(folder / "vis.png")), cv2.COLOR_BGR2RGB)
    ir, moved = (cv2.imread(str(folder / f"{n}.png"), 0) for n in ("ir", "ir_shift"))
    assert said(lambda: fuse(ir, vis))[1] == []
    _, (text,) = said(lambda: fuse(moved, vis))
    assert "(+6, -4)" in text
    wanted, ghosts = fuse(ir, vis, align="off"), fuse(moved, vis, align="off")
    assert differs(fuse(moved, vis, align="shift"), wanted, 12) < 0.4 * differs(ghosts, wanted, 12)


def test_planes_of_any_depth():
    image = np.full((40, 50, 3), 255, np.uint8)
    assert plane(image).max() == pytest.approx(1)
    assert plane(image.astype(np.uint16) * 257, 25).shape == (20, 25)
