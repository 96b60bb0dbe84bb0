"""Captured loops: what they keep, when they are made, and what happens when they cannot be.

On the CPU a recorder (recorder.py) stands in for CUDA graphs; on a GPU test_kernels_gpu.py uses
the real ones. The kernels' part runs in Triton's interpreter, started by test_step_loops.py.
"""

import logging
import os
import threading

import pytest
import torch
from analytic import tanh_prior, tanh_prior_with_variance
from networks import SMALL, random_unet
from recorder import RecordingCapture
from torch import Tensor

from ddfm_fast.config import FuseConfig
from ddfm_fast.graphs import cache as graphs_cache
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.images.doubts import DDFMWarning
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops.native import NativeOps
from ddfm_fast.priors.tiled import TiledPrior
from ddfm_fast.restore.sources import SourceModel
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.sampler import sample

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLAIN = Backend("torch", "torch", "")
KERNELS = [
    pytest.param(Backend("triton", "torch", ""), marks=pytest.mark.thorough),
    Backend("triton", "local", ""),
]
CONFIG = FuseConfig(steps=5)
THOROUGH = pytest.mark.thorough


def pair(n=1, height=20, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, n, 1, height, width, generator=generator) * 2 - 1


class Cache(GraphCache):
    """A cache with a recorder; ``recorder`` is the last one made."""

    def __init__(self, mode="loop", backend=PLAIN, short_of_memory=0, **options):
        def make(device):
            self.recorder = RecordingCapture(device, short_of_memory)
            return self.recorder

        super().__init__(mode, backend, capture=make, **options)


def draw(cache, prior, config=CONFIG, size=(1, 20, 24), seed=0, **options):
    return sample(prior, *pair(*size, seed=seed), config, seed=seed, loops=cache.loop, **options)


def eager(prior, config=CONFIG, size=(1, 20, 24), seed=0, backend=PLAIN):
    return sample(prior, *pair(*size, seed=seed), config, seed=seed, backend=backend)


@pytest.fixture(autouse=True)
def operators_that_can_be_recorded(monkeypatch):
    """The recorder sees PyTorch's operators and Triton's kernels, and of C++ on a CPU nothing."""
    monkeypatch.setattr(NativeOps, "available", lambda _dtype: False)


def unet_prior(**changes):
    return load_prior(random_unet({**SMALL, **changes}))


