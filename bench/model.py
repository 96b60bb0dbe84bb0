"""``python -m bench.model``: what a fusion costs on paper, and how far that is from what was timed.

Every operator of a forward is counted on the meta device (``ddfm_fast.priors.cost``): operations,
least bytes, and itself as a launch. On paper each takes the longest of its operations at the peak
rate, its bytes at the peak bandwidth, and a launch; a step after the prior is one pass over its
planes. On a CPU, where nothing overlaps, the launch comes on top. The rates are a data sheet's for
GPUs that nobody here has run on, and this run's own ceilings where the model is checked.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ddfm_fast.priors.cost import OFFICIAL, Cost, cost_of, engine_cost
from ddfm_fast.priors.unet import UNetConfig
from ddfm_fast.schedule import make_schedule, step_rows
from ddfm_fast.step import ReverseStep

from .data import network
from .place import PLANES_OF_A_STEP
from .results import Measurement, Report, latest

LAUNCHES_OF_A_STEP = 8
"""after the prior, with torch.fft: see the README"""


@dataclass(frozen=True)
class Gpu:
    """``operations``: dense bfloat16 or float16 a second; ``bandwidth``: bytes a second."""

    name: str
    operations: float
    bandwidth: float
    price: float
    """US dollars an hour: an assumption, see ``PRICES``"""


PRICES = "assumed on-demand prices in US dollars an hour; put in your own with --price NAME=USD"
GPUS = (
    Gpu("L40S", 362e12, 864e9, 1.0),
    Gpu("RTX 4090", 165.2e12, 1008e9, 0.5),
    Gpu("A100 SXM 80 GB", 312e12, 2039e9, 1.8),
    Gpu("H100 SXM", 989.4e12, 3350e9, 3.0),
    Gpu("H200 SXM", 989.4e12, 4800e9, 3.8),
    Gpu("B200", 2250e12, 8000e9, 5.5),
)
"""peaks from the makers' public data sheets"""
REACHED = 0.6
"""share of both peaks that is taken to be reached; a guess until a GPU has run"""
LAUNCH_S = 2e-6
"""of a kernel inside a CUDA graph, a guess"""
SIZE = (512, 640)
CASES = (
    ("ADM 256x256, preset official", "adm", 100),
    ("ADM 256x256, preset balanced", "adm", 10),
    ("ADM 256x256, preset fast", "adm", 3),
    ("embedded, preset official", "embedded", 100),
    ("embedded, preset balanced", "embedded", 10),
    ("embedded, preset fast", "embedded", 3),
)


def config_of(prior: str) -> UNetConfig:
    return OFFICIAL if prior == "adm" else network(prior).config


@lru_cache(maxsize=64)
def forward_cost(
    prior: str, height: int, width: int, *, batch: int = 1, half: bool = False, fused: bool = False
) -> Cost:
    """The launches of a forward by our engine; ``half``: 16-bit; ``fused``: by our kernels."""
    dtype = torch.bfloat16 if half else torch.float32
    return engine_cost(config_of(prior), batch, height, width, dtype, fused=fused)


@lru_cache(maxsize=64)
def step_cost(height: int, width: int) -> Cost:
    """The operators of a step after the prior in plain PyTorch (transforms count bytes alone)."""
    rows = step_rows(make_schedule(100), "ddim")
    plane = torch.empty(1, 1, height, width, device="meta")
    rectifier = ReverseStep(plane, plane, rows=rows)
    x = torch.empty(1, 3, height, width, device="meta")
    return cost_of(rectifier.step_, x, torch.empty_like(x))


def on_gpu(gpu: Gpu, prior: str, evaluations: int, height: int, width: int) -> float:
    """Seconds of a fusion on paper, 16-bit, batch 1, one CUDA graph."""
    rates = gpu.operations * REACHED, gpu.bandwidth * REACHED
    cost = forward_cost(prior, height, width, half=True, fused=True)
    forward = sum(
        max(launch.flops / rates[0], launch.bytes / rates[1], LAUNCH_S) for launch in cost.launches
    )
    planes = PLANES_OF_A_STEP * 4 * height * width / rates[1]
    return evaluations * (forward + max(planes, LAUNCHES_OF_A_STEP * LAUNCH_S))


def on_cpu(cost: Cost, ceilings: dict[str, dict]) -> float:
    """Seconds at the ceilings of a run, every operator started by the host."""
    start = 1 / ceilings["launch"]["rate"]
    work = cost.seconds(ceilings["float32"]["rate"], ceilings["copy"]["rate"])
    return work + start * len(cost.launches)


@dataclass(frozen=True)
class Check:
    """A prediction beside a measurement of the same run, seconds."""

    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted


