"""Images of 8 and of 16 bits brought together."""

from __future__ import annotations

import numpy as np

from ddfm_fast.files.depth import Levels, Unit, moved, resized_sources, same_depth, sources

EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = EIGHT.astype(np.uint16) * 257


def test_equal_depths_are_left_alone():
    for image in (EIGHT, DEEP):
        assert all(x is image for x in same_depth(image, image))


def test_eight_bits_become_sixteen_exactly():
    for pair in ((EIGHT, DEEP), (DEEP, EIGHT)):
        for image in same_depth(*pair):
            assert image.dtype == np.uint16
            np.testing.assert_array_equal(image, DEEP)


def test_values_that_are_moved_do_not_mix_with_those_that_mean_nothing():
    """A measurement beside a mark such as -9999 is either one of its neighbors', or the mark."""
    values = np.full((20, 30), 25, np.float32)
    values[5:9, 5:9] = -9999
    found = sources(values, np.zeros((40, 60), np.uint8), Levels({"ir": (0, 50)}, {"ir": -9999}))
    by = resized_sources(found, "vis")
    after = by.units[0].values
    assert after.shape == (40, 60) and set(np.unique(after)) == {-9999, 25}
    np.testing.assert_array_equal(after == -9999, by.holes[0])
    np.testing.assert_array_equal(np.unique(by.ir), [32768])


def test_what_a_move_does_not_reach_was_not_measured():
    empty = np.zeros((4, 6), bool)
    empty[:, :2] = True
    for dtype, nothing, there in (
        (np.float32, None, np.nan), (np.float64, -9999, -9999), (np.uint16, None, 0),
        (np.int32, -1, -1), (np.uint16, -1, 0),
        (np.int16, None, -32768), (np.uint8, np.nan, 0), (np.float16, None, np.nan),
    ):  # fmt: skip
        unit = Unit(np.full((4, 6), 7, dtype), 0, 9, nothing)
        after = moved(unit, lambda values: values + values.dtype.type(0), None, empty).values
        assert after.dtype == dtype
        np.testing.assert_array_equal(after[:, :2], np.full((4, 2), there, dtype))
        assert (after[:, 2:] == 7).all() and (unit.values == 7).all()
