"""The thin convolution in Triton's interpreter against PyTorch."""

import os

import pytest
import torch
import torch.nn.functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from ddfm_fast.kernels import thin_conv as conv

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}
SHAPES = [
    (1, 3, 32, 1, 1),
    (3, 3, 40, 5, 7),
    (1, 12, 32, 9, 11),
    (3, 64, 3, 6, 13),
    (1, 96, 12, 4, 5),
]


@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.interpreted("tests/kernels/test_thin_conv.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestKernel:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_a_convolution(self, shape, dtype, monkeypatch):
        n, channels, outs, height, width = shape
        biased = outs < 32
        x = (
            random(n, channels, height, width)
            .to(dtype)
            .contiguous(memory_format=torch.channels_last)
        )
        weight = (random(outs, channels, 3, 3, seed=1) / channels**0.5).to(dtype)
        bias = random(outs, seed=2) if biased else None
        assert conv.suits(weight)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
        got = conv.thin_conv(x, conv.pack(weight), bias)
        monkeypatch.undo()
        assert got.dtype == dtype and got.permute(0, 2, 3, 1).is_contiguous()
        exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), 1, 1)
        plain = F.conv2d(x, weight, None if bias is None else bias.to(dtype), 1, 1)
        allowed = 2 * (plain - exact).abs().max() + TINY[dtype] * exact.abs().max()
        assert (got - exact).abs().max() <= allowed

    def test_an_image_in_a_batch_is_as_alone(self):
        x = random(3, 3, 8, 9).contiguous(memory_format=torch.channels_last)
        packed = conv.pack(random(32, 3, 3, 3))
        assert torch.equal(conv.thin_conv(x, packed)[1:2], conv.thin_conv(x[1:2], packed))

    def test_what_does_not_fit_is_refused(self):
        x = random(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        packed = conv.pack(random(32, 3, 3, 3))
        assert not conv.suits(random(64, 64, 3, 3)) and not conv.suits(random(3, 64, 1, 1))
        with pytest.raises(TypeError, match="packed torch.float16"):
            conv.thin_conv(x, packed.half())
        with pytest.raises(TypeError, match="x is torch.float64"):
            conv.thin_conv(x.double(), packed.double())
        with pytest.raises(ValueError, match="from pack"):
            conv.thin_conv(x, packed[:, :2])
        with pytest.raises(ValueError, match="expected channels_last"):
            conv.thin_conv(x.contiguous(), packed)

    @torch.no_grad()
    def test_in_the_engine(self):
        from networks import SMALL, random_unet

        from ddfm_fast.priors.engine import Engine
        from ddfm_fast.priors.ops.fused import FusedOps

        unet = random_unet({**SMALL, "pixel_unshuffle": 2}, 0)
        unet = unet.to(memory_format=torch.channels_last)
        step, x = unet.conditioning(torch.tensor([431]))[0], random(1, 3, 16, 16)
        ops = FusedOps(thin_convs=True)
        got = Engine(unet, ops)(x, step, 3)
        torch.testing.assert_close(got, unet.run(x, step)[:, :3], rtol=1e-4, atol=2e-5)
        assert {rows for _, rows in ops.packed} == {32, 12}, "the first and the last"
