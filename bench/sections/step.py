"""Everything between the prior's output and x_{t-1}: the authors' path, the twin, the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddfm_fast.config import FuseConfig
from ddfm_fast.runtime.dispatch import Backend
from ddfm_fast.schedule import make_schedule, step_rows

from ..data import planes
from ..place import PLANES_OF_A_STEP, Place, Task, in_turn, largest_difference, named, require
from ..reference import ReferenceLoop, em_initial
from ..results import Measurement, Parity

ABOUT = "everything after the prior, one step"
PSI, ETA = 0.5, 0.001
LIMIT = 1e-4
"""difference after ten steps from one x_T, in x of about [−3, 3], float32 on both sides"""
GPU_SIZES = [(256, 256), (512, 640), (1088, 1920), (2160, 3840)]
REFERENCE_PIXELS = 2**20
"""most pixels of the reference on a GPU: its color conversion on the CPU takes seconds"""
INDEX = 60
"""the step that is timed, of 100"""


def tasks(place: Place) -> list[Task]:
    """Return one step at each size."""
    measure = on_gpu if place.on_gpu else on_cpu
    return [
        Task("step", ABOUT, named(*size), partial(measure, place, *size)) for size in sizes(place)
    ]


def sizes(place: Place) -> list[tuple[int, int]]:
    """Return heights and widths of a step, and of its parts."""
    if place.size:
        return [place.size]
    if place.rehearse:
        return [(20, 36)]
    if place.device.type == "cuda":
        return GPU_SIZES[:1] if place.quick else GPU_SIZES
    return [(96, 128)] if place.quick else [(512, 640)]


def reference_step(i, v, x, out) -> Callable[[int], Tensor]:
    """Return the authors' step with its state: index of the schedule (99 first) → x_{t-1}."""
    schedule = make_schedule(100)
    loop, now = ReferenceLoop(schedule.timesteps, schedule.betas), [x, em_initial(i)]

    def step(index: int = INDEX) -> Tensor:
        t = torch.tensor([index], device=x.device)
        now[:] = loop.after_prior(now[0], t, out, i, v, now[1], PSI, ETA)
        return now[0]

    return step


def twin_step(i, v, x, out) -> Callable[[int], Tensor]:
    """Return our step in plain PyTorch."""
    rectifier, now = make_step("plain", i, v), x.clone()

    def step(index: int = INDEX) -> Tensor:
        rectifier.step = len(rectifier.rows) - 1 - index
        return rectifier.step_(now, out)

    return step


def parity_of_twin(height: int, width: int, device: torch.device) -> Parity:
    """Compare ours in plain PyTorch with the authors' step, over the first ten."""
    data = planes(height, width, device)
    theirs, ours = reference_step(*data), twin_step(*data)
    worst = max(largest_difference(theirs(n), ours(n)) for n in range(99, 89, -1))
    return Parity("step after the prior, ours against the reference", worst, LIMIT)


def on_cpu(place: Place, height: int, width: int) -> Measurement:
    """Time the reference and the plain path, each call on planes that have left the cache."""
    check = parity_of_twin(height, width, place.device)
    sets = [planes(height, width, place.device, seed) for seed in range(place.sets(height, width))]
    candidates = {
        "reference": in_turn([reference_step(*data) for data in sets]),
        "ddfm_fast": in_turn([twin_step(*data) for data in sets]),
    }
    floors, facts = {"ddfm_fast": floor(place, height, width)}, {"sets of planes": len(sets)}
    return place.measure(candidates, check, floors=floors, facts=facts, repeats=30, warmup=2)


def floor(place: Place, height: int, width: int) -> float:
    """Return the least seconds of a step."""
    return place.floor(PLANES_OF_A_STEP * 4 * height * width)


def solvers() -> list[str]:
    """Return the k-solvers that are installed."""
    from ddfm_fast.kernels import module_status

    return ["local", "torch", *(["cupy"] if module_status("cupy")["version"] else [])]


def make_step(solver: str, i: Tensor, v: Tensor):
    """Make the official preset's steps by kernels with a solver, or by their twin ("plain")."""
    backend = Backend("torch" if solver == "plain" else "triton", solver, "measured here")
    rows = step_rows(make_schedule(100), "ddim")
    return backend.make_step(i, v, FuseConfig(psi=PSI, eta=ETA), rows=rows)


def kernel_step(solver: str, i, v, x, out) -> Callable[[], Tensor]:
    """Return a step by the kernels on planes of its own; the same addresses at every call."""
    rectifier, now, eps = make_step(solver, i, v), x.clone(), out[:, :3]
    return lambda: rectifier.step_(now, eps)


def kernel_difference(solver: str, i, v, x, out, steps: int = 3) -> float:
    """Compare the kernels with their twin, from the first row on."""
    rectifier, theirs = make_step(solver, i, v), twin_step(i, v, x, out)
    now, worst = x.clone(), 0.0
    for n in range(99, 99 - steps, -1):
        now = rectifier.step_(now, out[:, :3])
        worst = max(worst, largest_difference(theirs(n), now))
    return worst


def on_gpu(place: Place, height: int, width: int) -> Measurement:
    """Time reference, twin and kernels; a call of kernels is a graph, a step per set of planes."""
    sets = [planes(height, width, place.device, seed) for seed in range(place.sets(height, width))]
    checks = [
        Parity(f"step after the prior, {s} against its twin", kernel_difference(s, *sets[0]), LIMIT)
        for s in solvers()
    ]
    require(check := parity_of_twin(height, width, place.device), *checks)
    works = {"reference": reference_step(*sets[0]), "twin, eager": twin_step(*sets[0])}
    if height * width > REFERENCE_PIXELS:
        del works["reference"]
    baseline, kernels = next(iter(works)), _kernel_candidates(place, sets)
    works |= kernels
    floors = dict.fromkeys(works, floor(place, height, width))
    calls = dict.fromkeys(kernels, len(sets))
    facts = {"sets of planes": len(sets), "launches": launches(place, height, width)}
    return place.measure(
        works, check, *checks, baseline=baseline, floors=floors, facts=facts, calls=calls,
        repeats=40,
    )  # fmt: skip


def _kernel_candidates(place: Place, sets: list) -> dict[str, Callable]:
    def on_all_sets(solver: str) -> Callable:
        steps = [kernel_step(solver, *data) for data in sets]
        return lambda: [step() for step in steps]

    found = {f"{solver}, eager": on_all_sets(solver) for solver in solvers()}
    found |= {f"{s}, graph": place.replay(found[f"{s}, eager"]) for s in solvers()}
    return found


def launches(place: Place, height: int, width: int) -> dict[str, list[str]]:
    """Return the kernels of one step by name, as the profiler sees them; empty in a rehearsal."""
    from torch.profiler import ProfilerActivity, profile

    found, data = {}, planes(height, width, place.device)
    for solver in solvers() if place.device.type == "cuda" else ():
        step = kernel_step(solver, *data)
        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            step()
            torch.cuda.synchronize()
        events = sorted(profiler.events(), key=lambda e: e.time_range.start)
        found[solver] = [e.name for e in events if e.device_type.name == "CUDA"]
    return found


def eight_steps(place: Place) -> None:
    """Run what Nsight Compute examines: the kernels with and without an FFT, eight steps each."""
    data = planes(*((20, 36) if place.rehearse else (512, 640)), place.device)
    for solver in ("local", "torch"):
        step = kernel_step(solver, *data)
        for _ in range(8):
            step()
