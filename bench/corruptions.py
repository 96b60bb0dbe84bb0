"""Noise of known strength on a clean pair, the same for everyone who measures with it.

Lumas are float32 [H, W] in [0, 1]. The noise is drawn on the CPU from (corruption, seed) and from
nothing else, so that two commands that name a pair's number get the same picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Plane = np.ndarray
Corruption = Callable[[Plane, Plane, int], tuple[Plane, Plane]]

EXPOSURE, GAMMA, PHOTONS = 0.3, 1.5, 60.0
"""low light: v ↦ Poisson(60 · 0.3 v^1.5) / 60"""


def clean(ir: Plane, vis: Plane, _seed: int) -> tuple[Plane, Plane]:
    """Leave the pair as it is."""
    return ir, vis


def noisy_infrared(sigma: float) -> Corruption:
    """Make the corruption by Gaussian noise of ``sigma`` gray levels, stored in 8 bits."""

    def corrupt(ir: Plane, vis: Plane, seed: int) -> tuple[Plane, Plane]:
        noise = np.random.default_rng([seed, round(sigma)]).standard_normal(ir.shape)
        return quantized(ir + noise * (sigma / 255)), vis

    return corrupt


def low_light(ir: Plane, vis: Plane, seed: int) -> tuple[Plane, Plane]:
    """Darken the visible and count its photons; the infrared stays clean."""
    dark = EXPOSURE * vis.astype(np.float64) ** GAMMA
    photons = np.random.default_rng([seed, 0]).poisson(dark * PHOTONS)
    return ir, np.clip(photons / PHOTONS, 0, 1).astype(np.float32)


def quantized(plane: Plane) -> Plane:
    """Clip to [0, 1] and round to whole gray levels of 255."""
    return (np.round(np.clip(plane, 0, 1) * 255) / 255).astype(np.float32)


CORRUPTIONS: dict[str, Corruption] = {
    "clean": clean,
    "ir-sigma10": noisy_infrared(10),
    "ir-sigma25": noisy_infrared(25),
    "low-light": low_light,
}
"""(infrared, visible, seed) → the corrupted pair, by name"""


def noise_levels(name: str, vis: Plane) -> tuple[float, float]:
    """Return σ of the infrared and of the visible in gray levels, as a denoiser may know it.

    ``vis`` is the corrupted visible: photon noise has the variance of its mean / 60.
    """
    if name == "low-light":
        return 0.0, 255 * float(np.sqrt(vis.mean() / PHOTONS))
    return {"ir-sigma10": 10.0, "ir-sigma25": 25.0}.get(name, 0.0), 0.0
