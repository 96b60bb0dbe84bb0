"""Black and white of a video of counts: followed slowly, without flicker, and renewed at a cut."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from clips import pan, quick_fuser, texture, write_clip
from fusing import run
from PIL import Image

from ddfm_fast import DDFMWarning, Fuser
from ddfm_fast.api import Fuser as ApiFuser
from ddfm_fast.cli.app import app
from ddfm_fast.files.reading import read_image
from ddfm_fast.video import fuse_video
from ddfm_fast.video.stream import fuse_streams

PICTURE, VIS = texture(64, 64, 1), texture(64, 64, 2, 3)
FRAMES = 40


def counts(picture: np.ndarray, low: float, step: float = 8) -> np.ndarray:
    return np.rint(low + picture.astype(float) * step).astype(np.uint16)


def drifting(frames: int = FRAMES) -> list[np.ndarray]:
    """Draw a still scene of a camera that drifts by two counts per frame."""
    return [counts(PICTURE, 7000 + 2 * n) for n in range(frames)]


def fused(ir, vis, out, **options) -> tuple[np.ndarray, list[str]]:
    """Return fused frames in 8-bit units, and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DDFMWarning)
        run(ir, vis, out, **options)
    frames = [read_image(path) for path in sorted(out.iterdir())]
    assert all(frame.dtype == np.uint16 for frame in frames)
    return np.array(frames) / 257, [str(w.message) for w in said]


def test_a_drift_in_a_16_bit_video_does_not_flicker(tmp_path):
    """Beside the same scene without a drift; frame by frame it moves by less than a level."""
    clip = write_clip(tmp_path / "ir.mkv", drifting(), codec="ffv1", pix_fmt="gray16le")
    vis = [VIS] * FRAMES
    found, said = fused(clip, vis, tmp_path / "a")
    assert len(said) == 1 and "7000 to 9040" in said[0]
    still, _ = fused([counts(PICTURE, 7000)] * FRAMES, vis, tmp_path / "b")
    assert np.abs(np.diff(found, axis=0)).max() < 1
    assert np.abs(found[0] - still[0]).max() < 0.01
    assert np.abs(found[-1] - still[-1]).mean() < 6
    kept, _ = fused(clip, vis, tmp_path / "c", ir_range=(7000, 9040))
    assert np.abs(kept[-1] - still[-1]).mean() > np.abs(found[-1] - still[-1]).mean()


