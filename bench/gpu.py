"""``python -m bench.gpu``: what follows the prior, against its twin, the reference and the bytes.

Interleaved, CUDA events, medians. What is timed is a CUDA graph of several steps, each on buffers
of its own that together exceed the L2 cache: in a real loop the prior has flushed it too. The
bytes a kernel must move, over the copy bandwidth measured in the same run, are its floor. Writes
gpu.json (every sample) and gpu.md. Nothing here has run on a GPU yet; its logic runs in Triton's
interpreter with ``--rehearse``, which times nothing worth reading.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.reference import ReferenceLoop, em_initial
from bench.timing import cpu_seconds, gpu_seconds, interleave, machine, summarise
from ddfm_fast.api import Fuser
from ddfm_fast.files import atomic_write_bytes
from ddfm_fast.graphs import CudaCapture
from ddfm_fast.kernels import TileRectifier, TritonRectifier, module_status
from ddfm_fast.kernels import tile as tile_kernel
from ddfm_fast.kernels.ksolve import spectral_scale_
from ddfm_fast.rectify import Rectifier
from ddfm_fast.schedule import make_schedule, step_rows

SIZES = [(256, 256), (512, 640), (1088, 1920), (2160, 3840)]
STEP_PLANES, RHS_PLANES, UPDATE_PLANES, SCALE_PLANES, FFT_PLANES = 13, 10, 12, 2, 2
"""float32 planes that each must read or write once; a spectrum counts as one"""
REFERENCE_PIXELS = 2**20
"""the reference is timed up to here: its colour conversion on the CPU takes seconds beyond"""
MICRO = 1e6


class Bench:
    """Where and how things are timed: a GPU, or the rehearsal on the CPU."""

    def __init__(self, rehearse: bool, repeats: int):
        self.rehearse, self.repeats = rehearse, 1 if rehearse else repeats
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.clock = cpu_seconds if rehearse else gpu_seconds
        self.sizes = [(20, 36)] if rehearse else SIZES
        self.cache = 0 if rehearse else torch.cuda.get_device_properties(0).L2_cache_size
        self.bandwidth = self._copy_bandwidth()

    def _copy_bandwidth(self) -> float:
        """Measured device copy, bytes read plus written a second."""
        source = torch.rand(1000 if self.rehearse else 2**28, device=self.device)
        target = torch.empty_like(source)
        samples = interleave(
            {"copy": lambda: target.copy_(source)}, repeats=self.repeats, clock=self.clock
        )
        return 2 * source.numel() * 4 / statistics.median(samples["copy"])

    def replay(self, work: Callable[[], object]) -> Callable[[], object]:
        """``work`` as the replay of a CUDA graph."""
        if self.rehearse:
            return work
        capture = CudaCapture(self.device)
        capture.warm_up(work)
        return capture.capture(work)

    def sets(self, height: int, width: int) -> int:
        """How many sets of buffers exceed the L2 cache three times, at least 2, at most 32."""
        bytes_of_one = STEP_PLANES * 4 * height * width
        return 2 if self.rehearse else max(2, min(32, math.ceil(3 * self.cache / bytes_of_one)))

    def times(self, candidates: dict[str, Callable], calls: dict[str, int]) -> dict:
        """Interleaved samples in µs a call; ``calls``: how many one candidate makes at once."""
        samples = interleave(candidates, repeats=self.repeats, clock=self.clock)
        return {n: [s / calls.get(n, 1) * MICRO for s in samples[n]] for n in candidates}


def data(bench: Bench, height: int, width: int, seed: int) -> tuple[Tensor, ...]:
    """i, v [1, 1, H, W], x_t and the prior's output [1, 6, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    i, v = torch.rand(2, 1, 1, height, width, generator=generator).to(bench.device) * 2 - 1
    x = torch.randn(1, 3, height, width, generator=generator).to(bench.device)
    out = torch.randn(1, 6, height, width, generator=generator).to(bench.device)
    return i, v, x, out


