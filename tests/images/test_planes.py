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
    """The planes of an array, by einops-like index bookkeeping that py does not share."""
    sizes = dict(zip(layout, array.shape, strict=True))
    shape = tuple(sizes.get(axis, 1) for axis in "NCHW")
    present = [axis for axis in "NCHW" if axis in layout]
    return np.einsum(array, list(layout_ids(layout)), layout_ids(present)).reshape(shape)


def layout_ids(axes) -> list[int]:
    return ["NCHW".index(axis) for axis in axes]


class DlpackOnly:
    """An array of a library that speaks nothing but DLPack."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class InterfaceOnly:
    def __init__(self, array: np.ndarray):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class ArrayMethodOnly:
    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype)


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


size = st.integers(16, 19)


@given(st.integers(1, 5), st.sampled_from([1, 3]), size, size)
def test_rule_of_numpy_looks_at_the_last_axis(n, c, h, w):
    for shape, layout in (
        ((h, w), "HW"),
        ((h, w, c), "HWC"),
        ((n, h, w), "NHW"),
        ((n, h, w, c), "NHWC"),
        ((n, c, h, w), "NCHW"),
    ):
        planes, spec = to_planes(np.zeros(shape, np.uint8), "ir")
        assert spec.layout == layout
        assert planes.shape[2:] == (h, w)


@given(st.integers(1, 6), st.sampled_from([1, 3]), size, size)
def test_rule_of_torch_looks_at_the_first_axis(n, c, h, w):
    cases = [((h, w), "HW"), ((c, h, w), "CHW"), ((h, w, c), "HWC")]
    cases += [((n, c, h, w), "NCHW"), ((n, h, w, c), "NHWC")]
    if n not in (1, 3, 4):
        cases.append(((n, h, w), "NHW"))
    for shape, layout in cases:
        planes, spec = to_planes(torch.zeros(shape, dtype=torch.uint8), "ir")
        assert spec.layout == layout
        assert planes.shape[2:] == (h, w)


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


def test_layout_settles_four_grey_images():
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


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_floats_come_back_within_any_value_range(low, span):
    image = np.linspace(low, low + span, 16 * 16).reshape(16, 16)
    limits = (float(image.min()), float(image.max()))
    planes, spec = to_planes(image, "ir", value_range=limits)
    assert planes.min() == 0 and planes.max() == 1
    back = from_planes(planes, spec)
    assert back.dtype == np.float64
    assert back.min() == limits[0] and back.max() == limits[1]
    np.testing.assert_allclose(back, image, atol=2e-7 * span + 1e-9)


def test_input_is_neither_changed_nor_shared():
    image = np.full((16, 16), 0.5, np.float32)
    planes, spec = to_planes(image, "ir")
    planes.zero_()
    assert (image == 0.5).all()
    planes.fill_(0.25)
    from_planes(planes, spec)
    assert (planes == 0.25).all()


def test_awkward_arrays_are_read_right():
    base = random_image((40, 42), "uint16")
    read_only = base.copy()
    read_only.flags.writeable = False
    for image in (base[::-1, ::-1], base[::2, ::2], base.T, base.astype(">u2"), read_only):
        planes, spec = to_planes(image, "ir")
        np.testing.assert_array_equal(from_planes(planes, spec), image)


def test_gradients_stay_outside():
    image = torch.rand(16, 16, requires_grad=True)
    planes, spec = to_planes(image, "ir")
    assert not planes.requires_grad
    assert not from_planes(planes, spec).requires_grad


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_and_inf_are_counted_and_located(bad, dtype):
    image = np.zeros((16, 20, 3), dtype)
    image[3, 4, 1] = image[9, 9, 2] = bad
    with pytest.raises(ValueError, match=r"ir: 2 of 960 .* NaN or infinite.*index \(3, 4, 1\)"):
        to_planes(image, "ir")


@pytest.mark.parametrize(
    "value_range",
    [(1, 0), (0, 0), (0,), (0, 1, 2), 255, (0, np.nan), (0, np.inf), ("a", "b"), (None, 1)],
)
def test_malformed_value_range(value_range):
    with pytest.raises(ValueError, match="value_range: got"):
        to_planes(np.zeros((16, 16)), "ir", value_range=value_range)


# Containers and dtypes


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((16, 16), bool), "dtype bool.*uint8"),
        (np.zeros((16, 16), np.int16), "dtype int16.*value_range"),
        (np.zeros((16, 16), np.int32), "dtype int32.*value_range"),
        (np.zeros((16, 16), np.complex64), "dtype complex64.*abs"),
        (np.zeros((16, 16), object), "dtype object"),
        (np.zeros((16, 16), np.longdouble), "dtype .*float32"),
        (torch.zeros(16, 16, dtype=torch.bool), "dtype bool"),
        (torch.zeros(16, 16, dtype=torch.int64), "dtype int64"),
        (torch.eye(16).to_sparse(), "sparse.*to_dense"),
        (DlpackOnly(torch.zeros(16, 16, dtype=torch.int32)), "dtype int32"),
        (InterfaceOnly(np.zeros((16, 16), np.int32)), "dtype int32"),
        ("picture.png", "got str.*read_image"),
        (None, "got NoneType"),
        ([[0.0] * 16] * 16, "got list"),
        (Image.new("RGBA", (16, 16)), r"mode RGBA.*convert\('RGB'\)"),
        (Image.new("P", (16, 16)), r"mode P.*convert\('RGB'\)"),
        (Image.new("1", (16, 16)), r"mode 1.*convert\('L'\)"),
        (Image.new("I", (16, 16)), r"mode I\b"),
    ],
)
def test_wrong_type_is_a_type_error(image, match):
    with pytest.raises(TypeError, match=f"vis: .*{match}"):
        to_planes(image, "vis")


def test_masked_values_are_refused():
    image = np.ma.masked_equal(np.eye(16), 1)
    with pytest.raises(ValueError, match=r"ir: .*masked.*filled"):
        to_planes(image, "ir")


@pytest.mark.parametrize(
    ("mode", "dtype", "shape"),
    [
        ("L", "uint8", (16, 20)),
        ("RGB", "uint8", (16, 20, 3)),
        ("I;16", "uint16", (16, 20)),
        ("F", "float32", (16, 20)),
    ],
)
def test_pil_images_come_back(mode, dtype, shape):
    array = random_image(shape, dtype)
    image = Image.fromarray(array)
    assert image.mode == mode
    planes, spec = to_planes(image, "vis")
    back = from_planes(planes, spec)
    assert isinstance(back, Image.Image) and back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), array)


def test_pil_colour_made_grey():
    _, spec = to_planes(Image.new("RGB", (20, 16)), "vis")
    back = from_planes(torch.ones(1, 1, 16, 20), spec)
    assert back.mode == "L" and back.size == (20, 16)


@pytest.mark.parametrize("wrapper", [InterfaceOnly, ArrayMethodOnly])
def test_array_protocols_come_back_as_numpy(wrapper):
    array = random_image((16, 20, 3))
    planes, spec = to_planes(wrapper(array), "vis")
    back = from_planes(planes, spec)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, array)


def test_dlpack_without_a_home_comes_back_as_numpy():
    tensor = torch.randint(0, 256, (16, 20, 3), dtype=torch.uint8)
    planes, spec = to_planes(DlpackOnly(tensor), "vis")
    assert spec.layout == "HWC"
    back = from_planes(planes, spec)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, tensor.numpy())


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
    grey = to_planes(np.zeros((16, 16), np.uint8), "ir")[1]
    with pytest.raises(ValueError, match="3 channels do not fit layout HW"):
        from_planes(torch.zeros(1, 3, 16, 16), grey)
    with pytest.raises(ValueError, match="2 images do not fit layout HW"):
        from_planes(torch.zeros(2, 1, 16, 16), grey)
    with pytest.raises(ValueError, match=r"planes: got shape \(16, 16\)"):
        from_planes(torch.zeros(16, 16), grey)


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
