"""Print how far each layer of the embedded prior is above its floor on one core of this CPU.

    python tests/tools/roofline.py [SIZE] [ROUNDS]

The floor of a layer is the longer of two times: of its multiplications at the highest rate of one
core (m), and of its bytes at the rate of a copy as large as the largest activation (b). Both rates
are measured between forward passes. Multiplications are those of the products, in Winograd's domain
where it is used, without padding, transforms, norms and SiLU; bytes are activations read or written
once, and weights. Times are the processor's on one thread, the least of all rounds, since others
share the caches.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from ddfm_fast.bench.engines import TIMESTEP, pictures
from ddfm_fast.kernels.cpu import build, prebuilt
from ddfm_fast.kernels.cpu.layer import Layer
from ddfm_fast.priors import load_prior
from ddfm_fast.runtime.memory import pages_kept

SOURCE = Path(__file__).parent / "peaks.cpp"
LOOPS = 400_000
TILE, POINTS = 4, 36
"""outputs along a tile's side, and a tile's multiplications for each channel in and out"""


class Row(NamedTuple):
    name: str
    layer: Layer
    made: float
    """multiplications"""
    moved: float
    """bytes"""
    seconds: float


def row_of(name: str, layer: Layer, seconds: float) -> Row:
    weight, (n, out, height, width) = layer.weight, layer.shape
    times = n * height * width * weight.side**2
    if weight.winograd:
        times = n * ceil(height / TILE) * ceil(width / TILE) * POINTS
    made, values = times * out * weight.channels, weight.data.numel()
    if layer.skip is not None:
        made += n * height * width * out * layer.skip.channels
        values += layer.skip.data.numel()
    for shape in (*layer.shapes, *layer.skip_shapes, layer.shape):
        values += torch.Size(shape).numel()
    return Row(name, layer, made, values * weight.dtype.itemsize, seconds)


def thread_seconds(function: Callable, *arguments) -> tuple[float, object]:
    begun = time.thread_time()
    result = function(*arguments)
    return time.thread_time() - begun, result


class Peaks:
    """Multiplications and bytes per second, the most that were seen."""

    def __init__(self, low: bool, count: int):
        with tempfile.TemporaryDirectory() as folder:
            flags = *prebuilt.FLAGS, build.this_processor(), f"-I{prebuilt.HERE}"
            build.run([prebuilt.compiler(), *flags, str(SOURCE), "-o", f"{folder}/peaks.so"])
            shared = ctypes.CDLL(f"{folder}/peaks.so")
        x, y = self.buffers = torch.ones(count), torch.zeros(count)
        self.rates, long, at = [0.0, 0.0], ctypes.c_int64, ctypes.c_void_p
        shared.products.restype = shared.copy.restype = ctypes.c_double
        products = shared.products, at(y.data_ptr()), long(low), long(LOOPS)
        self.looks = products, (shared.copy, at(y.data_ptr()), at(x.data_ptr()), long(count))

    def look(self) -> None:
        for i, look in enumerate(self.looks):
            seconds, done = thread_seconds(*look)
            self.rates[i] = max(self.rates[i], done / seconds)


def table(dtype: str, height: int, width: int, rounds: int) -> None:
    prior, x = load_prior("embedded", dtype=dtype), pictures(1, height, width, 0)[1]
    step = prior.conditioning(torch.tensor([TIMESTEP]))[0]
    prior.eps(x, step)
    layers = {key[0]: layer for key, layer in prior.engine.ops._layers.items()}
    call, least, rests, wholes = Layer.__call__, {}, [], []
    largest = max(torch.Size(layer.shape).numel() for layer in layers.values())
    peaks = Peaks(dtype == "bfloat16", largest // (2 if dtype == "bfloat16" else 1))

    def timed(self, *arguments, **options):
        seconds, result = thread_seconds(lambda: call(self, *arguments, **options))
        rests[-1] -= seconds
        least[id(self)] = min(seconds, least.get(id(self), seconds))
        return result

    Layer.__call__ = timed
    with pages_kept(torch.device("cpu")):
        for _ in range(rounds):
            peaks.look()
            rests.append(0.0)
            wholes.append(thread_seconds(prior.eps, x, step)[0])
            rests[-1] += wholes[-1]
    Layer.__call__ = call
    rows = [row_of(name, layer, least[id(layer)]) for name, layer in layers.items()]
    print_table(dtype, rows, (min(wholes), min(rests)), *peaks.rates)


def print_table(dtype: str, rows: list[Row], whole: tuple, products: float, copied: float) -> None:
    floors = {r.name: max(r.made / products, r.moved / copied) for r in rows}
    inside, together, (whole, rest) = sum(r.seconds for r in rows), sum(floors.values()), whole
    # fmt: off
    print(f"## {dtype}\n{products / 1e9:.0f}e9 multiplications and {copied / 1e9:.1f}e9 bytes a "
          f"second at most. A forward takes {1e3 * whole:.1f} ms, and {1e3 * rest:.1f} of it "
          f"between these layers; they take {1e3 * inside:.1f} and their floors are "
          f"{1e3 * together:.1f} together.\n\n| layer | channels and "
          "size | how | 1e6 mult. | MB | floor, ms | ms | above | share |\n" + "|---" * 9 + "|")
    # fmt: on
    rows.sort(key=lambda r: floors[r.name] - r.seconds)
    for name, layer, made, moved, seconds in rows:
        size = "+".join(str(shape[1]) for shape in layer.shapes)
        size += " to {}, {}x{}".format(*layer.shape[1:])
        how = "Winograd" if layer.weight.winograd else "direct"
        how += f", skip of {layer.skip.channels}" if layer.skip else ""
        floor, bound = floors[name], "b" if moved / copied == floors[name] else "m"
        print(f"| `{name}` | {size} | {how} | {made / 1e6:.0f} | {moved / 1e6:.1f} "
              f"| {1e3 * floor:.2f} {bound} | {1e3 * seconds:.2f} | {1e3 * (seconds - floor):.2f} "
              f"| {seconds / whole:.1%} |")  # fmt: skip


def main(size: str = "512x640", rounds: str = "30") -> None:
    torch.set_num_threads(1)
    for dtype in ("float32", "bfloat16"):
        table(dtype, *map(int, size.split("x")), int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
