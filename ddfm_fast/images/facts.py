"""Facts about two sources, read on their own device and, if they are integers, from the integers.

Each answer is the same as for planes in [0, 1]: conversion never changes the order of values. A few
rows are examined first, since for most pictures they give the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .color import CHROMA_THRESHOLD, has_chroma, luma
from .containers import INTEGER_MAX
from .planes import Raw, extremes

_FIRST_ROWS = 16
_SAMPLES = 16
"""rows and columns of a first look"""
_CLEARLY = 1e-5
"""difference in [0, 1] that is clear: ten times the rounding of two lumas"""
_WEIGHTS = np.array([0.299, 0.587, 0.114])


def unlikely(ir: Raw, vis: Raw, index: str = "") -> list[str]:
    """List what is surely a mistake in two sources of equal size, one sentence each."""
    found: list[str] = []
    count = len(ir.values)
    for n in range(count):
        place = index if count == 1 else f"{index}[{n}]"
        found += _of_pair(_image(ir, n), _image(vis, n), place)
    return found


def _of_pair(ir: Raw, vis: Raw, index: str) -> list[str]:
    if same_picture(ir, vis):
        return [f"ir{index} and vis{index} are the same picture; give two different sources"]
    levels = [(f"{name}{index}", _flat(raw)) for name, raw in (("ir", ir), ("vis", vis))]
    flat = [(name, level) for name, level in levels if level is not None]
    if len(flat) == 2:
        return [f"ir{index} and vis{index} show nothing; check the files, or value_range"]
    return [
        f"{name} is {value} everywhere, so the result shows only the other source; check the "
        "file, or value_range"
        for name, value in flat
    ]


def same_picture(ir: Raw, vis: Raw) -> bool:
    """Return whether two images have the same luma everywhere; False on different devices."""
    if ir.values.device != vis.values.device or _differ_clearly(ir, vis):
        return False
    return all(
        torch.equal(*(luma(raw.unit(raw.values[..., rows, :]).contiguous()) for raw in (ir, vis)))
        for rows in _rows(ir)
    )


def _differ_clearly(ir: Raw, vis: Raw) -> bool:
    """Return whether a few pixels clearly differ in luma, beyond float32's rounding: most do."""
    if not all(raw.is_integer and raw.values.device.type == "cpu" for raw in (ir, vis)):
        return False
    step = [max(1, side // _SAMPLES) for side in ir.values.shape[-2:]]
    a, b = (_few_lumas(raw, *step) for raw in (ir, vis))
    return bool(np.abs(a - b).max() > _CLEARLY)


def _few_lumas(raw: Raw, rows: int, columns: int) -> Any:
    low, high = raw.spec.value_range or (0, INTEGER_MAX[raw.values.dtype])
    values = raw.values[0, :, ::rows, ::columns].numpy().astype(np.float64)
    unit = ((values - low) / (high - low)).clip(0, 1)
    return unit[0] if len(unit) == 1 else np.tensordot(_WEIGHTS, unit, 1)


def _flat(raw: Raw) -> str | None:
    """Describe the one value of an image; the ends of integers are called black and white."""
    level = flat_level(raw)
    if level is None:
        return None
    if raw.is_integer and raw.spec.value_range is None:
        named = {0: "black", INTEGER_MAX[raw.values.dtype]: "white"}
        return named.get(int(level), f"{level:g}")
    return f"{level:.6g}"


def flat_level(raw: Raw) -> float | None:
    """Return the value that an image has everywhere, in its own units; None if it has several.

    Several values beyond one end of its range all become black or white; then it is that end.
    """
    black, white = raw.spec.value_range or (0.0, 1.0)
    value = 0.0
    for values in (raw.values[..., :_FIRST_ROWS, :], raw.values):
        low, high = extremes(values)
        value = low if raw.is_integer else black + low * (white - black)
        if low != high and raw.spec.value_range is not None:  # the range may make them equal
            low, high = raw.unit(
                torch.tensor((low, high), dtype=values.dtype, device="cpu")
            ).tolist()
            value = black + low * (white - black)
        if low != high:
            return None
    return value


def are_colored(raw: Raw) -> list[bool]:
    """Return which images have color, as :func:`.color.has_chroma` does."""
    return [_is_colored(_image(raw, n)) for n in range(len(raw.values))]


def _is_colored(raw: Raw) -> bool:
    if raw.values.shape[1] == 1:
        return False
    levels = raw.is_integer and raw.spec.value_range is None and raw.values.device.type == "cpu"
    if not levels:
        return any(
            bool(has_chroma(raw.unit(raw.values[..., rows, :]).contiguous())) for rows in _rows(raw)
        )
    most = CHROMA_THRESHOLD * INTEGER_MAX[raw.values.dtype]  # halfway between two levels
    red, green, blue = raw.values[0].numpy()
    for rows in _rows(raw):
        r, g, b = red[rows], green[rows], blue[rows]
        spread = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)
        if spread.max() > most:
            return True
    return False


def _image(raw: Raw, n: int) -> Raw:
    return raw._replace(values=raw.values[n : n + 1])


def _rows(raw: Raw) -> Iterator[slice]:
    """Yield rows from the top, four times as many each time; on a device all, to wait once."""
    height = raw.values.shape[-2]
    start, count = 0, _FIRST_ROWS if raw.values.device.type == "cpu" else height
    while start < height:
        yield slice(start, start + count)
        start, count = start + count, 4 * count
