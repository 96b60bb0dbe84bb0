"""The authors' 256x256 network (random weights) on a GPU, in every way, the most wanted first.

A forward at 512x640 in bfloat16; our layers and their floors; each convolution, by cuDNN's
heuristic, by its benchmark and by our own kernel; the norms; a whole loop; then every other size
and precision; last, since it compiles for minutes, torch.compile. A rehearsal uses a tiny network.

It has never run on a GPU: expect to correct it on the first one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddfm_fast.config import FuseConfig
from ddfm_fast.priors.engine import Engine
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.ops.base import fits_layer
from ddfm_fast.priors.ops.fused import FusedOps
from ddfm_fast.priors.ops.plain import PlainOps
from ddfm_fast.priors.precision import PRECISIONS
from ddfm_fast.priors.unet import UNet, upsampling_kernel
from ddfm_fast.sampler import sample
from ddfm_fast.schedule import make_schedule

from ..data import config_of, network, planes, reference_unet
from ..memory import peak_of
from ..model import forward_cost
from ..place import Place, Task, apart, named
from ..reference import ReferenceLoop, ReferenceUNet
from ..results import Candidate, Measurement, Parity
from .prior import TIMESTEP, against_compile, forward, noise, reference_forward

ABOUT = "the authors' network on a GPU: forwards, layers, convolutions, norms, loops, torch.compile"
SIZES = [(512, 640), (256, 256), (1088, 1920)]
LIMITS = {"float32": 2e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 5e-2}
"""error of eps against float32, over its largest value: 3.5 times what the plain network lost at
64x64 on a CPU (float16 5.7e-3, bfloat16 1.5e-2; for TF32 nothing is known)"""
NORMS = [(256, 512, 640), (512, 512, 640), (512, 128, 160), (1024, 32, 40)]
LOW = "bfloat16"
HEAD_START = 4096
"""side of the product that keeps a GPU busy while the host launches a forward's first layers"""


def tasks(place: Place) -> list[Task]:
    """Return the tasks, the most wanted first; nothing on a CPU: a forward takes seconds there."""
    if not place.on_gpu:
        return []
    sizes = [(16, 16)] if place.rehearse else SIZES
    first, precisions = sizes[0], (LOW, *(p for p in LIMITS if p != LOW))
    shapes = [(*size, n) for n in (1, 4) for size in sizes][: 1 if place.rehearse else None]

    def task(name: str, work: Callable, *sizes) -> Task:
        name = f"official network, {name}"
        return Task("official", name, named(*sizes[:2]), partial(work, place, *sizes))

    forward = [
        task(f"forward, {p}, batch {n}", forwards, *size, n, p)
        for p in precisions
        for *size, n in shapes
    ]
    parts = [
        task(f"convolution {i}->{o} {k}x{k}, {count} in a forward", convolution, *size, i, o, k)
        for (o, i, k, *size), count in convolutions(place, *first).items()
    ]
    for channels, *size in [(32, 16, 16)] if place.rehearse else NORMS:
        parts.append(task(f"norm and SiLU, {channels} channels", norm, *size, channels))
        parts.append(task(f"bias and residual, {channels} channels", residual, *size, channels))
    return [
        forward[0],
        task(f"layers, {LOW}", layers, *first),
        *parts,
        task(f"whole loop, {LOW}", loop, *first),
        *forward[1:],
        *(task(f"forward by torch.compile, {LOW}", compiled, *size) for size in sizes),
    ]


def which(place: Place) -> str:
    """Return the network's name in ``data.NETWORKS``."""
    return "tiny" if place.rehearse else "official"


def our_prior(place: Place, precision: str = LOW):
    """Return the network as a prior on the device, and its conditioning."""
    unet = network(which(place), place.device)
    prior = load_prior(unet, device=place.device, dtype=precision)
    return prior, prior.conditioning(torch.tensor([TIMESTEP]))[0]


