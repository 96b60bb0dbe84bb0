"""Callers' images as luma planes that the metrics can trust."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..images.planes import MIN_SIZE

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOLERANCE = 1e-3


def to_luma(image: np.ndarray) -> Tensor:
    """Make the luma plane that metrics are computed on, in whole gray levels.

    BT.601 weights in float32 by OpenCV, then rounded half to even, as the community's evaluator
    does; uint16 is divided by 257 before it is rounded.

    Args:
        image: What `files.reading.read_image` returns: uint8 or uint16, [H, W] or [H, W, 3] (RGB).

    Returns:
        Float64 [H, W], 0..255.

    Raises:
        TypeError: The container or dtype is another one.
        ValueError: The shape is another one.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image: got {type(image).__name__}, expected a NumPy array from files.read_image"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"image: got dtype {image.dtype}, expected uint8 or uint16")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
        raise ValueError(f"image: got shape {image.shape}, expected [H, W] or [H, W, 3]")
    values: np.ndarray = image.astype(np.float32)
    if image.ndim == 3:
        values = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    if image.dtype == np.uint16:
        values = values / np.float32(257)
    return torch.from_numpy(np.round(values).astype(np.float64)).clamp_(0, 255)


def to_triple(fused: Any, ir: Any, vis: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Check three images; return tensors [N, 1, H, W] on fused's device, with their dtypes."""
    given = {"fused": fused, "ir": ir, "vis": vis}
    tensors = {name: _to_tensor(image, name) for name, image in given.items()}
    shape = tensors["fused"].shape
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)} where fused has {tuple(shape)}; metrics "
                "compare pixel by pixel, so register and resize the images first"
            )
    _check_shape(shape)
    for name, tensor in tensors.items():
        _check_values(tensor, name)
    height, width = shape[-2:]
    device = tensors["fused"].device
    f, i, v = (t.reshape(-1, 1, height, width).to(device) for t in tensors.values())
    return f, i, v


def _to_tensor(image: Any, name: str) -> Tensor:
    if isinstance(image, np.ndarray):
        native = image.dtype.newbyteorder("=")
        if native not in (np.uint8, np.float16, np.float32, np.float64):
            raise TypeError(_dtype_message(name, image.dtype))
        return torch.tensor(np.ascontiguousarray(image, dtype=native))
    if isinstance(image, Tensor):
        if image.dtype is not torch.uint8 and image.dtype not in _FLOATS:
            raise TypeError(_dtype_message(name, image.dtype))
        return image.detach()
    raise TypeError(
        f"{name}: got {type(image).__name__}, expected a NumPy array or a torch tensor of luma"
    )


def _dtype_message(name: str, dtype: Any) -> str:
    return (
        f"{name}: got dtype {dtype}, expected uint8 or float luma in 0..255; "
        "metrics.to_luma turns 16-bit and color images into it"
    )


def _check_shape(shape: torch.Size) -> None:
    rank = len(shape)
    if rank not in (2, 3, 4) or (rank == 4 and shape[1] != 1):
        raise ValueError(
            f"fused: got shape {tuple(shape)}, expected [H, W], [N, H, W] or [N, 1, H, W] of luma; "
            "metrics.to_luma turns color into luma"
        )
    if rank > 2 and shape[0] == 0:
        raise ValueError(f"fused: got shape {tuple(shape)}, expected at least one image")
    if min(shape[-2:]) < MIN_SIZE:
        raise ValueError(
            f"fused: got {shape[-2]}x{shape[-1]} pixels, expected at least {MIN_SIZE}x{MIN_SIZE}"
        )


def _check_values(tensor: Tensor, name: str) -> None:
    if tensor.dtype is torch.uint8:
        return
    low, high = (float(value) for value in tensor.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: has NaN or infinite values; expected finite luma in 0..255")
    if low < -_TOLERANCE or high > 255 + _TOLERANCE:
        raise ValueError(
            f"{name}: values reach from {low:g} to {high:g}, expected 0..255; rescale them"
        )
    if 0 < high <= 1 and bool((tensor != tensor.round()).any()):
        raise ValueError(
            f"{name}: values reach from {low:g} to {high:g}, which is the range 0..1; "
            "expected 0..255: multiply by 255"
        )
