"""Measure and restore both sources of a pair before they are fused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import FuseConfig
from ..images.doubts import warn
from ..images.pixels import Pixels
from ..images.stretch import Fused
from ..priors.load import denoiser_of
from ..priors.prior import Prior
from ..runtime.transfer import fetched
from .chroma import chroma_noise, smooth_chroma
from .defects import remove_defects
from .denoise import Evaluate, denoise, evaluate
from .noise_level import Estimator, NoiseLevel, destabilize, estimate, stabilize

SOURCES = ("ir", "vis")
Remover = Callable[[Tensor, NoiseLevel, Callable[[Tensor], Tensor]], tuple[Tensor, int]]
"""(plane, its noise, function that removes it from a plane or part) → clean plane, calls of it"""
ALL_NOISE = 0.08
"""multiple of its noise by which a denoised source must vary, else it was nothing but noise"""


class SourceReport(NamedTuple):
    """What was found in a source, and done about it."""

    sigma: float = 0.0
    """standard deviation of the noise, gray levels of 255; 0 for a source that counts as clean"""
    gain: float = 0.0
    """growth of the noise's variance with brightness, gray levels; 0 for uniform noise"""
    columns: float = 0.0
    """standard deviation of the column stripes that were removed, gray levels"""
    rows: float = 0.0
    """likewise, of the rows"""
    dead_pixels: int = 0
    """pixels that were replaced"""
    evaluations: int = 0
    """evaluations of the prior that removed the noise; in a video, some of parts of the source"""
    chroma: float = 0.0
    """standard deviation of the noise removed from chroma, gray levels, if the result has chroma"""


class SourceTotals:
    """The reports of a source over the frames of a video, added up."""

    def __init__(self) -> None:
        self.frames = 0
        self.sums = [0.0] * len(SourceReport._fields)

    def add(self, report: SourceReport) -> None:
        """Add a frame's report."""
        self.frames += 1
        self.sums = [total + value for total, value in zip(self.sums, report, strict=True)]

    def add_chroma(self, sigma: float) -> None:
        """Add what was found in the chroma of a frame that is counted already."""
        self.sums[SourceReport._fields.index("chroma")] += sigma

    def means(self) -> dict[str, float]:
        """Return the mean of each field of :class:`SourceReport` over the frames."""
        frames = max(1, self.frames)
        return {
            name: round(total / frames, 3)
            for name, total in zip(SourceReport._fields, self.sums, strict=True)
        }


class FusionReport(NamedTuple):
    """What was found in the sources of a fused image, and done.

    >>> reports: list[FusionReport] = []
    >>> fused = ddfm_fast.fuse(infrared, visible, report=reports)
    >>> [(one.images, one.ir.sigma, one.evaluations) for one in reports]
    [('photographic', 0.0, 0)]
    """

    ir: SourceReport
    vis: SourceReport
    images: str
    """"photographic" or "functional": the kind that the pair was judged to be"""
    steps: int
    """reverse steps, each one evaluation of the prior"""
    tile: int = 0
    """side of the tiles that the prior was evaluated in; 0 for whole pictures"""

    @property
    def evaluations(self) -> int:
        """Evaluations of the prior, of both sources and the steps."""
        return self.ir.evaluations + self.vis.evaluations + self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        sources = {name: getattr(self, name)._asdict() for name in ("ir", "vis")}
        return {
            **sources,
            "images": self.images,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "tile": self.tile,
        }


class Restored(NamedTuple):
    """A batch of pairs as it goes into the fusion."""

    ir: Tensor
    vis: Tensor
    reports: list[dict[str, SourceReport]]
    """of each pair, by source"""


