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
from ddfm_fast.bench.data import network, pair, planes
from ddfm_fast.bench.place import Place, apart, require
from ddfm_fast.bench.sections import loop, prior, step
from ddfm_fast.priors.load import load_prior

CPU = torch.device("cpu")
PLACE = Place(CPU, quick=True)
SIZE = (96, 128)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("make", [step.reference_step, step.twin_step])
def test_step(benchmark, make):
    require(step.parity_of_twin(*SIZE, CPU))
    benchmark(make(*planes(*SIZE, CPU)))


@pytest.mark.benchmark(group="prior")
@pytest.mark.parametrize("path", ["reference", "ddfm_fast"])
@pytest.mark.parametrize("name", ["embedded", "small ADM"])
def test_prior(benchmark, name, path):
    theirs, exact = prior.reference_forward(name, x := prior.noise(*SIZE, CPU))
    ours = prior.forward(load_prior(network(name)), x)
    assert apart(exact, ours()) <= prior.LIMIT
    benchmark({"reference": theirs, "ddfm_fast": ours}[path])


@pytest.mark.benchmark(group="loop", min_rounds=3)
@pytest.mark.parametrize("name", ["reference", *PRESETS])
def test_loop(benchmark, name):
    side = loop.side_of(PLACE)
    if name == "reference":
        benchmark(loop.reference_fusion(PLACE, side, loop.FEW))
        return
    fuser, sources = Fuser(preset=loop.preset(PLACE, name)), pair(side)
    benchmark(lambda: fuser(*sources))
