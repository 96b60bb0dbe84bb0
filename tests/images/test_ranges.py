"""What black and white are in a source, and what means nothing."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from conftest import shared
from PIL import Image

from ddfm_fast import Fuser, fuse
from ddfm_fast.files.depth import Levels, read_sources, sources
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.images.ranges import Ignored as Nothing
from ddfm_fast.images.ranges import Window, chosen, nearest_valid, ranges_of, window

FAST = {"preset": "instant", "device": "cpu"}


def gray(height=48, width=64, seed=0):
    """Draw a smooth gray picture that uses all of 0..255."""
    y, x = np.mgrid[:height, :width]
    values = np.sin(x / (7 + seed)) + np.cos(y / (5 + seed)) + 0.3 * np.sin((x + y) / 3)
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(values * 255).astype(np.uint8)


IR, VIS = gray(), gray(seed=2)


def silent(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


def scaled(low, high, dtype):
    """Return the infrared picture with other values for black and white."""
    values = low + IR / 255 * (high - low)
    return (values if np.dtype(dtype).kind == "f" else np.rint(values)).astype(dtype)


KINDS = {
    "thermal counts": scaled(7000, 9000, "uint16"),
    "12 bits": scaled(0, 4080, "uint16"),
    "14 bits": scaled(0, 16380, "uint16"),
    "Celsius": scaled(-20, 60, "float32"),
    "Kelvin": scaled(270, 310, "float64"),
    "Hounsfield": scaled(-1024, 3071, "int16"),
    "32 bits": scaled(-500, 2050, "int32"),
    "unsigned 32 bits": scaled(70_000, 90_000, "uint32"),
    "half floats": scaled(-20, 60, "float16"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_does_not_use_its_dtype_is_windowed_with_one_warning(kind):
    with pytest.warns(DDFMWarning, match=r'ir: values are .*value_range=\{"ir": …\}') as said:
        fused = fuse(KINDS[kind], VIS, **FAST)
    assert len(said) == 1
    assert np.abs(fused.astype(int) - silent(fuse, IR, VIS, **FAST)).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_range_and_the_data_s_own_are_taken_without_a_word(kind):
    image = KINDS[kind]
    low, high = float(image.min()), float(image.max())
    wanted = silent(fuse, IR, VIS, **FAST)
    for setting in ((low, high), "data"):
        given = {"ir": setting, "vis": "dtype"}
        got = silent(fuse, image, VIS, value_range=given, **FAST)
        assert np.abs(got.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize(
    "image",
    [
        IR,
        IR.astype(np.uint16) * 257,
        (IR // 4).astype(np.uint16) * 257,
        IR.astype(np.float32) / 255,
        scaled(1000, 60_000, "uint16"),
        scaled(10_000, 30_000, "uint16"),
    ],
    ids=["8 bits", "16 bits", "dark 8 bits in 16", "floats", "deep", "deep and dim"],
)
def test_a_picture_that_uses_its_dtype_is_left_as_it_is(image):
    got = silent(fuse, image, VIS, **FAST)
    assert np.array_equal(got, silent(fuse, image, VIS, value_range="dtype", **FAST))


def test_8_bits_of_which_little_is_used_are_left_with_a_word():
    dim = (100 + IR // 16).astype(np.uint8)
    with pytest.warns(DDFMWarning, match="uses only the gray levels 100 to 115"):
        got = fuse(dim, VIS, **FAST)
    assert np.array_equal(got, silent(fuse, dim, VIS, value_range="dtype", **FAST))


def test_whole_floats_up_to_255_are_gray_levels():
    with pytest.warns(DDFMWarning, match="taken for gray levels 0 to 255"):
        got = fuse(IR.astype(np.float32), VIS, **FAST)
    assert np.abs(got.astype(int) - silent(fuse, IR, VIS, **FAST)).max() <= 1


def test_floats_that_overshoot_a_little_are_clipped():
    image = np.clip(IR / 255 * 1.04 - 0.02, -0.02, 1.02)
    with pytest.warns(DDFMWarning, match=r"from -0\.02 to 1\.02 are clipped to 0 to 1"):
        got = fuse(image, VIS, **FAST)
    assert np.array_equal(got, silent(fuse, image.clip(0, 1), VIS, **FAST))


@pytest.mark.parametrize("bad", [-9999.0, 1e6])
def test_one_pixel_far_off_does_not_move_the_window(bad):
    image = scaled(-20, 60, "float32")
    image[3, 4] = bad
    with pytest.warns(DDFMWarning, match="values are -20 to 60.*1 value such as .*nodata="):
        got = fuse(image, VIS, **FAST)
    wanted = silent(fuse, IR, VIS, **FAST).astype(int)
    assert np.mean(np.abs(got - wanted) > 2) < 0.01


@pytest.mark.parametrize("mark", [-9999.0, float("nan")])
def test_without_data_the_result_shows_the_other_source(mark):
    image = scaled(-20, 60, "float32")
    image[10:20, 12:30] = mark
    options = {"value_range": {"ir": (-20, 60)}, "nodata": {"ir": mark}}
    got = silent(fuse, image, VIS, **options, **FAST)
    assert np.abs(got[10:20, 12:30].astype(int) - VIS[10:20, 12:30]).max() <= 1
    away = np.s_[34:, 44:]
    wanted = silent(fuse, IR, VIS, **FAST)
    assert np.abs(got[away].astype(int) - wanted[away]).mean() < 6


def test_holes_of_the_visible_source_show_infrared_and_batches_keep_theirs():
    ir, vis = np.stack([IR, IR]), np.stack([VIS, VIS]).astype(np.uint16) * 257
    vis[1, 5:15, 5:15] = 1  # no multiple of 257
    got = silent(fuse, ir, vis, nodata={"vis": 1}, value_range="dtype", **FAST)
    hole = np.s_[1, 5:15, 5:15]
    assert np.abs(got[hole].astype(int) - ir[hole].astype(int) * 257).max() <= 257
    alone = silent(fuse, ir[:1], vis[:1], value_range="dtype", **FAST)
    assert np.array_equal(got[:1], alone)


def test_nothing_but_nodata_is_refused_by_name():
    with pytest.raises(ValueError, match="ir: every pixel is nodata=0, expected a picture"):
        fuse(np.zeros_like(IR), VIS, nodata=0, **FAST)


def test_results_of_float_sources_have_the_source_s_units():
    vis = (VIS / 255 * 80 - 20).astype(np.float32)
    with pytest.warns(DDFMWarning, match="vis: values are -20 to 60"):
        got = fuse(IR, vis, **FAST)
    assert got.dtype == np.float32 and got.min() >= -20 and got.max() <= 60
    assert np.ptp(got) > 40


def test_torch_tensors_and_signed_ones():
    for image in (torch.from_numpy(KINDS["Celsius"]), torch.from_numpy(KINDS["Hounsfield"])):
        with pytest.warns(DDFMWarning, match="ir: values are"):
            got = fuse(image, torch.from_numpy(VIS), **FAST)
        wanted = silent(fuse, IR, VIS, **FAST)
        assert np.abs(got.numpy().astype(int) - wanted).max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": "full"}, "value_range: got 'full', expected"),
        ({"value_range": {"thermal": (0, 1)}}, "got a range for 'thermal', expected the keys"),
        ({"value_range": {"ir": (3, 1)}}, r"value_range: got \(3, 1\), expected two finite"),
        ({"value_range": {"ir": 5}}, "value_range: got 5, expected two finite"),
        ({"nodata": "none"}, "nodata: got 'none', expected a number or NaN"),
        ({"nodata": True}, "nodata: got True"),
        ({"nodata": {"both": 0}}, "expected the keys 'ir' and 'vis'"),
    ],
)
def test_settings_that_are_none_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fuse(IR, VIS, **options, **FAST)


def test_nan_without_nodata_is_still_refused():
    image = scaled(-20, 60, "float32")
    image[0, 0] = np.nan
    with pytest.raises(ValueError, match="ir: 1 of .* NaN or infinite"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuse(image, VIS, **FAST)


def test_the_window_of_odd_pictures():
    assert window(np.full((20, 20), 7, np.int32)) is None
    assert window(np.array([[np.nan, np.inf]])) is None
    assert window(np.array([0, 0, 1], np.int16)) == (0, 1)
    assert window(np.array([-1, 0, 0, 5]), Nothing(-1)) == (0, 5)
    assert chosen(np.full((20, 20), 7000, np.uint16), "auto", "ir") is None
    assert chosen(np.full((20, 20), 7000, np.uint16), "data", "ir") is None
    assert isinstance(chosen(KINDS["12 bits"], "data", "ir"), Window)
    assert chosen(np.zeros((4, 4), np.int16), "dtype", "ir") == (-32768, 32767)


def test_a_pair_and_a_stream_are_told_of_a_window_once():
    with pytest.warns(DDFMWarning, match="7000 to 9000") as said:
        ranges = ranges_of(KINDS["thermal counts"], VIS)
    assert ranges == {"ir": (7000, 9000), "vis": "dtype"} and len(said) == 1
    assert silent(partial(ranges_of, told=False), KINDS["thermal counts"], VIS) == ranges
    frames = [(KINDS["thermal counts"] + 20 * n, VIS) for n in range(3)]
    with pytest.warns(DDFMWarning, match="ir: values are 7000 to 9000") as said:
        results = list(Fuser(**FAST).stream(frames, preset="realtime"))
    assert len(said) == 1 and len(results) == 3
    still = list(Fuser(**FAST).stream([(IR, VIS)], preset="realtime"))
    assert np.abs(results[0].astype(int) - still[0]).max() <= 2


def test_the_nearest_valid_pixel():
    hole = np.zeros((9, 9), bool)
    hole[2:7, 2:7] = True
    nearest = nearest_valid(hole)
    rows, columns = np.divmod(nearest, 9)
    assert not hole[rows, columns].any()
    assert (nearest[~hole] == np.flatnonzero(~hole)).all()
    assert (rows[2, 4], columns[2, 4]) == (1, 4)


class TestFiles:
    def save(self, folder, name, array):
        Image.fromarray(array).save(folder / name)
        return folder / name

    def test_counts_become_16_bits_of_their_window(self, tmp_path):
        ir = self.save(tmp_path, "ir.png", KINDS["thermal counts"])
        vis = self.save(tmp_path, "vis.png", VIS)
        with pytest.warns(DDFMWarning, match="7000 to 9000"):
            found = read_sources(ir, vis, Levels())
        assert found.ir.dtype == found.vis.dtype == np.uint16
        assert np.abs(found.ir.astype(int) - IR.astype(int) * 257).max() <= 17
        assert np.array_equal(found.vis, VIS.astype(np.uint16) * 257)

    def test_8_bits_stay_8_bits(self):
        found = silent(sources, IR, VIS)
        assert found.ir is IR and found.vis is VIS and found.holes == (None, None)

    def test_a_given_range_clips(self):
        found = silent(sources, KINDS["Celsius"], VIS, Levels({"ir": (0, 40)}))
        assert found.ir.min() == 0 and found.ir.max() == 65535
        assert (found.ir == 0).mean() > 0.05

    def test_holes_are_filled_and_mended(self):
        image = scaled(-20, 60, "float32")
        image[4:9, 4:9] = -9999
        found = silent(sources, image, VIS, Levels({"ir": "data"}, {"ir": -9999}))
        assert found.holes[0].sum() == 25 and found.holes[1] is None
        color = np.zeros((40, 60, 3), np.uint16)
        mended = found.mended(color)
        assert np.array_equal(mended[4:9, 4:9, 1], found.vis[4:9, 4:9])
        assert (mended[9:] == 0).all() and mended.dtype == np.uint16

    def test_nan_in_a_file_names_the_option(self):
        image = scaled(-20, 60, "float32")
        image[0, 0] = np.nan
        with pytest.raises(ValueError, match="ir: 1 values are NaN.*--nodata"):
            sources(image, VIS)


class TestCases:
    """Inputs that once failed; ``cases/README.md`` has the right results."""

    def read(self, name):
        folder = shared("cases")
        return np.asarray(Image.open(folder / name))

    def wanted(self):
        ir = self.read("ir.png")
        ir = (ir if ir.ndim == 2 else ir[..., 0]).astype(float)
        ir = np.rint((ir - ir.min()) / (ir.max() - ir.min()) * 255).astype(np.uint8)
        return silent(fuse, ir, self.read("vis.png"), **FAST).astype(int)

    @pytest.mark.parametrize("name", ["ir_counts.png", "ir_float.tiff", "ir_int32.tiff"])
    def test_the_picture_is_that_of_8_bits(self, name):
        with pytest.warns(DDFMWarning, match="ir: values are") as said:
            got = fuse(self.read(name), self.read("vis.png"), **FAST)
        assert len(said) == 1
        assert np.abs(got.astype(int) - self.wanted()).max() <= 2

    def test_a_nodata_pixel_is_named_and_does_not_set_the_range(self):
        image, vis = self.read("ir_nodata.tiff"), self.read("vis.png")
        with pytest.warns(DDFMWarning, match="1 value such as -9999 is clipped, which nodata"):
            got = fuse(image, vis, **FAST)
        assert np.mean(np.abs(got.astype(int) - self.wanted()) > 2) < 0.002
        with pytest.warns(DDFMWarning, match="values are -20 to 60, not 0..1: black"):
            got = fuse(image, vis, nodata={"ir": -9999}, **FAST)
        y, x = np.argwhere(image == -9999)[0]
        difference = np.abs(got.astype(int) - vis)[y, x]
        assert difference.max() <= 2, "there the visible picture shows"
