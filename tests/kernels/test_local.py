"""The step without an FFT in Triton's interpreter, on the CPU, against its plain twin.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_local.py

The interpreter adds up products in float32, rounded; tensor cores cut the sums off.
``TestCutSums`` repeats the arithmetic with sums that are cut off, in plain PyTorch.
"""

import pytest
import torch
from kernel_steps import INTERPRETED, SIZES, assert_as_good, guarded, midway, plain

from ddfm_fast.rectify import VARIANTS, KSolver

if INTERPRETED:
    from ddfm_fast.kernels import local
    from ddfm_fast.kernels.local import LocalStep

CPU = torch.device("cpu")
WRAPPED = (1, 64, 80)
"""more than one region of the image's own pixels on each side"""


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_local.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def relative(got, wanted):
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [*SIZES, WRAPPED])
class TestKernel:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_one_step(self, variant, size):
        """k against the FFT in float64, and what follows from that k."""
        rectifier, x_t, eps = midway(size, variant, cls=LocalStep, keep_x0=True)
        exact = plain(rectifier, x_t, eps, torch.float64)
        wanted_k = KSolver(*size[1:], torch.float64, CPU)(exact["rhs"])
        x, x_intact = guarded(*x_t.shape)
        rectifier.x0, x0_intact = guarded(*x_t.shape)
        rectifier.rhs, rhs_intact = guarded(*rectifier.rhs.shape)
        k, k_intact = guarded(*rectifier.k.shape)
        rectifier.k_plane = k.copy_(rectifier.k)
        rectifier.partial.fill_(float("nan"))
        scales = rectifier.scales.clone()
        rectifier.step_(x.copy_(x_t), eps)
        assert x_intact() and x0_intact() and rhs_intact() and k_intact()
        assert relative(rectifier.k, wanted_k) < 1e-6
        exact, plain32 = (
            plain(rectifier, x_t, eps, dtype, scales=scales)
            for dtype in (torch.float64, torch.float32)
        )
        assert_as_good(rectifier.x0, plain32["x0"], exact["x0"], "x0")
        assert_as_good(x, plain32["x"], exact["x"], "x")
        if rectifier.update_scales:
            for column, name in enumerate(("p", "q")):
                got = rectifier.scales[:, column] - scales[:, column] / 2
                assert_as_good(got, plain32[name], exact[name], name)
        assert rectifier.next_step.item() == 4

    def test_nothing_of_before_is_left_in_k(self, size):
        """k is completely written, whatever was there."""
        rectifier, x_t, eps = midway(size, "paper", cls=LocalStep)
        rectifier.rhs_(x_t, eps)
        rhs, k = rectifier.rhs.clone(), rectifier.k.fill_(float("nan"))
        rectifier.rhs_ = lambda x_t, out: rectifier.rhs.copy_(rhs)
        rectifier.step_(x_t, eps)
        assert relative(k, KSolver(*size[1:], torch.float64, CPU)(rhs.double())) < 1e-6


