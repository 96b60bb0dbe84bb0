"""``python -m bench.gpu_prior --out FOLDER``: the official network's forward on a GPU, every way.

Random weights; medians of CUDA events, candidates taking turns. In this order, until ``--seconds``
are spent (what is left out is named): forwards at each size, batch and precision; layers of ours
against their floor; convolutions one by one; norms; the whole loop. Floors and "of the rate" refer
to the matrix product and the copy measured in the same run. Results are written after each part.

Never run on a GPU yet: expect to mend it on the first one. ``--tiny`` runs all of it on a CPU
with a tiny network, which says nothing about speed but that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from ddfm_fast.config import FuseConfig
from ddfm_fast.images.files import atomic_write_bytes
from ddfm_fast.priors.cost import OFFICIAL, engine_cost
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops import FusedOps, PlainOps
from ddfm_fast.priors.precision import PRECISIONS
from ddfm_fast.priors.prior import Prior
from ddfm_fast.priors.unet import UNet, UNetConfig, upsampling_kernel
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule

from .machine import machine
from .reference import ReferenceLoop, ReferenceUNet

TINY = UNetConfig(32, 1, (2,), channel_mult=(1, 2), num_head_channels=32, resblock_updown=True,
                  use_scale_shift_norm=True)  # fmt: skip
SHAPES = [(512, 640, 1), (256, 256, 1), (1088, 1920, 1), (512, 640, 4), (256, 256, 4)]
SHAPES += [(1088, 1920, 4)]
FIRST = ("bfloat16", "float16", "tf32", "float32")
NORMS = [(256, 512, 640), (512, 512, 640), (512, 128, 160), (1024, 32, 40)]


class Bench:
    """The device, the network, the clock and what has been found so far."""

    def __init__(self, out: Path, seconds: float, tiny: bool, repeats: int):
        self.device = torch.device("cpu" if tiny else "cuda")
        self.tiny, self.repeats, self.out = tiny, repeats, out
        self.end = time.monotonic() + seconds
        self.config = TINY if tiny else OFFICIAL
        self.found: dict = {"left_out": [], "failed": {}}
        self.unet = random_unet(self.config, self.device)

    def milliseconds(self, functions: dict[str, Callable], repeats: int | None = None) -> dict:
        """Median of each, the functions taking turns, each warmed up twice."""
        samples: dict[str, list[float]] = {name: [] for name in functions}
        for function in functions.values():
            function()
            function()
        for _ in range(repeats or self.repeats):
            for name, function in functions.items():
                samples[name].append(self._one(function))
        return {name: statistics.median(values) for name, values in samples.items()}

    def _one(self, function: Callable) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def captured(self, function: Callable) -> Callable:
        """``function`` as the replay of a CUDA graph; on a CPU itself."""
        if self.device.type == "cpu":
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def attempt(self, name: str, part: Callable[[], dict]) -> None:
        """Run a part if time is left, keep what it finds, or why it failed."""
        if time.monotonic() > self.end:
            self.found["left_out"].append(name)
            return
        try:
            with torch.no_grad():
                self.found[name] = part()
            print(name, json.dumps(self.found[name]), flush=True)
        except Exception as error:  # one part that fails must not cost the others
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name}: FAILED: {self.found['failed'][name]}", flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.found, indent=1) + "\n"
        atomic_write_bytes(self.out / "prior.json", text.encode())
        atomic_write_bytes(self.out / "prior.md", ("\n".join(report(self.found)) + "\n").encode())


def random_unet(config: UNetConfig, device: torch.device) -> UNet:
    """Every weight random, scaled so that activations stay finite in float16 too."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5)
    return unet


