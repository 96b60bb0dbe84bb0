"""The launchers of the prior's kernels as operators of PyTorch: nodes of other people's graphs.

The functions here have the names and arguments of those in ``conv`` and ``group_norm`` that the
prior calls, and each puts one node into what torch.compile or torch.export traces. They take
weights as a network has them. Whole launchers are operators, by ``custom_op``, not the kernels in
them: their checks need real tensors, and Triton's interpreter can then run them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import conv, group_norm
from .conv import Part
from .group_norm import suits_whole
from .moments import chunking

__all__ = ["join_", "layer", "moments", "normalize", "normalize_whole_", "pack", "suits_whole"]

_EXACT = (torch.Tag.needs_exact_strides,)


def pack(weight: Tensor) -> Tensor:
    """Return the weight itself: :func:`layer` lays it out inside, mostly without a copy."""
    return weight


@torch.library.custom_op(
    "ddfm_fast::layer",
    mutates_args=(),
    schema=(
        "(Tensor[] parts, Tensor[] moments, Tensor weight, Tensor[] norm, bool silu, "
        "str resample, int stride, Tensor? bias, Tensor? skip_weight, Tensor[] skip, "
        "Tensor? residual, str residual_size, bool want_moments, bool tf32) -> (Tensor, Tensor)"
    ),
    tags=_EXACT,
)
def _layer(
    parts, moments, weight, norm, silu, resample, stride, bias, skip_weight, skip, residual,
    residual_size, want_moments, tf32,
):  # fmt: skip
    its = moments or [None] * len(parts)
    result = conv.layer(
        [Part(x, m) for x, m in zip(parts, its, strict=True)],
        conv.pack(weight),
        norm=(norm[0], norm[1]) if norm else None,
        silu=silu,
        resample=resample,
        stride=stride,
        bias=bias,
        skip=None if skip_weight is None else (conv.pack(skip_weight), skip),
        residual=residual,
        residual_size=residual_size,
        want_moments=want_moments,
        tf32=tf32,
    )
    return result.data, _or_empty(result.moments, result.data)


@_layer.register_fake
def _(
    parts, moments, weight, norm, silu, resample, stride, bias, skip_weight, skip,  # noqa: ARG001
    residual, residual_size, want_moments, tf32,  # noqa: ARG001
):  # fmt: skip
    n, _, height, width = parts[0].shape
    if resample:
        height, width = (2 * s if resample == "up" else s // 2 for s in (height, width))
    shape = n, weight.shape[0], -(-height // stride), -(-width // stride)
    y = _maps(parts[0], shape)
    return y, _fake_moments(y) if want_moments else y.new_empty(0, dtype=torch.float32)


def layer(
    parts: Sequence[Part],
    packed: Tensor,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    silu: bool = True,
    resample: str = "",
    stride: int = 1,
    bias: Tensor | None = None,
    skip: tuple[Tensor, Sequence[Tensor]] | None = None,
    residual: Tensor | None = None,
    residual_size: str = "",
    want_moments: bool = True,
    tf32: bool = False,
) -> Part:
    """Put ``torch.ops.ddfm_fast.layer`` into a graph: :func:`.conv.layer`."""
    its = [part.moments for part in parts if part.moments is not None] if norm else []
    skip_weight, skip_parts = (None, []) if skip is None else (skip[0], list(skip[1]))
    y, found = _layer(
        [part.data for part in parts], its, packed, list(norm or ()), silu, resample, stride,
        bias, skip_weight, skip_parts, residual, residual_size, want_moments, tf32,
    )  # fmt: skip
    return Part(y, found if want_moments else None)


@torch.library.custom_op(
    "ddfm_fast::moments", mutates_args=(), schema="(Tensor x) -> Tensor", tags=_EXACT
)
def moments(x: Tensor) -> Tensor:
    """Put a node into a graph: :func:`.group_norm.moments`."""
    return group_norm.moments(x)


@moments.register_fake
def _(x):
    return _fake_moments(x)


@torch.library.custom_op(
    "ddfm_fast::join_",
    mutates_args=("h",),
    schema="(Tensor(a!) h, Tensor? bias, Tensor? residual, *, bool upsample=False) -> Tensor",
    tags=_EXACT,
)
def join_(h, bias, residual=None, *, upsample=False):
    """Put a node into a graph: :func:`.group_norm.join_`."""
    return group_norm.join_(h, bias, residual, upsample=upsample)


@join_.register_fake
def _(h, bias, residual=None, *, upsample=False):  # noqa: ARG001
    return _fake_moments(h)


@torch.library.custom_op(
    "ddfm_fast::normalize",
    mutates_args=(),
    schema=(
        "(Tensor[] parts, Tensor[] moments, Tensor weight, Tensor shift, Tensor? bias, bool silu, "
        "str resample, bool pool_input) -> (Tensor, Tensor)"
    ),
    tags=_EXACT,
)
def _normalize(parts, moments, weight, shift, bias, silu, resample, pool_input):
    y, pooled = group_norm.normalize(
        list(zip(parts, moments, strict=True)), weight, shift, bias=bias, silu=silu,
        resample=resample, pool_input=pool_input,
    )  # fmt: skip
    return y, _or_empty(pooled, y)


@_normalize.register_fake
def _(parts, moments, weight, shift, bias, silu, resample, pool_input):  # noqa: ARG001
    n, _, height, width = parts[0].shape
    if resample:
        height, width = (2 * s if resample == "up" else s // 2 for s in (height, width))
    y = _maps(parts[0], (n, sum(x.shape[1] for x in parts), height, width))
    return y, torch.empty_like(y) if pool_input else y.new_empty(0, dtype=torch.float32)


def normalize(
    parts: Sequence[tuple[Tensor, Tensor]],
    weight: Tensor,
    shift: Tensor,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
    resample: str = "",
    out: Tensor | None = None,  # noqa: ARG001
    pool_input: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Put ``torch.ops.ddfm_fast.normalize`` into a graph: :func:`.group_norm.normalize`.

    ``out`` is not written: a graph allocates its own memory.
    """
    data, its = [part[0] for part in parts], [part[1] for part in parts]
    y, pooled = _normalize(data, its, weight, shift, bias, silu, resample, pool_input)
    return y, pooled if pool_input else None


@torch.library.custom_op(
    "ddfm_fast::normalize_whole_",
    mutates_args=("x",),
    schema="(Tensor(a!) x, Tensor weight, Tensor shift, Tensor? bias) -> ()",
    tags=_EXACT,
)
def _normalize_whole_(x, weight, shift, bias):
    group_norm.normalize_whole_(x, weight, shift, bias)


@_normalize_whole_.register_fake
def _(x, weight, shift, bias):  # noqa: ARG001
    return None


def normalize_whole_(
    x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Put ``torch.ops.ddfm_fast.normalize_whole_`` into a graph."""
    _normalize_whole_(x, weight, shift, bias)
    return x


def _maps(like: Tensor, shape: tuple) -> Tensor:
    n, channels, height, width = shape
    strides = height * width * channels, 1, width * channels, channels
    return like.new_empty_strided((n, channels, height, width), strides)


def _fake_moments(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    sets = chunking(height * width, channels)[2]
    return x.new_empty((n, sets, 2, channels), dtype=torch.float32)


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.float32) if x is None else x
