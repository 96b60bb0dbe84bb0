"""Kernels that read images, give them back and find stretch limits, against the plain code.

In Triton's interpreter, in a process of its own as test_step_kernels.py has it; compiled ahead of
time; and on a GPU where there is one.
"""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)

from ddfm_fast.images import color
from ddfm_fast.images.pixels import Pixels
from ddfm_fast.images.planes import LAYOUTS, ImageSpec, read_raw
from ddfm_fast.images.stretch import Fused, own_limits, stretch_limits
from ddfm_fast.kernels import images, limits
from ddfm_fast.runtime.pixels import pixels_for

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLAIN = Pixels(torch.device("cpu"))
SIZES = [(16, 17), (33, 40)]
RANGES = {"uint8": [None, (-5, 300)], "uint16": [None, (0, 4095), (-3, 70000)]}


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_image_kernels.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


@pytest.fixture
def poisoned(monkeypatch):
    """Fill what is not written with NaN, or with an integer that no result has."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan") if out.is_floating_point() else 77)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture
def unfused(monkeypatch):
    """The plain luma without fused multiplication, as in the interpreter: equal to the bit."""

    def luma(rgb):
        if rgb.shape[1] == 1:
            return rgb
        red, green, blue = rgb.split(1, dim=1)
        return (green + 0.299 * (red - green)) + 0.114 * (blue - green)

    monkeypatch.setattr(color, "luma", luma)
    return luma


def image(dtype, layout, size, n=3, channels=3, seed=0):
    """Draw a random image of a layout, with values below 4000 for wider types."""
    sizes = {"N": n, "C": channels, "H": size[0], "W": size[1]}
    shape = [sizes[axis] for axis in layout]
    top = 256 if dtype == "uint8" else 4000
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


@pytest.mark.usefixtures("poisoned")
class TestReading:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", RANGES)
    def test_is_the_plain_code(self, dtype, layout, size, unfused):
        for limit in RANGES[dtype]:
            for channels in (1, 3) if "C" in layout else (1,):
                array = image(dtype, layout, size, channels=channels)
                raw = read_raw(array, "vis", value_range=limit, layout=layout)
                planes = raw.planes()
                luma, rgb = images.read(raw.values, limit, rgb=True)
                assert torch.equal(luma, unfused(planes)) and luma.is_contiguous()
                assert torch.equal(rgb, planes.expand(-1, 3, -1, -1))
                assert images.read(raw.values, limit)[1] is None

    def test_any_strides_and_a_place_of_its_own(self, unfused):
        whole = torch.from_numpy(image("uint8", "NHWC", (34, 51))).permute(0, 3, 1, 2)
        for values in (whole[..., ::2, ::3], whole.mT, whole[1:2], whole[:1].expand(3, -1, -1, -1)):
            out = torch.full((2, len(values), 1, *values.shape[2:]), float("nan"))
            luma, rgb = images.read(values, rgb=True, out=out[1])
            assert torch.equal(rgb, values.float() / 255) and luma.data_ptr() == out[1].data_ptr()
            assert torch.equal(out[1], unfused(rgb)) and out[0].isnan().all()

    def test_ranges_that_float32_does_not_hold_are_for_the_plain_code(self):
        assert images.reads(None) and images.reads((-10, 4095.0))
        assert not any(map(images.reads, [(0.5, 255), (0, 2**24), (-(2**23), 2**23)]))

    def test_what_does_not_fit_is_refused(self):
        values = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        for arguments, error, words in [
            ((values.float(),), TypeError, "values is torch.float32"),
            ((values[0],), ValueError, "values has shape"),
            ((values[:, :2],), ValueError, "values has shape"),
            ((values.to("meta"),), ValueError, "values is on meta"),
            ((values, (0, 0.5)), ValueError, r"value_range is \(0, 0.5\)"),
        ]:
            with pytest.raises(error, match=words):
                images.read(*arguments)
        with pytest.raises(ValueError, match="out has shape"):
            images.read(values, out=torch.zeros(1, 1, 16, 17))


def spec_of(dtype, layout, value_range=None):
    return ImageSpec("torch", getattr(torch, dtype), torch.device("cpu"), layout, value_range)


@pytest.mark.usefixtures("poisoned", "unfused")
class TestGivingBack:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_is_the_plain_code(self, dtype, layout, size):
        n = 3 if "N" in layout else 1
        generator = torch.Generator().manual_seed(1)
        y = torch.rand(n, 1, *size, generator=generator) * 1.2 - 0.1
        y[0, 0, 0, :3] = torch.tensor([-1.0, 2.0, 0.5])
        chroma = torch.rand(n, 3, *size, generator=generator)
        chroma[0, :, 1, :4] = torch.tensor([0.0, 1.0, 0.25, 0.5])  # gray, black and white
        ends = own_limits(y, "percentile", 0.02)
        ends[1, -1] = ends[0, -1]  # flat
        ranges = [None, (0.0, 255.0)] if dtype == "float32" else RANGES[dtype]
        for limit in ranges:
            spec = spec_of(dtype, layout, limit)
            for fused in (Fused(y), Fused(y, ends)):
                for colors in (None, chroma) if "C" in layout else (None,):
                    for dims in (False, True):
                        got = images.give_back(fused, spec, chroma=colors, dims=dims)
                        want = PLAIN.give_back(fused, spec, chroma=colors, dims=dims).image()
                        assert got.dtype == want.dtype and got.is_contiguous()
                        assert torch.equal(got, want)

    def test_any_strides(self):
        y = torch.rand(2, 1, 40, 60)[:, :, 3:33:2, 1:50:3].expand(2, 1, -1, -1)
        chroma = torch.rand(2, 15, 17, 3).permute(0, 3, 1, 2)
        spec = spec_of("uint8", "NHWC")
        got = images.give_back(Fused(y), spec, chroma=chroma)
        assert torch.equal(got, PLAIN.give_back(Fused(y), spec, chroma=chroma).image())

    def test_chroma_planes(self):
        rgb = torch.rand(3, 17, 33, 3).permute(0, 3, 1, 2)
        assert torch.equal(images.chroma_planes(rgb), color.chroma_planes(rgb))

    def test_what_does_not_fit_is_refused(self):
        y, spec = torch.zeros(2, 1, 16, 16), spec_of("uint8", "NHWC")
        for arguments, error, words in [
            ((Fused(y.double()), spec), TypeError, "fused is torch.float64"),
            ((Fused(y[:, 0]), spec), ValueError, "fused has shape"),
            ((Fused(y, torch.zeros(2, 1, 1, 1, 1)), spec), ValueError, "limits has shape"),
            ((Fused(y), spec_of("float16", "NHWC")), TypeError, "spec has torch.float16"),
            ((Fused(y), spec_of("uint8", "HWC")), ValueError, "2 images do not fit layout HWC"),
        ]:
            with pytest.raises(error, match=words):
                images.give_back(*arguments)
        with pytest.raises(ValueError, match="chroma has shape"):
            images.give_back(Fused(y), spec, chroma=torch.zeros(2, 3, 16, 17))


def lumas(kind, shape):
    """Draw lumas of a kind: in [0, 1] and a little beyond, over all floats, few levels, or flat."""
    generator = torch.Generator().manual_seed(5)
    y = torch.rand(shape, generator=generator)
    if kind == "wide":
        sign = torch.rand(shape, generator=generator) - 0.5
        return sign * 10.0 ** torch.randint(-44, 38, shape, generator=generator)
    return {"usual": y * 1.4 - 0.2, "levels": (y * 8).floor() / 8, "flat": y * 0 + 0.3}[kind]


STRETCHES = ("minmax", "percentile", "sources", "none")


@pytest.mark.usefixtures("poisoned")
class TestLimits:
    __test__ = INTERPRETED

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        """Divide small images, too, into several parts of several blocks."""
        monkeypatch.setattr(limits, "BLOCK", 256)
        monkeypatch.setattr(limits, "MOST_PARTS", 4)

    @pytest.mark.parametrize("kind", ["usual", "wide", "levels", "flat"])
    @pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 1, 17, 33), (1, 1, 40, 70)])
    def test_are_those_of_the_plain_code(self, shape, kind):
        y = lumas(kind, shape)
        ir, vis = torch.rand(2, *shape) * 0.7 + 0.1
        for stretch in STRETCHES[:3]:
            got = limits.stretch_limits(stretch, y, ir, vis)
            assert torch.equal(got, stretch_limits(stretch, y, ir, vis)), stretch
        assert limits.stretch_limits("none", y, ir, vis) is None

    @pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.5])
    def test_any_rank(self, share, monkeypatch):
        """Also ranks for which both values are the same."""
        monkeypatch.setattr(limits, "outside", lambda pixels: int(share * (pixels - 1)))
        y = lumas("usual", (2, 1, 17, 31))
        got = limits.stretch_limits("percentile", y, y, y)
        assert torch.equal(got, own_limits(y, "percentile", share))

    def test_any_strides_and_sources_of_another_size(self):
        y = lumas("usual", (2, 1, 40, 64))[..., 1:33, 3:60]
        ir, vis = torch.rand(2, 2, 1, 24, 50) * 0.5
        for b in (vis, vis.mT.contiguous().mT):
            got = limits.stretch_limits("sources", y, ir, b)
            assert torch.equal(got, stretch_limits("sources", y, ir, b))

    def test_nan_is_the_greatest_value(self):
        y = lumas("usual", (1, 1, 16, 64))
        y[0, 0, 0, :3], y[0, 0, 1, 1] = float("nan"), -float("inf")
        y[0, 0, 2, 2] = -y[0, 0, 0, 0]  # a NaN with its sign set
        for stretch in ("minmax", "percentile"):
            got, want = (f(stretch, y, y, y) for f in (limits.stretch_limits, stretch_limits))
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)

    def test_an_image_in_a_batch_is_as_alone(self):
        y = lumas("usual", (3, 1, 17, 33))
        got = limits.stretch_limits("sources", y, y * 0.5, y * 0.7)
        for n in range(3):
            one = y[n : n + 1]
            alone = limits.stretch_limits("sources", one, one * 0.5, one * 0.7)
            assert torch.equal(alone, got[:, n : n + 1])

    def test_what_does_not_fit_is_refused(self):
        y = torch.zeros(1, 1, 16, 16)
        for arguments, error, words in [
            (("minmax", y.double(), y, y), TypeError, "y is torch.float64"),
            (("minmax", y[0], y, y), ValueError, "y has shape"),
            (("sources", y, y, y[..., :9]), ValueError, "vis has shape"),
            (("sources", y, y.half(), y), TypeError, "ir is torch.float16"),
        ]:
            with pytest.raises(error, match=words):
                limits.stretch_limits(*arguments)


BLOCKS = {"BLOCK": limits.BLOCK, "BLOCK_PARTS": limits.BLOCK_PARTS}
ENDS = {"DIGITS": limits.DIGITS, "MOST_PARTS": limits.MOST_PARTS}
GIVEN = {"DIMS": True, "RANGE": True, "ROUND": True, "BLOCK": images.BLOCK}
FORMS = {
    "read color": (images.read_kernel, dict(COLOR=True, RANGE=False, BLOCK=images.BLOCK), "u8"),
    "read gray": (
        images.read_kernel, dict(COLOR=False, RANGE=True, BLOCK=images.BLOCK, rgb_ptr=None), "u16"
    ),
    "chroma": (images.chroma_kernel, dict(BLOCK=images.BLOCK), "fp32"),
    "give back color": (images.give_back_kernel, GIVEN, "u8"),
    "give back gray": (images.give_back_kernel, GIVEN | {"x_ptr": None}, "u16"),
    **{f"digit {n}": (limits.digit_kernel, BLOCKS | {"DIGIT": n}, "i32") for n in range(4)},
    "extremes": (limits.extremes_kernel, dict(BLOCK=limits.BLOCK), "i32"),
    "limits": (limits.limits_kernel, ENDS | {"BLOCK_PARTS": limits.BLOCK_PARTS}, "i32"),
}  # fmt: skip
"""the kernel, its constants, and the type of the argument that is not float32"""
REGISTERS = 128
SHARED_BYTES = 2048
TYPED = {
    "read color": "x_ptr", "read gray": "x_ptr", "give back color": "out_ptr",
    "give back gray": "out_ptr",
}  # fmt: skip
"""the pointer that has this type; in the other kernels it is the counts"""


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_within_budgets(form, arch, tmp_path):
    from aot import Compiled

    kernel, constants, dtype = FORMS[form]
    others = {TYPED[form]} if form in TYPED else {"counts_ptr", "state_ptr", "keys_ptr"}

    def typed(argument):
        if argument.endswith("_ptr"):
            return f"*{dtype}" if argument in others else "*fp32"
        return "fp32" if argument in ("white", "low", "high") else "i32"

    options = {"enable_fp_fusion": False}
    compiled = Compiled(kernel, constants, arch, tmp_path, typed=typed, aligned=(), options=options)
    compiled.assert_within(REGISTERS, SHARED_BYTES)
    atomics = [o for o in compiled.opcodes if o.startswith(("ATOM", "RED."))]
    assert not [o for o in atomics if not o.startswith("ATOMS")]


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("form", FORMS)
def test_a_new_size_compiles_nothing(form):
    """No size, stride or address is part of what a binary is made for."""
    for parameter in FORMS[form][0].params:
        if not parameter.is_constexpr:
            assert parameter.do_not_specialize or parameter.do_not_specialize_on_alignment


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_on_a_gpu(dtype, backend):
    """The whole way there and back; luma may differ by a rounding, results by a 16-bit level."""
    device = torch.device("cuda")
    pixels = pixels_for(device, backend)
    for layout, size in (("HWC", (17, 33)), ("NCHW", (40, 31)), ("HWC", (271, 481))):
        top = {"uint8": 1, "uint16": 16}.get(dtype, 1 / 255)
        arrays = [image("uint8", layout, size, seed=s).astype(dtype) * top for s in (1, 2)]
        arrays = [array.astype(dtype) for array in arrays]
        for ir, vis in (arrays, [torch.from_numpy(a).to(device) for a in arrays]):
            raws = [read_raw(x, "ir", layout=layout) for x in (ir, vis)]
            plain = [read_raw(x, "ir", layout=layout) for x in arrays]
            got, want = (p.read(*r, {"ir", "vis"}) for p, r in ((pixels, raws), (PLAIN, plain)))
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a.luma.cpu(), b.luma, rtol=0, atol=1e-6)
                torch.testing.assert_close(a.rgb.cpu(), b.rgb, rtol=0, atol=1e-7)
            y, lumas = (want[0].luma + want[1].luma) / 2, [w.luma for w in want]
            for stretch in STRETCHES:
                ends = pixels.limits(stretch, y.to(device), *(x.to(device) for x in lumas))
                expected = stretch_limits(stretch, y, *lumas)
                if expected is not None:
                    torch.testing.assert_close(ends.cpu(), expected, rtol=0, atol=1e-6)
                back = pixels.give_back(
                    Fused(y.to(device), ends), raws[1].spec, chroma=got[1].rgb, dims=True
                ).image()
                there = PLAIN.give_back(
                    Fused(y, expected), plain[1].spec, chroma=want[1].rgb, dims=True
                ).image()
                assert type(back) is type(vis)
                back = back.cpu().numpy() if isinstance(back, torch.Tensor) else back
                assert back.shape == there.shape and back.dtype == there.dtype
                apart = np.abs(back.astype(float) - there.astype(float)).max()
                assert apart <= (1 if dtype.startswith("uint") else 1e-5)
