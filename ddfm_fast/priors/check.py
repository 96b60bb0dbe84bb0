"""Check whether a prior removes noise, and if not, name the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.reading import read_image
from .callable import CallablePrior
from .network import UNetPrior
from .predictions import PREDICTIONS, Level
from .prior import Prior
from .wrapped import NetworkFunction, wrap

SIGMAS = (0.1, 0.3, 1.0)
"""noise levels that are tried, in units of [−1, 1]"""
LEAST_GAIN = 1.0
"""decibels by which each noisy picture must improve"""
LEAST_LIKENESS = 0.9
"""cosine of the angle between pure noise and the prediction of it"""
SAME = 1e-3
"""how far two evaluations of one input may differ, as a share of the largest ε"""
_SIDE = 128


class Row(NamedTuple):
    """A noisy picture, denoised by one evaluation."""

    sigma: float
    """gray levels of 255"""
    before: float
    """PSNR in decibels, like ``after`` and ``blurred``"""
    after: float
    blurred: float
    """of the mean over 5×5 pixels, which every correctly read prior surpasses"""

    @property
    def good(self) -> bool:
        """Whether the prior denoises here."""
        return self.after >= max(self.before + LEAST_GAIN, self.blurred)


class Answer(NamedTuple):
    """What a prior predicts for a noisy picture: tensors [1, C, H, W] in the units of [−1, 1]."""

    sigma: float
    noise: Tensor
    noisy: Tensor
    clean: Tensor
    x: Tensor
    """x_t, which it was given"""
    eps: Tensor
    timestep: int


class Check(NamedTuple):
    """What :func:`check` finds."""

    rows: list[Row]
    likeness: float
    """of the prior's ε to the noise, for pure noise: 1 is right"""
    hints: list[str]
    """what would make it denoise, the best first"""
    error: str = ""
    """the exception of the prior, if it raised one"""

    @property
    def good(self) -> bool:
        """Whether it denoises at every level and recognizes pure noise."""
        found = bool(self.rows) and all(row.good for row in self.rows)
        return found and self.likeness >= LEAST_LIKENESS

    @property
    def gain(self) -> float:
        """Mean of the decibels gained; minus infinity if it is not finite."""
        gains = [row.after - row.before for row in self.rows]
        mean = sum(gains) / len(gains) if gains else -math.inf
        return mean if math.isfinite(mean) else -math.inf


def check(prior: Prior) -> Check:
    """Let a prior denoise a picture at three levels, and evaluate it on pure noise.

    This takes five evaluations at 128×128 pixels, one of them a repetition. After a failure it
    takes more for each common mistake: another prediction, time in other units, another value
    range.

    Args:
        prior: A prior from ``load_prior`` or ``wrap``.

    Returns:
        The findings; ``good`` is the verdict.
    """
    try:
        found = _tried(prior)
    except Exception as raised:  # a callable that is misread may raise anything
        found = Check([], 0.0, [], f"{type(raised).__name__}: {raised}")
    return found if found.good else found._replace(hints=_hints(prior, found))


def answers(prior: Prior) -> Iterator[Answer]:
    """Predict the noise in one photograph at each of ``SIGMAS``; the noise is always the same."""
    clean = picture_for(prior)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    for wanted in SIGMAS:
        t = int((prior.noise_levels - wanted).abs().argmin())
        sigma = float(prior.noise_levels[t])
        noisy = clean + sigma * noise
        x = noisy / math.hypot(1, sigma)
        yield Answer(sigma, noise, noisy, clean, x, _eps(prior, x, t), t)


@torch.inference_mode()
def _tried(prior: Prior, whole: bool = True) -> Check:
    """Evaluate at each level; unless ``whole``, stop at the first failure."""
    rows: list[Row] = []
    answer = None
    for answer in answers(prior):
        errors = (answer.sigma * answer.noise, answer.sigma * (answer.noise - answer.eps),
                  _blurred(answer.noisy) - answer.clean)  # fmt: skip
        rows.append(Row(answer.sigma * 127.5, *map(decibels, errors)))
        if not whole and not rows[-1].good:
            return Check(rows, 0.0, [])
    assert answer is not None
    _require_one_answer(prior, answer)
    last, noise = len(prior.noise_levels) - 1, answer.noise
    eps = _eps(prior, noise, last)
    likeness = torch.nn.functional.cosine_similarity(eps.flatten(), noise.flatten(), dim=0)
    return Check(rows, float(likeness), [])


