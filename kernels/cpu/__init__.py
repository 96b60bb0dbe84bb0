"""The prior's network on a CPU, in float32: kernels in C++, each a pass over memory.

    Layer      norm, SiLU, resampling, convolution, bias, skip or residual, sums for the next norm
    pack       lays a convolution's weight out for it
    attention  self-attention without the matrix of scores
    status     why they cannot be used here, or None; compiles them the first time

Their twins are PyTorch's operations (``ddfm_fast.priors.ops.PlainOps``), which are the path where
there is no C++ compiler or no Linux, or with ``DDFM_FAST_CPU_KERNELS=0``.
"""

from .attention import attention
from .build import status
from .layers import Layer, Part, Weight, pack, suits_winograd

__all__ = ["Layer", "Part", "Weight", "attention", "pack", "status", "suits_winograd"]
