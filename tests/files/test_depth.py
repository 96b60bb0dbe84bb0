"""Images of 8 and of 16 bits brought together."""

from __future__ import annotations

import numpy as np

from ddfm_fast.files.depth import same_depth

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
