"""The step in one launch in Triton's interpreter, on the CPU, against its plain twin.

Whether kernels are interpreted is settled when triton is first imported, so the tests run in a
process of their own: ``test_in_the_interpreter`` starts pytest on this file with
TRITON_INTERPRET=1, under which it collects the classes instead. To see them one by one:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_tile.py
"""

import pytest
import torch
from kernel_steps import INTERPRETED, SIZES, assert_as_good, guarded, midway, plain

from ddfm_fast.rectify import VARIANTS, KSolver

if INTERPRETED:
    from ddfm_fast.kernels.tile import TileStep

CPU = torch.device("cpu")


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_tile.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


@pytest.mark.parametrize("size", SIZES)
class TestKernel:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_one_launch(self, variant, size):
        """The tile's k against the FFT in float64, and what follows from that k."""
        rectifier, x_t, eps = midway(size, variant, cls=TileStep, keep_x0=True)
        rectifier.partial_pair[0].zero_()
        scales = rectifier.scale_pair[0].clone()
        if rectifier.update_scales:
            scales /= 2  # γ ← 0 + γ/2
        exact = plain(rectifier, x_t, eps, torch.float64, scales=scales)
        wanted_k = KSolver(*size[1:], torch.float64, CPU)(exact["rhs"])
        after, intact = guarded(*x_t.shape)
        rectifier.x0, x0_intact = guarded(*x_t.shape)
        rectifier.k_pair[1].fill_(float("nan"))
        rectifier.partial_pair[1].fill_(float("nan"))
        inputs = x_t.clone(), eps.clone(), rectifier.k_pair[0].clone()
        rectifier.step_(x_t, eps, after)
        assert intact() and x0_intact()
        for old, new in zip(inputs, (x_t, eps, rectifier.k_pair[0]), strict=True):
            assert torch.equal(old, new)
        assert float((rectifier.k - wanted_k).abs().max() / wanted_k.abs().max()) < 2e-6
        exact, plain32 = (
            plain(rectifier, x_t, eps, dtype, scales=scales)
            for dtype in (torch.float64, torch.float32)
        )
        assert_as_good(rectifier.x0, plain32["x0"], exact["x0"], "x0")
        assert_as_good(after, plain32["x"], exact["x"], "x")
        if rectifier.update_scales:
            means = rectifier.partial_pair[1].sum(2) / (size[1] * size[2])
            assert_as_good(means[:, 0], plain32["p"], exact["p"], "p")
            assert_as_good(means[:, 1], plain32["q"], exact["q"], "q")
        assert rectifier.next_step.item() == 4


class TestErrors:
    __test__ = INTERPRETED

    def test_in_one_launch(self):
        rectifier, x_t, eps = midway((1, 16, 16), "official", cls=TileStep)
        with pytest.raises(ValueError, match="after is x_t; expected another tensor"):
            rectifier.step_(x_t, eps, x_t)
        with pytest.raises(ValueError, match="after has shape"):
            rectifier.step_(x_t, eps, torch.empty(1, 3, 16, 17))
