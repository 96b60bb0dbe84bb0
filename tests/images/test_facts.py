"""Facts read from integers agree with those from float planes of the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfm_fast.files.depth import sources
from ddfm_fast.images import facts
from ddfm_fast.images.color import has_chroma, luma
from ddfm_fast.images.kind import (
    BLACK,
    BLACK_SHARE,
    SATURATED_SHARE,
    SATURATION,
    is_functional,
)
from ddfm_fast.images.planes import read_raw, to_planes
from ddfm_fast.images.stretch import Fused

RANGES = {"uint8": [None, (0, 255), (-3.5, 260), (-1e9, 1e9)], "uint16": [None, (0, 65535)]}


def functional(image: torch.Tensor) -> bool:
    """Apply the rule to float planes [C, H, W] alone."""
    if len(image) == 1:
        return False
    step = max(1, min(image.shape[-2:]) // 256)
    image = image[:, ::step, ::step]
    block = min(4, max(1, min(image.shape[-2:]) // 16))
    blocks = image.unfold(1, block, block).unfold(2, block, block).flatten(-2)
    image = blocks.median(dim=-1).values
    brightest = image.amax(0)
    side = max(1, min(image.shape[-2:]) // 16)
    for part in (image[:, :side], image[:, -side:]):
        for corner in (part[..., :side], part[..., -side:]):
            if bool(corner.flatten().median() > BLACK):
                return False
    lit = brightest > 24 / 255
    if float((brightest <= 6 / 255).float().mean()) < BLACK_SHARE or not bool(lit.any()):
        return False
    saturation = (brightest - image.amin(0)) / brightest.clamp(min=24 / 255)
    return float((saturation[lit] > SATURATION).float().mean()) >= SATURATED_SHARE


def level(planes: torch.Tensor) -> float | None:
    low, high = (float(x) for x in planes.aminmax())
    return low if low == high else None


@st.composite
def pictures(draw, dtype: str, channels: int, height: int, width: int):
    """Draw one: flat, gray as RGB, nearly gray, late to show color, dark with a disk, or noise."""
    white = np.iinfo(dtype).max
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["flat", "gray", "near", "late", "map", "noise"]))
    image = np.full((height, width, channels), draw(st.integers(0, white)), dtype)
    if kind in ("gray", "near", "late"):
        image[:] = rng.integers(0, white - 1200 * (white > 255) - 5, (height, width, 1))
    if kind == "near":  # about the threshold of color
        image[..., 0] += rng.integers(0, 3 if white == 255 else 388, (height, width)).astype(dtype)
    if kind == "late":
        image[-1, -1, 0] = white - image[-1, -1, 0]
    if kind == "map":
        rows, columns = np.mgrid[:height, :width]
        disk = np.hypot(rows / height - 0.5, columns / width - 0.5) < draw(st.floats(0.1, 0.6))
        image[:] = rng.integers(0, 3, image.shape)
        image[disk] = [(white * 3 // 4, white // 2, white // 9)[c] for c in range(channels)]
    if kind == "noise":
        image[:] = rng.integers(0, white + 1, image.shape)
    return image


@pytest.mark.parametrize("dtype", RANGES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_integers_say_what_planes_say(dtype, data):
    size = data.draw(st.tuples(*[st.sampled_from([16, 17, 40, 77, 300, 520])] * 2))
    limits = data.draw(st.sampled_from(RANGES[dtype]))
    images = [
        data.draw(pictures(dtype, data.draw(st.sampled_from([1, 3])), *size)) for _ in range(2)
    ]
    if data.draw(st.booleans()) and images[0].shape == images[1].shape:
        images[1] = images[0].copy()
        images[1][-1, -1] += data.draw(st.integers(0, 1))
    raws = [read_raw(image, "ir", value_range=limits) for image in images]
    planes = [to_planes(image, "ir", value_range=limits)[0] for image in images]
    assert facts.same_picture(*raws) == torch.equal(*map(luma, planes))
    for raw, plane in zip(raws, planes, strict=True):
        assert torch.equal(raw.planes(), plane)
        flat = facts.flat_level(raw)
        unit = None if flat is None else float(raw.unit(torch.tensor([flat]).to(raw.values.dtype)))
        assert unit == level(plane)
        assert facts.are_colored(raw) == has_chroma(plane).tolist()
        assert is_functional(raw.values, raw.unit) == [functional(plane[0])]
        assert is_functional(plane) == [functional(plane[0])]


def test_floats_and_batches():
    rng = np.random.default_rng(0)
    batch = rng.random((3, 40, 50, 3), np.float32)
    batch[1] = batch[1, :1, :1, :1]
    raw, planes = read_raw(batch, "vis"), to_planes(batch, "vis")[0]
    assert facts.are_colored(raw) == has_chroma(planes).tolist() == [True, False, True]
    assert facts.flat_level(raw) is None
    other = batch.copy()
    other[0], other[2] = 1 - other[0], 0.25
    found = facts.unlikely(raw, read_raw(other, "ir"), "[7]")
    assert [sentence[:30] for sentence in found] == [
        "ir[7][1] and vis[7][1] are the",
        "vis[7][2] is 0.25 everywhere, ",
    ]


def test_functional_maps_are_among_the_pictures():
    """Otherwise the comparison above would say nothing about them."""
    rows, columns = np.mgrid[:77, :77] / 77 - 0.5
    image = np.zeros((77, 77, 3), np.uint8)
    image[np.hypot(rows, columns) < 0.3] = (190, 120, 20)
    raw = read_raw(image, "vis")
    assert is_functional(raw.values, raw.unit) == [True] == [functional(raw.planes()[0])]


def test_limits_of_some_images_are_contiguous_as_kernels_read_them():
    limits = torch.arange(6.0).view(2, 3, 1, 1, 1)
    some = Fused(torch.zeros(3, 1, 16, 16), limits).images(1, 2)
    assert some.limits.is_contiguous() and torch.equal(some.limits, limits[:, 1:3])


@pytest.mark.parametrize(
    "image, reading, value",
    [
        (np.full((20, 20), 7000, np.uint16), {}, "7000"),
        (np.full((20, 20), 100, np.uint8), {}, "100"),
        (np.full((20, 20), 0, np.uint8), {}, "black"),
        (np.full((20, 20), 65535, np.uint16), {}, "white"),
        (np.full((20, 20), 0.25), {}, "0.25"),
        (np.full((20, 20), 7000, np.uint16), {"value_range": (6000, 9000)}, "7000"),
        (np.full((20, 20), 21.5), {"value_range": (-20, 60)}, "21.5"),
    ],
)
def test_a_flat_source_is_told_in_its_own_units(image, reading, value):
    other = read_raw(np.tile(np.arange(20, dtype=np.uint8) * 9, (20, 1)), "vis")
    (sentence,) = facts.unlikely(read_raw(image, "ir", **reading), other)
    assert sentence.startswith(f"ir is {value} everywhere")


def test_a_flat_file_of_degrees_is_not_told_to_be_at_0():
    """Files become levels of 16 bits, so the ends of the levels are no values of the file."""
    ramp = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    found = sources(np.full((20, 20), 21.5, np.float32), ramp)
    (sentence,) = facts.unlikely(read_raw(found.ir, "ir"), read_raw(found.vis, "vis"))
    assert sentence.startswith("ir is black everywhere")
