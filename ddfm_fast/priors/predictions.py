"""What networks predict, each as a line eps = of_x · x_t + of_out · F(scale · x_t; time).

Everywhere x_t = α x₀ + s ε with α² + s² = 1, and σ = s / α. Three families share this:

- variance preserving: the network is given x_t and a timestep;
- variance exploding: it is given x₀ + σ ε = x_t / α, and σ;
- flow: it is given (1 − τ) x₀ + τ ε = x_t / (α + s), and τ = s / (α + s).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from typing import Any, NamedTuple

SIGMA_MIN = 0.002
"""usual least noise of consistency models (Song et al. 2023), at which they are the identity"""


class Level(NamedTuple):
    """A noise level of the loop."""

    alpha: float
    """√ᾱ; ``s`` is √(1 − ᾱ)"""
    s: float
    timestep: int

    @property
    def sigma(self) -> float:
        """Noise over signal."""
        return self.s / self.alpha

    @property
    def tau(self) -> float:
        """The time of a straight path from a picture (0) to noise (1)."""
        return self.s / (self.alpha + self.s)


class Line(NamedTuple):
    """How a network is evaluated at a level, and how its output gives ε."""

    scale: float
    of_x: float
    of_out: float


def noise(_level: Level, _data: float) -> Line:
    """F = ε (Ho et al. 2020)."""
    return Line(1.0, 0.0, 1.0)


def picture(level: Level, _data: float) -> Line:
    """F = x₀, so ε = (x_t − α F) / s."""
    return Line(1.0, 1 / level.s, -level.alpha / level.s)


def velocity(level: Level, _data: float) -> Line:
    """F = v = α ε − s x₀, so ε = s x_t + α F (Salimans and Ho 2022)."""
    return Line(1.0, level.s, level.alpha)


def score(level: Level, _data: float) -> Line:
    """F = −ε / σ of x₀ + σ ε (Song et al. 2021)."""
    return Line(1 / level.alpha, 0.0, -level.sigma)


def denoised(level: Level, _data: float) -> Line:
    """F = D(x₀ + σ ε; σ) = x₀, as EDM, consistency functions and plain denoisers answer."""
    return Line(1 / level.alpha, 1 / level.s, -level.alpha / level.s)


def edm(level: Level, data: float) -> Line:
    """Return the bare F of D = c_skip x + c_out F(c_in x) (Karras et al. 2022, table 1)."""
    sigma = level.sigma
    power = sigma**2 + data**2
    return _preconditioned(
        level, data**2 / power, sigma * data / math.sqrt(power), 1 / math.sqrt(power)
    )


def consistency(level: Level, data: float, least: float = SIGMA_MIN) -> Line:
    """Return the bare F of a consistency model (Song et al. 2023, appendix C)."""
    sigma = level.sigma
    power, above = sigma**2 + data**2, max(sigma - least, 0.0)
    return _preconditioned(
        level,
        data**2 / (above**2 + data**2),
        above * data / math.sqrt(power),
        1 / math.sqrt(power),
    )


def flow(level: Level, _data: float) -> Line:
    """F = ε − x₀ on a straight path, so ε = z + (1 − τ) F (Lipman et al. 2023; Liu et al. 2023)."""
    reach = level.alpha + level.s
    return Line(1 / reach, 1 / reach, level.alpha / reach)


def _preconditioned(level: Level, skip: float, out: float, scale: float) -> Line:
    """ε = (x_t − α D) / s of D = skip · x_t/α + out · F(scale · x_t/α)."""
    return Line(scale / level.alpha, (1 - skip) / level.s, -level.alpha * out / level.s)


def log_sigma(level: Level) -> float:
    """c_noise of EDM."""
    return math.log(level.sigma) / 4


class Prediction(NamedTuple):
    """A kind of network."""

    line: Callable[[Level, float], Line]
    time: Callable[[Level], float]
    """what it takes as time by default"""
    family: str
    """"vp", which needs a schedule of timesteps, "ve" or "flow", which bring their own"""


def _timestep(level: Level) -> float:
    return level.timestep


def _sigma(level: Level) -> float:
    return level.sigma


def thousandth_log(level: Level) -> float:
    """Return 250 ln σ, the time of the networks of consistency_models, EDM's there too."""
    return 250 * math.log(level.sigma + 1e-44)


def _tau(level: Level) -> float:
    return level.tau


PREDICTIONS = {
    "eps": Prediction(noise, _timestep, "vp"),
    "x0": Prediction(picture, _timestep, "vp"),
    "v": Prediction(velocity, _timestep, "vp"),
    "score": Prediction(score, _sigma, "ve"),
    "denoised": Prediction(denoised, _sigma, "ve"),
    "edm": Prediction(edm, log_sigma, "ve"),
    "consistency": Prediction(consistency, thousandth_log, "ve"),
    "flow": Prediction(flow, _tau, "flow"),
}
"""by the name that ``wrap`` takes"""


def check_prediction(name: Any) -> None:
    """Raise ValueError if no prediction has this name."""
    if not isinstance(name, str) or name not in PREDICTIONS:
        raise ValueError(f"prediction: got {name!r}, expected one of {', '.join(PREDICTIONS)}")


_PROCESS = ("noise_schedule", "num_train_timesteps", "alphas")
_FAMILY = (*_PROCESS, "rescale_timesteps", "sigmas", "sigma_data", "value_range", "time")


def corrected(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return what a file says about its prior, corrected by a caller's ``config``.

    A prediction of another family discards the process in the file, and a given schedule replaces
    the one that was found.

    Raises:
        ValueError: ``given`` describes two processes, or no known prediction.
    """
    dropped: tuple[str, ...] = ()
    alphas = given.get("alphas")
    if "prediction" in given:
        check_prediction(given["prediction"])
        before = PREDICTIONS.get(str(found.get("prediction", "eps")), PREDICTIONS["eps"])
        if PREDICTIONS[given["prediction"]].family != before.family:
            dropped = _FAMILY
    if alphas is not None and "noise_schedule" in given:
        raise ValueError(
            f"config: noise_schedule={given['noise_schedule']!r} and alphas, which give another "
            "process; leave one of them out"
        )
    if alphas is not None or "noise_schedule" in given:
        dropped = (*dropped, *_PROCESS)
    merged = {**{k: v for k, v in found.items() if k not in dropped}, **given}
    alphas, steps = merged.get("alphas"), given.get("num_train_timesteps")
    if steps is not None and isinstance(alphas, Sized) and len(alphas) != steps:
        raise ValueError(
            f"config: num_train_timesteps={steps!r} with alphas of {len(alphas)} timesteps; leave "
            "it out, or give noise_schedule with it"
        )
    return merged
