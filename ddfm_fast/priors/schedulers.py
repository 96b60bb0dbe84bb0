"""What a diffusers scheduler's configuration says about its network: prediction and schedule."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from .predictions import Level
from .prior import LARGEST

_OTHER_PROCESSES = {
    "KarrasVe": "a process of its own",
    "EDM": "EDM's preconditioning by the scheduler",
    "LCM": "latent consistency",
}
"""part of a scheduler's class name -> the process, which is not supported"""
_USUAL = ("", "DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
"""schedulers that may leave out their betas, which are then the usual ones"""
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_LINEAR = (1e-4, 0.02)
"""first and last beta of the schedule named "linear" """


def keywords_of(scheduler: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the ``config=`` of ``load_prior`` that a scheduler describes.

    Raises:
        ValueError: The process is unknown, or its numbers are impossible.
    """
    kind = str(scheduler.get("_class_name", ""))
    for words, what in _OTHER_PROCESSES.items():
        if words in kind:
            raise _refusal(folder, f"{what} ({kind})")
    if "ScoreSdeVe" in kind:  # trained on pictures in [0, 1]
        ends = _sigmas(scheduler, (0.01, 1348.0), folder)
        return {"prediction": "score", "sigmas": ends, "value_range": (0.0, 1.0)}
    if "CMStochasticIterative" in kind:
        ends = _sigmas(scheduler, (0.002, 80.0), folder)
        data = _number(scheduler, "sigma_data", 0.5, folder)
        return {"prediction": "consistency", "sigmas": ends, "sigma_data": data}
    if "FlowMatch" in kind:
        steps = _timesteps(scheduler, folder)
        return {"prediction": "flow", "time": functools.partial(_times_tau, float(steps))}
    if kind not in _USUAL and not any(scheduler.get(k) for k in ("beta_schedule", "trained_betas")):
        raise _refusal(folder, f"a process that its configuration does not tell by betas ({kind})")
    return _variance_preserving(scheduler, folder)


def _sigmas(
    scheduler: dict[str, Any], usual: tuple[float, float], folder: Path
) -> tuple[float, float]:
    low, high = (_number(scheduler, key, value, folder)
                 for key, value in zip(("sigma_min", "sigma_max"), usual, strict=True))  # fmt: skip
    if not 0 < low < high:
        raise ValueError(
            f"prior: {str(folder)!r} has sigma_min {low:g} and sigma_max {high:g}, expected "
            "numbers above 0, the first the smaller; get scheduler_config.json again"
        )
    return low, high


def _refusal(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"prior: {str(folder)!r} was trained for {what}, expected the scheduler of a process whose "
        "noise levels are known (DDPM, DDIM, PNDM, ScoreSdeVe, CMStochasticIterative, "
        "FlowMatchEuler); call its network by ddfm_fast.priors.wrap(function, prediction)"
    )


def _times_tau(steps: float, level: Level) -> float:
    return steps * level.tau


def _variance_preserving(scheduler: dict[str, Any], folder: Path) -> dict[str, Any]:
    prediction = scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise ValueError(
            f"prior: {str(folder)!r} predicts {prediction!r}, expected one of "
            f"{', '.join(_PREDICTIONS)}"
        )
    found: dict[str, Any] = {"prediction": _PREDICTIONS[prediction]}
    steps = _timesteps(scheduler, folder)
    name = scheduler.get("beta_schedule", "linear")
    ends = (_number(scheduler, "beta_start", _LINEAR[0], folder),
            _number(scheduler, "beta_end", _LINEAR[1], folder))  # fmt: skip
    zero = scheduler.get("rescale_betas_zero_snr") or False
    if not isinstance(zero, bool):
        raise ValueError(
            f"prior: {str(folder)!r} has rescale_betas_zero_snr {zero!r}, expected true or false"
        )
    usual = name == "squaredcos_cap_v2" or (name == "linear" and (ends, steps) == (_LINEAR, 1000))
    if usual and not zero and scheduler.get("trained_betas") is None:
        return {
            **found,
            "noise_schedule": "linear" if name == "linear" else "cosine",
            "num_train_timesteps": steps,
        }
    betas = _betas(scheduler, name, ends, steps, folder)
    alphas = np.cumprod(1 - betas)
    return {**found, "alphas": to_zero(alphas) if zero else alphas}


def to_zero(alphas: np.ndarray) -> np.ndarray:
    """Shift and scale √ᾱ so that the last is 0 (Lin et al. 2024, algorithm 1)."""
    roots = np.sqrt(alphas)
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2


def _betas(
    scheduler: dict[str, Any], name: Any, ends: tuple[float, float], steps: int, folder: Path
) -> np.ndarray:
    if (trained := scheduler.get("trained_betas")) is not None:
        betas = _array(trained)
    elif name == "linear":
        betas = np.linspace(*ends, steps)
    elif name == "scaled_linear":
        betas = np.linspace(math.sqrt(max(ends[0], 0)), math.sqrt(max(ends[1], 0)), steps) ** 2
    elif name == "sigmoid":
        betas = ends[0] + (ends[1] - ends[0]) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    elif name == "squaredcos_cap_v2":
        from ..schedule import make_betas

        betas = make_betas("cosine", steps)
    else:
        raise ValueError(
            f"prior: {str(folder)!r} was trained with betas {name!r}, expected one of "
            f"{', '.join(_BETAS)}"
        )
    if betas.ndim != 1 or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        found = f"betas from {ends[0]} to {ends[1]} over {steps} timesteps"
        if trained is not None:
            found = f"trained_betas {str(trained)[:80]!r}"
        raise ValueError(
            f"prior: {str(folder)!r} was trained with {found}, expected "
            "two or more numbers between 0 and 1; get scheduler_config.json again"
        )
    return betas


def _array(values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def _timesteps(scheduler: dict[str, Any], folder: Path) -> int:
    steps, most = scheduler.get("num_train_timesteps", 1000), LARGEST["num_train_timesteps"]
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(
            f"prior: {str(folder)!r} has num_train_timesteps {steps!r}, expected an integer, 1 to "
            f"{most}"
        )
    return steps


def _number(scheduler: dict[str, Any], key: str, usual: float, folder: Path) -> float:
    value = scheduler.get(key, usual)
    value = usual if value is None else value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"prior: {str(folder)!r} has {key} {value!r}, expected a number")
    return float(value)
