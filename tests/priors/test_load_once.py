"""Loading a checkpoint makes its network once, without initializing what the file then replaces."""

from __future__ import annotations

import pytest
import torch
from networks import SMALL, option_grid, option_id, random_unet
from torch.utils._python_dispatch import TorchDispatchMode

from ddfm_fast.priors.checkpoint import build_unet, load_checkpoint, save_unet
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.network import optimized
from ddfm_fast.priors.unet import UNet
from ddfm_fast.priors.unet_config import UNetConfig

CPU = torch.device("cpu")
FILLS = {"uniform_", "zero_", "fill_", "normal_"}


class Operators(TorchDispatchMode):
    """The names of operators, in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def test_a_network_of_given_tensors_is_not_initialized():
    unet = random_unet(SMALL)
    with Operators() as seen:
        built = build_unet(unet.config, dict(unet.state_dict()))
    assert "empty" in seen.names  # they were seen
    assert not FILLS & set(seen.names)
    with Operators() as seen:
        UNet(unet.config)
    assert set(seen.names) & FILLS, "a network to train is initialized"
    for name, value in unet.state_dict().items():
        assert built.state_dict()[name].data_ptr() == value.data_ptr()


def test_a_missing_tensor_is_never_left_without_a_value():
    unet = random_unet(SMALL)
    tensors = dict(unet.state_dict())
    del tensors["out.2.bias"]
    with pytest.raises(ValueError, match="1 missing: out.2.bias"):
        build_unet(unet.config, tensors)


def test_a_file_makes_one_network(tmp_path, monkeypatch):
    path = save_unet(tmp_path / "small.safetensors", random_unet(SMALL))
    made, make = [], UNet.__init__

    def counted(self, config):
        made.append(config)
        make(self, config)

    monkeypatch.setattr(UNet, "__init__", counted)
    load_prior(path)
    assert made == [UNetConfig.from_dict(SMALL)]


@pytest.mark.filterwarnings("ignore:dtype. this CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", option_grid(), ids=option_id)
def test_it_is_laid_out_as_a_copy_would_be(tmp_path, config, dtype):
    path = save_unet(tmp_path / "one.safetensors", random_unet(config))
    copy = optimized(load_checkpoint(path)[0], CPU, dtype)
    loaded = load_prior(path, dtype=dtype).unet
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    one, other = (
        dict([*unet.named_parameters(), *unet.named_buffers()]) for unet in (loaded, copy)
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert value.stride() == other[name].stride(), name


@pytest.mark.filterwarnings("ignore:dtype. this CPU")
def test_weights_beyond_bfloat16_are_refused(tmp_path):
    unet = random_unet(SMALL)
    with torch.no_grad():
        unet.output_conv.bias[0] = 3.4e38
    path = save_unet(tmp_path / "large.safetensors", unet)
    with pytest.raises(ValueError, match="cannot hold the weights of out.2.bias; use float32"):
        load_prior(path, dtype="bfloat16")


def test_a_device_of_the_program_changes_nothing(tmp_path):
    path = save_unet(tmp_path / "small.safetensors", random_unet(SMALL))
    with torch.device("meta"):
        prior = load_prior(path)
    with torch.inference_mode():
        other = load_prior(path)
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    assert torch.equal(prior(x, 500), other(x, 500))
