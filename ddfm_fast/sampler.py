"""The reverse loop: Algorithm 1 of the paper with the sampler's row of coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .config import DEFAULT_SEED, FuseConfig
from .priors.reuse import Kept, passed
from .runtime.dispatch import Backend, resolve_backend
from .runtime.memory import pages_kept
from .runtime.profiling import span
from .schedule import StepRow, make_schedule, step_rows
from .step import Step

if TYPE_CHECKING:
    from .priors.prior import Prior
    from .restore.sources import FusionReport


class StepInfo(NamedTuple):
    """What a callback receives after each reverse step.

    The tensors are the loop's own: copy what you keep, and do not write to them.

    >>> seen: list[tuple[int, int]] = []
    >>> def watch(info: StepInfo) -> None:
    ...     seen.append((info.step, info.timestep))
    >>> fused = ddfm_fast.fuse(infrared, visible, steps=3, callback=watch)
    >>> seen
    [(1, 999), (2, 500), (3, 0)]
    """

    step: int
    """1 .. steps"""
    steps: int
    timestep: int
    """t of the original process at which the prior was evaluated"""
    x_t: Tensor
    """the sample after the step, [N, 3, H, W], or [N, 1, H, W] of a prior of gray"""
    x0: Tensor
    """the rectified prediction f̂₀ of the step, likewise"""
    reports: Sequence[FusionReport] = ()
    """per image, what was found in its sources and done about it; filled in by ``Fuser``"""


Callback = Callable[[StepInfo], None]


class Sampled(NamedTuple):
    x0: Tensor
    """the final sample, RGB [N, 3, H, W] or gray [N, 1, H, W], about [−1, 1] in the variant's own
    luma scale"""
    luma: Tensor
    """its luma in the scale of i and v, [N, 1, H, W]"""

    def kept(self) -> Sampled:
        """Return a copy that stays valid when the loop runs again."""
        return Sampled(self.x0.clone(), self.luma.clone())


class Loop:
    """The whole reverse loop of one batch shape, on buffers whose addresses never change.

    Call ``load``, then ``run``, which takes ``x`` from x_T to x_0 and computes its luma. The host
    passes nothing but the buffers' addresses to a step, so that ``ddfm_fast.graphs`` can capture
    the work and replay it.

    ``shape``: (N, H, W), H and W multiples of ``prior.multiple``; everything is float32 on the
    prior's device. ``watched``: keep f̂₀ of every step for a callback.
    """

    def __init__(
        self,
        prior: Prior,
        config: FuseConfig,
        shape: tuple[int, int, int],
        backend: Backend,
        *,
        watched: bool = False,
    ):
        self.prior, self.config, self.device = prior, config, prior.device
        self.kept: Kept | None = None
        if config.reuse > 1:
            prior.check_reuse(config.reuse)
            self.kept = Kept(config.reuse)
        self.lock: AbstractContextManager = nullcontext()
        self.rows = prior_rows(prior, config)
        self.learned = uses_learned_variance(prior, config) and any(r.sigma for r in self.rows)
        self.i, self.v, self.luma = torch.zeros(
            3, shape[0], 1, *shape[1:], dtype=torch.float32, device=self.device
        )
        self.seeds = torch.zeros(shape[0], dtype=torch.int64, device=self.device)
        self.reverse = self._make_step(backend, watched)
        channels = prior.channels
        self.x = torch.zeros(
            shape[0], channels, *shape[1:], dtype=torch.float32, device=self.device
        )
        self.conditioning = prior.conditioning(torch.tensor([row.timestep for row in self.rows]))
        self.noise = torch.zeros_like(self.x[:1])
        """the noise of a drawn x_T, [1, 3, H, W]"""
        self._seed = 0
        self._drawn: int | None = None
        """``_seed`` and ``_drawn``: the seeds that ``seeds`` holds and ``noise`` was drawn with"""

    def _make_step(self, backend: Backend, watched: bool) -> Step:
        noise = "none"
        if any(row.sigma for row in self.rows):
            noise = "learned" if self.learned else "fixed"
        return backend.make_step(
            self.i, self.v, self.config, rows=self.rows, noise=noise, seeds=self.seeds,
            keep_x0=watched, channels=self.prior.channels,
        )  # fmt: skip

    def load(self, i: Tensor, v: Tensor, seed: int, x_start: Tensor | None = None) -> None:
        """Take the sources' luma planes [N, 1, H, W], the seed, and x_T if it is not drawn."""
        with span("load"):
            self.i.copy_(i)
            self.v.copy_(v)
            self.seed_(seed)
            if x_start is None:
                self.draw_(seed)
                x_start = self.start()
            self.x.copy_(x_start)

    def seed_(self, seed: int) -> None:
        """Set the seed of the steps' noise; many calls of a captured loop share one seed."""
        if seed != self._seed:
            self.seeds.fill_(seed)
            self._seed = seed

    def draw_(self, seed: int) -> None:
        """Draw the noise of x_T on the CPU, unless it was already drawn with this seed."""
        if seed != self._drawn:
            generator = torch.Generator().manual_seed(seed)
            shape = self.noise.shape
            z = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            self.noise.copy_(z)
            self._drawn = seed

    def start(self) -> Tensor:
        """Return x_T: the drawn noise or, with ``config.start``, i and v's mean noised by it."""
        if self.config.start is None:
            return self.noise
        return noised(self.reverse.gray((self.i + self.v) / 2), self.noise, self.rows[0])

    def run(self, steps: Iterable[int], callback: Callback | None) -> None:
        """Do all of the work after ``load``; ``steps`` counts 0, 1, … to the last."""
        self.begin()
        for s in steps:
            self.step(s)
            self.report(s, callback)
        self.finish()

    def begin(self) -> None:
        """Prepare for the first step: set the state that EM starts from."""
        self.reverse.load_(self.i, self.v, self.seeds)

    def next_conditioning(self):
        """Return the prior's conditioning of the next step, found by the counter on the device."""
        return self.conditioning.at(self.reverse.next_step)

    def step(self, s: int, cond=None) -> None:
        """Take x_t to x_{t−1}; ``cond``: the prior's conditioning, by default of step ``s``."""
        kept = None if self.kept is None else self.kept.at(s)
        with span("prior" if kept is None or kept.whole else "prior, reused"):
            cond = self.conditioning[s] if cond is None else cond
            out = self.prior.eps(self.x, cond, variance=self.learned, **passed(kept))
        with span("update"):
            self.reverse.step_(self.x, out)

    def finish(self) -> None:
        """Compute the luma of x_0, which is in ``x`` after the last step."""
        if self.kept is not None:
            self.kept.clear()
        with span("store"):
            for luma, x in zip(self.luma, self.x, strict=True):
                luma[0].copy_(self.reverse.luma(x))

    def take(self) -> Sampled:
        """Return the result of ``run``."""
        return Sampled(self.x, self.luma)

    def report(self, s: int, callback: Callback | None) -> None:
        """Report the finished step ``s`` to ``callback``."""
        if callback is not None:
            x0, steps = self.reverse.x0, len(self.rows)
            if x0 is None:
                raise RuntimeError("the loop keeps no x0 for a callback; make it with watched=True")
            callback(StepInfo(s + 1, steps, self.rows[s].timestep, self.x, x0))


