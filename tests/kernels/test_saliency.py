"""The kernels of the closed-form target against the plain code.

In Triton's interpreter, in a process of its own as test_step_kernels.py has it; compiled ahead of
time; and on a GPU where there is one.
"""

import importlib
import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton does not import here", exc_type=ImportError)

from ddfm_fast.kernels import saliency
from ddfm_fast.target import terms
from ddfm_fast.target.choose import choose

choose_module = importlib.import_module("ddfm_fast.target.choose")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CLOSE = 2e-5
KINDS = [[False], [True]]
THOROUGH = pytest.mark.thorough
SIZES = [(16, 16), (17, 33), *(pytest.param(s, marks=THOROUGH) for s in [(63, 101), (64, 96)])]


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_saliency.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def pair(n, height, width, *, flat=False):
    """Draw sources [N, 1, H, W] in [0, 1]: textured blobs, opposed on the right; a flat sky."""
    generator = torch.Generator().manual_seed(100 * height + width)
    i, v = torch.rand(2, n, 1, 4, 5, generator=generator)
    i, v = (F.interpolate(x, (height, width), mode="bilinear") for x in (i, v))
    texture = torch.rand(2, n, 1, height, width, generator=generator)
    i, v = 0.85 * i + 0.15 * texture[0], 0.85 * v + 0.15 * texture[1]
    i[..., width // 2 :] = 1 - v[..., width // 2 :]
    if flat:
        v[..., : height // 3, :] = 0.9
    return i, v


@pytest.fixture
def poisoned(monkeypatch):
    """Fill everything that is not written with NaN; make tiles as large as small images."""
    monkeypatch.setattr(saliency, "BLOCK_H", 32)
    monkeypatch.setattr(saliency, "BLOCK_W", 64)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(float("nan"))
    )


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations that launch something; counts kernels by ``kernel``."""

    FREE = ("empty", "select", "slice", "unsqueeze", "view", "as_strided", "unbind", "detach")

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        for name in vars(saliency).copy():
            if name.endswith("_kernel"):
                monkeypatch.setattr(saliency, name, self.kernel(name))

    def kernel(self, name):
        owner = self

        class Kernel:
            def __getitem__(self, grid):
                return lambda *a, **k: owner.names.append(name)

        return Kernel()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not name.startswith(("new_empty", *self.FREE)):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("functional, most", [([False, False], 32), ([True, True], 17)])
def test_launches(functional, most, monkeypatch):
    """At five bands, the kernels' launches and PyTorch's own are the same for any N."""
    monkeypatch.setattr(saliency, "check_plane", lambda *a, **k: None)
    i, v = pair(2, 128, 160)
    with Launches(monkeypatch) as seen:
        saliency.choose_planes(i, v, functional)
    assert len(seen.names) == most, seen.names
    assert [n for n in seen.names if not n.endswith("_kernel")] in (["stack"], ["cat"])


@pytest.mark.usefixtures("poisoned")
class TestKernels:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("functional", KINDS)
    @pytest.mark.parametrize("size", SIZES)
    def test_is_the_plain_code(self, size, functional):
        i, v = pair(1, *size)
        got = saliency.choose_planes(i, v, functional)
        assert got.shape == i.shape and got.is_contiguous() and torch.isfinite(got).all()
        assert float((got - choose(i, v, functional)).abs().max()) < CLOSE

    @THOROUGH
    def test_a_flat_sky(self, monkeypatch):
        """There float32 is coarse in plain code, too: its variance is a difference of squares."""
        i, v = pair(1, 63, 101, flat=True)
        monkeypatch.setattr(choose_module, "_compiled", lambda *_: None)  # the C++ rounds less
        got, plain32 = saliency.choose_planes(i, v), choose(i, v)
        salience = terms.salience
        monkeypatch.setattr(terms, "salience", lambda x: salience(x.float()).to(x.dtype))
        exact = choose(i.double(), v.double())
        allowed = 2 * float((plain32 - exact).abs().max()) + CLOSE
        assert float((got - exact).abs().max()) <= allowed < 5e-4

    def test_an_image_in_a_batch_is_as_alone(self):
        """This also holds for a batch of both kinds."""
        i, v = pair(3, 17, 33)
        kinds = [False, True, False]
        got = saliency.choose_planes(i, v, kinds)
        assert float((got - choose(i, v, kinds)).abs().max()) < CLOSE
        assert torch.equal(saliency.choose_planes(i[1:2], v[1:2], kinds[1:2])[0], got[1])

    @THOROUGH
    def test_a_second_call_gives_the_same_bytes(self):
        i, v = pair(3, 17, 33)
        kinds = [False, True, False]
        got = saliency.choose_planes(i, v, kinds)
        assert torch.equal(saliency.choose_planes(i, v, kinds), got)
        assert torch.equal(saliency.choose_planes(i[2:], v[2:], kinds[2:])[0], got[2])

    @THOROUGH
    def test_a_batch_of_one_kind_and_any_strides(self):
        i, v = pair(2, 16, 24)
        got = saliency.choose_planes(i.mT.contiguous().mT, v.expand(2, 3, -1, -1)[:, 1:2])
        assert float((got - choose(i, v)).abs().max()) < CLOSE
        assert torch.equal(saliency.choose_planes(i[1:], v[1:]), got[1:])

    @pytest.mark.parametrize("value", [0.0, pytest.param(1.0, marks=THOROUGH)])
    def test_constant_sources(self, value):
        i, v = torch.full((2, 1, 1, 16, 16), value)
        assert float((saliency.choose_planes(i, v) - choose(i, v)).abs().max()) < CLOSE


class TestErrors:
    __test__ = INTERPRETED

    def test_what_does_not_fit_is_refused(self):
        i, v = pair(2, 16, 16)
        for arguments, error, words in [
            ((i.double(), v), TypeError, "ir is torch.float64"),
            ((i, v[:1]), ValueError, "vis has shape"),
            ((i[:, 0], v), ValueError, "ir has shape"),
            ((i[..., :15], v[..., :15]), ValueError, "sides of at least 16"),
            ((i.to("meta"), v.to("meta")), ValueError, "ir is on meta"),
            ((i, v, [True]), ValueError, "functional holds 1"),
        ]:
            with pytest.raises(error, match=words):
                saliency.choose_planes(*arguments)


FLOATS = (
    "most", "salient", "bright", "slope", "contrast", "most_contrast",
    "share", "gain", "coring", "sky_coring", "sky_share",
)  # fmt: skip
TILE = dict(BLOCK_H=saliency.BLOCK_H, BLOCK_W=saliency.BLOCK_W)
UNUSED = dict(guide_ptr=None, var_ptr=None)
FORMS = {
    "down": ("down_kernel", dict(FIRST=0, PRODUCTS=False, **TILE)),
    "down with products": ("down_kernel", dict(FIRST=0, PRODUCTS=True, **TILE)),
    "up": ("up_kernel", dict(FIRST=1, fine_ptr=None, **TILE)),
    "bands": ("up_kernel", dict(FIRST=0, **TILE)),
    "sky": ("map_kernel", dict(STAGE="sky", FIRST=saliency.SKY, **UNUSED, **TILE)),
    "conflict": ("map_kernel", dict(STAGE="conflict", FIRST=2, guide_ptr=None, **TILE)),
    "pick": ("map_kernel", dict(STAGE="pick", FIRST=saliency.PICK, var_ptr=None, **TILE)),
    "fit": ("map_kernel", dict(STAGE="fit", FIRST=0, **UNUSED, **TILE)),
    "guided": ("map_kernel", dict(STAGE="guided", FIRST=0, var_ptr=None, **TILE)),
    "salience": ("salience_kernel", dict(BLOCK=saliency.COUNT_BLOCK)),
    "weight": ("weight_kernel", TILE),
    "base": ("base_kernel", dict(STRETCH=True, BLOCK=saliency.SUM_BLOCK)),
    "base of maps": ("base_kernel", dict(STRETCH=False, maps_ptr=None, BLOCK=saliency.SUM_BLOCK)),
    "band": ("band_kernel", dict(x_ptr=None, **TILE)),
    "finest band": ("band_kernel", TILE),
    "band of maps": ("band_kernel", dict(maps_ptr=None, x_ptr=None, **TILE)),
}
REGISTERS = 64
"""limit: 8 blocks of 4 warps on an SM"""
FEW_REGISTERS = 128
"""limit of salience and base, of which there is one program or two per image"""


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("divisible", [True, False], ids=["512x640", "odd"])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_within_budgets(form, divisible, tmp_path):
    from aot import Compiled

    name, constants = FORMS[form]
    kernel = getattr(saliency, name)

    def typed(argument):
        if argument in FLOATS:
            return "fp32"
        return "*fp32" if argument.endswith("_ptr") else "i32"

    sizes = ("height", "width", "pixels") if divisible else ()
    aligned = [a for a in kernel.arg_names if a.endswith("_ptr") or a in sizes]
    compiled = Compiled(kernel, constants, 90, tmp_path, typed=typed, aligned=aligned)
    few = name in ("salience_kernel", "base_kernel")
    compiled.assert_within(FEW_REGISTERS if few else REGISTERS, 4096)
    atomics = [o for o in compiled.opcodes if o.startswith(("ATOM", "RED."))]
    assert not [o for o in atomics if not o.startswith("ATOMS")], "sums in any order"


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.parametrize("size", [*SIZES, (271, 481), (512, 640)])
def test_on_a_gpu(size):
    i, v = pair(3, *size)
    kinds = [False, True, False]
    got = saliency.choose_planes(i.cuda(), v.cuda(), kinds)
    assert float((got.cpu() - choose(i, v, kinds)).abs().max()) < CLOSE
    assert torch.equal(saliency.choose_planes(i.cuda(), v.cuda(), kinds), got)
    for n in (0, 1, 2):
        alone = saliency.choose_planes(i[n : n + 1].cuda(), v[n : n + 1].cuda(), kinds[n : n + 1])
        assert torch.equal(alone[0], got[n])