def right_hand_sides(height=70, width=90):
    """Make planes: noise, an edge, a gradient, a nearly constant one, large, tiny and zero."""
    noise = torch.randn(height, width, generator=torch.Generator().manual_seed(5))
    columns = torch.arange(width).expand(height, width)
    return {
        "noise": noise,
        "edge": (columns > width // 2).float() * 2 - 1,
        "gradient": columns / width - 0.5,
        "bright": 1.3 + 0.01 * noise,
        "large": 1e4 * noise,
        "tiny": 1e-20 * noise,
        "zero": torch.zeros(height, width),
    }


def solved(rhs):
    """Return k of [H, W] as the kernel solves it."""
    rectifier, x_t, eps = midway((1, *rhs.shape), "paper", cls=LocalStep)
    rectifier.rhs_ = lambda x_t, out: rectifier.rhs.copy_(rhs)
    rectifier.step_(x_t, eps)
    return rectifier.k[0]


class TestSolve:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("name", right_hand_sides())
    def test_large_and_small_numbers_keep_their_digits(self, name):
        """Float16 holds what is large and what is small: the scale is the region's own."""
        rhs = right_hand_sides()[name]
        k = solved(rhs)
        exact = KSolver(*rhs.shape, torch.float64, CPU)(rhs.double())
        assert float((k - exact).abs().max()) <= 1e-6 * float(exact.abs().max())

    def test_nan_stays_near(self):
        """NaN is only in the regions that see it; an FFT would spread it everywhere."""
        rhs = torch.ones(100, 100)
        rhs[50, 50] = float("nan")
        k = solved(rhs)
        assert k[32:64, 32:64].isnan().all() and k[:32, :32].isfinite().all()

    def test_tables_are_those_of_the_cosine_transform(self):
        """Cᵀ w C of every mode is the inverse of I + ∇ᵀ∇ between mirrors."""
        basis, weights = local.cosine_tables()
        c = basis.double().sum(0)
        n = local.REGION
        mirror = 2 * torch.eye(n, dtype=torch.float64)
        mirror -= torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
        mirror[0, 0] = mirror[-1, -1] = 1
        rhs = torch.randn(n, n, generator=torch.Generator().manual_seed(1)).double()
        k = c.T @ (weights.double() * (c @ rhs @ c.T)) @ c / 32
        assert relative(k + mirror @ k + k @ mirror, rhs) < 1e-6


def cut(x):
    """Round float64 to float32 toward zero, as tensor cores do with their sums."""
    near = x.float()
    return torch.where(near.double().abs() > x.abs(), torch.nextafter(near, near * 0), near)


def split(x):
    high = x.half()
    return high.double(), (x - high.float()).half().double()


def add_cut_product(a, b, total, k=16):
    """Return total + a·b as ``local._add_product`` has it, ``k`` products per sum that is cut."""
    for left, right in zip(a[::-1] + a[:1], b[:1] + b[::-1], strict=True):
        for at in range(0, left.shape[-1], k):
            total = cut(total.double() + left[:, at : at + k] @ right[at : at + k])
    return total


def solve_region(rhs):
    """Compute ``local.solve_inside`` of a region [REGION, REGION] with sums that are cut off."""
    n, halo = local.REGION, local.HALO
    half, inner = n // 2, slice(halo, n - halo)
    basis, weights = local.cosine_tables()
    pairs = [part.double() for part in basis]

    def pair(*at):
        return tuple(part[at] for part in pairs)

    mean = rhs.mean()
    scale = 2.0 ** (7 - int(torch.floor(torch.log2((rhs - mean).abs().max()))))
    left, right = ((rhs - mean) * scale)[:, :half], ((rhs - mean) * scale)[:, half:].flip(1)
    back = torch.zeros(n, n - 2 * halo)
    for modes, folded in ((slice(half), left + right), (slice(half, n), left - right)):
        part = add_cut_product(tuple(pairs), split(folded), torch.zeros(n, half))
        transposed = tuple(c.T for c in pair(modes, slice(half)))
        part = add_cut_product(split(part), transposed, torch.zeros(n, half)) * weights[:, modes]
        back = add_cut_product(split(part), pair(modes, inner), back)
    transposed = tuple(c.T for c in pair(slice(n), inner))
    k = add_cut_product(transposed, split(back), torch.zeros(n - 2 * halo, n - 2 * halo))
    return k / (32 * scale) + mean


class TestCutSums:
    """What a tensor core's cut sums cost, which the interpreter does not show.

    Measured over whole planes of 256×320, they cost at most 4.5e-7 of k's largest value, and
    float32 FFTs cost 5.4e-7.
    """

    __test__ = INTERPRETED

    @pytest.mark.parametrize("name", ["noise", "edge", "gradient", "bright", "large"])
    def test_the_inside_of_a_region(self, name):
        n, halo = local.REGION, local.HALO
        rhs = right_hand_sides(n, n)[name]
        k = solve_region(rhs)
        exact = KSolver(n, n, torch.float64, CPU)(rhs.double())[halo:-halo, halo:-halo]
        assert relative(k, exact) < 1e-6
