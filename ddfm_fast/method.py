"""Methods that map two lumas to one; ``Fuser`` takes one as its ``method``.

:class:`Diffusion` is the whole method. The others are for ablations: each of its two halves
alone, and fusions that need no method at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import FuseConfig
from .graphs.cache import GraphCache
from .images.color import luma
from .images.doubts import warn
from .images.planes import crop, pad_to_multiple
from .lumas import fuse_lumas
from .priors.prior import Prior
from .sampler import Callback, Sampled, noised, prior_rows, sample
from .schedule import StepRow
from .step import plain_em
from .target.choose import choose

PRIOR_ALONE_START = 200
"""first timestep of the prior alone: above it a picture's layout drowns in the noise"""


class Method(Protocol):
    """What maps two lumas to one."""

    part: str
    """a short name for reports, "all" for the whole method"""

    def __call__(
        self,
        ir: Tensor,
        vis: Tensor,
        *,
        seed: int,
        progress: bool = False,
        callback: Callback | None = None,
        functional: Sequence[bool] | None = None,
    ) -> Tensor:
        """Fuse luma planes [N, 1, H, W] float32 in [0, 1], of any size.

        Returns the fused luma in that range, not yet stretched, and cropped at the bottom and right
        if the configuration crops. ``seed`` seeds all noise. A bar and a callback follow the
        reverse steps, if the method has any. ``functional``: for each pair, whether a source's
        gray levels carry meaning, as those of PET do.
        """
        ...


MethodMaker = Callable[[Prior, FuseConfig, GraphCache], Method]
"""function that makes a method from a prior, a configuration and the loops to run"""


WORTH = 1.0
"""change in gray levels below which the reverse steps are not worth their evaluations"""


def reach(config: FuseConfig, first: StepRow) -> float:
    """Estimate by how many gray levels of 255 the reverse steps can change their starting point.

    If the noise level s of the first step is low, the prior's error is about s/2, so f̃₀ is that
    far from the target. The x-step keeps η/(2 m̄ + 2 n̄ + η) of this error, with the E-step's m̄ =
    n̄ at that distance. From t = 20 at η = 10 the estimate is 0.3 gray levels; 0.004 were measured
    on average.
    """
    distance = first.recipm1 / 2
    p = distance * math.sqrt(0.5)
    return 127.5 * distance * config.eta * p / (4 + config.eta * p)


def doubt_steps(asked: Any, config: FuseConfig, steps: int) -> None:
    """Warn where options of the loop do nothing.

    Args:
        asked: The steps that a call asked for, if any.
        config: Its settings.
        steps: The steps that the method takes.
    """
    if asked and not steps:
        warn(
            f"steps is {asked!r}, but the steps of variant {config.variant!r} change less than a "
            f'gray level at eta {config.eta:g} and are skipped; pass preset="official" for the '
            "authors' loop"
        )
    if config.reuse > 1 and steps < 2:
        warn(
            f"reuse is {config.reuse}, but the loop has {'one step' if steps else 'no step'}, so "
            'there is nothing to reuse; leave it out, or pass preset="official" for the '
            "authors' loop"
        )


class Diffusion:
    """The method: reverse steps of the prior, each rectified by an EM iteration (Algorithm 1).

    With the variant "saliency" both sources of the steps are the closed form of
    :func:`ddfm_fast.target.choose.choose`. If the steps cannot change it by ``WORTH`` gray levels
    (:func:`reach`), or if there are none, they are skipped and the closed form is the result; then
    ``rows`` is empty.
    """

    part = "all"

    def __init__(self, prior: Prior, config: FuseConfig, loops: GraphCache):
        self.prior, self.config, self.loops = prior, config, loops
        self.rows = prior_rows(prior, config)  # an impossible number of steps fails here, not later
        if config.variant == "saliency" and self.rows and reach(config, self.rows[0]) < WORTH:
            self.rows = []
        if self.rows:
            prior.check_reuse(config.reuse)

    def __call__(
        self,
        ir: Tensor,
        vis: Tensor,
        *,
        seed: int,
        progress: bool = False,
        callback: Callback | None = None,
        functional: Sequence[bool] | None = None,
    ) -> Tensor:
        """See :class:`Method`."""
        if self.config.variant == "saliency":
            triton = self.loops.backend.name == "triton"
            ir = vis = choose(ir, vis, functional, triton=triton)
            if not self.rows:
                return ir
        return fuse_lumas(
            self.prior, ir, vis, self.config, loops=self.loops.loop, seed=seed,
            progress=progress, callback=callback,
        )  # fmt: skip

    def sample(
        self,
        i: Tensor,
        v: Tensor,
        *,
        seed: int,
        x_start: Tensor | None = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Sampled:
        """Sample planes in [−1, 1] that fit the prior: :func:`ddfm_fast.sampler.sample`."""
        return sample(
            self.prior,
            i,
            v,
            self.config,
            seed=seed,
            x_start=x_start,
            progress=progress,
            callback=callback,
            loops=self.loops.loop,
        )

    def with_config(self, config: FuseConfig) -> Diffusion:
        """Return the method of another configuration on the same prior and loops."""
        return Diffusion(self.prior, config, self.loops)


class EMAlone:
    """EM without the prior: f̃₀ of each step is the rectified f̂₀ of the previous step."""

    part = "em"

    def __init__(self, prior: Prior, config: FuseConfig, _loops: GraphCache | None = None):
        self.prior, self.config = prior, config
        self.iterations = len(prior_rows(prior, config))

    def __call__(
        self, ir: Tensor, vis: Tensor, *, functional: Sequence[bool] | None = None, **_run
    ) -> Tensor:
        """See :class:`Method`; no noise is used."""
        if self.config.variant == "saliency":
            ir = vis = choose(ir, vis, functional)

        def fused(i: Tensor, v: Tensor) -> Tensor:
            return em_alone(i, v, self.config, self.iterations)

        return _finite(fused, self, ir, vis)


class PriorAlone:
    """The prior without EM: sampling, not rectified, from the noised mean of the sources."""

    part = "prior"

    def __init__(self, prior: Prior, config: FuseConfig, _loops: GraphCache | None = None):
        self.prior, self.config = prior, config

    def __call__(
        self,
        ir: Tensor,
        vis: Tensor,
        *,
        seed: int,
        functional: Sequence[bool] | None = None,
        **_run,
    ) -> Tensor:
        """See :class:`Method`."""
        if self.config.variant == "saliency":
            ir = vis = choose(ir, vis, functional)

        def fused(i: Tensor, v: Tensor) -> Tensor:
            return prior_alone(self.prior, i, v, self.config, seed)

        return _finite(fused, self, ir, vis)


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda ir, vis: (ir + vis) / 2,
    "max": torch.maximum,
}
"""fusions of two luma planes that need no method at all"""


