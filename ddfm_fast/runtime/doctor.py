"""``ddfm-fast doctor``: what this machine can do, a self-test, and what to install for more."""

from __future__ import annotations

import os
import platform
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

GIB = 2**30
KERNELS_NOTE = "the GPU kernels and graphs were never run on a GPU yet: bash bench/gpu_suite.sh"
MEMORY_SIZES = ((512, 640), (2160, 3840))


def examine() -> dict[str, Any]:
    """Look at the machine and the installation, and fuse one tiny pair.

    Returns:
        ``ok`` (the package itself works), ``machine``, ``packages``, ``devices``, ``engine`` (what
        runs a step, and why), ``prior``, ``memory``, ``self_test`` and ``advice`` (a list of
        ``{"install", "brings"}``); JSON-serialisable.
    """
    from ddfm_fast.kernels import available

    report = {
        "machine": _machine(),
        "packages": _packages(),
        "devices": available(),
        "engine": _checked(_engine),
        "prior": _checked(_embedded_prior),
        "memory": _checked(_prior_memory),
        "self_test": _checked(_self_test),
    }
    report["advice"] = _advice(report)
    report["ok"] = all(report[part]["ok"] for part in ("engine", "prior", "self_test"))
    return report


def render(report: dict[str, Any]) -> str:
    """The report of :func:`examine` as text for people."""
    lines = [f"ddfm_fast {report['packages']['ddfm_fast']}", "", "machine"]
    lines += [f"  {key:<12} {value}" for key, value in report["machine"].items()]
    lines += ["", "packages"]
    lines += [
        f"  {name:<12} {version or 'not installed'}" for name, version in report["packages"].items()
    ]
    lines += ["", "GPU"]
    for name, found in report["devices"].items():
        lines.append(f"  {name:<12} {found['version'] or 'no: ' + found['reason']}")
    lines += ["", "a step is run by"]
    engine = report["engine"]
    if engine["ok"]:
        names = ("backend", "solver", "graph", "device")
        lines += [f"  {name:<12} {engine[name]}" for name in names]
        lines.append(f"  {'because':<12} {engine['reason']}")
        missing = engine["cpu_kernels"]
        prior = (
            f"PyTorch's operations: {missing.splitlines()[0]}"
            if missing
            else "our kernels, compiled here"
        )
        lines.append(f"  {'CPU prior':<12} {prior}")
        lines += [f"  {name}={value}" for name, value in engine["environment"].items()]
        lines.append(f"  {'note':<12} {KERNELS_NOTE}")
    else:
        lines.append(f"  FAIL  {engine['detail']}")
    lines += ["", "memory of a prior, one image at once (estimates; workspaces come on top)"]
    for row in report["memory"].get("rows", []):
        sizes = ", ".join(f"{size} {n / GIB:.2f}" for size, n in row["activation_bytes"].items())
        layout = row["layout_bytes"] / GIB
        lines.append(
            f"  {row['prior']:<12} {row['dtype']}: weights {row['weight_bytes'] / GIB:.2f} GiB"
            f"{f' and {layout:.2f} GiB as the CPU kernels read them' if layout else ''}, "
            f"activations {sizes} GiB"
        )
    if not report["memory"]["ok"]:
        lines.append(f"  unknown: {report['memory']['detail']}")
    lines += ["", "checks"]
    for title, key in (("embedded prior", "prior"), ("self-test", "self_test")):
        check = report[key]
        lines.append(f"  {'ok  ' if check['ok'] else 'FAIL'}  {title}: {check['detail']}")
    if report["advice"]:
        lines += ["", "for more"]
        for hint in report["advice"]:
            lines += [f"  {hint['install']}", f"      {hint['brings']}"]
    return "\n".join(lines)


def _machine() -> dict[str, Any]:
    import torch

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, and a container's quota where that is less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores


def _memory() -> str:
    """Total memory, or the container's limit where that is lower."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    if limit.isdigit():
        total = min(total, int(limit))
    return f"{total / GIB:.1f} GiB"


def _packages() -> dict[str, str | None]:
    import ddfm_fast

    packages = {
        "ddfm_fast": ddfm_fast.__version__,
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
    """``check()`` with any failure turned into ``ok: False``: the doctor reports, never raises."""
    try:
        return {"ok": True, **check()}
    except Exception as error:
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}


def _engine() -> dict[str, Any]:
    """What ``Fuser`` chooses by default, and the environment variables that have a say.

    ``cpu_kernels``: why the prior on a CPU has to do without them, or None.
    """
    import torch

    from ddfm_fast.kernels import cpu
    from ddfm_fast.runtime.dispatch import resolve_backend, resolve_graph

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = resolve_backend(device)
    return {
        **engine._asdict(),
        "graph": resolve_graph(None, device, engine),
        "device": str(device),
        "cpu_kernels": cpu.status(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("DDFM_FAST_")},
    }


def _embedded_prior() -> dict[str, Any]:
    from ddfm_fast import priors

    prior = priors.load_prior("embedded")
    card = Path(priors.__file__).with_name("MODEL_CARD.md")
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
    """Bytes of weights and activations of the embedded and of the official network.

    By a run of the engine on tensors without data, in the precision that this machine's default
    device takes.
    """
    import torch

    from ddfm_fast.api import resolve_device
    from ddfm_fast.priors.cost import OFFICIAL, engine_cost, parameter_count
    from ddfm_fast.priors.load import load_prior
    from ddfm_fast.priors.ops import FusedOps, NativeOps, ops_for
    from ddfm_fast.priors.precision import PRECISIONS, default_precision

    device = resolve_device(None)
    name = default_precision(device)
    dtype, fused = PRECISIONS[name], isinstance(ops_for(device, 2**62), FusedOps)
    rows = []
    configs = {"embedded": load_prior("embedded").unet.config, "256x256 ADM": OFFICIAL}
    for prior, config in configs.items():
        activations = {}
        for height, width in MEMORY_SIZES:
            padded = (-(-side // config.multiple) * config.multiple for side in (height, width))
            cost = engine_cost(config, 1, *padded, dtype, fused=fused)
            activations[f"{height}x{width}"] = cost.peak_bytes
        count = parameter_count(config)
        weights = count * torch.empty(0, dtype=dtype).element_size()
        native = isinstance(ops_for(device, count, dtype), NativeOps)
        rows.append(
            {
                "prior": prior,
                "dtype": name,
                "weight_bytes": weights,
                "layout_bytes": count * NativeOps.WEIGHT_BYTES if native else 0,
                "activation_bytes": activations,
            }
        )
    return {"detail": f"on {device}", "rows": rows}


def _self_test() -> dict[str, Any]:
    """Fuse a 32x32 pair in two steps on the device that a fusion takes by default."""
    import numpy as np

    from ddfm_fast.api import Fuser

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


def _advice(report: dict[str, Any]) -> list[dict[str, str]]:
    devices, advice = report["devices"], []
    missing = report["engine"].get("cpu_kernels")
    if missing and "compiler" in missing:
        advice.append(
            {
                "install": "a C++ compiler (Debian, Ubuntu: apt install g++)",
                "brings": f"the prior on a CPU twice as fast in float32; now: {missing}",
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
    if devices["cuda"]["version"] is not None and devices["triton"]["version"] is None:
        advice.append(
            {
                "install": "pip install triton (Linux; PyTorch's CUDA build brings its own)",
                "brings": "the fused kernels; now the plain PyTorch path runs",
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
