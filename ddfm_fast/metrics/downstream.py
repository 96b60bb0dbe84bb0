"""Fused pictures judged by their use: objects found in them, and pixels classified.

A small network of torchvision sees each method's pictures, and each source alone, and is scored
against labels. It is the same network for all, so that only the pictures differ.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from ..datasets.items import PairItem
from ..files.depth import Levels, read_sources
from ..files.paths import few
from ..files.reading import DEFAULT_MAX_PIXELS
from ..images.panel import to_rgb8
from .evaluation import Evaluation, MethodPictures, Results
from .inputs import to_luma
from .labels import IGNORED, Labels, Masks, Objects
from .networks import EXTRA, Absent, Network, plain_name
from .tasks import TaskScores

ALONE = ("visible alone", "infrared alone")
_PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Detection:
    """Objects found by a network, scored against boxes.

    Raises:
        Absent: pycocotools is missing.
        ValueError: Network and labels have no class in common, or it is unclear which.
    """

    network: Network
    labels: Labels

    def __post_init__(self) -> None:
        _evaluator()
        _shared_classes(self.network, self.labels.classes, self.labels.ordered, first=1)


@dataclass(frozen=True)
class Segmentation:
    """Pixel classes predicted by a network, scored against masks; ValueError as `Detection`."""

    network: Network
    masks: Masks

    def __post_init__(self) -> None:
        _mask_classes(self)


def score_tasks(
    evaluation: Evaluation,
    tasks: Sequence[Detection | Segmentation],
    items: Sequence[PairItem],
    methods: Sequence[MethodPictures],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    levels: Levels | None = None,
    progress: bool = False,
) -> None:
    """Score what networks find in the pictures of an evaluation, and add it to ``.tasks``.

    Of the evaluation's pairs those with labels count; rows are the methods, then both sources.

    Args:
        evaluation: From :func:`.evaluation.evaluate`, of the same items and methods.
        tasks: What the networks look for.
        items: The pairs.
        methods: The methods.
        max_pixels: Limit of an input file, see :func:`.files.reading.read_image`.
        levels: What the values of the sources mean, as in ``evaluate``.
        progress: Show a bar on stderr.
    """
    if not tasks:
        return
    looking = _Looking(evaluation, items, methods, max_pixels, levels, progress)
    for task in tasks:
        try:
            evaluation.tasks.append(
                _detection(task, looking)
                if isinstance(task, Detection)
                else _segmentation(task, looking)
            )
        except ValueError as error:
            evaluation.remarks.append(str(error))


@dataclass
class _Looking:
    """The pictures that networks see."""

    evaluation: Evaluation
    items: Sequence[PairItem]
    methods: Sequence[MethodPictures]
    max_pixels: int
    levels: Levels | None
    progress: bool

    def __post_init__(self) -> None:
        self.results = [Results(m, self.items) for m in self.methods]
        self.names = [*(m.name for m in self.methods), *ALONE]

    def pictures(self, labeled: Any, what: str) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yield each labeled pair with its pictures, uint8 [H, W, 3], by ``names``."""
        scored = set(self.evaluation.pairs)
        items = [item for item in self.items if item.name in scored and item.name in labeled]
        if self.progress:
            from tqdm.auto import tqdm

            items = tqdm(items, desc=what, unit="pair", leave=False)
        for item in items:
            found = read_sources(item.ir, item.vis, self.levels or Levels(), self.max_pixels)
            ir, vis = to_luma(found.ir), to_luma(found.vis)
            fused = [r.picture(item, ir, vis, self.max_pixels) for r in self.results]
            yield item.name, [to_rgb8(picture) for picture in (*fused, found.vis, found.ir)]

    def left_out(self, labeled: Any, failed: dict[str, str]) -> list[str]:
        """Say in sentences which pairs are not counted, and why."""
        bare = [pair for pair in self.evaluation.pairs if pair not in labeled]
        notes = [f"{len(bare)} pairs have no labels ({few(bare, 3)})"] if bare else []
        if failed:
            reasons = few([f"{pair} ({why})" for pair, why in failed.items()], 3, "; ")
            notes.append(f"{len(failed)} pairs do not fit their labels: {reasons}")
        return notes


