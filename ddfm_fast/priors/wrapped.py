"""Networks of any parameterization as priors: :func:`wrap`, and :func:`denoiser`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images.integers import as_int
from ..schedule import NOISE_SCHEDULES, check_alphas, trained_alphas
from .callable import CallablePrior
from .conditioning import Conditioning
from .network import UNetPrior
from .predictions import PREDICTIONS, SIGMA_MIN, Level, Prediction, check_prediction, consistency
from .prior import EPS_DTYPES
from .reuse import Kept

SIGMAS = (0.002, 80.0)
"""least and most noise of the networks of EDM and of consistency models"""
_FIELDS = 6


class WrappedPrior(CallablePrior):
    """A callable F(x, time) with a prediction of :mod:`.predictions`, turned into ε.

    Made by :func:`wrap`. Its own noise levels become the loop's timesteps, by a table of ᾱ.
    """

    def __init__(
        self,
        function: Callable,
        *,
        prediction: str,
        time: Callable[[Level], float] | None = None,
        sigma_data: float = 0.5,
        value_range: tuple[float, float] = (-1.0, 1.0),
        sigma_min: float = SIGMA_MIN,
        channels: int = 3,
        **keywords: Any,
    ):
        super().__init__(function, **keywords)
        self.prediction, self.time, self.sigma_data = prediction, time, sigma_data
        self.sigma_min = sigma_min
        self.value_range, self.channels = value_range, channels
        vp = PREDICTIONS[prediction].family == "vp"
        self._counts = vp and time is None and not self.rescale_timesteps
        self.has_variance = False  # a network's variances belong to its own sampler

    def activation_bytes(self, n: int, height: int, width: int) -> int | None:
        """See :meth:`Prior.activation_bytes`; known for networks of ours."""
        count = getattr(self.function, "activation_bytes", None)
        return None if count is None else count(n, height, width)

    def kept_bytes(self, n: int, height: int, width: int) -> int:
        """See :meth:`Prior.kept_bytes`; known for networks of ours."""
        count = getattr(self.function, "kept_bytes", None)
        return 0 if count is None else count(n, height, width)

    def keywords(self) -> dict[str, Any]:
        """Return the keywords that make another one like this."""
        own = ("prediction", "time", "sigma_data", "sigma_min", "value_range", "channels")
        return {**super().keywords(), **{name: getattr(self, name) for name in own}}

    def conditioning(self, timesteps: Tensor) -> Conditioning:
        steps = torch.as_tensor(timesteps).tolist()
        levels = 1 / (1 + self.noise_levels**2)
        rows = [self._row(Level(math.sqrt(a), math.sqrt(1 - a), t))
                for t in steps for a in [float(levels[t])]]  # fmt: skip
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, _FIELDS)
        return Conditioning(table.to(self.device, torch.float32), lambda row: row.unbind(0))

    def _row(self, level: Level) -> tuple[float, ...]:
        """Compute scale and shift of x_t, the network's time, and of_x, of_out and offset of ε."""
        kind = PREDICTIONS[self.prediction]
        low, high = self.value_range
        half, middle = (high - low) / 2, (high + low) / 2  # a network's values are half·x + middle
        line = kind.line(level, self.sigma_data)
        if self.prediction == "consistency":
            line = consistency(level, self.sigma_data, self.sigma_min)
        time = _checked_time((self.time or kind.time)(_measured(level, half)))
        if self.rescale_timesteps:
            time *= 1000.0 / self.num_train_timesteps
        of_out, offset = line.of_out, 0.0
        if self.prediction == "score":  # −ε/σ, with σ in the network's values
            of_out *= half
        if self.prediction == "denoised":
            of_out, offset = of_out / half, -of_out * middle / half
        return line.scale * half, middle, time, line.of_x, of_out, offset

    @torch.no_grad()
    def eps(
        self, x: Tensor, cond: Any, *, variance: bool = False, kept: Kept | None = None
    ) -> Tensor:
        self.check_input(x, variance)
        scale, shift, time, of_x, of_out, offset = cond
        if self._counts:
            time = time.long()
        out = self.answer(x * scale + shift, time, kept)[:, : self.channels]
        out = out if out.dtype in EPS_DTYPES else out.float()
        return x * of_x + out.float() * of_out + offset


