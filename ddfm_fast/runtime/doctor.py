"""``ddfm-fast doctor``: what this machine can do, a self-test, and what to install for more."""

from __future__ import annotations

import platform
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment
from .machine import cpu_model, total_bytes, usable_cores

if TYPE_CHECKING:
    import torch

    from ..kernels import Obstacle
    from ..priors.unet_config import UNetConfig

GIB = 2**30
KERNELS_NOTE = "the GPU kernels and graphs have not been run on a GPU yet: bash bench/gpu_suite.sh"
MEMORY_SIZES = ((512, 640), (2160, 3840))


def examine() -> dict[str, Any]:
    """Look at the machine and the installation, and fuse one tiny pair.

    Returns:
        ``ok`` (the package itself works), ``machine``, ``packages``, ``devices``, ``backend`` (what
        runs a step, and why), ``environment`` (the variables that are read, and unknown ones),
        ``cache`` (of compiled CPU kernels), ``prior``, ``memory``, ``self_test`` and ``advice`` (a
        list of ``{"install", "brings"}``); JSON-serializable.
    """
    from ..kernels import available

    report: dict[str, Any] = {
        "machine": _machine(),
        "packages": _packages(),
        "devices": available(),
        "backend": _checked(_backend),
        "environment": _environment(),
        "cache": _checked(_cache),
        "prior": _checked(_embedded_prior),
        "memory": _checked(_prior_memory),
        "self_test": _checked(_self_test),
    }
    report["advice"] = _advice(report)
    report["ok"] = all(report[part]["ok"] for part in ("backend", "prior", "self_test"))
    return report


def render(report: dict[str, Any]) -> str:
    """Write the report of :func:`examine` as text for people."""
    packages = {n: v or "not installed" for n, v in report["packages"].items()}
    devices = {n: d["version"] or f"no: {d['reason']}" for n, d in report["devices"].items()}
    lines = [f"ddfm_fast {packages['ddfm_fast']}"]
    sections = {
        "machine": _pairs(report["machine"]),
        "packages": _pairs(packages),
        "GPU": _pairs(devices),
        "a step is run by": _backend_lines(report["backend"]),
        "environment": _environment_lines(report["environment"]),
        "compiled CPU kernels": _cache_lines(report["cache"]),
        "memory of a prior, one image at once (estimates; workspaces come on top)": _memory_lines(
            report["memory"]
        ),
        "checks": _check_lines(report),
        "for more": [
            line
            for hint in report["advice"]
            for line in (f"  {hint['install']}", f"      {hint['brings']}")
        ],
    }
    for title, section in sections.items():
        lines += ["", title, *section] if section else []
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"  {name:<12} {value}" for name, value in values.items()]


def _backend_lines(backend: dict[str, Any]) -> list[str]:
    if not backend["ok"]:
        return [f"  FAIL  {backend['detail']}"]
    missing = backend["cpu_kernels"]
    values = {
        "backend": backend["name"],
        "solver": backend["solver"],
        "graph": backend["graph"],
        "device": backend["device"],
        "because": backend["reason"],
        "CPU prior": f"PyTorch's operations: {missing.splitlines()[0]}"
        if missing
        else f"our kernels, {backend['cpu_build']}",
        **({"AMX": backend["cpu_amx"]} if backend["cpu_amx"] else {}),
        "note": KERNELS_NOTE,
    }
    return _pairs(values)


def _environment_lines(found: dict[str, Any]) -> list[str]:
    values = {
        name: variable["value"] if variable["set"] else f"{variable['value']} (default)"
        for name, variable in found["variables"].items()
    }
    width = max(map(len, values.values()))
    lines = [
        f"  {name:<22} {value:<{width}}  {found['variables'][name]['meaning']}"
        for name, value in values.items()
    ]
    lines += [
        f"  {name:<22} is set, but nothing in the package reads it" for name in found["unknown"]
    ]
    return lines


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    if not cache["ok"]:
        return [f"  FAIL  {cache['detail']}"]
    held = f"{cache['files']} file{'s' * (cache['files'] != 1)}, {cache['bytes'] / 2**20:.1f} MiB"
    values = {"folder": cache["folder"], "holds": held}
    if cache["refused"]:
        values["not used"] = f"{cache['refused']}; each process compiles the kernels again"
    return [*_pairs(values), "  to empty it: ddfm-fast doctor --clear-cache"]


