"""The norm kernels in Triton's interpreter against PyTorch (see test_step_kernels.py)."""

import os

import pytest
import torch
import torch.nn.functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from ddfm_fast.kernels import group_norm as gn
    from ddfm_fast.kernels import moments as sets_of

SIZES = [(1, 32, 2, 2), (1, 64, 37, 29), (3, 96, 6, 14), (1, 256, 5, 7), (3, 32, 11, 12)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GUARD = 64
TINY = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
"""a rounding of the result, relative to its largest value; Triton's interpreter, not its compiler,
truncates to bfloat16, which is two of them"""


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_group_norm.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def guarded(n, c, height, width, dtype):
    """Make a NaN-filled channels_last tensor between NaN-filled margins, and a check of these."""
    count = n * c * height * width
    whole = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
    inner = whole[GUARD:-GUARD].view(n, height, width, c).permute(0, 3, 1, 2)
    return inner, lambda: bool(whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all())


def data(*shape, dtype=torch.float32, seed=0, offset=3.0):
    """Draw channels_last data, with a mean far from zero that E[x²] − E[x]² would not survive."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=generator) + offset
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def parameters(channels, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, channels, generator=generator).unbind()


def assert_as_good(got, plain, exact):
    """Check for at most twice plain PyTorch's error in the same dtype, plus a rounding."""
    assert got.shape == exact.shape and torch.isfinite(got).all()
    tiny = TINY[got.dtype] * float(exact.abs().max())
    allowed = 2 * float((plain.double() - exact).abs().max()) + tiny
    assert float((got.double() - exact).abs().max()) <= allowed


def plain_norm(parts, weight, shift, bias, dtype, *, silu=True, resample=""):
    """Compute the same by PyTorch's own functions in ``dtype``."""
    x = torch.cat([p.to(dtype) for p in parts], 1)
    if bias is not None:
        x = x + bias.to(dtype)[:, None, None]
    y = F.group_norm(x, 32, weight.to(dtype), shift.to(dtype), 1e-5)
    y = F.silu(y) if silu else y
    if resample == "up":
        return F.interpolate(y, scale_factor=2, mode="nearest")
    return F.avg_pool2d(y, 2) if resample == "down" else y


def norm(parts, weight, shift, bias=None, **options):
    return gn.normalize([(p, gn.moments(p)) for p in parts], weight, shift, bias=bias, **options)


class TestKernels:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        "size, dtype",
        [(s, torch.bfloat16) for s in SIZES] + [(s, d) for s in SIZES[1:3] for d in DTYPES[::2]],
    )
    def test_norm_silu(self, size, dtype):
        x = data(*size, dtype=dtype)
        weight, shift, bias = parameters(size[1])
        before = x.clone()
        out, intact = guarded(*size, dtype)
        moments = gn.moments(x)
        got, _ = gn.normalize([(x, moments)], weight, shift, bias=bias, out=out)
        exact = plain_norm([x], weight, shift, bias, torch.float64)
        assert got is out and intact() and torch.equal(x, before)
        assert_as_good(got, plain_norm([x], weight, shift, bias, dtype), exact)
        in_place, _ = gn.normalize([(x, moments)], weight, shift, bias=bias, out=x)
        assert in_place is x and torch.equal(x, got)

    @pytest.mark.parametrize(
        "widths, silu", [((32, 32), True), ((64, 32), True), ((32, 128), True), ((96, 32), False)]
    )
    def test_two_tensors_side_by_side(self, widths, silu):
        """Groups cross the seam if it is no multiple of their size (64 + 32 channels, 3 each)."""
        parts = [data(1, c, 5, 9, seed=c, offset=c / 32) for c in widths]
        weight, shift, _ = parameters(sum(widths))
        out, intact = guarded(1, sum(widths), 5, 9, torch.float32)
        got, _ = norm(parts, weight, shift, out=out, silu=silu)
        exact, plain = (
            plain_norm(parts, weight, shift, None, d, silu=silu)
            for d in (torch.float64, torch.float32)
        )
        assert_as_good(got, plain, exact)
        assert intact()

    @pytest.mark.parametrize("resample", ["up", "down"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_resampled(self, resample, dtype):
        x = data(1, 64, 6, 10, dtype=dtype)
        weight, shift, _ = parameters(64)
        size = (12, 20) if resample == "up" else (3, 5)
        out, intact = guarded(1, 64, *size, dtype)
        pool = resample == "down"
        got, pooled = norm([x], weight, shift, resample=resample, out=out, pool_input=pool)
        exact, plain = (
            plain_norm([x], weight, shift, None, d, resample=resample)
            for d in (torch.float64, dtype)
        )
        assert_as_good(got, plain, exact)
        assert intact()
        if pool:
            assert_as_good(pooled, F.avg_pool2d(x, 2), F.avg_pool2d(x.double(), 2))

    @pytest.mark.parametrize(
        "size, dtype",
        [((3, 96, 14, 6), d) for d in DTYPES] + [((1, 32, 18, 14), DTYPES[0])],
    )
    @pytest.mark.parametrize("kind", ["bias", "residual", "both", "upsample"])
    def test_join(self, size, dtype, kind):
        n, c, height, width = size
        h, intact = guarded(*size, dtype)
        h.copy_(data(*size, dtype=dtype))
        bias = None if kind == "residual" else parameters(c)[2]
        residual, wanted = None, h.double()
        if kind != "bias":
            small = (n, c, height // 2, width // 2) if kind == "upsample" else size
            residual = data(*small, dtype=dtype, seed=5)
            exact = residual.double()
            wanted = wanted + (
                F.interpolate(exact, scale_factor=2) if kind == "upsample" else exact
            )
        if bias is not None:
            wanted = wanted + bias.double()[:, None, None]
        moments = gn.join_(h, bias, residual, upsample=kind == "upsample")
        tiny = TINY[dtype] * float(wanted.abs().max())
        assert intact() and float((h.double() - wanted).abs().max()) <= tiny
        assert torch.equal(moments, gn.moments(h)), "of what was stored"

    @pytest.mark.parametrize("rows", [(1, 1), (16, 8), (23, 27), (32, 33)])
    def test_moments(self, rows):
        x = data(1, 32, *rows, offset=100.0)
        found = gn.moments(x).double()
        _, chunk, chunks = sets_of.chunking(rows[0] * rows[1], 32)
        flat = x.double().flatten(2)
        assert found.shape == (1, chunks, 2, 32)
        for k, part in enumerate(flat.split(chunk, dim=2)):
            mean, squares = part.mean(2), part.var(2, correction=0) * part.shape[2]
            # 11 roundings of 6e-8: two rows per lane, their merging, the sum over 64 lanes
            torch.testing.assert_close(found[:, k, 0], mean, rtol=7e-7, atol=0)
            torch.testing.assert_close(found[:, k, 1], squares, rtol=2e-5, atol=1e-8)

    def test_many_chunks_are_merged_in_order(self, monkeypatch):
        """More chunks than are merged at once, the last one short; several tiles per program."""
        monkeypatch.setattr(gn, "BLOCK_S", 2)
        monkeypatch.setattr(gn, "MOST_PROGRAMS", 2)
        x = data(1, 96, 23, 31, offset=50.0)
        weight, shift, bias = parameters(96)
        got, _ = norm([x], weight, shift, bias)
        exact, plain = (
            plain_norm([x], weight, shift, bias, d) for d in (torch.float64, torch.float32)
        )
        assert_as_good(got, plain, exact)

    @pytest.mark.parametrize("size", [(1, 256, 1, 2), (2, 512, 13, 11), (1, 768, 6, 5)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_whole_norm_is_as_exact_as_pytorchs(self, size, dtype):
        x, intact = guarded(*size, dtype)
        x.copy_(data(*size, dtype=dtype, offset=20.0))
        weight, shift, bias = parameters(size[1])
        exact, plain = (plain_norm([x], weight, shift, bias, d) for d in (torch.float64, dtype))
        alone = data(*size, dtype=dtype, offset=20.0)[-1:]
        got = gn.normalize_whole_(x, weight, shift, bias)
        assert got is x and intact()
        assert_as_good(got, plain, exact)
        assert torch.equal(gn.normalize_whole_(alone, weight, shift, bias)[0], got[-1])

    @pytest.mark.parametrize("size", [(1, 256, 40, 39), (1, 96, 4, 4), (1, 2048, 4, 4)])
    def test_whole_is_for_small_maps(self, size):
        x, vector = data(*size), torch.zeros(size[1])
        assert not gn.suits_whole(x)
        with pytest.raises(ValueError, match="use normalize"):
            gn.normalize_whole_(x, vector, vector)

    @pytest.mark.parametrize("dtype", DTYPES[:2])
    def test_a_batch_gives_each_image_what_it_gets_alone(self, dtype):
        x = data(3, 32, 13, 11, dtype=dtype)
        weight, shift, _ = parameters(32)
        together = norm([x], weight, shift)[0]
        again = norm([x], weight, shift)[0]
        assert torch.equal(together, again)
        for n in range(3):
            alone = x[n : n + 1].contiguous(memory_format=torch.channels_last)
            assert torch.equal(norm([alone], weight, shift)[0][0], together[n])

    def test_nan_is_not_hidden(self):
        x = data(1, 64, 8, 8)
        x[0, 5, 3, 3] = float("nan")
        weight, shift, _ = parameters(64)
        got = norm([x], weight, shift)[0]
        assert got[0, 4:6].isnan().all() and int(got.isnan().sum()) == 2 * 64

    def test_a_constant_plane_has_no_variance(self):
        x = torch.full((1, 64, 9, 15), 7.5).contiguous(memory_format=torch.channels_last)
        weight, shift, _ = parameters(64)
        assert not gn.moments(x)[:, :, 1].any()
        got = norm([x], weight, shift, silu=False)[0]
        # what is left is the rounding of a · x + b, where a is weight / sqrt(1e-5)
        allowed = float(weight.abs().max()) * 1e-5**-0.5 * 7.5 * 1.2e-7
        assert float((got - shift[:, None, None]).abs().max()) <= allowed


class TestErrors:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        "call, error, words",
        [
            (lambda x: gn.moments(x.double()), TypeError, "x is torch.float64"),
            (lambda x: gn.moments(x.contiguous()), ValueError, "expected channels_last"),
            (lambda x: gn.moments(x[:, :, 0]), ValueError, r"expected \[N, C, H, W\]"),
            (lambda x: gn.moments(data(1, 48, 4, 4)), ValueError, "a multiple of 32"),
            (lambda x: gn.moments(x.to("meta")), ValueError, "x is on meta"),
            (lambda x: gn.join_(x, torch.zeros(3)), ValueError, r"bias has shape \(3,\)"),
            (lambda x: gn.join_(x, torch.zeros(64).half()), TypeError, "bias is torch.float16"),
            (lambda x: gn.join_(x, None, x.half()), TypeError, "residual is torch.float16"),
            (lambda x: gn.join_(x, None, x, upsample=True), ValueError, "residual has shape"),
            (lambda x: gn.normalize([], *parameters(64)[:2]), ValueError, "holds 0 tensors"),
            (lambda x: norm([x], *parameters(32)[:2]), ValueError, "weight has shape"),
            (
                lambda x: gn.normalize([(x, torch.zeros(1, 2, 2, 32))], *parameters(64)[:2]),
                ValueError,
                r"moments of parts\[0\] has shape",
            ),
            (lambda x: norm([x], *parameters(64)[:2], resample="left"), ValueError, "is 'left'"),
            (
                lambda x: norm([x], *parameters(64)[:2], resample="up", out=x),
                ValueError,
                "out has shape",
            ),
            (
                lambda x: norm([x], *parameters(64)[:2], pool_input=True),
                ValueError,
                "pool_input goes with",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, call, error, words):
        with pytest.raises(error, match=words):
            call(data(1, 64, 4, 4))
