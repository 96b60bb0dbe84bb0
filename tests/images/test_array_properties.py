"""Arrays of any kind give the picture of a plain one, bit for bit; their shapes and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_arrays import DTYPES, SHAPES, Foreign, Interface, Method, turned, values
from PIL import Image
from properties import examples

from ddfm_fast.images.planes import from_planes, to_planes


def planes_of(array: np.ndarray, layout: str) -> np.ndarray:
    """Return planes [N, C, H, W] by the documented formula, written in NumPy."""
    white = {"u": lambda: np.iinfo(array.dtype).max, "f": lambda: 1}[array.dtype.kind]()
    unit = array.astype(np.float32) / np.float32(white)
    axes = [layout.index(axis) for axis in "NCHW" if axis in layout]
    sizes = dict(zip(layout, array.shape, strict=True))
    return unit.transpose(axes).reshape([sizes.get(axis, 1) for axis in "NCHW"])


class Subclass(torch.Tensor):
    """A tensor that would spoil whatever it takes part in."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, Subclass) and function is not torch.Tensor.detach:
            raise AssertionError("calculated with a subclass")
        return result


def every_other(a: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    found = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    found[...] = a
    return found


def read_only(a: np.ndarray) -> np.ndarray:
    found = a.copy()
    found.flags.writeable = False
    return found


def unaligned(a: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


def mapped(a: np.ndarray, folder) -> np.memmap:
    a.tofile(folder / "mapped")
    return np.memmap(folder / "mapped", a.dtype, "r", shape=a.shape)


def flipped(a: np.ndarray) -> np.ndarray:
    """Return the same values with negative strides in every axis."""
    axes = tuple(range(a.ndim))
    return np.flip(np.flip(a, axes).copy(), axes)


NUMPY = {
    "plain": np.copy,
    "negative strides": flipped,
    "columns first": np.asfortranarray,
    "turned": turned,
    "every other": every_other,
    "read-only": read_only,
    "not aligned": unaligned,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "little-endian": lambda a: a.astype(a.dtype.newbyteorder("<")),
    "masked, nothing": lambda a: np.ma.array(a.copy(), mask=np.zeros(a.shape, bool)),
    "masked, no mask": lambda a: np.ma.array(a.copy()),
    "record's field": lambda a: a.copy().view([("gray", a.dtype)])["gray"],
}
OBJECTS = {
    "DLPack": lambda a: Foreign(a.copy()),
    "DLPack, negative strides": lambda a: Foreign(flipped(a)),
    "DLPack, read-only": lambda a: Foreign(read_only(a)),
    "array interface": lambda a: Interface(flipped(a)),
    "array method": lambda a: Method(turned(a)),
}
TORCH = {
    "plain": torch.clone,
    "channels last": lambda t: t.clone(
        memory_format=torch.channels_last if t.ndim == 4 else torch.preserve_format
    ),
    "turned": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(
        *reversed(range(t.ndim))
    ),
    "with an offset": lambda t: torch.cat([t.flatten()[:5], t.flatten()])[5:].view(t.shape),
    "subclass": lambda t: t.clone().as_subclass(Subclass),
    "inference": lambda t: torch.inference_mode()(torch.clone)(t),
}  # fmt: skip
TORCH_FLOATS = {
    "with gradient": lambda t: t.clone().requires_grad_(),
    "of a graph": lambda t: t.clone().requires_grad_() * 1,
    "parameter": lambda t: torch.nn.Parameter(t.clone()),
    "negated view": lambda t: torch._neg_view(-t),
    "imaginary part": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
}
pictures = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 2**32))


def assert_same_picture(image, array: np.ndarray, given_as: type) -> None:
    """Check for a plain array's planes, for equal values on the way back, and for no writing."""
    planes, spec = to_planes(image, "ir")
    assert type(planes) is torch.Tensor and planes.is_contiguous() and not planes.requires_grad
    np.testing.assert_array_equal(planes.numpy(), planes_of(array, spec.layout))
    back = from_planes(planes, spec)
    assert type(back) is given_as
    assert not (isinstance(back, torch.Tensor) and back.requires_grad)
    found = np.asarray(back)
    assert found.dtype == array.dtype and found.shape == array.shape
    wanted = array.astype(np.float32).astype(array.dtype) if array.dtype == np.float64 else array
    np.testing.assert_array_equal(found, wanted)
    planes.fill_(0.3)
    again, _ = to_planes(image, "ir")
    np.testing.assert_array_equal(again.numpy(), planes_of(array, spec.layout))