class SourceModel:
    """Restores the sources of pairs as ``FuseConfig.denoise`` says, on a prior.

    Args:
        prior: The prior of the fusion; ``denoiser_of`` it removes the noise.
        config: Its ``denoise`` and ``draws``.
        evaluate: What evaluates the prior, see :func:`.denoise.denoise`.
        pixels: What works on every pixel; plain PyTorch by default.
    """

    def __init__(
        self,
        prior: Prior,
        config: FuseConfig,
        evaluate: Evaluate = evaluate,
        pixels: Pixels | None = None,
    ):
        self.prior, self.draws, self.evaluate = prior, config.draws, evaluate
        self.pixels = pixels or Pixels(prior.device)
        self.wanted, self.multiple = config.noise_levels, config.crop_multiple

    @functools.cached_property
    def denoiser(self) -> Prior:
        """The prior that denoises, not loaded before a source needs it."""
        return denoiser_of(self.prior)

    def warm_up(self, plane: Tensor) -> None:
        """Do the first-call work for a luma plane of that size."""
        if any(wanted != "off" for wanted in self.wanted.values()):
            for _ in range(2 if plane.is_cuda else 1):  # the second captures
                self._noise_removed(plane, 1.0, seed=0)

    def report(
        self, found: Mapping[str, SourceReport], images: str, steps: int, size: Sequence[int]
    ) -> FusionReport:
        """Give the report of an image of that (height, width), by what was found in its sources."""
        report = FusionReport(found["ir"], found["vis"], images, steps)
        if not report.evaluations:
            return report
        return report._replace(tile=self.prior.tile_at(*(n - n % self.multiple for n in size)))

    def __call__(
        self,
        ir: Tensor,
        vis: Tensor,
        *,
        seed: int,
        estimators: Mapping[str, Estimator] | None = None,
        removers: Mapping[str, Remover] | None = None,
    ) -> Restored:
        """Restore luma planes [N, 1, H, W] in [0, 1]; a clean source comes back as it is.

        Args:
            ir: The infrared sources.
            vis: The visible ones.
            seed: Seed of the noise that denoising adds to chroma.
            estimators: What estimates the noise for "auto", by source: a video's running ones.
            removers: What removes it, by source: a video's, which reuses previous frames.

        Returns:
            The sources, on the same device, and what was done.
        """
        reports: list[dict[str, SourceReport]] = [{} for _ in range(len(ir))]
        restored: list[Tensor] = []
        host = {"ir": ir, "vis": vis}
        looked_at = [name for name in SOURCES if self.wanted[name] == "auto"]
        host |= zip(looked_at, fetched(*(host[name] for name in looked_at)), strict=True)
        for name, planes in zip(SOURCES, (ir, vis), strict=True):
            noise_of = estimators[name] if estimators else estimate
            remover = removers[name] if removers else _remove_all
            seen = host[name].split(1)
            done = [
                self._restore(p, s, name, seed, noise_of, remover)
                for p, s in zip(planes.split(1), seen, strict=True)
            ]
            for report, (_, found) in zip(reports, done, strict=True):
                report[name] = found
            changed = any(found != SourceReport() for _, found in done)
            restored.append(torch.cat([p for p, _ in done]) if changed else planes)
        return Restored(restored[0], restored[1], reports)

    def color(
        self,
        rgb: Tensor,
        fused: Fused,
        color_from: Sequence[str],
        estimators: Sequence[Estimator] | None = None,
    ) -> tuple[Tensor, list[float]]:
        """Remove the noise from the chroma that results get.

        Args:
            rgb: [N, 3, H, W], as ``pixels`` read it, whose chroma it is.
            fused: The fused lumas.
            color_from: For each image, the source of its chroma.
            estimators: Of Cb and Cr, a video's running ones.

        Returns:
            The images, of whose values only chroma counts, and what was found in each, σ in gray
            levels; clean ones as they were.
        """
        found = [0.0] * len(rgb)
        if all(self.wanted[name] == "off" for name in color_from):
            return rgb, found
        unit = self.pixels.unit(rgb)
        images = list(unit.split(1))
        (planes,) = fetched(self.pixels.chroma_planes(unit))
        for n, name in enumerate(color_from):
            if self.wanted[name] == "off":
                continue
            if sigma := chroma_noise(planes[:, n : n + 1], estimators):
                guide = fused.images(n, 1).stretched()
                images[n] = smooth_chroma(images[n], guide, sigma)
                found[n] = sigma
        return (torch.cat(images) if any(found) else rgb), found

    def _restore(
        self,
        plane: Tensor,
        seen: Tensor,
        name: str,
        seed: int,
        noise_of: Estimator,
        remover: Remover,
    ) -> tuple[Tensor, SourceReport]:
        wanted = self.wanted[name]
        if wanted == "off":
            return plane, SourceReport()
        columns = rows = 0.0
        dead = 0
        if wanted == "auto":
            whole, (defects,) = remove_defects(seen)
            if whole is not seen:
                plane, seen = whole.to(plane.device), whole
            columns, rows, dead = defects.columns, defects.rows, defects.dead
            level = noise_of(seen)
        else:
            level = NoiseLevel(sigma=float(wanted), plain=float(wanted), gain=0.0, offset=0.0)
        if not level.sigma:
            return plane, SourceReport(columns=columns, rows=rows, dead_pixels=dead)
        plane, calls = remover(plane, level, lambda part: self._denoised(part, level, seed))
        if float(plane.std()) * 255 < max(1.0, ALL_NOISE * level.sigma):
            warn(
                f"{name} is almost only noise: hardly anything is left without it, and the result "
                'shows only the other source; check the file, or pass denoise="off"',
            )
        report = SourceReport(level.sigma, level.gain, columns, rows, dead, calls * self.draws)
        return plane, report

    def _denoised(self, plane: Tensor, level: NoiseLevel, seed: int) -> Tensor:
        if not level.gain:
            return self._noise_removed(plane, level.sigma, seed)
        flat = stabilize(plane, level.gain, level.offset)
        done = self._noise_removed(flat.plane, flat.sigma, seed)
        return destabilize(flat._replace(plane=done)).clamp_(0, 1)

    def _noise_removed(self, plane: Tensor, sigma: float, seed: int) -> Tensor:
        return denoise(
            self.denoiser, plane, sigma, seed=seed, draws=self.draws, evaluate=self.evaluate
        )


def _remove_all(
    plane: Tensor,
    level: NoiseLevel,  # noqa: ARG001
    remove: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Return what removes an image's noise."""
    return remove(plane), 1
