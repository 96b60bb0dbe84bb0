"""The kernels on a real GPU against their plain twins, in whole loops and in a CUDA graph."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from ddfm_fast.rectify import VARIANTS, Rectifier
from ddfm_fast.schedule import make_schedule, step_rows

pytestmark = pytest.mark.gpu

SIZES = [(1, 64, 64), (2, 37, 53), (3, 271, 481), (1, 512, 640)]


def data(n, height, width):
    generator = torch.Generator().manual_seed(n * height + width)
    i, v = torch.rand(2, n, 1, height, width, generator=generator).cuda() * 2 - 1
    x, eps = torch.randn(2, n, 3, height, width, generator=generator).cuda()
    return i, v, x, eps


def run_kernels(i, v, x, eps, steps=12, **settings):
    from ddfm_fast.kernels import TritonRectifier

    rows = step_rows(make_schedule(steps), "ddim")
    rectifier = TritonRectifier(i, v, rows=rows, **settings)
    x = x.clone()
    for s in range(steps):
        rectifier.step_(x, torch.tanh(0.5 * x + 0.1 * eps), s)
    return x


def relative(got, wanted):
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loop_agrees_with_the_twin_in_float64(variant, size):
    """No worse than twice plain float32 against float64, plus rounding."""
    i, v, x, eps = data(*size)
    rows = step_rows(make_schedule(12), "ddim")

    def twin(dtype):
        y = x.to(dtype, copy=True)
        rectifier = Rectifier(i.to(dtype), v.to(dtype), variant=variant, eta=0.1)
        for row in rows:
            rectifier.step_(y, torch.tanh(0.5 * y + 0.1 * eps.to(dtype)), row)
        return y

    exact, plain = twin(torch.float64), twin(torch.float32)
    got = run_kernels(i, v, x, eps, variant=variant, eta=0.1)
    assert relative(got, exact) <= 2 * relative(plain, exact) + 1e-5


@pytest.mark.parametrize("size", [(2, 37, 53), (1, 512, 640)])
def test_the_same_call_gives_the_same_bytes(size):
    i, v, x, eps = data(*size)
    assert torch.equal(run_kernels(i, v, x, eps), run_kernels(i, v, x, eps))


def test_a_batch_gives_each_image_what_it_gets_alone():
    i, v, x, eps = data(8, 64, 80)
    together = run_kernels(i, v, x, eps)
    for n in range(8):
        one = slice(n, n + 1)
        assert torch.equal(together[one], run_kernels(i[one], v[one], x[one], eps[one]))


def test_graph_replay_equals_eager():
    from ddfm_fast.kernels import TritonRectifier

    i, v, x, eps = data(1, 128, 160)
    rows = step_rows(make_schedule(6), "ddim")
    rectifier = TritonRectifier(i, v, rows=rows)
    wanted = x.clone()
    for s in range(6):
        rectifier.step_(wanted, eps, s)
    static = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        rectifier.reset()
        rectifier.step_(static.clone(), eps)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rectifier.step_(static, eps)
    static.copy_(x)
    rectifier.reset()
    for _ in range(6):
        graph.replay()
    assert torch.equal(static, wanted)
