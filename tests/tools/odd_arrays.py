"""Pictures as arrays of every dtype, and objects that speak one protocol of arrays."""

from __future__ import annotations

import numpy as np

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
SHAPES = ((16, 19), (17, 16, 3), (2, 18, 16), (3, 16, 16), (2, 16, 17, 3), (2, 3, 17, 16))


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Draw any legal values of the dtype, the ends of the range among them."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("u"):
        found = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
        ends = 0, np.iinfo(dtype).max
    else:
        # denormal numbers too: powers of 2 are equally likely from 2**-160 to 1
        found = (rng.random(shape) * 2.0 ** rng.integers(-160, 1, shape)).astype(dtype)
        ends = 0, 1
    found.flat[:2] = ends
    return found


class Foreign:
    """An array of another library, as far as DLPack tells."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Interface:
    def __init__(self, array: np.ndarray):
        self.array, self.__array_interface__ = array, array.__array_interface__


class Method:
    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


def turned(a: np.ndarray) -> np.ndarray:
    return a.T.copy().T
