"""Fused folders scored against their sources, several methods side by side, as one table.

A single metric is easily gamed: a copy of one source has a high VIF, MI and Qabf. So every table
has SCD, CC and the worse source's VIF, MI and SSIM besides the six of the paper, and a method whose
pictures are nearly one of their sources is named in a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.items import PairItem
from ..files.depth import Levels, read_sources
from ..files.paths import READ_SUFFIXES, few, image_files
from ..files.reading import DEFAULT_MAX_PIXELS, read_image
from ..images.doubts import about
from ..method import BASELINES
from .conventions import CONVENTIONS, DEFAULT, NAMES
from .guard import near_copy
from .inputs import to_luma
from .learned import require
from .scores import compute
from .tasks import COLUMNS, TaskScores

CORE = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM", "SCD", "CC")
GUARDS = ("VIF_min", "MI_min", "SSIM_min")
"""scores against the worse of the two sources: a copy of one source cannot hide here"""
SOURCES = {"ir": "first (infrared)", "vis": "second (visible)"}

_PIXELS_AT_ONCE = 2**21

PAPER_CONVENTION = "cddfuse"
PAPER_COLUMNS = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM")
PAPER = {
    "MSRS": (6.88, 40.75, 2.35, 0.81, 0.58, 0.94),
    "RoadScene": (7.41, 52.61, 2.35, 0.75, 0.65, 0.98),
    "M3FD": (6.86, 38.95, 2.52, 0.80, 0.49, 0.95),
    "TNO": (7.06, 51.42, 2.21, 0.81, 0.49, 0.95),
    "Harvard": (4.64, 63.11, 1.99, 0.76, 0.60, 1.41),
}
"""the DDFM rows of the ICCV 2023 paper's tables, by data set"""
PUBLIC_CODE = {"RoadScene": (7.19, 40.95, 1.97, 0.57, 0.47, 0.98)}
"""the authors' public code on the same pairs, as its users measured it (MMIF-DDFM, issue 17)"""
PAPER_NOTE = (
    "rows of the paper are as printed; the authors' public code does not reproduce them "
    "(RoadScene, 221 pairs: EN 7.19, SD 40.95, MI 1.97, VIF 0.57, Qabf 0.47, SSIM 0.98)"
)


@dataclass(frozen=True)
class MethodPictures:
    """A row of the table: a folder of fused pictures or, without one, the baseline of that name."""

    name: str
    folder: Path | None = None
    about: str = ""
    """what it is, in a few words, if the name alone does not say it"""


@dataclass
class MethodScores:
    """What one method scored: ``values`` holds a float64 array over ``Evaluation.pairs`` each."""

    name: str
    folder: str | None
    values: dict[str, NDArray[np.float64]]
    near_copies: dict[str, str]
    """pairs whose result is nearly one of its sources → "ir" or "vis" """
    about: str = ""

    def mean(self, name: str) -> float:
        return float(np.mean(self.values[name]))

    def std(self, name: str) -> float:
        """Population standard deviation over the pairs."""
        with np.errstate(invalid="ignore"):
            return float(np.std(self.values[name]))


@dataclass
class Evaluation:
    """Scores of several methods over the same pairs."""

    convention: str
    """a key of ``CONVENTIONS``"""
    pairs: list[str]
    """pairs for which every method has a result, in order: all means are over these"""
    methods: list[MethodScores]
    failures: dict[str, str] = field(default_factory=dict)
    """pair → why it was left out, for every method alike"""
    paper: str | None = None
    """the data set of the paper's table to print beside"""
    remarks: list[str] = field(default_factory=list)
    """further warnings, sentences without a full stop"""
    tasks: list[TaskScores] = field(default_factory=list)
    """what networks found in the pictures, from :func:`.downstream.score_tasks`"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns: the core, the guards, then whatever else was computed of NAMES."""
        found = self.methods[0].values
        extra = (n for n in NAMES if n not in CORE)
        return tuple(n for n in (*CORE, *GUARDS, *extra) if n in found)

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that a reader of the table must know."""
        lines = [*self.remarks, *(f"{t.task}: {note}" for t in self.tasks for note in t.notes)]
        for method in self.methods:
            for source, label in SOURCES.items():
                pairs = [p for p, s in method.near_copies.items() if s == source]
                if pairs:
                    lines.append(
                        f"{method.name}: {len(pairs)} of {len(self.pairs)} results are nearly a "
                        f"copy of the {label} source ({few(pairs, 3)}); high VIF, MI and Qabf "
                        "mean nothing there"
                    )
        if self.failures:
            total = len(self.pairs) + len(self.failures)
            lines.append(
                f"{len(self.failures)} of {total} pairs are left out of every row: "
                + few([f"{pair} ({why})" for pair, why in self.failures.items()], 3, "; ")
            )
        if self.paper and self.convention != PAPER_CONVENTION:
            lines.append(
                f"the paper's rows follow the convention {PAPER_CONVENTION}, not {self.convention}"
            )
        return lines

    @property
    def definitions(self) -> dict[str, str]:
        """What each column is, in the convention's own words."""
        texts = CONVENTIONS[self.convention].definitions
        worse = {f"{n}_min": f"{n} against the source where it is lower" for n in texts}
        of_tasks = {c: COLUMNS[c] for task in self.tasks for c in task.columns}
        return {n: (texts | worse)[n] for n in self.columns} | of_tasks

    def paper_rows(self) -> list[tuple[str, dict[str, float]]]:
        """(label, values) of the paper's row, and of its public code's where it is known."""
        if self.paper is None:
            return []
        rows = [(f"paper, {self.paper}", PAPER[self.paper])]
        if self.paper in PUBLIC_CODE:
            rows.append((f"public code, {self.paper}", PUBLIC_CODE[self.paper]))
        return [(label, dict(zip(PAPER_COLUMNS, row, strict=True))) for label, row in rows]


