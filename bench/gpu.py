"""``python -m bench.gpu``: the step after the prior on a GPU, kernels against twin and byte floor.

Interleaved and timed by CUDA events; the kernels also in a CUDA graph. Inputs are not rotated, so
small sizes are served from the L2 cache: judge bandwidth by 2160x3840. Writes one JSON and one
Markdown table. Nothing here has run on a GPU yet; expect to mend it on the first one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from bench.timing import machine
from ddfm_fast.rectify import Rectifier
from ddfm_fast.schedule import make_schedule, step_rows

SIZES = [(256, 256), (512, 640), (1088, 1920), (2160, 3840)]
PLANES = 13
"""float32 planes that a step must read or write once"""


def captured(function: Callable[[], object]) -> Callable[[], object]:
    """``function`` as the replay of a CUDA graph, warmed up on a side stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def microseconds(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median of each, the functions taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) * 1e3)
    return {name: statistics.median(values) for name, values in samples.items()}


def copy_bandwidth() -> float:
    """Measured device copy, bytes read plus written a second."""
    source = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    time = microseconds({"copy": lambda: target.copy_(source)}, 20)["copy"]
    return 2 * source.numel() / (time * 1e-6)


def step(height: int, width: int, repeats: int, bandwidth: float) -> dict:
    from ddfm_fast.kernels import TritonRectifier

    i, v = torch.rand(2, 1, 1, height, width, device="cuda") * 2 - 1
    x, eps = torch.randn(2, 1, 3, height, width, device="cuda")
    rows = step_rows(make_schedule(100), "ddim")
    kernels = TritonRectifier(i, v, rows=rows)
    twin = Rectifier(i, v)
    ours, theirs = x.clone(), x.clone()
    functions = {
        "twin, eager": lambda: twin.step_(theirs, eps, rows[50]),
        "kernels, eager": lambda: kernels.step_(ours, eps),
        "kernels, graph": captured(lambda: kernels.step_(ours, eps)),
    }
    found = microseconds(functions, repeats)
    found["byte floor"] = PLANES * 4 * height * width / bandwidth * 1e6
    return {"height": height, "width": width, "median_us": found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for step.json and step.md")
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    results = []
    for size in SIZES:
        results.append(step(*size, args.repeats, bandwidth))
        print(results[-1], flush=True)
    names = list(results[0]["median_us"])
    lines = ["| size | " + " | ".join(f"{n}, µs" for n in names) + " |", "|---" * 5 + "|"]
    for r in results:
        cells = (f"{r['median_us'][n]:.1f}" for n in names)
        lines.append(f"| {r['height']}x{r['width']} | " + " | ".join(cells) + " |")
    device = {
        "gpu": torch.cuda.get_device_name(0),
        "cuda": torch.version.cuda,
        "copy_bytes_per_second": bandwidth,
        "date": str(datetime.date.today()),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine() | device, "results": results}
    (args.out / "step.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "step.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
