"""LPIPS and DISTS, by the packages of their authors; nothing is downloaded.

Both use a network of torchvision, whose weights must be where ``torch.hub`` keeps them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .conventions import Convention


class _Network(NamedTuple):
    package: str
    backbone: str
    """the file of torchvision's weights"""
    make: Callable[[], torch.nn.Module]
    scale: float
    """it takes values of 0..1 times this, plus ``shift``"""
    shift: float


def _lpips() -> torch.nn.Module:
    return import_module("lpips").LPIPS(net="alex", verbose=False)


def _dists() -> torch.nn.Module:
    return import_module("DISTS_pytorch").DISTS()


_NETWORKS = {
    "LPIPS": _Network("lpips", "alexnet-owt-7be5be79.pth", _lpips, 2.0, -1.0),
    "DISTS": _Network("DISTS_pytorch", "vgg16-397923af.pth", _dists, 1.0, 0.0),
}


def distance(planes: Tensor, _convention: Convention, *, name: str) -> Tensor:
    """Compute the distance of fused from each source, [N, 2], in float32; luma is used three times.

    Raises:
        ImportError: The package is missing.
        ValueError: The weights are missing.
    """
    network = _loaded(name, planes.device, torch.hub.get_dir())
    facts = _NETWORKS[name]
    color = (
        (planes.float() / 255 * facts.scale + facts.shift).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    )
    found = [network(color[:, 0], color[:, source]).reshape(-1).double() for source in (1, 2)]
    return torch.stack(found, 1)


LEARNED = {name: partial(distance, name=name) for name in _NETWORKS}


def require(names: Iterable[str]) -> None:
    """Refuse those of the named metrics that cannot be computed here, as `distance` would."""
    for name in names:
        if name in _NETWORKS:
            _loaded(name, torch.device("cpu"), torch.hub.get_dir())


@lru_cache(maxsize=4)
def _loaded(name: str, device: torch.device, hub: str) -> torch.nn.Module:
    facts = _NETWORKS[name]
    try:
        import_module(facts.package)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another PyTorch
        raise ImportError(
            f"{name} needs {facts.package}, which cannot be imported ({error}); "
            "pip install 'ddfm_fast[metrics]'"
        ) from error
    backbone = Path(hub) / "checkpoints" / facts.backbone
    if not backbone.is_file():
        raise ValueError(
            f"{name} needs the weights {backbone}, which are missing; download "
            f"https://download.pytorch.org/models/{facts.backbone} to that place, or leave "
            f"{name} out"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both packages use names that torchvision deprecates
        network = facts.make()
    return network.eval().requires_grad_(False).to(device)