class Baseline:
    """A row of ``BASELINES`` as a method: ``Fuser(method=Baseline("mean").of)``."""

    def __init__(self, name: str):
        if name not in BASELINES:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(BASELINES)}")
        self.part = name

    def of(self, _prior: Prior, _config: FuseConfig, _loops: GraphCache) -> Baseline:
        """Return the maker: a baseline needs neither prior nor configuration."""
        return self

    def __call__(self, ir: Tensor, vis: Tensor, **_run) -> Tensor:
        """See :class:`Method`."""
        return BASELINES[self.part](ir, vis)


def on_padded_planes(
    function: Callable[[Tensor, Tensor], Tensor],
    ir: Tensor,
    vis: Tensor,
    config: FuseConfig,
    multiple: int,
) -> Tensor:
    """Call ``function`` with the method's planes i and v, and map its result back to [0, 1].

    From the sources' lumas [N, 1, H, W] in [0, 1] to planes in [−1, 1], this crops, rounds to 8
    bits and orders the sources, as configured, and adds a reflected margin up to a multiple.
    """
    height, width = (n - n % config.crop_multiple for n in ir.shape[-2:])
    planes = [crop(p, height, width) for p in (ir, vis)]
    if config.round_luma:
        planes = [torch.round(p * 255) / 255 for p in planes]
    i, v = (pad_to_multiple(p * 2 - 1, multiple) for p in planes)
    if config.swap_sources:
        i, v = v, i
    return (crop(function(i, v), height, width) + 1) / 2


def em_alone(i: Tensor, v: Tensor, config: FuseConfig, iterations: int) -> Tensor:
    """Iterate EM on the mean of the sources; return luma [N, 1, H, W] in the scale of i and v.

    i, v: luma planes [N, 1, H, W] in [−1, 1]. Each iteration is what a reverse step does to f̃₀,
    clamp included.
    """
    em = plain_em(i, v, config)
    x0 = em.gray((i + v) / 2)
    for _ in range(iterations):
        em.rectify_(x0.clamp_(-1, 1))
    return torch.stack([em.luma(x) for x in x0])[:, None]


def prior_alone(prior: Prior, i: Tensor, v: Tensor, config: FuseConfig, seed: int) -> Tensor:
    """Sample without rectification from the noised mean; return luma [N, 1, H, W] in [−1, 1].

    i, v as for :func:`em_alone`, height and width multiples of ``prior.multiple``. From pure noise
    such a sample would have nothing to do with the sources; it starts from the preset's own
    ``start``, else from ``PRIOR_ALONE_START``. The noise of "ddpm" has its fixed small variance.
    """
    if config.start is None:
        steps = min(len(prior_rows(prior, config)), PRIOR_ALONE_START + 1)
        config = replace(config, start=PRIOR_ALONE_START, steps=max(steps, 1), spacing=1.0)
    rows = prior_rows(prior, config)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        z = torch.randn(
            (1, prior.channels, *i.shape[-2:]),
            generator=generator,
            dtype=torch.float32,
            device="cpu",
        )
        return z.to(i.device, i.dtype)

    mean = ((i + v) / 2).expand(-1, prior.channels, -1, -1)
    x_t = noised(mean, noise(), rows[0])
    conditioning = prior.conditioning(torch.tensor([row.timestep for row in rows]))
    previous = torch.zeros_like(x_t)
    for row, cond in zip(rows, conditioning, strict=True):
        x0 = (row.recip * x_t - row.recipm1 * prior.eps(x_t, cond).float()).clamp(-1, 1)
        x_t = row.a * x_t + row.b * x0 + row.c * previous
        if row.sigma:
            x_t += row.sigma * noise()
        previous = x0
    return luma(x_t.expand(-1, 3, -1, -1))


def _finite(
    function: Callable[[Tensor, Tensor], Tensor], method: EMAlone | PriorAlone, ir, vis
) -> Tensor:
    with torch.inference_mode():
        y = on_padded_planes(function, ir, vis, method.config, method.prior.multiple)
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"part {method.part!r} alone gave NaN or inf; expected finite values")
    return y