@pytest.mark.parametrize("way", NUMPY)
@examples(12)
@given(picture=pictures)
def test_arrays_of_numpy_are_the_picture_of_a_plain_one(way, picture):
    array = values(*picture)
    assert_same_picture(NUMPY[way](array), array, np.ndarray)


@examples(12)
@given(picture=pictures)
def test_mapped_files_are_the_picture_of_a_plain_one(picture, tmp_path_factory):
    array = values(*picture)
    image = mapped(array, tmp_path_factory.mktemp("mapped"))
    assert_same_picture(image, array, np.ndarray)


@pytest.mark.parametrize("way", OBJECTS)
@examples(12)
@given(picture=pictures)
def test_objects_of_other_libraries_are_the_picture_of_a_plain_one(way, picture):
    array = values(*picture)
    assert_same_picture(OBJECTS[way](array), array, np.ndarray)


@pytest.mark.parametrize("way", [*TORCH, *TORCH_FLOATS])
@examples(12)
@given(picture=pictures)
def test_tensors_are_the_picture_of_a_plain_one(way, picture):
    array = values(*picture)
    if way in TORCH_FLOATS and array.dtype.kind != "f":
        array = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if way == "imaginary part" and array.dtype == np.float16:
        array = array.astype(np.float32)  # the CPU has no complex numbers of halves
    tensor = torch.from_numpy(array)
    assert_same_picture({**TORCH, **TORCH_FLOATS}[way](tensor), array, torch.Tensor)


@examples(20)
@given(st.sampled_from(DTYPES), st.sampled_from([(1, 19), (17, 1), (1, 1)]), st.integers(0, 99))
def test_broadcast_arrays_are_the_picture_of_a_plain_one(dtype, shape, seed):
    array = np.broadcast_to(values((18, 20), dtype, seed)[: shape[0], : shape[1]], (17, 19))
    assert 0 in array.strides
    assert_same_picture(array, array.copy(), np.ndarray)
    assert_same_picture(Foreign(array), array.copy(), np.ndarray)
    tensor = torch.from_numpy(array[:1, :1].copy()).expand(17, 19)
    assert_same_picture(tensor, tensor.numpy().copy(), torch.Tensor)


def test_overlapping_strides_are_the_picture_of_a_plain_one():
    array = np.lib.stride_tricks.as_strided(values((32, 40), "uint8", 0), (32, 40), (1, 1))
    assert_same_picture(array, array.copy(), np.ndarray)
    assert_same_picture(Foreign(array), array.copy(), np.ndarray)


@pytest.mark.parametrize(
    "mode, dtype, shape",
    [("L", "uint8", (16, 20)), ("RGB", "uint8", (16, 20, 3)), ("I;16", "uint16", (16, 20)),
     ("F", "float32", (16, 20))],
)  # fmt: skip
@examples(8)
@given(seed=st.integers(0, 2**32))
def test_pictures_of_pil_are_the_picture_of_a_plain_one(mode, dtype, shape, seed):
    array = values(shape, dtype, seed)
    image = Image.fromarray(array)
    assert image.mode == mode
    assert_same_picture(image, array, Image.Image)


size = st.sampled_from([16, 17, 16, 17, 16, 17, 1, 3, 2, 3, 4, 5, 15, 0])
sizes = st.lists(size, min_size=0, max_size=5).map(tuple)


def height_and_width(shape: tuple[int, ...], as_tensor: bool) -> tuple[int, ...]:
    """Return what the table of layouts says of a shape; nothing if it does not have it."""
    if len(shape) == 2 or 0 in shape:
        return () if 0 in shape else shape
    if len(shape) not in (3, 4):
        return ()
    *_, before, height, width = shape
    channels_first, channels_last = (before, (height, width)), (width, (before, height))
    order = [channels_first, channels_last] if as_tensor else [channels_last, channels_first]
    if len(shape) == 3 and not as_tensor:
        order.pop()  # arrays of three axes have no channels in front
    for channels, rest in order:
        if channels in (1, 3):
            return rest
    alpha = any(channels == 4 for channels, _ in order)
    return () if alpha or len(shape) == 4 else (height, width)


