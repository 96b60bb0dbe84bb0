"""Modes that the program has switched on around a call do not affect it."""

import pytest
import torch

from ddfm_fast import FuseConfig, Fuser
from ddfm_fast.priors import load
from ddfm_fast.runtime import apart, machine


@pytest.fixture
def images():
    y, x = torch.meshgrid(torch.arange(48) / 9, torch.arange(64) / 7, indexing="ij")
    return torch.sin(x) / 2 + 0.5, torch.cos(y * x / 5) / 2 + 0.5


@pytest.mark.parametrize(
    "settings", [dict(preset="fast", denoise=20), dict(preset="official", steps=2)]
)
def test_autocast_of_the_program_changes_nothing(images, settings):
    fuser = Fuser(device="cpu", **settings)
    wanted = fuser(*images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fuser(*images), wanted)
        assert torch.is_autocast_enabled("cpu")


def test_autocast_changes_no_video(images):
    fuser = Fuser(preset="fast", denoise=20, device="cpu")
    frames = [tuple(image.roll(n, 1) for image in images) for n in range(2)]
    wanted = list(fuser.stream(frames, preset="balanced"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = list(fuser.stream(frames, preset="balanced"))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.fixture
def elsewhere():
    """New tensors of the program are on another device: here one without data."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "settings",
    [
        dict(preset="instant"),
        dict(preset="fast", denoise=20),
        dict(preset="paper", steps=2),
        dict(prior="embedded-gray", denoise=20),
    ],
    ids=str,
)
def test_the_default_device_of_the_program_changes_nothing(
    images, settings, elsewhere, monkeypatch
):
    wanted = Fuser(device="cpu", **settings)(*images)
    monkeypatch.setattr(load, "_embedded", load._embedded.__wrapped__)  # loaded again
    elsewhere()
    fuser = Fuser(device="cpu", **settings)
    assert torch.equal(fuser(*images), wanted)
    (streamed,) = fuser.stream([images])
    assert streamed.shape == wanted.shape and streamed.device.type == "cpu"
    assert torch.zeros(1).device.type == "meta"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_gradients_change_nothing(images, mode):
    config = FuseConfig(steps=2)
    wanted = Fuser(preset=config, device="cpu")(*images)
    with mode():
        fuser = Fuser(preset=config, device="cpu")
        inside = fuser(*images)
    outside = fuser(*images)
    assert torch.equal(inside, wanted) and torch.equal(outside, wanted)
    weight = torch.ones(2, requires_grad=True)
    (outside.mean() * weight).sum().backward()


def test_a_process_forked_from_one_with_cuda_is_told_so(monkeypatch):
    monkeypatch.setattr(machine, "_cuda", {"used": True, "lost": True})
    with pytest.raises(RuntimeError, match="forked from one that uses CUDA.*spawn"):
        apart.refuse_where_impossible(torch.device("cuda", 0))
    Fuser(preset="fast", device="cpu")
