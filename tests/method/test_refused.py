"""Arguments of ``fuse``, ``Fuser`` and their parts that cannot be: refused by name, with a fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ddfm_fast import FuseConfig, Fuser, fuse
from ddfm_fast.priors.load import load_prior
from ddfm_fast.video import fuse_streams

VIS = (np.random.default_rng(0).random((32, 40)) * 255).astype(np.uint8)
IR = VIS[::-1].copy()


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    return Fuser(preset="instant", device="cpu")


SHAPES = [
    ([(16, 16)], "at least one image of 32x32"),
    ([(float("inf"), 64)], "shapes has .inf"),
    ([(64.5, 64)], "shapes has .64.5"),
    ((64, 64), "shapes has 64; expected"),
    ([(10**9, 10**9)], "shapes has .10{9}, 10{9}.; expected at most"),
    ([(10**30, 64)], "expected at most 2,147,483,648 pixels"),
    (None, "shapes is a NoneType; expected a list"),
    (5, "shapes is a int"),
]


@pytest.mark.parametrize("shapes, words", SHAPES, ids=lambda value: str(value)[:20])
def test_warmup(shapes, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Fuser(preset="official-script", device="cpu").warmup(shapes)


CONFIGS = [
    ({"crop_multiple": 16.0}, "crop_multiple is 16.0; expected an int, 1 to 1024"),
    ({"draws": 2.0}, "draws is 2.0; expected an int"),
    ({"update_scales": "no"}, "update_scales is 'no'; expected True or False"),
    ({"color": "no"}, "color is 'no'"),
    ({"swap_sources": 1}, "swap_sources is 1"),
    ({"round_luma": None}, "round_luma is None"),
    ({"psi": "a"}, "psi is a str"),
    ({"psi": 10**400}, "psi is inf; expected"),
    ({"psi": -(10**4000)}, "psi is -inf; expected"),
    ({"denoise": 10**400}, "denoise is inf; expected"),
    ({"variant": []}, r"variant is \[\]"),
]


@pytest.mark.parametrize("fields, words", CONFIGS, ids=str)
def test_config(fields, words):
    with pytest.raises((ValueError, TypeError), match=words):
        FuseConfig(**fields)


HUGE = [
    (lambda: fuse(IR, VIS, value_range=(0, 10**400), device="cpu"), "value_range: got"),
    (lambda: Fuser(seed=10**5000), "seed is an int of 16610 bits"),
    (lambda: Fuser(device="meta"), "device is .meta., which holds no data"),
    (lambda: list(Fuser(preset="instant", device="cpu").stream([], preset=[])), "preset is"),
]


@pytest.mark.parametrize("call, words", HUGE, ids=[words[:8] for _, words in HUGE])
def test_numbers_and_names_beyond_all_bounds(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_of_numpy_are_numbers():
    assert FuseConfig(psi=np.float32(0.5), denoise=np.float32(12)).denoise == 12
    assert FuseConfig(denoise={"ir": np.int64(3)}).noise_levels["ir"] == 3
    made = Fuser(preset="instant", device="cpu", seed=np.int64(3), batch_size=np.int64(2))
    assert made.seed == 3 and made.batch_size == 2


OPTIONS = [
    ({"compile": "x"}, "compile is 'x'; expected True or False"),
    ({"progress": "x"}, "progress is 'x'"),
    ({"seed": torch.tensor([1, 2])}, "seed is a Tensor; expected an int"),
    ({"seed": torch.tensor(1.5)}, "seed is a Tensor"),
    ({"seed": 1.0}, "seed is a float"),
    ({"dtype": []}, "dtype: "),
    ({"method": 5}, "method is 5"),
    ({"batch_size": 1.5}, "batch_size is 1.5"),
]


@pytest.mark.parametrize("options, words", OPTIONS, ids=str)
def test_options(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Fuser(**{"preset": "instant", "device": "cpu", **options})


CALLS = [
    ({"callback": 5}, "callback is 5; expected a function that takes a StepInfo"),
    ({"report": 5}, "report is a int; expected a list"),
    ({"progress": "x"}, "progress is 'x'"),
    ({"seed": torch.tensor([1, 2])}, "seed is a Tensor"),
]


@pytest.mark.parametrize("options, words", CALLS, ids=str)
def test_calls(options, words, fuser):
    with pytest.raises((ValueError, TypeError), match=words):
        fuser(IR, VIS, **options)


ITEMS = [
    ([IR], "item 0 is a ndarray; expected .ir, vis"),
    ([(IR, VIS), (IR,)], "item 1 is a tuple of 1"),
    ([(IR, VIS, VIS)], "item 0 is a tuple of 3"),
    ([None], "item 0 is a NoneType"),
    (["ab"], "item 0 is a str"),
    (5, "pairs is a int; expected an iterable"),
]


@pytest.mark.parametrize("pairs, words", ITEMS, ids=lambda value: str(value)[:12])
def test_streams(pairs, words, fuser):
    with pytest.raises(TypeError, match=words):
        list(fuser.stream(pairs))
    words = words.replace("pairs is", r"streams\[0\] is")
    with pytest.raises(TypeError, match=words):
        list(fuse_streams(fuser, [pairs]))


@pytest.mark.parametrize("timesteps", [2, 20])
def test_betas_that_reach_one_are_refused(timesteps):
    with pytest.raises(ValueError, match=f"num_train_timesteps is {timesteps}; expected at least"):
        load_prior(lambda x, _: x * 0, config={"num_train_timesteps": timesteps})


def test_a_callable_that_writes_into_its_x_changes_nothing():
    def in_place(x, _t):
        return x.mul_(0)

    in_place.multiple = 1
    pure = lambda x, _t: x * 0  # noqa: E731
    pure.multiple = 1
    results = [
        fuse(IR, VIS, prior=prior, preset="official", steps=3, device="cpu")
        for prior in (in_place, pure)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("image", [IR, torch.from_numpy(IR)], ids=["numpy", "torch"])
def test_images_under_a_fake_mode(fuser, image):
    with FakeTensorMode(), pytest.raises(TypeError, match="ir: became a tensor without data"):
        fuser(image, image)
