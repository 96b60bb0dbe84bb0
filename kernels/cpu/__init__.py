"""The prior's network on a CPU: a faster version of ``priors.ops.plain.PlainOps`` in C++, float32.

    Layer      norm, SiLU, resampling, convolution, bias, skip or residual, sums for the next norm
    pack       lays a convolution's weight out for it
    attention  self-attention without the matrix of scores
    status     why they cannot be used here, or None; compiles them the first time

Each is one pass over memory. The twins are PyTorch's operations, which run instead if there is no
C++ compiler, outside Linux, and with ``DDFM_FAST_CPU_KERNELS=0``.
"""

from .attention import attention
from .build import status
from .layer import Layer, Part, Weight, pack, suits_winograd

__all__ = ["Layer", "Part", "Weight", "attention", "pack", "status", "suits_winograd"]