class TestPlain:
    __test__ = not INTERPRETED

    @pytest.mark.parametrize(
        "config",
        [
            CONFIG,
            FuseConfig(steps=4, variant="gradient", start=100, psi=5.0, eta=10.0),
            FuseConfig(steps=4, sampler="ddpm", variant="paper", eta=0.1),
            FuseConfig(steps=4, sampler="ddpm", variance="fixed_small"),
            FuseConfig(steps=4, ddim_eta=0.7, update_scales=False),
            FuseConfig(steps=5, reuse=3),
        ],
    )
    @pytest.mark.parametrize("kind", ["network", "callable"])
    def test_a_replay_equals_the_eager_loop(self, kind, config):
        """They are equal bit for bit, on other images and with another seed than the capture's."""
        if kind == "callable" and config.reuse > 1:
            pytest.skip("its layers are not known")
        prior = unet_prior() if kind == "network" else load_prior(tanh_prior_with_variance)
        size = (2, 32, 48)
        cache = Cache()
        for seed in (1, 2, 3):
            got, wanted = (
                f(prior, config, size, seed) for f in (lambda *a: draw(cache, *a), eager)
            )
            assert torch.equal(got.x0, wanted.x0) and torch.equal(got.luma, wanted.luma)
        assert len(cache) == 1 and cache.recorder.captures == 1

    def test_the_first_call_is_eager_the_second_captures(self, caplog):
        cache, prior = Cache(), load_prior(tanh_prior)
        with caplog.at_level(logging.INFO, "ddfm_fast"):
            draw(cache, prior)
            assert len(cache) == 0 and "1x20x24 runs eagerly the first time" in caplog.text
            draw(cache, prior)
            assert len(cache) == 1 and "captured 1x20x24, graph='loop', in" in caplog.text
            caplog.clear()
            draw(cache, prior)
            assert not caplog.text
        (summary,) = cache.summary()
        assert summary["shape"] == (1, 20, 24) and summary["mode"] == "loop"
        assert summary["seconds"] > 0

    def test_warm_up_captures_beforehand(self):
        cache, prior = Cache(), load_prior(tanh_prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        assert len(cache) == 1
        before = cache.recorder.replays
        draw(cache, prior)
        assert cache.recorder.replays == before + 1 and cache.recorder.captures == 1

    def test_off_never_captures(self):
        cache, prior = Cache("off"), load_prior(tanh_prior)
        for _ in range(3):
            draw(cache, prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        assert len(cache) == 0 and not hasattr(cache, "recorder")

    def test_results_are_the_callers_own(self):
        cache, prior = Cache(), load_prior(tanh_prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        first = draw(cache, prior, seed=1)
        kept = first.x0.clone(), first.luma.clone()
        draw(cache, prior, seed=2)
        assert torch.equal(first.x0, kept[0]) and torch.equal(first.luma, kept[1])

    def test_the_least_recently_used_graph_goes(self):
        cache, prior = Cache(limit=2), load_prior(tanh_prior)
        sizes = [(1, 20, 24), (1, 24, 20), (2, 20, 24)]
        for size in sizes[:2]:
            cache.warm_up(prior, CONFIG, size)
        draw(cache, prior, size=sizes[0])
        cache.warm_up(prior, CONFIG, sizes[2])
        assert [s["shape"] for s in cache.summary()] == [sizes[0], sizes[2]]
        assert cache.recorder.released == 1
        for seed, size in enumerate(sizes * 2):
            assert torch.equal(
                draw(cache, prior, size=size, seed=seed).x0, eager(prior, size=size, seed=seed).x0
            )
        cache.clear()
        assert len(cache) == 0

    def test_every_frozen_setting_has_its_own_graph(self):
        cache, prior = Cache(), load_prior(tanh_prior)
        configs = [CONFIG, CONFIG.with_overrides(eta=0.1), CONFIG.with_overrides(steps=4)]
        for config in configs:
            cache.warm_up(prior, config, (1, 20, 24))
        cache.warm_up(load_prior(tanh_prior), CONFIG, (1, 20, 24))
        assert len(cache) == 4
        for config in configs:
            assert torch.equal(draw(cache, prior, config).x0, eager(prior, config).x0)

    def test_host_code_in_a_prior_is_said_once_and_runs_step_by_step(self):
        def host(x, t):
            return tanh_prior(x, t) * (1 if float(x.sum()) > -1e9 else 2)

        host.multiple = 1
        cache, prior = Cache(), load_prior(host)
        with pytest.warns(DDFMWarning) as said:
            for seed, size in enumerate([(1, 20, 24)] * 3 + [(1, 24, 20)] * 3):
                got, wanted = (
                    draw(cache, prior, CONFIG, size, seed),
                    eager(prior, CONFIG, size, seed),
                )
                assert torch.equal(got.x0, wanted.x0)
        assert len(cache) == 0 and len(said) == 1, "once, not for every size"
        assert "prior 'host' cannot be captured" in str(said[0].message)
        assert "operation not permitted when capturing" in str(said[0].message)

    def test_state_on_the_host_is_noticed(self):
        calls = []

        def counting(x, t):
            calls.append(t)
            return tanh_prior(x, t) * (1 + len(calls) % 7)

        counting.multiple = 1
        cache, prior = Cache(), load_prior(counting)
        with pytest.warns(DDFMWarning, match="a replay differs from the code"):
            draw(cache, prior)
            draw(cache, prior)
        assert len(cache) == 0

    def test_errors_of_the_prior_come_through(self):
        def broken(_x, _t):
            raise KeyError("lost")

        broken.multiple = 1
        with pytest.raises(KeyError, match="lost"):
            draw(Cache(), load_prior(broken))

    def test_too_little_memory_means_no_graph_and_no_crash(self):
        cache, prior = Cache(short_of_memory=100), load_prior(tanh_prior)
        with pytest.warns(DDFMWarning, match="too little memory to capture graph='loop'"):
            for seed in range(3):
                assert torch.equal(draw(cache, prior, seed=seed).x0, eager(prior, seed=seed).x0)
        assert len(cache) == 0 and cache.recorder.captures == 1

    def test_older_graphs_make_room(self, caplog):
        cache, prior = Cache(), load_prior(tanh_prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        cache.recorder.short = 1
        with caplog.at_level(logging.INFO, "ddfm_fast"):
            cache.warm_up(prior, CONFIG, (1, 40, 40))
        assert [s["shape"] for s in cache.summary()] == [(1, 40, 40)]
        assert "dropping older graphs to make room" in caplog.text

    def test_a_callback_sees_every_step_of_a_shape_that_has_a_graph(self):
        """The plain rectifier's steps have their row frozen in: no replay, step by step."""
        cache, prior = Cache(), load_prior(tanh_prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        for _ in range(3):
            seen = []
            draw(cache, prior, callback=lambda info, seen=seen: seen.append(info.step))
            assert seen == [1, 2, 3, 4, 5]

    def test_threads_take_turns(self):
        cache, prior = Cache(), load_prior(tanh_prior)
        cache.warm_up(prior, CONFIG, (1, 20, 24))
        results = {}

        def work(seed):
            for _ in range(3):
                results.setdefault(seed, []).append(draw(cache, prior, seed=seed).x0)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, found in results.items():
            assert all(torch.equal(x, eager(prior, seed=seed).x0) for x in found)

    @pytest.mark.parametrize("kind", ["network", "callable"])
    def test_tiles_are_captured_as_they_are(self, kind):
        inner = unet_prior() if kind == "network" else load_prior(tanh_prior_with_variance)
        cache, size, config = Cache(), (2, 96, 128), FuseConfig(steps=2)
        for seed in (1, 2):
            prior = TiledPrior(inner, 64)  # another, but equal: the graph is of both
            got, wanted = draw(cache, prior, config, size, seed), eager(prior, config, size, seed)
            assert torch.equal(got.x0, wanted.x0)
        assert cache.recorder.captures == 1 and cache.summary()[0]["tile"] == 64
        assert not torch.equal(got.x0, eager(inner, config, size, 2).x0) or kind == "callable"
        x = torch.randn(1, 3, 96, 64)
        for t in (17, 100, 190):
            wanted = prior.eps(x, prior.conditioning(torch.tensor([t]))[0])
            assert torch.equal(cache.evaluate(prior, x, t), wanted)
        assert [s["mode"] for s in cache.summary()] == ["loop", "eps"]
        draw(cache, inner, config, size)
        draw(cache, inner, config, size)
        assert [s["tile"] for s in cache.summary()] == [64, 64, 0], "whole is another graph"

    def test_an_evaluation_is_captured_once_for_all_timesteps(self):
        cache, prior = Cache(), unet_prior()
        x = torch.randn(1, prior.channels, 32, 48)
        for number, t in enumerate((17, 38, 100, 190)):
            got = cache.evaluate(prior, x * (1 + number), t)
            step = prior.conditioning(torch.tensor([t]))[0]
            assert torch.equal(got, prior.eps(x * (1 + number), step).float())
        assert [s["mode"] for s in cache.summary()] == ["eps"] and cache.recorder.replays == 3

    def test_denoising_replays_and_gives_the_same_picture(self):
        cache, prior = Cache(), unet_prior(in_channels=1, out_channels=1)
        config = FuseConfig(denoise=20, draws=2)
        eagerly, replayed = SourceModel(prior, config), SourceModel(prior, config, cache.evaluate)
        for seed in range(3):
            planes = pair(1, 40, 48, seed).add(1).div(2)
            wanted, got = (model(*planes, seed=seed) for model in (eagerly, replayed))
            assert torch.equal(got.ir, wanted.ir) and torch.equal(got.vis, wanted.vis)
        assert cache.recorder.captures == 1 and cache.recorder.replays == 11

    def test_an_evaluation_that_cannot_be_captured_runs_as_it_is(self):
        def host(x, t):
            return tanh_prior(x, t) * (1 if float(x.sum()) > -1e9 else 2)

        host.multiple = 1
        cache, prior = Cache(), load_prior(host)
        x, step = torch.randn(1, 3, 20, 24), prior.conditioning(torch.tensor([9]))[0]
        with pytest.warns(DDFMWarning) as said:
            for _ in range(3):
                got = cache.evaluate(prior, x, 9)
                assert torch.equal(got, prior.eps(x, step))
        assert len(cache) == 0 and len(said) == 1

    def test_any_work_on_tensors_is_replayed_on_other_inputs(self):
        cache = Cache()

        def work(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2 + y, y.flip(-1)

        for seed in range(4):
            x, y = pair(1, 20, 24, seed)
            with torch.inference_mode(seed % 2 == 0):
                first, second = cache.call("doubled", work, x, y)
            assert torch.equal(first, 2 * x + y) and torch.equal(second, y.flip(-1))
            assert not (seed and (first.is_inference() or second.is_inference()))
        assert cache.recorder.captures == 1 and cache.recorder.replays == 3
        assert [graph["mode"] for graph in cache.summary()] == ["call"]
        cache.call("doubled", work, *pair(1, 20, 20, 1))
        assert cache.recorder.captures == 1, "another size is another graph"

    @pytest.mark.parametrize("limit", [0, "many", -1])
    def test_limit_is_checked(self, limit, monkeypatch):
        with pytest.raises(ValueError, match="limit is .*expected how many graphs"):
            GraphCache("off", PLAIN, limit=limit)
        monkeypatch.setenv("DDFM_FAST_GRAPHS", str(limit))
        with pytest.raises(ValueError, match="DDFM_FAST_GRAPHS is .*expected how many graphs"):
            GraphCache("off", PLAIN)


@pytest.mark.parametrize("backend", KERNELS, ids=lambda backend: backend.solver)
class TestKernels:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        "mode, config",
        [
            ("loop", FuseConfig(steps=4, sampler="ddpm", variant="paper")),
            ("step", FuseConfig(steps=4, reuse=3)),
            pytest.param(
                "step", FuseConfig(steps=4, sampler="ddpm", variant="paper"), marks=THOROUGH
            ),
            pytest.param("loop", FuseConfig(steps=4, reuse=3), marks=THOROUGH),
            pytest.param("loop", FuseConfig(steps=3), marks=THOROUGH),
            pytest.param("step", FuseConfig(steps=3), marks=THOROUGH),
        ],
    )
    def test_a_replay_equals_the_eager_loop(self, config, mode, backend):
        """An odd number of steps, an even one with noise, and two graphs taken in turn."""
        prior = unet_prior()
        cache = Cache(mode, backend)
        cache.warm_up(prior, config, (1, 16, 32))
        assert len(cache) == 1
        for seed in (1, 2):
            got = draw(cache, prior, config, (1, 16, 32), seed)
            wanted = eager(prior, config, (1, 16, 32), seed, backend)
            assert torch.equal(got.x0, wanted.x0) and torch.equal(got.luma, wanted.luma)

    def test_one_graph_of_a_step_serves_every_row(self, backend):
        config, prior = FuseConfig(steps=4), load_prior(tanh_prior)
        cache = Cache("step", backend)
        cache.warm_up(prior, config, (1, 16, 20))
        assert cache.recorder.captures == 3, "what precedes the steps, a step, what follows"
        replays = cache.recorder.replays
        draw(cache, prior, config, (1, 16, 20))
        assert cache.recorder.replays == replays + 4 + 2

    def test_a_long_loop_is_a_few_graphs_of_some_steps(self, backend, monkeypatch):
        """Seven steps, of which a graph may have three: three graphs of two, and one of one."""
        config, prior, size = FuseConfig(steps=7), load_prior(tanh_prior), (1, 16, 20)
        whole = Cache("loop", backend)
        whole.warm_up(prior, config, size)
        monkeypatch.setattr(graphs_cache, "MOST_NODES", whole.summary()[0]["nodes"] // 2)
        bounded = Cache("auto", backend)
        bounded.warm_up(prior, config, size)
        assert [s["mode"] for s in bounded.summary()] == ["step"]
        replays = bounded.recorder.replays
        got = draw(bounded, prior, config, size)
        wanted = eager(prior, config, size, backend=backend)
        assert torch.equal(got.x0, wanted.x0) and torch.equal(got.luma, wanted.luma)
        assert bounded.recorder.replays == replays + 3 + 1 + 2
        bounded.warm_up(prior, config, size, watched=True)
        replays = bounded.recorder.replays
        draw(bounded, prior, config, size, callback=lambda info: None)
        assert bounded.recorder.replays == replays + 7 + 2

    def test_a_callback_sees_every_step_of_a_replay(self, backend):
        config, prior = FuseConfig(steps=3), load_prior(tanh_prior)
        cache, seen = Cache("loop", backend), {}

        def callback(info):
            seen.setdefault(info.step, []).append((info.x_t.clone(), info.x0.clone()))

        for _ in range(3):
            draw(cache, prior, config, (1, 16, 20), callback=callback)
        assert [s["mode"] for s in cache.summary()] == ["step"]
        assert sorted(seen) == [1, 2, 3]
        for eagerly, *replayed in seen.values():
            for again in replayed:
                assert torch.equal(again[0], eagerly[0]) and torch.equal(again[1], eagerly[1])

    def test_too_little_memory_for_the_loop_leaves_the_step(self, backend):
        config, prior = FuseConfig(steps=3), load_prior(tanh_prior)
        cache = Cache("loop", backend, short_of_memory=1)
        cache.warm_up(prior, config, (1, 16, 20))
        assert [s["mode"] for s in cache.summary()] == ["step"]
        got = draw(cache, prior, config, (1, 16, 20)).x0
        assert torch.equal(got, eager(prior, config, (1, 16, 20), backend=backend).x0)
