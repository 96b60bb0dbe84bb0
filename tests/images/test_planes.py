"""Containers, layouts and values of planes, padding and cropping."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddfm_fast.images.planes import LAYOUTS as ALL_LAYOUTS
from ddfm_fast.images.planes import crop, from_planes, pad_to_multiple, to_planes

settings.register_profile("images", deadline=None, max_examples=40)
settings.load_profile("images")


LAYOUTS = {
    "HW": (17, 21),
    "HWC": (17, 21, 3),
    "NHW": (2, 17, 21),
    "NHWC": (2, 17, 21, 3),
    "CHW": (3, 17, 21),
    "NCHW": (2, 3, 17, 21),
}
RANDOM = np.random.default_rng(0)


def random_image(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    if dtype.startswith("uint"):
        return RANDOM.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return RANDOM.random(shape).astype(dtype)


def expected_planes(array: np.ndarray, layout: str) -> np.ndarray:
    """Return the planes of an array by an ``einsum``, which shares no code with the package."""
    sizes = dict(zip(layout, array.shape, strict=True))
    shape = tuple(sizes.get(axis, 1) for axis in "NCHW")
    present = [axis for axis in "NCHW" if axis in layout]
    return np.einsum(array, list(layout_ids(layout)), layout_ids(present)).reshape(shape)


def layout_ids(axes) -> list[int]:
    return ["NCHW".index(axis) for axis in axes]


class DlpackOnly:
    """An array of a library that supports nothing but DLPack."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


# The layout rule


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_given_layout_is_obeyed_and_restored(layout, kind):
    array = random_image(LAYOUTS[layout], "float32")
    image = array if kind == "numpy" else torch.from_numpy(array)
    planes, spec = to_planes(image, "ir", layout=layout)
    assert spec.layout == layout
    assert planes.dtype == torch.float32 and planes.is_contiguous()
    np.testing.assert_array_equal(planes.numpy(), expected_planes(array, layout))
    back = from_planes(planes, spec)
    assert type(back) is type(image) and tuple(back.shape) == array.shape
    np.testing.assert_array_equal(np.asarray(back), array)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((2, 20, 20, 4), np.uint8),
        np.zeros((2, 4, 20, 20), np.uint8),
        torch.zeros(4, 20, 20),
        torch.zeros(20, 20, 4),
        torch.zeros(2, 4, 20, 20),
    ],
    ids=lambda image: f"{type(image).__name__}{tuple(image.shape)}",
)
def test_alpha_is_refused(image):
    with pytest.raises(ValueError, match=r"vis: .*4 channels.*drop alpha"):
        to_planes(image, "vis")


def test_layout_settles_four_gray_images():
    assert to_planes(torch.zeros(4, 20, 20), "ir", layout="NHW")[0].shape == (4, 1, 20, 20)
    assert to_planes(np.zeros((4, 20, 20)), "ir")[0].shape == (4, 1, 20, 20)


@pytest.mark.parametrize(
    ("shape", "layout", "match"),
    [
        ((20,), None, r"ir: got 1 dimensions"),
        ((1, 1, 3, 20, 20), None, r"ir: got 5 dimensions"),
        ((15, 20), None, r"H = 15 and W = 20, expected at least 16"),
        ((20, 15, 3), None, r"read as HWC.*W = 15"),
        ((20, 20, 2), None, r"read as NHW.*W = 2"),
        ((20, 20, 5), "HWC", r"got 5 channels"),
        ((20, 20, 4), "HWC", r"got 4 channels.*drop alpha"),
        ((0, 20), None, r"empty"),
        ((0, 20, 20, 3), None, r"empty"),
        ((20, 20), "HWC", r"shape \(20, 20\) does not fit layout='HWC'"),
        ((20, 20), "WH", r"layout: got 'WH', expected one of HW"),
        ((20, 20, 3), "CHW", r"got 20 channels"),
    ],
)
def test_shape_errors(shape, layout, match):
    with pytest.raises(ValueError, match=match):
        to_planes(np.zeros(shape, np.uint8), "ir", layout=layout)


