"""Arrays that are no images, or hardly: each is taken or refused by name, and nothing crashes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddfm_fast.images.planes import from_planes, to_planes

GRAY = (np.random.default_rng(0).random((32, 40)) * 255).astype(np.uint8)


class Foreign:
    """An array of another library, as far as DLPack tells."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def strided(strides: tuple[int, int]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(GRAY, (32, 40), strides)


TAKEN = {
    "negative strides": GRAY[::-1, ::-1],
    "overlapping strides": strided((1, 1)),
    "stride 0": np.broadcast_to(GRAY[:1], (32, 40)),
    "columns first": np.asfortranarray(GRAY),
    "every second": np.repeat(np.repeat(GRAY, 2, 0), 2, 1)[::2, ::2],
    "read-only": np.frombuffer(GRAY.tobytes(), np.uint8).reshape(32, 40),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["numpy", "dlpack"])
@pytest.mark.parametrize("name", TAKEN)
def test_any_strides_are_taken(name, wrapped):
    array = TAKEN[name]
    planes, spec = to_planes(Foreign(array) if wrapped else array, "ir")
    np.testing.assert_array_equal(planes[0, 0].numpy() * 255, array.astype(np.float32))
    planes.add_(1)  # never the caller's memory
    np.testing.assert_array_equal(np.asarray(from_planes(planes - 1, spec)), array)


def truncated() -> Image.Image:
    written = io.BytesIO()
    Image.effect_noise((200, 200), 60).save(written, "PNG")
    return Image.open(io.BytesIO(written.getvalue()[:-3000]))


REFUSED = {
    "meta": (lambda: torch.zeros(32, 40, device="meta"), TypeError, "ir: got a meta tensor"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.rand(32, 40)]),
        TypeError,
        r"ir: got a nested tensor, .* image.unbind\(\)",
    ),
    "sparse": (lambda: torch.rand(32, 40).to_sparse(), TypeError, r"image.to_dense\(\)"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.rand(32, 40), 0.1, 0, torch.quint8),
        TypeError,
        "ir: got dtype quint8",
    ),
    "complex": (lambda: GRAY.astype(complex), TypeError, r"abs\(image\)"),
    "bool": (lambda: GRAY > 9, TypeError, "turn it into uint8"),
    "object": (lambda: GRAY.astype(object), TypeError, "ir: got dtype object"),
    "long double": (lambda: GRAY.astype(np.longdouble), TypeError, "ir: got dtype float128"),
    "dates": (lambda: np.zeros((32, 40), "M8[s]"), TypeError, "ir: got dtype datetime64"),
    "records": (lambda: np.zeros((32, 40), [("a", "u1")]), TypeError, "ir: got dtype"),
    "big-endian DLPack": (
        lambda: Foreign(GRAY.astype(">u2")),
        TypeError,
        "ir: Foreign cannot be taken by DLPack .*byte order",
    ),
    "long double DLPack": (
        lambda: Foreign(GRAY.astype(np.longdouble)),
        TypeError,
        "ir: Foreign cannot be taken by DLPack",
    ),
    "masked": (lambda: np.ma.array(GRAY, mask=GRAY > 250), ValueError, r"image.filled\(0\)"),
    "truncated picture": (truncated, ValueError, "ir: the picture cannot be decoded .*whole file"),
    "empty": (lambda: np.zeros((0, 40), np.uint8), ValueError, "ir: the image is empty"),
    "a number": (lambda: np.array(3.0), ValueError, "ir: got 0 dimensions"),
    "NaN": (lambda: np.full((32, 40), np.nan), ValueError, "ir: 1280 of 1280 values are NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_by_name(name):
    make, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        to_planes(make(), "ir")


@pytest.mark.parametrize(
    "limits", [(-1e308, 1e308), (0, 1e-320), (0, 1e-44), (-3e38, 3e38)], ids=str
)
def test_a_span_that_float32_cannot_hold_is_refused(limits):
    with pytest.raises(ValueError, match="value_range: got .*a span of .*which float32 holds"):
        to_planes(GRAY / 255, "ir", value_range=limits)


@pytest.mark.parametrize(
    "limits, dtype",
    [
        ((0, 65535), np.float16),
        ((0, 3e38), np.float32),
        ((0, 1e-30), np.float32),
        ((1e8, 2e8), np.float32),
    ],
    ids=str,
)
def test_wide_and_narrow_ranges_stay_finite(limits, dtype):
    low, high = limits
    with np.errstate(over="ignore"):
        image = (GRAY / 255.0 * (high - low) + low).astype(dtype).clip(low, high)
    image = np.nan_to_num(image, posinf=np.finfo(dtype).max)
    planes, spec = to_planes(image, "ir", value_range=limits)
    np.testing.assert_allclose(planes[0, 0].numpy(), GRAY / 255, atol=2e-3)
    back = from_planes(planes, spec)
    assert back.dtype == dtype and np.isfinite(back).all()