@examples(300)
@given(sizes, st.booleans(), st.sampled_from(["uint8", "float32"]))
def test_any_shape_is_read_as_the_table_says_or_refused(shape, as_tensor, dtype):
    image = np.zeros(shape, dtype)
    wanted = height_and_width(shape, as_tensor)
    image = torch.from_numpy(image) if as_tensor else image
    if min(wanted, default=0) < 16:
        with pytest.raises(ValueError, match="^ir: "):
            to_planes(image, "ir")
        return
    planes, spec = to_planes(image, "ir")
    assert tuple(planes.shape[2:]) == wanted and planes.numel() == np.prod(shape)
    assert from_planes(planes, spec).shape == shape


@examples(60)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(["float16", "float32", "float64", "bfloat16"]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.sets(st.integers(0, 255), min_size=1, max_size=9),
    st.sampled_from(["torch", "numpy", "turned", "DLPack"]),
    st.sampled_from([None, (0, 1), (-1e6, 1e6)]),
)
def test_nan_and_inf_are_counted_and_located_anywhere(shape, dtype, bad, places, way, limits):
    image = torch.zeros(shape, dtype=getattr(torch, dtype))
    image.view(-1)[sorted(places)] = bad
    first = np.unravel_index(min(places), shape)
    if way != "torch" and dtype != "bfloat16":
        image = image.numpy()
        image = {"turned": turned, "DLPack": Foreign}.get(way, np.copy)(image)
    count = int(np.prod(shape))
    words = f"^ir: {len(places)} of {count} values are NaN or infinite, the first at index "
    with pytest.raises(ValueError, match=words) as raised:
        to_planes(image, "ir", value_range=limits)
    assert str(tuple(int(n) for n in first)) in str(raised.value)


@examples(20)
@given(pictures, st.integers(0, 255))
def test_a_masked_value_anywhere_is_refused(picture, place):
    array = np.ma.array(values(*picture))
    array.mask = np.zeros(array.shape, bool)
    array.mask.flat[place] = True
    with pytest.raises(ValueError, match=r"^ir: the array has masked values.*image.filled\(0\)"):
        to_planes(array, "ir")


finite = st.floats(allow_nan=False, allow_infinity=False)
spans = st.one_of(
    st.tuples(finite, finite),
    st.sampled_from([(0, 65535), (-1e308, 1e308), (0, 1e-320), (0, 1e-44), (-3e38, 3e38),
                     (0, 3e38), (0, 1e-30), (1e8, 2e8), (-65504, 65504), (0, 2**-126)]),
)  # fmt: skip
MOST = float(np.finfo(np.float32).max)
LEAST = float(np.finfo(np.float32).tiny)


@examples(150)
@given(st.sampled_from(DTYPES), spans, st.integers(0, 2**32))
def test_any_span_is_scaled_right_or_refused_by_name(dtype, limits, seed):
    low, high = map(float, limits)
    grid = np.random.default_rng(seed).random((16, 17))
    with np.errstate(all="ignore"):
        wide = np.nan_to_num(low + grid * (high - low)).clip(min(limits), max(limits))
        image = wide.astype(dtype)
        if dtype == "float16":  # its white is 65504
            image = image.clip(-65504, 65504)
    if not LEAST <= high - low <= MOST:
        with pytest.raises(ValueError, match="^value_range: got "):
            to_planes(image, "ir", value_range=limits)
        return
    if not within_slack(image, low, high):
        with pytest.raises(ValueError, match="^ir: values from |^ir: .* NaN or infinite"):
            to_planes(image, "ir", value_range=limits)
        return
    planes, spec = to_planes(image, "ir", value_range=limits)
    unit = ((image.astype(np.float64) - low) / (high - low)).astype(np.float32).clip(0, 1)
    np.testing.assert_array_equal(planes[0, 0].numpy(), unit)
    back = from_planes(planes, spec)
    assert back.dtype == image.dtype and np.isfinite(back).all()
    if image.dtype == np.float64:  # planes have 24 bits of the span
        step = (high - low) * 2.0**-24 + np.spacing(max(abs(low), abs(high)))
        np.testing.assert_allclose(back, image, rtol=0, atol=step)


def within_slack(image: np.ndarray, low: float, high: float) -> bool:
    slack = 1e-4 * (high - low)
    numbers = image.astype(np.float64)
    return bool(((numbers >= low - slack) & (numbers <= high + slack)).all())
