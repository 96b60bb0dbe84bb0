"""``attention.cpp``: self-attention, float32 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import build


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v of each head, as ``F.scaled_dot_product_attention``.

    Args:
        q, k, v: [N, T, heads, d], float32, views with the same strides, the last one 1.

    Returns:
        [N, T, heads, d], contiguous.
    """
    library = build.library()
    n, tokens, heads, width = q.shape
    for name, x in (("q", q), ("k", k), ("v", v)):
        right = x.shape == q.shape and x.stride() == q.stride() and x.stride(3) == 1
        if not (right and x.dtype is torch.float32 and x.is_cpu):
            raise ValueError(
                f"{name}: shape {tuple(x.shape)}, {x.dtype}, {x.device}, strides {x.stride()}; "
                f"expected {tuple(q.shape)}, float32 on the CPU, strides {q.stride()} that end in 1"
            )
    out = torch.empty(n, tokens, heads, width)
    packed = torch.empty(n * heads * library.attention_floats(tokens, width))
    call = build.ATTENTION.pack(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), packed.data_ptr(), out.data_ptr(), library.team,
        n, tokens, heads, width, q.stride(0), q.stride(1), q.stride(2),
    )  # fmt: skip
    if library.attention(call, torch.get_num_threads()):
        raise MemoryError("not enough memory for attention")
    return out
