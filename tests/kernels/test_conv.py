"""A layer in one launch, in Triton's interpreter, against PyTorch in float64."""

import os

import pytest
import torch
import torch.nn.functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from ddfm_fast.kernels import conv
    from ddfm_fast.kernels import moments as chunks_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""two roundings of the result, relative to its largest value; the interpreter truncates to
bfloat16, which is two of them"""


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_conv.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*shape, dtype=torch.float32, seed=0):
    """Draw channels_last data, with a mean far from zero that E[x²] − E[x]² would not survive."""
    x = (random(*shape, seed=seed) + 3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def filters(outs, channels, side, dtype=torch.float32):
    fan_in = channels * side * side
    return (random(outs, channels, side, side, seed=3) / fan_in**0.5).to(dtype)


def with_moments(x):
    """Return ``x`` with its moments as a layer stores them; this layer changes nothing."""
    part = conv.layer([conv.Part(x)], conv.pack(torch.eye(x.shape[1]).to(x.dtype)))
    assert torch.equal(part.data, x)
    return part


def resampled(x, how):
    if how == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if how == "down" else x


def plain(parts, weight, dtype, *, norm=None, silu=True, resample="", stride=1, bias=None,
          skip=None, residual=None, residual_size=""):  # fmt: skip
    """Compute the same by PyTorch's own functions in ``dtype``."""
    x = torch.cat([p.to(dtype) for p in parts], 1)
    if norm is not None:
        x = F.group_norm(x, 32, *(a.to(dtype) for a in norm), 1e-5)
        x = F.silu(x) if silu else x
    x = F.conv2d(resampled(x, resample), weight.to(dtype), None if bias is None else bias.to(dtype),
                 stride, weight.shape[-1] // 2)  # fmt: skip
    if skip is not None:
        x = x + F.conv2d(torch.cat([s.to(dtype) for s in skip[1]], 1), skip[0].to(dtype))
    return x if residual is None else x + resampled(residual.to(dtype), residual_size)


def assert_right(monkeypatch, parts, weight, **options):
    """Check that all is written, within twice plain PyTorch's error in its dtype and a rounding."""
    dtype = parts[0].dtype
    exact, low = (plain(parts, weight, d, **options) for d in (torch.float64, dtype))
    normed = options.get("norm") is not None
    given = [with_moments(p) if normed else conv.Part(p) for p in parts]
    kept = [p.clone() for p in parts]
    if options.get("skip") is not None:
        options["skip"] = conv.pack(options["skip"][0]), options["skip"][1]
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    got, moments = conv.layer(given, conv.pack(weight), **options)
    monkeypatch.undo()
    assert got.dtype == dtype and got.permute(0, 2, 3, 1).is_contiguous()
    assert got.shape == exact.shape and all(map(torch.equal, parts, kept))
    allowed = 2 * (low - exact).abs().max() + TINY[dtype] * exact.abs().max()
    assert (got - exact).abs().max() <= allowed
    assert_moments_of(got, moments)


def assert_moments_of(x, moments):
    """Check the moments of what was stored; bounds: roundings of up to 126 rows, then of chunks."""
    rows = x.shape[2] * x.shape[3]
    _, chunk, sets = chunks_of.chunking(rows, x.shape[1])
    assert moments.shape == (len(x), sets, 2, x.shape[1])
    for index, part in enumerate(x.double().flatten(2).split(chunk, 2)):
        mean, squares = part.mean(2), part.var(2, correction=0) * part.shape[2]
        scale = part.abs().amax(2)
        assert ((moments[:, index, 0] - mean).abs() <= 1e-6 * scale).all()
        assert ((moments[:, index, 1] - squares).abs() <= 1e-5 * squares + 1e-9 * scale).all()


def norm_of(channels):
    return random(channels, seed=5), random(channels, seed=6)


class TestNumbers:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "size", [(1, (32,), 32, 13, 11), (3, (64, 32), 64, 7, 9), (1, (96,), 12, 5, 30)], ids=str
    )
    def test_norm_silu_conv(self, size, dtype, monkeypatch):
        """Groups cross the seam of 64 + 32 channels, with three channels each."""
        n, widths, outs, height, width = size
        parts = [image(n, c, height, width, dtype=dtype, seed=c) for c in widths]
        channels = sum(widths)
        assert_right(
            monkeypatch, parts, filters(outs, channels, 3, dtype), norm=norm_of(channels),
            bias=random(outs, seed=7),
        )  # fmt: skip

    @pytest.mark.parametrize("height, width", [(2, 1), (1, 130), (130, 1), (2, 63)])
    def test_edges_of_lines_and_tiles(self, height, width, monkeypatch):
        assert_right(
            monkeypatch, [image(1, 32, height, width)], filters(32, 32, 3), norm=norm_of(32)
        )

    @pytest.mark.parametrize("dtype", DTYPES[::2])
    @pytest.mark.parametrize("how", ["up", "down"])
    def test_block_that_resamples(self, how, dtype, monkeypatch):
        """The first half has the norm inside; the second adds the block's input."""
        x, small = image(2, 32, 6, 10, dtype=dtype), (3, 5) if how == "down" else (12, 20)
        weight = filters(32, 32, 3, dtype)
        assert_right(monkeypatch, [x], weight, norm=norm_of(32), resample=how)
        h = image(2, 32, *small, dtype=dtype, seed=9)
        assert_right(monkeypatch, [h], weight, norm=norm_of(32), residual=x, residual_size=how)

    @pytest.mark.parametrize("widths", [(32,), (64, 32)])
    def test_skip(self, widths, monkeypatch):
        sources = [image(1, c, 5, 13, seed=c) for c in widths]
        assert_right(
            monkeypatch, [image(1, 64, 5, 13)], filters(64, 64, 3), norm=norm_of(64),
            bias=random(64), skip=(filters(64, sum(widths), 1), sources),
        )  # fmt: skip

    @pytest.mark.parametrize("size", [(8, 12), (7, 9)])
    def test_strided(self, size, monkeypatch):
        assert_right(
            monkeypatch, [image(2, 32, *size)], filters(32, 32, 3), stride=2, bias=random(32)
        )

    @pytest.mark.parametrize("channels", [3, 12])
    def test_few_channels_in(self, channels, monkeypatch):
        x = image(3, channels, 9, 7)
        assert_right(monkeypatch, [x], filters(32, channels, 3), bias=random(32))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_attention(self, dtype, monkeypatch):
        x = image(1, 64, 6, 11, dtype=dtype)
        assert_right(monkeypatch, [x], filters(192, 64, 1, dtype), norm=norm_of(64), silu=False)
        residual = image(1, 64, 6, 11, dtype=dtype, seed=4)
        assert_right(monkeypatch, [x], filters(64, 64, 1, dtype), residual=residual)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_wide(self, stride, monkeypatch):
        x = image(1, 192, 5, 7)
        residual = image(1, 256, 5, 7, seed=2) if stride == 1 else None
        assert_right(monkeypatch, [x], filters(256, 192, 3), stride=stride, residual=residual)

    def test_many_tiles_and_sets(self, monkeypatch):
        """Several tiles per program, the last one short, and more sets than are merged at once."""
        monkeypatch.setattr(chunks_of, "MOST_SETS", 3)
        x = image(1, 32, 23, 31)
        assert chunks_of.chunking(23 * 31, 32)[0] == 2
        assert_right(pytest.MonkeyPatch(), [x], filters(32, 32, 3), norm=norm_of(32))
        monkeypatch.setattr(chunks_of, "MOST_SETS", 128)
        monkeypatch.setattr(conv, "BLOCK_S", 4)
        assert_right(pytest.MonkeyPatch(), [x], filters(32, 32, 3), norm=norm_of(32))

    @pytest.mark.parametrize("dtype", DTYPES[:2])
    def test_an_image_in_a_batch_is_as_alone(self, dtype):
        x, packed = image(3, 32, 9, 15, dtype=dtype), conv.pack(filters(32, 32, 3, dtype))

        def run(x):
            return conv.layer([with_moments(x)], packed, norm=norm_of(32), residual=x)

        together, again = run(x), run(x)
        assert all(map(torch.equal, together, again)), "the same call, the same bytes"
        for index in range(3):
            one = x[index : index + 1].contiguous(memory_format=torch.channels_last)
            for whole, alone in zip(together, run(one), strict=True):
                assert torch.equal(whole[index], alone[0])

    def test_nan_stays_where_it_belongs(self):
        x = image(2, 32, 5, 5)
        x[0, 3, 2, 2] = float("nan")
        part = conv.layer([conv.Part(x)], conv.pack(torch.eye(32)))
        got = conv.layer([part], conv.pack(filters(32, 32, 3)), norm=norm_of(32)).data
        assert got[0].isnan().all() and got[1].isfinite().all()

    def test_a_large_mean_keeps_its_digits(self):
        """A standard deviation of 1 on a mean of 3000: E[x²] − E[x]² would have no digit left."""
        x = image(1, 32, 16, 16) + 3000
        norm = torch.ones(32), torch.zeros(32)
        got = conv.layer([with_moments(x)], conv.pack(torch.eye(32)), norm=norm, silu=False).data
        exact = F.group_norm(x.double(), 32, eps=1e-5)
        # at 3000 a rounding is 1.2e-4: seven in the mean of a tile, three in x · scale + shift
        assert (got - exact).abs().max() < 10 * 1.2e-4


