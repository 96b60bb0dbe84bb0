"""``Fuser`` by composition: methods handed in, second fusers on a prior, what ``fuse`` keeps."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import shutil
import threading
import weakref
from typing import get_type_hints

import numpy as np
import pytest
import torch
from analytic import tanh_prior

import ddfm_fast
from ddfm_fast import api
from ddfm_fast.api import KEPT_FUSERS, Fuser, clear_cache, fuse
from ddfm_fast.config import PRESETS, FuseConfig
from ddfm_fast.images.pair import read_pair
from ddfm_fast.images.pixels import Pixels
from ddfm_fast.images.stretch import Fused
from ddfm_fast.method import Baseline, Diffusion, EMAlone, PriorAlone
from ddfm_fast.options import OPTIONS, FuserOptions, ReadingOptions
from ddfm_fast.priors import precision
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.priors.tiled import TiledPrior

QUICK = {"device": "cpu", "preset": "fast", "steps": 1}


def pair(height=32, width=40, seed=0):
    generator = np.random.default_rng(seed)
    shape = (height, width)
    return tuple(generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))


@pytest.fixture(autouse=True)
def empty_cache():
    clear_cache()
    yield
    clear_cache()


@pytest.fixture
def loads(monkeypatch):
    """Record the priors that are loaded from now on."""
    seen = []

    def noted(spec, *args, **kwargs):
        seen.append(spec)
        return load_prior(spec, *args, **kwargs)

    monkeypatch.setattr(api, "load_prior", noted)
    return seen


# A method that is handed in


def test_a_fuser_can_be_asked_for_its_method():
    fuser = Fuser(prior=tanh_prior, device="cpu", steps=2)
    assert isinstance(fuser.method, Diffusion) and fuser.method.part == "all"
    assert fuser.method.prior is fuser.tiled and fuser.tiled == TiledPrior(fuser.prior, "auto")
    assert fuser.with_options(tile="off").method.prior is fuser.prior
    assert fuser.method.loops is fuser.loops
    ir, vis = (torch.from_numpy(p)[None, None] / 255 for p in pair(33, 47))
    direct = fuser.method(ir, vis, seed=fuser.seed)
    assert direct.shape == (1, 1, 33, 47)
    other = fuser.method.with_config(PRESETS["fast"])
    assert other.config == PRESETS["fast"] and other.loops is fuser.loops


@pytest.mark.parametrize("maker, part", [(EMAlone, "em"), (PriorAlone, "prior")])
def test_half_of_the_method_gives_another_picture(maker, part):
    fuser = Fuser(prior=tanh_prior, method=maker, steps=3, device="cpu")
    assert fuser.method.part == part
    ir, vis = pair(33, 47)
    assert not np.array_equal(
        fuser(ir, vis), Fuser(prior=tanh_prior, steps=3, device="cpu")(ir, vis)
    )


def test_a_baseline_is_what_it_says():
    ir, vis = pair()
    settings = {"prior": tanh_prior, "stretch": "none", "denoise": "off", "device": "cpu"}
    mean = Fuser(method=Baseline("mean").of, **settings)(ir, vis)
    half = (ir.astype(np.float32) / 255 + vis.astype(np.float32) / 255) / 2
    assert np.array_equal(mean, np.floor(half * 255 + 0.5).astype(np.uint8))
    largest = Fuser(method=Baseline("max").of, **settings)(ir, vis)
    assert np.array_equal(largest, np.maximum(ir, vis))
    with pytest.raises(ValueError, match="name is 'median'; expected one of mean, max"):
        Baseline("median")


def test_any_function_of_two_lumas_is_a_method():
    class Darker:
        part = "darker"

        def __call__(self, ir, vis, **_run):
            return torch.minimum(ir, vis)

    ir, vis = pair()
    settings = {"prior": tanh_prior, "stretch": "none", "denoise": "off", "device": "cpu"}
    fuser = Fuser(method=lambda *_: Darker(), batch_size=2, **settings)
    for got, a, b in zip(fuser([ir, vis], [vis, ir]), (ir, vis), (vis, ir), strict=True):
        assert np.array_equal(got, np.minimum(a, b))


def test_a_warm_video_preset_needs_the_whole_method():
    fuser = Fuser(prior=tanh_prior, method=EMAlone, steps=2, device="cpu")
    with pytest.raises(ValueError, match="fuser has the method 'em'.*preset=\"exact\""):
        list(fuser.stream([pair()], preset="realtime"))
    assert len(list(fuser.stream([pair(), pair(seed=1)], preset="exact"))) == 2


# Pairs

ON_CPU = Pixels(torch.device("cpu"))


def test_a_pair_gives_back_what_came_in():
    ir, vis = pair()
    rgb = np.stack([vis, ir, vis], 2)
    read = read_pair(ir, rgb, pixels=ON_CPU)
    assert read.size == ir.shape and read.ir.shape == read.vis.shape == (1, 1, *ir.shape)
    assert np.array_equal(read.give_back(Fused(read.vis)).image(), rgb)
    gray = read_pair(ir, rgb, pixels=ON_CPU, color=False)
    assert gray.chroma is None and gray.give_back(Fused(gray.ir)).image().shape == (*ir.shape, 1)


def test_a_pair_that_cropping_would_empty():
    with pytest.raises(ValueError, match=r"ir\[3\] is 20x40, which cropping"):
        read_pair(*pair(20), pixels=ON_CPU, least=32, index="[3]")


# A second fuser on the same prior


def test_with_options_loads_nothing(loads):
    fuser = Fuser(seed=5, color=False, **QUICK)
    before = len(loads)
    other = fuser.with_options(batch_size=3, preset="balanced")
    assert all(isinstance(spec, UNetPrior) for spec in loads[before:])
    assert other.prior is fuser.prior and other.loops is fuser.loops
    assert other.batch_size == 3 and not other.automatic_batch and fuser.batch_size == 1
    assert other.config == PRESETS["balanced"].with_overrides(steps=1)
    assert (other.seed, other.color) == (5, False)
    assert other.method.config == other.config


def test_with_options_draws_what_a_new_fuser_draws():
    ir, vis = pair()
    fuser = Fuser(prior=tanh_prior, device="cpu", steps=2)
    expected = Fuser(prior=tanh_prior, device="cpu", steps=2, variant="paper", seed=9)(ir, vis)
    assert np.array_equal(fuser.with_options(variant="paper", seed=9)(ir, vis), expected)


def test_with_options_changes_the_precision_only_if_told():
    fuser = Fuser(device="cpu", steps=1)
    assert fuser.with_options(preset="fast").prior is fuser.prior
    assert fuser.with_options(dtype="float16").prior.precision == "float16"
    with pytest.raises(TypeError, match="'step' is not an option; did you mean 'steps'"):
        fuser.with_options(step=3)


def test_with_options_keeps_the_precision_of_a_prior_that_is_named_again():
    fuser = Fuser(device="cpu", dtype="float32", preset="fast")
    assert fuser.with_options(prior="embedded").prior.precision == "float32"


def test_with_options_is_exact_where_the_preset_is(monkeypatch):
    """The authors' script to the pixel needs float32, whatever was chosen for a quick preset."""
    monkeypatch.setattr(precision, "default_precision", lambda _device: "bfloat16")
    fuser = Fuser(device="cpu", preset="fast")
    assert fuser.prior.precision == "bfloat16"
    assert fuser.with_options(preset="balanced").prior is fuser.prior
    assert fuser.with_options(preset="official-script").prior.precision == "float32"
    again = fuser.with_options(preset="balanced").with_options(preset="official-script")
    assert again.prior.precision == "float32"
    told = Fuser(device="cpu", preset="fast", dtype="bfloat16")
    assert told.with_options(preset="official-script").prior is told.prior