def solvers() -> list[str]:
    return ["torch", *(["cupy"] if module_status("cupy")["version"] else []), "tile"]


def make(solver: str, i: Tensor, v: Tensor, rows: list):
    if solver == "tile":
        return TileRectifier(i, v, rows=rows)
    return TritonRectifier(i, v, rows=rows, solver=solver)


def all_steps(rectifiers: list, planes: list[list[Tensor]], outs: list[Tensor]) -> None:
    """One step of each; ``planes``: x_t, and where it goes next for the one-launch step."""
    for rectifier, x, out in zip(rectifiers, planes, outs, strict=True):
        if rectifier.period == 2:
            rectifier.step_(x[0], out, x[1])
            rectifier.turn = 0  # the same addresses again: a graph of one step, not of two
        else:
            rectifier.step_(x[0], out)


def step(bench: Bench, height: int, width: int) -> dict:
    """The step after the prior: reference, twin, kernels eager, kernels in a graph."""
    rows, sets = step_rows(make_schedule(100), "ddim"), bench.sets(height, width)
    sources = [data(bench, height, width, seed) for seed in range(sets)]
    i, v, x, out = sources[0]
    candidates, calls = reference_and_twin(rows, i, v, x, out), {}
    if height * width > REFERENCE_PIXELS:
        del candidates["reference"]
    for solver in solvers():
        rectifiers = [make(solver, a, b, rows) for a, b, _, _ in sources]
        planes = [[x.clone(), torch.empty_like(x)] for _, _, x, _ in sources]
        outs = [out[:, :3] for *_, out in sources]
        work = lambda r=rectifiers, p=planes, o=outs: all_steps(r, p, o)  # noqa: E731
        candidates[f"{solver}, eager"], calls[f"{solver}, eager"] = work, sets
        candidates[f"{solver}, graph"], calls[f"{solver}, graph"] = bench.replay(work), sets
    for precision in ("tf32x3",):
        with tile_precision(precision):
            rectifiers = [make("tile", a, b, rows) for a, b, _, _ in sources]
            planes = [[x.clone(), torch.empty_like(x)] for _, _, x, _ in sources]
            work = lambda r=rectifiers, p=planes, o=outs: all_steps(r, p, o)  # noqa: E731
            name = f"tile in {precision}, graph"
            candidates[name], calls[name] = bench.replay(work), sets
    return {
        "what": "step after the prior",
        "size": [height, width],
        "sets": sets,
        "floor_us": STEP_PLANES * 4 * height * width / bench.bandwidth * MICRO,
        "samples_us": bench.times(candidates, calls),
    }


def reference_and_twin(rows: list, i, v, x, out) -> dict[str, Callable]:
    """The authors' step, transcribed, and ours in plain PyTorch; both eager."""
    schedule = make_schedule(100)
    loop, state = ReferenceLoop(schedule.timesteps, schedule.betas), em_initial(i)
    t, twin, y = torch.tensor([50], device=x.device), Rectifier(i, v, rows=rows), x.clone()
    return {
        "reference": lambda: loop.after_prior(x, t, out, i, v, state, 0.5, 0.001),
        "twin, eager": lambda: twin.step_(y, out),
    }


class tile_precision:
    """The one-launch kernel's transforms in another precision."""

    def __init__(self, precision: str):
        self.precision, self.usual = precision, tile_kernel.PRECISION

    def __enter__(self):
        tile_kernel.PRECISION = self.precision

    def __exit__(self, *error):
        tile_kernel.PRECISION = self.usual


