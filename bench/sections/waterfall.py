"""From the authors' path to the shipped default, one optimization at a time.

Each row keeps the gains of the rows before it. Lossless rows compute the same function, up to
rounding: their distance from the exact picture (float64 throughout, except the time embedding)
shows it. Lossy rows give another picture, and their scores show at what cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfm_fast import PRESETS
from ddfm_fast.config import DEFAULT_SEED, FuseConfig
from ddfm_fast.graphs.cache import GraphCache
from ddfm_fast.images.stretch import stretch_limits, stretched
from ddfm_fast.method import Diffusion
from ddfm_fast.priors.checkpoint import build_unet
from ddfm_fast.priors.load import load_prior
from ddfm_fast.priors.network import UNetPrior
from ddfm_fast.priors.precision import cpu_has, float32_products
from ddfm_fast.priors.prior import Prior
from ddfm_fast.priors.unet import UNet
from ddfm_fast.rectify import VARIANTS, EMState, get_solver, rectify_plane
from ddfm_fast.runtime.dispatch import resolve_backend
from ddfm_fast.sampler import prior_rows, sample
from ddfm_fast.schedule import make_schedule
from ddfm_fast.step import ReverseStep, em_settings

from ..data import PAIR, network, pair, pair_lumas, reference_unet
from ..fidelity import psnr, scores, to_bytes
from ..memory import peak_of
from ..place import Place, Task, largest_difference, named, require
from ..reference import ReferenceLoop, em_onestep, rectify
from ..results import Measurement, Parity
from ..timing import in_fresh_process
from .loop import start

ABOUT = "from the reference path to the shipped default, one optimization at a time"
LIMIT = 1e-3
"""difference of the luma in [−1, 1] after all steps from float64"""


@dataclass(frozen=True)
class Row:
    """One step of the waterfall. ``build(device, side, steps)`` → the work: () → luma."""

    name: str
    about: str
    build: Callable[[torch.device, int, int], Callable[[], Tensor]]
    lossless: bool = True
    preset: str = "official"
    gpu_only: bool = False
    replayed: bool = False
    """whether its memory belongs to a graph, which the allocator's peak does not show"""
    needs: torch.dtype = torch.float32
    """dtype in which a CPU must multiply for the row to be useful"""


def by_identity(x0, i, v, state, psi, eta, em=em_onestep):
    """Return the authors' step without color conversions: R, G and B move with the luma."""
    variant = VARIANTS["official"]
    weights = torch.tensor(variant.luma_weights, device=x0.device).view(1, 3, 1, 1)
    luma = (x0 * weights).sum(1, keepdim=True) + variant.luma_offset
    fused, state = em(luma, i, v, state, psi, eta)
    return x0 + variant.writeback * (fused - luma), state


def by_real_fft(x0, i, v, state, psi, eta):
    """Also use the EM step whose state is k: one real FFT and one inverse."""
    return by_identity(x0, i, v, state, psi, eta, _em_of_one_plane)


def _em_of_one_plane(luma, i, v, state, psi, eta):
    if not isinstance(state, EMState):
        one = torch.ones((), device=luma.device)
        state = EMState(torch.zeros_like(luma[0, 0]), one, one)
    solve = get_solver(*luma.shape[-2:], luma.dtype, luma.device)
    y = (i - v)[0, 0]
    fused = rectify_plane(luma[0, 0], v[0, 0], y, state, solve, psi=psi, eta=eta)
    return fused[None, None], state


def _luma_of(x0: Tensor, i: Tensor) -> Tensor:
    """Return luma [1, 1, H, W] in the scale of i and v."""
    return ReverseStep(i, i).luma(x0[0])[None, None]


def _their_loop(rectify: Callable = rectify, png: bool = False):
    def build(device: torch.device, side: int, steps: int) -> Callable[[], Tensor]:
        (i, v), x = pair_lumas(side, device), start(side, device)
        unet, schedule = reference_unet("embedded", device), make_schedule(steps)
        loop = ReferenceLoop(schedule.timesteps, schedule.betas, rectify)

        def work() -> Tensor:
            if not png:
                return _luma_of(loop(unet, x, i, v), i)
            with tempfile.TemporaryDirectory() as folder:
                return _luma_of(loop(unet, x, i, v, png=Path(folder)), i)

        return work

    return build


