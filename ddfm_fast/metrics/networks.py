"""Small networks of torchvision that detect objects or segment; nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..priors.state_dict import WEIGHTS, check_finite, read_tensors

EXTRA = "pip install 'ddfm_fast[detect]'"


class Known(NamedTuple):
    """A network that torchvision has."""

    task: str
    builder: str
    enum: str
    """where its published weights are described"""
    head: str
    """a weight whose first dimension is the number of classes times ``share``"""
    share: int


KNOWN = {
    "ssdlite": Known(
        "detection",
        "ssdlite320_mobilenet_v3_large",
        "SSDLite320_MobileNet_V3_Large_Weights",
        "head.classification_head.module_list.0.1.weight",
        6,  # boxes at each place
    ),
    "fasterrcnn": Known(
        "detection",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "FasterRCNN_MobileNet_V3_Large_FPN_Weights",
        "roi_heads.box_predictor.cls_score.weight",
        1,
    ),
    "lraspp": Known(
        "segmentation",
        "lraspp_mobilenet_v3_large",
        "LRASPP_MobileNet_V3_Large_Weights",
        "classifier.low_classifier.weight",
        1,
    ),
}


class Absent(Exception):
    """A package or published weights are missing; the message says how to get them."""


class Network(NamedTuple):
    """A network with its weights."""

    name: str
    """of the network, and of the user's own file if there is one"""
    module: Any
    classes: tuple[str, ...] | None
    """classes that it distinguishes, the background first; None if only their number is known"""
    outputs: int
    """how many classes it distinguishes, with the background"""
    transform: Any
    """how the published weights of a segmentation want a picture prepared"""
    device: torch.device

    @torch.inference_mode()
    def detect(self, pictures: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
        """Find ``boxes``, ``labels`` and ``scores`` in each of some uint8 [H, W, 3] pictures."""
        given = [self._tensor(picture).float() / 255 for picture in pictures]
        return [{k: v.cpu() for k, v in found.items()} for found in self.module(given)]

    @torch.inference_mode()
    def segment(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Classify every pixel, int64 [N, H, W], of some uint8 [H, W, 3] pictures."""
        given = self.transform(torch.stack([self._tensor(picture) for picture in pictures]))
        logits = self.module(given)["out"]
        size = pictures[0].shape[:2]
        return torch.nn.functional.interpolate(
            logits, size, mode="bilinear", align_corners=False
        ).argmax(1)

    def _tensor(self, picture: np.ndarray) -> Tensor:
        return torch.tensor(picture, device=self.device).permute(2, 0, 1)


def load_network(text: str, task: str, device: str | torch.device = "cpu") -> Network:
    """Load ``NAME``, with the published weights in the cache of torch.hub, or ``NAME=FILE``.

    Args:
        text: A key of `KNOWN`, and maybe the file of one's own weights: a state dict as torch.save
            or safetensors write it, with any number of classes.
        task: "detection" or "segmentation".
        device: Where it works.

    Raises:
        ValueError: There is no such network for the task, or the file does not hold its weights.
        Absent: torchvision or the published weights are missing.
    """
    name, separator, given = text.partition("=")
    names = [key for key, known in KNOWN.items() if known.task == task]
    if name not in names or (separator and not given):
        raise ValueError(
            f"the network of {task} is {text!r}; expected {' or '.join(names)}, or such as "
            f"{names[0]}=weights.pth"
        )
    known = KNOWN[name]
    if given and not Path(given).is_file():
        raise ValueError(f"the weights of {text!r} are no file; give the path of a state dict")
    models = _models(task)
    described = _described(models, known)
    path = Path(given) if given else _published(task, described.url)
    tensors = _tensors(path)
    if (head := tensors.get(known.head)) is None:
        raise ValueError(
            f"{path} has no {known.head}; expected the weights of torchvision's {known.builder}"
        )
    count = head.shape[0] // known.share
    module = models.get_model(known.builder, weights=None, weights_backbone=None, num_classes=count)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit torchvision's {known.builder}: {_first_lines(error)}"
        ) from None
    classes = tuple(described.meta["categories"])
    return Network(
        f"{known.builder} ({path.name})" if given else known.builder,
        module.eval().requires_grad_(False).to(device),
        classes if len(classes) == count else None,
        count,
        described.transforms(),
        torch.device(device),
    )


def _models(task: str) -> Any:
    try:
        return import_module("torchvision.models")
    except (ImportError, RuntimeError, AttributeError) as error:  # built for another PyTorch
        raise Absent(
            f"{task} needs torchvision, which cannot be imported ({_first_lines(error, 1)}); "
            f"{EXTRA}"
        ) from None


def _described(models: Any, known: Known) -> Any:
    return getattr(getattr(models, known.task), known.enum).DEFAULT


def _published(task: str, url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise Absent(
            f"{task} needs the weights {path}, which are not there; fetch {url} to that place, or "
            "name a file of your own after ="
        )
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    counters = (torch.int64,)  # of batches, in norms
    try:
        tensors = read_tensors(path, dtypes=(*WEIGHTS, *counters))[0]
        check_finite(path, tensors)
    except ValueError as error:
        raise ValueError(f"weights: {str(error).removeprefix('prior: ')}") from None
    return tensors


def _first_lines(error: Exception, count: int = 3) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:count])[:300]


_SAME = (
    ("person", "people", "pedestrian", "human"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike", "motor"),
    ("background", "unlabeled"),
    ("airplane", "aeroplane"),
    ("couch", "sofa"),
    ("tv", "tvmonitor"),
)
"""names of one class in COCO, VOC and the data sets of the field"""


def plain_name(name: str) -> str:
    """Normalize the name of a class, so that spelling and synonyms make no difference."""
    bare = re.sub(r"[\s_\-]", "", name.lower()).replace("ll", "l")  # British and American
    return next((same[0] for same in _SAME if bare in same), bare)
