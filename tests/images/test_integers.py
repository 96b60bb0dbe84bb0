"""NumPy's integers are integers wherever Python's are, and bools are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import SMALL

from ddfm_fast import FuseConfig, Fuser
from ddfm_fast.datasets.targets import check_counts
from ddfm_fast.files.writing import check_options
from ddfm_fast.images.integers import as_count, as_int
from ddfm_fast.images.planes import pad_to_multiple
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.tiled import tiled
from ddfm_fast.priors.unet_config import UNetConfig
from ddfm_fast.priors.wrapped import wrap
from ddfm_fast.schedule import make_betas, respace
from ddfm_fast.video.temporal import VIDEO_PRESETS, VideoPreset


def identity(x, t):
    del t
    return x


TAKEN = {
    "reuse": (2, lambda n: FuseConfig(reuse=n).reuse),
    "draws": (2, lambda n: FuseConfig(draws=n).draws),
    "crop_multiple": (8, lambda n: FuseConfig(crop_multiple=n).crop_multiple),
    "steps": (5, lambda n: FuseConfig(steps=n).steps),
    "start": (20, lambda n: FuseConfig(start=n).start),
    "tile": (128, lambda n: tiled(load_prior(identity), n).tile),
    "batch_size": (2, lambda n: Fuser(preset="instant", device="cpu", batch_size=n).batch_size),
    "seed": (7, lambda n: Fuser(preset="instant", device="cpu", seed=n).seed),
    "num_train_timesteps": (
        500, lambda n: load_prior(identity, {"num_train_timesteps": n}).num_train_timesteps),
    "multiple": (8, lambda n: load_prior(identity, {"multiple": n}).multiple),
    "channels": (1, lambda n: wrap(identity, "v", channels=n).channels),
    "model_channels": (
        32, lambda n: UNetConfig.from_dict({**SMALL, "model_channels": n}).model_channels),
    "num_heads_upsample": (
        2, lambda n: UNetConfig.from_dict({**SMALL, "num_heads_upsample": n}).num_heads_upsample),
    "channel_mult": (
        2, lambda n: UNetConfig.from_dict({**SMALL, "channel_mult": [1, n]}).channel_mult[1]),
    "betas": (400, lambda n: len(make_betas("linear", n))),
    "respaced": (4, lambda n: len(respace(1000, n))),
    "settle": (1, lambda n: VideoPreset("", VIDEO_PRESETS["exact"].config, settle=n).settle),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_integers_of_numpy_become_plain_ones(name):
    value, take = TAKEN[name]
    for kind in (np.int64, np.uint16, np.int32):
        found = take(kind(value))
        assert found == value and type(found) is int


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("value", [True, np.True_, 2.5])
def test_bools_and_fractions_are_refused(name, value):
    if (name, value) == ("channel_mult", 2.5):
        return  # a multiplier that a network can have
    with pytest.raises((ValueError, TypeError)):
        TAKEN[name][1](value)


@pytest.mark.parametrize(
    "take",
    [
        lambda n: check_counts(limit=n),
        lambda n: check_options(quality=n),
        lambda n: check_options(compression=n, suffix=".png"),
        lambda n: pad_to_multiple(torch.zeros(1, 1, 4, 4), n),
    ],
    ids=["limit", "quality", "compression", "multiple of padding"],
)
def test_checks_take_integers_of_numpy_and_refuse_bools(take):
    take(np.int64(4))
    for value in (True, np.True_, 4.0):
        with pytest.raises((ValueError, TypeError)):
            take(value)


def test_what_counts_as_an_integer_or_a_count():
    assert [as_int(v) for v in (3, np.uint8(3), True, np.True_, 3.0, "3", None)] == [
        3, 3, None, None, None, None, None,
    ]  # fmt: skip
    assert [as_count(v, 1, 3) for v in (0, 1, np.int64(3), 4)] == [None, 1, 3, None]
    assert as_count(10**30, 1) == 10**30