class AnyLoop(Protocol):
    """What :func:`sample` needs from a loop: :class:`Loop`, or one that replays CUDA graphs."""

    device: torch.device
    lock: AbstractContextManager
    """held from ``load`` to ``take``"""
    rows: list[StepRow]

    def load(self, i: Tensor, v: Tensor, seed: int, x_start: Tensor | None = None) -> None:
        """Take a batch of pairs."""
        ...

    def run(self, steps: Iterable[int], callback: Callback | None) -> None:
        """Sample."""
        ...

    def take(self) -> Any:
        """Return the result, valid until the next ``load``."""
        ...


LoopSource = Callable[["Prior", FuseConfig, tuple[int, int, int], bool, type[Loop]], AnyLoop]
"""(prior, config, (N, H, W), watched, kind) → the loop to use, such as ``GraphCache.loop``"""


def sample(
    prior: Prior,
    i: Tensor,
    v: Tensor,
    config: FuseConfig,
    *,
    seed: int = DEFAULT_SEED,
    progress: bool = False,
    callback: Callback | None = None,
    x_start: Tensor | None = None,
    backend: Backend | None = None,
    loops: LoopSource | None = None,
) -> Sampled:
    """Draw the fused image of each pair.

    The loop starts from pure noise or, with ``config.start``, from the mean of the sources noised
    to that timestep (then only the part of the schedule below it is sampled).

    i, v: luma planes [N, 1, H, W] float32 in [−1, 1] on the prior's device, H and W multiples of
    ``prior.multiple``. ``x_start``: x_T, [N or 1, C, H, W]; by default a CPU generator seeded with
    ``seed`` draws it for one image, and all images start from it. Every z follows from (seed, step,
    pixel), so it is the same on every device and in every batch. ``callback`` may raise to stop.
    ``backend``: which code runs the step (:func:`.dispatch.resolve_backend`); ``loops``: where to
    get the loop from, by default a new one on that backend. Raises ValueError if the prior yields
    NaN or inf.
    """
    shape, watched = (len(i), *i.shape[-2:]), progress or callback is not None
    with torch.inference_mode():
        if loops is None:
            backend = backend or resolve_backend(prior.device)
            loop: AnyLoop = Loop(prior, config, shape, backend, watched=watched)
        else:
            loop = loops(prior, config, shape, watched, Loop)
        with loop.lock, pages_kept(prior.device):
            loop.load(i, v, seed, x_start)
            loop.run(progress_of(loop, progress), callback)
            result = loop.take()
    require_finite(torch.isfinite(result.luma).all(), prior)
    return result


