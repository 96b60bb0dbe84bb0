"""What each part of the method is worth: the same data set fused with one part changed per row.

The paper's ablation removes three parts, and this is what each means here.

Without the prior (EM alone): the prior's prediction f̃₀ of each step is replaced by the rectified
f̂₀ of the previous step, and the first one by the mean of the sources. What is left is the EM
iteration on that mean, as often as the preset has steps; no noise is used.

Without EM (prior alone): the sampler without rectification, f̂₀ = f̃₀. From pure noise such a
sample would have nothing to do with the sources, so it starts from their mean with the noise of
timestep ``PRIOR_ALONE_START`` on it (or of the preset's own ``start``), and takes as many steps
from there as the preset.

Without the TV term: η = 0, which takes k out of the x-step (its weights are then 2m̄ and 2n̄
alone), and with k everything that ψ acts on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..api import Fuser
from ..config import SAMPLER_NAMES, VARIANT_NAMES, FuseConfig
from ..datasets.batch import run_batch
from ..datasets.items import PairItem
from ..datasets.results import FAILED, PairResult
from ..files.depth import Levels
from ..method import PRIOR_ALONE_START, Diffusion, EMAlone, MethodMaker, PriorAlone
from ..rectify import get_variant
from .evaluation import Evaluation, MethodPictures, check_scoring, evaluate


@dataclass(frozen=True)
class Row:
    """A row of the ablation: a configuration, and the method or the half of it that runs."""

    name: str
    config: FuseConfig
    meaning: str
    method: MethodMaker = Diffusion


def ablation_rows(config: FuseConfig, name: str = "preset") -> list[Row]:
    """List the rows for a configuration ``name``; rows that would repeat it are left out."""
    changed = [
        Row("no-tv", replace(config, eta=0.0, psi=config.psi or 0.5), "without the TV term: η = 0"),
        Row("fixed-scales", replace(config, update_scales=False), "γ and ρ stay at 1"),
    ]
    if config.denoise != "off":
        changed.append(Row("no-denoise", replace(config, denoise="off"), "noise is left in"))
    stepping = config
    if config.steps == 0:  # only "saliency" can do that
        stepping = replace(config, steps=3, start=20)
    changed += [
        Row(
            f"variant-{v}",
            config if v == config.variant else replace(stepping, variant=v),
            get_variant(v).summary,
        )
        for v in VARIANT_NAMES
    ]
    changed += [
        Row(f"sampler-{s}", replace(config, sampler=s), f"sampler {s}") for s in SAMPLER_NAMES
    ]
    return [
        Row(name, config, "the whole method"),
        Row(
            "no-prior",
            config,
            "without the prior: EM alone, from the mean of the sources",
            EMAlone,
        ),
        Row(
            "no-em",
            config,
            "without EM: the prior alone, from the mean of the sources noised to t = "
            f"{config.start or PRIOR_ALONE_START}",
            PriorAlone,
        ),
        *(row for row in changed if row.config != config),
    ]


def choose_rows(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """Return the rows of these names, in the table's order; ValueError for unknown ones."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise ValueError(f"rows has {name!r}; expected of {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


def make_fuser(row: Row, **settings) -> Fuser:
    """Make the fuser of a row; ``settings``: options of :class:`Fuser` without ``preset``."""
    return Fuser(method=row.method, preset=row.config, **settings)


def ablate(
    items: Sequence[PairItem],
    out: Path,
    rows: Sequence[Row],
    *,
    settings: dict,
    baselines: Sequence[str] = (),
    max_pixels: int,
    levels: Levels | None = None,
    progress: bool = False,
    on_row: Callable[[Row], None] = lambda _row: None,
    on_error: Callable[[PairResult], None] | None = None,
    **scoring,
) -> tuple[Evaluation, list[MethodPictures]]:
    """Fuse the data set once per row, into ``out/<row>``, and score the rows side by side.

    ``settings``: of :func:`make_fuser`. ``scoring``: ``convention``, ``names`` and ``paper`` of
    :func:`.evaluation.evaluate`. Finished pairs are not fused again: each folder is one of
    :func:`.datasets.batch.run_batch`. A pair that some row cannot fuse is left out of all rows; a
    row that can fuse none is itself left out, with a remark. Returns the evaluation and its
    methods, for a report. Raises ValueError if nothing is left or the disk is full, and
    BatchInterrupted on Ctrl-C.
    """
    check_scoring(**scoring)
    reading: Any = {"max_pixels": max_pixels, "levels": levels, "progress": progress}
    methods, remarks = [], []
    left = list(items)
    failures: dict[str, str] = {}
    for row in rows:
        on_row(row)
        fuser = make_fuser(row, **settings)
        report = run_batch(left, out / row.name, fuser, on_error=on_error, **reading)
        if report.stopped:
            raise ValueError(f"stopped in row {row.name!r}: {report.stopped}")
        failed = {r.name: f"{row.name}: {r.error}" for r in report.results if r.status == FAILED}
        if len(failed) == len(left):
            remarks.append(f"row left out, {next(iter(failed.values()))}")
            continue
        methods.append(MethodPictures(row.name, out / row.name, row.meaning))
        failures |= failed
        left = [item for item in left if item.name not in failed]
    if not methods:
        raise ValueError("no pair could be fused: " + "; ".join(remarks[:2]))
    methods += [MethodPictures(name) for name in baselines]
    evaluation = evaluate(
        left,
        methods,
        device=settings.get("device") or "cpu",
        **reading,
        **scoring,
    )
    evaluation.failures = failures | evaluation.failures
    evaluation.remarks = remarks
    return evaluation, methods
