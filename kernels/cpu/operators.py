"""The layer and the attention of a CPU as PyTorch operators: nodes of a user's graphs.

torch.compile and torch.export see ``torch.ops.ddfm_fast.cpu_layer`` and ``cpu_attention`` in place
of :class:`Layer` and :func:`attention`. They take weights as a network has them, so that an
exported graph fits every processor; each weight is laid out when first seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from . import memory
from .attention import attention
from .layer import DIRECT_BLOCK, WINOGRAD_BLOCK, Layer, Weight, pack, suits_winograd

MOST_LAYERS = 64
"""prepared layers that are kept per weight, one for each size"""


class _Laid(NamedTuple):
    """A weight that was laid out."""

    version: int
    """version of its values when it was laid out"""
    weight: Weight
    layers: dict[tuple, Layer]
    """prepared layers, by shapes and options"""


_laid: dict[tuple, _Laid] = {}
"""by the weight's address; a weak reference keeps the entry from serving another tensor there"""


@torch.library.custom_op(
    "ddfm_fast::cpu_layer",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor[] parts, Tensor[] sums, Tensor weight, Tensor? bias, Tensor[] norm, "
        "Tensor? skip_weight, Tensor[] skip, Tensor? residual, int groups, float epsilon, "
        "bool silu, str resample, int stride, bool residual_up, bool want_sums) "
        "-> (Tensor, Tensor)"
    ),
    tags=(torch.Tag.needs_exact_strides,),
)
def cpu_layer(
    parts: Sequence[Tensor],
    sums: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    norm: Sequence[Tensor],
    skip_weight: Tensor | None,
    skip: Sequence[Tensor],
    residual: Tensor | None,
    groups: int,
    epsilon: float,
    silu: bool,
    resample: str,
    stride: int,
    residual_up: bool,
    want_sums: bool,
) -> tuple[Tensor, Tensor]:
    """Run a layer as :class:`.layer.Layer` does, and with its errors.

    Args:
        parts: One or two inputs [N, C, H, W], float32 or bfloat16 as the weight, channels_last.
        sums: The inputs' sums if there is a norm; else none.
        weight: [O, I, 3, 3], [O, I, 1, 1] or [O, I] over the channels of all parts.
        bias: [O] or None.
        norm: Weight and bias [C] of the norm, or nothing.
        skip_weight: Of the 1x1 convolution to add, or None.
        skip: Its inputs.
        residual: What to add, or None.
        groups: Groups of the norm; 0: no norm.
        epsilon: The norm's.
        silu: Whether SiLU follows the norm.
        resample: "up", "down" or "".
        stride: 1 or 2.
        residual_up: Whether the residual has half the result's size.
        want_sums: Whether to compute sums of the result.

    Returns:
        The result [N, O, H', W'] in channels_last, and its sums, empty if they are not wanted.
    """
    options: dict[str, Any] = dict(
        groups=groups, epsilon=epsilon, silu=silu, resample=resample, stride=stride,
        residual_up=residual_up, want_sums=want_sums,
    )  # fmt: skip
    laid = _laid_out(weight, [x.shape[1] for x in parts], stride)
    if skip_weight is not None:
        channels = [x.shape[1] for x in skip]
        options["skip"] = _laid_out(skip_weight, channels, 1).weight, channels
    layer = _prepared(laid, [x.shape for x in parts], options)
    its_sums: Sequence[Tensor | None] = sums or [None] * len(parts)
    y, new_sums = layer(
        list(zip(parts, its_sums, strict=True)),
        bias=bias,
        norm=(norm[0], norm[1]) if norm else None,
        skip=[(x, None) for x in skip],
        residual=residual,
    )
    return y, memory.empty(0) if new_sums is None else new_sums


@cpu_layer.register_fake
def _(
    parts, sums, weight, bias, norm, skip_weight, skip, residual,  # noqa: ARG001
    groups, epsilon, silu, resample, stride, residual_up, want_sums,  # noqa: ARG001
):  # fmt: skip
    n, _, height, width = parts[0].shape
    outs, side = weight.shape[0], weight.shape[2] if weight.ndim == 4 else 1
    if resample:
        height, width = (2 * s if resample == "up" else s // 2 for s in (height, width))
    height, width = ((s + side // 2 * 2 - side) // stride + 1 for s in (height, width))
    strides = height * width * outs, 1, width * outs, outs
    y = parts[0].new_empty_strided((n, outs, height, width), strides)
    if not want_sums:
        return y, y.new_empty(0, dtype=torch.float32)
    winograd = suits_winograd([x.shape[1] for x in parts], side, stride)
    block_h, block_w = WINOGRAD_BLOCK if winograd else DIRECT_BLOCK[stride]
    blocks = -(-height // block_h) * -(-width // block_w)
    return y, y.new_empty((n, blocks, 2, outs), dtype=torch.float32)


@torch.library.custom_op(
    "ddfm_fast::cpu_attention",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor q, Tensor k, Tensor v) -> Tensor",
    tags=(torch.Tag.needs_exact_strides,),
)
def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as :func:`.attention.attention` does, and with its errors."""
    return attention(q, k, v)


@cpu_attention.register_fake
def _(q, k, v):  # noqa: ARG001
    return q.new_empty(q.shape)


def _laid_out(weight: Tensor, channels: Sequence[int], stride: int) -> _Laid:
    """Find a weight's layout, which is made when its values are first seen."""
    side = weight.shape[-1] if weight.ndim == 4 else 1
    winograd = suits_winograd(channels, side, stride)
    version = 0 if weight.is_inference() else weight._version
    place = StorageWeakRef(weight.untyped_storage())
    key = place, weight.storage_offset(), weight.shape, weight.stride(), winograd, weight.dtype
    found = _laid.get(key)
    if found is None or found.version != version:
        for old in list(_laid):
            if old[0].expired():
                _laid.pop(old, None)  # another thread may have dropped it
        found = _laid[key] = _Laid(version, pack(weight, winograd, weight.dtype), {})
    return found


def _prepared(laid: _Laid, shapes: Sequence[torch.Size], options: dict[str, Any]) -> Layer:
    """Find the layer for inputs of these shapes, prepared when they are first seen."""
    key = (*shapes, *((n, id(v[0]) if n == "skip" else v) for n, v in options.items()))
    layer = laid.layers.get(key)
    if layer is None:
        if len(laid.layers) >= MOST_LAYERS:
            laid.layers.clear()
        layer = laid.layers[key] = Layer(laid.weight, shapes, **options)
    return layer
