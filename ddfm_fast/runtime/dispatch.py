"""Choose once which code runs a step, by the request, the device and what is installed.

``backend``
    "triton": the fused kernels of ``ddfm_fast.kernels``; "torch": plain PyTorch
    (``ddfm_fast.rectify``), the path of the CPU and the kernels' oracle.
``solver``
    How the kernels get k: "local" (no FFT: the step in two launches, on tensor cores), "torch"
    (torch.fft) or "cupy" (CuPy's cuFFT plans). "auto" is "local" where the GPU has the tensor cores
    it is written for (compute capability 8.0), else "torch": the better choice on paper, since no
    GPU has run either. The backend "torch" always uses torch.fft.
``graph``
    "loop": one CUDA graph for all steps; "step": one per step, replayed; "off": no graph; "auto"
    on a CUDA device: "loop", or "step" if that graph would have more than 2,000 nodes, and then one
    for as many steps as stay below.

Each defaults to its environment variable, DDFM_FAST_BACKEND, DDFM_FAST_SOLVER or
DDFM_FAST_GRAPH, else to "auto".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..config import FuseConfig
from ..images.doubts import warn
from ..schedule import StepRow
from ..step import ReverseStep, Step, em_settings
from . import environment
from .apart import refuse_where_impossible

if TYPE_CHECKING:
    from ..kernels import Obstacle

BACKENDS = ("auto", "triton", "torch")
SOLVERS = ("auto", "local", "torch", "cupy")
GRAPHS = ("auto", "loop", "step", "off")
_warned: set[str] = set()
"""warnings that this process has already given"""
LOCAL_CAPABILITY = (8, 0)
"""least capability for "local": below it Triton multiplies float16 without tensor cores"""


class Backend(NamedTuple):
    """What runs a step, and makes the object that does."""

    name: str
    """"triton" or "torch" """
    solver: str
    reason: str
    """why this backend, as a text for people"""

    def make_step(
        self,
        i: Tensor,
        v: Tensor,
        config: FuseConfig,
        *,
        rows: Sequence[StepRow],
        noise: str = "none",
        seeds: Tensor | None = None,
        keep_x0: bool = False,
        channels: int = 3,
    ) -> Step:
        """Make the steps ``rows`` of a batch: luma planes i, v [N, 1, H, W] float32 on one device.

        ``noise``: the source of σ, one of ``step.NOISES``. ``seeds``: int64 [N], the seed of each
        image's noise. ``keep_x0``: f̂₀ of each step can be requested. ``channels``: of the samples;
        only the plain step takes 1. Raises what the constructors raise, ValueError or TypeError.
        """
        em = em_settings(config)
        if self.name == "torch" or channels != 3:
            return ReverseStep(i, v, rows=rows, noise=noise, seeds=seeds, channels=channels, **em)
        from ..kernels import LocalStep, TritonStep

        make = LocalStep if self.solver == "local" else partial(TritonStep, solver=self.solver)
        return make(i, v, rows=rows, noise=noise, seeds=seeds, keep_x0=keep_x0, **em)


def resolve_device(device) -> torch.device:
    """Return the device of a name, by default CUDA if there is one; ValueError if it is none.

    Raises RuntimeError if it cannot be used now: ``apart.refuse_where_impossible``.
    """
    resolved = _named_device(device)
    refuse_where_impossible(resolved)
    return resolved


def _named_device(device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device is {device!r}; expected "cpu", "cuda" or "cuda:0"') from error
    if resolved.type == "meta":
        raise ValueError(
            'device is "meta", which holds no data; expected "cpu", "cuda" or "cuda:0"'
        )
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, but this PyTorch sees no CUDA device; "
            'expected device="cpu", or a CUDA build of PyTorch and its driver'
        )
    return resolved


def resolve_backend(
    device: torch.device | str, backend: str | None = None, solver: str | None = None
) -> Backend:
    """Return the backend for a device. None reads the environment variable, "auto" without one.

    Raises ValueError or ImportError if what was requested by name cannot run here.
    """
    device = torch.device(device)
    backend = _choice("backend", backend, BACKENDS, "DDFM_FAST_BACKEND")
    solver = _choice("solver", solver, SOLVERS, "DDFM_FAST_SOLVER")
    if backend == "torch":
        return Backend("torch", _torch_solver(solver, "backend is 'torch'"), "requested")
    obstacle = triton_obstacle(device)
    if backend == "triton" and obstacle and obstacle.untried:
        _tell(f"backend is 'triton', but {obstacle}: compare a result with backend='torch'")
        return Backend("triton", "torch" if solver == "auto" else solver, "requested")
    if backend == "triton" and obstacle:
        raise ValueError(
            f"backend is 'triton', but {obstacle}; expected backend='torch' or 'auto' here"
        )
    if obstacle:
        if obstacle.remedy:
            _tell(
                f"the fused kernels cannot run, so PyTorch's slower operations are used: {obstacle}"
            )
        return Backend("torch", _torch_solver(solver, str(obstacle)), str(obstacle))
    if solver == "cupy":
        _require_cupy()
    reason = "requested" if backend == "triton" else f"{device.type} device, and triton imports"
    return Backend("triton", _best_solver(device) if solver == "auto" else solver, reason)


def resolve_graph(graph: str | None, device: torch.device | str, backend: Backend) -> str:
    """Return the graph mode for a device: "auto", "loop", "step" or "off" (always on a CPU).

    None reads the environment variable, "auto" without one. Raises ValueError if what was requested
    cannot run here.
    """
    device = torch.device(device)
    graph = _choice("graph", graph, GRAPHS, "DDFM_FAST_GRAPH")
    if device.type != "cuda":
        if graph in ("loop", "step"):
            raise ValueError(
                f"graph is {graph!r}, but the device is {device}; CUDA graphs need a CUDA device: "
                "expected 'off' or 'auto'"
            )
        return "off"
    if graph == "step" and backend.name == "torch":
        raise ValueError(
            "graph is 'step' with backend 'torch', whose steps have their coefficients frozen in; "
            "expected graph='loop' or 'off', or backend='triton'"
        )
    return graph


def triton_obstacle(device: torch.device) -> Obstacle | None:
    """Return why the kernels cannot run on ``device``, or None if they can."""
    from .. import kernels

    if device.type == "cuda":
        return kernels.obstacle(device)
    if device.type != "cpu":
        return kernels.Obstacle(f"the device is {device.type}", "")
    if os.environ.get("TRITON_INTERPRET") != "1":
        return kernels.Obstacle("the device is the CPU", "")
    triton = kernels.module_status("triton")
    if triton["version"] is None:
        return kernels.Obstacle(f"triton: {triton['reason']}", "")
    from ..kernels.checks import INTERPRETED

    if not INTERPRETED:
        return kernels.Obstacle("triton was imported before TRITON_INTERPRET=1 was set", "")
    return None


def _tell(sentence: str) -> None:
    """Warn once per process."""
    if sentence not in _warned:
        _warned.add(sentence)
        warn(sentence)


def _best_solver(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LOCAL_CAPABILITY:
        return "torch"
    return "local"


def _torch_solver(solver: str, because: str) -> str:
    if solver in ("cupy", "local"):
        raise ValueError(
            f"solver is {solver!r}, which the Triton kernels need, and {because}; "
            "expected solver='torch' or 'auto'"
        )
    return "torch"


def _require_cupy() -> None:
    from ..kernels import module_status

    cupy = module_status("cupy")
    if cupy["version"] is None:
        raise ImportError(
            f"solver is 'cupy', but CuPy: {cupy['reason']}; install ddfm_fast[cuda12] or "
            "ddfm_fast[cuda13], or take solver='torch'"
        )


def _choice(name: str, value: str | None, choices: tuple[str, ...], variable: str) -> str:
    source = name
    if value is None:
        value, source = environment.get(variable), f"environment variable {variable}"
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{source} is {value!r}; expected one of {', '.join(choices)}")
    return value