def test_an_assigned_configuration_is_exact_where_its_preset_is(monkeypatch):
    monkeypatch.setattr(precision, "default_precision", lambda _device: "bfloat16")
    exact = FuseConfig.from_preset("official-script")
    fuser = Fuser(device="cpu", preset="fast").with_options(seed=1)
    fuser.config = FuseConfig.from_preset("balanced")
    assert fuser.prior.precision == "bfloat16"
    fuser.config = exact
    assert fuser.prior.precision == "float32"
    assert fuser.tiled.inner is fuser.prior
    told = Fuser(device="cpu", preset="fast", dtype="bfloat16")
    told.config = exact
    assert told.prior.precision == "bfloat16"


@pytest.mark.parametrize(
    "carry", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_copy_is_exact_where_the_preset_is(carry, monkeypatch):
    """A copy takes the prior along, but still knows that no precision was asked for."""
    monkeypatch.setattr(precision, "default_precision", lambda _device: "bfloat16")
    fuser = carry(carry(Fuser(device="cpu", preset="fast").with_options(seed=1)))
    assert fuser.prior.precision == "bfloat16"
    assert fuser.with_options(preset="official-script").prior.precision == "float32"
    fuser.config = FuseConfig.from_preset("official-script")
    assert fuser.prior.precision == "float32"
    told = carry(Fuser(device="cpu", preset="fast", dtype="bfloat16").with_options(seed=1))
    assert told.with_options(preset="official-script").prior.precision == "bfloat16"


def test_a_subclass_stays_one():
    class Ours(Fuser):
        pass

    assert type(Ours(**QUICK).with_options(seed=1)) is Ours


def test_another_configuration_may_be_assigned():
    ir, vis = pair()
    fuser = Fuser(prior=tanh_prior, device="cpu", steps=2)
    fuser.config = fuser.config.with_overrides(steps=3, psi=0.1)
    expected = Fuser(prior=tanh_prior, device="cpu", steps=3, psi=0.1)(ir, vis)
    assert np.array_equal(fuser(ir, vis), expected)


# What fuse keeps


def test_a_second_call_loads_nothing(loads):
    ir, vis = pair()
    first = fuse(ir, vis, **QUICK)
    assert len(loads) == 1
    assert np.array_equal(fuse(ir, vis, **QUICK), first) and len(loads) == 1
    fuse(ir, vis, seed=4, progress=False, color=False, **QUICK)  # of a call, not of a fuser
    assert len(loads) == 1
    fuse(ir, vis, psi=0.7, **QUICK)
    assert len(loads) == 2 and isinstance(loads[1], UNetPrior)  # one prior for both


def test_a_preset_that_changes_counts(monkeypatch):
    ir, vis = pair()
    prior = load_prior(tanh_prior)
    monkeypatch.setitem(PRESETS, "mine", PRESETS["fast"])
    first = fuse(ir, vis, prior=prior, preset="mine", device="cpu")
    monkeypatch.setitem(PRESETS, "mine", PRESETS["paper"].with_overrides(steps=3))
    assert not np.array_equal(fuse(ir, vis, prior=prior, preset="mine", device="cpu"), first)


def test_fusers_of_one_file_share_its_prior(tmp_path):
    from ddfm_fast.priors.load import EMBEDDED

    path = tmp_path / "prior.safetensors"
    shutil.copy(EMBEDDED, path)
    for steps in (1, 2, 3):
        fuse(*pair(), prior=path, preset="fast", steps=steps, device="cpu")
    fuse(*pair(), prior=path, preset="fast", steps=1, dtype="float16", device="cpu")
    priors = [fuser.prior for fuser in api._fusers.values()]
    assert priors[0] is priors[1] is priors[2] and priors[3].precision == "float16"


def test_options_of_one_call_do_not_stay_for_the_next():
    ir, vis = pair()
    settings = {"prior": load_prior(tanh_prior), "steps": 2, "device": "cpu"}
    default = fuse(ir, vis, **settings)
    other = fuse(ir, vis, seed=4, **settings)
    assert not np.array_equal(other, default)
    assert np.array_equal(fuse(ir, vis, **settings), default)
    rgb = np.stack([vis, ir, vis], 2)
    assert fuse(ir, rgb, color=False, **settings).shape[2] == 1
    assert fuse(ir, rgb, **settings).shape[2] == 3


def test_a_changed_file_is_loaded_again(tmp_path, loads):
    from ddfm_fast.priors.load import EMBEDDED

    path = tmp_path / "prior.safetensors"
    shutil.copy(EMBEDDED, path)
    ir, vis = pair()
    for _ in range(2):
        fuse(ir, vis, prior=path, **QUICK)
    assert len(loads) == 1
    os.utime(path, ns=(1, 1))
    fuse(ir, vis, prior=str(path), **QUICK)
    assert len(loads) == 2
    path.unlink()
    with pytest.raises(ValueError, match="there is no file or folder"):
        fuse(ir, vis, prior=path, **QUICK)


def test_an_environment_variable_that_changes_counts(loads, monkeypatch):
    ir, vis = pair()
    fuse(ir, vis, **QUICK)
    monkeypatch.setenv("DDFM_FAST_BACKEND", "torch")
    fuse(ir, vis, **QUICK)
    assert len(loads) == 2


def test_a_callable_is_taken_anew(loads):
    scale = [0.1]

    def prior(x, _t):
        return x * scale[0]

    ir, vis = pair()
    first = fuse(ir, vis, prior=prior, steps=2, device="cpu")
    scale[0] = 0.5
    assert not np.array_equal(fuse(ir, vis, prior=prior, steps=2, device="cpu"), first)
    assert len(loads) == 2


def test_few_are_kept_and_cleared():
    ir, vis = pair()
    prior = load_prior(tanh_prior)
    kept = []
    for n in range(KEPT_FUSERS + 2):
        fuse(ir, vis, prior=prior, steps=1, psi=n + 1.0, device="cpu")
        kept.append(weakref.ref(list(api._fusers.values())[-1]))
    gc.collect()
    assert [fuser() is not None for fuser in kept] == [False] * 2 + [True] * KEPT_FUSERS
    ddfm_fast.clear_cache()
    gc.collect()
    assert not any(fuser() for fuser in kept)


def test_a_count_is_not_a_truth():
    """1 and True are equal as keys: a kept fuser must not let True through as a count."""
    ir, vis = pair()
    prior = load_prior(tanh_prior)
    fuse(ir, vis, prior=prior, steps=1, device="cpu")
    with pytest.raises(TypeError, match="steps is a bool"):
        fuse(ir, vis, prior=prior, steps=True, device="cpu")


def test_threads_share_a_kept_fuser():
    ir, vis = pair()
    expected = [fuse(ir, vis, seed=n, **QUICK) for n in range(4)]
    got: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: fuse(ir, vis, seed=n, **QUICK)}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[n], expected[n]) for n in range(4))