def forwards(place: Place, height: int, width: int, n: int, precision: str) -> Measurement:
    """Time ours, eager, in a graph, with own 3x3 convolutions; the authors' module if it fits."""
    (prior, step), x = our_prior(place, precision), noise(height, width, place.device, n)
    eager = forward(prior, x)
    works = {"ddfm_fast": place.captured(eager), "ddfm_fast, eager": eager}
    if precision == LOW and not place.rehearse:  # would take minutes in the interpreter
        own = Engine(prior.unet, FusedOps(own=512))
        works["ddfm_fast, our own 3x3 convolutions"] = place.captured(lambda: own(x, step, 3))
    facts: dict = {}
    try:
        theirs, exact = reference_forward(which(place), x)
        works = {"reference": theirs} | works
        if precision == LOW:
            works["reference, bfloat16"] = _low_module(place, x)
    except torch.OutOfMemoryError:  # its attention keeps T x T weights for each head
        facts["reference"], exact = "out of memory", eager()
    limit, ours = LIMITS[precision], [path for path in works if path.startswith("ddfm_fast")]
    checks = [
        Parity(
            f"{path} in {precision} against the reference",
            apart(exact, works[path]()),
            limit,
        )
        for path in ours
    ]
    half = precision in ("bfloat16", "float16")
    cost = forward_cost(which(place), height, width, batch=n, half=half, fused=True)
    facts |= {"operations": cost.flops, "bytes": cost.bytes, "peak on paper": cost.peak_bytes}
    found = place.measure(works, *checks, facts=facts, repeats=10)
    for path in ours if precision != "tf32" else ():  # its rate is not measured
        found.candidates[path].floor = place.floor(cost.bytes, cost.flops, precision)
    if place.device.type == "cuda":
        found.candidates["ddfm_fast, eager"].memory = peak_of(eager, place.device)
    return found


def _low_module(place: Place, x: Tensor) -> Callable[[], Tensor]:
    """Return the authors' module in bfloat16 and channels_last, the first thing to speed it up."""
    unet = network(which(place), place.device)
    state = {k: _low(v) for k, v in unet.state_dict().items()}
    module = ReferenceUNet(state, config_of(which(place)).num_head_channels)
    x, t = _low(x), torch.full((len(x),), TIMESTEP, device=x.device)
    return lambda: module(x, t)


def _low(tensor: Tensor) -> Tensor:
    """Return the tensor in bfloat16, maps and kernels in channels_last."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(PRECISIONS[LOW], memory_format=layout)


def layers(place: Place, height: int, width: int) -> Measurement:
    """Time each layer inside whole forwards, and give its floor."""
    (prior, step), x = our_prior(place), _low(noise(height, width, place.device))
    engine = Engine(prior.unet)
    marks: list[tuple] = []

    def noted(layer: Callable) -> Callable:
        def run(*arguments):
            start = _mark(place)
            out = layer(*arguments)
            marks.append((layer.name, start, _mark(place)))
            return out

        return run

    for stage in (*engine.down, engine.middle, *engine.up):
        stage[:] = [noted(layer) for layer in stage]
    ahead = torch.ones(2, *2 * [32 if place.rehearse else HEAD_START], device=place.device)
    found = Measurement()
    with torch.no_grad():
        for n in range(2 if place.rehearse else 8):
            marks.clear()
            torch.mm(*ahead)
            engine(x, step, 3)
            if place.device.type == "cuda":
                torch.cuda.synchronize()
            for name, *between in marks if n else ():  # the first forward warms up
                samples = found.candidates.setdefault(name, Candidate()).samples
                samples.append(_seconds(*between))
    cost = forward_cost(which(place), height, width, half=True, fused=True).by("layer")
    for name, candidate in found.candidates.items():
        candidate.floor = place.floor(cost[name].bytes, cost[name].flops, LOW)
    return found


def _mark(place: Place):
    if place.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start, end) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


class _Convolutions(TorchDispatchMode):
    """Counts the convolutions that run: (out, in, kernel, H, W) → how many."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            x, weight = args[:2]
            shape = (*weight.shape[:3], *x.shape[2:])
            self.counts[shape] += 1
        return function(*args, **(kwargs or {}))


def convolutions(place: Place, height: int, width: int) -> Counter:
    """Count every convolution of a forward by running it on the meta device."""
    with torch.device("meta"), torch.no_grad():
        unet = UNet(config_of(which(place)))
        step = unet.conditioning(torch.zeros(1))[0]
        with _Convolutions() as found:
            Engine(unet, PlainOps())(torch.empty(1, 3, height, width), step, 3)
    return found.counts


