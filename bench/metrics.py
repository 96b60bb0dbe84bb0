"""The paper's six metrics as a plain NumPy transcription: the baseline of section ``metrics``.

It is written from what the community's evaluator computes, with its costs on purpose: 2-D windows
by ``convolve2d``, float64 VIF, boolean masks, label counting for mutual information.
``tests/metrics/test_metrics.py`` uses it as an oracle.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity


def entropy(fused: np.ndarray) -> float:
    share = np.bincount(np.round(fused).astype(np.uint8).ravel()) / fused.size
    return float(-np.sum(share * np.log2(share + (share == 0))))


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Compute mutual information in nats, over the labels that occur."""
    _, rows = np.unique(a.ravel(), return_inverse=True)
    _, columns = np.unique(b.ravel(), return_inverse=True)
    joint = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(joint, (rows, columns), 1)
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float(np.sum(joint[there] * np.log(joint[there] / expected[there])))


def vif(source: np.ndarray, fused: np.ndarray) -> float:
    """Compute the pixel-domain VIF of one source."""
    noise, floor = 2.0, 1e-10
    kept = there = 0.0
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        offsets = np.arange(size) - (size - 1) / 2
        line = np.exp(-(offsets**2) / (2 * (size / 5) ** 2))
        window = np.outer(line, line) / line.sum() ** 2

        def average(plane: np.ndarray, window: np.ndarray = window) -> np.ndarray:
            return convolve2d(plane, window, mode="valid")

        if scale:
            source, fused = average(source)[::2, ::2], average(fused)[::2, ::2]
        mean_s, mean_f = average(source), average(fused)
        var_s = np.maximum(average(source * source) - mean_s**2, 0)
        var_f = np.maximum(average(fused * fused) - mean_f**2, 0)
        cov = average(source * fused) - mean_s * mean_f
        gain = cov / (var_s + floor)
        left = var_f - gain * cov
        flat_s, flat_f = var_s < floor, var_f < floor
        gain[flat_s], left[flat_s], var_s[flat_s] = 0, var_f[flat_s], 0
        gain[flat_f], left[flat_f] = 0, 0
        left[gain < 0] = var_f[gain < 0]
        gain[gain < 0] = 0
        left[left <= floor] = floor
        kept += np.sum(np.log10(1 + gain**2 * var_s / (left + noise)))
        there += np.sum(np.log10(1 + var_s / noise))
    return float(kept / there)


def _gradient(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    down = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], np.float32)
    x, y = convolve2d(plane, across, mode="same"), convolve2d(plane, down, mode="same")
    angle = np.full_like(plane, math.pi / 2)
    angle[x != 0] = np.arctan(y[x != 0] / x[x != 0])
    return np.sqrt(x * x + y * y), angle


def qabf(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> float:
    strength_f, angle_f = _gradient(fused)
    part = whole = 0.0
    for source in (ir, vis):
        strength, angle = _gradient(source)
        ratio = np.zeros_like(strength)
        more, less, same = strength > strength_f, strength < strength_f, strength == strength_f
        ratio[more] = strength_f[more] / strength[more]
        ratio[less] = strength[less] / strength_f[less]
        ratio[same] = strength_f[same]
        alignment = 1 - np.abs(angle - angle_f) / (math.pi / 2)
        kept = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        kept = kept * 0.9879 / (1 + np.exp(-22 * (alignment - 0.8)))
        part, whole = part + np.sum(kept * strength), whole + np.sum(strength)
    return float(part / whole)


def baseline(fused: np.ndarray, ir: np.ndarray, vis: np.ndarray) -> dict[str, float]:
    """Return the six metrics in convention cddfuse, of float32 [H, W] luma in whole gray levels."""
    sources = (ir, vis)
    return {
        "EN": entropy(fused),
        "SD": float(np.std(fused)),
        "MI": sum(mutual_information(fused, s) for s in sources),
        "VIF": sum(vif(s, fused) for s in sources),
        "Qabf": qabf(fused, ir, vis),
        "SSIM": float(sum(structural_similarity(fused, s, data_range=2) for s in sources)),
    }
