"""Public fusion networks, each run from a clone of its own repository that the user has made.

No code of theirs is shipped or copied: an adapter imports the network from the given folder, loads
the weights that are there, and scales inputs and outputs as the authors' test script does (without
its rounding to 8 bits). It runs their code, so give it folders that you trust.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

Plane = np.ndarray
Method = Callable[[Plane, Plane], Plane]
"""lumas of infrared and visible, float32 [H, W] in [0, 1] → the fused luma, the same"""


class Peer(NamedTuple):
    """Where a network is published, and how its clone becomes a method."""

    repository: str
    load: Callable[[Path], Method]


class Hollow(ModuleType):
    """Stands for a module that their code imports but does not need: every name in it is None.

    A package keeps its folder, so that its modules can be imported without its ``__init__``.
    """

    def __init__(self, name: str, folder: Path):
        super().__init__(name)
        self.__path__ = [str(folder.joinpath(*name.split(".")))]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def imports_from(folder: Path, *hollow: str) -> Iterator[None]:
    """Let imports find ``folder`` first; afterwards nothing of it is left in ``sys``.

    Modules of ours with names that the folder also has are set aside meanwhile. ``hollow``: modules
    that are imported there but not needed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.name!r} in the clone")
    theirs = {path.stem for path in folder.iterdir()} | {name.partition(".")[0] for name in hollow}
    hidden = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in theirs}
    for name in hidden:
        del sys.modules[name]
    path, writes = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    for name in hollow:  # parents first
        parent, _, child = name.rpartition(".")
        sys.modules[name] = Hollow(name, folder)
        if parent in hollow:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they concern their code
            yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes
        for name in [name for name in sys.modules if name.partition(".")[0] in theirs]:
            del sys.modules[name]
        sys.modules.update(hidden)
        importlib.invalidate_caches()


def weights(network: nn.Module, path: Path, key: str | None = None) -> nn.Module:
    """Load a state dict as data, never as code; return the network, ready to be called."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights {path.name!r} in the clone")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state[key] if key else state)
    return network.eval().requires_grad_(False)


def method(call: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """Turn a function of planes [1, 1, H, W] into a method."""

    def fused(ir: Plane, vis: Plane) -> Plane:
        planes = (torch.from_numpy(np.ascontiguousarray(p))[None, None] for p in (ir, vis))
        with torch.inference_mode():
            return call(*planes).clamp(0, 1)[0, 0].numpy()

    return fused


def full_range(plane: Tensor) -> Tensor:
    """Stretch to 0..1, like scripts that save by SciPy's old ``imsave`` or similar."""
    low, high = plane.aminmax()
    return (plane - low) / (high - low).clamp(min=1e-5)


def ifcnn(folder: Path) -> Method:
    """Make IFCNN-MAX, on three equal channels; its first layer is in the weights, no ResNet needed.

    It follows ``Code/IFCNN_Main.py``, which gives the pictures in ``Code/results`` to the byte;
    those in ``Results`` come from inputs normalized by ImageNet's mean and deviation.
    """
    with imports_from(folder / "Code", "torchvision", "torchvision.models"):
        kind = importlib.import_module("model").IFCNN
    resnet = nn.Module()
    resnet.conv1 = nn.Conv2d(3, 64, 7, 2, bias=False)
    network = weights(kind(resnet, 0), folder / "Code/snapshots/IFCNN-MAX.pth")
    gray = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)

    def call(ir: Tensor, vis: Tensor) -> Tensor:
        out = network(*(p.repeat(1, 3, 1, 1) for p in (vis, ir)))
        return (out.clamp(0, 1) * gray).sum(1, keepdim=True)

    return method(call)


def mmdrfuse(folder: Path) -> Method:
    """Make MMDRFuse's student, whose script stretches what it saves."""
    with imports_from(folder):
        network = importlib.import_module("student_net").stu_net(2, 1)
    weights(network, folder / "pretrained_models/student.model")
    return method(
        lambda ir, vis: full_range(network.decoder(network.encoder(torch.cat([ir, vis], 1)))[0])
    )


def sage(folder: Path) -> Method:
    """Make SAGE's small network, distilled."""
    with imports_from(folder):
        network = importlib.import_module("model_sub.model").Network()
    weights(network, folder / "checkpoints/checkpoints.pt")
    return method(lambda ir, vis: network(vis, ir)[0])


def ship(folder: Path) -> Method:
    """Make SHIP; needs the package einops."""
    unused = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    packages = ("basicsr", "basicsr.archs", "basicsr.utils", "basicsr.archs.arch_util")
    with imports_from(folder, *unused, *packages):
        arch = importlib.import_module("basicsr.archs.highOrderInteractionFusion_arch")
        network = arch.highOrderInteractionFusion(1, 1, 16)
    weights(network, folder / "pretrained_model/SHIP_model.pth", "params")

    def call(ir: Tensor, vis: Tensor) -> Tensor:
        with patch.object(Tensor, "cuda", lambda plane: plane):  # its layers ask for a GPU
            return network(vis, ir)

    return method(call)


def densefuse(folder: Path) -> Method:
    """Make DenseFuse, gray, by the strategy "addition", on values of 0..255."""
    with imports_from(folder):
        network = importlib.import_module("net").DenseFuse_net(1, 1)
    weights(network, folder / "models/densefuse_gray.model")

    def call(ir: Tensor, vis: Tensor) -> Tensor:
        features = network.fusion(network.encoder(255 * ir), network.encoder(255 * vis))
        return network.decoder(features)[0] / 255

    return method(call)


def lrrnet(folder: Path) -> Method:
    """Make LRRNet with four blocks; its script stretches the sources and the result."""
    with imports_from(folder):
        network = importlib.import_module("net_lista").LRR_NET(3, 128, 1, 1, 4, "cat")
    name = "final_lrr_net_lam2_1.5_wir_3.0_lam3_gram_2000_epoch_4_block_4.model"
    weights(network, folder / "model" / name)
    return method(lambda ir, vis: full_range(network(full_range(ir), full_range(vis))["fuse"]))


PEERS: dict[str, Peer] = {
    "ifcnn": Peer("https://github.com/uzeful/IFCNN", ifcnn),
    "mmdrfuse": Peer("https://github.com/yanglinDeng/MMDRFuse", mmdrfuse),
    "sage": Peer("https://github.com/RollingPlain/SAGE_IVIF", sage),
    "ship": Peer("https://github.com/zheng980629/SHIP", ship),
    "densefuse": Peer("https://github.com/hli1221/densefuse-pytorch", densefuse),
    "lrrnet": Peer("https://github.com/hli1221/imagefusion-LRRNet", lrrnet),
}
"""peers by their name in ``--peer NAME=FOLDER``"""