def _our_loop(make_prior: Callable[[torch.device], Any], backend="torch", graph="off"):
    """Return our sampler around one of the priors."""

    def build(device: torch.device, side: int, steps: int) -> Callable[[], Tensor]:
        (i, v), config = pair_lumas(side, device), PRESETS["official"]
        config = config.with_overrides(steps=min(config.steps, steps))  # fewer in a quick look
        prior, chosen = make_prior(device), resolve_backend(device, backend, "auto")
        if graph == "off" or device.type != "cuda":  # a rehearsal captures nothing
            return lambda: sample(prior, i, v, config, backend=chosen).luma
        cache = GraphCache(graph, chosen)
        cache.warm_up(prior, config, (1, side, side))
        return lambda: sample(prior, i, v, config, loops=cache.loop).luma

    return build


def _our_preset(make_prior: Callable[[torch.device], Any], name: str):
    """Return a preset's method on the pair, reverse steps or none."""

    def build(device: torch.device, side: int, _steps: int) -> Callable[[], Tensor]:
        ir, vis = ((plane + 1) / 2 for plane in pair_lumas(side, device))
        cache = GraphCache("off", resolve_backend(device, "auto", "auto"))
        method = Diffusion(make_prior(device), PRESETS[name], cache)
        return lambda: method(ir, vis, seed=DEFAULT_SEED) * 2 - 1

    return build


def plain_unet(device: torch.device, dtype: torch.dtype = torch.float32) -> UNet:
    """Return the embedded network with its weights as stored: nothing is folded."""
    unet = network("embedded")
    weights = {k: v.detach().contiguous().to(device, dtype) for k, v in unet.state_dict().items()}
    return build_unet(unet.config, weights)


def _their_prior(device: torch.device) -> Prior:
    return load_prior(reference_unet("embedded", device), {"multiple": 16}, device=device)


def _our_module(device: torch.device) -> Prior:
    unet = plain_unet(device).to(memory_format=torch.channels_last)
    return load_prior(unet.forward, {"multiple": 16}, device=device)


class TablePrior:
    """The network as trained, with what depends on the timestep taken out of the loop.

    Everything except the forward is that of ``like``, the prior around the same network.
    """

    def __init__(self, device: torch.device):
        self.unet = plain_unet(device).to(memory_format=torch.channels_last)
        self.like = UNetPrior(self.unet, name="embedded")

    def __getattr__(self, name: str):
        return getattr(self.like, name)

    @torch.no_grad()
    def eps(self, x: Tensor, cond, **_variance) -> Tensor:
        """Predict the noise by the plain network, which has no variance half."""
        return self.unet.run(x, cond, 3)


def _our_prior(precision: str = "float32"):
    return lambda device: load_prior("embedded", device=device, dtype=precision)


ROWS = [
    Row("reference", "the authors' script: a PNG per step", _their_loop(png=True)),
    Row("no PNG per step", "nothing is written but the result", _their_loop()),
    Row("luma by an identity", "R, G and B move with the luma: no color conversion on the CPU",
        _their_loop(by_identity)),
    Row("one real FFT pair", "in place of three complex FFTs and an inverse; one plane of state",
        _their_loop(by_real_fft)),
    Row("coefficients in a table", "our sampler: in place, nothing computed that is not used",
        _our_loop(_their_prior)),
    Row("prior in channels_last", "our module: no layout changed on the way, in place",
        _our_loop(_our_module)),
    Row("conditioning in a table", "all that depends on the timestep alone is computed once",
        _our_loop(TablePrior)),
    Row("prior's engine", "norms, biases, residuals and upsampling inside their neighbors, weights "
        "laid out once: the default on a CPU", _our_loop(_our_prior())),
    Row("fused kernels", "two kernels around cuFFT", _our_loop(_our_prior(), "triton"),
        gpu_only=True),
    Row("CUDA graph", "the whole loop in one launch", _our_loop(_our_prior(), "triton", "loop"),
        gpu_only=True, replayed=True),
    Row("prior in float16", "half the bits in the network: the default on a GPU",
        _our_loop(_our_prior("float16"), "triton", "loop"), False, gpu_only=True, replayed=True),
    Row("prior in bfloat16", "half the bits in the network (--dtype bfloat16)",
        _our_loop(_our_prior("bfloat16")), False, needs=torch.bfloat16),
    *(Row(f"preset {name}", PRESETS[name].summary,
          _our_preset(_our_prior(), name), False, name)
      for name in ("balanced", "fast")),
]  # fmt: skip


