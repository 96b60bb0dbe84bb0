"""``attention.cpp``: a faster version of ``F.scaled_dot_product_attention``, float32 on a CPU."""

from __future__ import annotations

from torch import Tensor

from ddfm_fast.runtime import threads

from . import memory
from .build import ATTENTION, library

MOST_ELEMENTS = 2**40
"""of a result, and 2**31 for a head's tokens or width, so that offsets into scratch fit 63 bits"""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v of each head, like ``F.scaled_dot_product_attention``.

    Args:
        q: Queries [N, T, heads, d], float32, the last stride 1.
        k: Keys, a view with the same strides.
        v: Values, a view with the same strides.

    Returns:
        [N, T, heads, d], contiguous.

    Raises:
        ValueError: Shape, dtype, device, strides or alignment are wrong.
        MemoryError: There is no memory for scratch.
    """
    compiled = library()
    if q.ndim != 4 or q.numel() > MOST_ELEMENTS or max(q.shape) > 2**31:
        raise ValueError(f"q: shape {tuple(q.shape)}; expected [N, T, heads, d], 2**40 elements")
    n, tokens, heads, width = q.shape
    inputs = ("q", q), ("k", k), ("v", v)
    for name, x in inputs:
        right = x.shape == q.shape and x.stride() == q.stride() and x.stride(3) == 1
        if not (right and x.dtype is memory.FLOAT and x.is_cpu):
            raise memory.refusal(name, x, q.shape, f"strides {q.stride()} that end in 1")
    out = memory.empty(n, tokens, heads, width)
    if not out.numel():
        return out
    packed = memory.empty(n * heads * compiled.attention_floats(tokens, width))
    addresses = (memory.address(name, x) for name, x in inputs)
    call = ATTENTION.pack(
        *addresses, packed.data_ptr(), out.data_ptr(), compiled.team,
        n, tokens, heads, width, q.stride(0), q.stride(1), q.stride(2),
    )  # fmt: skip
    if compiled.attention(call, threads.count()):
        raise MemoryError("not enough memory for attention")
    return out
