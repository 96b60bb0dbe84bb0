"""Noise schedules, respacing and the per-step coefficients of every sampler, all in float64.

A sampler here is a function that fills a table: each reverse step is
``x_{t-1} = a * x_t + b * x0_hat + c * x0_hat_prev + sigma * z`` with ``x0_hat`` the rectified
prediction, so that one update (and one kernel) serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images.integers import as_count, as_int

NOISE_SCHEDULES = ("linear", "cosine")
LEAST_LINEAR = 21
"""timesteps of linear betas: their last is 20 / n"""
LEAST_ALPHA = 4e-5
"""ᾱ at the highest noise level that is sampled from: that of 1000 linear betas"""


def make_betas(noise_schedule: str = "linear", num_train_timesteps: int = 1000) -> np.ndarray:
    """β_t of the forward process, float64 [num_train_timesteps].

    ``"linear"``: from 1e-4 to 0.02 at 1000 steps, scaled by 1000 / n (Ho et al. 2020).
    ``"cosine"``: ᾱ(s) = cos²((s + 0.008) / 1.008 · π/2), β capped at 0.999 (Nichol 2021).
    """
    if (n := as_count(num_train_timesteps, 1)) is None:
        raise ValueError(
            f"num_train_timesteps is {num_train_timesteps!r}; expected a positive int, such as 1000"
        )
    if noise_schedule == "linear":
        if n < LEAST_LINEAR:
            raise ValueError(
                f"num_train_timesteps is {n}; expected at least {LEAST_LINEAR} for linear betas, "
                "which reach 1 otherwise"
            )
        return np.linspace(0.1 / n, 20.0 / n, n, dtype=np.float64)
    if noise_schedule == "cosine":
        level = [math.cos((s / n + 0.008) / 1.008 * math.pi / 2) ** 2 for s in range(n + 1)]
        return np.array([min(1 - level[s + 1] / level[s], 0.999) for s in range(n)])
    raise ValueError(
        f"noise_schedule is {noise_schedule!r}; expected one of {', '.join(NOISE_SCHEDULES)}"
    )


def check_alphas(alphas: Any) -> np.ndarray:
    """Check and return ᾱ_t of a process with any betas, float64 [T], from least to most noise.

    Where the signal-to-noise ratio ends at zero, ᾱ is raised to ``LEAST_ALPHA``, so that x₀ can be
    told from ε.

    Raises:
        ValueError: They are not falling numbers, each at least 0 and below 1.
    """
    try:
        table = np.array([float(a) for a in alphas])
    except (TypeError, ValueError):
        table = np.empty(0)
    falls = table.ndim == 1 and len(table) > 0 and bool((np.diff(table) < 0).all())
    if not falls or not 0 <= table[-1] <= table[0] < 1:
        raise ValueError(
            f"alphas: got {str(alphas)[:80]}, expected the products of 1 - beta of every timestep, "
            "a falling list of numbers below 1 and not below 0"
        )
    return _distinct(np.maximum(table, LEAST_ALPHA))


def _distinct(table: np.ndarray) -> np.ndarray:
    """Leave out all but the first of the timesteps at the floor: they are one noise level."""
    return table[: int((table > LEAST_ALPHA).sum()) + 1]


def trained_alphas() -> np.ndarray:
    """ᾱ_t, float64 [1000], of the linear process that ADM networks and ours are trained on."""
    return np.cumprod(1 - make_betas())


def respace(num_train_timesteps: int, steps: int | str) -> np.ndarray:
    """Return the timesteps to keep, ascending int64, by guided-diffusion's three rules.

    ``100``: 100 steps spread evenly from the first to the last timestep.
    ``"10,20,30"``: the process is cut in three equal sections with 10, 20 and 30 steps each.
    ``"ddim50"``: the fixed integer stride that gives exactly 50 steps.
    Raises ValueError when the count is impossible.
    """
    n = num_train_timesteps
    if isinstance(steps, str) and steps.startswith("ddim"):
        return _strided(n, _as_count(steps[4:], steps), steps)
    if isinstance(steps, str):
        counts = [_as_count(part, steps) for part in steps.split(",")]
    elif as_int(steps) is not None:
        counts = [_as_count(steps, steps)]
    else:
        raise TypeError(
            f"steps is a {type(steps).__name__}; expected an int such as 100, "
            f'or a string such as "ddim50" or "10,20,30"'
        )
    size, extra = divmod(n, len(counts))
    start, kept = 0, []
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            raise ValueError(
                f"steps is {steps!r}: {count} steps do not fit a section of {length} timesteps; "
                f"expected at most {length} there"
            )
        kept += [start + offset for offset in _even_offsets(length, count)]
        start += length
    return np.array(kept, dtype=np.int64)


def _even_offsets(length: int, count: int) -> list[int]:
    stride = (length - 1) / (count - 1) if count > 1 else 1.0
    offsets, position = [], 0.0
    for _ in range(count):
        offsets.append(round(position))
        position += stride  # summed, not multiplied: the published maps round these sums
    return offsets


def _strided(n: int, count: int, steps: str) -> np.ndarray:
    for stride in range(1, n + 1):
        if len(range(0, n, stride)) == count:
            return np.arange(0, n, stride, dtype=np.int64)
    raise ValueError(
        f"steps is {steps!r}: no integer stride over {n} timesteps gives {count} steps; "
        f'take a divisor of {n}, or the plain count "{count}"'
    )


def _as_count(value, steps) -> int:
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(
            f"steps is {steps!r}; expected a positive int such as 100, "
            f'or a string such as "ddim50" or "10,20,30"'
        )
    return count


@dataclass(frozen=True, eq=False)
class Schedule:
    """A respaced diffusion process; arrays are ascending in t, float64 but for ``timesteps``."""

    timesteps: np.ndarray
    """int64 [S], the kept timesteps of the original process"""
    betas: np.ndarray
    alphas_cumprod: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


def spread(start: int, steps: int, power: float = 1.0) -> np.ndarray:
    """``steps`` timesteps from 0 to ``start``, ascending int64: start · (j / (steps − 1))^power.

    A power above 1 spends more of them at low noise. ValueError if they would not be distinct.
    """
    if steps == 1:
        return np.array([start], dtype=np.int64)
    kept = np.rint(start * (np.arange(steps) / (steps - 1)) ** power).astype(np.int64)
    if len(np.unique(kept)) < steps:
        raise ValueError(
            f"steps is {steps}, more than fit below start={start} with spacing={power}; "
            "expected fewer steps, a higher start or a spacing nearer to 1"
        )
    return kept


def make_schedule(
    steps: int | str = 100,
    *,
    noise_schedule: str = "linear",
    num_train_timesteps: int = 1000,
    start: int | None = None,
    spacing: float = 1.0,
    alphas: np.ndarray | None = None,
) -> Schedule:
    """Respace the forward process so that ᾱ is unchanged at the kept timesteps.

    ``steps`` as in :func:`respace`; with ``start``, a count of timesteps from ``start`` down to 0
    as in :func:`spread`. β of the shorter process is 1 − ᾱ_t / ᾱ of the kept timestep before it.
    ``alphas``: ᾱ of a process that has no name, see :func:`check_alphas`; then the named schedule
    is ignored.
    """
    if alphas is None:
        alphas = np.cumprod(1.0 - make_betas(noise_schedule, num_train_timesteps))
    num_train_timesteps = len(alphas)
    if start is None:
        timesteps = respace(num_train_timesteps, steps)
    else:
        start = _checked_start(start, num_train_timesteps)
        timesteps = spread(start, _as_count(steps, steps), spacing)
    kept = alphas[timesteps]
    new_betas = 1.0 - kept / np.append(1.0, kept[:-1])
    return Schedule(timesteps, new_betas, np.cumprod(1.0 - new_betas))


def _checked_start(start: int, num_train_timesteps: int) -> int:
    if as_count(start, 1, num_train_timesteps - 1) is None:
        raise ValueError(
            f"start is {start!r}; expected a timestep from 1 to {num_train_timesteps - 1}"
        )
    return start


@dataclass(frozen=True)
class StepRow:
    """Everything a reverse step needs from the schedule, as Python floats.

    Predict: x0 = recip · x_t − recipm1 · ε. Update: a · x_t + b · x0_hat + c · x0_hat_prev
    + σ · z, σ either ``sigma`` or, with a learned-range prior whose variance half is w in
    [−1, 1], exp((w + 1)/4 · log_var_max + (1 − w)/4 · log_var_min).
    """

    timestep: int
    recip: float
    recipm1: float
    a: float
    b: float
    c: float
    sigma: float
    log_var_min: float
    log_var_max: float


def ddim_update(schedule: Schedule, ddim_eta: float) -> tuple[np.ndarray, ...]:
    """(a, b, c, σ) of DDIM (Song et al. 2021, equation 12), each float64 [S]."""
    alpha, alpha_prev = _alphas(schedule)
    sigma = ddim_eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
    a = np.sqrt((1 - alpha_prev - sigma**2) / (1 - alpha))
    return a, np.sqrt(alpha_prev) - a * np.sqrt(alpha), np.zeros_like(a), sigma


def ddpm_update(schedule: Schedule, _ddim_eta: float = 0.0) -> tuple[np.ndarray, ...]:
    """(a, b, c, σ) of the DDPM posterior (Ho et al. 2020, equation 7; Algorithm 1), float64 [S].

    σ is the posterior's own, "fixed small"; there is no η to choose.
    """
    alpha, alpha_prev = _alphas(schedule)
    a = (1 - alpha_prev) * np.sqrt(1 - schedule.betas) / (1 - alpha)
    b = schedule.betas * np.sqrt(alpha_prev) / (1 - alpha)
    sigma = np.sqrt(schedule.betas * (1 - alpha_prev) / (1 - alpha))
    return a, b, np.zeros_like(a), sigma


SAMPLERS: dict[str, Callable[[Schedule, float], tuple[np.ndarray, ...]]] = {
    "ddim": ddim_update,
    "ddpm": ddpm_update,
}


def step_rows(schedule: Schedule, sampler: str, ddim_eta: float = 0.0) -> list[StepRow]:
    """Return the rows of ``sampler`` in sampling order: the noisiest step first, t = 0 last."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    alpha, alpha_prev = _alphas(schedule)
    posterior = schedule.betas * (1 - alpha_prev) / (1 - alpha)
    # the posterior variance is 0 at t = 0: its log takes the next step's value there
    floor = posterior[min(1, len(schedule) - 1)] or schedule.betas[0]
    columns = (
        np.sqrt(1 / alpha),
        np.sqrt(1 / alpha - 1),
        *SAMPLERS[sampler](schedule, ddim_eta),
        np.log(np.append(floor, posterior[1:])),
        np.log(schedule.betas),
    )
    table = np.stack(columns, axis=1)
    return [
        StepRow(int(t), *map(float, row))
        for t, row in zip(schedule.timesteps[::-1], table[::-1], strict=True)
    ]


def _alphas(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    alpha = schedule.alphas_cumprod
    return alpha, np.append(1.0, alpha[:-1])