def kernels(bench: Bench, height: int, width: int) -> dict:
    """Each kernel and each FFT alone, with the planes it must move."""
    rows, sets = step_rows(make_schedule(100), "ddim"), bench.sets(height, width)
    sources = [data(bench, height, width, seed) for seed in range(sets)]
    rectifiers = [make("torch", i, v, rows) for i, v, _, _ in sources]
    pairs = list(zip(rectifiers, sources, strict=True))
    spectra = [torch.fft.rfft2(r.rhs.normal_()) for r in rectifiers]
    size = (height, width)

    def each(function: Callable) -> Callable:
        return bench.replay(lambda: [function(*pair) for pair in pairs])

    works = {
        "rhs kernel": (RHS_PLANES, each(lambda r, s: r.rhs_(s[2], s[3]))),
        "update kernel": (UPDATE_PLANES, each(lambda r, s: r.update_(s[2], s[3], r.k))),
        "spectral scale": (
            SCALE_PLANES,
            bench.replay(lambda: [spectral_scale_(spectrum, *size) for spectrum in spectra]),
        ),
        "rfft2": (FFT_PLANES, each(lambda r, s: torch.fft.rfft2(r.rhs))),
        "irfft2": (
            FFT_PLANES,
            bench.replay(lambda: [torch.fft.irfft2(s, s=size, norm="forward") for s in spectra]),
        ),
    }
    candidates = {name: work for name, (_, work) in works.items()}
    samples = bench.times(candidates, dict.fromkeys(candidates, sets))
    plane = 4 * height * width / bench.bandwidth * MICRO
    return {
        "what": "kernels",
        "size": [height, width],
        "sets": sets,
        "floors_us": {name: planes * plane for name, (planes, _) in works.items()},
        "samples_us": samples,
    }


def loops(bench: Bench, height: int, width: int, steps: int) -> dict:
    """A whole fusion with the embedded prior in each graph mode: time, host time, capture."""
    ir, vis = torch.rand(2, height, width, device=bench.device)
    found, fusers = {}, {}
    for mode in ("off",) if bench.rehearse else ("off", "step", "loop"):
        fuser = Fuser(prior="embedded", steps=steps, device=bench.device, graph=mode,
                      backend="triton")  # fmt: skip
        seconds = fuser.warmup([(height, width)])
        summary = fuser.loops.summary()
        found[mode] = {
            "warmup_s": seconds[height, width],
            "graph_bytes": summary[0]["bytes"] if summary else 0,
            "mode": summary[0]["mode"] if summary else "off",
        }
        fusers[mode] = fuser
    run = {mode: lambda f=fuser: f(ir, vis) for mode, fuser in fusers.items()}
    samples = interleave(run, repeats=min(bench.repeats, 5), warmup=1, clock=bench.clock)
    for mode, fuser in fusers.items():
        found[mode] |= {"samples_s": samples[mode], "launch_s": host_seconds(fuser, ir.shape)}
    return {"what": "whole loop, embedded prior", "size": [height, width], "steps": steps,
            "modes": found}  # fmt: skip