def rows(place: Place) -> list[Row]:
    """Return the rows that the device can run."""
    if place.on_gpu:
        return ROWS
    return [row for row in ROWS if not row.gpu_only and cpu_has(row.needs)]


def work_of(name: str, device: torch.device, side: int, steps: int) -> Callable[[], Tensor]:
    """Return the work of the row of that name."""
    (row,) = (row for row in ROWS if row.name == name)
    return row.build(device, side, steps)


def exact(device: torch.device, side: int, steps: int) -> Tensor:
    """Return the official preset's luma in float64, from the same x_T."""
    (i, v), config = pair_lumas(side, device), FuseConfig(steps=steps)
    unet, x = plain_unet(device, torch.float64), start(side, device).double()
    table = prior_rows(load_prior("embedded"), config)
    rectifier = ReverseStep(i.double(), v.double(), rows=table, **em_settings(config))
    with torch.inference_mode():
        conditioning = unet.conditioning(torch.tensor([r.timestep for r in table], device=device))
        for s in range(len(table)):
            rectifier.step_(x, unet.run(x, conditioning[s], 3))
        return rectifier.luma(x[0])[None, None]


def tasks(place: Place) -> list[Task]:
    """Return all rows in turn."""
    side, steps = (64, 3) if place.tiny else (192, 100)
    name = f"waterfall, {PAIR}, embedded prior"
    return [Task("waterfall", name, named(side, side), lambda: measure(place, side, steps))]


def measure(place: Place, side: int, steps: int) -> Measurement:
    """Measure each row's time, memory, and distance from the exact picture, checked afterwards."""
    chosen, results = rows(place), {}

    def keeping(row: Row) -> Callable[[], None]:
        work = row.build(place.device, side, steps)

        def run() -> None:
            results[row.name] = work()

        return run

    candidates = {row.name: keeping(row) for row in chosen}
    truth = exact(place.device, side, steps)
    checked = unrounded(place, candidates, results)
    timed = place.times(candidates, repeats=3, warmup=0, clock=place.wall)
    checks = [
        Parity(f"{row.name} against float64", largest_difference(truth, checked[row.name]), LIMIT)
        for row in chosen
        if row.lossless
    ]
    facts = {"steps": steps, "default": default_row(place)}
    found = Measurement(
        baseline="reference", parity=require(*checks), candidates=timed, facts=facts
    )
    standard = picture(truth, "official")
    for row in chosen:
        candidate, luma = timed[row.name], picture(results[row.name], row.preset)
        candidate.lossless, candidate.about = row.lossless, row.about
        candidate.quality = {"PSNR": psnr(luma, standard)} | scores(to_bytes(luma), *pair(side))
        if not place.tiny:
            candidate.memory = peak(row, place, side, candidates[row.name])
        place.tick()
    return found


def unrounded(place: Place, candidates: dict, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what to compare with float64: on a CPU, what is timed.

    On a GPU, PyTorch's default, with which the authors' module is timed, rounds convolutions, so
    every row runs once without it.
    """
    if place.device.type != "cuda":
        return results
    with float32_products(tf32=False):
        for work in candidates.values():
            work()
    return {name: luma.clone() for name, luma in results.items()}


def default_row(place: Place) -> str:
    """Return the row that is the shipped default on the device."""
    return "prior in float16" if place.device.type == "cuda" else "prior's engine"


def picture(luma: Tensor, preset: str) -> Tensor:
    """Return the stretched luma plane [1, 1, H, W] in [0, 1] that the preset writes."""
    ir, vis = ((plane + 1) / 2 for plane in pair_lumas(luma.shape[-1], luma.device))
    y = (luma + 1) / 2
    return stretched(y, stretch_limits(PRESETS[preset].stretch, y, ir, vis))


def peak(row: Row, place: Place, side: int, work: Callable[[], object]) -> int | None:
    """Return peak bytes: the allocator's on CUDA; on a CPU those of two steps in a new process."""
    if place.device.type == "cuda":
        return None if row.replayed else peak_of(work, place.device)
    return in_fresh_process("memory", place.device, row.name, side, 2)["bytes"]