def _cache() -> dict[str, Any]:
    from ..kernels.cpu import cache

    return {"ok": True, **cache.describe()}


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    lines = []
    for row in memory.get("rows", []):
        sizes = ", ".join(f"{size} {n / GIB:.2f}" for size, n in row["activation_bytes"].items())
        layout = row["layout_bytes"] / GIB
        lines.append(
            f"  {row['prior']:<12} {row['dtype']}: weights {row['weight_bytes'] / GIB:.2f} GiB"
            f"{f' and {layout:.2f} GiB as the CPU kernels read them' if layout else ''}, "
            f"activations {sizes} GiB"
        )
    return lines if memory["ok"] else [*lines, f"  unknown: {memory['detail']}"]


def _check_lines(report: dict[str, Any]) -> list[str]:
    checks = {"embedded prior": report["prior"], "self-test": report["self_test"]}
    return [
        f"  {'ok  ' if check['ok'] else 'FAIL'}  {title}: {check['detail']}"
        for title, check in checks.items()
    ]


def _machine() -> dict[str, Any]:
    import torch

    total = total_bytes()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory": "unknown" if total is None else f"{total / GIB:.1f} GiB",
    }


def _packages() -> dict[str, str | None]:
    from .. import __version__

    packages: dict[str, str | None] = {
        "ddfm_fast": __version__,
        "torch": import_module("torch").__version__,
    }
    for name in ("numpy", "safetensors", "pillow", "opencv-python-headless", "diffusers", "av"):
        packages[name.removesuffix("-python-headless")] = _version(name)
    return packages


def _version(distribution: str) -> str | None:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return None


def _checked(check) -> dict[str, Any]:
    """Run ``check()``, with any failure as ``ok: False``: the doctor reports, and never raises."""
    try:
        return {"ok": True, **check()}
    except Exception as error:
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}


def _backend() -> dict[str, Any]:
    """Return what ``Fuser`` chooses by default.

    ``cpu_kernels``: why the prior on a CPU must do without them, or None; ``cpu_build``: whether
    they came with the wheel or were compiled here, or None; ``cpu_amx``: whether they use AMX, and
    why not, or None.
    """
    from ..kernels.cpu import build
    from .dispatch import resolve_backend, resolve_device, resolve_graph

    device = resolve_device(None)
    backend = resolve_backend(device)
    library, missing = build.load()
    return {
        **backend._asdict(),
        "graph": resolve_graph(None, device, backend),
        "device": str(device),
        "cpu_kernels": missing,
        "cpu_build": None if library is None else library.made,
        "cpu_amx": None if library is None else library.amx,
    }


def _environment() -> dict[str, Any]:
    """Return the table of variables with their values, and the names that nothing reads."""
    given = environment.set_values()
    return {
        "variables": {
            name: {"value": environment.get(name), "set": name in given, **variable._asdict()}
            for name, variable in environment.VARIABLES.items()
        },
        "unknown": environment.unknown(),
    }


def _embedded_prior() -> dict[str, Any]:
    from ..priors import load

    prior = load.load_prior("embedded")
    card = Path(load.__file__).with_name("MODEL_CARD.md")
    if prior.fingerprint not in card.read_text(encoding="utf-8"):
        raise ValueError(
            f"the weights' hash {prior.fingerprint} is not the one in {card.name}: "
            "the file was changed or damaged; reinstall ddfm_fast"
        )
    return {
        "detail": f"{prior.name}, hash {prior.fingerprint[:12]}... as in {card.name}",
        "fingerprint": prior.fingerprint,
    }


def _prior_memory() -> dict[str, Any]:
    """Return the bytes of weights and activations of the embedded and of the official network.

    Found by a run of the engine on tensors without data, in the default precision of this machine's
    default device.
    """
    from ..priors.cost import OFFICIAL
    from ..priors.load import load_prior
    from ..priors.network import UNetPrior
    from ..priors.precision import default_precision
    from .dispatch import resolve_device

    device = resolve_device(None)
    precision = default_precision(device)
    embedded = load_prior("embedded")
    assert isinstance(embedded, UNetPrior)
    configs = {"embedded": embedded.unet.config, "256x256 ADM": OFFICIAL}
    rows = [
        {"prior": name, **_network_memory(config, device, precision)}
        for name, config in configs.items()
    ]
    return {"detail": f"on {device}", "rows": rows}


