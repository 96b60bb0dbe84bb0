#!/usr/bin/env bash
# Runs a command on a fake CUDA device: PyTorch's and Triton's real host code, kernels that do nothing.
#   CUDA_VENV=folder tests/fakecuda/run.sh python -m pytest -p fakeplugin -m gpu tests -q
# CUDA_VENV: a virtual environment with a CUDA build of PyTorch, by default .cuda-venv of the checkout.
# FAKE_NUMBERS=1: kernels compute, on the CPU. FAKE_DEVICES (2), FAKE_CAPABILITY (90), FAKE_DRIVER,
# FAKE_VERBOSE=1: see README.md. CUPY_STUB=1 puts a stub of CuPy in front. PROJECT: another checkout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${CUDA_VENV:-$root/.cuda-venv}
project=${PROJECT:-$root}
build=${FAKE_BUILD:-$venv/fakecuda}
[ -x "$venv/bin/python" ] || { echo "no CUDA environment in $venv: make test-cuda-host makes one" >&2; exit 1; }
mkdir -p "$build"
library=$build/libcuda.so.1
if [ "$here/fakecuda.cpp" -nt "$library" ] || [ "$here/libraries.h" -nt "$library" ]; then
  # The headers of PyTorch's own toolkit come first: the layout of structures differs between
  # versions. Its wheels lack crt/, which Triton has.
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  header=$(find -L "$packages/nvidia" -name cuda.h 2>/dev/null | head -n 1)
  include=$(dirname "${header:-/usr/local/cuda/include/cuda.h}")
  "${CXX:-g++}" -O1 -g -std=c++17 -shared -fPIC -I"$include" \
    -I"$packages/triton/backends/nvidia/include" "$here/fakecuda.cpp" -o "$library" -ldl -lpthread
  ln -sf libcuda.so.1 "$build/libcuda.so"
fi
export PYTHONPATH="$project:$project/tests:$project/tests/tools:$here${CUPY_STUB:+:$here/cupy_stub}"
export FAKE_DEVICES=${FAKE_DEVICES:-2} TRITON_LIBCUDA_PATH="$build" LD_LIBRARY_PATH="$build"
exec env PATH="$venv/bin:$PATH" LD_PRELOAD="$library" "$@"
