"""The prior's layers on a CPU: builds, loads and calls ``cpu.cpp``. float32 only.

:func:`layer` is a convolution with all that surrounds it in the network.
The source is compiled when first asked for, by the machine's C++ compiler and for its processor,
as Triton compiles its launchers; the library is kept in the user's cache and found there
afterwards. Where that cannot be, :func:`status` says why, and PyTorch's operations are the path.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared",
         "-fno-math-errno", "-fno-trapping-math")  # fmt: skip
SWITCH = "DDFM_FAST_CPU_KERNELS"
"""environment variable; "0" turns these kernels off"""
COMPILE_SECONDS = 300
SLAB = 32
"""channels that Winograd's transform reads together: every input has a multiple of them"""
WINOGRAD_BLOCK = 16, 24
DIRECT_BLOCK = {1: (8, 24), 2: (8, 12)}
"""outputs that a thread does at once, by stride; their inputs fit a core's cache"""
RESAMPLE = {"": 0, "up": 1, "down": 2}


class _Input(ctypes.Structure):
    """``struct Input`` of cpu.cpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
    ]


class _Layer(ctypes.Structure):
    """``struct Layer`` of cpu.cpp."""

    _fields_ = [
        *((name, _Input) for name in ("part0", "part1", "skip0", "skip1")),
        *((name, ctypes.c_void_p) for name in (
            "norm_weight", "norm_bias", "weight", "skip_weight", "bias", "residual", "out", "sums",
            "team",
        )),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_int64) for name in (
            "n", "source_h", "source_w", "h", "w", "out_h", "out_w", "out_channels",
            "side", "stride", "winograd", "groups", "silu", "resample", "residual_up",
            "block_h", "block_w", "threads",
        )),
    ]  # fmt: skip


class Weight(NamedTuple):
    """A convolution's weight as :func:`pack` lays it out."""

    data: Tensor
    out_channels: int
    side: int
    winograd: bool


class _Library:
    """The compiled functions, and what runs them on several threads."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        self.layer = library.ddfm_layer
        self.layer.argtypes = [ctypes.POINTER(_Layer)]
        library.ddfm_group.restype = ctypes.c_int64
        self.group = int(library.ddfm_group())
        """output channels that are computed together"""
        self.team = _team()


def status() -> str | None:
    """Why these kernels cannot be used here, or None where they can; compiles them if need be."""
    return _load()[1]


def _library() -> _Library:
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {reason}")
    return library


_lock = threading.Lock()


def _load() -> tuple[_Library | None, str | None]:
    with _lock:
        return _load_once()


@lru_cache(maxsize=1)
def _load_once() -> tuple[_Library | None, str | None]:
    if os.environ.get(SWITCH) == "0":
        return None, f"{SWITCH}=0"
    if not sys.platform.startswith("linux"):
        return None, f"built for Linux only, and this is {sys.platform}"
    try:
        return _Library(build(cache_folder())), None
    except Exception as error:  # a compiler can fail in any way: PyTorch's path is there
        return None, str(error)


def cache_folder() -> Path | None:
    """Where compiled libraries are kept; None where there is no such place."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "ddfm_fast"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def build(folder: Path | None, flags: Sequence[str] = ()) -> Path:
    """The compiled library in ``folder``, made if it is not there; None: a temporary one.

    ``flags`` are added for the compiler. RuntimeError without a compiler, or with its complaint.
    """
    compiler = _compiler()
    command = [compiler, *FLAGS, *flags]
    key = hashlib.sha256("\0".join([*command, _version(compiler), _processor()]).encode())
    key.update(SOURCE.read_bytes())
    name = f"cpu-{key.hexdigest()[:24]}.so"
    if folder is not None and (folder / name).exists():
        return folder / name
    target = Path(tempfile.mkdtemp(prefix="ddfm_fast-") if folder is None else folder) / name
    partial = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        _run([*command, str(SOURCE), "-o", str(partial)])
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise RuntimeError(f"no C++ compiler ({', '.join(names)}); install g++")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _processor() -> str:
    """What -march=native looks at: a cache may be shared by machines."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    wanted = "vendor_id", "cpu family", "model", "flags", "Features", "CPU part"
    return "\n".join(line for line in lines if line.split("\t")[0].split(":")[0] in wanted)


def _team() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP library that PyTorch runs on, else None.

    A library of our own would bring threads of its own, and PyTorch's, which spin for a while
    after each operation, would be in their way.
    """
    paths = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    names = "libgomp", "libiomp5", "libomp"
    found = [Path(p) for p in paths if Path(p).name.startswith(names)]
    home = Path(torch.__file__).parent
    for path in sorted(found, key=lambda p: (home not in p.parents, p)):
        function = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


_POINTS = 0.0, 0.75, -0.75, 1.5, -1.5
"""of Winograd's filtering, with infinity; as in cpu.cpp"""


