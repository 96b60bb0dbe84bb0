"""The method for appleiphonedddd's benchmark, under a stand-in for its ``BaseMethod``.

The stand-in does what base/base_method.py of github.com/appleiphonedddd/
Infrared-and-visible-image-fusion-benchmark states: builds the model in ``__init__``, moves it to
the device, and ``fuse`` is preprocess, ``_fuse``, postprocess; ``main.py eval`` always calls
``load_checkpoint``, ``complexity`` calls the model on 1x1x256x256 and 1x3x256x256.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from ddfm_fast import DDFMWarning, fuse
from ddfm_fast.integrations.benchmark import fusion_method
from ddfm_fast.priors.checkpoint import save_unet
from ddfm_fast.priors.unet import UNet, UNetConfig


class BaseMethod(ABC):
    def __init__(self, device="cuda"):
        self.device = torch.device(device)
        self.model = self._build_model()
        self.model.to(self.device)
        self.model.eval()

    @abstractmethod
    def _build_model(self):
        """Return a module."""

    @abstractmethod
    def _fuse(self, ir, vi):
        """Return the model's result."""

    def load_checkpoint(self, path):
        raise AssertionError("would load a state dict")

    @torch.no_grad()
    def fuse(self, ir, vi):
        return self._fuse(ir.to(self.device), vi.to(self.device)).clamp(0.0, 1.0).cpu()

    @property
    def name(self):
        return type(self).__name__


def pair(size: int = 48):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(1, 1, size, size, generator=generator), torch.rand(
        1, 3, size, size, generator=generator
    )


def test_it_is_a_method_and_fuses():
    method = fusion_method(BaseMethod, preset="instant")(device="cpu")
    method.load_checkpoint("embedded")
    method.load_checkpoint(None)
    ir, vi = pair()
    fused = method.fuse(ir, vi)
    assert method.name == "DDFM" and fused.shape == (1, 3, 48, 48)
    assert torch.equal(fused, fuse(ir, vi, preset="instant", device="cpu", value_range=(0.0, 1.0)))


def test_the_lines_of_the_topic_register_it(monkeypatch):
    page = (ROOT / "ddfm_fast/docs/hosts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```$", page, re.M | re.S)
    (block,) = [block for block in blocks if "base_method" in block]
    registered = {}

    def register_method(name=None):
        return lambda kind: registered.setdefault(name, kind)

    theirs = ModuleType("base.base_method")
    theirs.BaseMethod, theirs.register_method = BaseMethod, register_method
    monkeypatch.setitem(sys.modules, "base", ModuleType("base"))
    monkeypatch.setitem(sys.modules, "base.base_method", theirs)
    exec(block, {})
    assert list(registered) == ["DDFM"] and issubclass(registered["DDFM"], BaseMethod)


def test_the_model_is_callable_as_complexity_calls_it():
    method = fusion_method(BaseMethod, preset="instant")(device="cpu")
    assert isinstance(method.model, torch.nn.Module)
    with torch.no_grad(), pytest.warns(DDFMWarning, match="the same picture"):
        result = method.model(torch.zeros(1, 1, 256, 256), torch.zeros(1, 3, 256, 256))
    assert result.shape == (1, 3, 256, 256)


def test_a_checkpoint_is_another_prior(tmp_path):
    config = UNetConfig(model_channels=32, num_res_blocks=1, attention_resolutions=())
    torch.manual_seed(0)
    save_unet(tmp_path / "other.safetensors", UNet(config))
    method = fusion_method(BaseMethod, steps=2)(device="cpu")
    before = method.model.fuser.prior
    method.load_checkpoint(tmp_path / "other.safetensors")
    assert method.model.fuser.prior is not before
    assert method.model.fuser.prior.unet.config == config
    with pytest.raises((ValueError, OSError), match="missing"):
        method.load_checkpoint(tmp_path / "missing.pt")


def test_the_device_is_the_benchmarks():
    with pytest.raises(ValueError, match="device is the benchmark's"):
        fusion_method(BaseMethod, device="cpu")