def evaluate(
    items: Sequence[PairItem],
    methods: Sequence[MethodPictures],
    *,
    convention: str = DEFAULT,
    names: Sequence[str] = CORE,
    paper: str | None = None,
    device: str | torch.device = "cpu",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    levels: Levels | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score every method's result of every pair, on luma in 0..255.

    A pair for which some method has no readable result of the sources' size is left out of all
    rows and reported in ``failures``, so that means stay comparable.

    Args:
        items: The pairs, from :func:`.pairs.find_pairs`.
        methods: Folders and baselines; :class:`Results` describes the names of files.
        convention: A key of ``CONVENTIONS``.
        names: Metrics, of ``NAMES``.
        paper: A key of `PAPER`, whose rows are added to the table.
        device: Where to compute.
        max_pixels: Limit of an input file, see :func:`.files.reading.read_image`.
        levels: What the values of the sources mean; found from each pair by default.
        progress: Show a bar on stderr.

    Raises:
        ValueError: Nothing is left, a folder has no result at all, or a name is unknown.
    """
    check_scoring(convention=convention, names=names, paper=paper)
    _check_methods(items, methods)
    results = [Results(m, items) for m in methods]
    scored: dict[str, _ScoredPair] = {}
    failures: dict[str, str] = {}
    told: set[str] = set()
    for item in _progress(items, progress):
        try:
            with about([item.name], told):
                scored[item.name] = _score_pair(
                    item,
                    results,
                    convention=convention,
                    names=names,
                    device=device,
                    max_pixels=max_pixels,
                    levels=levels,
                )
        except (ValueError, TypeError, OSError, MemoryError) as error:
            failures[item.name] = str(error) or type(error).__name__
    if not scored:
        raise ValueError(
            f"none of the {len(failures)} pairs could be scored: "
            + few([f"{pair} ({why})" for pair, why in failures.items()], 2, "; ")
        )
    scores = [_method_scores(method, n, scored) for n, method in enumerate(methods)]
    return Evaluation(convention, list(scored), scores, failures, paper)


def parse_method(text: str) -> MethodPictures:
    """Parse ``name=folder``, or a folder named after itself; ValueError if it is not a folder."""
    name, separator, folder = text.partition("=")
    if not separator or Path(text).is_dir():
        folder, name = text, Path(text).resolve().name
    if not name.strip() or not folder or not Path(folder).is_dir():
        raise ValueError(f"--fused is {text!r}; expected NAME=FOLDER with a folder that exists")
    return MethodPictures(name.strip(), Path(folder))


class Results:
    """Where a method keeps its pictures of a data set's pairs.

    A pair's picture is ``<name>`` with any image suffix, ``name`` being the pair's with its
    subfolder; where stems are unique in the data set also ``<stem>`` and, as VIFB has it,
    ``<stem>_<METHOD>``. ValueError for a folder that has none of any pair.
    """

    def __init__(self, method: MethodPictures, items: Sequence[PairItem]):
        self.method = method
        if method.folder is None:
            return
        self.files = _listing(method.folder)
        stems = [_stem(item) for item in items]
        self.flat = len(set(stems)) == len(stems)
        if not any(self._candidates(item) for item in items):
            raise ValueError(
                f"{method.folder}: no result of any of the {len(items)} pairs; expected files "
                f"such as {items[0].name}.png"
            )

    def path(self, item: PairItem) -> Path:
        """Return the file of a pair; ValueError when there is none, or more than one."""
        found = self._candidates(item)
        if len(found) > 1:
            names = few([f.name for f in found], 3)
            raise ValueError(f"{self.method.folder}: {names} are one pair's; keep one")
        if not found:
            raise ValueError(f"{self.method.folder}: no result, such as {item.name}.png")
        return found[0]

    def picture(self, item: PairItem, ir: Tensor, vis: Tensor, max_pixels=DEFAULT_MAX_PIXELS):
        """Read the result, [H, W] or [H, W, 3]; baselines are made from the lumas.

        ValueError if its size is not the sources'.
        """
        if self.method.folder is None:
            fused = torch.floor(BASELINES[self.method.name](ir, vis) + 0.5)
            return fused.to(torch.uint8).cpu().numpy()
        path = self.path(item)
        picture = read_image(path, max_pixels=max_pixels)
        if picture.shape[:2] != ir.shape:
            raise ValueError(
                f"{path} is {_size(picture)} and its sources are {_size(ir)}; expected equal sizes"
            )
        return picture

    def _candidates(self, item: PairItem) -> list[Path]:
        names = [item.name]
        if self.flat:
            names += [_stem(item), f"{_stem(item)}_{self.method.name}"]
        return next((self.files[name] for name in names if name in self.files), [])


def read_lumas(
    item: PairItem, max_pixels: int = DEFAULT_MAX_PIXELS, levels: Levels | None = None
) -> tuple[Tensor, Tensor]:
    """Luma of both sources, float64 [H, W] in 0..255; ValueError if their sizes differ."""
    found = read_sources(item.ir, item.vis, levels or Levels(), max_pixels)
    ir, vis = to_luma(found.ir), to_luma(found.vis)
    if ir.shape != vis.shape:
        raise ValueError(f"{item.ir} is {_size(ir)} and {item.vis} {_size(vis)}")
    return ir, vis


def check_scoring(
    *, convention: str = DEFAULT, names: Sequence[str] = CORE, paper: str | None = None
) -> None:
    """Refuse what :func:`evaluate` does not know or have: to be called before long work."""
    for what, given, known in (
        ("convention", [convention], CONVENTIONS),
        ("names", names, NAMES),
        ("paper", [] if paper is None else [paper], PAPER),
    ):
        for one in given:
            if one not in known:
                raise ValueError(f"{what} is {one!r}; expected of {', '.join(known)}")
    require(names)


def _check_methods(items: Sequence[PairItem], methods: Sequence[MethodPictures]) -> None:
    if not items:
        raise ValueError("items is empty; expected at least one pair")
    if not methods:
        raise ValueError("methods is empty; give --fused NAME=FOLDER or --baselines")
    labels = [m.name for m in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two methods are called {label!r}; give --fused another NAME=")
    for method in methods:
        if method.folder is None and method.name not in BASELINES:
            raise ValueError(
                f"method {method.name!r} has no folder; baselines are {', '.join(BASELINES)}"
            )


def _listing(folder: Path) -> dict[str, list[Path]]:
    """List images in a folder and below, by relative path without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in image_files(sorted(folder.rglob("*"))):
        found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise ValueError(
            f"{folder}: has no images; expected files ending in {', '.join(READ_SUFFIXES)}"
        )
    return found


class _ScoredPair(NamedTuple):
    """What each method scored on a pair."""

    rows: list[dict[str, float]]
    """metric → value, per method"""
    copied: list[str | None]
    """the source that the result nearly is, per method"""


def _method_scores(method: MethodPictures, n: int, scored: dict[str, _ScoredPair]) -> MethodScores:
    """Gather the scores of the ``n``-th method over the pairs."""
    rows = [pair.rows[n] for pair in scored.values()]
    return MethodScores(
        method.name,
        None if method.folder is None else str(method.folder),
        {name: np.array([row[name] for row in rows]) for name in rows[0]},
        {name: source for name, pair in scored.items() if (source := pair.copied[n]) is not None},
        method.about,
    )


def _score_pair(
    item: PairItem,
    results: list[Results],
    *,
    convention: str,
    names: Sequence[str],
    device: str | torch.device,
    max_pixels: int,
    levels: Levels | None,
) -> _ScoredPair:
    ir, vis = read_lumas(item, max_pixels, levels)
    fused = torch.stack([to_luma(r.picture(item, ir, vis, max_pixels)) for r in results])
    fused, ir, vis = (x.to(device) for x in (fused, ir, vis))
    rows: list[dict[str, float]] = []
    for chunk in fused.split(max(1, _PIXELS_AT_ONCE // ir.numel())):
        i, v = (x.expand(len(chunk), -1, -1) for x in (ir, vis))
        scores = compute(chunk, i, v, convention=convention, names=tuple(names))
        columns = {name: column.tolist() for name, column in scores.items()}
        rows += [{name: column[n] for name, column in columns.items()} for n in range(len(chunk))]
    return _ScoredPair(rows, [near_copy(luma, ir, vis) for luma in fused])


def _progress(items: Sequence[PairItem], progress: bool):
    if not progress:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc="scoring", unit="pair", leave=False)


def _stem(item: PairItem) -> str:
    return item.name.rpartition("/")[2]


def _size(image: Tensor | np.ndarray) -> str:
    height, width = image.shape[:2]
    return f"{width}x{height}"