def scenes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw (infrared, visible): two scenes, whose counts overlap in part."""
    first, second = pan(6, 3), pan(6, 4)
    ir = [counts(p, 7000) for p in first] + [counts(p, 7600, 20) for p in second]
    return ir, [*pan(6, 5, channels=3), *pan(6, 6, channels=3)]


def test_a_cut_starts_with_the_range_of_its_own(tmp_path):
    """Each scene as it is alone: the first frame after the cut is not clipped."""
    ir, vis = scenes()
    clip = write_clip(tmp_path / "ir.mkv", ir, codec="ffv1", pix_fmt="gray16le")
    whole, said = fused(clip, vis, tmp_path / "whole", side_by_side=True)
    assert len(said) == 1
    for name, part in (("first", slice(0, 6)), ("second", slice(6, 12))):
        alone, _ = fused(ir[part], vis[part], tmp_path / name, side_by_side=True)
        np.testing.assert_array_equal(whole[part][:, :, :64], alone[:, :, :64])
        assert np.abs(whole[part][0] - alone[0]).max() < 1


def test_streams_in_memory_follow_likewise():
    fuser = quick_fuser()
    ir, vis = scenes()
    with pytest.warns(DDFMWarning, match="values are 7") as said:
        whole = list(fuser.stream(zip(ir, vis, strict=True), preset="realtime"))
    assert len(said) == 1
    with pytest.warns(DDFMWarning):
        alone = list(fuser.stream(zip(ir[6:], vis[6:], strict=True), preset="realtime"))
        both = list(fuse_streams(fuser, [list(zip(ir, vis, strict=True))] * 2, preset="realtime"))
    assert np.abs(whole[6].astype(int) - alone[0]).max() <= 1
    for one, two in zip(whole, both, strict=True):
        np.testing.assert_array_equal(two[0], one)
        np.testing.assert_array_equal(two[1], one)


def test_degrees_in_a_stream_of_any_float():
    warm = [PICTURE / 255 * 40 + 10 + n / 50 for n in range(4)]
    results = {}
    for kind in ("float16", "float32", "float64"):
        pairs = [(frame.astype(kind), VIS) for frame in warm]
        with pytest.warns(DDFMWarning, match="ir: values are 10 to 50"):
            results[kind] = list(ApiFuser(preset="instant").stream(pairs, preset="realtime"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = list(Fuser(preset="instant").stream([(PICTURE, VIS)] * 4, preset="realtime"))
    for frames in results.values():
        assert np.abs(frames[0].astype(int) - exact[0]).max() <= 1
        assert np.abs(frames[3].astype(int) - exact[3]).max() <= 2


def test_frames_of_floats_are_fused_like_files(tmp_path):
    unit = (PICTURE / 255).astype(np.float64)
    found, said = fused([unit] * 2, [VIS] * 2, tmp_path / "a")
    assert not said
    report = run([PICTURE] * 2, [VIS] * 2, tmp_path / "b")
    assert report.frames == 2
    assert np.abs(found[0] - read_image(tmp_path / "b" / "000001.png").astype(float)).max() <= 1


# What has no data


def holed(value: float, dtype: str) -> list[np.ndarray]:
    frame = counts(PICTURE, 7000).astype(dtype)
    frame[20:30, 30:44] = value
    return [frame] * 3


@pytest.mark.parametrize("value, dtype", [(0, "uint16"), (np.nan, "float32"), (-1, "int32")])
def test_no_data_shows_the_other_source(tmp_path, value, dtype):
    whole = [counts(PICTURE, 7000)] * 3
    found, said = fused(holed(value, dtype), [VIS] * 3, tmp_path / "a", nodata={"ir": value})
    plain, _ = fused(whole, [VIS] * 3, tmp_path / "b")
    inside = slice(20, 30), slice(30, 44)
    assert np.abs(found[1][inside] - VIS[inside]).max() < 0.01
    outside = np.ones((64, 64), bool)
    outside[12:38, 22:52] = False
    assert np.abs(found[1] - plain[1])[outside].mean() < 3
    assert len(said) == 1 and "nodata" not in said[0]


def test_no_data_moves_with_the_alignment(tmp_path):
    """Infrared shows a part of the scene at half the size; its hole is where the scene's is."""
    scene = pan(2, 2, size=160)
    vis = [np.dstack([f] * 3) for f in scene]
    ir = [counts(f[8:136:2, 16:144:2], 7000) for f in scene]
    for frame in ir:
        frame[30:40, 30:40] = 0
    with pytest.warns(DDFMWarning, match="ir: values are"):
        fuse_video(ir, vis, tmp_path / "o", fuser=Fuser(preset="instant", align="affine"),
                   preset="realtime", nodata={"ir": 0})  # fmt: skip
    shown = read_image(tmp_path / "o" / "000001.png") / 257
    inside = slice(8 + 62, 8 + 78), slice(16 + 62, 16 + 78)
    assert np.abs(shown[inside] - vis[1][inside]).max() < 1


def test_no_data_that_files_of_a_folder_name(tmp_path):
    from ddfm_fast.files.directories import pack, pages_of, text

    for n in range(2):
        path = tmp_path / "ir" / f"{n}.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(holed(0, "uint16")[0]).save(path)
        with path.open("rb") as file:
            (page,) = pages_of(file)
        page.tags[42113] = text("0")
        path.write_bytes(pack([page]))
    found, said = fused(tmp_path / "ir", [VIS] * 2, tmp_path / "o")
    assert np.abs(found[1][20:30, 30:44] - VIS[20:30, 30:44]).max() < 0.01
    assert len([s for s in said if "0 means no data" in s]) == 1


def test_bad_values_are_refused_before_anything_is_written(tmp_path):
    for nodata, error in (("x", TypeError), ({"thermal": 1}, ValueError)):
        with pytest.raises(error, match="nodata: got"):
            run([PICTURE] * 2, [VIS] * 2, tmp_path / "o", nodata=nodata)
    with pytest.raises(ValueError, match="NaN or infinite.*nodata=nan"):
        run(holed(np.nan, "float32"), [VIS] * 3, tmp_path / "p")
    assert not (tmp_path / "o").exists()


def test_the_command_takes_it(tmp_path):
    from typer.testing import CliRunner

    ir = write_clip(tmp_path / "ir.mkv", holed(0, "uint16"), codec="ffv1", pix_fmt="gray16le")
    vis = write_clip(tmp_path / "vis.mkv", [VIS] * 3, codec="ffv1", pix_fmt="bgr0")
    arguments = ["video", str(ir), str(vis), "-o", str(tmp_path / "o"), "--preset", "realtime"]
    found = CliRunner().invoke(app, [*arguments, "--nodata", "ir=0", "--codec", "png"])
    assert found.exit_code == 0, found.output
    shown = read_image(tmp_path / "o" / "000001.png") / 257
    assert np.abs(shown[20:30, 30:44] - VIS[20:30, 30:44]).max() < 0.01
    refused = CliRunner().invoke(app, [*arguments, "--nodata", "x"])
    assert refused.exit_code == 2 and "--nodata is 'x'" in refused.output