def _network_memory(config: UNetConfig, device: torch.device, precision: str) -> dict[str, Any]:
    import torch

    from ..priors.cost import engine_cost, parameter_count
    from ..priors.ops.choice import ops_for
    from ..priors.ops.fused import FusedOps
    from ..priors.ops.native import NativeOps
    from ..priors.precision import PRECISIONS

    dtype = PRECISIONS[precision]
    fused = isinstance(ops_for(device, 2**62), FusedOps)
    activations = {}
    for height, width in MEMORY_SIZES:
        rows, columns = (-(-side // config.multiple) * config.multiple for side in (height, width))
        cost = engine_cost(config, 1, rows, columns, dtype, fused=fused)
        activations[f"{height}x{width}"] = cost.peak_bytes
    count = parameter_count(config)
    native = isinstance(ops_for(device, count, dtype), NativeOps)
    return {
        "dtype": precision,
        "weight_bytes": count * torch.empty(0, dtype=dtype).element_size(),
        "layout_bytes": count * NativeOps.WEIGHT_BYTES if native else 0,
        "activation_bytes": activations,
    }


def _self_test() -> dict[str, Any]:
    """Fuse a 32x32 pair in two steps on the default device of a fusion."""
    import numpy as np

    from ..api import Fuser

    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    fuser = Fuser(prior="embedded", steps=2)
    started = time.perf_counter()
    fused = fuser(ramp, ramp.T.copy())
    seconds = time.perf_counter() - started
    if fused.shape != ramp.shape or fused.dtype != np.uint8 or fused.std() == 0:
        raise RuntimeError(
            f"a 32x32 uint8 pair gave {fused.dtype} {fused.shape} with deviation {fused.std():.1f}"
        )
    return {
        "detail": f"2 steps at 32x32 on {fuser.prior.device} in {seconds * 1000:.0f} ms",
        "seconds": seconds,
        "device": str(fuser.prior.device),
    }


def kernels_obstacle() -> Obstacle | None:
    """Return what keeps the Triton kernels from the first CUDA device, if it can be remedied."""
    import torch

    from ..kernels import module_status, obstacle

    found = obstacle(torch.device("cuda", 0))
    absent = module_status("triton")["version"] is None
    return found if found and (found.remedy or absent) else None


def _advice(report: dict[str, Any]) -> list[dict[str, str]]:
    devices, advice = report["devices"], []
    missing = report["backend"].get("cpu_kernels")
    if missing and "compiler" in missing:
        why = missing.splitlines()[0]
        advice.append(
            {
                "install": "a C++ compiler (Debian, Ubuntu: apt install g++)",
                "brings": f"the prior on a CPU twice as fast in float32; now: {why}",
            }
        )
    if devices["cuda"]["version"] is None:
        advice.append(
            {
                "install": "an NVIDIA GPU with its driver, and PyTorch's CUDA build (pytorch.org)",
                "brings": f"fusion on the GPU; now: {devices['cuda']['reason']}",
            }
        )
    elif devices["cupy"]["version"] is None:
        major = import_module("torch").version.cuda.split(".")[0]
        advice.append(
            {
                "install": f"pip install cupy-cuda{major}x",
                "brings": "CuPy arrays in and out, and solver='cupy' for the k-solve",
            }
        )
    if devices["cuda"]["version"] is not None and (found := kernels_obstacle()):
        brings_own = "pip install triton (Linux; PyTorch's CUDA build brings its own)"
        advice.append(
            {
                "install": found.remedy or brings_own,
                "brings": f"the fused kernels; now the plain PyTorch path runs: {found.reason}",
            }
        )
    if report["packages"]["diffusers"] is None:
        advice.append(
            {
                "install": "pip install diffusers",
                "brings": "priors from folders that hold a diffusers UNet2DModel",
            }
        )
    if report["packages"]["av"] is None:
        advice.append({"install": "pip install av", "brings": "reading and writing video files"})
    return advice
