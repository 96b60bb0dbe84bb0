"""Calibrations of two fixed cameras: found from pairs, kept in a file, refused by name."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from ddfm_fast import fuse
from ddfm_fast.align.calibration import Calibration, calibrate, read_calibration, write_calibration
from ddfm_fast.align.call import Aligner, checked_align, plane
from ddfm_fast.align.cameras import Camera, read_camera
from ddfm_fast.align.warp import Alignment, apply, field
from ddfm_fast.cli.app import app

ASSETS = ROOT / "ddfm_fast" / "assets"
TRUE = np.array([[1.02, 0.01, 6], [-0.01, 1.01, -4], [2e-5, -1e-5, 1]])
"""map from a place in the visible picture to the same place in the infrared one"""


def scene() -> tuple[np.ndarray, np.ndarray]:
    found = [cv2.imread(str(ASSETS / f"sentinel2_{n}.png"), 0) for n in ("nir", "visible")]
    return found[0], found[1]


def pair(matrix=TRUE) -> tuple[np.ndarray, np.ndarray]:
    """Return the infrared picture as a camera at ``matrix`` sees it, and the visible one."""
    ir, vis = scene()
    moved = cv2.warpPerspective(ir, np.linalg.inv(matrix), (300, 300), flags=cv2.WARP_INVERSE_MAP)
    return moved, vis


def error(found: Alignment, matrix=TRUE) -> float:
    y, x = np.mgrid[30:270:7j, 30:270:7j]
    at = np.stack([x.ravel(), y.ravel()], 1)
    return float(np.median(np.hypot(*(found.points(at) - Alignment(matrix, "", 1).points(at)).T)))


def calibration(**changed) -> Calibration:
    return Calibration(Alignment(TRUE, "homography", 2.5), (300, 300), (300, 300))._replace(
        **changed
    )


def planes(*pairs):
    return [(str(n), plane(a), plane(b)) for n, (a, b) in enumerate(pairs)]


def test_pairs_are_averaged_and_a_bad_one_does_no_harm():
    ir, vis = pair()
    other = TRUE + [[0, 0, 14], [0, 0, 0], [0, 0, 0]]
    flat = np.zeros_like(ir)
    rng = np.random.default_rng(0)
    noisy = [(cv2.add(ir, rng.integers(0, n, ir.shape, np.uint8)), vis) for n in (10, 20, 30)]
    found = calibrate(planes(*noisy, pair(other), (flat, vis)))
    assert found.pairs == 4 and error(found.alignment) < 0.5
    with pytest.raises(ValueError, match=r"0: no certain map \(affine\) was found"):
        calibrate(planes((flat, vis)), "affine")
    with pytest.raises(ValueError, match="no pair is given"):
        calibrate([])
    with pytest.raises(ValueError, match="1: ir is 300x200"):
        calibrate(planes((ir, vis), (ir[:200], vis)))


def test_a_file_gives_back_what_was_written(tmp_path):
    path, camera = (
        tmp_path / "c.json",
        Camera(np.diag([300.0, 310, 1]), np.arange(5) / 50, (300, 300)),
    )
    given = calibration()
    given = given._replace(alignment=given.alignment._replace(ir_camera=camera))
    write_calibration(path, given)
    found = read_calibration(path)
    assert json.dumps(found.to_dict()) == json.dumps(given.to_dict())
    assert error(found.alignment) > 1 and error(found.alignment._replace(ir_camera=None)) < 1e-9


def test_other_sizes_are_scaled_and_another_ratio_is_refused():
    ir, vis = pair()
    half = calibration().fitted((150, 150), (600, 600))
    small = cv2.resize(ir, (150, 150), interpolation=cv2.INTER_AREA)
    large = cv2.resize(vis, (600, 600), interpolation=cv2.INTER_LINEAR)
    got = cv2.resize(apply(small, half, large.shape), (300, 300), interpolation=cv2.INTER_AREA)
    wanted = apply(ir, calibration().alignment, vis.shape)
    assert np.abs(got[20:-20, 20:-20].astype(int) - wanted[20:-20, 20:-20]).mean() < 9
    with pytest.raises(ValueError, match="for ir pictures of 300x300 pixels, and ir has 200x150"):
        calibration().fitted((150, 200), (300, 300))


MATRIX = '"matrix": [[1, 0, 6], [0, 1, -4], [0, 0, 1]]'
GOOD = (
    '{"format": "ddfm_fast alignment 1", "model": "shift", ' + MATRIX + ', "confidence": 2, '
    '"ir_size": [96, 128], "vis_size": [96, 128]}'
)


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "Expecting value"),
        ("[]", "its format is not"),
        ("[" * 100_000, "nested too deeply"),
        (GOOD.replace("ment 1", "ment 2"), "its format is not"),
        (GOOD.replace('"shift"', '"rigid"'), "model must be one of"),
        (GOOD.replace('"shift"', "[[]]"), "model must be one of"),
        (GOOD.replace("-4", "1e999"), "matrix must be 3x3 of finite numbers"),
        (GOOD.replace("-4", "NaN"), "NaN is not a number"),
        (GOOD.replace("-4", "-Infinity"), "-Infinity is not a number"),
        (GOOD.replace("-4", "null"), "matrix must be"),
        (GOOD.replace("-4", '"x"'), "matrix must be"),
        (GOOD.replace("-4", "1" + "0" * 400), "matrix must be"),
        (GOOD.replace("-4", "[1]"), "matrix must be"),
        (GOOD.replace("[0, 1, -4]", "[1, 0, 6]"), "maps a picture to a line"),
        (GOOD.replace("[0, 0, 1]]", "[-0.1, 0, 1]]"), "behind the camera"),
        (GOOD.replace(MATRIX, '"matrix": 5'), "matrix must be"),
        (GOOD.replace('"confidence": 2, ', ""), "confidence must be"),
        (GOOD.replace("[96, 128]}", "[96.5, 128]}"), "vis_size must be"),
        (GOOD.replace("[96, 128]}", "[true, 0]}"), "vis_size must be"),
        (GOOD[:-1] + ', "pairs": 0}', "pairs must be"),
        (GOOD[:-1] + ', "ir_camera": 3}', "ir_camera must be an object"),
        (GOOD[:-1] + ', "ir_camera": {}}', "ir_camera: camera_matrix must be"),
        (GOOD + " " * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_bad_files_are_refused_by_name(text, why, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.json: ") as caught:
        checked_align(str(path))
    assert why in str(caught.value) and "ddfm-fast align" in str(caught.value)


def test_bytes_that_are_no_text_and_folders(tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff\xfe\x00")
    for place in (path, tmp_path, tmp_path / "none.json"):
        with pytest.raises(ValueError, match=str(place)):
            checked_align(place)


def write_camera(path, **values) -> None:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in values.items():
        storage.write(name, value)
    storage.release()


@pytest.mark.parametrize("suffix", ["yml", "json", "xml"])
def test_cameras_of_opencv(suffix, tmp_path):
    path = tmp_path / f"camera.{suffix}"
    k, d = (
        np.array([[400.0, 0, 160], [0, 410, 120], [0, 0, 1]]),
        np.array([[-0.2, 0.05, 0, 0, 0.0]]),
    )
    write_camera(
        path, camera_matrix=k, distortion_coefficients=d, image_width=320, image_height=240
    )
    camera = read_camera(path)
    assert np.array_equal(camera.matrix, k) and camera.size == (240, 320)
    at = np.array([[10.0, 20], [300, 200], [160, 120]])
    there = camera.ideal(at)
    assert np.abs(camera.bent(there) - at).max() < 0.01 < np.abs(there - at).max()
    twice = camera.scaled((480, 640))
    assert np.abs(twice.ideal(2 * at + 0.5) - (2 * there + 0.5)).max() < 0.01


@pytest.mark.parametrize(
    "text, why",
    [
        ("%YAML:1.0\n---\nfocal: 3\n", "no camera_matrix"),
        ("nonsense", "cannot parse"),
        ("", ""),
        ('{"camera_matrix": [1, 2]}', ""),
    ],
)
def test_bad_cameras_are_refused_by_name(text, why, tmp_path):
    path = tmp_path / "camera.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"camera\.yml: .*{why}"):
        read_camera(path)
    with pytest.raises(ValueError, match=r"none\.yml"):
        read_camera(tmp_path / "none.yml")


def test_distortion_is_part_of_the_map():
    """A picture bent by a lens is aligned by a calibration that knows the lens."""
    ir, vis = scene()
    lens = Camera(
        np.array([[300.0, 0, 150], [0, 300, 150], [0, 0, 1]]), np.array([-0.3, 0.1, 0, 0, 0])
    )
    y, x = np.mgrid[:300, :300].astype(np.float64)
    ideal = lens.ideal(np.stack([x.ravel(), y.ravel()], 1)).astype(np.float32).reshape(300, 300, 2)
    bent = cv2.remap(
        ir, ideal[..., 0], ideal[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    found = calibrate(planes((bent, vis)), "affine", ir_camera=lens)
    got = apply(bent, found.alignment, vis.shape)[40:-40, 40:-40].astype(int)
    plain = bent[40:-40, 40:-40].astype(int)
    wanted = ir[40:-40, 40:-40]
    assert np.abs(got - wanted).mean() < 0.4 * np.abs(plain - wanted).mean()


def test_the_field_has_a_soft_edge():
    shift = Alignment(np.array([[1, 0, -30.0], [0, 1, 0], [0, 0, 1]]), "shift", 2)
    weight = field(shift, (80, 100), (80, 100))
    assert weight.shape == (80, 100) and weight.dtype == np.float32
    assert (weight[:, :30] == 0).all() and (weight[10:-10, 40:90] == 1).all()
    assert (np.diff(weight[40, 28:45]) >= 0).all() and 0 < weight[40, 31] < 1
    assert field(Alignment(np.eye(3), "shift", 2), (80, 100), (80, 100)) is None


def test_the_command(tmp_path):
    ir, vis = pair()
    files = [tmp_path / name for name in ("ir.png", "vis.png")]
    for file, image in zip(files, (ir, vis), strict=True):
        cv2.imwrite(str(file), image)
    out = tmp_path / "c.json"

    def run(*args):
        return CliRunner().invoke(app, ["align", *map(str, args)])

    found = run(*files, *files, "-o", out, "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["pairs"] == 2
    assert error(read_calibration(out).alignment) < 0.5
    fused = fuse(ir, vis, align=str(out))
    assert np.array_equal(fused, fuse(ir, vis, align=read_calibration(out)))
    assert Aligner(checked_align(out)).to_dict()["align"]["pairs"] == 2
    wanted = fuse(scene()[0], vis, align="off")
    assert np.abs(fused.astype(int) - wanted)[30:-30, 30:-30].mean() < 9
    for args, why in (
        ((files[0], "-o", out), "1 pictures are given"),
        ((*files, "-o", tmp_path / "c.txt"), "ending in .json"),
        ((*files, "-o", out, "--ir-camera", tmp_path / "no.yml"), "no.yml"),
    ):
        bad = run(*args)
        assert bad.exit_code == 2 and why in bad.output


def test_the_command_reads_bare_counts_and_holes_and_keeps_the_camera(tmp_path):
    ir, vis = pair()
    counts = ir.astype("<u2") * 8 + 7000
    counts[20:40, 20:60] = 0
    counts.tofile(tmp_path / "ir.raw")
    cv2.imwrite(str(tmp_path / "vis.png"), vis)
    camera, out = tmp_path / "camera.json", tmp_path / "c.json"
    k = np.array([[400.0, 0, 160], [0, 410, 120], [0, 0, 1]])
    write_camera(camera, camera_matrix=k, distortion_coefficients=np.zeros((1, 5)))
    before = camera.read_bytes()

    def run(*args):
        size = f"{ir.shape[1]}x{ir.shape[0]}"
        args = ("align", tmp_path / "ir.raw", tmp_path / "vis.png", "--raw-size", size, *args)
        return CliRunner().invoke(app, [*map(str, args)])

    found = run("--nodata", "ir=0", "-o", out)
    assert found.exit_code == 0 and "7000 to" in found.stderr, found.output
    assert error(read_calibration(out).alignment) < 0.8
    bad = run("--ir-camera", camera, "-o", camera)
    assert bad.exit_code == 2 and "would replace an input" in bad.output
    assert camera.read_bytes() == before
