"""What ``--detect`` and ``--segment`` ask for: networks and labels, read before the scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .options import INPUT_OPTIONS, METHOD, option

if TYPE_CHECKING:
    import torch

    from ..datasets.items import PairItem
    from ..metrics.downstream import Detection, Segmentation

Detect = Annotated[
    str | None,
    option(
        METHOD,
        "Detect objects: ssdlite or fasterrcnn; NAME=FILE for your own weights (help metrics).",
        metavar="NETWORK",
    ),
]
Boxes = Annotated[
    Path | None,
    option(INPUT_OPTIONS, "Labels for --detect: a COCO JSON, or a folder of VOC or YOLO files."),
]
Segment = Annotated[
    str | None,
    option(METHOD, "Classify pixels: lraspp, or lraspp=FILE (help metrics).", metavar="NETWORK"),
]
Masks = Annotated[
    Path | None, option(INPUT_OPTIONS, "Labels for --segment: a folder of class-number images.")
]


def asked_tasks(
    items: Sequence[PairItem],
    device: torch.device,
    *,
    detect: str | None,
    boxes: Path | None,
    segment: str | None,
    masks: Path | None,
) -> Callable[..., None]:
    """Make what scores the tasks, of (evaluation, methods, keywords of ``score_tasks``).

    What this machine lacks turns a task off with a remark in the evaluation.

    Raises:
        ValueError: An option without the other that it needs, or one that cannot be read.
    """
    from ..metrics.networks import Absent

    tasks: list[Detection | Segmentation] = []
    off: list[str] = []
    for given, labels, names, prepare in (
        (detect, boxes, ("--detect", "--boxes"), _detection),
        (segment, masks, ("--segment", "--masks"), _segmentation),
    ):
        if given is None and labels is None:
            continue
        if given is None or labels is None:
            missing, there = names if given is None else names[::-1]
            raise ValueError(f"{there} is given and {missing} is not; give both, or neither")
        try:
            tasks.append(prepare(given, labels, items, device))
        except Absent as error:
            off.append(f"{names[0]} is off: {error}")

    def look(evaluation, methods, **how) -> None:
        from ..metrics.downstream import score_tasks

        evaluation.remarks += off
        score_tasks(evaluation, tasks, items, methods, **how)

    return look


def _detection(
    given: str, labels: Path, items: Sequence[PairItem], device: torch.device
) -> Detection:
    from ..metrics.downstream import Detection
    from ..metrics.labels import read_boxes
    from ..metrics.networks import load_network

    found = read_boxes(labels, items)
    return Detection(load_network(given, "detection", device), found)


def _segmentation(
    given: str, labels: Path, items: Sequence[PairItem], device: torch.device
) -> Segmentation:
    from ..metrics.downstream import Segmentation
    from ..metrics.labels import read_masks
    from ..metrics.networks import load_network

    found = read_masks(labels, items)
    return Segmentation(load_network(given, "segmentation", device), found)