def host_seconds(fuser: Fuser, shape: tuple) -> float:
    """Host time of ``run`` alone: what keeps the host from other work during a loop."""
    height, width = (-(-n // fuser.prior.multiple) * fuser.prior.multiple for n in shape)
    with torch.inference_mode():
        loop = fuser.loops.loop(fuser.prior, fuser.config, (1, height, width), False)
        planes = torch.zeros(2, 1, 1, height, width, device=fuser.device)
        loop.load(*planes, 0)
        if fuser.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        loop.run(range(len(loop.rows)), None)
        seconds = time.perf_counter() - start
        if fuser.device.type == "cuda":
            torch.cuda.synchronize()
    return seconds


def launches(bench: Bench, height: int, width: int) -> dict:
    """The kernels of one step by name, as the profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    rows, found = step_rows(make_schedule(100), "ddim"), {}
    i, v, x, out = data(bench, height, width, 0)
    for solver in [] if bench.rehearse else solvers():
        rectifier = make(solver, i, v, rows)
        planes = [[x.clone(), torch.empty_like(x)]]
        all_steps([rectifier], planes, [out])
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            all_steps([rectifier], planes, [out])
            torch.cuda.synchronize()
        events = [e for e in profiler.events() if e.device_type.name == "CUDA"]
        found[solver] = [e.name for e in sorted(events, key=lambda e: e.time_range.start)]
    return {"what": "launches of a step", "size": [height, width], "kernels": found}


def median(samples: list[float]) -> float:
    return statistics.median(samples)


def markdown(report: dict) -> str:
    lines = [f"{report['machine'].get('gpu', 'rehearsal')}, copy "
             f"{report['machine']['copy_bytes_per_second'] / 1e12:.2f} TB/s", ""]  # fmt: skip
    for result in report["results"]:
        size = "x".join(map(str, result["size"]))
        lines += ["", f"**{result['what']}, {size}**", ""]
        if "samples_us" in result:
            lines += ["| | median µs | p20 | p80 | times faster than the first | floor µs "
                      "| of the copy bandwidth |", "|---|---|---|---|---|---|---|"]  # fmt: skip
            rows = summarise(
                {n: [s / MICRO for s in v] for n, v in result["samples_us"].items()},
                next(iter(result["samples_us"])),
            )
            for name, row in rows.items():
                floor = result.get("floors_us", {}).get(name, result.get("floor_us"))
                us = row["median_ms"] * 1e3
                lines.append(
                    f"| {name} | {us:.1f} | {row['p20_ms'] * 1e3:.1f} | {row['p80_ms'] * 1e3:.1f} "
                    f"| {row['times_faster']:.2f} | {floor:.1f} | {floor / us:.2f} |"
                )
        elif "modes" in result:
            lines += ["| graph | s | host s in the loop | warm-up s | MiB |"]
            lines += ["|---|---|---|---|---|"]
            for mode, m in result["modes"].items():
                lines.append(
                    f"| {mode} | {median(m['samples_s']):.3f} | {m['launch_s']:.5f} "
                    f"| {m['warmup_s']:.2f} | {m['graph_bytes'] / 2**20:.0f} |"
                )
        else:
            for solver, names in result["kernels"].items():
                lines.append(f"- {solver}, {len(names)}: {', '.join(n[:48] for n in names)}")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="of the whole loops")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU, interpreted")
    parser.add_argument("--steps-only", action="store_true", help="8 steps at 512x640, for ncu")
    return parser.parse_args()


def eight_steps(bench: Bench) -> None:
    """What Nsight Compute looks at: both solvers' kernels on 512x640 planes."""
    rows = step_rows(make_schedule(100), "ddim")
    i, v, x, out = data(bench, *(bench.sizes[0] if bench.rehearse else (512, 640)), 0)
    for solver in ("torch", "tile"):
        rectifier, planes = make(solver, i, v, rows), [[x.clone(), torch.empty_like(x)]]
        for _ in range(8):
            all_steps([rectifier], planes, [out[:, :3]])


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    args = arguments()
    bench = Bench(args.rehearse, args.repeats)
    if args.steps_only:
        eight_steps(bench)
        return
    steps = 2 if args.rehearse else args.steps
    results = []
    for size in bench.sizes:
        for section in (step, kernels):
            results.append(section(bench, *size))
            print(section.__name__, size, "done", flush=True)
    for size in bench.sizes[:3]:
        results.append(loops(bench, *size, steps))
        print("loops", size, "done", flush=True)
    results.append(launches(bench, *bench.sizes[0]))
    found = machine() | {
        "copy_bytes_per_second": bench.bandwidth,
        "date": str(datetime.date.today()),
    }
    if not args.rehearse:
        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    report = {"machine": found, "results": results}
    text = markdown(report)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(args.out / "gpu.json", (json.dumps(report, indent=1) + "\n").encode())
        atomic_write_bytes(args.out / "gpu.md", text.encode())


if __name__ == "__main__":
    main()
