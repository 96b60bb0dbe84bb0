"""What tests/tools/roofline.py takes for a layer's work, counted by hand."""

import pytest
import roofline
import torch

from ddfm_fast.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.status() is not None, reason=f"{cpu.status()}")


def test_layer_by_winograd_with_a_skip():
    weight, skip = torch.zeros(64, 32, 3, 3), torch.zeros(64, 48, 1, 1)
    layer = cpu.Layer(
        cpu.pack(weight, True), [(1, 32, 6, 10)], skip=(cpu.pack(skip, False), [32, 16])
    )
    row = roofline.row_of("", layer, 0.0)
    tiles, outputs = 2 * 3, 6 * 10  # of 4 x 4 outputs, from the rows up
    assert row.made == tiles * 36 * 32 * 64 + outputs * 48 * 64
    weights = layer.weight.data.numel() + layer.skip.data.numel()
    assert weights >= 36 * 32 * 64 + 48 * 64  # and what fills the last group
    assert row.moved == 4 * (outputs * (32 + 48 + 64) + weights)


def test_layer_by_its_definition():
    layer = cpu.Layer(cpu.pack(torch.zeros(20, 5, 3, 3), False), [(2, 5, 7, 9)], stride=2)
    assert roofline.row_of("", layer, 0.0).made == 2 * 4 * 5 * 9 * 5 * 20


@pytest.mark.parametrize("low", [False, True])
def test_rates_are_positive_and_finite(low):
    if low and not cpu.build.library().pairs:
        pytest.skip("no instruction here that multiplies in bfloat16")
    peaks = roofline.Peaks(low, 1 << 16)
    peaks.look()
    products, copied = peaks.rates
    # one core of 1 to 6 GHz makes 4 to 128 of them per cycle
    assert 1e9 < products < 1e12 and 1e8 < copied < 1e12