def _transform() -> Tensor:
    """G of F(4x4, 3x3) [6, 3]: a filter's values at the points, and at infinity its last tap."""
    rows = []
    for p in _POINTS:
        scale = 1.0
        for q in _POINTS:
            scale *= 1.0 if p == q else p - q
        rows.append([1 / scale, p / scale, p * p / scale])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def pack(weight: Tensor, winograd: bool) -> Weight:
    """Weight [O, I, 3, 3], [O, I, 1, 1] or [O, I] for :func:`layer`.

    In groups of output channels [groups, taps or points, I, group], the last filled with zeros.
    With ``winograd`` a weight takes four times its size.
    """
    out_channels, channels = weight.shape[:2]
    side = weight.shape[2] if weight.ndim == 4 else 1
    taps = weight.detach().reshape(out_channels, channels, side, side)
    if winograd:
        g = _transform()
        taps = torch.einsum("ai,ocij,bj->ocab", g, taps.double(), g)
    group = _library().group
    missing = -out_channels % group
    taps = torch.cat([taps, taps.new_zeros(missing, *taps.shape[1:])])
    packed = taps.reshape(-1, group, channels, taps[0, 0].numel()).permute(0, 3, 2, 1)
    return Weight(packed.float().contiguous(), out_channels, side, winograd)


def suits_winograd(channels: Sequence[int], side: int, stride: int) -> bool:
    """Whether :func:`layer` can do such a convolution by Winograd's filtering."""
    return side == 3 and stride == 1 and not any(c % SLAB for c in channels)


Part = tuple[Tensor, Tensor | None]
"""an input [N, C, H, W], float32 and channels_last, and the sums that :func:`layer` returned"""


def layer(
    parts: Sequence[Part],
    weight: Weight,
    *,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    groups: int = 1,
    epsilon: float = 0.0,
    silu: bool = False,
    resample: str = "",
    stride: int = 1,
    skip: tuple[Sequence[Part], Weight] | None = None,
    residual: Tensor | None = None,
    residual_up: bool = False,
    out: Tensor | None = None,
    want_sums: bool = True,
) -> Part:
    """One or two inputs side by side, normalised, resampled, convolved; plus bias and residual.

    Args:
        parts: the inputs, of one size; with sums where there is a norm.
        weight: of :func:`pack`, over all their channels; padded by half its side.
        bias: [O].
        norm: weight and bias [all channels] of a group norm of ``groups`` and ``epsilon``, whose
            statistics are combined in float64; or None.
        silu: after the norm, and only with one.
        resample: then "up" doubles by repetition, "down" halves by 2x2 means, "" leaves as is.
        stride: 1 or 2.
        skip: inputs of the result's size and the weight of a 1x1 convolution to add; or
        residual: to add, like the result; with ``residual_up`` of half its size, doubled.
        out: to write to.
        want_sums: whether to return sums.

    Returns:
        The result [N, O, H', W'], channels_last, and float32 [N, blocks, 2, O]: the sums of its
        values and of their squares over parts of each image.
    """
    library = _library()
    (n, _, source_h, source_w), out_channels = parts[0][0].shape, weight.out_channels
    h, w = (_resampled(size, resample) for size in (source_h, source_w))
    pad = weight.side // 2
    out_h, out_w = ((size + 2 * pad - weight.side) // stride + 1 for size in (h, w))
    if out is None:
        strides = out_h * out_w * out_channels, 1, out_w * out_channels, out_channels
        out = torch.empty_strided((n, out_channels, out_h, out_w), strides)
    block_h, block_w = WINOGRAD_BLOCK if weight.winograd else DIRECT_BLOCK[stride]
    blocks = -(-out_h // block_h) * -(-out_w // block_w)
    sums = torch.empty(n, blocks, 2, out_channels) if want_sums else None
    norm_weight, norm_bias = norm or (None, None)
    skip_parts, skip_weight = skip or ((), None)
    call = _Layer(
        *_inputs(parts), *_inputs(skip_parts),
        _address(norm_weight), _address(norm_bias), weight.data.data_ptr(),
        None if skip_weight is None else skip_weight.data.data_ptr(),
        _address(bias), _address(residual), out.data_ptr(), _address(sums), library.team,
        epsilon, n, source_h, source_w, h, w, out_h, out_w, out_channels,
        weight.side, stride, weight.winograd, groups, silu, RESAMPLE[resample], residual_up,
        block_h, block_w, torch.get_num_threads(),
    )  # fmt: skip
    if library.layer(call):
        raise MemoryError("not enough memory for a layer of the prior")
    return out, sums


_NOTHING = _Input()


def _inputs(parts: Sequence[Part]) -> list[_Input]:
    found = [
        _Input(x.data_ptr(), None, x.shape[1], 0)
        if sums is None
        else _Input(x.data_ptr(), sums.data_ptr(), x.shape[1], sums.shape[1])
        for x, sums in parts
    ]
    return found + [_NOTHING] * (2 - len(found))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _resampled(size: int, resample: str) -> int:
    return 2 * size if resample == "up" else size // 2 if resample == "down" else size
