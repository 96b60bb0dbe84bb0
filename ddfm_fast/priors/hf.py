"""Folders of diffusers' UNet2DModel as priors, such as a download of google/ddpm-celebahq-256."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

# diffusers' beta_schedule -> ours; "linear" only with the published end points.
_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
_OTHER_PROCESSES = {
    "ScoreSdeVe": "the variance-exploding process",
    "KarrasVe": "the variance-exploding process",
    "EDM": "EDM's preconditioning",
    "CMStochasticIterative": "consistency",
    "LCM": "latent consistency",
    "FlowMatch": "flow matching",
}
"""part of a scheduler's class name -> what its network predicts instead"""


def load_diffusers(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder and the prior keywords that its configuration files tell.

    ``folder`` holds ``config.json`` of a ``UNet2DModel`` (and perhaps ``scheduler_config.json``),
    or is a pipeline with ``unet/`` and ``scheduler/``. ValueError if it holds something else, or
    is class-conditional, not RGB or not trained to predict eps under a known schedule;
    ImportError, saying what to install, without diffusers.
    """
    root = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config = _read_json(root / "config.json", folder)
    _check_model(config, folder)
    keywords: dict[str, Any] = {"multiple": 2 ** (len(config["down_block_types"]) - 1)}
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            keywords |= _scheduler_keywords(_read_json(path, folder), folder)
            break
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError(
            f"prior: {str(folder)!r} needs the diffusers library; install it with "
            'pip install "ddfm_fast[diffusers]"'
        ) from error
    try:
        model = UNet2DModel.from_pretrained(root, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"prior: diffusers cannot load {str(folder)!r}: {error}") from error
    return model.eval().requires_grad_(False), keywords


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"prior: folder {str(folder)!r} has no {path.name}; expected a diffusers UNet2DModel "
            "or a pipeline folder with unet/config.json"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"prior: {str(path)!r} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"prior: {str(path)!r} is not a JSON object")
    return content


def _check_model(config: dict[str, Any], folder: Path) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DModel" or "down_block_types" not in config:
        raise ValueError(
            f"prior: {str(folder)!r} holds a {kind}, expected an unconditional UNet2DModel"
        )
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(
            f"prior: {str(folder)!r} is class-conditional, but DDFM needs an unconditional prior"
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        raise ValueError(
            f"prior: {str(folder)!r} has {embedding!r} time embeddings, as networks of the "
            "variance-exploding process (ncsnpp) have, expected 'positional' ones of an "
            "eps-predictor"
        )
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] != 3 or channels[1] not in (3, 6):
        latent = "; 4 channels are those of a latent model" if channels[0] == 4 else ""
        raise ValueError(
            f"prior: {str(folder)!r} maps {channels[0]} to {channels[1]} channels, "
            f"expected 3 to 3 or 6, of pictures{latent}"
        )


def _scheduler_keywords(scheduler: dict[str, Any], folder: Path) -> dict[str, Any]:
    kind = str(scheduler.get("_class_name", ""))
    other = next((words for words in _OTHER_PROCESSES if words in kind), None)
    if other is not None:
        raise ValueError(
            f"prior: {str(folder)!r} was trained for {_OTHER_PROCESSES[other]} ({kind}), expected "
            "eps-prediction of the variance-preserving process, as DDPM and DDIM schedulers have"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise ValueError(f"prior: {str(folder)!r} predicts {prediction!r}, expected 'epsilon'")
    betas = scheduler.get("beta_schedule", "linear")
    ends = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if betas not in _SCHEDULES or (betas == "linear" and ends != (1e-4, 0.02)):
        raise ValueError(
            f"prior: {str(folder)!r} was trained with betas {betas!r} from {ends[0]} to {ends[1]}, "
            "expected 'linear' from 0.0001 to 0.02 or 'squaredcos_cap_v2'"
        )
    return {
        "noise_schedule": _SCHEDULES[betas],
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
    }