def _require_one_answer(prior: Prior, answer: Answer) -> None:
    """Raise ValueError if a prior gives a different answer the second time."""
    again = _eps(prior, answer.x, answer.timestep)
    scale = answer.eps.abs().max().clamp(min=1)
    if not bool(answer.eps.isfinite().all()):
        raise ValueError(
            f"prior {prior.name!r} gives NaN or inf; check its weights, and the range of numbers "
            "of its dtype"
        )
    if not bool((again - answer.eps).abs().max() <= SAME * scale):
        raise ValueError(
            f"prior {prior.name!r} gives two answers to one question: it keeps state from call to "
            "call, draws numbers, or is in training mode (module.eval()); expected a function of "
            "x and t alone"
        )


def _blurred(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)


def _eps(prior: Prior, x: Tensor, t: int) -> Tensor:
    return prior.eps(x, prior.conditioning(torch.tensor([t]))[0]).float()


def decibels(error: Tensor) -> float:
    """Compute the PSNR of an error, in pictures of [−1, 1]."""
    power = float(error.square().mean())
    return 10 * math.log10(4 / power) if power > 0 else math.inf


def picture_for(prior: Prior) -> Tensor:
    """Return the package's own photograph in [−1, 1], [1, C, H, W] on the prior's device."""
    with as_file(files("ddfm_fast") / "assets" / "sentinel2_visible.png") as path:
        rgb = read_image(path)
    side = max(1, _SIDE // prior.multiple) * prior.multiple
    repeated = np.pad(rgb, [(0, max(0, side - n)) for n in rgb.shape[:2]] + [(0, 0)], "symmetric")
    cut = torch.from_numpy(np.ascontiguousarray(repeated[:side, :side])).float() / 127.5 - 1
    planes = cut.permute(2, 0, 1)[None]
    planes = planes.mean(1, keepdim=True) if prior.channels == 1 else planes
    return planes.contiguous().to(prior.device)


def _hints(prior: Prior, found: Check) -> list[str]:
    """Return the corrections of likely mistakes that make it denoise, the best first."""
    better = []
    for words, make in _others(prior):
        try:
            tried = _tried(make(), whole=False)
        except Exception:  # a callable that is misread may raise anything
            continue
        if tried.good and tried.gain > found.gain + LEAST_GAIN:
            better.append((tried.gain, words))
    return [words for _, words in sorted(better, reverse=True)]


def _others(prior: Prior) -> Iterator[tuple[str, Callable[[], Prior]]]:
    """Yield other readings of a prior's network: how to request each, and what makes it."""
    if isinstance(prior, UNetPrior):
        function: Any = NetworkFunction(prior)
    elif isinstance(prior, CallablePrior):
        function = prior.function
    else:
        return
    own = {"channels": prior.channels, "multiple": prior.multiple, "device": prior.device,
           "dtype": prior.dtype}  # fmt: skip
    steps = prior.num_train_timesteps
    times: dict[str, Callable[[Level], float] | None] = {
        "": None,
        ", time=lambda level: level.timestep / T (times from 0 to 1)": (
            lambda level: level.timestep / steps
        ),
        ", time=lambda level: T - 1 - level.timestep (noise at time 0)": (
            lambda level: steps - 1 - level.timestep
        ),
    }
    if steps != 1000:
        times[", rescale_timesteps=True (times from 0 to 1000)"] = lambda level: (
            level.timestep * 1000 / steps
        )
    for name, kind in PREDICTIONS.items():
        for words, time in times.items() if kind.family == "vp" else [("", None)]:
            yield f"wrap(function, {name!r}{words})", _wrapped(function, name, time=time, **own)
    yield from _denoisers(function, own)
    yield "the negative of what it gives now", _wrapped(_Negative(function), "eps", **own)


def _denoisers(function: Any, own: dict) -> Iterator[tuple[str, Callable[[], Prior]]]:
    """Yield denoisers for pictures of each range, with σ in the units of each."""
    for ends in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
        half = (ends[1] - ends[0]) / 2
        of_range = {"value_range": ends, "sigmas": (0.002 * half, 80 * half), **own}
        words = f"wrap(function, 'denoised', value_range=({ends[0]:g}, {ends[1]:g})"
        for size, units in ((2.0, "of pictures from -1 to 1"), (1.0, "of pictures from 0 to 1"),
                            (255.0, "in gray levels")):  # fmt: skip
            if size != 2 * half:
                factor = size / (2 * half)
                time = f", time=lambda level: {factor:.6g} * level.sigma (sigma {units})"
                yield (
                    f"{words}{time})",
                    _wrapped(function, "denoised", time=_times(factor), **of_range),
                )
            elif ends[0] == 0:  # other ranges are among the predictions
                yield f"{words})", _wrapped(function, "denoised", **of_range)


def _times(factor: float) -> Callable[[Level], float]:
    return lambda level: factor * level.sigma


class _Negative:
    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.function(x, t)
        return -getattr(out, "sample", out)


def _wrapped(function: Callable, name: str, **keywords: Any) -> Callable[[], Prior]:
    return lambda: wrap(function, name, **keywords)
