"""What each part of the method is worth: the same data set fused with one part changed a row.

The paper's ablation has three parts to take away, and this is what each means here.

Without the prior (EM alone): the prior's prediction f̃₀ of each step is replaced by the rectified
f̂₀ of the step before, and the first one by the mean of the sources. What is left is the EM
iteration on that mean, as often as the preset has steps; no noise enters.

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

import torch
from torch import Tensor

from ..api import Fuser
from ..config import SAMPLER_NAMES, VARIANT_NAMES, FuseConfig
from ..datasets.batch import FAILED, PairResult, run_batch
from ..datasets.pairs import PairItem
from ..images.color import luma
from ..priors.prior import Prior
from ..rectify import get_variant
from ..sampler import noised, prior_rows
from ..step import plain_em
from .evaluation import Evaluation, Method, check_scoring, evaluate

PRIOR_ALONE_START = 200
"""first timestep of the prior-alone row: above it a picture's layout drowns in the noise"""


@dataclass(frozen=True)
class Row:
    """A row of the ablation; ``parts``: "all" of the method, or "em" or "prior" alone."""

    name: str
    config: FuseConfig
    meaning: str
    parts: str = "all"


def ablation_rows(config: FuseConfig, name: str = "preset") -> list[Row]:
    """The rows for a configuration, called ``name``; rows that would repeat it are left out."""
    changed = [
        Row("no-tv", replace(config, eta=0.0, psi=config.psi or 0.5), "without the TV term: η = 0"),
        Row("fixed-scales", replace(config, update_scales=False), "γ and ρ stay at 1"),
    ]
    changed += [
        Row(f"variant-{v}", replace(config, variant=v), get_variant(v).summary)
        for v in VARIANT_NAMES
    ]
    changed += [
        Row(f"sampler-{s}", replace(config, sampler=s), f"sampler {s}") for s in SAMPLER_NAMES
    ]
    return [
        Row(name, config, "the whole method"),
        Row("no-prior", config, "without the prior: EM alone, from the mean of the sources", "em"),
        Row(
            "no-em",
            config,
            "without EM: the prior alone, from the mean of the sources noised to t = "
            f"{config.start or PRIOR_ALONE_START}",
            "prior",
        ),
        *(row for row in changed if row.config != config),
    ]


def choose_rows(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """The rows of those names, in the table's order; all without names. ValueError if unknown."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise ValueError(f"rows has {name!r}; expected of {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


def em_alone(i: Tensor, v: Tensor, config: FuseConfig, iterations: int) -> Tensor:
    """Iterate EM on the mean of the sources; luma [N, 1, H, W] in the scale of i and v.

    i, v: luma planes [N, 1, H, W] in [−1, 1]. Each iteration is what a reverse step does to f̃₀,
    clamp included.
    """
    rectifier = plain_em(i, v, config)
    x0 = rectifier.grey((i + v) / 2)
    for _ in range(iterations):
        rectifier.rectify_(x0.clamp_(-1, 1))
    return torch.stack([rectifier.luma(x) for x in x0])[:, None]


def prior_alone(prior: Prior, i: Tensor, v: Tensor, config: FuseConfig, seed: int) -> Tensor:
    """Sample without rectification from the noised mean; luma [N, 1, H, W] in [−1, 1].

    i, v as for :func:`em_alone`, height and width multiples of ``prior.multiple``. The noise of
    "ddpm" has its fixed small variance.
    """
    if config.start is None:
        steps = min(len(prior_rows(prior, config)), PRIOR_ALONE_START + 1)
        config = replace(config, start=PRIOR_ALONE_START, steps=steps, spacing=1.0)
    rows = prior_rows(prior, config)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn((1, 3, *i.shape[-2:]), generator=generator).to(i.device, i.dtype)

    mean = ((i + v) / 2).expand(-1, 3, -1, -1)
    x_t = noised(mean, noise(), rows[0])
    conditioning = prior.conditioning(torch.tensor([row.timestep for row in rows]))
    previous = torch.zeros_like(x_t)
    for row, cond in zip(rows, conditioning, strict=True):
        x0 = (row.recip * x_t - row.recipm1 * prior.eps(x_t, cond).float()).clamp(-1, 1)
        x_t = row.a * x_t + row.b * x0 + row.c * previous
        if row.sigma:
            x_t += row.sigma * noise()
        previous = x0
    return luma(x_t)


class PartFuser(Fuser):
    """A :class:`Fuser` with only one of the method's two parts at work: "em" or "prior"."""

    def __init__(self, part: str, **settings):
        super().__init__(**settings)
        self.part = part

    def _sample_luma(self, i: Tensor, v: Tensor, run: dict) -> Tensor:
        config = self.config
        with torch.inference_mode():
            if self.part == "em":
                luma = em_alone(i, v, config, len(prior_rows(self.prior, config)))
            else:
                luma = prior_alone(self.prior, i, v, config, run["seed"])
        if not bool(torch.isfinite(luma).all()):
            raise ValueError(f"part {self.part!r} alone gave NaN or inf; expected finite values")
        return luma


def make_fuser(row: Row, **settings) -> Fuser:
    """The fuser of a row; ``settings`` are those of :class:`Fuser` but for ``preset``."""
    if row.parts == "all":
        return Fuser(preset=row.config, **settings)
    return PartFuser(row.parts, preset=row.config, **settings)


def ablate(
    items: Sequence[PairItem],
    out: Path,
    rows: Sequence[Row],
    *,
    settings: dict,
    baselines: Sequence[str] = (),
    max_pixels: int,
    progress: bool = False,
    on_row: Callable[[Row], None] = lambda row: None,
    on_error: Callable[[PairResult], None] | None = None,
    **scoring,
) -> tuple[Evaluation, list[Method]]:
    """Fuse the data set once a row, into ``out/<row>``, and score the rows side by side.

    ``settings``: of :func:`make_fuser`. ``scoring``: ``preset``, ``names`` and ``paper`` of
    :func:`.evaluation.evaluate`. What is done already is not done again: each folder is
    one of :func:`.datasets.batch.run_batch`. A pair that some row cannot fuse is left out of all
    rows; a row that can fuse none is left out itself, with a remark. Returns the evaluation and
    its methods, for a report; ValueError when nothing is left or the disk is full, and
    BatchInterrupted on Ctrl-C.
    """
    check_scoring(**scoring)
    methods, remarks = [], []
    left = list(items)
    failures: dict[str, str] = {}
    for row in rows:
        on_row(row)
        fuser = make_fuser(row, **settings)
        report = run_batch(
            left,
            out / row.name,
            fuser,
            max_pixels=max_pixels,
            progress=progress,
            on_error=on_error,
        )
        if report.stopped:
            raise ValueError(f"stopped in row {row.name!r}: {report.stopped}")
        failed = {r.name: f"{row.name}: {r.error}" for r in report.results if r.status == FAILED}
        if len(failed) == len(left):
            remarks.append(f"row left out, {next(iter(failed.values()))}")
            continue
        methods.append(Method(row.name, out / row.name, row.meaning))
        failures |= failed
        left = [item for item in left if item.name not in failed]
    if not methods:
        raise ValueError("no pair could be fused: " + "; ".join(remarks[:2]))
    methods += [Method(name) for name in baselines]
    evaluation = evaluate(
        left,
        methods,
        device=settings.get("device") or "cpu",
        max_pixels=max_pixels,
        progress=progress,
        **scoring,
    )
    evaluation.failures = failures | evaluation.failures
    evaluation.remarks = remarks
    return evaluation, methods
