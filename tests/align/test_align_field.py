"""What an aligned result shows: the visible frame, or what both sources have."""

from __future__ import annotations

import json
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from test_call import differs, pair, said, shifted  # noqa: F401
from typer.testing import CliRunner

from ddfm_fast import DDFMWarning, Fuser, fuse
from ddfm_fast.align import Alignment, common
from ddfm_fast.align.calibration import Calibration, write_calibration
from ddfm_fast.cli.app import app
from ddfm_fast.images.panel import draw_panel

RIGHT, UP = 9, 6


def known(size, x=RIGHT, y=-UP) -> Calibration:
    matrix = np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    return Calibration(Alignment(matrix, "shift", 9.0), size, size)


@pytest.fixture
def apart(pair):  # noqa: F811
    """A pair in which (x, y) of vis lies at (x + 9, y − 6) of ir, black where ir has no pixel."""
    ir, vis = pair
    moved = np.zeros_like(ir)
    moved[:-UP, RIGHT:] = ir[UP:, :-RIGHT]
    return moved, vis, ir


def cropped(image):
    return image[UP:, :-RIGHT]


def test_common_of_maps():
    size = 100, 140
    for x, y, part in (
        (9, -6, (6, 100, 0, 131)),
        (-3, 4, (0, 96, 3, 140)),
        (0, 0, (0, 100, 0, 140)),
    ):
        rows, columns = common(known(size, x, y).alignment, size, size)
        assert (rows.start, rows.stop, columns.start, columns.stop) == part
    away = common(known(size, 300, 0).alignment, size, size)
    assert away[0] == away[1] == slice(0, 0)


@pytest.mark.parametrize("degrees, zoom", [(0, 1.3), (3, 1.0), (-8, 1.1), (30, 1.2)])
def test_what_is_common_is_all_inside_and_large(degrees, zoom):
    size = 120, 160
    rows2 = cv2.getRotationMatrix2D((80, 60), degrees, zoom)
    alignment = Alignment(np.vstack([rows2, [0, 0, 1]]), "affine", 1.0)
    rows, columns = common(alignment, size, size)
    corners = np.array([(x, y) for x in (columns.start, columns.stop - 1)
                        for y in (rows.start, rows.stop - 1)], float)  # fmt: skip
    x, y = alignment.points(corners).T
    assert (x > -0.51).all() and (y > -0.51).all() and (x < 159.51).all() and (y < 119.51).all()
    got = (rows.stop - rows.start) * (columns.stop - columns.start)
    # the largest rectangle, by trying all whose sides are multiples of 4
    at = np.stack([g.ravel() for g in np.meshgrid(np.arange(160.0), np.arange(120.0))], 1)
    x, y = alignment.points(at).T
    inside = ((x > -0.51) & (y > -0.51) & (x < 159.51) & (y < 119.51)).reshape(size)
    total = np.pad(inside.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best = max(
        (b - t) * (r - le)
        for t in range(0, 120, 4) for b in range(t + 4, 121, 4)
        for le in range(0, 160, 4) for r in range(le + 4, 161, 4)
        if total[b, r] - total[t, r] - total[b, le] + total[t, le] == (b - t) * (r - le)
    )  # fmt: skip
    assert got > 0.8 * best


def test_a_call_is_cropped_to_what_both_have(apart):
    moved, vis, ir = apart
    wanted = fuse(cropped(ir), cropped(vis), align="off")
    got, texts = said(lambda: fuse(moved, vis, align=known(ir.shape), align_field="common"))
    assert texts == [] and np.array_equal(got, wanted)
    found = fuse(moved, vis, align="shift", align_field="common")
    assert all(abs(a - b) <= 1 for a, b in zip(found.shape, wanted.shape, strict=True))
    assert fuse(moved, vis, align="shift").shape == vis.shape
    gray = fuse(moved, vis, align=known(ir.shape), align_field="common", color="ir")
    assert gray.shape == wanted.shape[:2]


def test_a_batch_in_one_array_is_cropped_to_what_all_have(apart):
    moved, vis, ir = apart
    irs, both = np.stack([moved, ir])[..., None], np.stack([vis, vis])
    got = fuse(irs, both, align="shift", align_field="common", layout="NHWC")
    assert got.shape[0] == 2 and abs(got.shape[1] - 194) <= 1 and abs(got.shape[2] - 231) <= 1
    several = fuse([moved, ir], [vis, vis], align="shift", align_field="common")
    assert several[0].shape[:2] == got.shape[1:3] and several[1].shape[0] >= 199


def test_holes_and_depths_are_cropped_too(apart):
    moved, vis, ir = apart
    celsius = moved.astype(np.float32) / 4 - 20
    celsius[100:110, 100:110] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDFMWarning)  # warnings about the range
        got = fuse(
            celsius, vis, align=known(ir.shape), align_field="common", nodata={"ir": np.nan},
            stretch="none",
        )  # fmt: skip
    assert got.shape == cropped(vis).shape
    # in (row, column), the hole is at (100 + 6, 100 − 9) of vis, and at (100, 91) of the cropped
    # frame
    assert np.abs(got[101:109, 93:99].astype(int) - cropped(vis)[101:109, 93:99]).mean() < 1.5