# Values


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("container", ["numpy", "torch"])
def test_every_integer_level_comes_back(dtype, container):
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    image = levels if container == "numpy" else torch.from_numpy(levels)
    planes, spec = to_planes(image, "ir")
    assert planes.min() == 0 and planes.max() == 1
    back = from_planes(planes, spec)
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(np.asarray(back), levels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@given(limits=st.tuples(st.integers(0, 254), st.integers(1, 255)).filter(lambda t: t[0] < t[1]))
def test_integers_come_back_within_a_value_range(dtype, limits):
    low, high = limits if dtype == "uint8" else (limits[0] * 257, limits[1] * 257)
    levels = np.linspace(low, high, 17 * 16).round().astype(dtype).reshape(17, 16)
    planes, spec = to_planes(levels, "ir", value_range=(low, high))
    assert planes.min() == 0 and planes.max() == 1
    np.testing.assert_array_equal(from_planes(planes, spec), levels)


def test_twelve_bits_in_uint16():
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    planes, spec = to_planes(levels, "ir", value_range=(0, 4095))
    np.testing.assert_allclose(planes[0, 0].numpy(), levels / 4095, atol=1e-7)
    np.testing.assert_array_equal(from_planes(planes, spec), levels)
    levels[0, 0] = 5000
    with pytest.raises(ValueError, match="values from 1 to 5000, expected 0 to 4095"):
        to_planes(levels, "ir", value_range=(0, 4095))


def test_integers_round_half_up_and_clip():
    spec = to_planes(np.zeros((16, 16), np.uint8), "ir")[1]
    values = torch.tensor([-0.5, 0.49 / 255, 0.5 / 255, 1.4999 / 255, 254.5 / 255, 1.5])
    planes = torch.zeros(1, 1, 16, 16)
    planes[0, 0, 0, :6] = values
    assert from_planes(planes, spec)[0, :6].tolist() == [0, 0, 1, 1, 255, 255]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float16", 0), ("bfloat16", 0), ("float32", 0), ("float64", 1e-7)],
)
def test_floats_come_back(dtype, tolerance):
    image = torch.rand(3, 16, 18, dtype=torch.float64).to(getattr(torch, dtype))
    planes, spec = to_planes(image, "ir")
    assert planes.dtype == torch.float32
    back = from_planes(planes, spec)
    assert back.dtype == image.dtype
    assert (back.double() - image.double()).abs().max() <= tolerance


def test_input_is_neither_changed_nor_shared():
    image = np.full((16, 16), 0.5, np.float32)
    planes, spec = to_planes(image, "ir")
    planes.zero_()
    assert (image == 0.5).all()
    planes.fill_(0.25)
    from_planes(planes, spec)
    assert (planes == 0.25).all()


def test_slightly_out_of_range_is_clamped():
    image = np.full((16, 16), 0.5)
    image[0, 0], image[0, 1] = -0.9e-4, 1 + 0.9e-4
    planes, _ = to_planes(image, "ir")
    assert planes.min() == 0 and planes.max() == 1
    for value in (-1.1e-4, 1 + 1.1e-4):
        image[0, 0] = value
        with pytest.raises(ValueError, match=r"ir: values from .* expected 0 to 1"):
            to_planes(image, "ir")


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [(0, 200, r"\(0, 255\)"), (-1, 1, r"\(-1, 1\)"), (0, 4000, r"\(0, 4095\)"),
     (0, 60000, r"\(0, 65535\)"), (-20, 300, r"\(-20, 300\)")],
)  # fmt: skip
def test_out_of_range_names_values_and_fix(low, high, hint):
    image = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    with pytest.raises(ValueError, match=rf"vis: values from {low} to {high}.*value_range={hint}"):
        to_planes(image, "vis")


@pytest.mark.parametrize(
    "value_range",
    [(1, 0), (0, 0), (0,), (0, 1, 2), 255, (0, np.nan), (0, np.inf), ("a", "b"), (None, 1)],
)
def test_malformed_value_range(value_range):
    with pytest.raises(ValueError, match="value_range: got"):
        to_planes(np.zeros((16, 16)), "ir", value_range=value_range)


# Containers and dtypes


def test_pil_color_made_gray():
    _, spec = to_planes(Image.new("RGB", (20, 16)), "vis")
    back = from_planes(torch.ones(1, 1, 16, 20), spec)
    assert back.mode == "L" and back.size == (20, 16)