def checks(report: Report) -> list[Check]:
    """What the model says of this CPU run, and what was timed; empty for a GPU or a quick run."""
    if "gpu" in report.machine or "launch" not in report.ceilings:
        return []
    found = []
    for m in report.of("prior"):
        if m.green and "ddfm_fast" in m.candidates:
            height, width = map(int, m.size.split("x"))
            cost = forward_cost(m.name, height, width)
            found.append(_check(report, m, f"forward, {m.name}, {m.size}", cost, "ddfm_fast"))
    for m in report.of("step"):
        if m.green and "ddfm_fast" in m.candidates:
            cost = step_cost(*map(int, m.size.split("x")))
            found.append(_check(report, m, f"step after the prior, {m.size}", cost, "ddfm_fast"))
    for m in report.of("loop"):
        height, width = map(int, m.size.split("x"))
        one = [*forward_cost("embedded", height, width).launches]
        one += step_cost(height, width).launches
        for preset in ("official", "fast"):
            if m.green and preset in m.candidates:
                steps = m.facts["steps"][preset]
                cost = Cost(one * steps)
                found.append(_check(report, m, f"fusion, {preset}, {m.size}", cost, preset))
    return found


def _check(report: Report, m: Measurement, what: str, cost: Cost, path: str) -> Check:
    return Check(what, on_cpu(cost, report.ceilings), m.candidates[path].median)


WHY = (
    "Below 1, the machine does better than the model: a map that fits the caches is not read from "
    "memory; the copy, which must write lines it never read, is no upper limit for work that "
    "mostly reads; and a large convolution can pass the rate of a 2048x2048 product.",
    "Above 1, it does worse: convolutions with few channels do not keep the units as busy as a "
    "large product does; the model charges a transform for its bytes and not for its "
    "operations; and threads wait for each other at the end of every operator, which small maps "
    "pay most for.",
)


def check_table(report: Report) -> list[list[str]]:
    """Head and rows of the check."""
    rows = [["what", "on paper", "measured", "measured / paper"]]
    for c in checks(report):
        rows.append(
            [c.what, f"{c.predicted * 1e3:.1f} ms", f"{c.measured * 1e3:.1f} ms", f"{c.ratio:.2f}"]
        )
    return rows


def gpu_table(gpus: tuple[Gpu, ...] = GPUS, size: tuple[int, int] = SIZE) -> list[list[str]]:
    """Head and rows: images a second and dollars for a million frames."""
    head = [f"{size[0]}x{size[1]}", *(f"{g.name}, {g.price:g} $/h" for g in gpus)]
    rows = [head]
    for label, prior, evaluations in CASES:
        cells = []
        for gpu in gpus:
            each = on_gpu(gpu, prior, evaluations, *size)
            cells.append(f"{1 / each:.3g} /s, ${each * 1e6 / 3600 * gpu.price:,.0f}")
        rows.append([label, *cells])
    return rows


def assumptions(size: tuple[int, int] = SIZE) -> str:
    """What the GPU table stands on, in words."""
    adm = forward_cost("adm", *size, half=True, fused=True)
    small = forward_cost("embedded", *size, half=True, fused=True)
    return (
        "On paper; no GPU has run this. Images a second and US dollars for a million frames. "
        f"A forward at {size[0]}x{size[1]}: ADM {adm.flops / 1e12:.2f} TFLOP, "
        f"{adm.bytes / 1e9:.1f} GB, {len(adm.launches)} launches; embedded "
        f"{small.flops / 1e9:.1f} GFLOP, {small.bytes / 1e9:.2f} GB, {len(small.launches)} "
        f"launches; 16-bit, batch 1. {REACHED:.0%} of both data-sheet peaks and "
        f"{LAUNCH_S * 1e6:g} µs a launch are assumed, and so are the prices."
    )


def markdown_table(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def markdown(report: Report | None, gpus: tuple[Gpu, ...] = GPUS) -> list[str]:
    """The model, and its check against a report where there is one."""
    lines = [assumptions(), "", *markdown_table(gpu_table(gpus)), ""]
    if report is not None and checks(report):
        lines += ["Checked on the CPU of the latest result, at its own ceilings:", ""]
        lines += [*markdown_table(check_table(report)), "", *WHY]
    return lines


def with_prices(texts: list[str]) -> tuple[Gpu, ...]:
    """The GPUs with prices from texts such as "H100 SXM=2.5"; ValueError for anything else."""
    found = {gpu.name: gpu for gpu in GPUS}
    for text in texts:
        name, _, price = text.partition("=")
        try:
            found[name] = replace(found[name], price=float(price))
        except (KeyError, ValueError):
            raise ValueError(
                f"--price is {text!r}; expected NAME=USD with a name out of {', '.join(found)}"
            ) from None
    return tuple(found.values())


def main(argv: list[str] | None = None) -> None:
    from .machine import RESULTS

    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument(
        "--price", action="append", default=[], metavar="NAME=USD", help="dollars an hour"
    )
    args = parser.parse_args(argv)
    try:
        gpus = with_prices(args.price)
    except ValueError as error:
        parser.error(str(error))
    found = latest(RESULTS).get("CPU")
    print("\n".join(markdown(found[1] if found else None, gpus)))


if __name__ == "__main__":
    main()