# One list of options


def test_the_list_and_the_types_name_the_same_options():
    named = {*FuserOptions.__annotations__, *ReadingOptions.__annotations__}
    assert named == OPTIONS.keys()
    overrides = set(FuserOptions.__annotations__) & set(get_type_hints(FuseConfig))
    assert overrides >= {"variant", "sampler", "steps", "psi", "eta", "stretch"}
    assert all(option.help.endswith(".") for option in OPTIONS.values())


@pytest.mark.parametrize("what", [Fuser, fuse, Fuser.__call__])
def test_help_lists_the_options(what):
    text = inspect.getdoc(what)
    assert "OPTIONS" not in text and "READING" not in text
    names = ReadingOptions if what is Fuser.__call__ else FuserOptions
    for name in names.__annotations__:
        assert f"{name}: {OPTIONS[name].help[:20]}" in text


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="'devise' is not an option; did you mean 'device'"):
        fuse(*pair(), devise="cpu")
    with pytest.raises(TypeError, match="'zzz' is not an option; expected one of prior, preset"):
        Fuser(zzz=1)
    with pytest.raises(
        TypeError, match="'value_rage' is not an option; did you mean 'value_range'"
    ):
        Fuser(prior=tanh_prior, steps=1, device="cpu")(*pair(), value_rage=(0, 1))
