"""The operations of the network's engine, and the ways to run them.

base      what each operation computes
plain     PyTorch's functions, on any device: the twin of the others
onednn    oneDNN's fused operators, on a CPU
native    our C++, on a CPU in float32
onepass   one Triton kernel per layer, on CUDA for networks of few channels
fused     Triton kernels around cuDNN and cuBLAS, on CUDA
choice    which of them run a network
"""