def rates(bench: Bench) -> dict:
    """Measured matrix rate per precision, and copy bandwidth: TFLOP/s and TB/s."""
    n = 256 if bench.tiny else 8192
    found = {}
    for name in ("bfloat16", "float16"):
        a, b = torch.randn(2, n, n, device=bench.device).to(PRECISIONS[name])
        ms = bench.milliseconds({name: lambda a=a, b=b: a @ b})[name]
        found[name] = 2 * n**3 / ms / 1e9
    source = torch.empty(2**20 if bench.tiny else 2**28, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    ms = bench.milliseconds({"copy": lambda: target.copy_(source)})["copy"]
    return found | {"copy": 2 * source.numel() / ms / 1e9}


def inputs(bench: Bench, prior: Prior, shape: tuple[int, int, int]):
    height, width, n = (32, 32, shape[2]) if bench.tiny else shape
    x = torch.randn(n, 3, height, width, device=bench.device)
    return x, prior.conditioning(torch.tensor([500]))


def forwards(bench: Bench, shape: tuple[int, int, int], precision: str) -> dict:
    """Ours, eager and in a CUDA graph, with its peak of memory; the official module beside it."""
    prior = load_prior(bench.unet, dtype=precision)
    x, steps = inputs(bench, prior, shape)
    item = steps[0]
    functions = {
        "ours, eager": lambda: prior.eps(x, item),
        "ours, graph": bench.captured(lambda: prior.eps(x, item)),
    }
    if bench.device.type == "cuda":
        thin = Engine(prior.unet, FusedOps(thin_convs=True))
        functions["ours, Triton ends, graph"] = bench.captured(lambda: thin(x, item, 3))
    found = {"shape": shape, "precision": precision}
    if precision in ("float32", "bfloat16"):
        theirs = official(bench, precision, x)
        try:
            theirs()
            functions["official module"] = theirs
        except torch.OutOfMemoryError:  # its attention keeps T x T weights for each head
            found["official module"] = "out of memory"
    found["ms"] = bench.milliseconds(functions, 3 if bench.tiny else 10)
    cost = engine_cost(bench.config, len(x), *x.shape[2:], prior.dtype)
    found |= {"tflop": cost.flops / 1e12, "estimated_gib": cost.peak_bytes / 2**30}
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        prior.eps(x, item)
        torch.cuda.synchronize()
        found["measured_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    return found


def official(bench: Bench, precision: str, x: torch.Tensor) -> Callable:
    """The official module eager: float32 as it comes, else bfloat16 and channels_last."""
    state, low = bench.unet.state_dict(), precision != "float32"
    if low:
        state = {
            k: v.to(torch.bfloat16, memory_format=torch.channels_last)
            if v.ndim == 4
            else v.to(torch.bfloat16)
            for k, v in state.items()
        }
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
    module = ReferenceUNet(state, bench.config.num_head_channels)
    t = torch.full((len(x),), 500, device=x.device)
    return lambda: module(x, t)


def compiled(bench: Bench, shape: tuple[int, int, int], precision: str) -> dict:
    """torch.compile(mode="max-autotune") of the plain network, the same dtype and layout."""
    prior = load_prior(bench.unet, dtype=precision)
    x, steps = inputs(bench, prior, shape)
    item, x = steps[0], x.to(prior.dtype)
    options = {"backend": "eager"} if bench.tiny else {"mode": "max-autotune"}
    start = time.monotonic()
    function = torch.compile(lambda: prior.unet.run(x, item, 3), **options)
    function()
    seconds = time.monotonic() - start
    functions = {
        "compiled": function,
        "ours, graph": bench.captured(lambda: prior.eps(x, item)),
    }
    tflop = engine_cost(bench.config, len(x), *x.shape[2:], prior.dtype).flops / 1e12
    found = {"shape": shape, "precision": precision, "tflop": tflop, "compile_seconds": seconds}
    return found | {"ms": bench.milliseconds(functions, 3 if bench.tiny else 20)}


class _Timed(Engine):
    """An engine that notes the time before and after each of its layers."""

    def _run(self, stage, parts, step):
        for layer in stage:
            start = self.mark()
            parts = (super()._run([layer], parts, step),)
            self.marks.append((layer.name, start, self.mark()))
        return parts[0]


def layers(bench: Bench, precision: str) -> dict:
    """ms of each layer of ours and its floor by the measured rates."""
    prior = load_prior(bench.unet, dtype=precision)
    x, steps = inputs(bench, prior, SHAPES[0])
    engine = _Timed(prior.unet, prior.engine.ops)
    on_gpu = bench.device.type == "cuda"

    def mark():
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    engine.mark = mark
    times: dict[str, list[float]] = {}
    for _ in range(5):
        engine.marks = []
        engine(x.to(prior.dtype), steps[0], 3)
        if on_gpu:
            torch.cuda.synchronize()
        for name, start, end in engine.marks:
            ms = start.elapsed_time(end) if on_gpu else (end - start) * 1e3
            times.setdefault(name, []).append(ms)
    measured = bench.found.get("rates", {})
    flops, bandwidth = measured.get(precision, 1) * 1e12, measured.get("copy", 1) * 1e12
    cost = engine_cost(bench.config, len(x), *x.shape[2:], prior.dtype).by("layer")
    return {
        name: {
            "ms": statistics.median(values),
            "floor_ms": cost[name].seconds(flops, bandwidth) * 1e3,
        }
        for name, values in times.items()
    }


def convolutions(bench: Bench, precision: str) -> dict:
    """Each shape of convolution: heuristics, benchmark mode, floor; other forms where there are."""
    dtype = PRECISIONS[precision]
    shapes = convolution_shapes(bench)
    measured = bench.found.get("rates", {})
    found = {}
    for (channels, outs, kernel, height, width), count in shapes.items():
        like = {"device": bench.device, "dtype": dtype}
        x = torch.randn(1, channels, height, width, **like).to(memory_format=torch.channels_last)
        weight = torch.randn(outs, channels, kernel, kernel, **like)
        weight = weight.to(memory_format=torch.channels_last)
        functions = {
            "heuristic": _with_benchmark(False, lambda x=x, w=weight: _conv(x, w)),
            "benchmark": _with_benchmark(True, lambda x=x, w=weight: _conv(x, w)),
        }
        if bench.device.type == "cuda" and kernel == 3:
            functions |= _thin(x, weight)
        if kernel == 1:
            rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, channels), weight[:, :, 0, 0].t()
            functions["matrix product"] = lambda r=rows, m=matrix: r @ m
        elif outs == channels and height <= 256:
            up, folded = F.interpolate(x, scale_factor=2), upsampling_kernel(weight)
            functions["of the doubled size"] = lambda x=up, w=weight: _conv(x, w)
            functions["doubling folded into it"] = lambda x=x, w=folded: F.conv_transpose2d(
                x, w, stride=2, padding=1
            )
        ms = bench.milliseconds(functions, 3 if bench.tiny else 10)
        flops = 2 * channels * outs * kernel**2 * height * width
        moved = (x.numel() + outs * height * width + weight.numel()) * dtype.itemsize
        floor = max(
            flops / measured.get(precision, 1) / 1e12, moved / measured.get("copy", 1) / 1e12
        )
        name = f"{channels}->{outs} {kernel}x{kernel} at {height}x{width}"
        found[name] = {"count": count, "floor_ms": floor * 1e3, "ms": ms}
    return found


def convolution_shapes(bench: Bench) -> dict[tuple, int]:
    """(in, out, kernel, H, W) of every convolution of a forward → how often, found by running it
    on the meta device."""
    counted: dict[tuple, int] = {}

    class Counting(PlainOps):
        def _conv(self, x, conv, bias):
            outs, channels, kernel, _ = conv.weight.shape
            key = channels, outs, kernel, *x.shape[2:]
            counted[key] = counted.get(key, 0) + 1
            return super()._conv(x, conv, bias)

    with torch.device("meta"):
        unet = UNet(bench.config)
    step = unet.conditioning(torch.zeros(1, device="meta"))[0]
    height, width = (32, 32) if bench.tiny else SHAPES[0][:2]
    Engine(unet, Counting())(torch.empty(1, 3, height, width, device="meta"), step, 3)
    return counted


def _thin(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Callable]:
    """Our convolution, where it is one for such a weight."""
    from ddfm_fast.kernels import conv

    if not conv.suits(weight):
        return {}
    packed = conv.pack(weight)
    return {"Triton": lambda: conv.thin_conv(x, packed)}


def _conv(x, weight):
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def _with_benchmark(on: bool, function: Callable) -> Callable:
    def run():
        with torch.backends.cudnn.flags(enabled=True, benchmark=on):
            return function()

    return run


def norms(bench: Bench, precision: str) -> dict:
    """GroupNorm + SiLU, and bias + residual: ours, eager, torch.compile, byte floor."""
    dtype = PRECISIONS[precision]
    measured = bench.found.get("rates", {})
    found = {}
    for channels, height, width in [(32, 16, 16)] if bench.tiny else NORMS:
        x = torch.randn(1, channels, height, width, device=bench.device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        weight, bias = torch.randn(2, channels, device=bench.device)
        low, y = (weight.to(dtype), bias.to(dtype)), torch.empty_like(x)

        def eager(x=x, w=low[0], b=low[1]):
            return F.silu(F.group_norm(x, 32, w, b))

        options = {"backend": "eager"} if bench.tiny else {}
        functions = {"eager": eager, "compiled": torch.compile(eager, **options)}
        if bench.device.type == "cuda":
            from ddfm_fast.kernels import group_norm as gn

            def ours(x=x, w=weight, b=bias, y=y):
                affine = gn.scale_shift([gn.moments(x)], x.shape[2] * x.shape[3], w, b)
                return gn.apply([x], affine, out=y)

            functions["ours"] = ours
            functions["ours, graph"] = bench.captured(ours)
        ms = bench.milliseconds(functions)
        moved = 3 * x.numel() * dtype.itemsize  # read for the moments, read and written
        floor = moved / measured.get("copy", 1) / 1e12 * 1e3
        found[f"{channels} x {height} x {width}"] = {"floor_ms": floor, "ms": ms}
        name = f"{channels} x {height} x {width}, residual"
        found[name] = {"floor_ms": floor, "ms": joins(bench, x, low[1], bias)}
    return found


def joins(bench: Bench, x: torch.Tensor, low: torch.Tensor, bias: torch.Tensor) -> dict:
    """x + bias + residual; ours leaves the moments of the sum as well."""
    residual = torch.randn_like(x)

    def eager():
        return (x + low[:, None, None]).add_(residual)

    options = {"backend": "eager"} if bench.tiny else {}
    functions = {"eager": eager, "compiled": torch.compile(eager, **options)}
    if bench.device.type == "cuda":
        from ddfm_fast.kernels import group_norm as gn

        h = x.clone()
        functions["ours"] = lambda: gn.join_(h, bias, residual)
        functions["ours, graph"] = bench.captured(functions["ours"])
    return bench.milliseconds(functions)


def loop(bench: Bench, shape: tuple[int, int, int], precision: str, steps: int) -> dict:
    """Seconds of a whole fusion: ours, and the official loop without its PNG files.

    The official one, in float32, takes a twentieth of the steps, and its time is multiplied.
    """
    height, width, n = (32, 32, shape[2]) if bench.tiny else shape
    i, v = torch.rand(2, n, 1, height, width, device=bench.device) * 2 - 1
    prior = load_prior(bench.unet, dtype=precision)
    x = torch.randn(n, 3, height, width, device=bench.device)
    few = max(steps // 20, 2)  # the transcription takes no single step
    schedule = make_schedule(few)
    reference = ReferenceLoop(schedule.timesteps, schedule.betas)
    module = ReferenceUNet(bench.unet.state_dict(), bench.config.num_head_channels)
    ours = {"ours": lambda: sample(prior, i, v, FuseConfig(steps=steps))}
    theirs = {"official": lambda: reference(module, x, i, v)}
    found = {"shape": shape, "precision": precision, "steps": steps}
    try:
        ms = bench.milliseconds(ours | theirs, 1)
    except torch.OutOfMemoryError:  # of the official module's attention
        return found | {"seconds": {"ours": bench.milliseconds(ours, 1)["ours"] / 1e3}}
    seconds = {"ours": ms["ours"] / 1e3, "official": ms["official"] / 1e3 * steps / few}
    return found | {"seconds": seconds, "times_faster": seconds["official"] / seconds["ours"]}


def report(found: dict) -> list[str]:
    """Markdown of what has been found."""
    about = found.get("machine", {})
    lines = [f"# The prior on {about.get('gpu', 'a CPU, tiny network')}", ""]
    rate = found.get("rates", {})
    if rate:
        lines += ["Measured: " + ", ".join(f"{k} {v:.2f} T/s" for k, v in rate.items()), ""]
    lines += ["| forward | path | ms | TFLOP/s | of the matrix rate |", "|---|---|---|---|---|"]
    for name, part in found.items():
        if not (name.startswith(("forward", "compiled")) and "ms" in part):
            continue
        for path, ms in part["ms"].items():
            speed = part["tflop"] / ms * 1e3 if "tflop" in part else float("nan")
            share = speed / rate.get(part["precision"], float("nan"))
            lines.append(f"| {name} | {path} | {ms:.2f} | {speed:.0f} | {share:.2f} |")
    for name in ("layers", "convolutions", "norms"):
        lines += ["", f"## {name}", ""]
        for key, part in found.get(name, {}).items():
            ms = part["ms"]
            shown = (
                f"{ms:.3f}" if isinstance(ms, float) else {k: round(v, 3) for k, v in ms.items()}
            )
            lines.append(f"- {key}: {shown} ms, floor {part['floor_ms']:.3f} ms")
    lines += ["", "## Whole loops", ""]
    lines += [f"- {name}: {part}" for name, part in found.items() if name.startswith("loop")]
    lines += ["", f"Left out for time: {found['left_out']}", f"Failed: {found['failed']}"]
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_prior", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of prior.json, prior.md")
    parser.add_argument("--seconds", type=float, default=200, help="no new part after so long")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a tiny network on the CPU")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and not args.tiny:
        print("no GPU: skipped")
        return 0
    bench = Bench(args.out, args.seconds, args.tiny, 2 if args.tiny else args.repeats)
    bench.found["machine"] = machine() | {"date": str(datetime.date.today())}
    if not args.tiny:
        bench.found["machine"] |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    bench.attempt("rates", lambda: rates(bench))
    first = SHAPES[0]
    bench.attempt("forward 512x640x1 bfloat16", lambda: forwards(bench, first, "bfloat16"))
    bench.attempt("layers", lambda: layers(bench, "bfloat16"))
    bench.attempt("norms", lambda: norms(bench, "bfloat16"))
    bench.attempt("convolutions", lambda: convolutions(bench, "bfloat16"))
    steps = 2 if args.tiny else 100
    bench.attempt("loop 512x640x1 bfloat16", lambda: loop(bench, first, "bfloat16", steps))
    for precision in FIRST:
        for shape in SHAPES[:1] if args.tiny else SHAPES:
            name = "forward {}x{}x{} ".format(*shape) + precision
            if name not in bench.found:
                bench.attempt(name, lambda s=shape, p=precision: forwards(bench, s, p))
    for precision in FIRST[:1] if args.tiny else FIRST:
        for shape in SHAPES[:1] if args.tiny else SHAPES:
            name = "loop {}x{}x{} ".format(*shape) + precision
            if name not in bench.found:
                bench.attempt(name, lambda s=shape, p=precision: loop(bench, s, p, steps))
    # last, since compiling takes minutes each
    for precision in FIRST[:2]:
        for shape in SHAPES[:1] if args.tiny else SHAPES:
            name = "compiled {}x{}x{} ".format(*shape) + precision
            bench.attempt(name, lambda s=shape, p=precision: compiled(bench, s, p))
    print("\n".join(report(bench.found)))
    return 1 if bench.found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
