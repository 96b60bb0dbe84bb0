"""Describe a prior's file or folder: what it is, what it lacks, and what a forward pass costs."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ..images.doubts import DDFMWarning
from .architecture import like_consistency_models
from .checkpoint import describe
from .cost import Cost, cost_of, engine_cost
from .hf import Folder, read_folder
from .load import ASSETS, load_prior
from .predictions import PREDICTIONS
from .prior import Prior
from .reuse import Kept, evaluator_of
from .state_dict import file_sha256, files_of, read_tensors, weights_sha256
from .unet_config import UNetConfig
from .wrapped import SIGMAS

COST_SIZES = ((256, 256), (512, 640))
"""height and width for which the cost is given"""
_TIMED_SIDE = 64
_MOST_TEXT = 1 << 20
_GUESS = {"num_heads": 1}
"""costs as much as any number of heads"""
_ASSUMED = (
    "eps under linear betas of 1000 timesteps; otherwise --prior-config, such as "
    '{"noise_schedule": "cosine", "num_train_timesteps": 4000, "rescale_timesteps": true}'
)


def inspect(
    spec: str | os.PathLike, config: dict[str, Any] | None = None, *, timed: bool = True
) -> dict[str, Any]:
    """Describe a prior's file, or a folder of diffusers, as JSON types.

    Args:
        spec: As :func:`.load.load_prior` takes it: "embedded", a checkpoint, a folder.
        config: Likewise: what the file lacks.
        timed: Measure a forward pass here, for the estimate of seconds.

    Returns:
        What :func:`.checkpoint.describe` gives (for a folder, as far as it has that), and family,
        channels, prediction, schedule, trained_at (pixels, or None), license (or None), cost
        (for each of ``COST_SIZES`` flops, peak_bytes with the weights, seconds: an estimate by the
        FLOP of a forward pass at 64 pixels, reused: the share of the FLOP that a step with reused
        deep layers takes, None if they are not known), missing (what must be given besides, and the
        option for it) and assumed (what the file does not say and is assumed).

    Raises:
        ValueError: It is not a prior, as in :func:`.load.load_prior`.
    """
    path = ASSETS.get(str(spec), Path(spec))
    if path.is_dir():
        return _of_folder(path, config, timed)
    found = describe(path, config)
    unet = UNetConfig.from_dict({**found["config"], **(_GUESS if found["unknown"] else {})})
    prior, training = found["prior"], found["training"] or {}
    suspect = "prediction" not in prior and like_consistency_models(unet)
    family = _family(unet, prior, bool(training), suspect)
    loaded = _loaded(path, {**(config or {}), **(_GUESS if found["unknown"] else {})})
    dtype = torch.float32

    def cost(height: int, width: int, reused: bool = False) -> Cost:
        return engine_cost(
            unet, 1, height, width, dtype, fused=False, out_channels=unet.in_channels,
            reused=reused,
        )  # fmt: skip

    return {
        **found,
        "family": family,
        "channels": unet.in_channels,
        "prediction": prior.get("prediction", "eps"),
        "schedule": _schedule(prior),
        "trained_at": training.get("patch"),
        "license": _license_of_file(spec, path),
        "cost": _costs(cost, loaded, found["parameters"], timed),
        "missing": _missing(found["unknown"], suspect),
        "assumed": [] if training or prior else [_ASSUMED],
    }


def _missing(unknown: list[str], suspect: bool) -> list[dict[str, str]]:
    missing = []
    if unknown:
        missing.append(_lacking("the number of attention heads", {"num_head_channels": 64},
                                "or num_heads, as it was trained with"))  # fmt: skip
    if suspect:
        missing.append(_lacking("what it predicts", {"prediction": "consistency"},
                                'of cd_* and ct_* files, "edm" of edm_* ones'))  # fmt: skip
    return missing


def _lacking(what: str, example: dict[str, Any], note: str) -> dict[str, str]:
    return {"what": what, "option": f"--prior-config '{json.dumps(example)}' ({note})"}


def _loaded(spec: str | os.PathLike, config: dict[str, Any]) -> Prior:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DDFMWarning)  # said under "missing"
        return load_prior(spec, config or None)


def _family(unet: UNetConfig, prior: dict[str, Any], ours: bool, suspect: bool) -> str:
    if ours or unet.pixel_unshuffle > 1 or unet.sigma_data:
        return "ddfm_fast"
    if suspect or prior.get("prediction") in ("edm", "consistency"):
        return "consistency_models (ADM's keys)"
    if unet.resblock_updown:
        return "guided-diffusion (ADM)"
    return "improved-diffusion, or guided-diffusion without residual resampling"


def _schedule(prior: dict[str, Any]) -> str:
    kind = PREDICTIONS.get(prior.get("prediction", "eps"), PREDICTIONS["eps"])
    if kind.family == "flow":
        return "straight path, times 0 to 1"
    if kind.family == "ve":
        low, high = prior.get("sigmas", SIGMAS)
        return f"noise of sigma {low:g} to {high:g}"
    if prior.get("alphas") is not None:
        return f"betas of its own, {len(prior['alphas'])} timesteps"
    name, steps = prior.get("noise_schedule", "linear"), prior.get("num_train_timesteps", 1000)
    rescaled = ", given to it as 0 to 1000" if prior.get("rescale_timesteps") else ""
    return f"{name} betas, {steps} timesteps{rescaled}"


def _costs(cost: Any, prior: Prior | None, parameters: int, timed: bool) -> dict[str, Any]:
    """Return the cost by size, without seconds if there is no network to time."""
    rate = None
    if prior is not None and timed:
        side = -(-_TIMED_SIDE // prior.multiple) * prior.multiple
        rate = _seconds(prior, side) / max(cost(side, side).flops, 1)
    found = {}
    reuses = prior is not None and prior.reuses
    for size in COST_SIZES:
        multiple = 1 if prior is None else prior.multiple
        height, width = (-(-n // multiple) * multiple for n in size)
        paper = cost(height, width)
        found[f"{size[0]}x{size[1]}"] = {
            "flops": paper.flops,
            "peak_bytes": paper.peak_bytes + 4 * parameters,
            "seconds": None if rate is None else float(f"{paper.flops * rate:.3g}"),
            "reused": cost(height, width, True).flops / paper.flops if reuses else None,
        }
    return found


@torch.inference_mode()
def _seconds(prior: Prior, side: int) -> float:
    """Time a forward pass of one small picture, after one that is not counted."""
    x = torch.zeros(1, prior.channels, side, side, device=prior.device)
    step = prior.conditioning(torch.tensor([prior.num_train_timesteps // 2]))[0]
    prior.eps(x, step)
    began = time.perf_counter()
    prior.eps(x, step)
    return time.perf_counter() - began


def _license_of_file(spec: str | os.PathLike, path: Path) -> str | None:
    if str(spec) in ASSETS:
        return "MIT, as the package"
    if path.suffix.lower() != ".safetensors":
        return None
    _, metadata = read_tensors(path)
    said = next((v for k, v in metadata.items() if k.lower().endswith("license")), None)
    return said and said[:200]


# folders of diffusers


def _of_folder(path: Path, config: dict[str, Any] | None, timed: bool) -> dict[str, Any]:
    folder = read_folder(path)
    tensors = read_tensors(folder.weights, pickled=(".bin",))[0]
    prior = {**folder.keywords, **(config or {})}
    files = files_of(folder.weights)
    missing = []
    if not folder.scheduler:
        missing.append(_lacking("its scheduler (linear betas, eps are taken)",
                                {"noise_schedule": "cosine"},
                                "or scheduler_config.json in the folder"))  # fmt: skip
    loaded, cost = None, None
    try:
        loaded, cost = _loaded(path, config or {}), _diffusers_cost(folder)
    except ImportError:
        missing.append({"what": "the library that runs it, and counts its cost",
                        "option": "pip install 'ddfm_fast[diffusers]'"})  # fmt: skip
    parameters = sum(v.numel() for v in tensors.values())
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})
    scheduler = folder.scheduler.get("_class_name", "no scheduler")
    return {
        "path": str(path),
        "bytes": sum(map(os.path.getsize, files)),
        "sha256": file_sha256(*files),
        "weights_sha256": weights_sha256(tensors),
        "parameters": parameters,
        "dtype": ", ".join(kinds),
        "config": {k: v for k, v in folder.config.items() if not k.startswith("_")},
        "unknown": [],
        "family": f"diffusers UNet2DModel, {scheduler}",
        "channels": prior.get("channels", 3),
        "prediction": prior.get("prediction", "eps"),
        "schedule": _schedule(prior),
        "trained_at": folder.config.get("sample_size"),
        "license": _license_of_card(path),
        "cost": None if cost is None else _costs(cost, loaded, parameters, timed),
        "missing": missing,
        "assumed": [],
    }


def _diffusers_cost(folder: Folder) -> Any:
    from diffusers import UNet2DModel

    with torch.device("meta"):
        model = UNet2DModel.from_config(folder.config).eval().requires_grad_(False)

    evaluate = evaluator_of(model)

    def cost(height: int, width: int, reused: bool = False) -> Cost:
        x = torch.empty(1, folder.config.get("in_channels", 3), height, width, device="meta")
        t = torch.zeros(1, device="meta")
        if not reused or evaluate is None:
            return cost_of(model, x, t, attention=True)
        kept = Kept(2)
        cost_of(evaluate, x, t, kept.at(0), attention=True)
        return cost_of(evaluate, x, t, kept.at(1), attention=True)

    return cost


def _license_of_card(folder: Path) -> str | None:
    """Read the license in the head of a folder's README.md."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MOST_TEXT)
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license:\s*['\"]?([^'\"\n#]+)", head[1], re.MULTILINE)
    return found[1].strip()[:200] if found else None
