"""Plain fusions that any method must beat, by OpenCV alone: gray float32 [H, W] in [0, 1].

Each takes the two lumas and the noise (σ of the infrared, σ of the visible, in gray levels); only
the denoising one uses it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from ddfm_fast.images.stretch import own_limits, stretched

Plane = np.ndarray
Noise = tuple[float, float]
Baseline = Callable[[Plane, Plane, Noise], Plane]

DEEPEST, SMALLEST = 5, 16
"""most levels of the Laplacian pyramid, and the shortest side of its coarsest level"""
NLM_STRENGTH = 0.8
"""h of the non-local means over σ, between the 0.75 and 0.9 that its literature uses"""


def mean(ir: Plane, vis: Plane, _noise: Noise = (0, 0)) -> Plane:
    """Average the two."""
    return (ir + vis) / 2


def stretched_mean(ir: Plane, vis: Plane, _noise: Noise = (0, 0)) -> Plane:
    """Average the two and stretch all but 0.01 % of the pixels, as our presets do."""
    plane = torch.from_numpy(mean(ir, vis))[None, None]
    return stretched(plane, own_limits(plane, "percentile"))[0, 0].numpy()


def maximum(ir: Plane, vis: Plane, _noise: Noise = (0, 0)) -> Plane:
    """Take the brighter one, pixel by pixel."""
    return np.maximum(ir, vis)


def pyramid(ir: Plane, vis: Plane, _noise: Noise = (0, 0)) -> Plane:
    """Average the coarsest level of two Laplacian pyramids, keep the stronger detail elsewhere.

    Averaging every level would be linear, which is just the mean again.
    """
    parts = [laplacian_levels(np.ascontiguousarray(p, np.float32)) for p in (ir, vis)]
    *details, (base_ir, base_vis) = zip(*parts, strict=True)
    fused = (base_ir + base_vis) / 2
    for a, b in reversed(details):
        detail = np.where(np.abs(a) >= np.abs(b), a, b)
        fused = cv2.pyrUp(fused, dstsize=detail.shape[::-1]) + detail
    return np.clip(fused, 0, 1)


def laplacian_levels(plane: Plane) -> list[Plane]:
    """Split into details from fine to coarse, and the blurred rest last."""
    levels = []
    while len(levels) < DEEPEST and min(plane.shape) >= 2 * SMALLEST:
        coarse = cv2.pyrDown(plane)
        levels.append(plane - cv2.pyrUp(coarse, dstsize=plane.shape[::-1]))
        plane = coarse
    return [*levels, plane]


def guided(ir: Plane, vis: Plane, _noise: Noise = (0, 0)) -> Plane:
    """Weight base and detail by saliency, smoothed along each source's edges.

    Li, Kang and Hu, Image Fusion with Guided Filtering, 2013, with the radii and ε of the paper.
    """
    sources = [np.ascontiguousarray(p, np.float32) for p in (ir, vis)]
    bases = [cv2.blur(p, (31, 31)) for p in sources]
    saliency = [
        cv2.GaussianBlur(np.abs(cv2.Laplacian(p, cv2.CV_32F)), (11, 11), 5) for p in sources
    ]
    infrared = (saliency[0] >= saliency[1]).astype(np.float32)
    fused = np.zeros_like(sources[0])
    for radius, epsilon, layers in (
        (45, 0.3, bases),
        (7, 1e-6, [p - b for p, b in zip(sources, bases, strict=True)]),
    ):
        weights = [
            guided_filter(choice, guide, radius, epsilon).clip(1e-6, 1)
            for choice, guide in zip((infrared, 1 - infrared), sources, strict=True)
        ]
        fused += (weights[0] * layers[0] + weights[1] * layers[1]) / (weights[0] + weights[1])
    return np.clip(fused, 0, 1)


def guided_filter(plane: Plane, guide: Plane, radius: int, epsilon: float) -> Plane:
    """Fit ``plane`` by a·guide + b in every window, and average (He, Sun and Tang 2013)."""

    def average(p: Plane) -> Plane:
        return cv2.blur(p, (2 * radius + 1, 2 * radius + 1))

    mean_g, mean_p = average(guide), average(plane)
    slope = average(guide * plane) - mean_g * mean_p
    slope = slope / (np.maximum(average(guide * guide) - mean_g**2, 0) + epsilon)
    return average(slope) * guide + average(mean_p - slope * mean_g)


def denoised_pyramid(ir: Plane, vis: Plane, noise: Noise = (0, 0)) -> Plane:
    """Remove the known noise by non-local means, then fuse the pyramids."""
    return pyramid(denoised(ir, noise[0]), denoised(vis, noise[1]))


def denoised(plane: Plane, sigma: float) -> Plane:
    """Apply OpenCV's non-local means to 8 bits; σ in gray levels, 0 leaves the plane as it is."""
    if sigma <= 0:
        return plane
    gray = np.round(np.clip(plane, 0, 1) * 255).astype(np.uint8)
    found = cv2.fastNlMeansDenoising(gray, None, NLM_STRENGTH * sigma, 7, 21)
    return found.astype(np.float32) / 255


BASELINES: dict[str, Baseline] = {
    "mean": mean,
    "mean, percentile": stretched_mean,
    "max": maximum,
    "pyramid": pyramid,
    "guided filter": guided,
    "NLM + pyramid": denoised_pyramid,
}
"""(infrared, visible, noise) → fused, by name"""