def _at_once(pictures: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    height, width = pictures[0].shape[:2]
    size = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _shared_classes(
    network: Network, classes: Sequence[str], ordered: bool, first: int
) -> dict[str, int]:
    """Map the labels' classes that the network knows to its numbers; synonyms may share one.

    They match by name if the network's names are known, else by order, which the labels must then
    have. ``first`` is the network's number for the first class.
    """
    if network.classes is None:
        expected = network.outputs - first
        if not ordered or len(classes) != expected:
            why = f"{len(classes)} classes" if ordered else "no order of classes"
            raise ValueError(
                f"{network.name} tells {expected} classes apart and the labels have {why}; put a "
                "classes.txt beside them that names the network's, one a line and in its order"
            )
        return {name: n + first for n, name in enumerate(classes)}
    by_name = {plain_name(name): n for n, name in enumerate(network.classes) if n >= first}
    found = {name: by_name[key] for name in classes if (key := plain_name(name)) in by_name}
    if not found:
        raise ValueError(
            f"{network.name} knows none of the labels' classes {few(list(classes))}; give weights "
            "that were trained for them"
        )
    return found


# detection


def _evaluator() -> tuple[Any, Any]:
    try:
        return import_module("pycocotools.coco").COCO, import_module(
            "pycocotools.cocoeval"
        ).COCOeval
    except ImportError as error:
        raise Absent(
            f"detection needs pycocotools, which cannot be imported ({error}); {EXTRA}"
        ) from None


def _detection(task: Detection, looking: _Looking) -> TaskScores:
    network, labels = task.network, task.labels
    classes = _shared_classes(network, labels.classes, labels.ordered, first=1)
    truth: dict[str, Objects] = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in looking.names}
    failed: dict[str, str] = {}
    for pair, pictures in looking.pictures(labels.pairs, "detecting"):
        height, width = pictures[0].shape[:2]
        try:
            truth[pair] = labels.pairs[pair].within(width, height)
        except ValueError as error:
            failed[pair] = str(error)
            continue
        seen = [one for some in _at_once(pictures) for one in network.detect(some)]
        for name, one in zip(looking.names, seen, strict=True):
            found[name] += _as_coco(one, len(truth), classes)
    names = list(_first_names(classes).values())
    dataset = _ground_truth(list(truth.values()), classes)
    counted = [one for one in dataset["annotations"] if not one["iscrowd"]]
    if not counted:
        raise ValueError(f"detection is off: no labeled object of {few(names)} in the pairs scored")
    scores = {name: average_precision(dataset, boxes) for name, boxes in found.items()}
    notes = looking.left_out(labels.pairs, failed)
    if strange := [name for name in labels.classes if name not in classes]:
        notes.append(f"{network.name} does not know {few(strange)}, whose objects are left out")
    return TaskScores(
        "detection",
        network.name,
        f"{len(truth)} pairs with {len(counted)} objects of {few(names)}",
        {row: {"mAP50": s["mAP50"], "mAP": s["mAP"]} for row, s in scores.items()},
        {
            name: {row: s["classes"].get(name, math.nan) for row, s in scores.items()}
            for name in names
        },
        notes,
    )


