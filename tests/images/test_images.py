"""Containers, layouts, values, colour and padding of ddfm_fast.images.planes."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddfm_fast.images.color import has_chroma, luma, with_luma
from ddfm_fast.images.planes import LAYOUTS as ALL_LAYOUTS
from ddfm_fast.images.planes import crop, from_planes, pad_to_multiple, to_planes
from ddfm_fast.images.stretch import stretch_minmax, stretch_percentile

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


# Colour

unit = st.floats(0, 1, width=32)


def colours(rgb: np.ndarray) -> torch.Tensor:
    """[M, 3] colours as planes [1, 3, M, 1]."""
    return torch.from_numpy(np.asarray(rgb, np.float32)).T[None, :, :, None].contiguous()


def random_colours(seed: int, count: int = 500) -> torch.Tensor:
    """Colours inside the cube and on its faces and corners."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(count, 3, generator=generator) * 1.5 - 0.25
    return colours(rgb.clamp(0, 1).numpy())


@pytest.mark.parametrize("levels", [256, 65536])
def test_grey_has_exactly_its_own_luma_and_no_chroma(levels):
    grey = (torch.arange(levels, dtype=torch.float32) / (levels - 1)).reshape(1, 1, 16, -1)
    rgb = grey.expand(1, 3, -1, -1)
    assert torch.equal(luma(rgb), grey)
    assert not has_chroma(rgb).any()
    assert torch.equal(with_luma(grey.flip(-1), rgb), grey.flip(-1).expand(1, 3, -1, -1))


def test_luma_is_bt601():
    rgb = random_colours(0)
    expected = 0.299 * rgb[:, 0].double() + 0.587 * rgb[:, 1].double() + 0.114 * rgb[:, 2].double()
    torch.testing.assert_close(luma(rgb)[:, 0].double(), expected, rtol=0, atol=1.5e-7)
    primaries = luma(colours(np.eye(3)))[0, 0, :, 0]
    torch.testing.assert_close(primaries, torch.tensor([0.299, 0.587, 0.114]))


def test_luma_of_one_channel_is_itself():
    y = torch.rand(2, 1, 16, 16)
    assert luma(y) is y
    assert has_chroma(y).tolist() == [False, False]


def test_chroma_threshold():
    images_ = torch.full((4, 3, 16, 16), 100 / 255)
    images_[1, 0, 3, 3] += 1 / 255
    images_[2, 0, 3, 3] += 2 / 255
    images_[3, 2] -= 30 / 255
    assert has_chroma(images_).tolist() == [False, False, True, True]


@given(st.integers(0, 2**31), unit)
def test_with_luma_has_that_luma_and_stays_in_gamut(seed, level):
    source = random_colours(seed)
    y = torch.rand(source[:, :1].shape, generator=torch.Generator().manual_seed(seed + 1))
    y[0, 0, :100] = level
    y[0, 0, 100], y[0, 0, 101] = 0, 1
    rgb = with_luma(y, source)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert (luma(rgb) - y).abs().max() <= 1e-6


@given(st.integers(0, 2**31))
def test_with_luma_keeps_hue_and_shrinks_chroma_only_where_needed(seed):
    source = random_colours(seed)
    y = torch.rand(source[:, :1].shape, generator=torch.Generator().manual_seed(seed + 1))
    wanted = (source - luma(source)).double()
    got = (with_luma(y, source) - y).double()
    scale = ((got * wanted).sum(1) / (wanted * wanted).sum(1).clamp(min=1e-12)).clamp(0, 1)
    torch.testing.assert_close(got, wanted * scale[:, None], rtol=0, atol=1e-6)
    free = y + wanted
    fits = ((free >= 0) & (free <= 1)).all(dim=1)
    torch.testing.assert_close(got[:, :, fits[0]], wanted[:, :, fits[0]], rtol=0, atol=1e-6)
    # Where it did not fit, some channel now touches the limit: nothing was given away.
    rgb = with_luma(y, source)
    touches = torch.minimum(rgb.amin(1), 1 - rgb.amax(1))
    assert touches[~fits].numel() == 0 or touches[~fits].max() <= 1e-6


def test_with_luma_of_the_own_luma_is_the_source():
    source = random_colours(3)
    torch.testing.assert_close(with_luma(luma(source), source), source, rtol=0, atol=2e-7)


def test_with_luma_checks_shapes():
    with pytest.raises(ValueError, match="y .* and source"):
        with_luma(torch.zeros(1, 1, 16, 17), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="y .* and source"):
        with_luma(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


# Stretch


def test_stretch_reaches_both_ends_in_each_image():
    y = torch.rand(3, 1, 16, 18) * torch.tensor([1, 0.1, 2e-6]).view(3, 1, 1, 1) + 0.3
    out = stretch_minmax(y)
    assert out.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert out.amax((1, 2, 3)).tolist() == [1, 1, 1]
    expected = (y - y.amin((1, 2, 3), True)) / (y.amax((1, 2, 3), True) - y.amin((1, 2, 3), True))
    torch.testing.assert_close(out, expected)


def test_stretch_leaves_a_flat_image_and_its_neighbours_alone():
    y = torch.stack([torch.full((1, 16, 16), v) for v in (0.0, 0.25, 1.0, 1.5)])
    assert stretch_minmax(y)[:, 0, 0, 0].tolist() == [0, 0.25, 1, 1]
    assert stretch_minmax(y + torch.rand_like(y) * 1e-8).isfinite().all()


# A batch is its images


@pytest.mark.parametrize(
    "function", [luma, stretch_minmax, lambda x: pad_to_multiple(x, 32), lambda x: with_luma(
        luma(x).flip(-1), x)], ids=["luma", "stretch", "pad", "with_luma"]
)  # fmt: skip
def test_a_batch_gives_each_image_the_same_result(function):
    batch = torch.rand(3, 3, 17, 19)
    single = torch.cat([function(batch[i : i + 1]) for i in range(3)])
    assert torch.equal(function(batch), single)


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


@pytest.mark.parametrize("function", [luma, has_chroma, stretch_minmax])
def test_planes_are_checked(function):
    for shape in ((16, 16), (1, 2, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected \[N, C, H, W\] with C 1 or 3"):
            function(torch.zeros(shape))


def test_layouts_are_the_documented_ones():
    assert set(ALL_LAYOUTS) == set(LAYOUTS)


@given(st.integers(16, 40), st.integers(16, 40), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_stretch_percentile_clips_its_share_at_either_end(height, width, seed):
    y = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))
    y[0, 0, 0, 0] = 7.0
    out = stretch_percentile(y, share=0.01)
    rank = int(0.01 * (height * width - 1))
    for n in range(2):
        ordered = y[n].flatten().sort().values
        low, high = ordered[rank], ordered[-1 - rank]
        wanted = ((y[n] - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(out[n], wanted, rtol=0, atol=1e-6)
    assert torch.equal(stretch_percentile(y[1:], share=0.01)[0], out[1])


def test_stretch_percentile_leaves_a_flat_image_alone():
    flat = torch.full((1, 1, 20, 20), 0.25)
    flat[0, 0, 3, 3] = 1.0
    assert torch.equal(stretch_percentile(flat, share=0.01), flat)
