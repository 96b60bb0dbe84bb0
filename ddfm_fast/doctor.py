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


def examine() -> dict[str, Any]:
    """Look at the machine and the installation, and fuse one tiny pair.

    Returns:
        ``ok`` (the package itself works), ``machine``, ``packages``, ``devices``, ``prior``,
        ``self_test`` and ``advice`` (a list of ``{"install", "brings"}``); JSON-serialisable.
    """
    from ddfm_fast.kernels import available

    report = {
        "machine": _machine(),
        "packages": _packages(),
        "devices": available(),
        "prior": _checked(_embedded_prior),
        "self_test": _checked(_self_test),
    }
    report["advice"] = _advice(report)
    report["ok"] = report["prior"]["ok"] and report["self_test"]["ok"]
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
    lines.append(
        f"  {'kernels':<12} never run on a GPU yet, and not used: the plain PyTorch path runs"
    )
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
        "cores": _usable_cores(),
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


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


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
                "brings": "CuPy arrays in and out; fusion itself gets no faster",
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
