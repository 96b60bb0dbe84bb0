"""What the values of a source mean: its own range, the window it uses, what has no data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from clips import texture

from ddfm_fast import DDFMWarning, Fuser, fuse
from ddfm_fast.images.pair import read_pair
from ddfm_fast.images.pixels import Pixels
from ddfm_fast.images.planes import to_planes
from ddfm_fast.images.ranges import Ignored, Window, chosen, nearest_valid, ranges_of, span

PICTURE = texture(48, 64, 1)
"""0 to 255, all of it used"""
UNIT = PICTURE / 255
OTHER = texture(48, 64, 2, 3)

KINDS = {
    "8 bits": (PICTURE, None),
    "16 bits": (PICTURE.astype(np.uint16) * 257, None),
    "16 bits of which the lowest are unused": (PICTURE.astype(np.uint16) << 8, None),
    "floats in 0..1": (UNIT.astype(np.float32), None),
    "half floats in 0..1": (UNIT.astype(np.float16), None),
    "12 bits in 16": (PICTURE.astype(np.uint16) * 16, "0 to 4080, not 0..65535"),
    "14 bits in 16": (PICTURE.astype(np.uint16) * 64, "0 to 16320, not 0..65535"),
    "counts": (7000 + PICTURE.astype(np.uint16) * 8, "7000 to 9040, not 0..65535"),
    "centikelvin": (29000 + PICTURE.astype(np.uint16) * 10, "29000 to 31550, not 0..65535"),
    "degrees Celsius": ((UNIT * 80 - 20).astype(np.float32), "-20 to 60, not 0..1"),
    "Kelvin": (UNIT * 30 + 280, "280 to 310, not 0..1"),
    "half floats in Celsius": ((UNIT * 80 - 20).astype(np.float16), "-20 to 60, not 0..1"),
    "-1..1": (UNIT * 2 - 1, "-1 to 1, not 0..1"),
    "8 bits as floats": (PICTURE.astype(np.float32), "gray levels 0 to 255"),
    "Hounsfield units": (
        (PICTURE.astype(np.int16) * 16 - 1024),
        "-1024 to 3056, not the range of int16",
    ),
    "signed 8 bits": ((PICTURE.astype(int) - 128).astype(np.int8), "-128 to 127"),
    "signed 32 bits": (PICTURE.astype(np.int32) * 10 - 500, "-500 to 2050, not the range of int32"),
    "unsigned 32 bits": (PICTURE.astype(np.uint32) * 10, "0 to 2550, not the range of uint32"),
}
"""a picture in each of the units that cameras and scanners write, and the warning about it"""


def read(image, name: str = "ir", **reading) -> tuple[np.ndarray, list[str]]:
    """Return the plane of an image, and the warnings about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        planes, _ = to_planes(image, name, **{"value_range": "auto", **reading})
    assert all(w.category is DDFMWarning for w in caught)
    return planes.numpy().squeeze(), [str(w.message) for w in caught]


# What is found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", ["numpy", "torch"])
def test_every_kind_is_read_as_the_same_picture(kind, container):
    image, sentence = KINDS[kind]
    plane, said = read(torch.from_numpy(image) if container == "torch" else image)
    assert np.abs(plane - UNIT).max() <= (0.004 if "lowest" in kind else 0.001)
    assert len(said) == (sentence is not None)
    if sentence:
        assert sentence in said[0] and 'value_range={"ir": …} or --ir-range' in said[0]


def test_what_a_picture_uses_is_its_own_range_to_the_byte():
    for image in (PICTURE, PICTURE.astype(np.uint16) * 257, UNIT.astype(np.float32)):
        np.testing.assert_array_equal(read(image)[0], read(image, value_range="dtype")[0])


