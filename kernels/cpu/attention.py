"""``attention.cpp``: a faster version of ``F.scaled_dot_product_attention``, float32 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .build import ATTENTION, library


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v of each head, as ``F.scaled_dot_product_attention``.

    Args:
        q: Queries [N, T, heads, d], float32, the last stride 1.
        k: Keys, a view with the same strides.
        v: Values, a view with the same strides.

    Returns:
        [N, T, heads, d], contiguous.

    Raises:
        ValueError: Shape, dtype, device or strides are others.
        MemoryError: There is no memory for scratch.
    """
    compiled = library()
    n, tokens, heads, width = q.shape
    for name, x in (("q", q), ("k", k), ("v", v)):
        right = x.shape == q.shape and x.stride() == q.stride() and x.stride(3) == 1
        if not (right and x.dtype is torch.float32 and x.is_cpu):
            raise ValueError(
                f"{name}: shape {tuple(x.shape)}, {x.dtype}, {x.device}, strides {x.stride()}; "
                f"expected {tuple(q.shape)}, float32 on the CPU, strides {q.stride()} that end in 1"
            )
    out = torch.empty(n, tokens, heads, width)
    packed = torch.empty(n * heads * compiled.attention_floats(tokens, width))
    call = ATTENTION.pack(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), packed.data_ptr(), out.data_ptr(), compiled.team,
        n, tokens, heads, width, q.stride(0), q.stride(1), q.stride(2),
    )  # fmt: skip
    if compiled.attention(call, torch.get_num_threads()):
        raise MemoryError("not enough memory for attention")
    return out
