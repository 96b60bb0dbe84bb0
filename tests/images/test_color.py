"""Luma, chroma, and stretching: a batch is its images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddfm_fast import DDFMWarning, fuse
from ddfm_fast.images.color import has_chroma, luma, with_luma
from ddfm_fast.images.planes import pad_to_multiple
from ddfm_fast.images.stretch import own_limits, stretched

settings.register_profile("images", deadline=None, max_examples=40)
settings.load_profile("images")


unit = st.floats(0, 1, width=32)


def colors(rgb: np.ndarray) -> torch.Tensor:
    """Return [M, 3] colors as planes [1, 3, M, 1]."""
    return torch.from_numpy(np.asarray(rgb, np.float32)).T[None, :, :, None].contiguous()


def random_colors(seed: int, count: int = 500) -> torch.Tensor:
    """Draw colors inside the cube and on its faces and corners."""
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(count, 3, generator=generator) * 1.5 - 0.25
    return colors(rgb.clamp(0, 1).numpy())


@pytest.mark.parametrize("levels", [256, 65536])
def test_gray_has_exactly_its_own_luma_and_no_chroma(levels):
    gray = (torch.arange(levels, dtype=torch.float32) / (levels - 1)).reshape(1, 1, 16, -1)
    rgb = gray.expand(1, 3, -1, -1)
    assert torch.equal(luma(rgb), gray)
    assert not has_chroma(rgb).any()
    assert torch.equal(with_luma(gray.flip(-1), rgb), gray.flip(-1).expand(1, 3, -1, -1))


def test_luma_is_bt601():
    rgb = random_colors(0)
    expected = 0.299 * rgb[:, 0].double() + 0.587 * rgb[:, 1].double() + 0.114 * rgb[:, 2].double()
    torch.testing.assert_close(luma(rgb)[:, 0].double(), expected, rtol=0, atol=1.5e-7)
    primaries = luma(colors(np.eye(3)))[0, 0, :, 0]
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
    source = random_colors(seed)
    y = torch.rand(source[:, :1].shape, generator=torch.Generator().manual_seed(seed + 1))
    y[0, 0, :100] = level
    y[0, 0, 100], y[0, 0, 101] = 0, 1
    rgb = with_luma(y, source)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert (luma(rgb) - y).abs().max() <= 1e-6


@given(st.integers(0, 2**31))
def test_with_luma_keeps_hue_and_shrinks_chroma_only_where_needed(seed):
    source = random_colors(seed)
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
    source = random_colors(3)
    torch.testing.assert_close(with_luma(luma(source), source), source, rtol=0, atol=2e-7)


def test_with_luma_checks_shapes():
    with pytest.raises(ValueError, match="y .* and source"):
        with_luma(torch.zeros(1, 1, 16, 17), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="y .* and source"):
        with_luma(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


def stretch_minmax(y):
    return stretched(y, own_limits(y, "minmax"))


def stretch_percentile(y, share):
    return stretched(y, own_limits(y, "percentile", share))


def test_stretch_reaches_both_ends_in_each_image():
    y = torch.rand(3, 1, 16, 18) * torch.tensor([1, 0.1, 2e-6]).view(3, 1, 1, 1) + 0.3
    out = stretch_minmax(y)
    assert out.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert out.amax((1, 2, 3)).tolist() == [1, 1, 1]
    expected = (y - y.amin((1, 2, 3), True)) / (y.amax((1, 2, 3), True) - y.amin((1, 2, 3), True))
    torch.testing.assert_close(out, expected)


def test_stretch_leaves_a_flat_image_and_its_neighbors_alone():
    y = torch.stack([torch.full((1, 16, 16), v) for v in (0.0, 0.25, 1.0, 1.5)])
    assert stretch_minmax(y)[:, 0, 0, 0].tolist() == [0, 0.25, 1, 1]
    assert stretch_minmax(y + torch.rand_like(y) * 1e-8).isfinite().all()


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


# A batch is its images


@pytest.mark.parametrize(
    "function", [luma, stretch_minmax, lambda x: pad_to_multiple(x, 32), lambda x: with_luma(
        luma(x).flip(-1), x)], ids=["luma", "stretch", "pad", "with_luma"]
)  # fmt: skip
def test_a_batch_gives_each_image_the_same_result(function):
    batch = torch.rand(3, 3, 17, 19)
    single = torch.cat([function(batch[i : i + 1]) for i in range(3)])
    assert torch.equal(function(batch), single)


@pytest.mark.parametrize("function", [luma, has_chroma, stretch_minmax])
def test_planes_are_checked(function):
    for shape in ((16, 16), (1, 2, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected \[N, C, H, W\] with C 1 or 3"):
            function(torch.zeros(shape))


def test_color_that_gets_darker_keeps_its_hue_and_saturation():
    rng = np.random.default_rng(0)
    source = torch.from_numpy(rng.uniform(0.2, 0.9, (1, 3, 16, 16)).astype(np.float32))
    own = luma(source)
    dark, bright = with_luma(own * 0.4, source, dims=True), with_luma(own * 1.05, source, dims=True)
    torch.testing.assert_close(dark, source * 0.4, atol=1e-6, rtol=0)
    torch.testing.assert_close(bright, with_luma(own * 1.05, source), atol=1e-6, rtol=0)
    torch.testing.assert_close(luma(dark), own * 0.4, atol=1e-6, rtol=0)
    assert (with_luma(own * 0.4, source) - source * 0.4).abs().max() > 0.1


def test_a_first_source_in_color_beside_a_gray_one_is_doubted(recwarn):
    """The files may be swapped; no warning for a functional map, or if ``color`` asks for it."""
    red, gray = np.zeros((24, 24, 3), np.uint8), np.arange(576, dtype=np.uint8).reshape(24, 24)
    red[..., 0], red[..., 1] = gray, 255 - gray
    as_rgb = np.repeat(gray[..., None], 3, -1)
    for second in (gray, as_rgb):
        with pytest.warns(DDFMWarning, match="ir is in color and vis is gray.*color='ir'"):
            fuse(red, second, preset="instant")
    recwarn.clear()
    for first, second, color in (
        *((red, gray, named) for named in ("ir", "vis", False)),
        *((gray, red, True), (as_rgb, as_rgb // 2, True), (red, 255 - red, True)),
    ):
        fuse(first, second, preset="instant", color=color)
    pet = np.zeros((64, 64, 3), np.uint8)
    pet[16:48, 16:48] = [[(255, 96, 0)] * 16 + [(0, 64, 255)] * 16] * 32
    fuse(pet, np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)), preset="instant")
    assert not [str(w.message) for w in recwarn if w.category is DDFMWarning]