def _first_names(classes: dict[str, int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, number in classes.items():
        found.setdefault(number, name)
    return found


def _as_coco(found: dict[str, Any], image: int, classes: dict[str, int]) -> list[dict[str, Any]]:
    """Convert what a network found in a picture to COCO's form, for the labels' classes only."""
    numbers = set(classes.values())
    boxes = found["boxes"].double().numpy()
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for box, label, score in zip(
            sides.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
        if label in numbers
    ]


def _ground_truth(truth: Sequence[Objects], classes: dict[str, int]) -> dict[str, Any]:
    """Convert labels to COCO's form; pictures are numbered from 1 in their order."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(truth, 1):
        for name, box, ignored in zip(*objects, strict=True):
            if name in classes:
                left, top, right, bottom = map(float, box)
                sides = [left, top, right - left, bottom - top]
                entry = {"id": len(annotations) + 1, "image_id": image, "bbox": sides}
                entry |= {"category_id": classes[name], "area": sides[2] * sides[3]}
                annotations.append({**entry, "iscrowd": int(ignored)})
    return {
        "images": [{"id": n + 1} for n in range(len(truth))],
        "categories": [
            {"id": number, "name": name} for number, name in _first_names(classes).items()
        ],
        "annotations": annotations,
    }


def average_precision(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute COCO's average precisions by pycocotools.

    Args:
        truth: Images, categories and annotations, as COCO's JSON has them.
        found: Boxes with image_id, category_id, bbox and score, as COCO's results have them.

    Returns:
        ``mAP50``, ``mAP`` (IoU .5 to .95), and ``classes``: the mAP of each class with objects.
    """
    coco, evaluator = _evaluator()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints everything it does
        known = coco()
        known.dataset = truth
        known.createIndex()
        if found:
            results = known.loadRes([dict(one) for one in found])
        else:
            results = coco()
            results.dataset = {**truth, "annotations": []}
            results.createIndex()
        run = evaluator(known, results, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    # [IoU, recall, class, area, most boxes]; −1 where a class has no objects
    by_class = run.eval["precision"][:, :, :, 0, -1].mean((0, 1))
    names = {one["id"]: one["name"] for one in truth["categories"]}
    classes = {
        names[number]: float(value)
        for number, value in zip(run.params.catIds, by_class, strict=True)
        if value > -1
    }
    return {"mAP50": float(run.stats[1]), "mAP": float(run.stats[0]), "classes": classes}


# segmentation


def _mask_classes(task: Segmentation) -> tuple[list[int], tuple[str, ...]]:
    """Return the network's class for each value of the masks, −1 for none, and their names."""
    network, named = task.network, task.masks.classes
    if not named:  # the masks have the network's own numbers
        own = network.classes or tuple(map(str, range(network.outputs)))
        return list(range(network.outputs)), own
    shared = _shared_classes(network, named, True, first=0)
    return [shared.get(name, -1) for name in named], named


def _segmentation(task: Segmentation, looking: _Looking) -> TaskScores:
    network, masks = task.network, task.masks
    values, names = _mask_classes(task)
    lookup = torch.full((256,), -1)
    lookup[: len(values)] = torch.tensor(values)
    lookup[IGNORED] = -1
    counts = torch.zeros(len(looking.names), network.outputs, network.outputs, dtype=torch.int64)
    failed: dict[str, str] = {}
    done = 0
    for pair, pictures in looking.pictures(masks.files, "segmenting"):
        try:
            mask = _fitting(masks, pair, pictures[0], len(values), looking.max_pixels)
        except ValueError as error:
            failed[pair] = str(error)
            continue
        truth = lookup[torch.from_numpy(mask).long()]
        told = torch.cat([network.segment(some).cpu() for some in _at_once(pictures)])
        for row, labels in enumerate(told):
            counts[row] += confusion(truth, labels, network.outputs)
        done += 1
    shown = _first_names(dict(zip(names, values, strict=True)))
    labeled = [number for number in shown if number >= 0 and counts[0, number].sum()]
    if not labeled:
        raise ValueError("segmentation is off: no pixel of a known class in the pairs scored")
    ratios = {row: intersections(counts[n]) for n, row in enumerate(looking.names)}
    notes = looking.left_out(masks.files, failed)
    if strange := [name for name, number in zip(names, values, strict=True) if number < 0]:
        notes.append(f"{network.name} does not know {few(strange)}, whose pixels are left out")
    return TaskScores(
        "segmentation",
        network.name,
        f"{done} pairs with {few([shown[n] for n in labeled])}",
        {row: {"mIoU": float(ious[labeled].mean())} for row, ious in ratios.items()},
        {shown[n]: {row: float(ious[n]) for row, ious in ratios.items()} for n in labeled},
        notes,
    )


def _fitting(
    masks: Masks, pair: str, picture: np.ndarray, known: int, max_pixels: int
) -> np.ndarray:
    mask = masks.read(pair, max_pixels)
    if mask.shape != picture.shape[:2]:
        raise ValueError(f"its mask is {mask.shape} and it is {picture.shape[:2]} (height, width)")
    highest = int(np.where(mask == IGNORED, 0, mask).max())
    if highest >= known:
        raise ValueError(
            f"its mask has the value {highest}; expected below {known}, or {IGNORED} for no class"
        )
    return mask


def confusion(truth: torch.Tensor, told: torch.Tensor, classes: int) -> torch.Tensor:
    """Count the pixels of each class (row) that were predicted to be of each class (column).

    Pixels whose class is negative in ``truth`` are left out.
    """
    valid = truth >= 0
    pairs = truth[valid] * classes + told[valid]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersections(counts: torch.Tensor) -> torch.Tensor:
    """Return each class's intersection over union, NaN for a class that is nowhere."""
    counts = counts.double()
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)
