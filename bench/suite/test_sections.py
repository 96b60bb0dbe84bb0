"""``pytest bench/``: the sections under pytest-benchmark, for its storage and comparison.

A group a section, the reference beside ours; parity is checked before anything is timed. pytest-
benchmark times one test after the other and not in turn: what is published comes from ``python -m
bench``, which takes turns.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("skimage", reason='pip install "ddfm_fast[bench]"')

from ddfm_fast import PRESETS, Fuser
from ddfm_fast.bench.data import network, pair, planes, reference_unet
from ddfm_fast.bench.place import Place, require
from ddfm_fast.bench.sections import kernels, loop, prior, scaling, step
from ddfm_fast.bench.worker import in_fresh_process
from ddfm_fast.priors.load import load_prior

CPU = torch.device("cpu")
PLACE = Place(CPU, quick=True)
SIZE = (96, 128)


@pytest.mark.benchmark(group="kernels")
@pytest.mark.parametrize("path", ["reference", "ddfm_fast"])
@pytest.mark.parametrize("part", [kernels.predict, kernels.colour, kernels.k_solve, kernels.em])
def test_kernels(benchmark, part, path):
    theirs, ours = part(*planes(*SIZE, CPU))
    assert kernels.difference(theirs(), ours()) <= kernels.LIMIT
    benchmark({"reference": theirs, "ddfm_fast": ours}[path])


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("make", [step.reference_step, step.twin_step])
def test_step(benchmark, make):
    require(step.parity_of_twin(*SIZE, CPU))
    benchmark(make(*planes(*SIZE, CPU)))


@pytest.mark.benchmark(group="prior")
@pytest.mark.parametrize("path", ["reference", "ddfm_fast"])
@pytest.mark.parametrize("name", ["embedded", "small ADM"])
def test_prior(benchmark, name, path):
    x, t = prior.noise(*SIZE, CPU), torch.tensor([prior.TIMESTEP])
    theirs, ours = reference_unet(name, CPU), prior.forward(load_prior(network(name)), x)
    assert float((theirs(x, t)[:, :3] - ours()).abs().max()) <= prior.LIMIT * 10
    benchmark({"reference": lambda: theirs(x, t), "ddfm_fast": ours}[path])


@pytest.mark.benchmark(group="loop", min_rounds=3)
@pytest.mark.parametrize("name", ["reference", *PRESETS])
def test_loop(benchmark, name):
    side = loop.side_of(PLACE)
    if name == "reference":
        benchmark(loop.reference_fusion(PLACE, side, loop.FEW))
        return
    fuser, sources = Fuser(preset=loop.preset(PLACE, name)), pair(side)
    benchmark(lambda: fuser(*sources))


@pytest.mark.benchmark(group="throughput", min_rounds=3)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_throughput(benchmark, count):
    fuser, (ir, vis) = Fuser(preset="fast", batch_size=count), pair(64)
    benchmark.extra_info["images"] = count
    benchmark(lambda: fuser([ir] * count, [vis] * count))


@pytest.mark.benchmark(group="scaling", min_rounds=3)
@pytest.mark.parametrize("size", scaling.STEP_SIZES[:4], ids=lambda size: "x".join(map(str, size)))
def test_scaling(benchmark, size):
    benchmark(step.twin_step(*planes(*size, CPU)))


@pytest.mark.benchmark(group="startup")
def test_startup(benchmark):
    benchmark.pedantic(lambda: in_fresh_process("startup", "cpu", 64), rounds=3)