def _checked_time(value: Any) -> float:
    """Return the result of a function for ``time`` as a float; ValueError if it is not a number."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(
            f"time: the function gave {str(value)[:80]!r} for a level, expected a finite number"
        )
    return found


def _measured(level: Level, half: float) -> Level:
    """Return the level whose σ is in a network's own values."""
    if half == 1:
        return level
    alpha = 1 / math.hypot(1, level.sigma * half)
    return Level(alpha, level.sigma * half * alpha, level.timestep)


class NetworkFunction:
    """A network of ours as F(x, t) of any float times, one for all images."""

    def __init__(self, prior: UNetPrior):
        self.prior, self.multiple = prior, prior.multiple
        self.__name__, self.activation_bytes = prior.name, prior.activation_bytes
        self.kept_bytes = prior.kept_bytes

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.with_kept(x, t)

    def with_kept(self, x: Tensor, t: Tensor, kept: Kept | None = None) -> Tensor:
        """Evaluate with the kept results of the deep layers."""
        return self.prior.eps(x.float(), self.prior.unet.conditioning(t[:1])[0], kept=kept)

    def on_device(self, device: torch.device) -> NetworkFunction:
        """Return the same function on a device."""
        return NetworkFunction(self.prior.to(device))


def wrap(
    function: Callable,
    prediction: str,
    *,
    schedule: str | Sequence[float] | np.ndarray | None = None,
    channels: int = 3,
    sigma_data: float = 0.5,
    sigmas: tuple[float, float] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    time: Callable[[Level], float] | None = None,
    num_train_timesteps: int = 1000,
    **keywords: Any,
) -> WrappedPrior:
    """Make a prior from a network that does not predict ε, or not under the usual schedule.

    Args:
        function: F(x, t): x [N, C, H, W], t [N], to [N, C, H, W], or [N, 2 C, H, W] with a
            variance half, which is left out.
        prediction: What F gives: "eps", "x0" or "v" of a variance-preserving process; "score",
            "denoised" (D(x, σ): EDM's, consistency functions, plain denoisers), or the bare "edm"
            or "consistency", of x₀ + σ ε; "flow", ε − x₀ on a straight path to noise at τ = 1.
        schedule: For the first three: "linear" (default), "cosine", or ᾱ of every timestep, from
            the least noise to the most.
        channels: 3, or 1 for a network of gray images.
        sigma_data: Used by "edm" and "consistency".
        sigmas: For the others, least and most noise in F's values; (0.002, 80) by default. A
            "consistency" network is the identity at the least.
        value_range: Black and white in the values of F; for "denoised" and "score" only.
        time: The time that F takes at a :class:`.predictions.Level`, if it is not the timestep,
            σ, ln(σ)/4 of "edm", 250 ln σ of "consistency" or τ.
        num_train_timesteps: Timesteps of a named schedule.
        keywords: ``name multiple device dtype rescale_timesteps`` of :class:`.CallablePrior`.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: An argument has another value, or does not go with ``prediction``.
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"function: got {function!r}, expected a module or callable F(x, t)")
    check_prediction(prediction)
    _check_time(prediction, time, num_train_timesteps)
    _check_numbers(prediction, channels, sigma_data, value_range)
    if PREDICTIONS[prediction].family == "vp":
        process = _named(prediction, schedule, num_train_timesteps, sigmas)
    else:
        process = _own(prediction, schedule, sigmas, value_range, keywords)
        if prediction == "consistency" and sigmas is not None:
            process["sigma_min"] = sigmas[0]
    return WrappedPrior(
        function,
        prediction=prediction,
        time=time,
        sigma_data=sigma_data,
        value_range=value_range,
        channels=int(channels),
        **process,
        **keywords,
    )


def denoiser(
    function: Callable,
    *,
    channels: int = 3,
    value_range: tuple[float, float] = (0.0, 1.0),
    sigmas: tuple[float, float] | None = None,
    **keywords: Any,
) -> WrappedPrior:
    """Make a prior from a denoiser that is not a diffusion model: plug and play, x₀ = D(x, σ).

    Args:
        function: D(x, σ): x [N, C, H, W] with noise of the standard deviations σ [N], in the units
            of x; returns the picture [N, C, H, W].
        channels: 3, or 1.
        value_range: Black and white in the values of D.
        sigmas: The least and the most noise that D knows, in its units; by default .002 to 80
            times half of the range. D is evaluated even beyond the noise that it was trained for,
            unless this limits the noise.
        keywords: As :func:`wrap` takes them.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: Another argument has a wrong value.
    """
    black, white = _checked_range(value_range)
    if sigmas is None:
        half = (white - black) / 2
        sigmas = SIGMAS[0] * half, SIGMAS[1] * half
    return wrap(
        function, "denoised", channels=channels, value_range=value_range, sigmas=sigmas, **keywords
    )


def _check_time(prediction: str, time: Any, timesteps: Any) -> None:
    if time is not None and not callable(time):
        raise TypeError(
            f"time: got {time!r}, expected a function of a level, as lambda level: level.sigma"
        )
    if PREDICTIONS[prediction].family != "vp" and timesteps != 1000:
        raise ValueError(
            f"num_train_timesteps: got {timesteps!r}, but {prediction!r} has no timesteps; leave "
            "it out, and say what it takes with time="
        )


def _check_numbers(
    prediction: str, channels: int, sigma_data: float, value_range: tuple[float, float]
) -> None:
    if as_int(channels) not in (1, 3):
        raise ValueError(f"channels: got {channels!r}, expected 3, or 1 for gray")
    if not _is_number(sigma_data) or sigma_data <= 0:
        raise ValueError(f"sigma_data: got {sigma_data!r}, expected a number above 0, such as 0.5")
    ends = _checked_range(value_range)
    if prediction not in ("denoised", "score") and ends != (-1.0, 1.0):
        raise ValueError(
            f"value_range: got {value_range!r} with prediction {prediction!r}, expected (-1, 1): "
            'only "denoised" and "score" know others'
        )


def _checked_range(value_range: Any) -> tuple[float, float]:
    ends = tuple(value_range) if isinstance(value_range, (tuple, list)) else ()
    if len(ends) != 2 or not all(map(_is_number, ends)) or not ends[0] < ends[1]:
        raise ValueError(f"value_range: got {value_range!r}, expected (black, white), as (0, 1)")
    return ends[0], ends[1]


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _named(prediction: str, schedule: Any, timesteps: int, sigmas: Any) -> dict[str, Any]:
    """Return the keywords that tell a Prior its variance-preserving process."""
    if sigmas is not None:
        raise ValueError(f"sigmas: {prediction!r} has a schedule of timesteps; leave it out")
    schedule = "linear" if schedule is None else schedule
    if not isinstance(schedule, str):
        return {"alphas": check_alphas(schedule)}
    if schedule not in NOISE_SCHEDULES:
        raise ValueError(
            f"schedule: got {schedule!r}, expected one of {', '.join(NOISE_SCHEDULES)}, or alphas "
            "of every timestep"
        )
    return {"noise_schedule": schedule, "num_train_timesteps": timesteps}


def _own(
    prediction: str, schedule: Any, sigmas: Any, value_range: tuple[float, float], keywords: dict
) -> dict[str, Any]:
    """Return the keywords that tell a Prior the process that its prediction brings."""
    if schedule is not None:
        raise ValueError(
            f"schedule: got {str(schedule)[:80]!r} with prediction {prediction!r}, which knows "
            "its own noise; leave it out, or name the prediction that the schedule is of"
        )
    if keywords.get("rescale_timesteps"):
        raise ValueError(
            f"rescale_timesteps: {prediction!r} has no timesteps; say what it takes with time="
        )
    return {"alphas": _alphas_between(PREDICTIONS[prediction], sigmas or SIGMAS, value_range)}


def _alphas_between(
    kind: Prediction, sigmas: tuple[float, float], value_range: tuple[float, float]
) -> np.ndarray:
    """Return ᾱ of the usual process, as far as a network knows its noise levels."""
    ends = tuple(sigmas) if isinstance(sigmas, (tuple, list)) else ()
    if len(ends) != 2 or not all(map(_is_number, ends)) or not 0 < ends[0] < ends[1]:
        raise ValueError(f"sigmas: got {sigmas!r}, expected the least and the most, as (0.002, 80)")
    alphas = trained_alphas()
    half = (value_range[1] - value_range[0]) / 2
    noise = np.sqrt(1 / alphas - 1) * half
    known = alphas if kind.family == "flow" else alphas[(ends[0] <= noise) & (noise <= ends[1])]
    if len(known) < 2:
        raise ValueError(
            f"sigmas: got {sigmas!r}, expected a range with noise from {noise[0]:.3g} to "
            f"{noise[-1]:.3g} in it"
        )
    return known
