"""Tone-map high dynamic range for a BT.709 screen.

A PQ (SMPTE ST 2084) or HLG (ARIB STD-B67, ITU-R BT.2100) signal becomes light in cd/m². Light above
the knee is rolled off to 203 cd/m², white in BT.2408, by the curve of ITU-R BT.2390, on the largest
of red, green and blue so that hues stay. The primaries of BT.2020 become those of BT.709, and the
result is coded for a display of gamma 2.4 (BT.1886).
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

PQ, HLG = 16, 18
"""FFmpeg's numbers of the two transfer functions"""
PEAK, WHITE = 1000.0, 203.0
"""cd/m² of the brightest light that is still distinguished, and of what becomes white"""
_TOP = 65535
_GAMMA = 2.4
_M1, _M2 = 2610 / 16384, 2523 / 32
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073
_LUMA = np.array((0.2627, 0.6780, 0.0593), np.float32)
_TO_709 = np.array(
    ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    np.float32,
)
"""linear BT.2020 to linear BT.709 (ITU-R BT.2087)"""


def to_sdr(image: np.ndarray, transfer: int, *, wide: bool = True) -> np.ndarray:
    """Tone-map a picture.

    Args:
        image: [H, W, 3] RGB or [H, W] gray as coded, uint16 0..65535 or uint8 0..255.
        transfer: `PQ` or `HLG`.
        wide: Whether its primaries are those of BT.2020.

    Returns:
        The picture in BT.709 of the same shape and dtype.
    """
    if image.dtype == np.uint8:
        return (to_sdr(image.astype(np.uint16) * 257, transfer, wide=wide) / 257 + 0.5).astype(
            np.uint8
        )
    light = _light_table(transfer)[image]
    color = image.ndim == 3
    if transfer == HLG:  # the display's part: bright pixels become brighter still
        luma = light @ _LUMA if color else light
        gain = PEAK * np.power(np.maximum(luma, 1e-9), 0.2)
        light *= gain[..., None] if color else gain
    largest = light.max(axis=2) if color else light
    nits, gains = _roll_off()
    gain = np.interp(largest, nits, gains).astype(np.float32)
    light *= gain[..., None] if color else gain
    if color and wide:
        light = cv2.transform(light, _TO_709)
    shown = np.power(np.clip(light, 0, 1), np.float32(1 / _GAMMA))
    return np.rint(shown * _TOP).astype(np.uint16)


@lru_cache(maxsize=2)
def _light_table(transfer: int) -> np.ndarray:
    """Return the light of every code value: cd/m² for PQ, the scene's light in 0..1 for HLG."""
    code = np.arange(_TOP + 1) / _TOP
    if transfer == PQ:
        return _from_pq(code).astype(np.float32)
    light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - _C) / _A) + _B) / 12)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _roll_off() -> tuple[np.ndarray, np.ndarray]:
    """Return (cd/m², factor that makes white 1): the curve of BT.2390, with black unchanged."""
    nits = np.concatenate([[0.0], np.geomspace(1e-3, 10_000, 2048)])
    top = _to_pq(np.array(PEAK))
    code = np.minimum(_to_pq(nits) / top, 1)
    largest = _to_pq(np.array(WHITE)) / top
    knee = 1.5 * largest - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    rolled = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * largest
    )
    mapped = _from_pq(np.where(code < knee, code, rolled) * top)
    gains = np.divide(mapped, nits * WHITE, out=np.full_like(nits, 1 / WHITE), where=nits > 0)
    return nits, gains


def _from_pq(code: np.ndarray) -> np.ndarray:
    root = code ** (1 / _M2)
    return 10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _to_pq(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