def require_finite(finite: Any, prior: Prior) -> None:
    """Raise ValueError unless a result is ``finite``; this may wait for the device."""
    if not bool(finite):
        raise ValueError(
            f"prior {prior.name!r} gave NaN or inf during sampling; "
            "expected finite eps(x, t): check the checkpoint, or use a wider dtype"
        )


def noised(x0: Tensor, z: Tensor, row: StepRow) -> Tensor:
    """Return a sample of q(x_t | x_0): √ᾱ · x0 + √(1 − ᾱ) · z at the step's noise level."""
    return (x0 + row.recipm1 * z) / row.recip


def prior_rows(prior: Prior, config: FuseConfig) -> list[StepRow]:
    """Return the coefficient rows for the prior's schedule, in sampling order; none for 0 steps."""
    if config.steps == 0:
        return []
    schedule = make_schedule(
        config.steps,
        noise_schedule=prior.noise_schedule,
        num_train_timesteps=prior.num_train_timesteps,
        start=config.start,
        spacing=config.spacing,
        alphas=prior.alphas,
    )
    return step_rows(schedule, config.sampler, config.ddim_eta)


def uses_learned_variance(prior: Prior, config: FuseConfig) -> bool:
    """Return whether σ comes from the prior's variance half; ValueError if requested and absent."""
    if config.sampler != "ddpm" or config.variance == "fixed_small":
        return False
    if config.variance == "learned_range" and not prior.has_variance:
        raise ValueError(
            f"variance is 'learned_range', but prior {prior.name!r} has no variance output; "
            "expected 'auto' or 'fixed_small' for this prior"
        )
    return prior.has_variance


def progress_of(loop: AnyLoop, progress: bool) -> Iterable[int]:
    """Count the steps of a loop, with a bar if requested."""
    steps = range(len(loop.rows))
    return _bar(len(steps), loop.device) if progress else steps


def _bar(steps: int, device: torch.device) -> Iterator[int]:
    from tqdm.auto import tqdm

    for s in tqdm(range(steps), desc="fusing", unit="step", leave=False):
        yield s
        if device.type == "cuda":  # else the bar shows what was launched, not what was done
            torch.cuda.current_stream(device).synchronize()