def test_what_is_not_moved_is_not_cropped(pair):  # noqa: F811
    ir, vis = pair
    flat = np.full(vis.shape[:2], 90, np.uint8)
    got, texts = said(lambda: fuse(flat, vis, align="shift", align_field="common"))
    assert len(texts) == 1 and "no certain map" in texts[0] and got.shape == vis.shape
    with pytest.warns(DDFMWarning, match='align is "check", which aligns none'):
        fuser = Fuser(align_field="common")
    assert fuser(ir, vis).shape == vis.shape


def test_wrong_fields_and_too_little_in_common(pair):  # noqa: F811
    ir, vis = pair
    for bad in ("infrared", None, 3):
        with pytest.raises(ValueError, match='align_field is .*expected "visible"'):
            Fuser(align="shift", align_field=bad)
    far = known(ir.shape, 230, 0)
    with pytest.raises(ValueError, match=r"field of 200x10 pixels in common; expected at least 16"):
        fuse(ir, vis, align=far, align_field="common")


def run(*args: object):
    return CliRunner().invoke(app, [str(one) for one in args])


def test_files_panel_and_place(apart, tmp_path):
    moved, vis, ir = apart
    write_calibration(tmp_path / "c.json", known(ir.shape))
    cv2.imwrite(str(tmp_path / "ir.png"), moved)
    tags = ImageFileDirectory_v2()
    tags[33550], tags[33922] = (0.5, 0.25, 0.0), (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)
    tags.tagtype[33550] = tags.tagtype[33922] = 12
    tags[34735], tags.tagtype[34735] = (1, 1, 0, 1, 1024, 0, 1, 1), 3
    Image.fromarray(vis).save(tmp_path / "vis.tif", tiffinfo=tags)
    out = tmp_path / "out.tif"
    found = run(
        "fuse", tmp_path / "ir.png", tmp_path / "vis.tif", "-o", out, "--align",
        tmp_path / "c.json", "--align-field", "common", "--panel", "--keep-thermal", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (report,) = json.loads(found.stdout)["results"]
    assert (report["height"], report["width"], report["crop"]) == (194, 231, [UP, 0])
    with Image.open(out) as picture:
        got, place = np.asarray(picture), picture.tag_v2[33922]
        picture.seek(1)
        thermal = np.asarray(picture)
    wanted = fuse(cropped(ir), cropped(vis), align="off")
    assert np.array_equal(got, wanted) and np.array_equal(thermal, cropped(ir))
    # the first pixel of the file is now at (0, −6) of the result
    assert place == (0.0, -6.0, 0.0, 440720.0, 3751320.0, 0.0)
    with Image.open(tmp_path / "out.panel.png") as panel:
        shown = [("infrared", cropped(ir)), ("visible", cropped(vis)), ("fused", wanted)]
        assert np.array_equal(np.asarray(panel), draw_panel([shown]))


def test_a_batch_is_redone_where_it_is_cropped_otherwise(apart, tmp_path):
    moved, vis, ir = apart
    write_calibration(tmp_path / "c.json", known(ir.shape))
    for folder, image in (("ir", moved), ("vi", vis[..., ::-1])):
        (tmp_path / folder).mkdir()
        for n in range(2):
            cv2.imwrite(str(tmp_path / folder / f"{n}.png"), image)

    def batch(field: str) -> dict:
        result = run(
            "batch", tmp_path / "ir", tmp_path / "vi", "-o", tmp_path / "out", "--json",
            "--workers", 1, "--align", tmp_path / "c.json", "--align-field", field,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert batch("visible")["done"] == 2
    assert cv2.imread(str(tmp_path / "out" / "0.png")).shape == vis.shape
    assert batch("common")["done"] == 2 and batch("common")["skipped"] == 2
    assert cv2.imread(str(tmp_path / "out" / "0.png")).shape == (194, 231, 3)


def test_a_video_is_cropped_by_a_calibration_alone(apart, tmp_path):
    moved, vis, ir = apart
    write_calibration(tmp_path / "c.json", known(ir.shape))
    for folder, image in (("ir", moved), ("vi", vis[..., ::-1])):
        (tmp_path / folder).mkdir()
        for n in range(2):
            cv2.imwrite(str(tmp_path / folder / f"{n}.png"), image)
    command = ["video", tmp_path / "ir", tmp_path / "vi", "-o", tmp_path / "out", "--preset",
               "realtime", "--align-field", "common", "--align"]  # fmt: skip
    refused = run(*command, "shift")
    assert refused.exit_code == 2 and "expected a calibration" in " ".join(refused.output.split())
    assert not (tmp_path / "out").exists()
    done = run(*command, tmp_path / "c.json", "--side-by-side")
    assert done.exit_code == 0, done.output
    shown = cv2.imread(str(tmp_path / "out" / "000001.png"))
    assert shown.shape == (194, 3 * 231, 3)
    assert differs(shown[:, :231, 0], cropped(ir)) == 0