def test_narrow_eight_bits_are_left_alone_with_a_word():
    image = 100 + PICTURE // 16
    plane, said = read(image)
    np.testing.assert_array_equal(plane, read(image, value_range="dtype")[0])
    assert len(said) == 1 and "only the gray levels 100 to 115" in said[0]
    assert not read(100 + PICTURE // 9)[1]  # 28 levels, more than a tenth


def test_eight_bits_made_deep_are_no_counts():
    """A dark picture of 8 bits is multiplied by 257 when it goes with one of 16 bits."""
    dark = (PICTURE // 8).astype(np.uint16) * 257
    plane, said = read(dark)
    assert not said
    np.testing.assert_array_equal(plane, read(dark, value_range="dtype")[0])


@pytest.mark.parametrize("kind", ["counts", "degrees Celsius", "signed 32 bits", "-1..1"])
@pytest.mark.parametrize("value", [-9999, 65535])
def test_one_far_pixel_does_not_move_the_window(kind, value):
    image = KINDS[kind][0].copy()
    if not np.can_cast(np.min_scalar_type(value), image.dtype) and image.dtype == np.uint16:
        value = 0
    image[20, 30] = value
    plane, said = read(image)
    others = np.ones(image.shape, bool)
    others[20, 30] = False
    assert np.abs(plane - UNIT)[others].max() <= 0.01
    assert plane[20, 30] == float(value > 1000)
    assert f"and 1 value such as {value:g} is clipped, which nodata={value:g} would" in said[0]


def test_one_far_pixel_of_a_picture_in_0_to_1():
    image = UNIT.astype(np.float32)
    image[0, 0] = -9999
    plane, said = read(image)
    np.testing.assert_array_equal(plane.ravel()[1:], UNIT.astype(np.float32).ravel()[1:])
    assert len(said) == 1 and "nodata=-9999" in said[0]


def test_what_resizing_overshoots_is_clipped():
    image = UNIT.astype(np.float32)
    image[0, :2] = -0.05, 1.04
    plane, said = read(image)
    assert plane[0, 0] == 0 and plane[0, 1] == 1
    assert len(said) == 1 and "-0.05 to 1.04 are clipped to 0 to 1" in said[0]


def test_a_large_picture_is_judged_by_all_of_its_columns_and_channels():
    image = np.zeros((512, 1024, 3), np.float32)
    image[..., 1], image[:, 512:, 2] = 20.0, 300.0
    found = span(image)
    assert (found.low, found.high) == (0, 300)
    image[:, ::8] = 1000.0  # an eighth of the columns: no mark, however the sample falls
    assert span(image).high == 1000


@pytest.mark.parametrize("size", [(16, 16), (480, 640), (1, 70000)])
def test_the_window_holds_all_values_but_far_ones(size):
    rng = np.random.default_rng(0)
    values = rng.normal(300, 5, size).astype(np.float32)
    found = span(values)
    assert found.low == values.min() and found.high == values.max()
    values.flat[7] = 1e6
    assert span(values).high == np.sort(values, axis=None)[-2] and span(values).most == 1e6


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int32"])
def test_a_small_target_on_a_plain_ground_is_no_dead_pixel(dtype):
    image = np.full((480, 640), 100, dtype)
    image[200:210, 300:315] = 3000
    plane, said = read(image)
    assert plane[205, 305] == 1 and plane[0, 0] == 0 and "100 to 3000" in said[0]
    image[200:210, 300:315] = 100
    image[7, 7] = 3000
    assert (read(image)[0] == read(np.full((480, 640), 100, dtype))[0]).mean() > 0.99999


def test_nothing_counts():
    for values in (np.full((16, 16), np.nan), np.full((16, 16), -np.inf, np.float32)):
        assert span(values) is None and chosen(values, "auto", "ir") is None


@pytest.mark.parametrize("value", [0, 0.5, 300, -300, 1e20, 6e4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_constant_picture_of_floats_is_legal(value, dtype):
    value = min(value, float(np.finfo(dtype).max))
    plane, said = read(np.full((16, 20), value, dtype))
    assert not said  # reading the pair reports that it is flat
    assert (plane == (value if 0 <= value <= 1 else 0)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_constant_infrared_gives_the_visible_picture(dtype):
    fuser = Fuser(preset="instant")
    with pytest.warns(DDFMWarning, match="ir is .* everywhere, so the result shows only the other"):
        fused = fuser(np.full((48, 64), 12, dtype), OTHER)
    lumas = (x.astype(float) @ (0.299, 0.587, 0.114) for x in (fused, OTHER))
    assert np.corrcoef(*(x.ravel() for x in lumas))[0, 1] > 0.99


def test_a_large_picture_of_integers_is_read_as_a_small_one():
    """A table of levels is used from a certain number of pixels on."""
    for dtype, limits in (("uint16", (7000, 9040)), ("uint8", (10, 90))):
        every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
        whole = read(np.concatenate([every, every]), value_range=limits_of(limits))[0]
        parts = [
            read(np.ascontiguousarray(part), value_range=limits_of(limits))[0]
            for part in np.split(every, every.shape[1] // 16, axis=1)
        ]
        np.testing.assert_array_equal(whole[:16], np.concatenate(parts, axis=1))
        np.testing.assert_array_equal(whole[16:], whole[:16])


def limits_of(limits) -> Window:
    return Window(map(float, limits))


# What the caller sets


def test_data_is_the_window_without_a_word():
    plane, said = read(KINDS["counts"][0], value_range="data")
    assert np.abs(plane - UNIT).max() < 1e-3 and not said
    assert read(PICTURE // 2, value_range="data")[0].max() == 1


def test_dtype_is_the_dtype_however_little_is_used():
    image = KINDS["counts"][0]
    plane, said = read(image, value_range="dtype")
    np.testing.assert_allclose(plane, image / 65535, rtol=1e-6)
    assert not said
    plane, _ = read(KINDS["Hounsfield units"][0], value_range="dtype")
    np.testing.assert_allclose(plane, (KINDS["Hounsfield units"][0] + 32768.0) / 65535, rtol=1e-6)


def test_each_source_has_a_range_of_its_own():
    counts, hounsfield = KINDS["counts"][0], KINDS["Hounsfield units"][0]
    given = {"ir": (7000, 9040), "vis": (-1024, 3056)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = read_pair(
            counts, hounsfield.T.copy().reshape(48, 64), pixels=Pixels(torch.device("cpu")),
            value_range=given,
        )  # fmt: skip
    assert np.abs(pair.ir.numpy().squeeze() - UNIT).max() < 1e-6
    assert float(pair.vis.min()) == 0 and float(pair.vis.max()) == 1


def test_dicom_with_its_range_is_fused_and_comes_back_in_it():
    image = KINDS["Hounsfield units"][0]
    fused = Fuser(preset="instant")(image, image[::-1].copy(), value_range=(-1024, 3071))
    assert -1024 <= fused.min() < fused.max() <= 3071


def test_twelve_bits_beside_eight_both_count():
    fuser = Fuser(preset="instant")
    with pytest.warns(DDFMWarning, match="0 to 4080"):
        fused = fuser(KINDS["12 bits in 16"][0], OTHER)
    expected = fuser(PICTURE, OTHER)
    assert np.abs(fused.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("value_range", "match"),
    [
        ("foo", r"value_range: got 'foo', expected \(lo, hi\), auto, dtype, data or a dict"),
        ("0,255", "value_range: got '0,255', expected"),
        ((5, 1), r"value_range: got \(5, 1\), expected two finite numbers .* lo < hi"),
        ((0, float("inf")), "value_range: got .* finite"),
        (("auto", "auto"), r"value_range: got \('auto', 'auto'\), .* or a dict of these by source"),
        (5, "value_range: got 5, expected"),
        ({"ir": (5, 1)}, r"value_range: got \(5, 1\)"),
        ({"thermal": (0, 1)}, "value_range: got a range for 'thermal', expected the keys"),
    ],
)
def test_ranges_that_are_none(value_range, match):
    with pytest.raises(ValueError, match=match):
        Fuser(preset="instant")(PICTURE, OTHER, value_range=value_range)


# What has no data


@pytest.mark.parametrize("nodata", [-9999.0, float("nan")])
def test_nodata_is_not_in_the_range_and_shows_the_other_source(nodata):
    image = KINDS["degrees Celsius"][0].copy()
    hole = np.zeros(image.shape, bool)
    hole[10:20, 30:50] = True
    image[hole] = nodata
    with pytest.warns(DDFMWarning, match="-20 to 60, not 0..1") as said:
        fused = Fuser(preset="instant")(image, OTHER, nodata={"ir": nodata})
    assert len(said) == 1 and "clipped" not in str(said[0].message)
    assert np.abs(fused.astype(int) - OTHER)[hole].max() <= 1
    assert np.abs(fused.astype(int) - OTHER)[~hole].max() > 20


def test_nodata_of_integers_is_left_out_before_a_first_look():
    """An eighth of the pixels at 65535 look like 16 bits in use."""
    image = KINDS["counts"][0].copy()
    image[:6] = 65535
    plane, said = read(image, nodata=65535)
    assert np.abs(plane - UNIT)[6:].max() < 1e-2 and "values are 7" in said[0]


def test_nodata_that_is_not_there_changes_nothing():
    np.testing.assert_array_equal(read(PICTURE, nodata=-1)[0], read(PICTURE)[0])


def test_pixels_without_data_take_the_nearest_value():
    image = np.full((16, 16), 7, np.uint8)
    image[:, 8:] = 200
    image[4, 3], image[4, 12] = 0, 0
    plane, _ = read(image, nodata=0)
    assert plane[4, 3] == plane[0, 0] and plane[4, 12] == plane[0, 15]


@pytest.mark.parametrize("place", [np.s_[0:1, 0:1], np.s_[5:9, 3:6], np.s_[:7], np.s_[:, 20:]])
def test_the_nearest_valid_pixel_is_found_wherever_the_hole_is(place):
    hole = np.zeros((24, 32), bool)
    hole[place] = True
    rows, columns = np.divmod(nearest_valid(hole), 32)
    assert not hole[rows, columns].any()
    valid = np.argwhere(~hole)
    for y, x in np.argwhere(hole):
        least = np.hypot(*(valid - (y, x)).T).min()
        # OpenCV's distances by a 5x5 mask are off by up to 2 %
        assert np.hypot(rows[y, x] - y, columns[y, x] - x) <= 1.02 * least
    assert (nearest_valid(np.zeros((3, 4), bool)) == np.arange(12).reshape(3, 4)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_holes_are_filled_in_every_layout(dtype):
    image = np.full((2, 20, 24, 3), 50, dtype)
    image[0, :, 12:] = 90
    image[1, 4, 5], image[0, 6, 7, 1] = 7, 7
    filled = np.where(image == 7, 50, image) / 40 - 1.25
    for axes in ((0, 1, 2, 3), (0, 3, 1, 2)):
        plane, _ = read(image.transpose(axes), value_range=Window((50.0, 90.0)), nodata=7)
        np.testing.assert_allclose(plane, filled.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_picture_of_nodata_alone_is_refused(dtype):
    with pytest.raises(ValueError, match="vis: every pixel is nodata=7, expected a picture"):
        read(np.full((16, 16), 7, dtype), "vis", nodata=7)


def test_nan_without_nodata_names_the_option():
    image = UNIT.copy()
    image[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"ir: 1 of .* NaN .*\(3, 4\).* nodata=nan"):
        read(image)


@pytest.mark.parametrize("nodata", ["foo", True, [1], {"ir": "a"}])
def test_nodata_that_is_no_number(nodata):
    with pytest.raises(TypeError, match="nodata: got .*, expected a number or NaN, or a dict"):
        Fuser(preset="instant")(PICTURE, OTHER, nodata=nodata)
    with pytest.raises(ValueError, match="nodata: got a value for 'thermal', expected"):
        Fuser(preset="instant")(PICTURE, OTHER, nodata={"thermal": 1})


# Pairs


def test_a_range_is_found_for_each_source():
    with pytest.warns(DDFMWarning, match="7000 to 9040") as said:
        found = ranges_of(KINDS["counts"][0], OTHER)
    assert found == {"ir": Window((7000.0, 9040.0)), "vis": "dtype"}
    assert len(said) == 1


def test_a_range_that_is_given_stays():
    given = {"ir": (0, 65535), "vis": "dtype"}
    assert ranges_of(KINDS["counts"][0], OTHER, given) == given


DEGREES = (UNIT * 80 - 20).astype(np.float32)


@pytest.mark.parametrize(
    "mark, image",
    [
        (-9999, DEGREES),
        (np.finfo(np.float32).min, DEGREES),
        (1e6, DEGREES),
        (0, (UNIT * 40 + 280).astype(np.float32)),
        (0, (7000 + UNIT * 2000).astype(np.uint16)),
        (-32768, (UNIT * 4000 - 1024).astype(np.int16)),
        (-1234567, (UNIT * 80 - 20).astype(np.int32)),
    ],
)
def test_a_field_of_marks_does_not_set_the_range(mark, image):
    """A twentieth of the picture is more than dead pixels are; the warning names the value."""
    marked = image.copy()
    marked[5:15, 20:36] = mark
    low, high = float(image[15:].min()), float(image[15:].max())
    with pytest.warns(DDFMWarning, match=r"160 values such as .* clipped, which nodata=") as said:
        found = chosen(marked, "auto", "ir")
    assert found[0] <= low and high <= found[1] and found[1] - found[0] <= np.ptp(image * 1.0)
    named = float(str(said[0].message).split("which nodata=")[1].split(" would")[0])
    assert (marked == Ignored(named).value).sum() == 160 == Ignored(named).where(marked).sum()


def test_marks_at_both_ends_and_beside_floats_in_0_to_1():
    image = DEGREES.copy()
    image[:4], image[40:44] = -9999, 1e6
    with pytest.warns(DDFMWarning, match="512 values such as -9999 are clipped"):
        assert chosen(image, "auto", "ir") == (-20, 60)
    unit = UNIT.astype(np.float32)
    unit[:4] = -9999
    sentence = "ir: is read as 0 to 1, and 256 values such as -9999 are clipped"
    with pytest.warns(DDFMWarning, match=sentence):
        assert chosen(unit, "auto", "ir") == (0, 1)


def test_what_uses_its_dtype_and_masks_keep_their_ground():
    """Black around such a picture stays black, and 0, 1000 and 5000 are a map of classes."""
    dim = (UNIT * 0.5 + 0.5).astype(np.float32)
    dim[:20] = 0
    classes = np.zeros((48, 64), np.int32)
    classes[10:20], classes[30:34] = 1000, 5000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(dim, "auto", "ir") is None
    with pytest.warns(DDFMWarning, match="values are 0 to 5000"):
        assert chosen(classes, "auto", "ir") == (0, 5000)


@pytest.mark.parametrize("named", [np.nan, np.inf, -np.inf])
def test_not_a_number_and_infinity_are_left_out_by_the_name_of_either(named):
    """Otherwise a picture that has both could not be read at all."""
    image = DEGREES.copy()
    image[3, 4], image[5, 6], image[7, 8] = np.nan, np.inf, -np.inf
    for values in (image, torch.from_numpy(image)):
        where = np.asarray(Ignored(named).where(values))
        assert sorted(zip(*np.nonzero(where), strict=True)) == [(3, 4), (5, 6), (7, 8)]
    options = {"value_range": {"ir": (-20, 60)}, "nodata": {"ir": named}}
    fused = fuse(image, OTHER, preset="instant", device="cpu", **options)
    assert np.abs(fused[[3, 5, 7], [4, 6, 8]].astype(int) - OTHER[[3, 5, 7], [4, 6, 8]]).max() <= 1
    assert not Ignored(named).where(PICTURE).any()
