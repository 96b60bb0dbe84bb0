"""The engine inside of graphs of torch.compile and torch.export: its layers are nodes."""

import os

import pytest
import torch
from networks import SMALL, channels_last, random_unet
from torch import nn

from ddfm_fast.kernels.cpu.build import status
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.priors.ops.fused import FusedOps
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.ops.onednn import OneDnnOps
from ddfm_fast.priors.ops.onepass import OnePassOps

needs_kernels = pytest.mark.skipif(status() is not None, reason="the C++ cannot run here")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONFIGS = [
    {**SMALL, "attention_resolutions": [2], "num_head_channels": 32, "resblock_updown": True},
    {**SMALL, "channel_mult": (1,), "conv_resample": False, "pixel_unshuffle": 2,
     "sigma_data": 3, "middle_attention": False, "out_channels": 3},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that interprets")
@pytest.mark.thorough
@pytest.mark.interpreted("tests/priors/test_engine_graphs.py")
def test_in_the_interpreter(assert_interpreted):
    assert_interpreted()


class Around(nn.Module):
    """A user's own work around a forward pass."""

    def __init__(self, ops, config, channels=None):
        super().__init__()
        unet = channels_last(random_unet(config))
        self.engine, self.channels = Engine(unet, ops), channels
        self.step = unet.conditioning(torch.tensor([431]))[0]

    @torch.no_grad()
    def forward(self, x):
        return self.engine(x, self.step, self.channels) * 2


def nodes(exported):
    graphs = [m.graph for m in exported.graph_module.modules()]  # autograd's mode nests them
    names = {str(node.target) for graph in graphs for node in graph.nodes}
    return {name for name in names if name.startswith("ddfm_fast")}


def noise(n=2, height=16, width=24):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(n))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="of no kernel of Triton's")
class TestCpu:
    def test_eps_of_a_prior_compiled_gives_its_bytes(self):
        """By our C++ where it runs; oneDNN's operations, elsewhere, become plain ones."""
        prior = UNetPrior(channels_last(random_unet(CONFIGS[1])))
        item, x = prior.conditioning(torch.tensor([431]))[0], noise()
        compiled = torch.compile(
            lambda x: prior.eps(x, item) * 2, fullgraph=True, backend="aot_eager"
        )
        native, wanted = isinstance(prior.engine.ops, NativeOps), prior.eps(x, item) * 2
        tolerance = dict(rtol=0, atol=0) if native else dict(rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(compiled(x), wanted, **tolerance)

    @needs_kernels
    def test_native_layers_exported_give_the_bytes_of_the_eager_forward(self):
        module, x = Around(NativeOps(), CONFIGS[0]), noise()
        exported = torch.export.export(module, (x,))
        assert torch.equal(exported.module()(x), module(x))
        layers = {"ddfm_fast.cpu_layer.default", "ddfm_fast.cpu_attention.default"}
        assert nodes(exported) == layers

    def test_one_dnn_gives_way_to_plain_operations(self):
        module, x = Around(OneDnnOps(), CONFIGS[1]), noise()
        exported = torch.export.export(module, (x,))
        torch.testing.assert_close(exported.module()(x), module(x), rtol=1e-4, atol=2e-5)
        assert not nodes(exported)


class TestWithKernels:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("make", [OnePassOps, FusedOps])
    def test_layers_give_the_bytes_of_the_eager_forward(self, make):
        module, x = Around(make(), CONFIGS[1]), noise(1, 8, 8)
        wanted, exported = module(x), torch.export.export(module, (x,))
        assert torch.equal(exported.module()(x), wanted)
        assert "ddfm_fast.layer.default" in nodes(exported)