class TestErrors:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        "change, error, words",
        [
            ({"parts": []}, ValueError, "holds 0 inputs"),
            ({"x": image(1, 32, 4, 4).double()}, TypeError, r"parts\[0\] is torch.float64"),
            ({"x": image(1, 32, 4, 4).half()}, TypeError, "packed is torch.float32"),
            ({"x": image(1, 32, 4, 4).contiguous()}, ValueError, "expected channels_last"),
            ({"x": image(1, 48, 4, 4)}, ValueError, "48 channels; expected a multiple of 32"),
            ({"x": image(1, 64, 4, 4)}, ValueError, r"packed has shape \(32, 9, 32\)"),
            ({"norm": norm_of(32)}, ValueError, "moments is None"),
            ({"bias": random(3)}, ValueError, r"bias has shape \(3,\)"),
            ({"residual": image(1, 32, 2, 2)}, ValueError, "residual has shape"),
            (
                {"x": image(1, 32, 3, 3), "residual": image(1, 32, 1, 1), "residual_size": "up"},
                ValueError,
                "expected even sides",
            ),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused_by_name(self, change, error, words):
        x = change.pop("x", image(1, 32, 4, 4))
        parts = change.pop("parts", [conv.Part(x)])
        with pytest.raises(error, match=words):
            conv.layer(parts, conv.pack(filters(32, 32, 3)), **change)

    def test_outputs_that_no_tile_has(self):
        weight = filters(48, 32, 3)
        with pytest.raises(ValueError, match="48 outputs"):
            conv.layer([conv.Part(image(1, 32, 4, 4))], conv.pack(weight))