def convolution(
    place: Place, height: int, width: int, channels: int, outs: int, kernel: int
) -> Measurement:
    """Time cuDNN by heuristic and by benchmark, and other forms of the same sum, if any."""
    from ddfm_fast.kernels import conv

    x = _low(torch.randn(1, channels, height, width, device=place.device))
    weight = torch.randn(outs, channels, kernel, kernel, device=place.device)
    weight = _low(weight / (channels * kernel**2) ** 0.5)
    works = {
        "cuDNN, heuristic": partial(_conv, x, weight, False),
        "cuDNN, benchmark": partial(_conv, x, weight, True),
    }
    if kernel == 1:
        rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, channels), weight[:, :, 0, 0].t()
        works["matrix product"] = lambda: rows @ matrix
    elif outs == channels and height <= 256:
        double, folded = F.interpolate(x, scale_factor=2), upsampling_kernel(weight)
        works["of the doubled size"] = partial(_conv, double, weight, False)
        upsample = partial(F.conv_transpose2d, stride=2, padding=1)
        works["doubling folded into it"] = partial(upsample, x, folded)
    if fits_layer(channels, outs):
        packed = conv.pack(weight)
        works["ddfm_fast"] = lambda: conv.layer([conv.Part(x)], packed, want_moments=False).data
    flops = 2 * weight.numel() * height * width
    moved = (x.numel() + outs * height * width + weight.numel()) * x.element_size()
    exact, ours = _conv(x, weight, False), works.get("ddfm_fast")
    check = [Parity("our own kernel against cuDNN's", apart(exact, ours()), 2e-2)] if ours else []
    floors = {"cuDNN, heuristic": place.floor(moved, flops, LOW)}
    return place.measure(works, *check, baseline="cuDNN, heuristic", floors=floors, repeats=10)


def _conv(x: Tensor, weight: Tensor, benchmark: bool) -> Tensor:
    with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark):
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def norm(place: Place, height: int, width: int, channels: int) -> Measurement:
    """Time GroupNorm and SiLU: read for the moments, read again, and written."""
    from ddfm_fast.kernels import group_norm as kernels

    x = _low(torch.randn(1, channels, height, width, device=place.device))
    weight, bias = torch.randn(2, channels, device=place.device)
    out, low = torch.empty_like(x), (_low(weight), _low(bias))

    def ours() -> Tensor:
        return kernels.normalize([(x, kernels.moments(x))], weight, bias, out=out)[0]

    return _against_eager(place, x, lambda: F.silu(F.group_norm(x, 32, *low)), ours)


def residual(place: Place, height: int, width: int, channels: int) -> Measurement:
    """Time x + bias + residual; ours also stores the moments of the sum."""
    from ddfm_fast.kernels import group_norm as kernels

    x = _low(torch.randn(1, channels, height, width, device=place.device))
    bias, h, other = torch.randn(channels, device=place.device), x.clone(), x.flip(1)
    low = _low(bias)[:, None, None]

    def ours() -> Tensor:
        kernels.join_(h, bias, other)
        return h

    return _against_eager(place, x, lambda: (x + low).add_(other), ours)


def _against_eager(place: Place, x: Tensor, eager: Callable, ours: Callable) -> Measurement:
    """Time ``ours`` and PyTorch, eager and compiled; three passes over x are the least."""
    check = Parity("ours against PyTorch's", apart(eager(), ours()), 2e-2)
    backend = {"backend": "eager"} if place.rehearse else {}
    works = {
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False, **backend),
        "ddfm_fast, eager": ours,
        "ddfm_fast": place.replay(ours),
    }
    floors = {"ddfm_fast": place.floor(3 * x.numel() * x.element_size())}
    return place.measure(works, check, baseline="eager", floors=floors, warmup=2)


def loop(place: Place, height: int, width: int) -> Measurement:
    """Time a whole fusion, and the authors' loop without its PNG files.

    Theirs, in float32, runs a twentieth of the steps; its time is scaled to all of them.
    """
    steps = 2 if place.rehearse else 100
    few = max(steps // 20, 2)  # the transcription cannot take a single step
    (prior, _), (i, v, x, _) = our_prior(place), planes(height, width, place.device)
    schedule = make_schedule(few)
    theirs = ReferenceLoop(schedule.timesteps, schedule.betas)
    unet = reference_unet(which(place), place.device)
    works = {
        "reference": lambda: theirs(unet, x, i, v),
        "ddfm_fast": lambda: sample(prior, i, v, FuseConfig(steps=steps)),
    }
    facts = {"steps": steps, "steps of the reference that were timed": few}
    timing = {"calls": {"reference": few / steps}, "repeats": 3, "clock": place.wall}
    return place.measure(works, facts=facts, **timing)


def compiled(place: Place, height: int, width: int) -> Measurement:
    """Time torch.compile of the plain network, in the same dtype and layout."""
    prior, _ = our_prior(place)
    return against_compile(place, prior, noise(height, width, place.device), LIMITS[LOW])