@pytest.mark.parametrize("found_by", ["top module", "array namespace"])
def test_dlpack_goes_home_through_from_dlpack(monkeypatch, found_by):
    home = types.ModuleType("a_home")
    home.from_dlpack = lambda x: Homed(torch.from_dlpack(x))
    monkeypatch.setitem(sys.modules, "a_home", home)

    class Homed(DlpackOnly):
        pass

    if found_by == "top module":
        Homed.__module__ = "a_home.arrays"
    else:
        Homed.__array_namespace__ = lambda self: home

    tensor = torch.randint(0, 65536, (16, 20)).to(torch.uint16)
    planes, spec = to_planes(Homed(tensor), "ir")
    back = from_planes(planes, spec)
    assert type(back) is Homed
    assert torch.equal(back.tensor, tensor)


def test_cupy_arrays_come_back():
    cupy = pytest.importorskip("cupy")
    try:
        image = cupy.arange(16 * 16 * 3, dtype=cupy.uint16).reshape(16, 16, 3)
    except Exception as error:
        pytest.skip(f"CuPy has no device: {error}")
    planes, spec = to_planes(image, "ir")
    assert planes.is_cuda
    back = from_planes(planes, spec)
    assert isinstance(back, cupy.ndarray) and bool((back == image).all())


@pytest.mark.gpu
def test_cuda_tensors_come_back_on_their_device():
    image = torch.randint(0, 256, (3, 16, 20), dtype=torch.uint8, device="cuda")
    planes, spec = to_planes(image, "ir")
    assert planes.is_cuda
    assert torch.equal(from_planes(planes, spec), image)
    assert torch.equal(from_planes(planes.cpu(), spec), image)


def test_from_planes_refuses_what_the_layout_cannot_hold():
    gray = to_planes(np.zeros((16, 16), np.uint8), "ir")[1]
    with pytest.raises(ValueError, match="3 channels do not fit layout HW"):
        from_planes(torch.zeros(1, 3, 16, 16), gray)
    with pytest.raises(ValueError, match="2 images do not fit layout HW"):
        from_planes(torch.zeros(2, 1, 16, 16), gray)
    with pytest.raises(ValueError, match=r"planes: got shape \(16, 16\)"):
        from_planes(torch.zeros(16, 16), gray)


@pytest.mark.parametrize("layout", ["HWC", "NHWC", "CHW", "NCHW"])
def test_channels_may_change_between_in_and_out(layout):
    planes, spec = to_planes(np.zeros(LAYOUTS[layout], np.uint8), "vis", layout=layout)
    back = from_planes(planes[:, :1], spec)
    expected = tuple(1 if a == "C" else s for a, s in zip(layout, LAYOUTS[layout], strict=True))
    assert back.shape == expected


def test_layouts_are_the_documented_ones():
    assert set(ALL_LAYOUTS) == set(LAYOUTS)


# Padding


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100))
def test_padding_is_that_of_numpy(height, width, multiple):
    x = RANDOM.random((2, 1, height, width)).astype(np.float32)
    missing = [(0, -n % multiple) for n in (height, width)]
    expected = np.pad(x, [(0, 0), (0, 0), *missing], mode="reflect")
    padded = pad_to_multiple(torch.from_numpy(x), multiple)
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert torch.equal(crop(padded, height, width), torch.from_numpy(x))


def test_nothing_to_pad_is_no_copy():
    x = torch.rand(1, 3, 32, 64)
    assert pad_to_multiple(x, 32) is x


def test_padding_and_cropping_check_their_arguments():
    x = torch.rand(1, 1, 16, 16)
    for multiple in (0, -8):
        with pytest.raises(ValueError, match=f"multiple: got {multiple}"):
            pad_to_multiple(x, multiple)
    for multiple in (8.0, True, "8"):
        with pytest.raises(TypeError, match="multiple: got"):
            pad_to_multiple(x, multiple)
    for height, width in ((17, 16), (16, 17), (0, 16), (16, -1)):
        with pytest.raises(ValueError, match=rf"{height}x{width} does not fit in 16x16"):
            crop(x, height, width)
