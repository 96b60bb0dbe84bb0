"""What a fusion costs on paper: the page's last part.

Every operator of a forward pass is counted on the meta device (``ddfm_fast.priors.cost``): its
operations, its least bytes, and one launch. On paper it takes the longest of its operations at the
peak rate, its bytes at the peak bandwidth, and a launch; a step after the prior is one pass over
its planes. The rates are from data sheets, for GPUs on which nobody here has run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ddfm_fast.priors.cost import Cost, cost_of, engine_cost
from ddfm_fast.priors.unet import UNet

from .data import config_of
from .place import PLANES_OF_A_STEP
from .reference import ReferenceUNet

LAUNCHES_OF_A_STEP = 8
"""launches of a step after the prior, with torch.fft: see the README"""


@dataclass(frozen=True)
class Gpu:
    """``operations``: dense bfloat16 or float16 per second; ``bandwidth``: bytes per second."""

    name: str
    operations: float
    bandwidth: float
    price: float
    """US dollars per hour, on demand: an assumption"""


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
"""share of both peaks that is assumed to be reached; a guess until a GPU has run"""
LAUNCH_S = 2e-6
"""seconds per kernel inside a CUDA graph, a guess"""
SIZE = (512, 640)
EVALUATIONS = {"official": 100, "balanced": 10, "fast": 3}
"""evaluations of the prior, by preset"""
FORWARD_SIZES = [(256, 256), (512, 640), (1088, 1920), (2176, 3840)]
MEASURED = Gpu("H100 at 798 TFLOP/s and 3.0 TB/s, measured elsewhere", 798e12, 3.0e12, 3.0)


@lru_cache(maxsize=64)
def forward_cost(
    prior: str, height: int, width: int, *, batch: int = 1, half: bool = False, fused: bool = False
) -> Cost:
    """Return the launches of our engine's forward; ``half``: 16-bit; ``fused``: by our kernels."""
    dtype = torch.bfloat16 if half else torch.float32
    return engine_cost(config_of(prior), batch, height, width, dtype, fused=fused)


def on_gpu(gpu: Gpu, prior: str, evaluations: int, height: int, width: int) -> float:
    """Return the seconds of a fusion on paper: 16-bit, batch 1, one CUDA graph."""
    rates = gpu.operations * REACHED, gpu.bandwidth * REACHED
    cost = forward_cost(prior, height, width, half=True, fused=True)
    forward = sum(
        max(launch.flops / rates[0], launch.bytes / rates[1], LAUNCH_S) for launch in cost.launches
    )
    planes = PLANES_OF_A_STEP * 4 * height * width / rates[1]
    return evaluations * (forward + max(planes, LAUNCHES_OF_A_STEP * LAUNCH_S))


def gpu_table() -> list[list[str]]:
    """Return head and rows: images per second, and dollars per million frames, at ``SIZE``."""
    rows = [["{}x{}".format(*SIZE), *(f"{g.name}, {g.price:g} $/h" for g in GPUS)]]
    for prior in ("official", "embedded"):
        for preset, evaluations in EVALUATIONS.items():
            times = [(on_gpu(gpu, prior, evaluations, *SIZE), gpu.price) for gpu in GPUS]
            cells = [f"{1 / s:.3g} /s, ${s * 1e6 / 3600 * price:,.0f}" for s, price in times]
            rows.append([f"{prior} prior, preset {preset}", *cells])
    return rows


def reference_cost(height: int, width: int) -> Cost:
    """Return the authors' module, operator by operator, in float32 as their script runs it."""
    config = config_of("official")
    with torch.device("meta"):
        module = ReferenceUNet(UNet(config).state_dict(), config.num_head_channels)
        x, t = torch.empty(1, 3, height, width), torch.empty(1, dtype=torch.long)
    return cost_of(module, x, t)


def forward_table() -> list[list[str]]:
    """Return head and rows: a forward of the authors' network, with and without our kernels.

    For each launch, the roofline takes the longer of its operations and its bytes.
    """
    rows = [["size", "path", "TFLOP", "GB", "launches", "peak GiB", f"ms, {MEASURED.name}"]]
    for size in FORWARD_SIZES:
        costs = {
            "ours, bfloat16": forward_cost("official", *size, half=True, fused=True),
            "our plain operators, bfloat16": forward_cost("official", *size, half=True),
        }
        if size in FORWARD_SIZES[:2]:  # beyond, its attention alone takes 68 GB per head
            costs["authors' module, float32"] = reference_cost(*size)
        for path, cost in costs.items():
            roof = "" if "float32" in path else f"{_roofline(cost) * 1e3:.1f}"
            rows.append(
                ["{}x{}".format(*size), path, f"{cost.flops / 1e12:.2f}", f"{cost.bytes / 1e9:.1f}",
                 str(len(cost.launches)), f"{cost.peak_bytes / 2**30:.2f}", roof]
            )  # fmt: skip
    return rows


def kind_table() -> list[list[str]]:
    """Return head and rows: the launches of that forward by kind, at ``SIZE`` in bfloat16."""
    rows = [["kind", "launches", "GFLOP", "GB", f"ms, {MEASURED.name}"]]
    for kind, cost in forward_cost("official", *SIZE, half=True, fused=True).by("kind").items():
        numbers = (
            f"{cost.flops / 1e9:.1f}",
            f"{cost.bytes / 1e9:.3f}",
            f"{_roofline(cost) * 1e3:.2f}",
        )
        rows.append([kind, str(len(cost.launches)), *numbers])
    return rows


def _roofline(cost: Cost) -> float:
    return cost.seconds(MEASURED.operations, MEASURED.bandwidth)


def assumptions() -> str:
    """Return the assumptions of the table of GPUs, in words."""
    return (
        "On paper; no GPU has run this. Images a second and US dollars for a million frames, "
        f"16-bit, batch 1. {REACHED:.0%} of both data-sheet peaks and {LAUNCH_S * 1e6:g} µs per "
        "launch are assumed, and so are the prices."
    )


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Format rows as lines of Markdown; the first one is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
