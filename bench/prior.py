"""``python -m bench.prior``: the prior's forward against the official module, on this CPU.

Two networks, the small ADM of the test data (random weights) and the embedded prior, at several
sizes; ours in float32, and in bfloat16 and float16 where the CPU has them, against a transcription
of the official module in float32, interleaved in one run. As in a fusion each runs several times
in a row, ours with the pages of one forward kept for the next as the sampler does; times are of
one forward. With ``--paper`` nothing runs: what a forward of the official 256x256 network costs is
counted by the engine itself on the meta device, and set against public data sheets of GPUs.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path

import torch

from ddfm_fast.images.files import atomic_write_bytes
from ddfm_fast.priors.cost import OFFICIAL, Cost, cost_of, engine_cost, parameter_count
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.precision import cpu_has
from ddfm_fast.priors.prior import Prior
from ddfm_fast.priors.unet import UNet
from ddfm_fast.runtime.memory import pages_kept

from .data import SMALL_ADM, small_adm
from .machine import RESULTS, machine, save
from .model import GPUS
from .reference import ReferenceUNet
from .timing import interleave, summarise

PARITY = 2e-4
"""float32, largest difference of eps; both sides round differently"""
PRECISIONS = ("float32", "bfloat16", "float16")
"""of which those that this CPU multiplies in are run"""
IN_A_ROW = 3
"""forwards; the fewest that a preset runs"""
SIZES = [(64, 64), (256, 320), (512, 640)]
LARGE = [(1088, 1920)]
"""where the official module of the small ADM would take an attention matrix of 68 GB a head"""
PAPER_SIZES = [(256, 256), (512, 640), (1088, 1920), (2176, 3840)]
MEASURED = {"H100 SXM, measured elsewhere: 798 TFLOP/s, 3.0 TB/s": (798e12, 3.0e12)}


def peaks() -> dict[str, tuple[float, float]]:
    """Operations and bytes a second by GPU, from the table of the cost model."""
    return {gpu.name: (gpu.operations, gpu.bandwidth) for gpu in GPUS}


def networks() -> dict[str, tuple[UNet, ReferenceUNet]]:
    """Ours and the official form of each network, with the same weights."""
    small = small_adm()
    embedded = load_prior("embedded").unet
    plain = {k: v.contiguous() for k, v in embedded.state_dict().items()}
    options = embedded.config.pixel_unshuffle, embedded.config.sigma_data
    return {
        "small ADM": (small, ReferenceUNet(small.state_dict(), SMALL_ADM["num_head_channels"])),
        "embedded": (embedded, ReferenceUNet(plain, 64, *options)),
    }


def forward(name: str, size: tuple[int, int], repeats: int, compiled: bool) -> dict:
    """Median times of one forward, float32 checked against the official module first."""
    unet, reference = networks()[name]
    x, t = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    candidates = {"official module, float32": lambda: _in_a_row(lambda: reference(x, t))}
    priors = {p: load_prior(unet, dtype=p) for p in PRECISIONS if cpu_has(getattr(torch, p))}
    if compiled:
        priors |= {f"{p}, compiled": load_prior(unet, dtype=p, compile=True) for p in list(priors)}
    steps = {p: prior.conditioning(t)[0] for p, prior in priors.items()}
    for p, prior in priors.items():
        candidates[f"ours, {p}"] = lambda prior=prior, p=p: _ours_in_a_row(prior, x, steps[p])
    exact = reference(x, t)[:, :3]
    scale = float(exact.abs().max())
    errors = {
        p: float((prior.eps(x, steps[p]).float() - exact).abs().max())
        for p, prior in priors.items()
    }
    if not errors["float32"] <= PARITY * max(scale, 1):
        raise RuntimeError(f"{name}: float32 differs by {errors['float32']:.1e}; no time is told")
    samples = interleave(candidates, repeats=repeats, warmup=1)
    samples = {k: [seconds / IN_A_ROW for seconds in v] for k, v in samples.items()}
    return {
        "network": name,
        "height": size[0],
        "width": size[1],
        "largest_differences": errors,
        "rows": summarise(samples, "official module, float32"),
    }


def _in_a_row(function: Callable[[], object]) -> None:
    for _ in range(IN_A_ROW):
        function()


def _ours_in_a_row(prior: Prior, x: torch.Tensor, step) -> None:
    with pages_kept(x.device):
        _in_a_row(lambda: prior.eps(x, step))


def table(results: list[dict]) -> list[str]:
    """Markdown of the forward benchmark."""
    head = "| network | size | path | median ms | p20 | p80 | times faster | largest error of eps |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in results:
        for name, row in r["rows"].items():
            error = r["largest_differences"].get(name.removeprefix("ours, "))
            lines.append(
                f"| {r['network']} | {r['height']}x{r['width']} | {name} | {row['median_ms']:.1f} "
                f"| {row['p20_ms']:.1f} | {row['p80_ms']:.1f} | {row['times_faster']:.2f} "
                f"| {'–' if error is None else f'{error:.1e}'} |"
            )
    return lines


def official_cost(height: int, width: int) -> Cost:
    """The official module, operator by operator, in float32 as its script runs it."""
    with torch.device("meta"):
        state = UNet(OFFICIAL).state_dict()
    reference = ReferenceUNet(state, OFFICIAL.num_head_channels)
    x = torch.empty(1, 3, height, width, device="meta")
    t = torch.empty(1, dtype=torch.long, device="meta")
    return cost_of(reference, x, t)


def paper() -> list[str]:
    """The whole report of ``--paper`` as Markdown."""
    ours = {size: engine_cost(OFFICIAL, 1, *size) for size in PAPER_SIZES}
    plain = {size: engine_cost(OFFICIAL, 1, *size, fused=False) for size in PAPER_SIZES}
    official = {size: official_cost(*size) for size in PAPER_SIZES[:2]}
    text = [
        "# What a forward of the official 256x256 network costs, on paper",
        "",
        "Counted by running the engine on tensors without data (`ddfm_fast.priors.cost`), by "
        f"`python -m bench.prior --paper`, commit {machine()['commit']}, {datetime.date.today()}. "
        "Nothing here was measured on a GPU. Batch 1, bfloat16, without the variance half; "
        f"{parameter_count(OFFICIAL):,} parameters, {2 * parameter_count(OFFICIAL) / 2**30:.2f} "
        "GiB in bfloat16. Bytes: each operator's inputs, weights and outputs once. Launches: "
        "operators that are not views; each of PyTorch's takes at least one kernel (a convolution "
        "with a bias two, a group norm three), each of ours is one.",
        "",
        "| size | path | TFLOP | GB | launches | peak of activations, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for size in PAPER_SIZES:
        rows = {"ours": ours[size], "our plain operators": plain[size]}
        if size in official:
            rows["official module, float32"] = official[size]
        for name, cost in rows.items():
            text.append(
                f"| {size[0]}x{size[1]} | {name} | {cost.flops / 1e12:.2f} | "
                f"{cost.bytes / 1e9:.1f} | {len(cost.launches)} | {cost.peak_bytes / 2**30:.2f} |"
            )
    text += ["", *_roofline(ours), "", *_kinds(ours[512, 640]), "", *_layers(ours[512, 640])]
    return text


def _roofline(ours: dict) -> list[str]:
    lines = [
        "## Roofline, ms a forward",
        "",
        "Each launch takes the longer of its operations at the peak rate and its bytes at the peak "
        "bandwidth; nothing reaches either. Peaks: public data sheets, dense bfloat16.",
        "",
        "| GPU | " + " | ".join(f"{h}x{w}" for h, w in ours) + " |",
        "|---" * (1 + len(ours)) + "|",
    ]
    for name, (flops, bandwidth) in (peaks() | MEASURED).items():
        cells = (f"{cost.seconds(flops, bandwidth) * 1e3:.1f}" for cost in ours.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _kinds(cost: Cost) -> list[str]:
    flops, bandwidth = next(iter(MEASURED.values()))
    lines = [
        "## By kind at 512x640",
        "",
        "ms: the roofline at 798 TFLOP/s and 3.0 TB/s.",
        "",
        "| kind | launches | GFLOP | GB | ms |",
        "|---|---|---|---|---|",
    ]
    return lines + [_row(name, part, flops, bandwidth) for name, part in cost.by("kind").items()]


def _layers(cost: Cost) -> list[str]:
    flops, bandwidth = next(iter(MEASURED.values()))
    lines = [
        "## By layer at 512x640",
        "",
        '"ends": the first and the last convolution with what surrounds them.',
        "",
        "| layer | launches | GFLOP | GB | ms |",
        "|---|---|---|---|---|",
    ]
    return lines + [_row(name, part, flops, bandwidth) for name, part in cost.by("layer").items()]


def _row(name: str, cost: Cost, flops: float, bandwidth: float) -> str:
    return (
        f"| {name} | {len(cost.launches)} | {cost.flops / 1e9:.1f} | {cost.bytes / 1e9:.3f} "
        f"| {cost.seconds(flops, bandwidth) * 1e3:.2f} |"
    )


def size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prior", description=__doc__)
    parser.add_argument("--paper", action="store_true", help="count, do not run")
    parser.add_argument("--sizes", type=size, nargs="+", help="HxW")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="CPU threads for PyTorch")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--save", action="store_true", help="write to bench/results")
    args = parser.parse_args()
    if args.paper:
        text = paper()
        print("\n".join(text))
        if args.save:
            _write(RESULTS / "prior_paper.md", text)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    results = []
    for name in ("embedded", "small ADM"):
        for shape in args.sizes or SIZES + LARGE * (name == "embedded"):
            # attention over 512x640 takes the official module many seconds
            slow = shape[0] > (256 if name == "small ADM" else 512)
            repeats = 3 if slow else args.repeats
            results.append(forward(name, shape, repeats, args.compile))
            print("\n".join(table(results[-1:])), flush=True)
    print(machine())
    if args.save:
        print(f"wrote {save('prior', results).name}")


def _write(path: Path, lines: list[str]) -> None:
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
